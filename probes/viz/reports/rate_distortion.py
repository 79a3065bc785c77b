"""Page of a rate–distortion curve: plot, numbers, order of losses, weight noise and storage."""

import math
from collections.abc import Sequence

from probes.comparison.rate_distortion.losses import LOSS_MARGIN
from probes.comparison.rate_distortion.result import CurvePoint, RateDistortionCurve
from probes.viz.blocks import Block, CellValue, Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.hotspot_map import display_variable
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.plots.rate_distortion_plot import RateDistortionBlock
from probes.viz.registry import report

_INTRO = (
    "Each mark is a model. Top: fraction of questions on which all answers are right. Middle: "
    "interchange accuracy, the mean over the variables, on texts that both the model and {parent} "
    "answer correctly; it measures the mechanism. Bottom: KL divergence of the answers from those "
    "of {parent}. Lines are 95 % intervals. Hollow marks are {parent} with Gaussian weight noise "
    "that gives the same KL as the model at the same position."
)
_ORDER_INTRO = (
    "Loss of interchange accuracy on the texts that both models solve, minus loss of accuracy on "
    "all texts. Above 0 the mechanism breaks first, below 0 the accuracy. For a model with another "
    "computation graph the loss means that single sites encode the variables less than in "
    "{parent}, not that the variables are lost."
)
_NOISE_INTRO = (
    "Interchange accuracy of a relative minus that of {parent} with weight noise at the same KL, "
    "on texts that these and {parent} itself solve. Below 0 the relative lost more than such noise "
    "would cost."
)
_NUMBERS_NOTE = (
    "Density: fraction of nonzero weights in the layers' matrices. KL: bits per answer. Accuracy: "
    "all answers right. Agreement: with the parent's most likely tokens. Texts: solved by both. "
    "Circuit: faithfulness of the parent's circuit in this model; 1 equals the whole model. Edges: "
    "of that circuit or, in another graph, of the model's own circuit that is as faithful. Breaks "
    f"first: neither, where the 95 % intervals of both losses end below {LOSS_MARGIN}."
)
_TONES: dict[str, Tone] = {
    "mechanism first": "bad", "worse than noise": "bad", "behavior absent": "bad",
    "neither": "good",
}  # fmt: skip


@report.register
def rate_distortion_page(curve: RateDistortionCurve) -> Picture:
    """Page of one curve."""
    parent, (parent_line, *lines) = curve.parent.name, curve.summary()
    by_model = [
        Note(line, _TONES.get(point.label))
        for line, point in zip(lines, curve.points, strict=False)
    ]
    sections: list[Section] = [
        ("Rate and distortion", _INTRO.format(parent=parent), [RateDistortionBlock(curve)]),
        ("Summary by model", parent_line, by_model),
        ("Numbers", "", [_numbers_table(curve)]),
        ("Mechanism or accuracy first", _ORDER_INTRO.format(parent=parent), [_order_plot(curve)]),
        ("Weight noise", _NOISE_INTRO.format(parent=parent), [_noise_plot(curve)]),
        ("Variables", "", [_variables_table(curve)]),
        ("Storage", "", [_storage_table(curve)]),
        ("Method", "", [Table(("setting", "value"), [*map(list, curve.protocol)], align="ll")]),
    ]
    notes = [Note(line) for line in lines[len(curve.points) :]]
    return page(f"Rate and distortion of relatives of {parent}", sections, notes)


def _numbers_table(curve: RateDistortionCurve) -> Table:
    columns = ("model", "kind", "kB", "density", "KL", "accuracy", "agreement", "texts",
               "interchange accuracy", "circuit", "edges", "breaks first")  # fmt: skip
    rows = [_numbers_row(point) for point in (curve.parent, *curve.points)]
    rows[0][-1] = ""
    return Table(columns, rows, notes=(_NUMBERS_NOTE,), align="ll" + "r" * 9 + "l")


def _numbers_row(point: CurvePoint) -> list[CellValue]:
    mechanism = point.mechanism
    order = mechanism and mechanism.loss_order
    edges = None
    if mechanism and mechanism.circuit_edges:
        edges = f"{mechanism.circuit_edges} ({mechanism.circuit_fraction:.1%})"
    return [
        point.name, point.kind, f"{point.rate.bits / 8000:,.0f}", point.rate.density,
        f"{point.behavior.readout_kl.value:.2g}", point.behavior.all_correct,
        point.behavior.agreement, order and order.pairs,
        mechanism and mechanism.interchange_accuracy, mechanism and mechanism.circuit_kept, edges,
        TableCell(point.label, _TONES.get(point.label)),
    ]  # fmt: skip


def _order_plot(curve: RateDistortionCurve) -> Block:
    rows = [
        Interval.of(point.name, order.difference, tone=_TONES.get(order.label))
        for point in curve.points
        if point.mechanism and (order := point.mechanism.loss_order)
    ]
    axis = "loss of interchange accuracy minus loss of accuracy"
    return _plot(rows, axis, "No relative solves enough texts to measure its mechanism.")


def _noise_plot(curve: RateDistortionCurve) -> Block:
    rows = [
        Interval.of(point.name, noise.difference, tone=_TONES.get(noise.label))
        for point in curve.points
        if (noise := point.noise) and not math.isnan(noise.difference.value)
    ]
    axis = "interchange accuracy minus that of weight noise"
    return _plot(rows, axis, "No relative was compared with weight noise.")


def _plot(rows: Sequence[Interval], axis: str, empty_text: str) -> Block:
    if not rows:
        return Note(empty_text, "muted")
    widest = max(0.1, *(abs(number) for row in rows for number in row.numbers()))
    return IntervalPlot(rows, limits=(-widest, widest), axis=axis)


def _variables_table(curve: RateDistortionCurve) -> Block:
    rows: list[list[CellValue]] = [
        [
            point.name, display_variable(name), site, mechanism.own_sites[name],
            mechanism.all_pairs[name], mechanism.solved_pairs[name],
            mechanism.parent_states.get(name),
        ]
        for point in (curve.parent, *curve.points)
        if (mechanism := point.mechanism)
        for name, site in mechanism.sites.items()
    ]  # fmt: skip
    if not rows:
        return Note("No model has the behavior.", "muted")
    columns = ("model", "variable", "site", "own site", "all pairs", "pairs that both solve",
               "states of the parent")  # fmt: skip
    notes = (
        "Interchange accuracy at the site: that of the parent, or in another graph the model's "
        "own.",
        "Last column: the interchanged states are the parent's.",
    )
    return Table(columns, rows, align="llll" + "r" * 3, notes=notes)


def _storage_table(curve: RateDistortionCurve) -> Table:
    points = (curve.parent, *curve.points)
    columns = ("model", "parameters", "weights", "scales", "zero points", "mask index",
               "embeddings", "other", "total kB")  # fmt: skip
    note = "* Unknown storage format: 16 bits for each weight."
    notes = () if all(point.rate.is_recorded for point in points) else (note,)
    return Table(columns, list(map(_storage_row, points)), notes=notes)


def _storage_row(point: CurvePoint) -> list[CellValue]:
    cost = point.rate.storage
    bits = (cost.weights, cost.scales, cost.zero_points, cost.mask_index, cost.embeddings,
            cost.other, cost.total)  # fmt: skip
    name = point.name + ("" if point.rate.is_recorded else " *")
    return [name, f"{point.rate.parameters:,}", *(f"{part / 8000:,.1f}" for part in bits)]
