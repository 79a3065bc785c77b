"""Page of a traced circuit: diagram, faithfulness, random baselines, specificity and method."""

from collections.abc import Callable

import numpy as np

from probes.circuits.result import (
    STABILITY_THRESHOLD,
    Trace,
)
from probes.circuits.specificity import MIN_EXTRA_DAMAGE, specificity_lines
from probes.stats.intervals import Estimate
from probes.viz.blocks import Block, Note, Table, TableCell, Tone
from probes.viz.html_text import format_number
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.circuit.diagram import circuit_diagram
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.registry import report

_CIRCUIT_INTRO = (
    "Each line is an edge: the output of its lower node, read by its upper node. The score of an "
    "edge is the drop of the logit difference when this edge alone carries its counterfactual "
    "value, as the attribution method estimates it. Necessity is the drop of faithfulness when "
    "the edge is removed from the circuit, on held-out prompts. p is from a t-test against "
    "randomly added edges, with Holm correction."
)
FAITHFULNESS_INTRO = (
    "Faithfulness f is the fraction of the logit difference that remains when only the edges of "
    "the circuit carry clean values and all others carry counterfactual values. 1 equals the "
    "whole model, 0 equals the counterfactual run. The held-out prompts were not used to find the "
    "circuit."
)
_RANDOM_INTRO = (
    "Random circuits with the same number of edges, evaluated in the same way. Random edges "
    "rarely connect to each other. Random paths run from the embedding to the logits; the last "
    "one is cut off at the edge count."
)
_SPECIFICITY_INTRO = (
    "Faithfulness on a task when the edges of one circuit are ablated and all others are kept. "
    "Ablating a task-specific circuit leaves the other task intact. Ablating almost any connected "
    "edges does damage: as many edges of random paths are ablated in the same task (mean, lowest "
    "to highest). A circuit does more damage where the interval of the difference, over prompts "
    f"and random circuits, is above {MIN_EXTRA_DAMAGE}, and no more where it is below."
)


@report.register
def trace_page(trace: Trace) -> Picture:
    """Page of one trace."""
    sections: list[Section] = [
        ("Circuit", _CIRCUIT_INTRO, [_edges_table(trace)]),
        ("Faithfulness", FAITHFULNESS_INTRO, [_held_out_plot(trace), _curve_plot(trace)]),
        ("Random baselines", _RANDOM_INTRO, [_random_table(trace)]),
    ]
    sections += [_specificity_section(trace), ("Method", "", [_method_table(trace)])]
    stable: Tone = "good" if trace.stability >= STABILITY_THRESHOLD else "bad"
    lines = trace.summary()
    tones: dict[int, Tone] = {0: "good" if trace.gate.state == "open" else "bad"}
    tones |= {k: stable for k, line in enumerate(lines) if "Jaccard" in line}
    notes = [Note(line, tones.get(k)) for k, line in enumerate(lines)]
    task = dict(trace.circuit.protocol).get("task", "a task")
    drawn = circuit_diagram(trace.circuit, evidence=_necessities(trace))
    lead = [*notes[:2], drawn, *notes[2:]]
    return page(f"Circuit of {trace.circuit.model}", sections, lead, task)


def _necessities(trace: Trace) -> Callable[[str], str]:
    """What is known of the necessity of an edge, by its name."""
    texts = {
        each.edge: f"; without it f drops by {format_number(each.faithfulness_drop, 3)}, "
        f"p = {_p_text(each.p_value)}"
        for each in trace.edge_necessities
    }
    return lambda edge: texts.get(edge, "")


def _edges_table(trace: Trace) -> Table:
    necessities = {necessity.edge: necessity for necessity in trace.edge_necessities}
    circuit = trace.circuit
    rows = []
    for edge, score, error in zip(circuit.edges, circuit.scores, circuit.errors, strict=True):
        necessity = necessities.get(str(edge))
        drop = format_number(necessity.faithfulness_drop, 3) if necessity else None
        p_value = _p_value_cell(necessity.p_value) if necessity else None
        rows.append([str(edge), score, error, drop, p_value])
    columns = ("edge", "score (logits)", "standard error", "necessity (drop of f)", "p")
    return Table(columns, rows, "All edges of the circuit")


def _p_value_cell(value: float) -> TableCell:
    return TableCell(_p_text(value), "good" if value < 0.05 else "muted")


def _p_text(value: float) -> str:
    return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def _held_out_plot(trace: Trace) -> IntervalPlot:
    null = next(baseline for baseline in trace.random_baselines if baseline.kind == "paths")
    marks = {"chance": (min(null.values), max(null.values)), "upper_reference": 1.0}
    rows = [
        Interval.of("circuit, held-out prompts", trace.held_out.value, **marks),
        Interval.of("circuit, discovery prompts", trace.discovery.value, **marks),
        Interval.of("complement: all other edges", trace.held_out.complement),
    ]
    caption = "Faithfulness of the circuit, with the range of random paths"
    return IntervalPlot(
        rows, caption, axis="f", chance_label="random paths", reference_label="whole model"
    )


def _curve_plot(trace: Trace) -> Block:
    curve = trace.curve
    rows = [
        Interval.of(f"{fraction:.1%}: {count} edge{'s' * (count > 1)}", f)
        for fraction, count, f in zip(curve.fractions, curve.edges, curve.values, strict=True)
    ]
    caption = (
        f"Faithfulness of the highest-scoring edges by number. CPR {curve.cpr:.3f}, CMD "
        f"{curve.cmd:.3f} (areas over the fraction of edges, as in MIB); over the logarithm of the "
        f"fraction {curve.log_cpr:.3f} and {curve.log_cmd:.3f}"
    )
    return IntervalPlot(rows, caption, axis="f")


def _random_table(trace: Trace) -> Table:
    rows = [
        [
            f"random {baseline.kind}", len(baseline.values),
            format_number(float(np.median(baseline.values)), 3),
            format_number(max(baseline.values), 3), f"{baseline.percentile:.0%}",
        ]
        for baseline in trace.random_baselines
    ]  # fmt: skip
    columns = ("baseline", "circuits", "median f", "highest f", "exceeded by the circuit")
    note = (
        f"Stability {trace.stability:.2f}: mean Jaccard index of equally many highest-scoring "
        "edges over resampled prompts."
    )
    return Table(columns, rows, notes=(note,))


def _specificity_section(trace: Trace) -> Section:
    if not trace.specificities:
        (line,) = specificity_lines((), trace.specificity_skipped)
        return "Specificity", "", [Note(line)]
    rows = [
        [
            test.cut_circuit, test.edges, test.task,
            str(Estimate(test.remaining, *test.interval)) if test.interval else test.remaining,
            _random_range(test.random) if test.random else None,
            test.extra_damage.beside(MIN_EXTRA_DAMAGE) if test.extra_damage else None,
            test.damage if test.extra_damage else None,
        ]
        for test in trace.specificities
    ]  # fmt: skip
    columns = (
        "ablated circuit", "edges", "task", "remaining f", "random paths", "difference", "damage"
    )  # fmt: skip
    return "Specificity", _SPECIFICITY_INTRO, [Table(columns, rows, align="lrlrrrl")]


def _random_range(values: tuple[float, ...]) -> str:
    mean, *ends = (format_number(f, 2) for f in (float(np.mean(values)), min(values), max(values)))
    return f"{mean} ({' to '.join(ends)})"


def _method_table(trace: Trace) -> Table:
    return Table(("setting", "value"), method_rows(trace), align="ll")


def method_rows(trace: Trace) -> list[list[str]]:
    """Name and value of each setting of a trace."""
    gate = trace.gate
    return [
        *map(list, trace.circuit.protocol),
        ["format", trace.format],
        ["gate", f"{gate.state}: {gate.score_name} {gate.score} on {gate.n_questions} questions"],
        ["best heuristic", f"{gate.heuristic}: {gate.heuristic_accuracy:.2f}"],
        ["intervals", "95 %, over prompts: bootstrap; Wilson for fractions of prompts"],
        ["edges of the model", str(len(trace.circuit.graph))],
    ]
