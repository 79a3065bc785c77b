"""Where each variable sits: shares by role and layer, for several models side by side.

A cell at or above the level of chance is full and holds its number; one below is only a small
square, so that what stands out is what there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from probes.errors import FigureError
from probes.viz.blocks import Block, Table, caption_html
from probes.viz.colors import apply_colormap, text_color, to_hex
from probes.viz.drawing import (
    HOVER_STYLE,
    WIDTH,
    Drawing,
    DrawingShape,
    Group,
    Part,
    Pixels,
    Point,
    TextLabel,
    block_picture,
    collapsed_table,
    column_titles,
    fraction_color,
    rectangle,
    scrollable_svg,
    text_width,
    truncate_text,
)
from probes.viz.html_text import axis_label, show_invisible
from probes.viz.picture import Picture
from probes.viz.plots.heat_table import HeatTableStyle, format_short

_MAX_CELL, _MIN_CELL, _CELL_HEIGHT, _GAP = 54.0, 17.0, 20.0, 18.0
_MIN_PANEL_WIDTH = 128.0
"""Pixels that a panel has at least, for its name."""
_MAX_LABEL_WIDTH = 150.0
"""The most that the labels of the rows may take."""


@dataclass(frozen=True, eq=False)
class HotspotMap:
    """Where one variable sits in one model.

    Attributes:
        variable: What it is called, such as `operation`.
        shares: Shares from 0 to 1; NaN is a role that is not there.
        null: The share that chance reaches, from 0 to 1.
        rings: The (role, layer) of each cell to draw a ring around, by number.
        counts: Of how many each share is, or None; it shows on hover.
    """

    variable: str
    fractions: Float[np.ndarray, "role layer"]
    null: float
    marked_sites: Sequence[tuple[int, int]] = ()
    counts: Int[np.ndarray, "role layer"] | None = None

    def __post_init__(self) -> None:
        known = self.fractions[~np.isnan(self.fractions)]
        if not 0 <= self.null <= 1 or (known.size and not (0 <= known.min() <= known.max() <= 1)):
            raise FigureError(
                f"{self.variable!r} has shares or a null outside 0 to 1: give shares, NaN if absent"
            )
        if self.counts is not None and np.shape(self.counts) != np.shape(self.fractions):
            raise FigureError(
                f"counts of {self.variable!r} have shape {np.shape(self.counts)}, shares "
                f"{np.shape(self.fractions)}: give one count for each share, or None"
            )
        rows, columns = np.shape(self.fractions)
        for row, column in self.marked_sites:
            if not (0 <= row < rows and 0 <= column < columns):
                raise FigureError(
                    f"there is no cell {row, column} of {self.variable!r} for a ring: "
                    f"choose below {rows, columns}"
                )


@dataclass(frozen=True, eq=False)
class ModelHotspotMaps:
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
    maps: Sequence[HotspotMap]
    caption: str = ""

    def __post_init__(self) -> None:
        wanted = (len(self.roles), len(self.layers))
        if len({one.variable for one in self.maps}) < len(self.maps):
            raise FigureError(f"{self.name!r} has two maps of one variable: give each one name")
        for one in self.maps:
            if np.shape(one.fractions) != wanted or 0 in wanted:
                raise FigureError(
                    f"shares of {one.variable!r} in {self.name!r} have shape "
                    f"{np.shape(one.fractions)}, but there are {wanted[0]} roles and {wanted[1]} "
                    "layers: name each one"
                )


@dataclass(frozen=True, eq=False)
class HotspotMapBlock(Block):
    """Models in columns of panels, variables in rows; one model has its variables side by side.

    Attributes:
        models: What is shown. All have the same roles, and may differ in layers and variables.
        caption: A line above the panels.
    """

    models: Sequence[ModelHotspotMaps]
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
        return (
            caption_html(self.caption)
            + HOVER_STYLE
            + scrollable_svg(_draw_maps(self), "pv-hot")
            + _table(self)
        )

    def __repr__(self) -> str:
        names = ", ".join(show_invisible(model.name) for model in self.models)
        return f"HotMapBlock({names}; {', '.join(map(show_invisible, _variables(self.models)))})"


def hotspot_map_picture(block: HotspotMapBlock, *, title: str = "") -> Picture:
    """Draw where variables sit in one or several models, with a title above."""
    return block_picture(title or "Where each variable sits", block, _draw_maps(block))


def _variables(models: Sequence[ModelHotspotMaps]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.variable for model in models for one in model.maps))


def _draw_maps(block: HotspotMapBlock) -> Drawing:
    models, names = block.models, _variables(block.models)
    alone = len(models) == 1
    per_line = min(4, len(names)) if alone else 1
    columns = [model for model in models for _ in range(per_line)]
    labels = [truncate_text(axis_label(role), _MAX_LABEL_WIDTH, 11) for role in models[0].roles]
    side = max(48.0, *(text_width(text, 11) for text in labels)) + 10
    most = sum(len(model.layers) for model in columns)
    cell = (WIDTH - side - _GAP * (len(columns) - 1)) / most
    cell = max(_MIN_CELL, min(_MAX_CELL, cell))
    rooms = [max(_MIN_PANEL_WIDTH, cell * len(model.layers)) for model in columns]
    lefts = [side + sum(rooms[:at]) + _GAP * at for at in range(len(columns))]
    width = lefts[-1] + rooms[-1] + 4
    titles = [(model.name, model.caption) for model in models]
    room = width - side if alone else min(rooms)
    parts, y = column_titles(titles, lefts[:1] if alone else lefts, room)
    for start in range(0, len(names), per_line):
        line = names[start : start + per_line]
        for at, name in enumerate(line):
            left = lefts[at] if alone else 0.0
            parts += _color_bar(name, models, (left, y + 14), alone)
        y += 38 if alone else 24
        for at, text in enumerate(labels):
            words = TextLabel(side - 8, y + 26 + _CELL_HEIGHT * at, text, 11, "end")
            parts.append(Group(models[0].roles[at], (words,)))
        panels = [(model, name) for name in line for model in models]
        for left, (model, name) in zip(lefts, panels, strict=False):
            found = next((one for one in model.maps if one.variable == name), None)
            absent = [TextLabel(left, y + 26, "not measured", color="soft")]
            parts += _panel(model, found, (left, y), cell) if found else absent
        y += _CELL_HEIGHT * len(labels) + 26
    parts += _legend(y + 6, bool(any(one.marked_sites for model in models for one in model.maps)))
    says = f"Shares of {', '.join(names)} by role and layer. The numbers follow as a table."
    return Drawing(max(width, 620.0), y + 48, tuple(parts), "Hot maps", says)


def _panel(
    model: ModelHotspotMaps, variable_map: HotspotMap, position: Point, cell: Pixels
) -> list[Part]:
    left, top = position
    parts: list[Part] = [
        TextLabel(
            left + cell * (k + 0.5),
            top + 8,
            truncate_text(axis_label(layer), cell, 10),
            10,
            "middle",
            "soft",
        )
        for k, layer in enumerate(model.layers)
    ]
    look = HeatTableStyle("", cell_px=round(cell))
    for (row, column), share in np.ndenumerate(variable_map.fractions):
        x, y = left + cell * column, top + 12 + _CELL_HEIGHT * row
        says = f"{model.roles[row]}, layer {model.layers[column]}: {_tooltip(variable_map, row, column)}"
        parts.append(Group(says, _draw_cell(share, variable_map.null, look, x, y)))
    for row, column in variable_map.marked_sites:
        x, y = left + cell * column - 1, top + 11 + _CELL_HEIGHT * row
        ring = rectangle(x, y, cell + 1, _CELL_HEIGHT + 1, "none", "mark")
        parts.append(DrawingShape(ring.points, "none", "mark", 2.4))
    return parts


def _draw_cell(
    fraction: float, null: float, table_style: HeatTableStyle, x: Pixels, y: Pixels
) -> tuple[DrawingShape | TextLabel, ...]:
    """A full cell with its number, or a small square below the null, or a dash if absent."""
    wide_, high = table_style.cell_px - 1, _CELL_HEIGHT - 1
    middle = x + table_style.cell_px / 2 - 0.5
    if np.isnan(fraction):
        return (TextLabel(middle, y + 13, "–", 11, "middle", "soft"),)
    color = apply_colormap(np.array(fraction), "share")
    if fraction < null:
        frame = rectangle(x, y, wide_, high, "paper", "line")
        return frame, rectangle(middle - 3, y + high / 2 - 3, 6, 6, to_hex(color))
    full = rectangle(x, y, wide_, high, to_hex(color))
    if table_style.cell_px < 22:
        return (full,)
    return full, TextLabel(
        middle, y + 13.5, format_short(fraction, table_style), 10.5, "middle", text_color(color)
    )


def _tooltip(variable_map: HotspotMap, row: int, column: int) -> str:
    share = float(variable_map.fractions[row, column])
    if np.isnan(share):
        return "no such role"
    of = "" if variable_map.counts is None else f" of {variable_map.counts[row, column]}"
    return f"{share:.3f}{of} (null {variable_map.null:.3f})"


def _color_bar(
    name: str, models: Sequence[ModelHotspotMaps], position: Point, single_model: bool
) -> list[Part]:
    """A variable's name and its color bar, which is thin below the null."""
    nulls = [one.null for model in models for one in model.maps if one.variable == name]
    x, y = position if not single_model else (position[0], position[1] + 16)
    step = 2.5 if single_model else 4.5
    words = truncate_text(name, _MIN_PANEL_WIDTH if single_model else 300, 12.5)
    parts: list[Part] = [TextLabel(*position, words, 12.5, bold=True)]
    x += 12 if single_model else text_width(words, 12.5) + 26
    parts.append(TextLabel(x - 4, y, "0", 10, "end", "soft"))
    for k in range(24):
        thin = (k + 0.5) / 24 < min(nulls)
        parts.append(rectangle(x + step * k, y - 5 if thin else y - 9, step + 0.2, 3 if thin else 10,
                         fraction_color(k / 23)))  # fmt: skip
    for null in sorted(set(nulls)):
        spot = x + 24 * step * null
        parts.append(DrawingShape(((spot, y - 12), (spot, y + 4)), "none", "ink", 1.4))
    x += 24 * step
    says = f"null {nulls[0]:.2f}"
    if len(set(nulls)) > 1:
        owners = [model.name for model in models for one in model.maps if one.variable == name]
        pairs = zip(owners, nulls, strict=True)
        says = "null: " + ", ".join(f"{owner} {null:.2f}" for owner, null in pairs)
    parts.append(TextLabel(x + 4, y, "1", 10, color="soft"))
    return [
        *parts,
        TextLabel(x + 18, y, truncate_text(says, max(90.0, WIDTH - x), 10), 10, color="soft"),
    ]


def _legend(y: Pixels, has_marked: bool) -> list[Part]:
    """What the marks mean, in one line, and what the columns are in another."""
    look = HeatTableStyle("", cell_px=26)
    x = 0.0
    parts: list[Part] = []
    samples = [(0.8, "at or above the null"), (0.1, "below the null"), (np.nan, "no such role")]
    for share, words in samples:
        parts += _draw_cell(share, 0.5, look, x, y)
        parts.append(TextLabel(x + 32, y + 13.5, words, 10.5, color="soft"))
        x += 48 + text_width(words, 10.5)
    if has_marked:
        ring = rectangle(x, y - 1, look.cell_px + 1, _CELL_HEIGHT + 1, "none", "mark")
        parts.append(DrawingShape(ring.points, "none", "mark", 2.4))
        parts.append(TextLabel(x + 34, y + 13.5, "hotspot", 10.5, color="soft"))
    columns = "Columns: what stands before each block; out: after the last."
    return [*parts, TextLabel(0, y + 36, columns, 10.5, color="soft")]


def _table(block: HotspotMapBlock) -> str:
    rows = []
    for name in _variables(block.models):
        for at, role in enumerate(block.models[0].roles):
            cells = [_row_text(model, name, at) for model in block.models]
            rows.append([name, role, *cells])
    heads = ["variable", "role", *(model.name for model in block.models)]
    return collapsed_table(Table(heads, rows, align="l" * len(heads)))


def _row_text(model: ModelHotspotMaps, name: str, row: int) -> str:
    found = next((one for one in model.maps if one.variable == name), None)
    if found is None or np.isnan(found.fractions[row]).all():
        return "–"
    pairs = zip(model.layers, found.fractions[row], strict=True)
    return ", ".join(f"{layer}: {share:.2f}" for layer, share in pairs)
