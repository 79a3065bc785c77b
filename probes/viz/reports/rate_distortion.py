"""The curve as a page: the drawing, and in tables and intervals what it rests on."""

import math
from collections.abc import Sequence

from probes.comparison.rate_distortion.result import Curve
from probes.stats.intervals import Estimate
from probes.viz.blocks import Block, Cell, Note, Table, Tone
from probes.viz.html_text import minus
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.plots.rate_distortion_plot import RatedBlock
from probes.viz.reports.transfer_tables import written

_LEAD = (
    "Each mark is a model: how much it takes to store, and what is left. Top: on how many "
    "questions all answers are right. Middle: the mechanism. A variable of one text is put into "
    "another, and the answer must turn as foretold; judged on the texts that both the model and "
    "{parent} answer rightly by themselves, as the mean over the variables. Bottom: how far what "
    "it says is from what {parent} says. Lines are 95 % intervals. Hollow marks are {parent} with "
    "plain noise on its weights, as far from it as the model at the same place."
)
_FIRST_LEAD = (
    "Loss of mechanism on the texts that both solve, less loss of accuracy on all: right of 0 the "
    "mechanism breaks first, left of 0 the accuracy. Of a model with another graph the loss says "
    "that it holds the variables less at one place each than {parent} does, not that it lost them."
)
_NOISE_LEAD = (
    "The mechanism of a relative less that of {parent} with plain noise as far away, on texts that "
    "all solve: left of 0 the relative lost more than so much noise would."
)
_TONES: dict[str, Tone] = {
    "mechanism first": "bad", "worse than noise": "bad", "behaviour absent": "bad",
    "neither": "good",
}  # fmt: skip


def rated_page(found: Curve) -> Picture:
    """Lay the curve out as one page that needs no network."""
    parent = found.parent.name
    sections: list[Section] = [
        ("Rate and distortion", _LEAD.format(parent=parent), [RatedBlock(found)]),
        ("The numbers", "", [_numbers(found)]),
        ("What breaks first?", _FIRST_LEAD.format(parent=parent), [_first(found)]),
        ("Is it more than noise?", _NOISE_LEAD.format(parent=parent), [_noise(found)]),
        ("Variable by variable", "", [_variables(found)]),
        ("What is stored", "", [_storage(found)]),
        ("How this was measured", "", [_recipe(found)]),
    ]
    notes = [
        Note(line, _TONES.get(point.word))
        for line, point in zip(found.summary()[1:], found.points, strict=False)
    ]
    top = [Note(line) for line in found.summary()[1 + len(found.points) :]]
    sections.insert(1, ("Relative by relative", found.summary()[0], notes))
    return page(f"What relatives of {parent} store, and what is left", sections, top)


def _numbers(found: Curve) -> Table:
    rows: list[list[str | Cell]] = []
    for point in (found.parent, *found.points):
        own, order = point.mechanism, point.mechanism.order if point.mechanism else None
        rows.append(
            [
                point.name, point.kind, f"{point.rate.bits / 8000:,.0f}",
                written(point.rate.density), f"{point.behaved.kl.value:.2g}",
                *map(str, (point.behaved.right, point.behaved.agreement)),
                "–" if order is None else str(order.items), _cell(own.kept if own else None),
                _cell(own.circuit if own else None),
                f"{own.circuit_edges} ({own.circuit_share:.1%})" if own and own.circuit_edges
                else "–",
                "" if point is found.parent else Cell(point.word, _TONES.get(point.word)),
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


def _cell(value: Estimate | None) -> str:
    return "–" if value is None or math.isnan(value.value) else minus(str(value))


def _first(found: Curve) -> Block:
    rows = [
        Interval(p.name, o.lead.value, o.lead.low, o.lead.high, tone=_TONES.get(o.word))
        for p in found.points
        if p.mechanism and (o := p.mechanism.order)
    ]
    axis = "loss of mechanism less loss of accuracy"
    return _plot(rows, axis, "No relative solves enough items to judge its mechanism.")


def _noise(found: Curve) -> Block:
    rows = [
        Interval(p.name, n.difference.value, n.difference.low, n.difference.high,
                 tone=_TONES.get(n.word))
        for p in found.points
        if (n := p.noise) and not math.isnan(n.difference.value)
    ]  # fmt: skip
    return _plot(rows, "mechanism beyond noise", "No relative was compared with noise.")


def _plot(rows: Sequence[Interval], axis: str, otherwise: str) -> Block:
    if not rows:
        return Note(otherwise, "muted")
    widest = max(0.1, *(abs(number) for row in rows for number in row.numbers()))
    return IntervalPlot(rows, limits=(-widest, widest), axis=axis)


def _variables(found: Curve) -> Block:
    some = [p for p in (found.parent, *found.points) if p.mechanism]
    if not some:
        return Note("No model has the behaviour.", "muted")
    rows = []
    for point in some:
        own = point.mechanism
        assert own is not None
        for name, site in own.sites.items():
            carried = own.carried.get(name)
            rows.append([point.name, name, site, own.own_sites[name], _cell(own.every[name]),
                         _cell(own.matched[name]), _cell(carried)])  # fmt: skip
    columns = ("model", "variable", "site", "its own site", "all crossings", "where both solve",
               "the parent's states")  # fmt: skip
    return Table(columns, rows, align="llll" + "r" * 3)


def _storage(found: Curve) -> Table:
    rows, stated = [], True
    for point in (found.parent, *found.points):
        kept, stated = point.rate.storage, stated and point.rate.stated
        parts = (kept.weights, kept.scales, kept.zeros, kept.index, kept.embeddings, kept.other)
        rows.append([
            point.name + ("" if point.rate.stated else " *"), f"{point.rate.parameters:,}",
            *(f"{bits / 8000:,.1f}" for bits in (*parts, kept.total)),
        ])  # fmt: skip
    columns = ("model", "parameters", "weights", "scales", "zeros", "index", "embeddings", "other",
               "kB in all")  # fmt: skip
    notes = () if stated else ("* It does not say how it is stored: 16 bits for each weight.",)
    return Table(columns, rows, notes=notes)


def _recipe(found: Curve) -> Table:
    return Table(("what", "how"), [list(line) for line in found.protocol], align="ll")
