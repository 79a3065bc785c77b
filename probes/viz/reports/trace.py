"""A traced circuit as a page: what it is, how much it holds, and what speaks against it."""

import math

import numpy as np

from probes.circuits.faithfulness import Chance, Faithfulness, Need
from probes.circuits.trace import STABLE, Trace, shown
from probes.viz.blocks import Block, Cell, Note, Table, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.circuit_diagram import circuit_picture
from probes.viz.plots.interval_plot import Interval, IntervalPlot

_CIRCUIT_LEAD = (
    "Each line is an edge: what its lower end writes, as its upper end reads it. Its score is the "
    "fall of the answer's lead (logits) that the gradient foretells when the edge alone carries "
    "the counterfactual's value. Needed: the fall of faithfulness when the edge is cut out of the "
    "circuit on held-out prompts; p from a t-test against edges added by lot, Holm-corrected."
)
_FAITH_LEAD = (
    "Faithfulness f is the share of the lead that is left when only the circuit's edges carry the "
    "clean run's values, and all others the counterfactual's: 1 is the whole model, 0 none of it. "
    "The circuit was found by other prompts than it is judged by."
)
_CHANCE_LEAD = (
    "Circuits of as many edges drawn by lot, run the same way. Random edges seldom join up; random "
    "paths lead from the embedding to the logits, all but the last, which stops at the count."
)
_SPECIFIC_LEAD = (
    "What is left of a task when some edges are cut out and all others kept. A circuit of one task "
    "alone would leave the other task whole. Compare the random paths: cutting almost any edges "
    "that lead somewhere does damage."
)


def traced_page(found: Trace) -> Picture:
    """Lay a trace out as one page that needs no network."""
    sections: list[Section] = [
        ("The circuit", _CIRCUIT_LEAD, [circuit_picture(found.circuit), _edges(found)]),
        ("How much it holds", _FAITH_LEAD, [_held(found), _curve(found)]),
        ("Beside chance", _CHANCE_LEAD, [_chances(found)]),
    ]
    if found.damages:
        sections.append(("Is it this task's alone?", _SPECIFIC_LEAD, [_damages(found)]))
    sections.append(("How this was measured", "", [_protocol(found)]))
    stable = found.stability >= STABLE
    tones: dict[int, Tone] = {0: "good" if found.gate.state == "open" else "bad"}
    lines = found.summary()
    tones |= {k: "good" if stable else "bad" for k, line in enumerate(lines) if "Jaccard" in line}
    notes = [Note(line, tones.get(k)) for k, line in enumerate(lines)]
    task = dict(found.circuit.protocol).get("task", "a task")
    return page(f"The circuit of {found.circuit.model}", sections, notes, task)


def _edges(found: Trace) -> Table:
    needs: dict[str, Need] = {need.edge: need for need in found.needs}
    rows = []
    for edge, score, error in zip(
        found.circuit.edges, found.circuit.scores, found.circuit.errors, strict=True
    ):
        need = needs.get(str(edge))
        cut = ["–", "–"] if need is None else [f"{need.fall:.3f}", Cell(*_p(need.p))]
        rows.append([str(edge), f"{score:.2f}", _number(error), *cut])
    columns = ("edge", "score (logits)", "± error", "f lost without it", "p")
    return Table(columns, rows, "All edges of the circuit")


def _held(found: Trace) -> IntervalPlot:
    null = next(chance for chance in found.chances if chance.kind == "paths")
    band = (min(null.values), max(null.values))
    rows = [
        _row("held-out prompts", found.held_out, band),
        _row("prompts it was found by", found.found, band),
    ]
    rest = found.held_out.complement
    rows.append(Interval("all edges but the circuit's", rest.value, rest.low, rest.high))
    return IntervalPlot(rows, "Faithfulness, beside circuits of random paths", axis="f")


def _row(name: str, found: Faithfulness, band: tuple[float, float]) -> Interval:
    f = found.value
    return Interval(name, f.value, f.low, f.high, chance=band, ceiling=1.0)


def _curve(found: Trace) -> Block:
    curve = found.curve
    rows = [
        Interval(f"{share:.1%}: {count} edge{'s' * (count > 1)}", f.value, f.low, f.high)
        for share, count, f in zip(curve.shares, curve.edges, curve.values, strict=True)
    ]
    caption = (
        f"f of the strongest edges by number. CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f} (areas over "
        f"the share of edges, as MIB defines them); over its logarithm {curve.log_cpr:.3f} and "
        f"{curve.log_cmd:.3f}"
    )
    return IntervalPlot(rows, caption, axis="f")


def _chances(found: Trace) -> Table:
    rows = [_chance(chance) for chance in found.chances]
    columns = ("drawn by lot", "circuits", "median f", "highest f", "the circuit exceeds")
    note = f"Stability: as many best edges over resampled prompts share {found.stability:.2f}."
    return Table(columns, rows, notes=(note,))


def _chance(chance: Chance) -> list[str | Cell]:
    return [
        f"random {chance.kind}",
        str(len(chance.values)),
        f"{np.median(chance.values):.3f}",
        f"{max(chance.values):.3f}",
        f"{chance.percentile:.0%}",
    ]


def _damages(found: Trace) -> Table:
    rows = [[d.cut, d.task, str(d.edges), shown(d.left)] for d in found.damages]
    columns = ("cut out", "edges", "what is left of", "f left")
    rows = [[cut, edges, task, left] for cut, task, edges, left in rows]
    return Table(columns, rows, align="lrlr")


def _protocol(found: Trace) -> Table:
    gate = found.gate
    rows = [[name, value] for name, value in found.circuit.protocol]
    rows += [
        ["gate", f"{gate.state}: {gate.accuracy} right on {gate.items} questions"],
        ["best heuristic", f"{gate.heuristic}: {gate.heuristic_accuracy:.2f}"],
        ["intervals", "95 %, over prompts: bootstrap, Wilson for shares of prompts"],
        ["edges that exist", str(len(found.circuit.wiring))],
    ]
    return Table(("what", "how"), rows, align="ll")


def _p(value: float) -> tuple[str, Tone | None]:
    return (
        f"{value:.1e}" if value < 0.001 else f"{value:.3f}",
        "good" if value < 0.05 else "muted",
    )


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
