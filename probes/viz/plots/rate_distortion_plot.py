"""Plot of rate against distortion: one mark for each model, with its name next to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from probes.comparison.rate_distortion.result import CurvePoint, RateDistortionCurve
from probes.stats.intervals import Estimate
from probes.viz.blocks import Block
from probes.viz.drawing import (
    PALETTE,
    WIDTH,
    Box,
    Drawing,
    DrawingShape,
    Group,
    Part,
    Pixels,
    TextLabel,
    scrollable_svg,
    text_width,
    truncate_text,
)
from probes.viz.figure import block_picture
from probes.viz.html_text import typographic_minus
from probes.viz.label_placement import place_labels
from probes.viz.picture import Picture
from probes.viz.plots.axes import FONT_SIZE, Axes, Tick, legend
from probes.viz.registry import figure

_LEFT, _WIDTH, _HEIGHT, _GAP = 46.0, WIDTH - 60.0, 210.0, 64.0
_BITS_PER_KB = 8000

# Color and outline of each kind; an empty outline is a circle.
_MARKERS: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "trained": (7, ()),
    "distilled": (2, ((0, -6), (6, 5), (-6, 5))),
    "quantized": (0, ((-5, -5), (5, -5), (5, 5), (-5, 5))),
    "pruned": (4, ((0, -6), (6, 0), (0, 6), (-6, 0))),
    "ticket": (1, ((0, 6), (6, -5), (-6, -5))),
    "grown": (3, ((-2, -6), (2, -6), (2, -2), (6, -2), (6, 2), (2, 2),
                  (2, 6), (-2, 6), (-2, 2), (-6, 2), (-6, -2), (-2, -2))),
    "random-init": (6, ((-5, -6), (5, -6), (-5, 6), (5, 6))),
}  # fmt: skip


@figure.register
def rate_distortion_plot(curve: RateDistortionCurve) -> Picture:
    """Storage against accuracy, interchange accuracy and KL, in panels below one another."""
    title = f"Storage and accuracy of relatives of {curve.parent.name} ({curve.pattern})"
    return block_picture(title, RateDistortionBlock(curve), _draw_curve(curve))


@dataclass(frozen=True, eq=False, repr=False)
class RateDistortionBlock(Block):
    """Plot of a rate–distortion curve."""

    curve: RateDistortionCurve

    @property
    def body(self) -> str:
        """Drawing."""
        return scrollable_svg(_draw_curve(self.curve), "pv-rated")


@dataclass(frozen=True, slots=True)
class _Mark:
    """Value of one model in one panel, and the values of its weight-noise controls."""

    point: CurvePoint
    value: Estimate
    noise: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Panel:
    """Panel with its marks and a reference line."""

    title: str
    marks: Sequence[_Mark]
    reference: tuple[str, float] | None = None
    y_range: tuple[float, float] = (-0.05, 1.06)
    log_y: bool = False


def _draw_curve(curve: RateDistortionCurve) -> Drawing:
    parts, top = _draw_legend(curve)
    panels = _panels(curve)
    for panel in panels:
        box = (_LEFT, top, _WIDTH, _HEIGHT)
        parts += _draw_panel(panel, Axes(box, _bits_range(curve), panel.y_range, True, panel.log_y),
                             curve.parent)  # fmt: skip
        top += _HEIGHT + _GAP
        if panel is panels[1] and (absent := [p.name for p in curve.points if not p.mechanism]):
            text = truncate_text(f"behavior absent: {', '.join(absent)}", _WIDTH, FONT_SIZE)
            parts.append(TextLabel(_LEFT, top - _GAP + 30, text, FONT_SIZE, color="soft"))
    bottom = top - _GAP
    axis = TextLabel(_LEFT + _WIDTH / 2, bottom + 32, "storage in kB (log scale)", FONT_SIZE,
                     "middle", "soft")  # fmt: skip
    note = f"{len(curve.points)} relatives of {curve.parent.name}. The numbers follow as a table."
    return Drawing(WIDTH, bottom + 42, (*parts, axis), "Rate and distortion", note)


def _panels(curve: RateDistortionCurve) -> list[_Panel]:
    points = (curve.parent, *curve.points)
    accuracy = [_Mark(p, p.behavior.all_correct, p.noise.right if p.noise else ()) for p in points]
    mechanism = [
        _Mark(p, p.mechanism.interchange_accuracy, p.noise.mechanism if p.noise else ())
        for p in points
        if p.mechanism and not math.isnan(p.mechanism.interchange_accuracy.value)
    ]
    kl = [
        _Mark(p, p.behavior.readout_kl)
        for p in curve.points
        if p.behavior.readout_kl.value > 0
    ]  # fmt: skip
    chance = float(np.nanmax([curve.heuristic_accuracy, curve.random_init[0]]))
    panels = [
        _Panel("accuracy: fraction of questions with all answers right", accuracy,
               ("best heuristic or random-init model", chance)),
        _Panel("mechanism: interchange accuracy on texts that both models solve", mechanism,
               ("best random-init model", curve.random_init[1])),
    ]  # fmt: skip
    if kl:
        powers = [math.log10(mark.value.value) for mark in kl]
        y_range = (10.0 ** math.floor(min(powers)), 10.0 ** math.ceil(max(powers) + 1e-9))
        title = "KL divergence from the parent, bits per answer (log scale)"
        panels.append(_Panel(title, kl, None, y_range, log_y=True))
    return panels


def _bits_range(curve: RateDistortionCurve) -> tuple[float, float]:
    powers = [math.log10(point.rate.bits) for point in (curve.parent, *curve.points)]
    low, high = min(powers), max(powers)
    margin = max(0.06 * (high - low), 0.05)
    return 10 ** (low - margin), 10 ** (high + margin)


def _draw_panel(panel: _Panel, axes: Axes, parent: CurvePoint) -> list[Part]:
    parts = axes.frame(panel.title, _size_ticks(axes.x_range), _value_ticks(panel))
    obstacles: list[Box] = []
    if panel.reference and not math.isnan(panel.reference[1]):
        name, value = panel.reference
        y, text = axes.y(value), f"{name}: {value:.2f}"
        parts.append(axes.horizontal(value, "soft"))
        parts.append(TextLabel(_LEFT + 6, y - 4, text, 10, color="soft"))
        obstacles += [(_LEFT, y - 15, text_width(text, 10) + 8, 15), (_LEFT, y - 1, _WIDTH, 2)]
    for mark in panel.marks:
        x = axes.x(mark.point.rate.bits)
        for value in (one for one in mark.noise if not math.isnan(one)):
            tooltip = f"{parent.name} with noise, as far as {mark.point.name}: {value:.3f}"
            parts.append(Group(tooltip, (replace(_NOISE, points=((x, axes.y(value)),)),)))
            obstacles.append((x - 5, axes.y(value) - 5, 10, 10))
    centers = []
    for mark in sorted(panel.marks, key=lambda mark: mark.point.rate.bits):
        value = mark.value
        x, y, low, high = (
            axes.x(mark.point.rate.bits),
            *map(axes.y, (value.value, value.low, value.high)),
        )
        shape = _PARENT if mark.point is parent else _kind_shape(mark.point.kind)
        line = DrawingShape(((x, low), (x, high)), stroke=shape.fill, stroke_width=1.6)
        interval = f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"
        tooltip = f"{mark.point.name}, {mark.point.rate.bits / _BITS_PER_KB:.0f} kB: {interval}"
        parts.append(Group(typographic_minus(tooltip), (line, _at(shape, x, y))))
        obstacles += [(x - 7, y - 7, 14, 14), (x - 2, high, 4, low - high)]
        centers.append((mark.point.name, (x, y)))
    names, positions = [name for name, _ in centers], [center for _, center in centers]
    return [*parts, *place_labels(names, positions, axes.box, obstacles)]


_PARENT = DrawingShape(((0.0, 0.0),), "ink", "paper", radius=6)
_NOISE = DrawingShape(((0.0, 0.0),), "paper", "soft", 1.5, radius=4)


def _kind_shape(kind: str) -> DrawingShape:
    color, outline = _MARKERS.get(kind, _MARKERS["trained"])
    return DrawingShape(outline or ((0.0, 0.0),), PALETTE[color], "paper", radius=5.5)


def _at(shape: DrawingShape, x: Pixels, y: Pixels) -> DrawingShape:
    return replace(shape, points=tuple((x + dx, y + dy) for dx, dy in shape.points))


def _draw_legend(curve: RateDistortionCurve) -> tuple[list[Part], Pixels]:
    parent = curve.parent.name
    kinds = dict.fromkeys(point.kind for point in curve.points)
    shapes = [(parent, _PARENT), *((kind, _kind_shape(kind)) for kind in kinds)]
    if any(point.noise for point in curve.points):
        shapes.append((f"{parent} with weight noise at the same KL", _NOISE))
    entries = [(name, lambda x, y, shape=shape: (_at(shape, x, y),)) for name, shape in shapes]
    parts, bottom = legend(entries, (_LEFT, 14.0), _WIDTH)
    return parts, bottom + 30


def _value_ticks(panel: _Panel) -> list[Tick]:
    if not panel.log_y:
        return [(value, f"{value:g}") for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    low, high = (round(math.log10(end)) for end in panel.y_range)
    powers = range(low, high + 1)
    return [(10.0**power, f"{10.0**power:g}") for power in powers[:: max(1, len(powers) // 7)]]


def _size_ticks(bits_range: tuple[float, float]) -> list[Tick]:
    """Round numbers of kB along the axis; with models of one size only that size."""
    low, high = (bits / _BITS_PER_KB for bits in bits_range)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    sizes = [math.sqrt(low * high)]
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(np.arange(1, 10, 0.25))):
        candidates = [float(step * 10.0**power) for power, step in product(powers, steps)]
        if sum(low <= size <= high for size in candidates) > 3:
            sizes = [size for size in candidates if low <= size <= high]
            break
    return [(_BITS_PER_KB * size, f"{float(f'{size:.4g}'):,.10g}") for size in sizes]
