"""A heat map as an HTML table: numbers first, color behind them.

A table is read aloud, copied, printed, and kept by notebooks that run no scripts. The viewer
script builds the same table when another head is chosen, so the two must agree.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.viz.colors import apply_colormap, text_color, to_hex
from probes.viz.html_text import MINUS, axis_label, escape, typographic_minus

# Narrower cells hold no number; it shows on hover, and the sign of a change shows as hatching.
NUMBER_WIDTH = 20
_MIN_VISIBLE = 0.005


@dataclass(frozen=True, slots=True)
class HeatTableStyle:
    """How a heat map is drawn.

    Attributes:
        name: What the numbers are, for readers of the screen and on hover.
        signed: Whether the numbers are changes around 0 rather than shares from 0.
        top: The number at the end of the color scale.
        cell: Width of a cell in pixels.
        corner: What the rows and the columns are.
        spread: Whether the error is printed under each number.
    """

    name: str
    signed: bool = False
    vmax: float = 1.0
    cell_px: int = 22
    corner: tuple[str, str] = ("query", "key")
    show_error: bool = False


def cell_width(count: int, n_maps: int = 1) -> int:
    """The width at which `count` columns are readable, with `together` maps side by side."""
    room, most = (620, 40) if n_maps == 1 else (310, 30)
    return max(9, min(most, room // count - 1))


def format_exact(value: float, error: float, signed: bool) -> str:
    """The number with its error, such as `+0.412 ± 0.010`."""
    if np.isnan(value):
        return "no such cell"
    text = typographic_minus(f"{value:+.3f}" if signed else f"{value:.3f}")
    return text if np.isnan(error) else f"{text} ± {error:.3f}"


def format_short(value: float, style: HeatTableStyle) -> str:
    """The number as it fits in a cell: `.41`, `+.41`, `1`, or nothing if missing."""
    if np.isnan(value):
        return ""
    if abs(value) < _MIN_VISIBLE * style.vmax:
        return "0"
    digits = 1 if abs(value) >= 9.95 else 2
    text = f"{abs(value):.{digits}f}"
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
    """The numbers as a table with colors behind them."""
    errors = np.full_like(values, np.nan) if error is None else error
    colors = apply_colormap(values, "change" if style.signed else "share", style.vmax)
    heads = "".join(
        f'<th scope="col" title="{escape(name)}"><span>{escape(axis_label(name))}</span></th>'
        for name in columns
    )
    row_word, column_word = (escape(word) for word in style.corner)
    words = f"{row_word}&nbsp;↓<br>{column_word}&nbsp;→" if any(style.corner) else ""
    lines = [f'<tr><td class="pv-corner">{words}</td>{heads}</tr>']
    for at, name in enumerate(rows):
        cells = "".join(
            _heat_cell(float(value), float(spread), color, style)
            for value, spread, color in zip(values[at], errors[at], colors[at], strict=True)
        )
        header = f'<th scope="row" title="{escape(name)}">{escape(axis_label(name))}</th>'
        lines.append(f"<tr>{header}{cells}</tr>")
    small = "" if style.cell_px >= NUMBER_WIDTH else " pv-small"
    return (
        f'<table class="pv-heat{small}" style="--cell:{style.cell_px}px" tabindex="0" '
        f'aria-label="{escape(style.name)}">{"".join(lines)}</table>'
    )


def _heat_cell(value: float, error: float, color: np.ndarray, table_style: HeatTableStyle) -> str:
    says = format_exact(value, error, table_style.signed)
    style = f"background-color:{to_hex(color)}"
    if np.isnan(value):
        return f'<td class="pv-none" style="{style}" data-v="{says}"></td>'
    under = f"<small>±{error:.2f}</small>" if table_style.show_error and not np.isnan(error) else ""
    kind = (
        ' class="pv-minus"'
        if table_style.signed and value < -_MIN_VISIBLE * table_style.vmax
        else ""
    )
    return (
        f'<td{kind} style="{style};color:{text_color(color)}" data-v="{says}">'
        f"{format_short(value, table_style)}{under}</td>"
    )
