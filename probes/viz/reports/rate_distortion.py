"""The curve as a page: the drawing, and in tables and intervals what it rests on."""

import math
from collections.abc import Sequence

from probes.comparison.rate_distortion.result import RateDistortionCurve
from probes.stats.intervals import Estimate
from probes.viz.blocks import Block, Note, Table, TableCell, Tone
from probes.viz.html_text import typographic_minus
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.plots.rate_distortion_plot import RateDistortionBlock
from probes.viz.registry import report
from probes.viz.reports.transfer_tables import format_fraction

_INTRO = (
    "Each mark is a model: how much it takes to store, and what is left. Top: on how many "
    "questions all answers are right. Middle: the mechanism. A variable of one text is put into "
    "another, and the answer must turn as foretold; judged on the texts that both the model and "
    "{parent} answer rightly by themselves, as the mean over the variables. Bottom: how far what "
    "it says is from what {parent} says. Lines are 95 % intervals. Hollow marks are {parent} with "
    "plain noise on its weights, as far from it as the model at the same place."
)
_ORDER_INTRO = (
    "Loss of mechanism on the texts that both solve, less loss of accuracy on all: right of 0 the "
    "mechanism breaks first, left of 0 the accuracy. Of a model with another graph the loss says "
    "that it holds the variables less at one place each than {parent} does, not that it lost them."
)
_NOISE_INTRO = (
    "The mechanism of a relative less that of {parent} with plain noise as far away, on texts that "
    "all solve: left of 0 the relative lost more than so much noise would."
)
_TONES: dict[str, Tone] = {
    "mechanism first": "bad", "worse than noise": "bad", "behavior absent": "bad",
    "neither": "good",
}  # fmt: skip


@report.register
def rate_distortion_page(curve: RateDistortionCurve) -> Picture:
    """Lay the curve out as one page that needs no network."""
    parent = curve.parent.name
    sections: list[Section] = [
        ("Rate and distortion", _INTRO.format(parent=parent), [RateDistortionBlock(curve)]),
        ("The numbers", "", [_numbers_table(curve)]),
        ("What breaks first?", _ORDER_INTRO.format(parent=parent), [_order_plot(curve)]),
        ("Is it more than noise?", _NOISE_INTRO.format(parent=parent), [_noise_plot(curve)]),
        ("Variable by variable", "", [_variables(curve)]),
        ("What is stored", "", [_storage(curve)]),
        ("How this was measured", "", [_protocol_table(curve)]),
    ]
    notes = [
        Note(line, _TONES.get(point.label))
        for line, point in zip(curve.summary()[1:], curve.points, strict=False)
    ]
    top = [Note(line) for line in curve.summary()[1 + len(curve.points) :]]
    sections.insert(1, ("Relative by relative", curve.summary()[0], notes))
    return page(f"What relatives of {parent} store, and what is left", sections, top)


def _numbers_table(curve: RateDistortionCurve) -> Table:
    rows: list[list[str | TableCell]] = []
    for point in (curve.parent, *curve.points):
        own, order = point.mechanism, point.mechanism.loss_order if point.mechanism else None
        rows.append(
            [
                point.name, point.kind, f"{point.rate.bits / 8000:,.0f}",
                format_fraction(point.rate.density), f"{point.behavior.readout_kl.value:.2g}",
                *map(str, (point.behavior.all_correct, point.behavior.agreement)),
                "–" if order is None else str(order.pairs), _estimate_text(own.interchange_accuracy if own else None),
                _estimate_text(own.circuit_kept if own else None),
                f"{own.circuit_edges} ({own.circuit_fraction:.1%})" if own and own.circuit_edges
                else "–",
                "" if point is curve.parent else TableCell(point.label, _TONES.get(point.label)),
            ]
        )  # fmt: skip
    notes = (
        "Density: share of the layers' matrices that is not 0. KL: bits per answer. Right: all "
        "answers. Agreement: with the likeliest tokens of the parent. Items: texts that both "
        "solve. Circuit: what the parent's circuit keeps of the lead when it is run alone; 1 is "
        "the whole. Edges: of that circuit, or in another graph of its own that keeps as much.",
    )
    columns = ("model", "kind", "kB", "density", "KL", "right", "agreement", "items", "mechanism",
               "circuit", "edges", "what breaks first")  # fmt: skip
    return Table(columns, rows, notes=notes, align="ll" + "r" * 9 + "l")


def _estimate_text(value: Estimate | None) -> str:
    return "–" if value is None or math.isnan(value.value) else typographic_minus(str(value))


def _order_plot(curve: RateDistortionCurve) -> Block:
    rows = [
        Interval(
            p.name,
            o.difference.value,
            o.difference.low,
            o.difference.high,
            tone=_TONES.get(o.label),
        )
        for p in curve.points
        if p.mechanism and (o := p.mechanism.loss_order)
    ]
    axis = "loss of mechanism less loss of accuracy"
    return _plot(rows, axis, "No relative solves enough items to judge its mechanism.")


def _noise_plot(curve: RateDistortionCurve) -> Block:
    rows = [
        Interval(p.name, n.difference.value, n.difference.low, n.difference.high,
                 tone=_TONES.get(n.label))
        for p in curve.points
        if (n := p.noise) and not math.isnan(n.difference.value)
    ]  # fmt: skip
    return _plot(rows, "mechanism beyond noise", "No relative was compared with noise.")


def _plot(rows: Sequence[Interval], axis: str, empty_text: str) -> Block:
    if not rows:
        return Note(empty_text, "muted")
    widest = max(0.1, *(abs(number) for row in rows for number in row.numbers()))
    return IntervalPlot(rows, limits=(-widest, widest), axis=axis)


def _variables(curve: RateDistortionCurve) -> Block:
    some = [p for p in (curve.parent, *curve.points) if p.mechanism]
    if not some:
        return Note("No model has the behavior.", "muted")
    rows = []
    for point in some:
        own = point.mechanism
        assert own is not None
        for name, site in own.sites.items():
            carried = own.parent_states.get(name)
            rows.append([point.name, name, site, own.own_sites[name], _estimate_text(own.all_pairs[name]),
                         _estimate_text(own.solved_pairs[name]), _estimate_text(carried)])  # fmt: skip
    columns = ("model", "variable", "site", "its own site", "all crossings", "where both solve",
               "the parent's states")  # fmt: skip
    return Table(columns, rows, align="llll" + "r" * 3)


def _storage(curve: RateDistortionCurve) -> Table:
    rows, stated = [], True
    for point in (curve.parent, *curve.points):
        kept, stated = point.rate.storage, stated and point.rate.is_recorded
        parts = (
            kept.weights,
            kept.scales,
            kept.zero_points,
            kept.mask_index,
            kept.embeddings,
            kept.other,
        )
        rows.append([
            point.name + ("" if point.rate.is_recorded else " *"), f"{point.rate.parameters:,}",
            *(f"{bits / 8000:,.1f}" for bits in (*parts, kept.total)),
        ])  # fmt: skip
    columns = ("model", "parameters", "weights", "scales", "zeros", "index", "embeddings", "other",
               "kB in all")  # fmt: skip
    notes = () if stated else ("* It does not say how it is stored: 16 bits for each weight.",)
    return Table(columns, rows, notes=notes)


def _protocol_table(curve: RateDistortionCurve) -> Table:
    return Table(("what", "how"), [list(line) for line in curve.protocol], align="ll")
