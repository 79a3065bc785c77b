"""Rate against distortion as a drawing: every relative a mark, its name beside it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from probes.comparison.rate_distortion.result import Curve, Point
from probes.stats.intervals import Estimate
from probes.viz.blocks import Block
from probes.viz.drawing import (
    PALETTE,
    WIDTH,
    Group,
    Part,
    Pixels,
    Shape,
    Sheet,
    Words,
    box,
    fitted,
    pictured,
    scrolled,
    wide,
)
from probes.viz.html_text import minus, visible
from probes.viz.label_placement import Box, named
from probes.viz.picture import Picture

_LEFT, _ROOM, _TALL, _GAP = 46.0, WIDTH - 60.0, 210.0, 64.0
_SIZE = 10.5

# A kind has an outline as well as a colour; without one it is a circle.
_KINDS: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "trained": (7, ()),
    "distilled": (2, ((0, -6), (6, 5), (-6, 5))),
    "quantized": (0, ((-5, -5), (5, -5), (5, 5), (-5, 5))),
    "pruned": (4, ((0, -6), (6, 0), (0, 6), (-6, 0))),
    "ticket": (1, ((0, 6), (6, -5), (-6, -5))),
    "grown": (3, ((-2, -6), (2, -6), (2, -2), (6, -2), (6, 2), (2, 2),
                  (2, 6), (-2, 6), (-2, 2), (-6, 2), (-6, -2), (-2, -2))),
    "untrained": (6, ((-5, -6), (5, -6), (-5, 6), (5, 6))),
}  # fmt: skip


def rated_picture(found: Curve) -> Picture:
    """Draw the curve: bits from left to right, accuracy, mechanism and KL below each other."""
    title = f"What relatives of {found.parent.name} store, and what is left ({found.pattern})"
    return pictured(title, RatedBlock(found), _scene(found))


@dataclass(frozen=True, eq=False)
class RatedBlock(Block):
    """The drawing of a curve."""

    found: Curve

    @property
    def body(self) -> str:
        """The drawing."""
        return scrolled(_scene(self.found), "pv-rated")

    def __repr__(self) -> str:
        return f"RatedBlock({visible(self.found.parent.name)!r}, {len(self.found.points)} points)"


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
    columns: tuple[float, float]
    log: bool = False

    def x(self, bits: Pixels) -> Pixels:
        left, right = self.columns
        return _LEFT + _ROOM * (math.log10(bits) - left) / (right - left)

    def y(self, value: Pixels) -> Pixels:
        value = math.log10(max(value, 1e-300)) if self.log else value
        unit = (value - self.low) / (self.high - self.low)
        return self.top + _TALL * (1 - min(max(unit, 0.0), 1.0))


@dataclass(frozen=True, slots=True)
class _Mark:
    point: Point
    value: Estimate
    noise: tuple[float, ...] = ()


def _scene(found: Curve) -> Sheet:
    every = (found.parent, *found.points)
    kinds = dict.fromkeys(point.kind for point in found.points)
    noisy = any(point.noise for point in found.points)
    parts, top = _legend(found.parent.name, [*kinds], noisy=noisy)
    columns = _columns([point.rate.bits for point in every])
    right = [_Mark(p, p.behaved.right, p.noise.right if p.noise else ()) for p in every]
    kept = [
        _Mark(p, p.mechanism.kept, p.noise.mechanism if p.noise else ())
        for p in every
        if p.mechanism and not math.isnan(p.mechanism.kept.value)
    ]
    apart = [_Mark(p, p.behaved.kl) for p in found.points if p.behaved.kl.value > 0]
    chance = np.nanmax([found.guessed, found.untrained[0]])
    lines = ("best heuristic or untrained net", float(chance))
    top += 22
    panel = _Panel(top, -0.05, 1.06, columns)
    parts += _panel("all answers right, share of questions", panel, right, lines, found)
    top += _TALL + _GAP
    panel = _Panel(top, -0.05, 1.06, columns)
    says = "mechanism, share of crossings that turn as foretold where both solve"
    lines = ("best untrained net", found.untrained[1])
    parts += _panel(says, panel, kept, lines, found)
    absent = [p.name for p in found.points if p.mechanism is None]
    if absent:
        text = fitted(f"behaviour absent: {', '.join(absent)}", _ROOM, _SIZE)
        parts.append(Words(_LEFT, top + _TALL + 30, text, _SIZE, colour="soft"))
    if apart:
        top += _TALL + _GAP
        ends = [math.log10(mark.value.value) for mark in apart]
        panel = _Panel(top, math.floor(min(ends)), math.ceil(max(ends) + 1e-9), columns, log=True)
        parts += _panel(
            "KL from the parent, bits per answer (log scale)", panel, apart, None, found
        )
    parts.append(
        Words(_LEFT + _ROOM / 2, top + _TALL + 32, "kB to store (log scale)", _SIZE, "middle",
              "soft")
    )  # fmt: skip
    says = f"{len(found.points)} relatives of {found.parent.name}; the numbers follow as a table."
    return Sheet(WIDTH, top + _TALL + 42, tuple(parts), "Rate and distortion", says)


def _columns(bits: Sequence[float]) -> tuple[float, float]:
    low, high = math.log10(min(bits)), math.log10(max(bits))
    room = max(0.06 * (high - low), 0.05)
    return low - room, high + room


def _panel(
    title: str, panel: _Panel, marks: Sequence[_Mark], line: tuple[str, float] | None, found: Curve
) -> list[Part]:
    parts: list[Part] = [
        Words(_LEFT, panel.top - 8, title, 12, bold=True),
        box(_LEFT, panel.top, _ROOM, _TALL, "none", "line"),
        *_ticks(panel),
    ]
    taken: list[Box] = []
    if line is not None and not math.isnan(line[1]):
        y = panel.y(line[1])
        parts.append(Shape(((_LEFT, y), (_LEFT + _ROOM, y)), edge="soft"))
        text = f"{line[0]}: {line[1]:.2f}"
        parts.append(Words(_LEFT + 6, y - 4, text, 10, colour="soft"))
        taken += [(_LEFT, y - 15, wide(text, 10) + 8, 15), (_LEFT, y - 1, _ROOM, 2)]
    for mark in marks:
        x = panel.x(mark.point.rate.bits)
        for value in mark.noise:
            if not math.isnan(value):
                dot = Shape(((x, panel.y(value)),), "paper", "soft", 1.5, radius=4)
                says = f"{found.parent.name} with noise, as far as {mark.point.name}: {value:.3f}"
                parts.append(Group(says, (dot,)))
                taken.append((x - 5, panel.y(value) - 5, 10, 10))
    for mark in marks:
        parts.append(_drawn(mark, panel, found))
        x, y = panel.x(mark.point.rate.bits), panel.y(mark.value.value)
        high, low = panel.y(mark.value.high), panel.y(mark.value.low)
        taken += [(x - 7, y - 7, 14, 14), (x - 2, high, 4, low - high)]
    order = sorted(marks, key=lambda mark: mark.point.rate.bits)
    at = [(panel.x(m.point.rate.bits), panel.y(m.value.value)) for m in order]
    room = (_LEFT, panel.top, _ROOM, _TALL)
    return [*parts, *named([mark.point.name for mark in order], at, room, taken)]


def _drawn(mark: _Mark, panel: _Panel, found: Curve) -> Group:
    point, value = mark.point, mark.value
    x, y = panel.x(point.rate.bits), panel.y(value.value)
    ends = ((x, panel.y(value.low)), (x, panel.y(value.high)))
    colour = "ink" if point is found.parent else _colour(point.kind)
    says = f"{point.name}, {point.rate.bits / 8000:.0f} kB: {_told(value)}"
    return Group(says, (Shape(ends, edge=colour, thick=1.6), _shape(point, (x, y), found)))


def _shape(point: Point, at: tuple[Pixels, Pixels], found: Curve) -> Shape:
    if point is found.parent:
        return Shape((at,), "ink", "paper", radius=6)
    return _outlined(point.kind, at)


def _outlined(kind: str, at: tuple[Pixels, Pixels]) -> Shape:
    outline = _KINDS.get(kind, _KINDS["trained"])[1]
    points = tuple((at[0] + dx, at[1] + dy) for dx, dy in outline) or (at,)
    return Shape(points, _colour(kind), "paper", radius=5.5)


def _colour(kind: str) -> str:
    return PALETTE[_KINDS.get(kind, _KINDS["trained"])[0]]


def _told(value: Estimate) -> str:
    return minus(f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]")


def _ticks(panel: _Panel) -> Iterator[Part]:
    if panel.log:
        steps = range(int(panel.low), int(panel.high) + 1)
        each = max(1, len(steps) // 7)
        heights = [(10.0**power, f"{10.0**power:g}") for power in steps[::each]]
    else:
        heights = [(share, f"{share:g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for value, text in heights:
        y = panel.y(value)
        yield Shape(((_LEFT, y), (_LEFT + _ROOM, y)), edge="line")
        yield Words(_LEFT - 5, y + 4, text, 10, "end", "soft")
    for size in _sizes(panel.columns):
        x = panel.x(8000 * size)
        yield Shape(((x, panel.top), (x, panel.top + _TALL)), edge="line")
        # Four digits: where all models are of one size the only tick is that size.
        shown = f"{float(f'{size:.4g}'):,.10g}"
        yield Words(x, panel.top + _TALL + 14, shown, 10, "middle", "soft")


def _sizes(columns: tuple[float, float]) -> list[float]:
    """Return round numbers of kB along the axis."""
    low, high = (10**end / 8000 for end in columns)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(np.arange(1, 10, 0.25))):
        found = [
            float(s * 10.0**p) for p, s in product(powers, steps) if low <= s * 10.0**p <= high
        ]
        if len(found) > 3:
            return found
    return [10 ** (sum(columns) / 2) / 8000]


def _legend(parent: str, kinds: Sequence[str], *, noisy: bool) -> tuple[list[Part], Pixels]:
    parts: list[Part] = []
    x, y = _LEFT, 14.0
    circle = Shape(((0.0, 0.0),), "ink", "paper", radius=6)
    entries = [(parent, circle)]
    entries += [(kind, _outlined(kind, (0.0, 0.0))) for kind in kinds]
    if noisy:
        hollow = Shape(((0.0, 0.0),), "paper", "soft", 1.5, radius=4)
        entries.append((f"{parent} with noise at the same KL", hollow))
    for text, shape in entries:
        size = wide(text, _SIZE) + 34
        if x + size > _LEFT + _ROOM and x > _LEFT:
            x, y = _LEFT, y + 18
        moved = tuple((px + x + 6, py + y - 4) for px, py in shape.points)
        parts.append(Shape(moved, shape.fill, shape.edge, shape.thick, shape.radius))
        parts.append(Words(x + 17, y, fitted(text, _ROOM - 20, _SIZE), _SIZE, colour="soft"))
        x += size
    return parts, y + 16
