"""Circuits: selection, set operations, conversions and files."""

import json
import math
import subprocess
import sys
import time
import tracemalloc
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from probes.circuits.circuit import Circuit
from probes.circuits.graph import ComputationGraph, Edge
from probes.circuits.selection import connected_edges, edges_above, greedy_edges, top_edges
from probes.errors import CircuitError, FigureError

ROOT = Path(__file__).resolve().parents[2]
ONE = ComputationGraph(1, 1, 1)
TWO = ComputationGraph(2, 2, 1)
ROLES = ComputationGraph(
    1, 1, 1, False, ("a", "b"), (("a", "a"), ("a", "b"), ("b", "b")), ("b",)
)  # fmt: skip


def made(scores, graph=ONE, model="full", error=0.5, protocol=(("method", "by hand"),)):
    """A circuit of edges, named as text, with their scores."""
    edges = tuple(Edge.parse(name) for name in scores)
    return Circuit(model, graph, edges, tuple(scores.values()), (error,) * len(edges), protocol)


def names(circuit):
    return [str(edge) for edge in circuit.edges]


def kept(graph, edges, select=connected_edges):
    """Names of the edges that remain of some edges."""
    numbers = graph.indices_of(Edge.parse(edge) for edge in edges)
    return [str(graph.edge(int(number))) for number in select(graph, numbers)]


def scored(graph, scores):
    """Scores of all edges of a graph: NaN where none is given."""
    found = np.full(len(graph), np.nan)
    for name, score in scores.items():
        found[graph.index_of(Edge.parse(name))] = score
    return found


# Selection.


def test_edges_are_ranked_by_absolute_score_and_returned_in_order():
    assert top_edges(np.array([0.1, -3.0, 2.0, -0.2]), 2).tolist() == [1, 2]
    assert edges_above(np.array([0.1, -3.0, 2.0, -0.2]), 0.2).tolist() == [1, 2, 3]


def test_ties_go_to_the_lower_number():
    assert top_edges(np.array([1.0, -2.0, 2.0, 2.0, -2.0]), 3).tolist() == [1, 2, 3]
    assert top_edges(np.zeros(5), 2).tolist() == [0, 1]


def test_an_edge_without_a_score_is_never_selected():
    scores = np.array([np.nan, 1.0, np.nan])
    assert top_edges(scores, 3).tolist() == [1] and edges_above(scores, 0.0).tolist() == [1]


@pytest.mark.parametrize(
    "wrong", [lambda: top_edges(np.ones(2), -1), lambda: edges_above(np.ones(2), -0.1)]
)
def test_a_count_or_threshold_below_zero_is_refused(wrong):
    with pytest.raises(CircuitError, match="0 or more"):
        wrong()


def test_greedy_search_starts_at_the_logits_and_skips_unreachable_strong_edges():
    scores = scored(
        ONE,
        {
            "embed->L0.H0.q": 9.0,
            "embed->L0.H0.v": 8.0,
            "embed->L0.MLP": 3.0,
            "L0.H0->logits": 1.0,
            "L0.MLP->logits": 2.0,
        },
    )
    steps = [greedy_edges(ONE, scores, count).tolist() for count in range(6)]
    order = [set(b) - set(a) for a, b in pairwise(steps)]
    found = [str(ONE.edge(number)) for (number,) in order]
    # The edge into the MLP beats the weak edge of the head, and the head's strong edges follow.
    assert found == [
        "L0.MLP->logits",
        "embed->L0.MLP",
        "L0.H0->logits",
        "embed->L0.H0.q",
        "embed->L0.H0.v",
    ]


def test_greedy_search_stops_where_nothing_more_can_be_reached():
    scores = scored(ONE, {"embed->L0.H0.q": 9.0, "L0.MLP->logits": 1.0})
    assert [str(ONE.edge(int(n))) for n in greedy_edges(ONE, scores, 5)] == ["L0.MLP->logits"]


def test_greedy_search_enters_shared_keys_once_from_any_head_of_the_group():
    scores = scored(TWO, {"L0.H0->logits": 1.0, "L0.H1->logits": 1.0, "embed->L0.KV0.k": 1.0})
    assert len(greedy_edges(TWO, scores, 9)) == 3
    scores = scored(TWO, {"L0.H1->logits": 1.0, "embed->L0.KV0.k": 1.0, "embed->L0.H0.q": 1.0})
    found = [str(TWO.edge(int(n))) for n in greedy_edges(TWO, scores, 9)]
    assert found == ["embed->L0.KV0.k", "L0.H1->logits"]


def test_greedy_search_follows_keys_to_the_role_they_are_read_at():
    scores = scored(
        ROLES,
        {
            "L0.H0@b->logits@b": 1.0,
            "embed@a->L0.H0.k@b": 1.0,
            "embed@a->L0.H0.v@a": 5.0,
            "embed@a->L0.H0.q@a": 5.0,
        },
    )
    found = [str(ROLES.edge(int(n))) for n in greedy_edges(ROLES, scores, 9)]
    assert found == ["embed@a->L0.H0.k@b", "L0.H0@b->logits@b"]


def test_scores_of_another_graph_are_refused():
    with pytest.raises(CircuitError, match="3 scores for 8 edges"):
        greedy_edges(ONE, np.ones(3), 1)


def test_connected_edges_have_an_input_and_reach_the_logits():
    path = ["embed->L0.H0.v", "L0.H0->L1.H1.q", "L1.H1->logits"]
    graph = ComputationGraph(2, 2, 2)
    assert kept(graph, path) == path
    assert kept(graph, path[1:]) == [] == kept(graph, path[:2])
    # A head without output and an MLP without input are removed.
    assert kept(graph, [*path, "embed->L0.H1.v", "L0.MLP->logits"]) == path
    assert kept(graph, ["embed->logits"]) == ["embed->logits"]
    assert kept(graph, []) == []


def test_shared_keys_connect_to_any_head_of_the_group():
    path = ["embed->L0.KV0.k", "L0.H1->logits"]
    assert kept(TWO, path) == path


def test_a_path_does_not_change_its_role_inside_a_head():
    across = ["embed@a->L0.H0.k@b", "L0.H0@b->logits@b"]
    assert kept(ROLES, across) == across
    assert kept(ROLES, ["embed@a->L0.H0.q@a", "L0.H0@b->logits@b"]) == []


def test_selection_is_fast_for_the_largest_graph():
    graph = ComputationGraph(12, 12, 12)
    scores = np.random.default_rng(0).normal(size=len(graph))
    begin = time.process_time()
    selected = greedy_edges(graph, scores, len(graph) // 20)
    connected = connected_edges(graph, selected)
    assert time.process_time() - begin < 1.5
    assert len(selected) == 1624 and set(connected) <= set(selected)


# Circuits.


def test_edges_are_kept_in_the_order_of_the_graph_with_their_scores():
    circuit = made({"L0.H0->logits": 2.0, "embed->L0.H0.q": -1.0})
    assert names(circuit) == ["embed->L0.H0.q", "L0.H0->logits"]
    assert circuit.scores == (-1.0, 2.0)
    assert circuit.edge_indices.tolist() == [0, ONE.index_of(Edge("L0.H0", "logits"))]
    assert circuit == made({"embed->L0.H0.q": -1.0, "L0.H0->logits": 2.0})


def test_a_circuit_from_scores_leaves_out_edges_with_nan():
    scores = scored(ONE, {"embed->logits": 0.5, "embed->L0.MLP": -2.0})
    circuit = Circuit.from_scores("full", ONE, scores)
    assert names(circuit) == ["embed->L0.MLP", "embed->logits"]
    assert circuit.scores == (-2.0, 0.5) and all(map(math.isnan, circuit.errors))
    assert Circuit.from_scores("full", ONE, scores, np.ones(8)).errors == (1.0, 1.0)
    with pytest.raises(CircuitError, match="has 8 edges"):
        Circuit.from_scores("full", ONE, scores[:3])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((("embed->logits",), (1.0, 2.0), (0.0,)), "1 edges have 2 scores"),
        ((("embed->logits",), (math.nan,), (0.0,)), "score of embed->logits is nan"),
        ((("embed->logits",), (math.inf,), (0.0,)), "score of embed->logits is inf"),
        ((("embed->logits",), (1.0,), (-1.0,)), "error of embed->logits is -1"),
        ((("embed->logits",) * 2, (1.0,) * 2, (0.0,) * 2), "embed->logits is in the circuit twice"),
        ((("embed->L1.H0.q",), (1.0,), (0.0,)), "names layer 1"),
        ((("L0.MLP->L0.H0.q",), (1.0,), (0.0,)), "does not come after L0.MLP in"),
        ((("embed@a->logits@a",), (1.0,), (0.0,)), "has a role"),
    ],
)
def test_an_impossible_circuit_is_refused(given, message):
    edges, scores, errors = given
    with pytest.raises(CircuitError, match=message):
        Circuit("full", ONE, tuple(map(Edge.parse, edges)), scores, errors)


def test_a_pair_of_roles_that_no_prompt_has_is_refused():
    with pytest.raises(CircuitError, match="reads nothing at 'b' for 'a'"):
        made({"embed@b->L0.H0.k@a": 1.0}, ROLES)


def test_a_circuit_is_immutable():
    circuit = made({"embed->logits": 1.0})
    with pytest.raises(FrozenInstanceError):
        circuit.model = "other"  # pyright: ignore
    with pytest.raises(ValueError, match="read-only"):
        circuit.edge_indices[0] = 3


def test_a_circuit_of_a_whole_large_model_is_fast():
    graph = ComputationGraph(12, 12, 12)
    circuit = Circuit.from_scores("full", graph, np.ones(len(graph)))
    begin = time.process_time()
    again = replace(circuit)
    assert time.process_time() - begin < 0.5
    assert len(again) == 32_491 and again.fraction == 1.0


def test_edges_are_found_by_name():
    circuit = made({"embed->L0.H0.q": 1.0})
    assert "embed->L0.H0.q" in circuit and "embed → L0.H0.q" in circuit
    assert Edge("embed", "L0.H0.q") in circuit
    assert "embed->L0.H0.k" not in circuit and "nonsense" not in circuit


def test_the_text_form_is_one_line():
    circuit = made({"embed->L0.H0.q": 1.0})
    assert str(circuit) == "Circuit of full: 1 of 8 edges (12.5%), by hand"
    assert repr(circuit) == f"<{circuit}>"
    assert str(made({}, protocol=())) == "Circuit of full: 0 of 8 edges (0.0%)"


# Subsets.


def test_a_circuit_is_reduced_by_count_threshold_search_or_connection():
    circuit = made(
        {
            "embed->L0.H0.q": 9.0,
            "embed->L0.MLP": 3.0,
            "L0.H0->L0.MLP": 0.1,
            "L0.MLP->logits": -2.0,
        }
    )
    assert names(circuit.top(2)) == ["embed->L0.H0.q", "embed->L0.MLP"]
    assert names(circuit.above_threshold(2.0)) == [
        "embed->L0.H0.q",
        "embed->L0.MLP",
        "L0.MLP->logits",
    ]
    assert names(circuit.greedy(2)) == ["embed->L0.MLP", "L0.MLP->logits"]
    assert names(circuit.above_threshold(2.0).connected()) == ["embed->L0.MLP", "L0.MLP->logits"]
    assert circuit.connected() == circuit == circuit.top(100)
    assert circuit.greedy(2).scores == (3.0, -2.0)


# Set operations.

LEFT = {"embed->L0.H0.q": 1.0, "embed->logits": 2.0}
RIGHT = {"embed->logits": 5.0, "L0.MLP->logits": 6.0}


def test_circuits_combine_as_sets_with_the_scores_of_the_left():
    left, right = made(LEFT), made(RIGHT)
    assert dict(zip(names(left & right), (left & right).scores, strict=True)) == {
        "embed->logits": 2.0
    }
    assert dict(zip(names(left | right), (left | right).scores, strict=True)) == RIGHT | LEFT
    assert names(left - right) == ["embed->L0.H0.q"]
    assert names(left - left) == []
    assert (left | right).errors == (0.5,) * 3


def test_a_combined_circuit_names_the_operation():
    left = made(LEFT, protocol=(("method", "patching"), ("steps", "5")))
    right = made(RIGHT, model="distilled", protocol=(("method", "patching"), ("steps", "9")))
    both = left & right
    assert both.model == "full, distilled"
    assert both.protocol == (("method", "patching"), ("kept", "in both"))
    assert (both | left).protocol == (("method", "patching"), ("kept", "in either"))


def test_jaccard_is_shared_edges_over_edges_of_either():
    assert made(LEFT).jaccard(made(RIGHT)) == 1 / 3
    assert made(LEFT).jaccard(made(LEFT)) == 1.0
    assert made({}).jaccard(made({})) == 1.0 and made({}).jaccard(made(LEFT)) == 0.0


def test_jaccard_compares_models_of_different_size():
    large = made(LEFT, ComputationGraph(2, 1, 1))
    assert large.jaccard(made(LEFT)) == 1.0


@pytest.mark.parametrize("combine", [Circuit.__and__, Circuit.__or__, Circuit.__sub__])
def test_circuits_of_different_shape_are_not_combined(combine):
    with pytest.raises(CircuitError, match=r"differ in layers \(1 and 2\)"):
        combine(made(LEFT), made(LEFT, ComputationGraph(2, 1, 1)))
    with pytest.raises(CircuitError, match="resolved by roles \\(False and True\\)"):
        combine(made(LEFT), made({}, ROLES))


def test_circuits_of_prompts_with_other_roles_are_combined():
    other = ComputationGraph(1, 1, 1, False, ("a", "c", "b"), (("c", "b"), ("a", "c")), ("c", "b"))
    left = made({"embed@a->L0.H0.k@b": 1.0}, ROLES)
    right = made({"embed@c->L0.H0.k@b": 2.0, "L0.H0@c->logits@c": 3.0}, other)
    either = left | right
    assert either.graph.roles == ("a", "c", "b")
    assert either.graph.role_pairs == (
        ("a", "a"), ("a", "c"), ("a", "b"), ("c", "b"), ("b", "b"),
    )  # fmt: skip
    assert either.graph.readouts == ("c", "b")
    assert set(names(either)) == {*names(left), *names(right)}
    assert either.jaccard(right) == 2 / 3
    assert names(either - right) == names(left) and names(either & right) == names(right)


# Other forms.


def test_nodes_are_the_writers_with_an_edge():
    assert made({"embed->L0.H0.q": 1.0, "L0.MLP->logits": 1.0}).nodes == (
        "embed", "L0.H0", "L0.MLP",
    )  # fmt: skip
    assert made({"embed@a->L0.H0.k@b": 1.0}, ROLES).nodes == ("embed@a", "L0.H0@b")
    assert made({"embed->L0.KV0.k": 1.0}, TWO).nodes == ("embed", "L0.H0", "L0.H1")


def test_a_table_has_a_row_for_each_edge():
    table = made({"embed@a->L0.H0.k@b": 1.0, "L0.H0@b->logits@b": -2.0}, ROLES).to_dataframe()
    assert list(table.columns) == [
        "source", "target", "source_role", "target_role", "score", "error",
    ]  # fmt: skip
    assert table.iloc[1].tolist() == ["L0.H0", "logits", "b", "b", -2.0, 0.5]
    assert made({}).to_dataframe().empty


def test_networkx_separates_queries_keys_and_values():
    graph = made({"embed->L0.H0.q": 1.0, "embed->L0.H0.k": 2.0, "L0.H0->logits": 3.0}).to_networkx()
    assert set(graph) == {"embed", "L0.H0", "logits"}
    assert graph["embed"]["L0.H0"]["k"]["score"] == 2.0
    assert set(graph["embed"]["L0.H0"]) == {"q", "k"}
    assert graph["L0.H0"]["logits"]["logits"]["error"] == 0.5


def test_networkx_has_roles_in_its_nodes_and_shared_keys_at_every_head():
    graph = made({"embed@a->L0.H0.k@b": 1.0, "L0.H0@b->logits@b": 1.0}, ROLES).to_networkx()
    assert set(graph.edges()) == {("embed@a", "L0.H0@b"), ("L0.H0@b", "logits@b")}
    assert graph["embed@a"]["L0.H0@b"]["k"]["source_role"] == "a"
    graph = made({"embed->L0.KV0.k": 1.0}, TWO).to_networkx()
    assert set(graph.edges()) == {("embed", "L0.H0"), ("embed", "L0.H1")}


def test_a_notebook_shows_the_size_and_the_ten_strongest_edges_escaped():
    graph = ComputationGraph(2, 2, 2)
    scores = np.arange(len(graph)) * 0.1
    circuit = Circuit.from_scores("<script>", graph, scores, protocol=(("<b>", "&"),))
    text = circuit._repr_html_()
    assert "&lt;script&gt;: 46 of 46 edges (100.0%)" in text and "&lt;b&gt;: &amp;" in text
    assert text.count("<tr>") == 11 and "+4.500" in text
    assert "0 of 8 edges" in made({})._repr_html_()


# Files.


@pytest.mark.parametrize(
    "circuit",
    [
        made({}),
        made({"embed->L0.H0.q": 0.1 + 0.2, "L0.H0->logits": -1e-300}, error=math.nan),
        made({"embed@a->L0.H0.k@b": 1 / 3}, ROLES, model="a\n\u202e😀", protocol=()),
        made({"embed->L0.KV0.v": 1.0}, replace(TWO, parallel=True)),
    ],
)
def test_a_saved_circuit_loads_unchanged(circuit, tmp_path):
    place = circuit.save(tmp_path / "circuit.json")
    assert Circuit.load(place) == circuit
    assert Circuit.from_json(circuit.to_json()) == circuit
    assert [path.name for path in tmp_path.iterdir()] == ["circuit.json"]


def test_a_role_may_have_any_name():
    odd = replace(ROLES, roles=("a@b -> c", "b"), role_pairs=(("a@b -> c", "b"),))
    circuit = Circuit("m", odd, (Edge("embed", "L0.H0.k", "a@b -> c", "b"),), (1.0,), (0.0,))
    assert Circuit.from_json(circuit.to_json()) == circuit


def test_an_unknown_error_is_null_and_the_file_is_strict_json():
    text = made({"embed->L0.H0.q": 1.0}, error=math.nan).to_json()
    plain = json.loads(text, parse_constant=pytest.fail)
    assert plain["edges"] == [["embed", "L0.H0.q", "", "", 1.0, None]]


def changed(path, value):
    """JSON of a circuit with one entry changed or removed."""
    plain = json.loads(made({"embed@a->L0.H0.k@b": 1.0}, ROLES).to_json())
    *parents, last = path
    inner = plain
    for step in parents:
        inner = inner[step]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(plain)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ("[1, 2]", "JSON but no circuit"),
        (changed(["result"], "cat"), "JSON but no circuit"),
        (changed(["schema"], 99), "schema 99"),
        (changed(["model"], None), "lacks 'model'"),
        (changed(["model"], 3), "'model' of the circuit is 3"),
        (changed(["graph"], 3), "lacks 'layers'"),
        (changed(["graph", "heads"], None), "lacks 'heads'"),
        (changed(["graph", "heads"], 0), "'heads' of the circuit is 0"),
        (changed(["graph", "layers"], True), "'layers' of the circuit is true"),
        (changed(["graph", "layers"], 10**9), "'layers' of the circuit is .* at most 1,000"),
        (changed(["graph", "heads"], 10**9), "'heads' .* at most 1,000"),
        (changed(["graph", "kv_heads"], 2), "a divisor of 1"),
        (changed(["graph", "parallel"], "no"), "true or false"),
        (changed(["graph", "roles"], ["a", "a"]), "different names"),
        (changed(["graph", "readouts"], ["z"]), "the roles 'z', which its graph lacks"),
        (changed(["graph", "role_pairs"], [["a"]]), "a list of two"),
        (changed(["graph", "role_pairs"], [["a", "b"]] * 2), "different pairs"),
        (changed(["protocol"], {"a": "b"}), "'protocol' of the circuit is"),
        (changed(["edges"], None), "lacks 'edges'"),
        (changed(["edges", 0], ["embed"]), "a score, and an error or null"),
        (changed(["edges", 0, 4], "1"), "a score, and an error or null"),
        (changed(["edges", 0, 4], 10**400), "a score, and an error or null"),
        (changed(["edges", 0, 4], math.nan), "score of .* is nan"),
        (changed(["edges", 0, 0], "cat"), "'cat' writes nothing"),
    ],
)
def test_a_broken_file_is_refused_with_its_fault(text, message, tmp_path):
    place = tmp_path / "circuit.json"
    place.write_text(text)
    with pytest.raises(CircuitError, match=message) as caught:
        Circuit.load(place)
    assert str(place) in str(caught.value)


def test_a_small_file_of_a_huge_graph_is_refused_before_anything_is_allocated(tmp_path):
    plain = json.loads(changed(["graph", "heads"], 1000))
    plain["graph"] |= {"layers": 1000, "kv_heads": 1000}
    (place := tmp_path / "huge.json").write_text(json.dumps(plain))
    tracemalloc.start()
    with pytest.raises(CircuitError, match="1,000,000 heads, and at most 50,000"):
        Circuit.load(place)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1e6


def test_a_file_that_cannot_be_read_or_written_is_refused(tmp_path):
    with pytest.raises(CircuitError, match="No such file"):
        Circuit.load(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CircuitError, match="Cannot read"):
        Circuit.load(tmp_path / "bytes.json")
    with pytest.raises(FigureError, match="cannot write"):
        made({}).save(tmp_path / "none" / "circuit.json")


def test_a_circuit_loads_without_heavy_imports(tmp_path):
    place = made(LEFT).save(tmp_path / "circuit.json")
    code = (
        "import sys; from probes.circuits.circuit import Circuit\n"
        f"c = Circuit.load({str(place)!r}); c = (c | c.greedy(1)).connected(); c.jaccard(c)\n"
        "print(c, c.nodes); print(*{n.split('.')[0] for n in sys.modules}, sep='\\n')"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "probes" in loaded and "numpy" in loaded
    assert not {"torch", "jaxtyping", "pandas", "networkx", "matplotlib"} & set(loaded)
