"""Page of a training trajectory: lines over checkpoints, and emergence steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from probes.errors import FigureError
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
    Curve,
    Drawing,
    DrawingShape,
    Group,
    Part,
    Pixels,
    TextLabel,
    collapsed_table,
    scrollable_svg,
)
from probes.viz.figure import block_picture
from probes.viz.html_text import typographic_minus
from probes.viz.page import page
from probes.viz.picture import Picture
from probes.viz.plots.axes import Axes, legend
from probes.viz.registry import report

_COLUMNS, _COLUMN_WIDTH, _LEFT_MARGIN, _RIGHT_MARGIN = 2, WIDTH / 2, 34.0, 14.0
_PANEL_HEIGHT, _TOP_MARGIN, _AXIS_HEIGHT, _GAP = 150.0, 22.0, 48.0, 20.0
_RING_RADIUS, _DOT_RADIUS = 6.5, 2.6

_INTRO = (
    "Each line is one measure at every checkpoint of the run, relative to the final model: "
    "fractions of prompts, or logits as a fraction of the final model's. Checkpoints are at equal "
    "distances, whatever their steps. Bars are 95 % intervals over prompts. A ring marks the first "
    "checkpoint from which the interval stays above half the way from chance to the final value. "
    "The dotted line is the highest value of random-init models, the dashed line the 97.5th "
    "percentile of random edge sets. At the right edge, a triangle is an other-seed model, "
    "measured at the same sites."
)


@dataclass(frozen=True, slots=True)
class LineSeries:
    """One line with intervals and references.

    Attributes:
        name: Name.
        values, low, high: Values and intervals at each checkpoint; NaN leaves a gap.
        emergence_index: Index of the checkpoint with a ring, or None.
        chance: Highest value of random-init models, or None.
        random: Upper end of the interval of random edge sets, or None.
        other_seeds: Values of other-seed models.
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
    """Panels of lines over the same checkpoints.

    Attributes:
        ticks: Names of the checkpoints.
        panels: Title and lines of each panel; all panels have one scale.
        caption: Line above.
    """

    ticks: Sequence[str]
    panels: Sequence[tuple[str, Sequence[LineSeries]]]
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.ticks or not any(lines for _, lines in self.panels):
            raise FigureError("There is nothing to draw: give checkpoints and at least one line")
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
                        "checkpoints: give one for each, NaN where there is none"
                    )

    @property
    def body(self) -> str:
        """Drawing, and its numbers in a collapsed table."""
        drawing = scrollable_svg(_draw_panels(self), "pv-lines")
        return caption_html(self.caption) + drawing + collapsed_table(_table(self))

    def __repr__(self) -> str:
        return f"LineChartBlock({len(self.panels)} panels, {len(self.ticks)} checkpoints)"


@report.register
def trajectory_page(trajectory: TrainingTrajectory) -> Picture:
    """Page of a training trajectory: summary, lines, emergence steps and protocol."""
    block = trajectory_chart(trajectory)
    head, *lines = trajectory.summary()
    rows = []
    for measure in trajectory.measures:
        when, is_accuracy = (
            trajectory.emergence(measure.name),
            measure.name == measure.accuracy_name,
        )
        order = "" if is_accuracy else trajectory.order(measure.name)
        rows.append([measure.name, str(measure.final), str(when), when.interval, order])
    columns = ["measure", "final model", "emerges", "interval", "relative to accuracy"]
    protocol = Table(("setting", "value"), [list(pair) for pair in trajectory.protocol], align="ll")
    sections = [
        ("Measures over training", _INTRO, [block]),
        ("Emergence", head, [Table(columns, rows)]),
        ("Protocol", "", [protocol]),
    ]
    notes = [Note(line) for line in lines if line.startswith(_headline_measures(trajectory))]
    title = f"Training of {trajectory.final}"
    whole = page(title, sections, notes, f"Pattern: {trajectory.pattern}")
    return Picture(title, whole.body, block_picture(title, block, _draw_panels(block)).draw)


def _headline_measures(trajectory: TrainingTrajectory) -> tuple[str, ...]:
    """Measures at the top of the page: accuracies, the circuit, and logit shifts."""
    shifts = (f"{variable} {LOGIT_SHIFT}:" for variable in trajectory.sites)
    return (*_accuracies(trajectory), f"{CIRCUIT_ONLY}:", *shifts)


def _accuracies(trajectory: TrainingTrajectory) -> list[str]:
    return [m.name for m in trajectory.measures if m.name == m.accuracy_name]


def trajectory_chart(trajectory: TrainingTrajectory) -> LineChartBlock:
    """Panels of a trajectory: answers, each variable, the circuit."""
    known = {measure.name for measure in trajectory.measures}
    panels = [("Answers", [*_accuracies(trajectory), LOGIT_DIFF])]
    for variable, site in trajectory.sites.items():
        names = [f"{variable} {kind}" for kind in (INTERCHANGE_ACCURACY, LOGIT_SHIFT, AT_OWN_SITE)]
        accuracy = trajectory.measure(names[0]).accuracy_name
        panels.append((f"{variable}, at {site}", [*(n for n in names if n in known), accuracy]))
    panels.append(
        (f"Final circuit, {trajectory.edges} edges", [CIRCUIT_ONLY, EDGE_OVERLAP, LOGIT_DIFF])
    )
    return LineChartBlock(
        ticks=tuple(f"{step:,}" for step in trajectory.steps),
        panels=[
            (title, [_line_series(trajectory, name) for name in names]) for title, names in panels
        ],
    )


def _line_series(trajectory: TrainingTrajectory, name: str) -> LineSeries:
    measure, when = trajectory.measure(name), trajectory.emergence(name)
    return LineSeries(
        name=name,
        values=tuple(v.value for v in measure.values),
        low=tuple(v.low for v in measure.values),
        high=tuple(v.high for v in measure.values),
        emergence_index=None if when.step is None else trajectory.steps.index(when.step),
        chance=max(measure.nulls, default=None),
        random=measure.random_interval[1] if measure.random_interval else None,
        other_seeds=tuple(e.value for e in (measure.other_seeds or {}).values()),
    )


def _draw_panels(block: LineChartBlock) -> Drawing:
    parts: list[Part] = []
    y_range, top, bottom = _value_range(block), _TOP_MARGIN, 0.0
    width = _COLUMN_WIDTH - _LEFT_MARGIN - _RIGHT_MARGIN
    for at, (title, lines) in enumerate(block.panels):
        column = at % _COLUMNS
        if at and not column:
            top = bottom + _GAP + _TOP_MARGIN
        left = column * _COLUMN_WIDTH + _LEFT_MARGIN
        box = (left, top, width, _PANEL_HEIGHT)
        ticks = [(float(n), text) for n, text in enumerate(block.ticks)]
        # Lines begin and end inside of the frame: triangles are at its right edge.
        axes = Axes(box, (-0.4, len(block.ticks) - 0.5), y_range)
        parts += axes.frame(title, ticks, _value_ticks(y_range))
        parts.append(TextLabel(left + width / 2, top + _PANEL_HEIGHT + 28, "training step",
                               10, "middle", "soft"))  # fmt: skip
        for color, line in zip(PALETTE, lines, strict=False):
            parts += _draw_line(axes, line, color, block.ticks)
        entries = [
            (line.name, lambda x, y, color=color: _mark(x, y, color))
            for color, line in zip(PALETTE, lines, strict=False)
        ]
        marks, end = legend(entries, (left, top + _PANEL_HEIGHT + _AXIS_HEIGHT), width)
        parts += marks
        bottom = max(bottom, end)
    text = f"{len(block.panels)} panels of lines over {len(block.ticks)} checkpoints."
    return Drawing(WIDTH, bottom, tuple(parts), "Measures over training", text)


def _value_range(block: LineChartBlock) -> tuple[float, float]:
    values = [
        v for _, lines in block.panels for line in lines for v in (*line.values, *line.other_seeds)
    ]
    known = [value for value in values if np.isfinite(value)]
    return max(min(0.0, *known), -0.5), min(max(1.05, *known), 2.0)


def _value_ticks(y_range: tuple[float, float]) -> list[tuple[float, str]]:
    halves = range(math.ceil(2 * y_range[0]), math.floor(2 * y_range[1] + 1e-9) + 1)
    return [(n / 2, typographic_minus(f"{n / 2:g}")) for n in halves]


def _draw_line(axes: Axes, line: LineSeries, color: str, ticks: Sequence[str]) -> list[Part]:
    left, right = axes.box[0], axes.box[0] + axes.box[2]
    parts: list[Part] = []
    for level, dash in ((line.chance, 2.0), (line.random, 7.0)):
        if level is not None:
            start, end = (left, axes.y(level)), (right, axes.y(level))
            parts.append(Curve((start, start, end, end), color, 1.2, dash=(dash, dash)))
    dots = [(axes.x(float(at)), axes.y(v)) for at, v in enumerate(line.values) if np.isfinite(v)]
    parts += [
        DrawingShape((one, two), stroke=color, stroke_width=1.8) for one, two in pairwise(dots)
    ]
    for at, value in enumerate(line.values):
        if not np.isfinite(value):
            continue
        x, y = axes.x(float(at)), axes.y(value)
        if at == line.emergence_index:
            ring = DrawingShape(((x, y),), "paper", color, 1.8, _RING_RADIUS)
            parts.append(Group(f"{line.name} emerges by step {ticks[at]}", (ring,)))
        low, high = line.low[at], line.high[at]
        bar = DrawingShape(((x, axes.y(low)), (x, axes.y(high))), stroke=color, stroke_width=1)
        dot = DrawingShape(((x, y),), color, radius=_DOT_RADIUS)
        text = f"{line.name}, step {ticks[at]}: {value:.2f} [{low:.2f}, {high:.2f}]"
        parts.append(Group(typographic_minus(text), (bar, dot)))
    for value in line.other_seeds:
        x, y = right - 6, axes.y(value)
        triangle = DrawingShape(((x + 5, y - 4.5), (x + 5, y + 4.5), (x - 3, y)), color)
        text = typographic_minus(f"{line.name}, other-seed model: {value:.2f}")
        parts.append(Group(text, (triangle,)))
    return parts


def _mark(x: Pixels, y: Pixels, color: str) -> tuple[DrawingShape, DrawingShape]:
    line = DrawingShape(((x - 8, y), (x + 8, y)), stroke=color, stroke_width=1.8)
    return line, DrawingShape(((x, y),), color, radius=_DOT_RADIUS)


def _table(block: LineChartBlock) -> Table:
    series = dict.fromkeys(line for _, lines in block.panels for line in lines)
    rows = [
        [line.name, *(typographic_minus(f"{v:.2f}") if np.isfinite(v) else "" for v in line.values)]
        for line in series
    ]
    return Table(("measure", *block.ticks), rows)
