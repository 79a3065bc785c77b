"""Traced circuits of two models: marks of edges, sentences, the page, and a real comparison."""

import re
from dataclasses import replace

import pytest

from probes.circuits.circuit import Circuit
from probes.circuits.graph import ComputationGraph, Edge
from probes.circuits.result import Faithfulness, FaithfulnessCurve, RandomBaseline, Trace
from probes.circuits.trace import TraceSettings
from probes.comparison.circuits.edge_result import CircuitTransfer
from probes.comparison.circuits.trace_result import TraceComparison, TracedEdge
from probes.comparison.circuits.traces import compare_traces
from probes.errors import CircuitError
from probes.models.model import load
from probes.observe.result import Gate
from probes.result import figure_of, load_result, page_of
from probes.stats.intervals import Estimate
from probes.testing.equivalent_layers import round_weights

HALF = Estimate(0.5, 0.4, 0.6)
MARKS = {
    "embed->L0.H0.v": "both",
    "L0.H0->logits": "both",
    "embed->L0.H1.k": "a only",
    "L0.H1->logits": "a only",
    "embed->L0.MLP": "b only",
    "L0.MLP->logits": "b only",
}


def traced(name, own):
    edges = tuple(Edge.parse(edge) for edge, mark in MARKS.items() if mark in ("both", own))
    kept = Faithfulness(4, 0.3, HALF, (0.5,), HALF, HALF)
    return Trace(
        circuit=Circuit(name, ComputationGraph(1, 2, 2), edges, (1.0,) * 4, (0.1,) * 4),
        gate=Gate("m", "p", "a", 9, HALF, "copy", 0.1, HALF, HALF, "open"),
        keep=0.9,
        discovery=kept,
        held_out=kept,
        curve=FaithfulnessCurve((1.0,), (4,), (HALF,), 0.5, 0.5, 0.5, 0.5),
        random_baselines=(RandomBaseline("paths", (0.1,), 1.0),),
        stability=0.9,
        edge_necessities=(),
        specificities=(),
    )


def compared(differs="L0.H1->logits"):
    edges = tuple(
        TracedEdge(edge, mark, 1.5, -0.25, 0.1, 0.1, edge == differs)
        for edge, mark in MARKS.items()
    )
    low, high = Estimate(0.2, 0.1, 0.3), Estimate(0.9, 0.8, 1.0)
    return TraceComparison(
        a=traced("full", "a only"),
        b=traced("int4", "b only"),
        edges=edges,
        in_a=CircuitTransfer("full", high, high, Estimate(0.0, -0.02, 0.02), 0.0, 0.1, "works"),
        in_b=CircuitTransfer(
            "int4", high, low, Estimate(-0.7, -0.8, -0.6), 0.0, 0.1, "falls short"
        ),
        random_jaccards=(0.0, 0.25),
        min_detectable_edges=1,
    )


def test_the_summary_has_the_overlap_beside_chance_and_each_circuit_in_each_model():
    overlap, in_b, in_a, single, paths = compared().summary()
    assert overlap == (
        "2 of the 4 edges of the circuit of full are in that of int4 as well, which has 4: Jaccard "
        "index 0.33 (2 pairs of circuits of random paths of these sizes: mean 0.12, highest 0.25)."
    )
    assert in_b.startswith("In int4 the circuit of full keeps 0.20") and "falls short" in in_b
    assert in_a.startswith("In full the circuit of int4 keeps 0.90") and "works there" in in_a
    assert single.startswith("4 edges are in one circuit only. Of these, 1 have scores that differ")
    assert paths == "1 of 2 paths of full are whole in the circuit of int4."


def test_a_path_is_kept_if_all_its_edges_are():
    marks = {str(each.path): each.mark for each in compared().paths()}
    assert marks == {
        "embed → L0.H0.v → logits": "both",
        "embed → L0.H1.k → logits": "a only",
        "embed → L0.MLP → logits": "b only",
    }


def test_the_table_has_both_scores_of_each_edge():
    table = compared().table()
    assert table["edge"].tolist() == [*MARKS] and table["mark"].tolist() == [*MARKS.values()]
    assert table["full"].tolist() == [1.5] * 6 and table["int4"].tolist() == [-0.25] * 6


def test_a_saved_comparison_is_loaded_again(tmp_path):
    found = load_result(compared().save(tmp_path / "t.json"))
    assert found.to_dict() == compared().to_dict()
    assert found.paths() == compared().paths()


def test_edges_of_both_models_and_of_one_differ_in_color_and_stroke():
    body = figure_of(compared()).body
    strokes = {}
    for group in re.findall(r'<g class="pv-wire.*?</g>', body):
        says = re.search(r"<title>(.*?)</title>", group)[1]
        line = re.findall(r"<path[^>]*>", group)[-1]
        dash = re.search(r'stroke-dasharray="(.*?)"', line)
        color = re.search(r'stroke="(.*?)"', line)[1]
        mark = re.search(r": (in both|only in \w+);", says)[1]
        strokes.setdefault(mark, set()).add((color, dash and dash[1]))
        assert "+1.500 ± 0.100 in full" in says and "0.250 ± 0.100 in int4" in says
    assert strokes == {
        "in both": {("var(--kept)", None)},
        "only in full": {("var(--up)", "2 3.5")},
        "only in int4": {("var(--new)", "9 4")},
    }
    assert "Edges: 2 in both, 2 only in full, 2 only in int4" in body
    assert body.count("the scores differ") == 1
    table = re.findall(r'<tr data-edges="[\d ]+">(.*?)</tr>', body)
    assert sorted(("in both" in row, "only in full" in row) for row in table) == [
        (False, False), (False, True), (True, False)
    ]  # fmt: skip


def test_the_page_has_its_parts(tmp_path):
    body = page_of(compared()).body
    assert re.findall(r"<h2>\d+\. (.*?)</h2>", body) == [
        "Each circuit in each model", "Edges", "Each model by itself", "Method"
    ]  # fmt: skip
    assert 'data-tone="bad">In int4' in body and 'data-tone="good">In full' in body
    pytest.importorskip("matplotlib")
    assert compared().save(tmp_path / "p.html").stat().st_size < 200_000
    assert figure_of(compared()).save(tmp_path / "p.png").stat().st_size > 2000


def test_models_of_other_shapes_are_refused_and_role_paths_named():
    with pytest.raises(
        CircuitError, match=r"their edges differ\. Compare their role paths"
    ) as found:
        compare_traces("full", "distilled")
    assert "\n" not in str(found.value) and "probes compare" in str(found.value)


@pytest.mark.slow
def test_full_is_compared_with_itself_in_eight_bits_and_in_three():
    full = load("full")
    settings = TraceSettings(
        prompts=12, contrasts=("x", "y"), random_circuits=4, added_edges=4, other_pattern=""
    )
    fine = compare_traces(full, round_weights(full, 8), "take-away", settings=settings)
    assert fine.jaccard > 0.8 > max(fine.random_jaccards)
    assert fine.in_a.label == fine.in_b.label == "works"
    assert {edge.edge for edge in fine.edges if edge.mark != "b only"} == {
        str(edge) for edge in fine.a.circuit.edges
    }
    for edge, score in zip(fine.a.circuit.edges, fine.a.circuit.scores, strict=True):
        (own,) = [each for each in fine.edges if each.edge == str(edge)]
        assert own.a == pytest.approx(score, abs=1e-4)
    twice = compare_traces(full, replace(full, name="full"), "take-away", settings=settings)
    assert twice.jaccard == 1.0 and twice.names == ("full", "full (2)")
    assert not any(edge.differs for edge in twice.edges)
