"""The space itself: every prompt as a point on two axes, once for each model and colouring.

A prompt is one group of the drawing, with a point in each panel: so its text is written once, and
on hover it lights up in all panels together. Classes differ in shape as well as in colour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real

from probes.errors import FigureError
from probes.viz.blocks import Block, caption
from probes.viz.drawing import (
    PALETTE,
    WIDTH,
    Group,
    Part,
    Pixels,
    Point,
    Shape,
    Sheet,
    Words,
    box,
    fitted,
    headings,
    pictured,
    scrolled,
    shade,
    wide,
)
from probes.viz.html_text import minus, visible
from probes.viz.picture import Picture

MOST_CLASSES = 20
"""More classes than this cannot be told apart."""

Room = tuple[Pixels, Pixels, Pixels, Pixels]
Labels = Sequence[str] | Real[np.ndarray, " prompt"]

# An empty outline is a circle. Seven shapes and eight colours make 56 different pairs.
_OUTLINES: tuple[tuple[Point, ...], ...] = (
    (),
    ((-3, -3), (3, -3), (3, 3), (-3, 3)),
    ((0, -4), (4, 3), (-4, 3)),
    ((0, -4), (4, 0), (0, 4), (-4, 0)),
    ((0, 4), (4, -3), (-4, -3)),
    ((-3, -4), (3, 4), (-3, 4), (3, -4)),
    ((-4, -1), (-1, -1), (-1, -4), (1, -4), (1, -1), (4, -1),
     (4, 1), (1, 1), (1, 4), (-1, 4), (-1, 1), (-4, 1)),
)  # fmt: skip
_RADIUS, _PAD, _GAP = 3.2, 9.0, 16.0
_WIDEST, _NARROWEST = 300.0, 200.0
_FLATTEST = 0.62
"""Height of a panel beside its width at the least, for the title of its second axis."""


@dataclass(frozen=True, eq=False)
class Cloud:
    """The prompts of one model as points.

    Attributes:
        model: The name of the model.
        xy: Places on the two axes, in one unit; NaN is a prompt that this model was not given.
        shares: The share of variance on each axis, from 0 to 1; NaN if unknown.
        colours: For each colouring by name, a label or a number of each prompt.
        caption: A line under the name.
        axes: What the two axes are called; short, as the second runs upward.
    """

    model: str
    xy: Float[np.ndarray, "prompt 2"]
    shares: tuple[float, float]
    colours: Mapping[str, Labels]
    caption: str = ""
    axes: tuple[str, str] = ("axis 1", "axis 2")

    def __post_init__(self) -> None:
        if np.isinf(self.xy).any():
            raise FigureError(f"xy of {self.model!r} holds an infinite number: give NaN if missing")
        if any(share < 0 or share > 1 for share in self.shares):
            raise FigureError(f"shares of {self.model!r} are {self.shares}: give 0 to 1, or NaN")
        for name, values in self.colours.items():
            if len(values) != len(self.xy):
                raise FigureError(
                    f"{name!r} of {self.model!r} has {len(values)} values for {len(self.xy)} "
                    "points: give one for each"
                )


@dataclass(frozen=True, eq=False)
class ScatterBlock(Block):
    """Points of every model, once for each colouring: models in columns, colourings in rows.

    One model alone has its colourings side by side. Both axes of a panel have one scale.

    Attributes:
        prompts: The text of each point, the same in all models.
        clouds: The models.
        caption: A line above the panels.
    """

    prompts: Sequence[str]
    clouds: Sequence[Cloud]
    caption: str = ""

    def __post_init__(self) -> None:
        if not any(cloud.colours for cloud in self.clouds):
            raise FigureError("There is nothing to draw: give a model and a colouring")
        for cloud in self.clouds:
            if len(cloud.xy) != len(self.prompts):
                raise FigureError(
                    f"{cloud.model!r} has {len(cloud.xy)} points for {len(self.prompts)} prompts: "
                    "give every model all prompts in one order, NaN where it was not given one"
                )
        for name in _names(self.clouds):
            _scale(name, self.clouds)

    @property
    def body(self) -> str:
        """The drawing with its caption."""
        return caption(self.caption) + scrolled(_scene(self), "pv-cloud")

    def __repr__(self) -> str:
        return f"ScatterBlock({len(self.clouds)} models, {len(self.prompts)} prompts)"


def scatter_picture(block: ScatterBlock, *, title: str = "") -> Picture:
    """Draw points of one or several models, with a title above."""
    return pictured(title or "Prompts on two axes", block, _scene(block))


@dataclass(frozen=True, slots=True)
class _Scale:
    """A colouring's classes, or the ends of its numbers."""

    classes: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    missing: bool = False

    def mark(self, value: object, x: Pixels, y: Pixels) -> Shape:
        if isinstance(value, str):
            at = self.classes.index(value)
            outline = _OUTLINES[at % len(_OUTLINES)]
            fill = PALETTE[at % len(PALETTE)]
            points = tuple((x + dx, y + dy) for dx, dy in outline) or ((x, y),)
            return Shape(points, fill, radius=_RADIUS)
        number = float(value)  # pyright: ignore[reportArgumentType]
        if not np.isfinite(number):
            return Shape(((x, y),), "wash", "soft", radius=_RADIUS)
        unit = (number - self.low) / ((self.high - self.low) or 1.0)
        # On a dark page the darkest would vanish without a rim.
        return Shape(((x, y),), shade(unit), "soft", radius=_RADIUS)


def _names(clouds: Sequence[Cloud]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for cloud in clouds for name in cloud.colours))


def _scale(name: str, clouds: Sequence[Cloud]) -> _Scale:
    """One scale for all models, so that a colour means the same in each."""
    found = [cloud.colours[name] for cloud in clouds if name in cloud.colours]
    numeric = {isinstance(v, np.ndarray) and v.dtype.kind in "iuf" for v in found}
    if len(numeric) > 1:
        raise FigureError(f"{name!r} is labels in one model and numbers in another: choose one")
    if numeric == {True}:
        numbers = np.concatenate([np.asarray(values, dtype=float) for values in found])
        known = numbers[np.isfinite(numbers)]
        ends = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        return _Scale((), *ends, missing=known.size < numbers.size)
    classes = sorted({str(value) for values in found for value in values}, key=_order)
    if len(classes) > MOST_CLASSES:
        raise FigureError(
            f"{name!r} has {len(classes)} classes, and no more than {MOST_CLASSES} can be told "
            "apart: group them, or give numbers"
        )
    return _Scale(tuple(classes))


def _order(text: str) -> tuple[bool, float, str]:
    """Whole numbers by size, then words by letter."""
    whole = text.isdecimal()
    return (not whole, float(text) if whole else 0.0, text)


# --- where things stand -----------------------------------------------------------------------


def _scene(block: ScatterBlock) -> Sheet:
    clouds, names = block.clouds, _names(block.clouds)
    per_line = min(3, len(names)) if len(clouds) == 1 else 1
    columns = max(per_line, len(clouds))
    pitch = max(_NARROWEST, min(_WIDEST, WIDTH / columns))
    side = pitch - 2 * _GAP
    tall = side * max(_FLATTEST, *(_slope(cloud) for cloud in clouds))
    lefts = [_GAP + at * pitch for at in range(columns)]
    titles = [(cloud.model, cloud.caption) for cloud in clouds]
    # One model alone owns the whole width.
    parts, y = headings(titles, lefts, pitch * columns - _GAP if len(clouds) == 1 else side)
    marks: list[list[Shape]] = [[] for _ in block.prompts]
    for start in range(0, len(names), per_line):
        line = names[start : start + per_line]
        room = side if per_line > 1 else pitch * columns - 2 * _GAP
        keys = [_key(n, _scale(n, clouds), (lefts[at], y), room) for at, n in enumerate(line)]
        parts += [part for drawn, _ in keys for part in drawn]
        y = max(bottom for _, bottom in keys)
        panels = [(cloud, name) for name in line for cloud in clouds]
        for left, (cloud, name) in zip(lefts, panels, strict=False):
            parts += _frame(cloud, (left, y, side, tall))
            if name in cloud.colours:
                _plot(marks, cloud, name, _scale(name, clouds), (left, y, side, tall))
            else:
                middle = (left + side / 2, y + tall / 2)
                parts.append(Words(*middle, "not given", side="middle", colour="soft"))
        y += tall + 34
    groups = [
        Group(says, tuple(shapes), "paper")
        for says, shapes in zip(_says(block), marks, strict=True)
        if shapes
    ]
    note = f"{len(clouds)} models, {len(block.prompts)} prompts, coloured by {', '.join(names)}."
    return Sheet(pitch * columns, y - 8, (*parts, *groups), "Scatter plots", note)


def _says(block: ScatterBlock) -> list[str]:
    """What a point says on hover: its prompt, and its labels where all models agree on them."""
    lines = [[prompt] for prompt in block.prompts]
    for name in _names(block.clouds):
        first, *others = (list(cloud.colours.get(name, ())) for cloud in block.clouds)
        if first and all(other == first for other in others):
            for line, value in zip(lines, first, strict=True):
                line.append(f"{name}: {_told(value)}")
    return ["  |  ".join(line) for line in lines]


def _told(value: object) -> str:
    return value if isinstance(value, str) else minus(f"{value:.4g}")


def _plot(marks: list, cloud: Cloud, name: str, scale: _Scale, panel: Room) -> None:
    """Put the points of one panel to those of their prompts."""
    left, top, wide, tall = panel
    low, high = _ends(cloud)
    span = np.maximum(high - low, 1e-12)
    per = float((np.array([wide - 2 * _PAD, tall - 2 * _PAD]) / span).min())
    for at, (x, y) in enumerate((cloud.xy - (low + high) / 2) * per):
        if not np.isnan(x + y):
            value = cloud.colours[name][at]
            marks[at].append(scale.mark(value, left + wide / 2 + x, top + tall / 2 - y))


def _ends(cloud: Cloud) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    known = cloud.xy[~np.isnan(cloud.xy).any(axis=-1)]
    return (known.min(axis=0), known.max(axis=0)) if len(known) else (np.zeros(2), np.ones(2))


def _slope(cloud: Cloud) -> float:
    """How tall a panel must be beside its width, up to a square."""
    low, high = _ends(cloud)
    wide, tall = (float(span) for span in high - low)
    return min(1.0, tall / wide if wide > 0 else 1.0)


def _frame(cloud: Cloud, panel: Room) -> list[Part]:
    left, top, side, tall = panel
    first, second = (
        name + ("" if np.isnan(share) else f": {100 * share:.0f} % of variance")
        for name, share in zip(cloud.axes, cloud.shares, strict=True)
    )
    style = {"size": 10.5, "side": "middle", "colour": "soft"}
    return [
        box(left, top, side, tall, "none", "line"),
        Words(left + side / 2, top + tall + 14, first, **style),
        Words(left - 5, top + tall / 2, second, turned=True, **style),
    ]


def _key(name: str, scale: _Scale, at: Point, room: Pixels) -> tuple[list[Part], Pixels]:
    """The legend of a colouring, and where it ends."""
    left, y = at[0], at[1] + 12
    parts: list[Part] = [Words(left, y, name, 12, bold=True)]
    x = left + wide(name, 12.5) + 14
    if not scale.classes:
        low, high = (minus(f"{end:.3g}") for end in (scale.low, scale.high))
        x += wide(low, 10.5) + 5
        parts.append(Words(x - 4, y, low, 10.5, "end", "soft"))
        parts += [box(x + 4 * k, y - 9, 4.2, 10, shade(k / 23)) for k in range(24)]
        parts.append(Words(x + 100, y, high, 10.5, "start", "soft"))
        x += 110 + wide(high, 10.5)
    entries: list[tuple[str, object]] = [(value, value) for value in scale.classes]
    for words, value in [*entries, *([("no number", np.nan)] if scale.missing else [])]:
        size = 22 + wide(visible(words), 10.5)
        if x + size > left + room and x > left:
            x, y = left, y + 16
        parts.append(scale.mark(value, x + 4, y - 4))
        parts.append(Words(x + 12, y, fitted(words, room - 14, 10.5), 10.5, colour="soft"))
        x += size
    return parts, y + 9
