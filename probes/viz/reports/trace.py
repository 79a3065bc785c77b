"""A traced circuit as a page: what it is, how much it holds, and what speaks against it."""

import math

import numpy as np

from probes.circuits.faithfulness import EdgeNecessity, Faithfulness, RandomBaseline
from probes.circuits.trace import STABILITY_THRESHOLD, Trace, format_fraction
from probes.viz.blocks import Block, Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.circuit_diagram import circuit_diagram
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.registry import report

_CIRCUIT_INTRO = (
    "Each line is an edge: what its lower end writes, as its upper end reads it. Its score is the "
    "fall of the answer's lead (logits) that the gradient foretells when the edge alone carries "
    "the counterfactual's value. Needed: the fall of faithfulness when the edge is cut out of the "
    "circuit on held-out prompts; p from a t-test against edges added by lot, Holm-corrected."
)
_FAITHFULNESS_INTRO = (
    "Faithfulness f is the share of the lead that is left when only the circuit's edges carry the "
    "clean run's values, and all others the counterfactual's: 1 is the whole model, 0 none of it. "
    "The circuit was found by other prompts than it is judged by."
)
_RANDOM_INTRO = (
    "Circuits of as many edges drawn by lot, run the same way. Random edges seldom join up; random "
    "paths lead from the embedding to the logits, all but the last, which stops at the count."
)
_SPECIFICITY_INTRO = (
    "What is left of a task when some edges are cut out and all others kept. A circuit of one task "
    "alone would leave the other task whole. Compare the random paths: cutting almost any edges "
    "that lead somewhere does damage."
)


@report.register
def trace_page(trace: Trace) -> Picture:
    """Lay a trace out as one page that needs no network."""
    sections: list[Section] = [
        ("The circuit", _CIRCUIT_INTRO, [circuit_diagram(trace.circuit), _edges_table(trace)]),
        ("How much it holds", _FAITHFULNESS_INTRO, [_held_out_plot(trace), _edges_curve(trace)]),
        ("Beside chance", _RANDOM_INTRO, [_random_table(trace)]),
    ]
    if trace.specificities:
        sections.append(
            ("Is it this task's alone?", _SPECIFICITY_INTRO, [_specificity_table(trace)])
        )
    sections.append(("How this was measured", "", [_protocol_table(trace)]))
    stable = trace.stability >= STABILITY_THRESHOLD
    tones: dict[int, Tone] = {0: "good" if trace.gate.state == "open" else "bad"}
    lines = trace.summary()
    tones |= {k: "good" if stable else "bad" for k, line in enumerate(lines) if "Jaccard" in line}
    notes = [Note(line, tones.get(k)) for k, line in enumerate(lines)]
    task = dict(trace.circuit.protocol).get("task", "a task")
    return page(f"The circuit of {trace.circuit.model}", sections, notes, task)


def _edges_table(trace: Trace) -> Table:
    needs: dict[str, EdgeNecessity] = {need.edge: need for need in trace.edge_necessities}
    rows = []
    for edge, score, error in zip(
        trace.circuit.edges, trace.circuit.scores, trace.circuit.errors, strict=True
    ):
        need = needs.get(str(edge))
        cut = (
            ["–", "–"]
            if need is None
            else [f"{need.faithfulness_drop:.3f}", TableCell(*_p_value_text(need.p_value))]
        )
        rows.append([str(edge), f"{score:.2f}", _format_number(error), *cut])
    columns = ("edge", "score (logits)", "± error", "f lost without it", "p")
    return Table(columns, rows, "All edges of the circuit")


def _held_out_plot(trace: Trace) -> IntervalPlot:
    null = next(chance for chance in trace.random_baselines if chance.kind == "paths")
    band = (min(null.values), max(null.values))
    rows = [
        _faithfulness_interval("held-out prompts", trace.held_out, band),
        _faithfulness_interval("prompts it was found by", trace.discovery, band),
    ]
    rest = trace.held_out.complement
    rows.append(Interval("all edges but the circuit's", rest.value, rest.low, rest.high))
    return IntervalPlot(rows, "Faithfulness, beside circuits of random paths", axis="f")


def _faithfulness_interval(name: str, result: Faithfulness, band: tuple[float, float]) -> Interval:
    f = result.value
    return Interval(name, f.value, f.low, f.high, chance=band, upper_reference=1.0)


def _edges_curve(trace: Trace) -> Block:
    curve = trace.curve
    rows = [
        Interval(f"{share:.1%}: {count} edge{'s' * (count > 1)}", f.value, f.low, f.high)
        for share, count, f in zip(curve.fractions, curve.edges, curve.values, strict=True)
    ]
    caption = (
        f"f of the strongest edges by number. CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f} (areas over "
        f"the share of edges, as MIB defines them); over its logarithm {curve.log_cpr:.3f} and "
        f"{curve.log_cmd:.3f}"
    )
    return IntervalPlot(rows, caption, axis="f")


def _random_table(trace: Trace) -> Table:
    rows = [_random_row(chance) for chance in trace.random_baselines]
    columns = ("drawn by lot", "circuits", "median f", "highest f", "the circuit exceeds")
    note = f"Stability: as many best edges over resampled prompts share {trace.stability:.2f}."
    return Table(columns, rows, notes=(note,))


def _random_row(baseline: RandomBaseline) -> list[str | TableCell]:
    return [
        f"random {baseline.kind}",
        str(len(baseline.values)),
        f"{np.median(baseline.values):.3f}",
        f"{max(baseline.values):.3f}",
        f"{baseline.percentile:.0%}",
    ]


def _specificity_table(trace: Trace) -> Table:
    rows = [
        [d.cut_circuit, d.task, str(d.edges), format_fraction(d.remaining)]
        for d in trace.specificities
    ]
    columns = ("cut out", "edges", "what is left of", "f left")
    rows = [[cut, edges, task, left] for cut, task, edges, left in rows]
    return Table(columns, rows, align="lrlr")


def _protocol_table(trace: Trace) -> Table:
    gate = trace.gate
    rows = [[name, value] for name, value in trace.circuit.protocol]
    rows += [
        ["gate", f"{gate.state}: {gate.accuracy} right on {gate.n_questions} questions"],
        ["best heuristic", f"{gate.heuristic}: {gate.heuristic_accuracy:.2f}"],
        ["intervals", "95 %, over prompts: bootstrap, Wilson for shares of prompts"],
        ["edges that exist", str(len(trace.circuit.graph))],
    ]
    return Table(("what", "how"), rows, align="ll")


def _p_value_text(value: float) -> tuple[str, Tone | None]:
    return (
        f"{value:.1e}" if value < 0.001 else f"{value:.3f}",
        "good" if value < 0.05 else "muted",
    )


def _format_number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
