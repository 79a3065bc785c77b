"""How fast students learn what may follow "My name is", from labels of several kinds."""

from collections.abc import Sequence
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
    Drawing,
    DrawingShape,
    Group,
    Part,
    Pixels,
    TextLabel,
    collapsed_table,
    rectangle,
    scrollable_svg,
)
from probes.viz.figure import block_picture
from probes.viz.picture import Picture

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
_PANEL_WIDTH, _PANEL_HEIGHT, _LABEL_WIDTH, _LEFT, _TOP = 300.0, 230.0, 104.0, 40.0, 44.0
_PANEL_STEP_X, _PANEL_STEP_Y = 460.0, 318.0
_GAP = 13.0


@dataclass(frozen=True, slots=True)
class _CurvePanel:
    """What one panel shows."""

    title: str
    y_label: str
    measure: str
    arms: tuple[str, ...]

    @property
    def log_scale(self) -> bool:
        return self.measure.endswith("_kl")


_MAIN_ARMS = tuple(name for name, arm in ARMS.items() if not arm.rate_from)
_FEW_TEXT_ARMS = ("soft", "hard", "soft, 64 texts", "hard, 64 texts")
_PANELS = (
    _CurvePanel(
        "After “My name is”", "KL(truth || student), bits", "name_kl", (*_MAIN_ARMS, COUNTING, TEACHER)
    ),
    _CurvePanel("Where the teacher is in doubt", "KL(teacher || student), bits", "ambiguous_kl", _MAIN_ARMS),
    _CurvePanel("Where the teacher is certain", "share of tokens right", "certain", _MAIN_ARMS),
    _CurvePanel("New texts, or 64 again and again", "KL(teacher || student), bits; in doubt",
           "ambiguous_kl", _FEW_TEXT_ARMS),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class NameCurvesBlock(Block):
    """Curves of all arms against the examples seen, with bands over seeds.

    Attributes:
        rows: A table of "My name is ⟨?⟩".
        caption: A line above the panels.
    """

    rows: Sequence[NameRow]
    caption: str = ""

    def __post_init__(self) -> None:
        if not any(row.stage == "run" for row in self.rows):
            raise FigureError("There is nothing to draw: the table holds no run that counts")

    @property
    def body(self) -> str:
        """The drawing with its numbers below."""
        numbers = collapsed_table(examples_needed_table(self.rows))
        return (
            caption_html(self.caption)
            + _STYLE
            + scrollable_svg(_draw_panels(self.rows), "pv-names")
            + numbers
        )

    def __repr__(self) -> str:
        return f"NamesBlock({len(self.rows)} rows)"


def names_picture(rows: Sequence[NameRow], *, title: str = "") -> Picture:
    """Draw how fast students learn from each kind of labels.

    Raises:
        FigureError: The table holds no run that counts.
    """
    says = title or "What may follow “My name is ⟨?⟩”: how fast each kind of labels teaches it"
    # Paper has no half-seen colors, so that bands are pale there.
    return block_picture(says, NameCurvesBlock(rows), _draw_panels(rows, faded=True))


def examples_needed_table(rows: Sequence[NameRow], *, measure: str = "name_kl") -> Table:
    """Tabulate how many examples each arm needs to come down to each divergence."""
    arms = [arm for arm in ARMS if any(r.arm == arm and r.stage == "run" for r in rows)]
    cells = [
        [
            arm,
            *(
                _needed_text(examples_needed(rows, arm, target, measure=measure))
                for target in KL_TARGETS
            ),
        ]
        for arm in arms
    ]
    return Table(
        ["labels", *(f"{target:g} bits" for target in KL_TARGETS)],
        cells,
        caption="Examples needed, and times what soft labels need [95 % over seeds]",
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
        left, top = _LEFT + _PANEL_STEP_X * (at % 2), _TOP + _PANEL_STEP_Y * (at // 2)
        parts += _draw_curves(
            panel, rows, _CurveAxes.for_panel(panel, rows, left, top), faded=faded
        )
    note = "Bands are 95 % intervals over seeds. Both axes of a divergence are logarithms."
    parts.append(TextLabel(0, 2 * _PANEL_STEP_Y + 12, note, 10.5, color="soft"))
    arms = len({row.arm for row in rows if row.stage == "run"})
    says = f"Four panels with curves of {arms} arms against the examples seen."
    return Drawing(
        2 * _PANEL_STEP_X - 4, 2 * _PANEL_STEP_Y + 18, tuple(parts), "Learning curves", says
    )


@dataclass(frozen=True, slots=True)
class _CurveAxes:
    """Where numbers stand in a panel."""

    left: Pixels
    top: Pixels
    examples: tuple[float, float]
    values: tuple[float, float]
    log_scale: bool

    @classmethod
    def for_panel(
        cls, panel: _CurvePanel, rows: Sequence[NameRow], left: Pixels, top: Pixels
    ) -> "_CurveAxes":
        points = [p for arm in panel.arms for p in arm_curve(rows, arm, panel.measure)]
        seen = [p.examples for p in points if p.examples]
        values = [p.value.value for p in points if np.isfinite(p.value.value)]
        low, high = (min(values) / 1.15, max(values) * 1.15) if panel.log_scale else (0.0, 1.0)
        return cls(left, top, (float(min(seen)), float(max(seen))), (low, high), panel.log_scale)

    def x(self, examples: Pixels) -> float:
        low, high = np.log(self.examples)
        return self.left + _PANEL_WIDTH * float((np.log(examples) - low) / max(high - low, 1e-9))

    def y(self, value: Pixels) -> float:
        low, high, at = (
            self.values[0],
            self.values[1],
            min(max(value, self.values[0]), self.values[1]),
        )
        if self.log_scale:
            low, high, at = float(np.log(low)), float(np.log(high)), float(np.log(at))
        return self.top + _PANEL_HEIGHT * (1 - (at - low) / max(high - low, 1e-9))


def _draw_curves(
    panel: _CurvePanel, rows: Sequence[NameRow], axes: _CurveAxes, *, faded: bool
) -> list[Part]:
    parts = _frame(panel, axes)
    found = {arm: arm_curve(rows, arm, panel.measure) for arm in panel.arms}
    found = {arm: points for arm, points in found.items() if points}
    lines = [_draw_curve(arm, points, axes, faded=faded) for arm, points in found.items()]
    if faded:
        # On paper all bands lie under all lines.
        bands = [part for line in lines for part in line.parts[:1]]
        parts += [*bands, *(part for line in lines for part in line.parts[1:])]
    else:
        parts += lines
    ends = {arm: axes.y(points[-1].value.value) for arm, points in found.items()}
    places = separate_labels(list(ends.values()), _GAP, axes.top, axes.top + _PANEL_HEIGHT)
    for (arm, end), place in zip(ends.items(), places, strict=True):
        edge, color = axes.left + _PANEL_WIDTH, _ARM_COLORS[arm]
        parts.append(DrawingShape(((edge + 2, end), (edge + 12, place)), stroke=color))
        parts.append(TextLabel(edge + 15, place + 3.5, arm, 10.5, color="ink"))
    return parts


def _draw_curve(
    arm: str, points: Sequence[LearningCurvePoint], axes: _CurveAxes, *, faded: bool
) -> Group:
    color = _ARM_COLORS[arm]
    if arm == TEACHER:
        y = axes.y(points[0].value.value)
        # The first shape of a group is its band.
        flat = DrawingShape(((axes.left, y), (axes.left + _PANEL_WIDTH, y)), stroke=color)
        return Group(f"the teacher itself: {points[0].value}", (flat, flat))
    shown = [(axes.x(p.examples), p.value) for p in points]
    over = [(x, axes.y(value.high)) for x, value in shown]
    under = [(x, axes.y(value.low)) for x, value in reversed(shown)]
    band = DrawingShape((*over, *under), _fade_color(color) if faded else color)
    steps = [(x, axes.y(value.value)) for x, value in shown]
    last = points[-1]
    says = f"{arm}: {last.value} after {last.examples} examples, {last.seeds} seeds"
    thick = 1.2 if arm == COUNTING else 2.0
    # There and back again: a closed shape that is but a line.
    path = DrawingShape((*steps, *reversed(steps[1:-1])), stroke=color, stroke_width=thick)
    return Group(says, (band, path))


def _fade_color(color: str) -> str:
    if not color.startswith("#"):
        return "#eceef1"
    parts = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.16 * (255 - part)):02x}" for part in parts)


def _frame(panel: _CurvePanel, axes: _CurveAxes) -> list[Part]:
    left, top, bottom = axes.left, axes.top, axes.top + _PANEL_HEIGHT
    parts: list[Part] = [
        TextLabel(left, top - 26, panel.title, 13, bold=True),
        TextLabel(left, top - 10, panel.y_label, 10.5, color="soft"),
    ]
    for tick in _ticks(axes):
        y = axes.y(tick)
        parts.append(DrawingShape(((left, y), (left + _PANEL_WIDTH, y)), stroke="line"))
        parts.append(TextLabel(left - 5, y + 3.5, f"{tick:g}", 10, "end", "soft"))
    low, high = axes.examples
    power = 2.0 ** int(np.ceil(np.log2(low)))
    while power <= high:
        x = axes.x(power)
        parts.append(DrawingShape(((x, bottom), (x, bottom + 4)), stroke="soft"))
        parts.append(TextLabel(x, bottom + 15, f"{power:g}", 10, "middle", "soft"))
        power *= 2
    parts.append(
        TextLabel(left + _PANEL_WIDTH / 2, bottom + 29, "examples seen", 10.5, "middle", "soft")
    )
    return [*parts, rectangle((left, top, _PANEL_WIDTH, _PANEL_HEIGHT), "none", "line")]


def _ticks(axes: _CurveAxes) -> list[float]:
    low, high = axes.values
    if not axes.log_scale:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    round_ones = (digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 5))
    return [tick for tick in round_ones if low <= tick <= high]


def separate_labels(
    positions: Sequence[Pixels], gap: Pixels, low: Pixels, high: Pixels
) -> list[float]:
    """Return places near the wanted ones, in their order, at least a gap apart if there is room."""
    order = sorted(range(len(positions)), key=lambda at: positions[at])
    gap = min(gap, (high - low) / max(len(positions) - 1, 1))
    groups: list[list[float]] = []  # The middle of a run of labels, and how many they are.
    for at in order:
        groups.append([positions[at], 1])
        while len(groups) > 1:
            (first, many), (second, more) = groups[-2:]
            if second - first >= gap * (many + more) / 2:
                break
            groups[-2:] = [[(first * many + second * more) / (many + more), many + more]]
    places = []
    for middle, many in groups:
        places += [middle + gap * (k - (many - 1) / 2) for k in range(int(many))]
    for at, place in enumerate(places):
        places[at] = max(place, low + gap * at)
    for back in range(len(places)):
        at = len(places) - 1 - back
        places[at] = min(places[at], high - gap * back)
    found = [0.0] * len(positions)
    for at, place in zip(order, places, strict=True):
        found[at] = place
    return found
