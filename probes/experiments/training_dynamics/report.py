"""A training run as lines over its checkpoints: what appears when, beside what chance gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from probes.errors import FigureError
from probes.experiments.training_dynamics.emergence import MeasureOverTraining
from probes.experiments.training_dynamics.measures import (
    AT_OWN_SITE,
    CIRCUIT_ONLY,
    EDGE_OVERLAP,
    INTERCHANGE_ACCURACY,
    LOGIT_DIFF,
    LOGIT_SHIFT,
)
from probes.experiments.training_dynamics.trajectory import TrainingTrajectory
from probes.viz.blocks import Block, Note, Table, caption_html
from probes.viz.drawing import (
    PALETTE,
    WIDTH,
    Drawing,
    DrawingShape,
    Part,
    Pixels,
    Point,
    TextLabel,
    collapsed_table,
    scrollable_svg,
    text_width,
    truncate_text,
)
from probes.viz.drawing import Group as Hover
from probes.viz.figure import block_picture
from probes.viz.html_text import typographic_minus
from probes.viz.page import page
from probes.viz.picture import Picture
from probes.viz.registry import report

_COLUMNS, _COLUMN_WIDTH, _LEFT_MARGIN, _RIGHT_MARGIN = 2, WIDTH / 2, 34.0, 14.0
_PANEL_HEIGHT, _TOP_MARGIN, _BOTTOM_MARGIN, _LEGEND_ROW_HEIGHT = 150.0, 20.0, 46.0, 16.0
_RING_RADIUS, _DOT_RADIUS = 6.5, 2.6

_INTRO = (
    "Each line is one measure at every checkpoint of the run, held against where the run ended: "
    "shares of prompts, or logits as a share of the final model's. Checkpoints stand at equal "
    "distances, whatever steps lie between. Bars are 95 % intervals over prompts; a ring marks the "
    "first checkpoint from which the measure surely stays above half the way from chance to its "
    "final value. The dotted line is the most that untrained nets give, the dashed one the most "
    "that 95 % of edge sets drawn by lot share with the final model's. At the right edge, a "
    "triangle is a model of another seed, measured at the same places."
)


@dataclass(frozen=True, slots=True)
class LineSeries:
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
    emergence_index: int | None = None
    chance: float | None = None
    random: float | None = None
    other_seeds: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class LineChartBlock(Block):
    """Panels of lines over the same places.

    Attributes:
        ticks: What each place is called.
        panels: A title with its lines; all panels have one scale.
        caption: A line above.
    """

    ticks: Sequence[str]
    panels: Sequence[tuple[str, Sequence[LineSeries]]]
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
        return (
            caption_html(self.caption)
            + scrollable_svg(_draw_panels(self), "pv-lines")
            + collapsed_table(_table(self))
        )

    def __repr__(self) -> str:
        return f"LinesBlock({len(self.panels)} panels, {len(self.ticks)} places)"


@report.register
def trajectory_page(trajectory: TrainingTrajectory) -> Picture:
    """Lay a training run out as a page: when what appeared, the lines, and how it was measured."""
    block = trajectory_chart(trajectory)
    head, *lines = trajectory.summary()
    rows = [
        [course.name, str(course.final), *_emergence_row(trajectory, course)]
        for course in trajectory.measures
    ]
    names = ["measure", "in the end", "appeared", "interval", "than the accuracy"]
    protocol = Table(("what", "how"), [list(pair) for pair in trajectory.protocol], align="ll")
    sections = [
        ("Along training", _INTRO, [block]),
        ("When each appeared", head, [Table(names, rows)]),
        ("How this was measured", "", [protocol]),
    ]
    shown = [Note(line) for line in lines if line.startswith(_headline_measures(trajectory))]
    whole = page(
        f"{trajectory.final} along its training", sections, shown, f"Asked: {trajectory.pattern}"
    )
    return Picture(
        whole.title, whole.body, block_picture(whole.title, block, _draw_panels(block)).draw
    )


def _headline_measures(trajectory: TrainingTrajectory) -> tuple[str, ...]:
    """The measures that are told at the top: answers, the circuit, what is pulled."""
    first = [course.name for course in trajectory.measures if course.name == course.accuracy_name]
    return (*first, f"{CIRCUIT_ONLY}:", *(f"{name} {LOGIT_SHIFT}:" for name in trajectory.sites))


def _emergence_row(
    trajectory: TrainingTrajectory, measure: MeasureOverTraining
) -> tuple[str, str, str]:
    when = trajectory.emergence(measure.name)
    ends = " to ".join("never" if np.isinf(n) else f"{n:,.0f}" for n in (when.low, when.high))
    than = "" if measure.name == measure.accuracy_name else trajectory.order(measure.name)
    return str(when), ends, than


def trajectory_chart(trajectory: TrainingTrajectory) -> LineChartBlock:
    """Put the courses of a run into panels: the answers, each variable, the circuit."""
    answers = [course.name for course in trajectory.measures if course.name == course.accuracy_name]
    known = {course.name for course in trajectory.measures}
    panels = [("Answers", [*answers, LOGIT_DIFF])]
    for variable, site in trajectory.sites.items():
        beside = trajectory.measure(f"{variable} {INTERCHANGE_ACCURACY}").accuracy_name
        names = [f"{variable} {kind}" for kind in (INTERCHANGE_ACCURACY, LOGIT_SHIFT, AT_OWN_SITE)]
        names = [name for name in names if name in known]
        panels.append((f"{variable}, at {site}", [*names, beside]))
    panels.append(
        (f"The final circuit, {trajectory.edges} edges", [CIRCUIT_ONLY, EDGE_OVERLAP, LOGIT_DIFF])
    )
    return LineChartBlock(
        ticks=tuple(f"{step:,}" for step in trajectory.steps),
        panels=[
            (title, [_line_series(trajectory, name) for name in names]) for title, names in panels
        ],
    )


def _line_series(trajectory: TrainingTrajectory, name: str) -> LineSeries:
    course, when = trajectory.measure(name), trajectory.emergence(name)
    return LineSeries(
        name=name,
        values=tuple(v.value for v in course.values),
        low=tuple(v.low for v in course.values),
        high=tuple(v.high for v in course.values),
        emergence_index=None if when.step is None else trajectory.steps.index(when.step),
        chance=max(course.nulls, default=None),
        random=course.random_interval[1] if course.random_interval else None,
        other_seeds=tuple(e.value for e in (course.other_seeds or {}).values()),
    )


# --- where things stand -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Axes:
    """A panel's corner, and what its height means."""

    left: Pixels
    top: Pixels
    width: Pixels
    n_checkpoints: int
    low: float
    high: float

    def x(self, index: int) -> float:
        return self.left + 10 + (self.width - 30) * index / max(self.n_checkpoints - 1, 1)

    def y(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return self.top + _PANEL_HEIGHT * (1 - min(1.0, max(0.0, part)))


def _draw_panels(block: LineChartBlock) -> Drawing:
    every = [
        n for _, lines in block.panels for line in lines for n in (*line.values, *line.other_seeds)
    ]
    known = [n for n in every if np.isfinite(n)]
    low, high = min(0.0, *known), min(max(1.05, *known), 2.0)
    low = max(low, -0.5)
    keys = max(len(lines) for _, lines in block.panels)
    pitch = _TOP_MARGIN + _PANEL_HEIGHT + _BOTTOM_MARGIN + _LEGEND_ROW_HEIGHT * ((keys + 1) // 2)
    parts: list[Part] = []
    for at, (title, lines) in enumerate(block.panels):
        left = (at % _COLUMNS) * _COLUMN_WIDTH + _LEFT_MARGIN
        top = (at // _COLUMNS) * pitch + _TOP_MARGIN
        axes = _Axes(
            left, top, _COLUMN_WIDTH - _LEFT_MARGIN - _RIGHT_MARGIN, len(block.ticks), low, high
        )
        parts += _frame(axes, title, block.ticks)
        for number, line in enumerate(lines):
            parts += _draw_line(axes, line, PALETTE[number], block.ticks)
            parts += _legend_entry(axes, number, line.name)
    rows = -(-len(block.panels) // _COLUMNS)
    says = f"{len(block.panels)} panels of lines over {len(block.ticks)} checkpoints."
    return Drawing(WIDTH, rows * pitch, tuple(parts), "Measures along training", says)


def _frame(axes: _Axes, title: str, ticks: Sequence[str]) -> list[Part]:
    right = axes.left + axes.width
    name = truncate_text(title, axes.width, 12)
    parts: list[Part] = [TextLabel(axes.left - 20, axes.top - 8, name, 12, bold=True)]
    for value in np.arange(np.ceil(axes.low * 2) / 2, axes.high + 1e-9, 0.5):
        y = axes.y(value)
        parts.append(DrawingShape(((axes.left, y), (right, y)), stroke="line"))
        text = typographic_minus(f"{value + 0.0:g}")
        parts.append(TextLabel(axes.left - 5, y + 4, text, 10, "end", "soft"))
    edge = -np.inf
    for place, text in enumerate(ticks):
        x, half = axes.x(place), text_width(text, 9.5) / 2
        if x - half > edge + 3:  # Those that would touch the last one are left out.
            parts.append(TextLabel(x, axes.top + _PANEL_HEIGHT + 14, text, 9.5, "middle", "soft"))
            edge = x + half
    middle = axes.left + axes.width / 2
    parts.append(
        TextLabel(middle, axes.top + _PANEL_HEIGHT + 28, "training step", 10, "middle", "soft")
    )
    return parts


def _draw_line(axes: _Axes, line: LineSeries, color: str, ticks: Sequence[str]) -> list[Part]:
    right = axes.left + axes.width
    parts: list[Part] = []
    for level, dash in ((line.chance, 2.0), (line.random, 7.0)):
        if level is not None:
            parts += _dashes(axes.left, right, axes.y(level), color, dash)
    dots = [(axes.x(p), axes.y(v)) for p, v in enumerate(line.values) if np.isfinite(v)]
    parts += [
        DrawingShape((one, two), stroke=color, stroke_width=1.8) for one, two in pairwise(dots)
    ]
    for place, value in enumerate(line.values):
        if not np.isfinite(value):
            continue
        x, low, high = axes.x(place), line.low[place], line.high[place]
        says = typographic_minus(
            f"{line.name}, step {ticks[place]}: {value:.2f} [{low:.2f}, {high:.2f}]"
        )
        if place == line.emergence_index:
            ring = DrawingShape(((x, axes.y(value)),), "paper", color, 1.8, _RING_RADIUS)
            parts.append(Hover(f"{line.name} appears by step {ticks[place]}", (ring,)))
        span = DrawingShape(((x, axes.y(low)), (x, axes.y(high))), stroke=color, stroke_width=1)
        dot = DrawingShape(((x, axes.y(value)),), color, radius=_DOT_RADIUS)
        parts.append(Hover(says, (span, dot)))
    for value in line.other_seeds:
        parts.append(Hover(typographic_minus(f"{line.name}, another seed: {value:.2f}"), (
            _triangle((right - 6, axes.y(value)), color),
        )))  # fmt: skip
    return parts


def _triangle(position: Point, color: str) -> DrawingShape:
    x, y = position
    return DrawingShape(((x + 5, y - 4.5), (x + 5, y + 4.5), (x - 3, y)), color)


def _dashes(left: Pixels, right: Pixels, y: Pixels, color: str, size: float) -> list[Part]:
    starts = np.arange(left, right, 2 * size)
    return [
        DrawingShape(((x, y), (min(x + size, right), y)), stroke=color, stroke_width=1.2)
        for x in starts
    ]


def _legend_entry(axes: _Axes, number: int, name: str) -> list[Part]:
    x = axes.left - 20 + (number % 2) * axes.width / 2
    y = axes.top + _PANEL_HEIGHT + _BOTTOM_MARGIN + _LEGEND_ROW_HEIGHT * (number // 2) - 2
    return [
        DrawingShape(((x, y - 4), (x + 18, y - 4)), stroke=PALETTE[number], stroke_width=1.8),
        DrawingShape(((x + 9, y - 4),), PALETTE[number], radius=_DOT_RADIUS),
        TextLabel(x + 24, y, truncate_text(name, axes.width / 2 - 26, 10.5), 10.5, color="soft"),
    ]


def _table(block: LineChartBlock) -> Table:
    named = dict.fromkeys(line for _, lines in block.panels for line in lines)
    rows = [
        [line.name, *(typographic_minus(f"{v:.2f}") if np.isfinite(v) else "" for v in line.values)]
        for line in named
    ]
    return Table(("measure", *block.ticks), rows)
