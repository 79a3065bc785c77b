"""Figure of the "My name is" study: learning curves for each kind of label."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from probes.errors import FigureError
from probes.experiments.soft_labels.curves import (
    KL_TARGETS,
    ExamplesNeeded,
    LearningCurvePoint,
    arm_curve,
    examples_needed,
)
from probes.experiments.soft_labels.plan import ARMS, COUNTING, TEACHER, NameRow
from probes.viz.blocks import Block, Table, caption_html
from probes.viz.drawing import (
    PALETTE,
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
from probes.viz.picture import Picture
from probes.viz.plots.axes import FONT_SIZE, Axes, Tick

_ARM_COLORS = {
    "soft": PALETTE[0], "8 drawn": PALETTE[5], "soft, 64 texts": PALETTE[5],
    "hard": PALETTE[4], "1 drawn": PALETTE[1], "hard, 64 texts": PALETTE[1],
    "top 8": PALETTE[2], "top 1": PALETTE[6], "smoothed": PALETTE[3],
    "permuted": PALETTE[7], COUNTING: "soft", TEACHER: "soft",
}  # fmt: skip
_STYLE = (
    "<style>.pv.pv .pv-names g>path:first-of-type{fill-opacity:.16;stroke:none}"
    ".pv.pv .pv-names g:hover>path:first-of-type{fill-opacity:.4}</style>"
)
_WIDTH, _HEIGHT, _LEFT, _TOP = 300.0, 230.0, 56.0, 28.0
_STEP_X, _STEP_Y = 460.0, 300.0
_LABEL_GAP = 13.0


@dataclass(frozen=True, slots=True)
class _Panel:
    """Panel: one measure of some arms."""

    title: str
    y_label: str
    measure: str
    arms: tuple[str, ...]

    @property
    def log_y(self) -> bool:
        return self.measure.endswith("_kl")


_MAIN_ARMS = tuple(name for name, arm in ARMS.items() if not arm.rate_from)
_FEW_TEXT_ARMS = ("soft", "hard", "soft, 64 texts", "hard, 64 texts")
_TEACHER_KL = "KL(teacher || student), bits"
_PANELS = (
    _Panel("After “My name is”", "KL(truth || student), bits", "name_kl",
           (*_MAIN_ARMS, COUNTING, TEACHER)),
    _Panel("Ambiguous tokens", _TEACHER_KL, "ambiguous_kl", _MAIN_ARMS),
    _Panel("Certain tokens", "accuracy", "certain", _MAIN_ARMS),
    _Panel("Ambiguous tokens, 64 texts repeated", _TEACHER_KL, "ambiguous_kl",
           _FEW_TEXT_ARMS),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class NameCurvesBlock(Block):
    """Curves of all arms against examples seen, with bands over seeds.

    Attributes:
        rows: Table of the study.
        caption: Line above the panels.
    """

    rows: Sequence[NameRow]
    caption: str = ""

    def __post_init__(self) -> None:
        if not any(row.stage == "run" for row in self.rows):
            raise FigureError("The table has no row of stage 'run', so there is nothing to draw")

    @property
    def body(self) -> str:
        """Drawing, and its numbers in a collapsed table."""
        drawing = scrollable_svg(_draw_panels(self.rows), "pv-names")
        numbers = collapsed_table(examples_needed_table(self.rows))
        return caption_html(self.caption) + _STYLE + drawing + numbers

    def __repr__(self) -> str:
        return f"NameCurvesBlock({len(self.rows)} rows)"


def names_picture(rows: Sequence[NameRow], *, title: str = "") -> Picture:
    """Learning curves of the study.

    Raises:
        FigureError: The table has no finished run.
    """
    title = title or "Learning the token after “My name is” from each kind of label"
    # A file has no transparent colors, so bands are pale there.
    return block_picture(title, NameCurvesBlock(rows), _draw_panels(rows, faded=True))


def examples_needed_table(rows: Sequence[NameRow], *, measure: str = "name_kl") -> Table:
    """Examples that each arm needs to reach each divergence."""
    arms = [arm for arm in ARMS if any(r.arm == arm and r.stage == "run" for r in rows)]
    needed = {
        arm: [examples_needed(rows, arm, target, measure=measure) for target in KL_TARGETS]
        for arm in arms
    }
    return Table(
        ["labels", *(f"{target:g} bits" for target in KL_TARGETS)],
        [[arm, *map(_needed_text, row)] for arm, row in needed.items()],
        caption="Examples needed, and ratio to soft labels [95 % over seeds]",
    )


def _needed_text(needed: ExamplesNeeded) -> str:
    if needed.examples is None:
        more = "" if np.isnan(needed.at_least) else f", > {needed.at_least:.1f}x"
        return f"not reached by {needed.seeds - needed.reached} of {needed.seeds}{more}"
    ratio = "" if needed.ratio is None else f" ({needed.ratio}x)"
    return f"{needed.examples.value:.0f}{ratio}"


def _draw_panels(rows: Sequence[NameRow], *, faded: bool = False) -> Drawing:
    parts: list[Part] = []
    for at, panel in enumerate(_PANELS):
        left, top = _LEFT + _STEP_X * (at % 2), _TOP + _STEP_Y * (at // 2)
        curves = {arm: arm_curve(rows, arm, panel.measure) for arm in panel.arms}
        curves = {arm: points for arm, points in curves.items() if points}
        axes = _panel_axes(panel, [p for points in curves.values() for p in points], left, top)
        parts += _draw_curves(panel, curves, axes, faded=faded)
    note = "Bands are 95 % intervals over seeds. Divergences are on logarithmic axes."
    parts.append(TextLabel(0, 2 * _STEP_Y + 12, note, FONT_SIZE, color="soft"))
    arms = len({row.arm for row in rows if row.stage == "run"})
    text = f"Four panels with curves of {arms} arms against the examples seen."
    return Drawing(2 * _STEP_X + 12, 2 * _STEP_Y + 18, tuple(parts), "Learning curves", text)


def _panel_axes(
    panel: _Panel, points: Sequence[LearningCurvePoint], left: Pixels, top: Pixels
) -> Axes:
    examples = [float(p.examples) for p in points if p.examples]
    values = [p.value.value for p in points if np.isfinite(p.value.value)]
    y_range = (min(values) / 1.15, max(values) * 1.15) if panel.log_y else (0.0, 1.0)
    box = (left, top, _WIDTH, _HEIGHT)
    return Axes(box, (min(examples), max(examples)), y_range, log_x=True, log_y=panel.log_y)


def _draw_curves(
    panel: _Panel,
    curves: dict[str, list[LearningCurvePoint]],
    axes: Axes,
    *,
    faded: bool,
) -> list[Part]:
    left, top, width, height = axes.box
    parts = axes.frame(panel.title, _example_ticks(axes), _value_ticks(axes))
    labels = (
        TextLabel(left + width / 2, top + height + 30, "examples seen", color="soft",
                  size=FONT_SIZE, anchor="middle"),
        TextLabel(left - 40, top + height / 2, panel.y_label, color="soft",
                  size=FONT_SIZE, anchor="middle", rotated=True),
    )  # fmt: skip
    groups = [_draw_curve(arm, points, axes, faded=faded) for arm, points in curves.items()]
    # Pale bands are opaque: all of them lie under all lines.
    shapes = [group.parts[at] for at in (0, 1) for group in groups] if faded else groups
    ends = {arm: axes.y(points[-1].value.value) for arm, points in curves.items()}
    label_y = separate_labels(list(ends.values()), _LABEL_GAP, top, top + height)
    for (arm, end), y in zip(ends.items(), label_y, strict=True):
        right = left + width
        parts.append(DrawingShape(((right + 2, end), (right + 12, y)), stroke=_ARM_COLORS[arm]))
        parts.append(TextLabel(right + 15, y + 3.5, arm, FONT_SIZE))
    return [*parts, *labels, *shapes]


def _draw_curve(
    arm: str, points: Sequence[LearningCurvePoint], axes: Axes, *, faded: bool
) -> Group:
    """Band and line of one arm."""
    color = _ARM_COLORS[arm]
    if arm == TEACHER:
        line = axes.horizontal(points[0].value.value, color)
        return Group(f"the teacher itself: {points[0].value}", (line, line))
    x = [axes.x(float(p.examples)) for p in points]
    high, low, middle = (
        [(at, axes.y(getattr(p.value, end))) for at, p in zip(x, points, strict=True)]
        for end in ("high", "low", "value")
    )
    band = DrawingShape((*high, *reversed(low)), _fade_color(color) if faded else color)
    # Control points at the end of a segment make it straight.
    corners = (middle[0], *(point for point in middle[1:] for _ in range(3)))
    line = Curve(corners, color, 1.2 if arm == COUNTING else 2.0)
    last = points[-1]
    text = f"{arm}: {last.value} after {last.examples} examples, {last.seeds} seeds"
    return Group(text, (band, line))


def _fade_color(color: str) -> str:
    if not color.startswith("#"):
        return "#eceef1"
    parts = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.16 * (255 - part)):02x}" for part in parts)


def _example_ticks(axes: Axes) -> Iterator[Tick]:
    low, high = axes.x_range
    for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1):
        yield 2.0**power, f"{2**power}"


def _value_ticks(axes: Axes) -> list[Tick]:
    low, high = axes.y_range
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    if axes.log_y:
        ticks = [digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 5)]
    return [(tick, f"{tick:g}") for tick in ticks if low <= tick <= high]


def separate_labels(
    positions: Sequence[Pixels], gap: Pixels, low: Pixels, high: Pixels
) -> list[float]:
    """Positions near the given ones, in their order, at least a gap apart if there is room."""
    order = sorted(range(len(positions)), key=lambda at: positions[at])
    low, high = float(low), float(high)
    gap = min(gap, (high - low) / max(len(positions) - 1, 1))
    groups: list[tuple[float, int]] = []  # Center and number of labels that are packed together.
    for at in order:
        groups.append((positions[at], 1))
        while len(groups) > 1:
            (first, many), (second, more) = groups[-2:]
            if second - first >= gap * (many + more) / 2:
                break
            groups[-2:] = [((first * many + second * more) / (many + more), many + more)]
    packed = [center + gap * (k - (many - 1) / 2) for center, many in groups for k in range(many)]
    packed = [max(y, low + gap * at) for at, y in enumerate(packed)]
    packed = [min(y, high - gap * at) for at, y in enumerate(reversed(packed))][::-1]
    return [y for _, y in sorted(zip(order, packed, strict=True))]
