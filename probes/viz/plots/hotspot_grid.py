"""Where each variable sits: shares by role and layer, for several models side by side.

A cell at or above the level of chance is full and holds its number; one below is only a small
square, so that what stands out is what there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from probes.errors import FigureError
from probes.viz.blocks import Block, Table, caption
from probes.viz.colours import hexed, ink, paint
from probes.viz.drawing import (
    HOT_STYLE,
    WIDTH,
    Group,
    Part,
    Pixels,
    Point,
    Shape,
    Sheet,
    Words,
    box,
    details,
    fitted,
    headings,
    pictured,
    scrolled,
    shade,
    wide,
)
from probes.viz.html_text import label, visible
from probes.viz.picture import Picture
from probes.viz.plots.heat_table import Look, short

_WIDEST, _NARROWEST, _HIGH, _GAP = 54.0, 17.0, 20.0, 18.0
_LEAST = 128.0
"""Pixels that a panel has at least, for its name."""
_SIDE = 150.0
"""The most that the labels of the rows may take."""


@dataclass(frozen=True, eq=False)
class HotMap:
    """Where one variable sits in one model.

    Attributes:
        variable: What it is called, such as `operation`.
        shares: Shares from 0 to 1; NaN is a role that is not there.
        null: The share that chance reaches, from 0 to 1.
        rings: The (role, layer) of each cell to draw a ring around, by number.
        counts: Of how many each share is, or None; it shows on hover.
    """

    variable: str
    shares: Float[np.ndarray, "role layer"]
    null: float
    rings: Sequence[tuple[int, int]] = ()
    counts: Int[np.ndarray, "role layer"] | None = None

    def __post_init__(self) -> None:
        known = self.shares[~np.isnan(self.shares)]
        if not 0 <= self.null <= 1 or (known.size and not (0 <= known.min() <= known.max() <= 1)):
            raise FigureError(
                f"{self.variable!r} has shares or a null outside 0 to 1: give shares, NaN if absent"
            )
        if self.counts is not None and np.shape(self.counts) != np.shape(self.shares):
            raise FigureError(
                f"counts of {self.variable!r} have shape {np.shape(self.counts)}, shares "
                f"{np.shape(self.shares)}: give one count for each share, or None"
            )
        rows, columns = np.shape(self.shares)
        for row, column in self.rings:
            if not (0 <= row < rows and 0 <= column < columns):
                raise FigureError(
                    f"there is no cell {row, column} of {self.variable!r} for a ring: "
                    f"choose below {rows, columns}"
                )


@dataclass(frozen=True, eq=False)
class HotModel:
    """The hot maps of one model.

    Attributes:
        name: The name of the model.
        roles: What each row is called, in the order of the sentence.
        layers: What each column is called: `0`, `1`, and so on for what stands before each
            block, and `out`.
        maps: One for each variable.
        caption: A line under the name, such as `accuracy 1.00`.
    """

    name: str
    roles: Sequence[str]
    layers: Sequence[str]
    maps: Sequence[HotMap]
    caption: str = ""

    def __post_init__(self) -> None:
        wanted = (len(self.roles), len(self.layers))
        if len({one.variable for one in self.maps}) < len(self.maps):
            raise FigureError(f"{self.name!r} has two maps of one variable: give each one name")
        for one in self.maps:
            if np.shape(one.shares) != wanted or 0 in wanted:
                raise FigureError(
                    f"shares of {one.variable!r} in {self.name!r} have shape "
                    f"{np.shape(one.shares)}, but there are {wanted[0]} roles and {wanted[1]} "
                    "layers: name each one"
                )


@dataclass(frozen=True, eq=False)
class HotMapBlock(Block):
    """Models in columns of panels, variables in rows; one model has its variables side by side.

    Attributes:
        models: What is shown. All have the same roles, and may differ in layers and variables.
        caption: A line above the panels.
    """

    models: Sequence[HotModel]
    caption: str = ""

    def __post_init__(self) -> None:
        if not any(model.maps for model in self.models):
            raise FigureError("There is nothing to draw: give a model with a variable")
        for model in self.models:
            if tuple(model.roles) != tuple(self.models[0].roles):
                raise FigureError(
                    f"{model.name!r} and {self.models[0].name!r} have different roles: "
                    "give all models the same, with NaN where a role is absent"
                )

    @property
    def body(self) -> str:
        """The drawing with its caption, and its numbers as a table that can be read aloud."""
        return caption(self.caption) + HOT_STYLE + scrolled(_scene(self), "pv-hot") + _table(self)

    def __repr__(self) -> str:
        names = ", ".join(visible(model.name) for model in self.models)
        return f"HotMapBlock({names}; {', '.join(map(visible, _variables(self.models)))})"


def hotmap_picture(block: HotMapBlock, *, title: str = "") -> Picture:
    """Draw where variables sit in one or several models, with a title above."""
    return pictured(title or "Where each variable sits", block, _scene(block))


def _variables(models: Sequence[HotModel]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.variable for model in models for one in model.maps))


def _scene(block: HotMapBlock) -> Sheet:
    models, names = block.models, _variables(block.models)
    alone = len(models) == 1
    per_line = min(4, len(names)) if alone else 1
    columns = [model for model in models for _ in range(per_line)]
    labels = [fitted(label(role), _SIDE, 11) for role in models[0].roles]
    side = max(48.0, *(wide(text, 11) for text in labels)) + 10
    most = sum(len(model.layers) for model in columns)
    cell = (WIDTH - side - _GAP * (len(columns) - 1)) / most
    cell = max(_NARROWEST, min(_WIDEST, cell))
    rooms = [max(_LEAST, cell * len(model.layers)) for model in columns]
    lefts = [side + sum(rooms[:at]) + _GAP * at for at in range(len(columns))]
    width = lefts[-1] + rooms[-1] + 4
    titles = [(model.name, model.caption) for model in models]
    room = width - side if alone else min(rooms)
    parts, y = headings(titles, lefts[:1] if alone else lefts, room)
    for start in range(0, len(names), per_line):
        line = names[start : start + per_line]
        for at, name in enumerate(line):
            left = lefts[at] if alone else 0.0
            parts += _scale(name, models, (left, y + 14), alone)
        y += 38 if alone else 24
        for at, text in enumerate(labels):
            words = Words(side - 8, y + 26 + _HIGH * at, text, 11, "end")
            parts.append(Group(models[0].roles[at], (words,)))
        panels = [(model, name) for name in line for model in models]
        for left, (model, name) in zip(lefts, panels, strict=False):
            found = next((one for one in model.maps if one.variable == name), None)
            absent = [Words(left, y + 26, "not measured", colour="soft")]
            parts += _panel(model, found, (left, y), cell) if found else absent
        y += _HIGH * len(labels) + 26
    parts += _explained(y + 6, bool(any(one.rings for model in models for one in model.maps)))
    says = f"Shares of {', '.join(names)} by role and layer. The numbers follow as a table."
    return Sheet(max(width, 620.0), y + 48, tuple(parts), "Hot maps", says)


def _panel(model: HotModel, one: HotMap, at: Point, cell: Pixels) -> list[Part]:
    left, top = at
    parts: list[Part] = [
        Words(
            left + cell * (k + 0.5), top + 8, fitted(label(layer), cell, 10), 10, "middle", "soft"
        )
        for k, layer in enumerate(model.layers)
    ]
    look = Look("", cell=round(cell))
    for (row, column), share in np.ndenumerate(one.shares):
        x, y = left + cell * column, top + 12 + _HIGH * row
        says = f"{model.roles[row]}, layer {model.layers[column]}: {_told(one, row, column)}"
        parts.append(Group(says, _cell(share, one.null, look, x, y)))
    for row, column in one.rings:
        x, y = left + cell * column - 1, top + 11 + _HIGH * row
        ring = box(x, y, cell + 1, _HIGH + 1, "none", "mark")
        parts.append(Shape(ring.points, "none", "mark", 2.4))
    return parts


def _cell(share: float, null: float, look: Look, x: Pixels, y: Pixels) -> tuple[Shape | Words, ...]:
    """A full cell with its number, or a small square below the null, or a dash if absent."""
    wide_, high = look.cell - 1, _HIGH - 1
    middle = x + look.cell / 2 - 0.5
    if np.isnan(share):
        return (Words(middle, y + 13, "–", 11, "middle", "soft"),)
    colour = paint(np.array(share), "share")
    if share < null:
        frame = box(x, y, wide_, high, "paper", "line")
        return frame, box(middle - 3, y + high / 2 - 3, 6, 6, hexed(colour))
    full = box(x, y, wide_, high, hexed(colour))
    if look.cell < 22:
        return (full,)
    return full, Words(middle, y + 13.5, short(share, look), 10.5, "middle", ink(colour))


def _told(one: HotMap, row: int, column: int) -> str:
    share = float(one.shares[row, column])
    if np.isnan(share):
        return "no such role"
    of = "" if one.counts is None else f" of {one.counts[row, column]}"
    return f"{share:.3f}{of} (null {one.null:.3f})"


def _scale(name: str, models: Sequence[HotModel], at: Point, alone: bool) -> list[Part]:
    """A variable's name and its colour bar, which is thin below the null."""
    nulls = [one.null for model in models for one in model.maps if one.variable == name]
    x, y = at if not alone else (at[0], at[1] + 16)
    step = 2.5 if alone else 4.5
    words = fitted(name, _LEAST if alone else 300, 12.5)
    parts: list[Part] = [Words(*at, words, 12.5, bold=True)]
    x += 12 if alone else wide(words, 12.5) + 26
    parts.append(Words(x - 4, y, "0", 10, "end", "soft"))
    for k in range(24):
        thin = (k + 0.5) / 24 < min(nulls)
        parts.append(box(x + step * k, y - 5 if thin else y - 9, step + 0.2, 3 if thin else 10,
                         shade(k / 23)))  # fmt: skip
    for null in sorted(set(nulls)):
        spot = x + 24 * step * null
        parts.append(Shape(((spot, y - 12), (spot, y + 4)), "none", "ink", 1.4))
    x += 24 * step
    says = f"null {nulls[0]:.2f}"
    if len(set(nulls)) > 1:
        owners = [model.name for model in models for one in model.maps if one.variable == name]
        pairs = zip(owners, nulls, strict=True)
        says = "null: " + ", ".join(f"{owner} {null:.2f}" for owner, null in pairs)
    parts.append(Words(x + 4, y, "1", 10, colour="soft"))
    return [*parts, Words(x + 18, y, fitted(says, max(90.0, WIDTH - x), 10), 10, colour="soft")]


def _explained(y: Pixels, ringed: bool) -> list[Part]:
    """What the marks mean, in one line, and what the columns are in another."""
    look = Look("", cell=26)
    x = 0.0
    parts: list[Part] = []
    samples = [(0.8, "at or above the null"), (0.1, "below the null"), (np.nan, "no such role")]
    for share, words in samples:
        parts += _cell(share, 0.5, look, x, y)
        parts.append(Words(x + 32, y + 13.5, words, 10.5, colour="soft"))
        x += 48 + wide(words, 10.5)
    if ringed:
        ring = box(x, y - 1, look.cell + 1, _HIGH + 1, "none", "mark")
        parts.append(Shape(ring.points, "none", "mark", 2.4))
        parts.append(Words(x + 34, y + 13.5, "hotspot", 10.5, colour="soft"))
    columns = "Columns: what stands before each block; out: after the last."
    return [*parts, Words(0, y + 36, columns, 10.5, colour="soft")]


def _table(block: HotMapBlock) -> str:
    rows = []
    for name in _variables(block.models):
        for at, role in enumerate(block.models[0].roles):
            cells = [_line(model, name, at) for model in block.models]
            rows.append([name, role, *cells])
    heads = ["variable", "role", *(model.name for model in block.models)]
    return details(Table(heads, rows, align="l" * len(heads)))


def _line(model: HotModel, name: str, row: int) -> str:
    found = next((one for one in model.maps if one.variable == name), None)
    if found is None or np.isnan(found.shares[row]).all():
        return "–"
    pairs = zip(model.layers, found.shares[row], strict=True)
    return ", ".join(f"{layer}: {share:.2f}" for layer, share in pairs)
