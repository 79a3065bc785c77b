"""A training run as lines over its checkpoints: what appears when, beside what chance gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from probes.errors import FigureError
from probes.experiments.training_dynamics.emergence import Course
from probes.experiments.training_dynamics.measures import ALONE, CAPPED, EDGES, LEAD, OWN, PULL
from probes.viz.blocks import Block, Note, Table, caption
from probes.viz.drawing import (
    PALETTE,
    WIDTH,
    Part,
    Pixels,
    Point,
    Shape,
    Sheet,
    Words,
    details,
    fitted,
    pictured,
    scrolled,
    wide,
)
from probes.viz.drawing import Group as Hover
from probes.viz.html_text import minus
from probes.viz.page import page
from probes.viz.picture import Picture

if TYPE_CHECKING:
    from probes.experiments.training_dynamics.trajectory import Trajectory

_COLUMNS, _PITCH, _LEFT, _RIGHT = 2, WIDTH / 2, 34.0, 14.0
_TALL, _TOP, _FOOT, _KEY = 150.0, 20.0, 46.0, 16.0
_RING, _DOT = 6.5, 2.6

_LEAD_TEXT = (
    "Each line is one measure at every checkpoint of the run, held against where the run ended: "
    "shares of prompts, or logits as a share of the final model's. Checkpoints stand at equal "
    "distances, whatever steps lie between. Bars are 95 % intervals over prompts; a ring marks the "
    "first checkpoint from which the measure surely stays above half the way from chance to its "
    "final value. The dotted line is the most that untrained nets give, the dashed one the most "
    "that 95 % of edge sets drawn by lot share with the final model's. At the right edge, a "
    "triangle is a model of another seed, measured at the same places."
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its values with their intervals, its ring and what it is held against.

    Attributes:
        name: What it is called.
        values, low, high: At each place; NaN leaves a gap.
        ring: The place that is ringed, or None.
        chance: What null models reach at most, or None.
        lot: What sets drawn by lot reach, or None.
        others: What it is in models of other seeds.
    """

    name: str
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    ring: int | None = None
    chance: float | None = None
    lot: float | None = None
    others: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class LinesBlock(Block):
    """Panels of lines over the same places.

    Attributes:
        ticks: What each place is called.
        panels: A title with its lines; all panels have one scale.
        caption: A line above.
    """

    ticks: Sequence[str]
    panels: Sequence[tuple[str, Sequence[Line]]]
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.ticks or not any(lines for _, lines in self.panels):
            raise FigureError("There is nothing to draw: give places and at least one line")
        for _, lines in self.panels:
            if len(lines) > len(PALETTE):
                raise FigureError(
                    f"{len(lines)} lines in a panel cannot be told apart: give {len(PALETTE)} at "
                    "most"
                )
            for line in lines:
                sizes = {len(line.values), len(line.low), len(line.high)}
                if sizes != {len(self.ticks)}:
                    raise FigureError(
                        f"{line.name!r} has {len(line.values)} values for {len(self.ticks)} "
                        "places: give one for each, NaN where there is none"
                    )

    @property
    def body(self) -> str:
        """The drawing with its numbers below."""
        return caption(self.caption) + scrolled(_scene(self), "pv-lines") + details(_table(self))

    def __repr__(self) -> str:
        return f"LinesBlock({len(self.panels)} panels, {len(self.ticks)} places)"


def trajectory_page(found: "Trajectory") -> Picture:
    """Lay a training run out as a page: when what appeared, the lines, and how it was measured."""
    block = lines_of(found)
    head, *lines = found.summary()
    rows = [[course.name, str(course.final), *_when(found, course)] for course in found.courses]
    names = ["measure", "in the end", "appeared", "interval", "than the accuracy"]
    protocol = Table(("what", "how"), [list(pair) for pair in found.protocol], align="ll")
    sections = [
        ("Along training", _LEAD_TEXT, [block]),
        ("When each appeared", head, [Table(names, rows)]),
        ("How this was measured", "", [protocol]),
    ]
    shown = [Note(line) for line in lines if line.startswith(_told(found))]
    whole = page(f"{found.final} along its training", sections, shown, f"Asked: {found.pattern}")
    return Picture(whole.title, whole.body, pictured(whole.title, block, _scene(block)).draw)


def _told(found: "Trajectory") -> tuple[str, ...]:
    """The measures that are told at the top: answers, the circuit, what is pulled."""
    first = [course.name for course in found.courses if course.name == course.beside]
    return (*first, f"{ALONE}:", *(f"{name} {PULL}:" for name in found.sites))


def _when(found: "Trajectory", course: Course) -> tuple[str, str, str]:
    when = found.onset(course.name)
    ends = " to ".join("never" if np.isinf(n) else f"{n:,.0f}" for n in (when.low, when.high))
    than = "" if course.name == course.beside else found.order(course.name)
    return str(when), ends, than


def lines_of(found: "Trajectory") -> LinesBlock:
    """Put the courses of a run into panels: the answers, each variable, the circuit."""
    answers = [course.name for course in found.courses if course.name == course.beside]
    known = {course.name for course in found.courses}
    panels = [("Answers", [*answers, LEAD])]
    for variable, site in found.sites.items():
        beside = found.course(f"{variable} {CAPPED}").beside
        names = [f"{variable} {kind}" for kind in (CAPPED, PULL, OWN)]
        names = [name for name in names if name in known]
        panels.append((f"{variable}, at {site}", [*names, beside]))
    panels.append((f"The final circuit, {found.edges} edges", [ALONE, EDGES, LEAD]))
    return LinesBlock(
        ticks=tuple(f"{step:,}" for step in found.steps),
        panels=[(title, [_line(found, name) for name in names]) for title, names in panels],
    )


def _line(found: "Trajectory", name: str) -> Line:
    course, when = found.course(name), found.onset(name)
    return Line(
        name=name,
        values=tuple(v.value for v in course.values),
        low=tuple(v.low for v in course.values),
        high=tuple(v.high for v in course.values),
        ring=None if when.step is None else found.steps.index(when.step),
        chance=max(course.nulls, default=None),
        lot=course.lot[1] if course.lot else None,
        others=tuple(e.value for e in (course.seeds or {}).values()),
    )


# --- where things stand -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Axes:
    """A panel's corner, and what its height means."""

    left: Pixels
    top: Pixels
    room: Pixels
    places: int
    low: float
    high: float

    def x(self, place: int) -> float:
        return self.left + 10 + (self.room - 30) * place / max(self.places - 1, 1)

    def y(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return self.top + _TALL * (1 - min(1.0, max(0.0, part)))


def _scene(block: LinesBlock) -> Sheet:
    every = [n for _, lines in block.panels for line in lines for n in (*line.values, *line.others)]
    known = [n for n in every if np.isfinite(n)]
    low, high = min(0.0, *known), min(max(1.05, *known), 2.0)
    low = max(low, -0.5)
    keys = max(len(lines) for _, lines in block.panels)
    pitch = _TOP + _TALL + _FOOT + _KEY * ((keys + 1) // 2)
    parts: list[Part] = []
    for at, (title, lines) in enumerate(block.panels):
        left = (at % _COLUMNS) * _PITCH + _LEFT
        top = (at // _COLUMNS) * pitch + _TOP
        axes = _Axes(left, top, _PITCH - _LEFT - _RIGHT, len(block.ticks), low, high)
        parts += _frame(axes, title, block.ticks)
        for number, line in enumerate(lines):
            parts += _drawn(axes, line, PALETTE[number], block.ticks)
            parts += _key(axes, number, line.name)
    rows = -(-len(block.panels) // _COLUMNS)
    says = f"{len(block.panels)} panels of lines over {len(block.ticks)} checkpoints."
    return Sheet(WIDTH, rows * pitch, tuple(parts), "Measures along training", says)


def _frame(axes: _Axes, title: str, ticks: Sequence[str]) -> list[Part]:
    right = axes.left + axes.room
    name = fitted(title, axes.room, 12)
    parts: list[Part] = [Words(axes.left - 20, axes.top - 8, name, 12, bold=True)]
    for value in np.arange(np.ceil(axes.low * 2) / 2, axes.high + 1e-9, 0.5):
        y = axes.y(value)
        parts.append(Shape(((axes.left, y), (right, y)), edge="line"))
        text = minus(f"{value + 0.0:g}")
        parts.append(Words(axes.left - 5, y + 4, text, 10, "end", "soft"))
    edge = -np.inf
    for place, text in enumerate(ticks):
        x, half = axes.x(place), wide(text, 9.5) / 2
        if x - half > edge + 3:  # Those that would touch the last one are left out.
            parts.append(Words(x, axes.top + _TALL + 14, text, 9.5, "middle", "soft"))
            edge = x + half
    middle = axes.left + axes.room / 2
    parts.append(Words(middle, axes.top + _TALL + 28, "training step", 10, "middle", "soft"))
    return parts


def _drawn(axes: _Axes, line: Line, colour: str, ticks: Sequence[str]) -> list[Part]:
    right = axes.left + axes.room
    parts: list[Part] = []
    for level, dash in ((line.chance, 2.0), (line.lot, 7.0)):
        if level is not None:
            parts += _dashes(axes.left, right, axes.y(level), colour, dash)
    dots = [(axes.x(p), axes.y(v)) for p, v in enumerate(line.values) if np.isfinite(v)]
    parts += [Shape((one, two), edge=colour, thick=1.8) for one, two in pairwise(dots)]
    for place, value in enumerate(line.values):
        if not np.isfinite(value):
            continue
        x, low, high = axes.x(place), line.low[place], line.high[place]
        says = minus(f"{line.name}, step {ticks[place]}: {value:.2f} [{low:.2f}, {high:.2f}]")
        if place == line.ring:
            ring = Shape(((x, axes.y(value)),), "paper", colour, 1.8, _RING)
            parts.append(Hover(f"{line.name} appears by step {ticks[place]}", (ring,)))
        span = Shape(((x, axes.y(low)), (x, axes.y(high))), edge=colour, thick=1)
        dot = Shape(((x, axes.y(value)),), colour, radius=_DOT)
        parts.append(Hover(says, (span, dot)))
    for value in line.others:
        parts.append(Hover(minus(f"{line.name}, another seed: {value:.2f}"), (
            _triangle((right - 6, axes.y(value)), colour),
        )))  # fmt: skip
    return parts


def _triangle(at: Point, colour: str) -> Shape:
    x, y = at
    return Shape(((x + 5, y - 4.5), (x + 5, y + 4.5), (x - 3, y)), colour)


def _dashes(left: Pixels, right: Pixels, y: Pixels, colour: str, size: float) -> list[Part]:
    starts = np.arange(left, right, 2 * size)
    return [Shape(((x, y), (min(x + size, right), y)), edge=colour, thick=1.2) for x in starts]


def _key(axes: _Axes, number: int, name: str) -> list[Part]:
    x = axes.left - 20 + (number % 2) * axes.room / 2
    y = axes.top + _TALL + _FOOT + _KEY * (number // 2) - 2
    return [
        Shape(((x, y - 4), (x + 18, y - 4)), edge=PALETTE[number], thick=1.8),
        Shape(((x + 9, y - 4),), PALETTE[number], radius=_DOT),
        Words(x + 24, y, fitted(name, axes.room / 2 - 26, 10.5), 10.5, colour="soft"),
    ]


def _table(block: LinesBlock) -> Table:
    named = dict.fromkeys(line for _, lines in block.panels for line in lines)
    rows = [
        [line.name, *(minus(f"{v:.2f}") if np.isfinite(v) else "" for v in line.values)]
        for line in named
    ]
    return Table(("measure", *block.ticks), rows)
