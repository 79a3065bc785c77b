"""A heat map as an HTML table: numbers first, colour behind them.

A table is read aloud, copied, printed, and kept by notebooks that run no scripts. The viewer
script builds the same table when another head is chosen, so the two must agree.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.viz.colours import hexed, ink, paint
from probes.viz.html_text import MINUS, escaped, label, minus

# Narrower cells hold no number; it shows on hover, and the sign of a change shows as hatching.
NUMBER_WIDTH = 20
_FAINT = 0.005


@dataclass(frozen=True, slots=True)
class Look:
    """How a heat map is drawn.

    Attributes:
        name: What the numbers are, for readers of the screen and on hover.
        signed: Whether the numbers are changes around 0 rather than shares from 0.
        top: The number at the end of the colour scale.
        cell: Width of a cell in pixels.
        corner: What the rows and the columns are.
        spread: Whether the error is printed under each number.
    """

    name: str
    signed: bool = False
    top: float = 1.0
    cell: int = 22
    corner: tuple[str, str] = ("query", "key")
    spread: bool = False


def cell_width(count: int, together: int = 1) -> int:
    """The width at which `count` columns are readable, with `together` maps side by side."""
    room, most = (620, 40) if together == 1 else (310, 30)
    return max(9, min(most, room // count - 1))


def exact(value: float, error: float, signed: bool) -> str:
    """The number with its error, such as `+0.412 ± 0.010`."""
    if np.isnan(value):
        return "no such cell"
    text = minus(f"{value:+.3f}" if signed else f"{value:.3f}")
    return text if np.isnan(error) else f"{text} ± {error:.3f}"


def short(value: float, look: Look) -> str:
    """The number as it fits in a cell: `.41`, `+.41`, `1`, or nothing if missing."""
    if np.isnan(value):
        return ""
    if abs(value) < _FAINT * look.top:
        return "0"
    digits = 1 if abs(value) >= 9.95 else 2
    text = f"{abs(value):.{digits}f}"
    if look.cell < 30:
        text = "1" if text == "1.00" else text.removeprefix("0")
    sign = (MINUS if value < 0 else "+") if look.signed else ""
    return sign + text


def heat_table(
    values: Float[np.ndarray, "row column"],
    error: Float[np.ndarray, "row column"] | None,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    look: Look,
) -> str:
    """The numbers as a table with colours behind them."""
    errors = np.full_like(values, np.nan) if error is None else error
    colours = paint(values, "change" if look.signed else "share", look.top)
    heads = "".join(
        f'<th scope="col" title="{escaped(name)}"><span>{escaped(label(name))}</span></th>'
        for name in columns
    )
    row_word, column_word = (escaped(word) for word in look.corner)
    words = f"{row_word}&nbsp;↓<br>{column_word}&nbsp;→" if any(look.corner) else ""
    lines = [f'<tr><td class="pv-corner">{words}</td>{heads}</tr>']
    for at, name in enumerate(rows):
        cells = "".join(
            _cell(float(value), float(spread), colour, look)
            for value, spread, colour in zip(values[at], errors[at], colours[at], strict=True)
        )
        header = f'<th scope="row" title="{escaped(name)}">{escaped(label(name))}</th>'
        lines.append(f"<tr>{header}{cells}</tr>")
    small = "" if look.cell >= NUMBER_WIDTH else " pv-small"
    return (
        f'<table class="pv-heat{small}" style="--cell:{look.cell}px" tabindex="0" '
        f'aria-label="{escaped(look.name)}">{"".join(lines)}</table>'
    )


def _cell(value: float, error: float, colour: np.ndarray, look: Look) -> str:
    says = exact(value, error, look.signed)
    style = f"background-color:{hexed(colour)}"
    if np.isnan(value):
        return f'<td class="pv-none" style="{style}" data-v="{says}"></td>'
    under = f"<small>±{error:.2f}</small>" if look.spread and not np.isnan(error) else ""
    kind = ' class="pv-minus"' if look.signed and value < -_FAINT * look.top else ""
    return (
        f'<td{kind} style="{style};color:{ink(colour)}" data-v="{says}">'
        f"{short(value, look)}{under}</td>"
    )
