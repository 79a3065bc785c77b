"""Hotspot maps: interchange accuracy of each variable by role and layer, models side by side.

A cell at or above the null is full and holds its number. A cell below the null is a small square.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.errors import FigureError
from probes.interventions.hotspots.result import Hotspots
from probes.prompts.interchange_pairs import OBJECT
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
from probes.viz.html_text import axis_label
from probes.viz.picture import Picture
from probes.viz.plots.axes import FONT_SIZE, color_bar, column_titles
from probes.viz.plots.heat_table import HeatTableStyle, format_short

_MAX_CELL, _MIN_CELL, _CELL_HEIGHT, _GAP = 54.0, 17.0, 20.0, 18.0
_MIN_PANEL_WIDTH = 128.0
_MAX_LABEL_WIDTH = 150.0
_MIN_NUMBER_CELL = 22


def hotspot_map(results: Sequence[Hotspots], *, title: str = "") -> Picture:
    """Interchange accuracy of each variable by role and layer, models side by side.

    A cell is the fraction of prompts in which only this variable changed, with the null of
    random-init models. Rings mark the hotspots, which were selected on other prompts.

    Args:
        results: Results of `hotspots`, one for each model.
        title: Title of the picture.

    Raises:
        FigureError: There is no result, or none with a variable.
    """
    block = HotspotMapBlock(results)
    return block_picture(title or "Sites of each variable", block, _draw_maps(block))


@dataclass(frozen=True, eq=False, repr=False)
class HotspotMapBlock(Block):
    """Models in columns of panels, variables in rows; one model has its variables side by side.

    Attributes:
        results: One for each model.
        caption: Line above the panels.
    """

    results: Sequence[Hotspots]
    caption: str = "Interchange accuracy: fraction of prompts in which only this variable changes"

    def __post_init__(self) -> None:
        if not self.variables:
            raise FigureError("There is nothing to draw: give a result with a variable")

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables of all models."""
        return tuple(dict.fromkeys(name for result in self.results for name in result.maps))

    @property
    def body(self) -> str:
        """Drawing with its caption, and the numbers as a table."""
        drawing = scrollable_svg(_draw_maps(self), "pv-hot")
        return caption_html(self.caption) + HOVER_STYLE + drawing + _table(self)


def merged_roles(results: Sequence[Hotspots]) -> list[str]:
    """Roles of several models in the order of their texts, then the joined roles of hotspots."""
    roles: list[str] = []
    for result in results:
        own = [role for role in result.roles if "+" not in role]
        for at, role in enumerate(own):
            if role not in roles:
                roles.insert(roles.index(own[at - 1]) + 1 if at else 0, role)
    hotspot_roles = [hotspot.site.role for result in results for hotspot in result.hotspots]
    return roles + list(dict.fromkeys(role for role in hotspot_roles if "+" in role))


def display_variable(name: str) -> str:
    """Name of a variable on pages."""
    return "object" if name == OBJECT else name


def _layer_labels(result: Hotspots) -> list[str]:
    _, count = next(iter(result.maps.values())).shape
    return [*map(str, range(count - 1)), "out"]


def _null(result: Hotspots, variable: str) -> float:
    # At least half a prompt: below it, not even one prompt has changed.
    return max(0.5 / result.prompts, result.thresholds[variable])


def _values(
    result: Hotspots, variable: str, roles: Sequence[str]
) -> Float[np.ndarray, "role layer"] | None:
    """Map over the merged roles, NaN where one is missing; None if it was not measured."""
    if variable not in result.maps:
        return None
    rows = dict(zip(result.roles, result.map(variable), strict=True))
    missing = np.full(len(_layer_labels(result)), np.nan)
    return np.array([rows.get(role, missing) for role in roles], dtype=float)


def _draw_maps(block: HotspotMapBlock) -> Drawing:
    results, names, roles = block.results, block.variables, merged_roles(block.results)
    is_single = len(results) == 1
    per_row = min(4, len(names)) if is_single else 1
    sizes = [len(_layer_labels(result)) for result in results for _ in range(per_row)]
    labels = [truncate_text(axis_label(role), _MAX_LABEL_WIDTH, 11) for role in roles]
    side = max(48.0, *(text_width(text, 11) for text in labels)) + 10
    cell = (WIDTH - side - _GAP * (len(sizes) - 1)) / sum(sizes)
    cell = max(_MIN_CELL, min(_MAX_CELL, cell))
    widths = [max(_MIN_PANEL_WIDTH, cell * size) for size in sizes]
    lefts = [side + sum(widths[:at]) + _GAP * at for at in range(len(widths))]
    width = lefts[-1] + widths[-1] + 4
    room = width - side if is_single else min(widths)
    parts, y = column_titles(map(_title, results), lefts[:1] if is_single else lefts, room)
    for start in range(0, len(names), per_row):
        row = names[start : start + per_row]
        for left, name in zip(lefts if is_single else [0.0], row, strict=False):
            parts += _variable_title(name, results, (left, y + 14))
        y += 38 if is_single else 24
        for at, text in enumerate(labels):
            label = TextLabel(side - 8, y + 26 + _CELL_HEIGHT * at, text, 11, "end")
            parts.append(Group(roles[at], (label,)))
        panels = [(result, name) for name in row for result in results]
        for left, (result, name) in zip(lefts, panels, strict=False):
            parts += _draw_panel(result, name, roles, (left, y), cell)
        y += _CELL_HEIGHT * len(labels) + 26
    note = f"Fractions for {', '.join(names)} by role and layer. The numbers follow as a table."
    return Drawing(max(width, 620.0), y + 48, (*parts, *_legend(y + 6)), "Hotspot maps", note)


def _title(result: Hotspots) -> tuple[str, str]:
    number, noun = (estimate.value for estimate in result.accuracy)
    return result.model, f"accuracy: number {number:.2f}, object {noun:.2f}"


def _draw_panel(
    result: Hotspots, variable: str, roles: Sequence[str], position: Point, cell: Pixels
) -> list[Part]:
    (left, top), values = position, _values(result, variable, roles)
    if values is None:
        return [TextLabel(left, top + 26, "not measured", color="soft")]
    parts: list[Part] = []
    layers, null = _layer_labels(result), _null(result, variable)
    for column, layer in enumerate(layers):
        text = truncate_text(layer, cell, 10)
        parts.append(TextLabel(left + cell * (column + 0.5), top + 8, text, 10, "middle", "soft"))
    for (row, column), value in np.ndenumerate(values):
        tooltip = f"{roles[row]}, layer {layers[column]}: "
        is_missing = np.isnan(value)
        tooltip += (
            ("not interchanged" if result.screens else "no such role")
            if is_missing
            else f"{value:.3f} of {result.prompts} (null {null:.3f})"
        )
        corner = (left + cell * column, top + 12 + _CELL_HEIGHT * row)
        parts.append(Group(tooltip, _draw_cell(value, null, corner, round(cell))))
    site = result.hotspot(variable).site
    row, column = roles.index(site.role), site.layer
    return [*parts, _ring(left + cell * column, top + 12 + _CELL_HEIGHT * row, cell)]


def _draw_cell(
    fraction: float, null: float, corner: Point, cell: int
) -> tuple[DrawingShape | TextLabel, ...]:
    x, y = corner
    width, height, middle = cell - 1, _CELL_HEIGHT - 1, x + cell / 2 - 0.5
    if np.isnan(fraction):
        return (TextLabel(middle, y + 13, "–", 11, "middle", "soft"),)
    color = apply_colormap(np.array(fraction), "sequential")
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


def _variable_title(variable: str, results: Sequence[Hotspots], position: Point) -> list[Part]:
    """Name of a variable, its color bar, and its null; in two lines for one model."""
    x, y = position
    nulls = {one.model: _null(one, variable) for one in results if variable in one.maps}
    text = f"null {next(iter(nulls.values())):.2f}"
    if len(set(nulls.values())) > 1:
        text = "null: " + ", ".join(f"{model} {null:.2f}" for model, null in nulls.items())
    is_single = len(results) == 1
    name = display_variable(variable)
    label = truncate_text(name, _MIN_PANEL_WIDTH - 60 if is_single else 300, 12.5)
    end = x + text_width(label, 12.5) + 10
    bar_position = (x, y + 16) if is_single else (end + 6, y)
    bar, bar_end = color_bar(bar_position, ("0", "1"), list(nulls.values()))
    end = end if is_single else bar_end + 6
    text = truncate_text(text, max(90.0, WIDTH - end), 10)
    title = TextLabel(x, y, label, 12.5, bold=True)
    return [title, *bar, TextLabel(end, y, text, 10, color="soft")]


def _legend(y: Pixels) -> list[Part]:
    """Meaning of the cells and the ring, then of the columns."""
    x, cell = 0.0, 26
    parts: list[Part] = []
    samples = ((0.8, "at or above the null"), (0.1, "below the null"), (np.nan, "no such role"))
    for fraction, text in samples:
        parts += _draw_cell(fraction, 0.5, (x, y), cell)
        parts.append(TextLabel(x + 32, y + 13.5, text, FONT_SIZE, color="soft"))
        x += 48 + text_width(text, FONT_SIZE)
    columns = "Columns: residual stream before each layer; out: after the last layer."
    return [
        *parts,
        _ring(x + 1, y, cell),
        TextLabel(x + 34, y + 13.5, "hotspot", FONT_SIZE, color="soft"),
        TextLabel(0, y + 36, columns, FONT_SIZE, color="soft"),
    ]


def _table(block: HotspotMapBlock) -> str:
    roles, rows = merged_roles(block.results), []
    for name in block.variables:
        columns = [_column_texts(result, name, roles) for result in block.results]
        rows += [
            [display_variable(name), role, *cells]
            for role, *cells in zip(roles, *columns, strict=True)
        ]
    heads = ["variable", "role", *(result.model for result in block.results)]
    return collapsed_table(Table(heads, rows, align="l" * len(heads)))


def _column_texts(result: Hotspots, variable: str, roles: Sequence[str]) -> list[str]:
    """Numbers of each role, layer by layer."""
    values = _values(result, variable, roles)
    if values is None:
        return ["–"] * len(roles)
    layers = _layer_labels(result)
    return [
        ", ".join(f"{layer}: {value:.2f}" for layer, value in zip(layers, row, strict=True))
        if not np.isnan(row).all()
        else "–"
        for row in values
    ]
