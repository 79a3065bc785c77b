"""How fast students learn what may follow "My name is", from labels of several kinds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.errors import FigureError
from probes.experiments.soft_labels.curves import TARGETS, Needed, Point, curve, needed
from probes.experiments.soft_labels.plan import ARMS, COUNTING, TEACHER, NameRow
from probes.viz.blocks import Block, Table, caption
from probes.viz.drawing import (
    PALETTE,
    Group,
    Part,
    Pixels,
    Shape,
    Sheet,
    Words,
    box,
    details,
    pictured,
    scrolled,
)
from probes.viz.picture import Picture

_COLOURS = {
    "soft": PALETTE[0], "8 drawn": PALETTE[5], "soft, 64 texts": PALETTE[5],
    "hard": PALETTE[4], "1 drawn": PALETTE[1], "hard, 64 texts": PALETTE[1],
    "top 8": PALETTE[2], "top 1": PALETTE[6], "smoothed": PALETTE[3],
    "permuted": PALETTE[7], COUNTING: "soft", TEACHER: "soft",
}  # fmt: skip
_STYLE = (
    "<style>.pv.pv .pv-names g>path:first-of-type{fill-opacity:.16;stroke:none}"
    ".pv.pv .pv-names g:hover>path:first-of-type{fill-opacity:.4}</style>"
)
_WIDE, _HIGH, _ROOM, _LEFT, _TOP = 300.0, 230.0, 104.0, 40.0, 44.0
_ACROSS, _DOWN = 460.0, 318.0
_GAP = 13.0


@dataclass(frozen=True, slots=True)
class _Panel:
    """What one panel shows."""

    title: str
    says: str
    measure: str
    arms: tuple[str, ...]

    @property
    def logs(self) -> bool:
        return self.measure.endswith("_kl")


_MAIN = tuple(name for name, arm in ARMS.items() if not arm.like)
_FEW = ("soft", "hard", "soft, 64 texts", "hard, 64 texts")
_PANELS = (
    _Panel(
        "After “My name is”", "KL(truth || student), bits", "name_kl", (*_MAIN, COUNTING, TEACHER)
    ),
    _Panel("Where the teacher is in doubt", "KL(teacher || student), bits", "ambiguous_kl", _MAIN),
    _Panel("Where the teacher is certain", "share of tokens right", "certain", _MAIN),
    _Panel("New texts, or 64 again and again", "KL(teacher || student), bits; in doubt",
           "ambiguous_kl", _FEW),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class NamesBlock(Block):
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
        numbers = details(needed_table(self.rows))
        return caption(self.caption) + _STYLE + scrolled(_scene(self.rows), "pv-names") + numbers

    def __repr__(self) -> str:
        return f"NamesBlock({len(self.rows)} rows)"


def names_picture(rows: Sequence[NameRow], *, title: str = "") -> Picture:
    """Draw how fast students learn from each kind of labels.

    Raises:
        FigureError: The table holds no run that counts.
    """
    says = title or "What may follow “My name is ⟨?⟩”: how fast each kind of labels teaches it"
    # Paper has no half-seen colours, so that bands are pale there.
    return pictured(says, NamesBlock(rows), _scene(rows, pale=True))


def needed_table(rows: Sequence[NameRow], *, measure: str = "name_kl") -> Table:
    """Tabulate how many examples each arm needs to come down to each divergence."""
    arms = [arm for arm in ARMS if any(r.arm == arm and r.stage == "run" for r in rows)]
    cells = [
        [arm, *(_said(needed(rows, arm, target, measure=measure)) for target in TARGETS)]
        for arm in arms
    ]
    return Table(
        ["labels", *(f"{target:g} bits" for target in TARGETS)],
        cells,
        caption="Examples needed, and times what soft labels need [95 % over seeds]",
    )


def _said(one: Needed) -> str:
    if one.examples is None:
        more = "" if np.isnan(one.at_least) else f", > {one.at_least:.1f}x"
        return f"not reached by {one.seeds - one.reached} of {one.seeds}{more}"
    ratio = "" if one.ratio is None else f" ({one.ratio}x)"
    return f"{one.examples.value:.0f}{ratio}"


def _scene(rows: Sequence[NameRow], *, pale: bool = False) -> Sheet:
    parts: list[Part] = []
    for at, panel in enumerate(_PANELS):
        left, top = _LEFT + _ACROSS * (at % 2), _TOP + _DOWN * (at // 2)
        parts += _drawn(panel, rows, _Axes.of(panel, rows, left, top), pale=pale)
    note = "Bands are 95 % intervals over seeds. Both axes of a divergence are logarithms."
    parts.append(Words(0, 2 * _DOWN + 12, note, 10.5, colour="soft"))
    arms = len({row.arm for row in rows if row.stage == "run"})
    says = f"Four panels with curves of {arms} arms against the examples seen."
    return Sheet(2 * _ACROSS - 4, 2 * _DOWN + 18, tuple(parts), "Learning curves", says)


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where numbers stand in a panel."""

    left: Pixels
    top: Pixels
    examples: tuple[float, float]
    values: tuple[float, float]
    logs: bool

    @classmethod
    def of(cls, panel: _Panel, rows: Sequence[NameRow], left: Pixels, top: Pixels) -> "_Axes":
        points = [p for arm in panel.arms for p in curve(rows, arm, panel.measure)]
        seen = [p.examples for p in points if p.examples]
        values = [p.value.value for p in points if np.isfinite(p.value.value)]
        low, high = (min(values) / 1.15, max(values) * 1.15) if panel.logs else (0.0, 1.0)
        return cls(left, top, (float(min(seen)), float(max(seen))), (low, high), panel.logs)

    def x(self, examples: Pixels) -> float:
        low, high = np.log(self.examples)
        return self.left + _WIDE * float((np.log(examples) - low) / max(high - low, 1e-9))

    def y(self, value: Pixels) -> float:
        low, high, at = (
            self.values[0],
            self.values[1],
            min(max(value, self.values[0]), self.values[1]),
        )
        if self.logs:
            low, high, at = float(np.log(low)), float(np.log(high)), float(np.log(at))
        return self.top + _HIGH * (1 - (at - low) / max(high - low, 1e-9))


def _drawn(panel: _Panel, rows: Sequence[NameRow], axes: _Axes, *, pale: bool) -> list[Part]:
    parts = _frame(panel, axes)
    found = {arm: curve(rows, arm, panel.measure) for arm in panel.arms}
    found = {arm: points for arm, points in found.items() if points}
    lines = [_line(arm, points, axes, pale=pale) for arm, points in found.items()]
    if pale:
        # On paper all bands lie under all lines.
        bands = [part for line in lines for part in line.parts[:1]]
        parts += [*bands, *(part for line in lines for part in line.parts[1:])]
    else:
        parts += lines
    ends = {arm: axes.y(points[-1].value.value) for arm, points in found.items()}
    places = spread(list(ends.values()), _GAP, axes.top, axes.top + _HIGH)
    for (arm, end), place in zip(ends.items(), places, strict=True):
        edge, colour = axes.left + _WIDE, _COLOURS[arm]
        parts.append(Shape(((edge + 2, end), (edge + 12, place)), edge=colour))
        parts.append(Words(edge + 15, place + 3.5, arm, 10.5, colour="ink"))
    return parts


def _line(arm: str, points: Sequence[Point], axes: _Axes, *, pale: bool) -> Group:
    colour = _COLOURS[arm]
    if arm == TEACHER:
        y = axes.y(points[0].value.value)
        # The first shape of a group is its band.
        flat = Shape(((axes.left, y), (axes.left + _WIDE, y)), edge=colour)
        return Group(f"the teacher itself: {points[0].value}", (flat, flat))
    shown = [(axes.x(p.examples), p.value) for p in points]
    over = [(x, axes.y(value.high)) for x, value in shown]
    under = [(x, axes.y(value.low)) for x, value in reversed(shown)]
    band = Shape((*over, *under), _paled(colour) if pale else colour)
    steps = [(x, axes.y(value.value)) for x, value in shown]
    last = points[-1]
    says = f"{arm}: {last.value} after {last.examples} examples, {last.seeds} seeds"
    thick = 1.2 if arm == COUNTING else 2.0
    # There and back again: a closed shape that is but a line.
    path = Shape((*steps, *reversed(steps[1:-1])), edge=colour, thick=thick)
    return Group(says, (band, path))


def _paled(colour: str) -> str:
    if not colour.startswith("#"):
        return "#eceef1"
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.16 * (255 - part)):02x}" for part in parts)


def _frame(panel: _Panel, axes: _Axes) -> list[Part]:
    left, top, bottom = axes.left, axes.top, axes.top + _HIGH
    parts: list[Part] = [
        Words(left, top - 26, panel.title, 13, bold=True),
        Words(left, top - 10, panel.says, 10.5, colour="soft"),
    ]
    for tick in _ticks(axes):
        y = axes.y(tick)
        parts.append(Shape(((left, y), (left + _WIDE, y)), edge="line"))
        parts.append(Words(left - 5, y + 3.5, f"{tick:g}", 10, "end", "soft"))
    low, high = axes.examples
    power = 2.0 ** int(np.ceil(np.log2(low)))
    while power <= high:
        x = axes.x(power)
        parts.append(Shape(((x, bottom), (x, bottom + 4)), edge="soft"))
        parts.append(Words(x, bottom + 15, f"{power:g}", 10, "middle", "soft"))
        power *= 2
    parts.append(Words(left + _WIDE / 2, bottom + 29, "examples seen", 10.5, "middle", "soft"))
    return [*parts, box(left, top, _WIDE, _HIGH, "none", "line")]


def _ticks(axes: _Axes) -> list[float]:
    low, high = axes.values
    if not axes.logs:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    round_ones = (digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 5))
    return [tick for tick in round_ones if low <= tick <= high]


def spread(wanted: Sequence[Pixels], gap: Pixels, low: Pixels, high: Pixels) -> list[float]:
    """Return places near the wanted ones, in their order, at least a gap apart if there is room."""
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    groups: list[list[float]] = []  # The middle of a run of labels, and how many they are.
    for at in order:
        groups.append([wanted[at], 1])
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
    found = [0.0] * len(wanted)
    for at, place in zip(order, places, strict=True):
        found[at] = place
    return found
