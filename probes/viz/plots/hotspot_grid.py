"""Heat maps of the sites of each variable, roles by layers, for several models side by side.

A cell at or above the null is full and holds its number. A cell below the null is a small square.
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
    collapsed_table,
    rectangle,
    scrollable_svg,
    text_width,
    truncate_text,
)
from probes.viz.figure import block_picture
from probes.viz.html_text import axis_label, show_invisible
from probes.viz.picture import Picture
from probes.viz.plots.axes import FONT_SIZE, color_bar, column_titles
from probes.viz.plots.heat_table import HeatTableStyle, format_short

_MAX_CELL, _MIN_CELL, _CELL_HEIGHT, _GAP = 54.0, 17.0, 20.0, 18.0
_MIN_PANEL_WIDTH = 128.0
_MAX_LABEL_WIDTH = 150.0
_MIN_NUMBER_CELL = 22


@dataclass(frozen=True, eq=False)
class HotspotMap:
    """Interchange accuracy of one variable in one model.

    Attributes:
        variable: Name of the variable.
        fractions: Interchange accuracy in [0, 1]; NaN for roles that are missing.
        null: Threshold of the null, in [0, 1].
        marked_sites: Indices (role, layer) of the cells with a ring.
        counts: Number of prompts of each cell, for the tooltip, or None.
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
                f"{self.variable!r} has fractions or a null outside 0 to 1: give fractions, NaN if "
                "missing"
            )
        if self.counts is not None and np.shape(self.counts) != np.shape(self.fractions):
            raise FigureError(
                f"counts of {self.variable!r} have shape {np.shape(self.counts)}, fractions "
                f"{np.shape(self.fractions)}: give one count for each fraction, or None"
            )
        rows, columns = np.shape(self.fractions)
        for row, column in self.marked_sites:
            if not (0 <= row < rows and 0 <= column < columns):
                raise FigureError(
                    f"there is no cell {row, column} of {self.variable!r} to mark: "
                    f"choose below {rows, columns}"
                )


@dataclass(frozen=True, eq=False)
class ModelHotspotMaps:
    """Hotspot maps of one model.

    Attributes:
        name: Name of the model.
        roles: Row labels, in the order of the sentence.
        layers: Column labels: `0`, `1`, … for the residual stream before each layer, and `out`.
        maps: One for each variable.
        caption: Line below the name.
    """

    name: str
    roles: Sequence[str]
    layers: Sequence[str]
    maps: Sequence[HotspotMap]
    caption: str = ""

    def __post_init__(self) -> None:
        shape = (len(self.roles), len(self.layers))
        if len({one.variable for one in self.maps}) < len(self.maps):
            raise FigureError(f"{self.name!r} has two maps of one variable: give each one name")
        for one in self.maps:
            if np.shape(one.fractions) != shape or 0 in shape:
                raise FigureError(
                    f"fractions of {one.variable!r} in {self.name!r} have shape "
                    f"{np.shape(one.fractions)}, but there are {shape[0]} roles and {shape[1]} "
                    "layers: name each one"
                )

    def map(self, variable: str) -> HotspotMap | None:
        """Map of a variable, or None if it was not measured."""
        return next((one for one in self.maps if one.variable == variable), None)


@dataclass(frozen=True, eq=False)
class HotspotMapBlock(Block):
    """Models in columns of panels, variables in rows; one model has its variables side by side.

    Attributes:
        models: Models with equal roles; layers and variables may differ.
        caption: Line above the panels.
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
                    "give all models the same, with NaN where a role is missing"
                )

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables of all models."""
        return tuple(dict.fromkeys(one.variable for model in self.models for one in model.maps))

    @property
    def body(self) -> str:
        """Drawing with its caption, and the numbers as a table."""
        drawing = scrollable_svg(_draw_maps(self), "pv-hot")
        return caption_html(self.caption) + HOVER_STYLE + drawing + _table(self)

    def __repr__(self) -> str:
        names = ", ".join(show_invisible(model.name) for model in self.models)
        return f"HotspotMapBlock({names}; {', '.join(map(show_invisible, self.variables))})"


def hotspot_map_picture(block: HotspotMapBlock, *, title: str = "") -> Picture:
    """Hotspot maps with a title."""
    return block_picture(title or "Sites of each variable", block, _draw_maps(block))


def _draw_maps(block: HotspotMapBlock) -> Drawing:
    models, names = block.models, block.variables
    is_single = len(models) == 1
    per_row = min(4, len(names)) if is_single else 1
    columns = [model for model in models for _ in range(per_row)]
    labels = [truncate_text(axis_label(role), _MAX_LABEL_WIDTH, 11) for role in models[0].roles]
    side = max(48.0, *(text_width(text, 11) for text in labels)) + 10
    cell = WIDTH - side - _GAP * (len(columns) - 1)
    cell = max(_MIN_CELL, min(_MAX_CELL, cell / sum(len(model.layers) for model in columns)))
    widths = [max(_MIN_PANEL_WIDTH, cell * len(model.layers)) for model in columns]
    lefts = [side + sum(widths[:at]) + _GAP * at for at in range(len(columns))]
    width = lefts[-1] + widths[-1] + 4
    titles = [(model.name, model.caption) for model in models]
    room = width - side if is_single else min(widths)
    parts, y = column_titles(titles, lefts[:1] if is_single else lefts, room)
    for start in range(0, len(names), per_row):
        row = names[start : start + per_row]
        for left, name in zip(lefts if is_single else [0.0], row, strict=False):
            parts += _variable_title(name, models, (left, y + 14))
        y += 38 if is_single else 24
        for at, text in enumerate(labels):
            label = TextLabel(side - 8, y + 26 + _CELL_HEIGHT * at, text, 11, "end")
            parts.append(Group(models[0].roles[at], (label,)))
        panels = [(model, name) for name in row for model in models]
        for left, (model, name) in zip(lefts, panels, strict=False):
            parts += _draw_panel(model, name, (left, y), cell)
        y += _CELL_HEIGHT * len(labels) + 26
    parts += _legend(y + 6, has_rings=any(one.marked_sites for m in models for one in m.maps))
    note = f"Fractions for {', '.join(names)} by role and layer. The numbers follow as a table."
    return Drawing(max(width, 620.0), y + 48, tuple(parts), "Hotspot maps", note)


def _draw_panel(
    model: ModelHotspotMaps, variable: str, position: Point, cell: Pixels
) -> list[Part]:
    left, top = position
    shown = model.map(variable)
    if shown is None:
        return [TextLabel(left, top + 26, "not measured", color="soft")]
    parts: list[Part] = []
    for column, layer in enumerate(model.layers):
        text = truncate_text(axis_label(layer), cell, 10)
        parts.append(TextLabel(left + cell * (column + 0.5), top + 8, text, 10, "middle", "soft"))
    for (row, column), fraction in np.ndenumerate(shown.fractions):
        site = f"{model.roles[row]}, layer {model.layers[column]}"
        tooltip = f"{site}: {_tooltip(shown, row, column)}"
        corner = (left + cell * column, top + 12 + _CELL_HEIGHT * row)
        parts.append(Group(tooltip, _draw_cell(fraction, shown.null, corner, round(cell))))
    parts += [
        _ring(left + cell * column, top + 12 + _CELL_HEIGHT * row, cell)
        for row, column in shown.marked_sites
    ]
    return parts


def _draw_cell(
    fraction: float, null: float, corner: Point, cell: int
) -> tuple[DrawingShape | TextLabel, ...]:
    x, y = corner
    width, height, middle = cell - 1, _CELL_HEIGHT - 1, x + cell / 2 - 0.5
    if np.isnan(fraction):
        return (TextLabel(middle, y + 13, "–", 11, "middle", "soft"),)
    color = apply_colormap(np.array(fraction), "share")
    if fraction < null:
        frame = rectangle((x, y, width, height), "paper", "line")
        return frame, rectangle((middle - 3, y + height / 2 - 3, 6, 6), to_hex(color))
    full = rectangle((x, y, width, height), to_hex(color))
    if cell < _MIN_NUMBER_CELL:
        return (full,)
    text, ink = format_short(fraction, HeatTableStyle("", cell_px=cell)), text_color(color)
    return full, TextLabel(middle, y + 13.5, text, FONT_SIZE, "middle", ink)


def _ring(x: Pixels, y: Pixels, cell: Pixels) -> DrawingShape:
    box = rectangle((x - 1, y - 1, cell + 1, _CELL_HEIGHT + 1))
    return DrawingShape(box.points, "none", "mark", 2.4)


def _tooltip(shown: HotspotMap, row: int, column: int) -> str:
    fraction = float(shown.fractions[row, column])
    if np.isnan(fraction):
        return "no such role"
    count = "" if shown.counts is None else f" of {shown.counts[row, column]}"
    return f"{fraction:.3f}{count} (null {shown.null:.3f})"


def _variable_title(name: str, models: Sequence[ModelHotspotMaps], position: Point) -> list[Part]:
    """Name of a variable, its color bar, and its null; in two lines if the panel is narrow."""
    x, y = position
    nulls = {model.name: one.null for model in models if (one := model.map(name))}
    text = f"null {next(iter(nulls.values())):.2f}"
    if len(set(nulls.values())) > 1:
        text = "null: " + ", ".join(f"{owner} {null:.2f}" for owner, null in nulls.items())
    is_narrow = len(models) == 1
    label = truncate_text(name, _MIN_PANEL_WIDTH - 60 if is_narrow else 300, 12.5)
    end = x + text_width(label, 12.5) + 10
    bar_position = (x, y + 16) if is_narrow else (end + 6, y)
    bar, bar_end = color_bar(bar_position, ("0", "1"), list(nulls.values()))
    end = end if is_narrow else bar_end + 6
    text = truncate_text(text, max(90.0, WIDTH - end), 10)
    return [
        TextLabel(x, y, label, 12.5, bold=True),
        *bar,
        TextLabel(end, y, text, 10, color="soft"),
    ]


def _legend(y: Pixels, *, has_rings: bool) -> list[Part]:
    """Meaning of the cells and the ring, then of the columns."""
    x, cell = 0.0, 26
    parts: list[Part] = []
    samples = ((0.8, "at or above the null"), (0.1, "below the null"), (np.nan, "no such role"))
    for fraction, text in samples:
        parts += _draw_cell(fraction, 0.5, (x, y), cell)
        parts.append(TextLabel(x + 32, y + 13.5, text, FONT_SIZE, color="soft"))
        x += 48 + text_width(text, FONT_SIZE)
    if has_rings:
        parts.append(_ring(x + 1, y, cell))
        parts.append(TextLabel(x + 34, y + 13.5, "hotspot", FONT_SIZE, color="soft"))
    columns = "Columns: residual stream before each layer; out: after the last layer."
    return [*parts, TextLabel(0, y + 36, columns, FONT_SIZE, color="soft")]


def _table(block: HotspotMapBlock) -> str:
    rows = [
        [name, role, *(_row_text(model, name, at) for model in block.models)]
        for name in block.variables
        for at, role in enumerate(block.models[0].roles)
    ]
    heads = ["variable", "role", *(model.name for model in block.models)]
    return collapsed_table(Table(heads, rows, align="l" * len(heads)))


def _row_text(model: ModelHotspotMaps, variable: str, row: int) -> str:
    shown = model.map(variable)
    if shown is None or np.isnan(shown.fractions[row]).all():
        return "–"
    cells = zip(model.layers, shown.fractions[row], strict=True)
    return ", ".join(f"{layer}: {fraction:.2f}" for layer, fraction in cells)
