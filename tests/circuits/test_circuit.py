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


def made(scores, wiring=ONE, model="full", error=0.5, protocol=(("method", "by hand"),)):
    """A circuit of edges written as text with their scores."""
    edges = tuple(Edge.parse(name) for name in scores)
    return Circuit(model, wiring, edges, tuple(scores.values()), (error,) * len(edges), protocol)


def names(circuit):
    return [str(edge) for edge in circuit.edges]


def kept(wiring, edges, how=connected_edges):
    """The names of what is left of named edges."""
    numbers = wiring.indices_of(Edge.parse(edge) for edge in edges)
    return [str(wiring.edge(int(number))) for number in how(wiring, numbers)]


def scored(wiring, scores):
    """Scores for all edges of a wiring: those named, and NaN."""
    found = np.full(len(wiring), np.nan)
    for name, score in scores.items():
        found[wiring.index_of(Edge.parse(name))] = score
    return found


# --- selection --------------------------------------------------------------------------------


def test_the_strongest_are_strong_in_either_direction_and_come_in_order():
    assert top_edges(np.array([0.1, -3.0, 2.0, -0.2]), 2).tolist() == [1, 2]
    assert edges_above(np.array([0.1, -3.0, 2.0, -0.2]), 0.2).tolist() == [1, 2, 3]


def test_of_equally_strong_edges_the_first_is_taken():
    assert top_edges(np.array([1.0, -2.0, 2.0, 2.0, -2.0]), 3).tolist() == [1, 2, 3]
    assert top_edges(np.zeros(5), 2).tolist() == [0, 1]


def test_an_edge_without_a_score_is_never_taken():
    scores = np.array([np.nan, 1.0, np.nan])
    assert top_edges(scores, 3).tolist() == [1] and edges_above(scores, 0.0).tolist() == [1]


@pytest.mark.parametrize(
    "wrong", [lambda: top_edges(np.ones(2), -1), lambda: edges_above(np.ones(2), -0.1)]
)
def test_a_count_or_threshold_below_zero_is_refused(wrong):
    with pytest.raises(CircuitError, match="0 or more"):
        wrong()


def test_the_search_begins_at_the_logits_and_passes_by_strong_edges_that_lead_nowhere():
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
    # The MLP's edge in beats the weak edge of the head; only then come the head's strong ones.
    assert found == [
        "L0.MLP->logits",
        "embed->L0.MLP",
        "L0.H0->logits",
        "embed->L0.H0.q",
        "embed->L0.H0.v",
    ]


def test_the_search_stops_where_nothing_more_can_be_reached():
    scores = scored(ONE, {"embed->L0.H0.q": 9.0, "L0.MLP->logits": 1.0})
    assert [str(ONE.edge(int(n))) for n in greedy_edges(ONE, scores, 5)] == ["L0.MLP->logits"]


def test_the_search_enters_shared_keys_from_any_head_of_the_group_but_once():
    scores = scored(TWO, {"L0.H0->logits": 1.0, "L0.H1->logits": 1.0, "embed->L0.KV0.k": 1.0})
    assert len(greedy_edges(TWO, scores, 9)) == 3
    scores = scored(TWO, {"L0.H1->logits": 1.0, "embed->L0.KV0.k": 1.0, "embed->L0.H0.q": 1.0})
    found = [str(TWO.edge(int(n))) for n in greedy_edges(TWO, scores, 9)]
    assert found == ["embed->L0.KV0.k", "L0.H1->logits"]


def test_the_search_follows_keys_to_the_role_they_are_read_at():
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


def test_scores_of_another_wiring_are_refused():
    with pytest.raises(CircuitError, match="3 scores for 8 edges"):
        greedy_edges(ONE, np.ones(3), 1)


def test_an_edge_is_kept_if_something_comes_in_and_is_heard():
    path = ["embed->L0.H0.v", "L0.H0->L1.H1.q", "L1.H1->logits"]
    wiring = ComputationGraph(2, 2, 2)
    assert kept(wiring, path) == path
    assert kept(wiring, path[1:]) == [] == kept(wiring, path[:2])
    # Neither an ear without a mouth nor a mouth without an ear holds on to the rest.
    assert kept(wiring, [*path, "embed->L0.H1.v", "L0.MLP->logits"]) == path
    assert kept(wiring, ["embed->logits"]) == ["embed->logits"]
    assert kept(wiring, []) == []


def test_shared_keys_pass_on_through_whichever_head_is_heard():
    path = ["embed->L0.KV0.k", "L0.H1->logits"]
    assert kept(TWO, path) == path


def test_a_path_does_not_jump_from_role_to_role_inside_a_head():
    across = ["embed@a->L0.H0.k@b", "L0.H0@b->logits@b"]
    assert kept(ROLES, across) == across
    assert kept(ROLES, ["embed@a->L0.H0.q@a", "L0.H0@b->logits@b"]) == []


def test_selection_is_fast_for_the_largest_wiring():
    wiring = ComputationGraph(12, 12, 12)
    scores = np.random.default_rng(0).normal(size=len(wiring))
    begin = time.perf_counter()
    taken = greedy_edges(wiring, scores, len(wiring) // 20)
    left = connected_edges(wiring, taken)
    assert time.perf_counter() - begin < 1.5
    assert len(taken) == 1624 and set(left) <= set(taken)


# --- what a circuit is ------------------------------------------------------------------------


def test_edges_are_kept_in_the_wirings_order_with_their_scores():
    circuit = made({"L0.H0->logits": 2.0, "embed->L0.H0.q": -1.0})
    assert names(circuit) == ["embed->L0.H0.q", "L0.H0->logits"]
    assert circuit.scores == (-1.0, 2.0)
    assert circuit.edge_indices.tolist() == [0, ONE.index_of(Edge("L0.H0", "logits"))]
    assert circuit == made({"embed->L0.H0.q": -1.0, "L0.H0->logits": 2.0})


def test_a_circuit_of_scores_for_all_edges_leaves_out_those_without():
    scores = scored(ONE, {"embed->logits": 0.5, "embed->L0.MLP": -2.0})
    circuit = Circuit.from_scores("full", ONE, scores)
    assert names(circuit) == ["embed->L0.MLP", "embed->logits"]
    assert circuit.scores == (-2.0, 0.5) and all(map(math.isnan, circuit.errors))
    assert Circuit.from_scores("full", ONE, scores, np.ones(8)).errors == (1.0, 1.0)
    with pytest.raises(CircuitError, match="has 8 edges"):
        Circuit.from_scores("full", ONE, scores[:3])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((("embed->logits",), (1.0, 2.0), (0.0,)), "1 edges have 2 scores"),
        ((("embed->logits",), (math.nan,), (0.0,)), "score of embed->logits is nan"),
        ((("embed->logits",), (math.inf,), (0.0,)), "score of embed->logits is inf"),
        ((("embed->logits",), (1.0,), (-1.0,)), "error of embed->logits is -1"),
        ((("embed->logits",) * 2, (1.0,) * 2, (0.0,) * 2), "embed->logits is in the circuit twice"),
        ((("embed->L1.H0.q",), (1.0,), (0.0,)), "names layer 1"),
        ((("L0.MLP->L0.H0.q",), (1.0,), (0.0,)), "stands before"),
        ((("embed@a->logits@a",), (1.0,), (0.0,)), "has a role"),
    ],
)
def test_what_is_no_circuit_is_refused(given, says):
    edges, scores, errors = given
    with pytest.raises(CircuitError, match=says):
        Circuit("full", ONE, tuple(map(Edge.parse, edges)), scores, errors)


def test_a_passage_that_no_prompt_has_is_refused():
    with pytest.raises(CircuitError, match="reads nothing at 'b' for 'a'"):
        made({"embed@b->L0.H0.k@a": 1.0}, ROLES)


def test_a_circuit_cannot_be_changed():
    circuit = made({"embed->logits": 1.0})
    with pytest.raises(FrozenInstanceError):
        circuit.model = "other"  # pyright: ignore
    with pytest.raises(ValueError, match="read-only"):
        circuit.edge_indices[0] = 3


def test_a_whole_large_model_is_one_circuit_in_little_time():
    wiring = ComputationGraph(12, 12, 12)
    circuit = Circuit.from_scores("full", wiring, np.ones(len(wiring)))
    begin = time.perf_counter()
    again = replace(circuit)
    assert time.perf_counter() - begin < 0.5
    assert len(again) == 32_491 and again.fraction == 1.0


def test_edges_are_asked_for_by_name():
    circuit = made({"embed->L0.H0.q": 1.0})
    assert "embed->L0.H0.q" in circuit and "embed → L0.H0.q" in circuit
    assert Edge("embed", "L0.H0.q") in circuit
    assert "embed->L0.H0.k" not in circuit and "nonsense" not in circuit


def test_a_line_of_text_says_what_it_is():
    circuit = made({"embed->L0.H0.q": 1.0})
    assert str(circuit) == "Circuit of full: 1 of 8 edges (12.5%), by hand"
    assert repr(circuit) == f"<{circuit}>"
    assert str(made({}, protocol=())) == "Circuit of full: 0 of 8 edges (0.0%)"


# --- fewer edges ------------------------------------------------------------------------------


def test_a_circuit_is_cut_by_count_by_threshold_by_search_and_to_what_is_connected():
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


# --- sets -------------------------------------------------------------------------------------

LEFT = {"embed->L0.H0.q": 1.0, "embed->logits": 2.0}
RIGHT = {"embed->logits": 5.0, "L0.MLP->logits": 6.0}


def test_circuits_are_joined_as_sets_with_the_scores_of_the_left():
    left, right = made(LEFT), made(RIGHT)
    assert dict(zip(names(left & right), (left & right).scores, strict=True)) == {
        "embed->logits": 2.0
    }
    assert dict(zip(names(left | right), (left | right).scores, strict=True)) == RIGHT | LEFT
    assert names(left - right) == ["embed->L0.H0.q"]
    assert names(left - left) == []
    assert (left | right).errors == (0.5,) * 3


def test_a_joined_circuit_says_how_it_came_about():
    left = made(LEFT, protocol=(("method", "patching"), ("steps", "5")))
    right = made(RIGHT, model="distilled", protocol=(("method", "patching"), ("steps", "9")))
    both = left & right
    assert both.model == "full, distilled"
    assert both.protocol == (("method", "patching"), ("kept", "in both"))
    assert (both | left).protocol == (("method", "patching"), ("kept", "in either"))


def test_overlap_is_counted_in_edges_of_either():
    assert made(LEFT).jaccard(made(RIGHT)) == 1 / 3
    assert made(LEFT).jaccard(made(LEFT)) == 1.0
    assert made({}).jaccard(made({})) == 1.0 and made({}).jaccard(made(LEFT)) == 0.0


def test_overlap_is_counted_between_models_of_different_size():
    large = made(LEFT, ComputationGraph(2, 1, 1))
    assert large.jaccard(made(LEFT)) == 1.0


@pytest.mark.parametrize("join", [Circuit.__and__, Circuit.__or__, Circuit.__sub__])
def test_circuits_of_different_shape_are_not_joined(join):
    with pytest.raises(CircuitError, match=r"\(layers 1 and 2\)"):
        join(made(LEFT), made(LEFT, ComputationGraph(2, 1, 1)))
    with pytest.raises(CircuitError, match="only one is resolved by roles"):
        join(made(LEFT), made({}, ROLES))


def test_circuits_of_prompts_with_other_roles_are_joined():
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


# --- other forms ------------------------------------------------------------------------------


def test_nodes_are_the_writers_that_edges_leave_or_enter():
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


def test_a_graph_keeps_queries_keys_and_values_apart():
    graph = made({"embed->L0.H0.q": 1.0, "embed->L0.H0.k": 2.0, "L0.H0->logits": 3.0}).to_networkx()
    assert set(graph) == {"embed", "L0.H0", "logits"}
    assert graph["embed"]["L0.H0"]["k"]["score"] == 2.0
    assert set(graph["embed"]["L0.H0"]) == {"q", "k"}
    assert graph["L0.H0"]["logits"]["logits"]["error"] == 0.5


def test_a_graph_has_roles_in_its_nodes_and_shared_keys_at_every_head():
    graph = made({"embed@a->L0.H0.k@b": 1.0, "L0.H0@b->logits@b": 1.0}, ROLES).to_networkx()
    assert set(graph.edges()) == {("embed@a", "L0.H0@b"), ("L0.H0@b", "logits@b")}
    assert graph["embed@a"]["L0.H0@b"]["k"]["source_role"] == "a"
    graph = made({"embed->L0.KV0.k": 1.0}, TWO).to_networkx()
    assert set(graph.edges()) == {("embed", "L0.H0"), ("embed", "L0.H1")}


def test_a_notebook_is_shown_the_size_and_the_ten_strongest_edges_escaped():
    wiring = ComputationGraph(2, 2, 2)
    scores = np.arange(len(wiring)) * 0.1
    circuit = Circuit.from_scores("<script>", wiring, scores, protocol=(("<b>", "&"),))
    text = circuit._repr_html_()
    assert "&lt;script&gt;: 46 of 46 edges (100.0%)" in text and "&lt;b&gt;: &amp;" in text
    assert text.count("<tr>") == 11 and "+4.500" in text
    assert "0 of 8 edges" in made({})._repr_html_()


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "circuit",
    [
        made({}),
        made({"embed->L0.H0.q": 0.1 + 0.2, "L0.H0->logits": -1e-300}, error=math.nan),
        made({"embed@a->L0.H0.k@b": 1 / 3}, ROLES, model="a\n\u202e😀", protocol=()),
        made({"embed->L0.KV0.v": 1.0}, replace(TWO, parallel=True)),
    ],
)
def test_a_saved_circuit_is_read_back_as_it_was(circuit, tmp_path):
    place = circuit.save(tmp_path / "circuit.json")
    assert Circuit.load(place) == circuit
    assert Circuit.from_json(circuit.to_json()) == circuit
    assert [found.name for found in tmp_path.iterdir()] == ["circuit.json"]


def test_a_role_may_have_any_name():
    odd = replace(ROLES, roles=("a@b -> c", "b"), role_pairs=(("a@b -> c", "b"),))
    circuit = Circuit("m", odd, (Edge("embed", "L0.H0.k", "a@b -> c", "b"),), (1.0,), (0.0,))
    assert Circuit.from_json(circuit.to_json()) == circuit


def test_an_unknown_error_is_null_and_the_file_is_strict_json():
    text = made({"embed->L0.H0.q": 1.0}, error=math.nan).to_json()
    plain = json.loads(text, parse_constant=pytest.fail)
    assert plain["edges"] == [["embed", "L0.H0.q", "", "", 1.0, None]]


def changed(path, value):
    """The JSON of a circuit with one entry changed, or left out."""
    plain = json.loads(made({"embed@a->L0.H0.k@b": 1.0}, ROLES).to_json())
    *way, last = path
    inner = plain
    for step in way:
        inner = inner[step]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(plain)


@pytest.mark.parametrize(
    ("text", "says"),
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
        (changed(["graph", "readouts"], ["z"]), "roles that its graph lacks: z"),
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
def test_a_broken_file_says_what_is_wrong(text, says, tmp_path):
    place = tmp_path / "circuit.json"
    place.write_text(text)
    with pytest.raises(CircuitError, match=says) as caught:
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


def test_a_file_that_cannot_be_read_or_written_is_said_so(tmp_path):
    with pytest.raises(CircuitError, match="No such file"):
        Circuit.load(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CircuitError, match="Cannot read"):
        Circuit.load(tmp_path / "bytes.json")
    with pytest.raises(FigureError, match="cannot write"):
        made({}).save(tmp_path / "none" / "circuit.json")


def test_a_circuit_is_read_and_cut_without_loading_anything_heavy(tmp_path):
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
