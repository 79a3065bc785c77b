"""Heat map as an HTML table: numbers on a color scale.

A table can be read aloud, copied and printed, and stays in notebooks that run no scripts. The
viewer script builds the same table when another head is chosen, so the two must agree.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.viz.colors import apply_colormap, text_color, to_hex
from probes.viz.html_text import MINUS, axis_label, escape, typographic_minus

# Narrower cells hold no number; it is in the tooltip, and hatching shows a negative sign.
_MIN_NUMBER_WIDTH = 20
_MIN_VISIBLE = 0.005


@dataclass(frozen=True, slots=True)
class HeatTableStyle:
    """Style of a heat map.

    Attributes:
        name: Name of the numbers, for screen readers.
        signed: Whether the scale is signed around 0, else it starts at 0.
        vmax: End of the color scale.
        cell_px: Width of a cell in pixels.
        corner: Names of the row axis and the column axis.
        show_error: Whether the error is printed below each number.
    """

    name: str
    signed: bool = False
    vmax: float = 1.0
    cell_px: int = 22
    corner: tuple[str, str] = ("query", "key")
    show_error: bool = False


def cell_width(count: int, n_maps: int = 1) -> int:
    """Width of a cell in pixels for `count` columns, with `n_maps` maps side by side."""
    room, most = (620, 40) if n_maps == 1 else (310, 30)
    return max(9, min(most, room // count - 1))


def format_exact(value: float, error: float, signed: bool) -> str:
    """Number with its error, such as `+0.412 ± 0.010`."""
    if np.isnan(value):
        return "no such cell"
    text = typographic_minus(f"{value:+.3f}" if signed else f"{value:.3f}")
    return text if np.isnan(error) else f"{text} ± {error:.3f}"


def format_short(value: float, style: HeatTableStyle) -> str:
    """Number that fits in a cell: `.41`, `+.41`, `1`, or nothing for NaN."""
    if np.isnan(value):
        return ""
    if abs(value) < _MIN_VISIBLE * style.vmax:
        return "0"
    text = f"{abs(value):.{1 if abs(value) >= 9.95 else 2}f}"
    if style.cell_px < 30:
        text = "1" if text == "1.00" else text.removeprefix("0")
    sign = (MINUS if value < 0 else "+") if style.signed else ""
    return sign + text


def heat_table(
    values: Float[np.ndarray, "row column"],
    error: Float[np.ndarray, "row column"] | None,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    style: HeatTableStyle,
) -> str:
    """HTML table of numbers on a color scale."""
    errors = np.full_like(values, np.nan) if error is None else error
    colors = apply_colormap(values, "diverging" if style.signed else "sequential", style.vmax)
    heads = "".join(
        f'<th scope="col" title="{escape(name)}"><span>{escape(axis_label(name))}</span></th>'
        for name in columns
    )
    row_axis, column_axis = map(escape, style.corner)
    corner = f"{row_axis}&nbsp;↓<br>{column_axis}&nbsp;→" if any(style.corner) else ""
    lines = [f'<tr><td class="pv-corner">{corner}</td>{heads}</tr>']
    for at, name in enumerate(rows):
        cells = "".join(
            _heat_cell(float(value), float(spread), color, style)
            for value, spread, color in zip(values[at], errors[at], colors[at], strict=True)
        )
        header = f'<th scope="row" title="{escape(name)}">{escape(axis_label(name))}</th>'
        lines.append(f"<tr>{header}{cells}</tr>")
    small = "" if style.cell_px >= _MIN_NUMBER_WIDTH else " pv-small"
    small += " pv-signed" if style.signed else ""
    return (
        f'<table class="pv-heat{small}" style="--cell:{style.cell_px}px" tabindex="0" '
        f'aria-label="{escape(style.name)}">{"".join(lines)}</table>'
    )


def _heat_cell(value: float, error: float, color: np.ndarray, style: HeatTableStyle) -> str:
    tooltip = format_exact(value, error, style.signed)
    background = f"background-color:{to_hex(color)}"
    if np.isnan(value):
        return f'<td class="pv-none" style="{background}" data-v="{tooltip}"></td>'
    below = f"<small>±{error:.2f}</small>" if style.show_error and not np.isnan(error) else ""
    is_negative = style.signed and value < -_MIN_VISIBLE * style.vmax
    css_class = ' class="pv-minus"' if is_negative else ""
    return (
        f'<td{css_class} style="{background};color:{text_color(color)}" data-v="{tooltip}">'
        f"{format_short(value, style)}{below}</td>"
    )
