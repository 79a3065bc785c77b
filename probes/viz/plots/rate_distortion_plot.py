"""Rate against distortion as a drawing: every relative a mark, its name beside it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from probes.comparison.rate_distortion.result import CurvePoint, RateDistortionCurve
from probes.stats.intervals import Estimate
from probes.viz.blocks import Block
from probes.viz.drawing import (
    PALETTE,
    WIDTH,
    Drawing,
    DrawingShape,
    Group,
    Part,
    Pixels,
    TextLabel,
    block_picture,
    rectangle,
    scrollable_svg,
    text_width,
    truncate_text,
)
from probes.viz.html_text import show_invisible, typographic_minus
from probes.viz.label_placement import Box, place_labels
from probes.viz.picture import Picture
from probes.viz.registry import figure

_LEFT_MARGIN, _PLOT_WIDTH, _PANEL_HEIGHT, _GAP = 46.0, WIDTH - 60.0, 210.0, 64.0
_FONT_SIZE = 10.5

# A kind has an outline as well as a color; without one it is a circle.
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
    """Draw the curve: bits from left to right, accuracy, mechanism and KL below each other."""
    title = f"What relatives of {curve.parent.name} store, and what is left ({curve.pattern})"
    return block_picture(title, RateDistortionBlock(curve), _draw_panels(curve))


@dataclass(frozen=True, eq=False)
class RateDistortionBlock(Block):
    """The drawing of a curve."""

    curve: RateDistortionCurve

    @property
    def body(self) -> str:
        """The drawing."""
        return scrollable_svg(_draw_panels(self.curve), "pv-rated")

    def __repr__(self) -> str:
        return f"RatedBlock({show_invisible(self.curve.parent.name)!r}, {len(self.curve.points)} points)"


@dataclass(frozen=True, slots=True)
class _Panel:
    """A stretch of the drawing with its own upward axis.

    Attributes:
        top: Where it begins.
        low, high: The ends of its axis; logarithms where `log`.
        columns: Bits at its left and right end, as logarithms.
    """

    top: Pixels
    low: Pixels
    high: Pixels
    bits_range: tuple[float, float]
    log: bool = False

    def x(self, bits: Pixels) -> Pixels:
        left, right = self.bits_range
        return _LEFT_MARGIN + _PLOT_WIDTH * (math.log10(bits) - left) / (right - left)

    def y(self, value: Pixels) -> Pixels:
        value = math.log10(max(value, 1e-300)) if self.log else value
        unit = (value - self.low) / (self.high - self.low)
        return self.top + _PANEL_HEIGHT * (1 - min(max(unit, 0.0), 1.0))


@dataclass(frozen=True, slots=True)
class _PlotPoint:
    point: CurvePoint
    value: Estimate
    noise_values: tuple[float, ...] = ()


def _draw_panels(curve: RateDistortionCurve) -> Drawing:
    every = (curve.parent, *curve.points)
    kinds = dict.fromkeys(point.kind for point in curve.points)
    noisy = any(point.noise for point in curve.points)
    parts, top = _legend(curve.parent.name, [*kinds], with_noise=noisy)
    columns = _bits_range([point.rate.bits for point in every])
    right = [_PlotPoint(p, p.behavior.all_correct, p.noise.right if p.noise else ()) for p in every]
    kept = [
        _PlotPoint(p, p.mechanism.interchange_accuracy, p.noise.mechanism if p.noise else ())
        for p in every
        if p.mechanism and not math.isnan(p.mechanism.interchange_accuracy.value)
    ]
    apart = [
        _PlotPoint(p, p.behavior.readout_kl)
        for p in curve.points
        if p.behavior.readout_kl.value > 0
    ]
    chance = np.nanmax([curve.heuristic_accuracy, curve.random_init[0]])
    lines = ("best heuristic or untrained net", float(chance))
    top += 22
    panel = _Panel(top, -0.05, 1.06, columns)
    parts += _panel("all answers right, share of questions", panel, right, lines, curve)
    top += _PANEL_HEIGHT + _GAP
    panel = _Panel(top, -0.05, 1.06, columns)
    says = "mechanism, share of crossings that turn as foretold where both solve"
    lines = ("best untrained net", curve.random_init[1])
    parts += _panel(says, panel, kept, lines, curve)
    absent = [p.name for p in curve.points if p.mechanism is None]
    if absent:
        text = truncate_text(f"behavior absent: {', '.join(absent)}", _PLOT_WIDTH, _FONT_SIZE)
        parts.append(
            TextLabel(_LEFT_MARGIN, top + _PANEL_HEIGHT + 30, text, _FONT_SIZE, color="soft")
        )
    if apart:
        top += _PANEL_HEIGHT + _GAP
        ends = [math.log10(mark.value.value) for mark in apart]
        panel = _Panel(top, math.floor(min(ends)), math.ceil(max(ends) + 1e-9), columns, log=True)
        parts += _panel(
            "KL from the parent, bits per answer (log scale)", panel, apart, None, curve
        )
    parts.append(
        TextLabel(_LEFT_MARGIN + _PLOT_WIDTH / 2, top + _PANEL_HEIGHT + 32, "kB to store (log scale)", _FONT_SIZE, "middle",
              "soft")
    )  # fmt: skip
    says = f"{len(curve.points)} relatives of {curve.parent.name}; the numbers follow as a table."
    return Drawing(WIDTH, top + _PANEL_HEIGHT + 42, tuple(parts), "Rate and distortion", says)


def _bits_range(bits: Sequence[float]) -> tuple[float, float]:
    low, high = math.log10(min(bits)), math.log10(max(bits))
    room = max(0.06 * (high - low), 0.05)
    return low - room, high + room


def _panel(
    title: str,
    panel: _Panel,
    points: Sequence[_PlotPoint],
    threshold: tuple[str, float] | None,
    curve: RateDistortionCurve,
) -> list[Part]:
    parts: list[Part] = [
        TextLabel(_LEFT_MARGIN, panel.top - 8, title, 12, bold=True),
        rectangle(_LEFT_MARGIN, panel.top, _PLOT_WIDTH, _PANEL_HEIGHT, "none", "line"),
        *_ticks(panel),
    ]
    taken: list[Box] = []
    if threshold is not None and not math.isnan(threshold[1]):
        y = panel.y(threshold[1])
        parts.append(
            DrawingShape(((_LEFT_MARGIN, y), (_LEFT_MARGIN + _PLOT_WIDTH, y)), stroke="soft")
        )
        text = f"{threshold[0]}: {threshold[1]:.2f}"
        parts.append(TextLabel(_LEFT_MARGIN + 6, y - 4, text, 10, color="soft"))
        taken += [
            (_LEFT_MARGIN, y - 15, text_width(text, 10) + 8, 15),
            (_LEFT_MARGIN, y - 1, _PLOT_WIDTH, 2),
        ]
    for mark in points:
        x = panel.x(mark.point.rate.bits)
        for value in mark.noise_values:
            if not math.isnan(value):
                dot = DrawingShape(((x, panel.y(value)),), "paper", "soft", 1.5, radius=4)
                says = f"{curve.parent.name} with noise, as far as {mark.point.name}: {value:.3f}"
                parts.append(Group(says, (dot,)))
                taken.append((x - 5, panel.y(value) - 5, 10, 10))
    for mark in points:
        parts.append(_draw_point(mark, panel, curve))
        x, y = panel.x(mark.point.rate.bits), panel.y(mark.value.value)
        high, low = panel.y(mark.value.high), panel.y(mark.value.low)
        taken += [(x - 7, y - 7, 14, 14), (x - 2, high, 4, low - high)]
    order = sorted(points, key=lambda mark: mark.point.rate.bits)
    at = [(panel.x(m.point.rate.bits), panel.y(m.value.value)) for m in order]
    room = (_LEFT_MARGIN, panel.top, _PLOT_WIDTH, _PANEL_HEIGHT)
    return [*parts, *place_labels([mark.point.name for mark in order], at, room, taken)]


def _draw_point(plot_point: _PlotPoint, panel: _Panel, curve: RateDistortionCurve) -> Group:
    point, value = plot_point.point, plot_point.value
    x, y = panel.x(point.rate.bits), panel.y(value.value)
    ends = ((x, panel.y(value.low)), (x, panel.y(value.high)))
    color = "ink" if point is curve.parent else _kind_color(point.kind)
    says = f"{point.name}, {point.rate.bits / 8000:.0f} kB: {_format_estimate(value)}"
    return Group(
        says,
        (DrawingShape(ends, stroke=color, stroke_width=1.6), _point_marker(point, (x, y), curve)),
    )


def _point_marker(
    point: CurvePoint, position: tuple[Pixels, Pixels], curve: RateDistortionCurve
) -> DrawingShape:
    if point is curve.parent:
        return DrawingShape((position,), "ink", "paper", radius=6)
    return _marker_shape(point.kind, position)


def _marker_shape(kind: str, position: tuple[Pixels, Pixels]) -> DrawingShape:
    outline = _MARKERS.get(kind, _MARKERS["trained"])[1]
    points = tuple((position[0] + dx, position[1] + dy) for dx, dy in outline) or (position,)
    return DrawingShape(points, _kind_color(kind), "paper", radius=5.5)


def _kind_color(kind: str) -> str:
    return PALETTE[_MARKERS.get(kind, _MARKERS["trained"])[0]]


def _format_estimate(value: Estimate) -> str:
    return typographic_minus(f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]")


def _ticks(panel: _Panel) -> Iterator[Part]:
    if panel.log:
        steps = range(int(panel.low), int(panel.high) + 1)
        each = max(1, len(steps) // 7)
        heights = [(10.0**power, f"{10.0**power:g}") for power in steps[::each]]
    else:
        heights = [(share, f"{share:g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for value, text in heights:
        y = panel.y(value)
        yield DrawingShape(((_LEFT_MARGIN, y), (_LEFT_MARGIN + _PLOT_WIDTH, y)), stroke="line")
        yield TextLabel(_LEFT_MARGIN - 5, y + 4, text, 10, "end", "soft")
    for size in _kb_ticks(panel.bits_range):
        x = panel.x(8000 * size)
        yield DrawingShape(((x, panel.top), (x, panel.top + _PANEL_HEIGHT)), stroke="line")
        # Four digits: where all models are of one size the only tick is that size.
        shown = f"{float(f'{size:.4g}'):,.10g}"
        yield TextLabel(x, panel.top + _PANEL_HEIGHT + 14, shown, 10, "middle", "soft")


def _kb_ticks(bits_range: tuple[float, float]) -> list[float]:
    """Return round numbers of kB along the axis."""
    low, high = (10**end / 8000 for end in bits_range)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(np.arange(1, 10, 0.25))):
        found = [
            float(s * 10.0**p) for p, s in product(powers, steps) if low <= s * 10.0**p <= high
        ]
        if len(found) > 3:
            return found
    return [10 ** (sum(bits_range) / 2) / 8000]


def _legend(parent: str, kinds: Sequence[str], *, with_noise: bool) -> tuple[list[Part], Pixels]:
    parts: list[Part] = []
    x, y = _LEFT_MARGIN, 14.0
    circle = DrawingShape(((0.0, 0.0),), "ink", "paper", radius=6)
    entries = [(parent, circle)]
    entries += [(kind, _marker_shape(kind, (0.0, 0.0))) for kind in kinds]
    if with_noise:
        hollow = DrawingShape(((0.0, 0.0),), "paper", "soft", 1.5, radius=4)
        entries.append((f"{parent} with noise at the same KL", hollow))
    for text, shape in entries:
        size = text_width(text, _FONT_SIZE) + 34
        if x + size > _LEFT_MARGIN + _PLOT_WIDTH and x > _LEFT_MARGIN:
            x, y = _LEFT_MARGIN, y + 18
        moved = tuple((px + x + 6, py + y - 4) for px, py in shape.points)
        parts.append(
            DrawingShape(moved, shape.fill, shape.stroke, shape.stroke_width, shape.radius)
        )
        parts.append(
            TextLabel(
                x + 17,
                y,
                truncate_text(text, _PLOT_WIDTH - 20, _FONT_SIZE),
                _FONT_SIZE,
                color="soft",
            )
        )
        x += size
    return parts, y + 16
