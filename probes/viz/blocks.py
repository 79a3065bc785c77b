"""Parts of a page: tables, notes and matrices. Each also shows itself in a notebook."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from probes.errors import FigureError
from probes.stats.intervals import Estimate
from probes.viz.html_text import (
    escape,
    escape_lines,
    format_number,
    nonbreaking,
    show_invisible,
    typographic_minus,
)
from probes.viz.picture import notebook_cell
from probes.viz.plots.heat_table import HeatTableStyle, heat_table

Tone = Literal["good", "bad", "muted"]

_LONG_TEXT = 32


class Block(ABC):
    """Part of a page."""

    @property
    @abstractmethod
    def body(self) -> str:
        """HTML with all text escaped."""

    def _repr_html_(self) -> str:
        return notebook_cell(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({show_invisible(getattr(self, 'caption', ''))!r})"


@dataclass(frozen=True, slots=True)
class TableCell:
    """Table cell with a tone, shown as a color and a mark, and a tooltip."""

    text: str
    tone: Tone | None = None
    hover: str = ""


CellValue = str | int | float | Estimate | TableCell | None
"""None and NaN show as a dash, floats with two decimals, estimates with their interval."""


@dataclass(frozen=True, repr=False)
class Table(Block):
    """Table of text and numbers.

    Attributes:
        columns: Column heads.
        rows: Cell values.
        caption: Line above the table.
        align: `l` or `r` for each column; by default only the first is left-aligned.
        notes: Lines below the table.
        folded: Whether it opens on a click; then it has a caption. It is printed open.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[CellValue]]
    caption: str = ""
    align: str = ""
    notes: Sequence[str] = ()
    folded: bool = False

    def __post_init__(self) -> None:
        for at, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise FigureError(
                    f"row {at} has {len(row)} cells but there are {len(self.columns)} columns: "
                    "give each row one cell for each column"
                )
        if self.align and (len(self.align) != len(self.columns) or set(self.align) - set("lr")):
            raise FigureError(
                f"align is {self.align!r} for {len(self.columns)} columns: "
                "give one `l` or `r` for each"
            )

    @property
    def body(self) -> str:
        """Table with its caption and notes."""
        align = self.align or "l" + "r" * (len(self.columns) - 1)
        heads = "".join(
            f'<th scope="col" data-align="{side}">{escape(name)}</th>'
            for name, side in zip(self.columns, align, strict=True)
        )
        lines = "".join(f"<tr>{''.join(map(_td, row, align))}</tr>" for row in self.rows)
        notes = "".join(f'<p class="pv-soft">{escape_lines(note)}</p>' for note in self.notes)
        table = (
            f'<div class="pv-scroll"><table class="pv-rows"><thead><tr>{heads}</tr>'
            f"</thead><tbody>{lines}</tbody></table></div>{notes}"
        )
        if not self.folded:
            return caption_html(self.caption) + table
        caption = f'<summary class="pv-caption">{escape_lines(self.caption)}</summary>'
        return f"<details>{caption}{table}</details>"


@dataclass(frozen=True)
class Note(Block):
    """Sentence in a box; its tone shows as a color and a mark."""

    text: str
    tone: Tone | None = None

    @property
    def body(self) -> str:
        """Box with the sentence."""
        text = escape_lines(typographic_minus(self.text))
        return f'<div class="pv-note"{_tone_attribute(self.tone)}>{text}</div>'


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(Block):
    """Table of numbers on a color scale.

    Attributes:
        values: Numbers; NaN is a missing cell.
        rows: Row labels.
        columns: Column labels.
        error: Standard error of each number, or None.
        signed: Whether the scale is signed around 0, else it starts at 0.
        caption: Line above the matrix.
        vmax: End of the color scale; by default the largest absolute number, and at least 1.
        corner: Names of the row axis and the column axis.
    """

    values: Float[np.ndarray, "row column"]
    rows: Sequence[str]
    columns: Sequence[str]
    error: Float[np.ndarray, "row column"] | None = None
    signed: bool = True
    caption: str = ""
    vmax: float | None = None
    corner: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        shape = (len(self.rows), len(self.columns))
        for name, array in (("values", self.values), ("error", self.error)):
            if array is not None and np.shape(array) != shape:
                raise FigureError(
                    f"{name} has shape {np.shape(array)} but there are {shape[0]} row and "
                    f"{shape[1]} column labels: name each row and column"
                )
        if np.isinf(self.values).any():
            raise FigureError("values hold an infinite number: give finite numbers, NaN if missing")

    @property
    def body(self) -> str:
        """Table with its caption."""
        known = np.abs(self.values[~np.isnan(self.values)])
        vmax = self.vmax or max(1.0, float(known.max(initial=0.0)))
        name = self.caption or "matrix"
        style = HeatTableStyle(name, self.signed, vmax, 40, self.corner, show_error=True)
        table = heat_table(self.values, self.error, tuple(self.rows), tuple(self.columns), style)
        return f'{caption_html(self.caption)}<div class="pv-scroll pv-wide">{table}</div>'


def caption_html(text: str) -> str:
    """Caption line of a block; empty for an empty text."""
    return f'<p class="pv-caption">{escape_lines(text)}</p>' if text else ""


def _td(value: CellValue, alignment: str) -> str:
    cell = value if isinstance(value, TableCell) else TableCell(_cell_text(value))
    text, hover = (escape(typographic_minus(part)) for part in (cell.text, cell.hover))
    title = f' title="{hover}"' if hover else ""
    # A long text keeps a readable width in narrow windows, where its table scrolls.
    width = ' class="pv-long"' if len(cell.text) > _LONG_TEXT else ""
    tone = _tone_attribute(cell.tone)
    return (
        f'<td data-align="{alignment}"{width}><span class="pv-tone"{tone}{title}>{text}</span></td>'
    )


def _cell_text(value: str | int | float | Estimate | None) -> str:
    if value is None or (isinstance(value, Estimate) and math.isnan(value.value)):
        return "–"
    if isinstance(value, Estimate):
        return nonbreaking(str(value))
    return format_number(value) if isinstance(value, float) else str(value)


def _tone_attribute(tone: Tone | None) -> str:
    return f' data-tone="{tone}"' if tone else ""
