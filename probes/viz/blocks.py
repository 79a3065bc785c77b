"""The parts of a report: tables, remarks and matrices. Each shows itself in a notebook too."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from probes.errors import FigureError
from probes.viz.html_text import escape, escape_lines, show_invisible
from probes.viz.picture import html_fragment
from probes.viz.plots.heat_table import HeatTableStyle, heat_table

Tone = Literal["good", "bad", "muted"]


class Block(ABC):
    """Something that a page can hold."""

    @property
    @abstractmethod
    def body(self) -> str:
        """HTML in which all text is escaped already."""

    def _repr_html_(self) -> str:
        return html_fragment(self.body)


@dataclass(frozen=True, slots=True)
class TableCell:
    """A cell of a table. `tone` is said by a mark as well as a color; `hover` explains it."""

    text: str
    tone: Tone | None = None
    hover: str = ""


@dataclass(frozen=True)
class Table(Block):
    """Rows of text.

    Attributes:
        columns: The headings.
        rows: The cells, row after row.
        caption: A line above the table.
        align: `l` or `r` for each column; by default only the first is on the left.
        notes: Lines below the table.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | TableCell]]
    caption: str = ""
    align: str = ""
    notes: Sequence[str] = ()

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
        """The table with its caption and notes."""
        align = self.align or "l" + "r" * (len(self.columns) - 1)
        heads = "".join(
            f'<th scope="col" data-align="{side}">{escape(name)}</th>'
            for name, side in zip(self.columns, align, strict=True)
        )
        lines = "".join(f"<tr>{''.join(map(_td, row, align))}</tr>" for row in self.rows)
        notes = "".join(f'<p class="pv-soft">{escape_lines(note)}</p>' for note in self.notes)
        return (
            f'{caption_html(self.caption)}<div class="pv-scroll"><table class="pv-rows">'
            f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>{notes}"
        )

    def __repr__(self) -> str:
        return f"Table({show_invisible(self.caption)!r}, {len(self.rows)} x {len(self.columns)})"


@dataclass(frozen=True)
class Note(Block):
    """A remark in plain words; its tone shows as a mark and a color."""

    text: str
    tone: Tone | None = None

    @property
    def body(self) -> str:
        """The remark in a box."""
        return f'<div class="pv-note"{_tone_class(self.tone)}>{escape_lines(self.text)}</div>'


@dataclass(frozen=True, eq=False)
class Matrix(Block):
    """A table of numbers with colors behind them.

    Attributes:
        values: The numbers; NaN is no such cell.
        rows: What each row is called.
        columns: What each column is called.
        error: Standard error of each number, or None if unknown.
        signed: Whether they are changes around 0 rather than shares from 0.
        caption: A line above the matrix.
        top: The number at the end of the color scale; by default 1, or the largest
            number if that is more.
        corner: What the rows and the columns are.
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
        wanted = (len(self.rows), len(self.columns))
        for name, found in (("values", self.values), ("error", self.error)):
            if found is not None and np.shape(found) != wanted:
                raise FigureError(
                    f"{name} has shape {np.shape(found)} but there are {wanted[0]} row and "
                    f"{wanted[1]} column labels: name each row and column"
                )
        if np.isinf(self.values).any():
            raise FigureError("values hold an infinite number: give finite numbers, NaN if missing")

    @property
    def body(self) -> str:
        """The table with its caption."""
        known = np.abs(self.values[~np.isnan(self.values)])
        top = self.vmax or max(1.0, float(known.max(initial=0.0)))
        look = HeatTableStyle(
            self.caption or "matrix", self.signed, top, 40, self.corner, show_error=True
        )
        table = heat_table(self.values, self.error, tuple(self.rows), tuple(self.columns), look)
        return f'{caption_html(self.caption)}<div class="pv-scroll pv-wide">{table}</div>'

    def __repr__(self) -> str:
        return f"Matrix({show_invisible(self.caption)!r}, {len(self.rows)} x {len(self.columns)})"


def caption_html(text: str) -> str:
    """A line above a block, or nothing."""
    return f'<p class="pv-caption">{escape_lines(text)}</p>' if text else ""


def _td(cell: str | TableCell, alignment: str) -> str:
    cell = TableCell(cell) if isinstance(cell, str) else cell
    hover = f' title="{escape(cell.hover)}"' if cell.hover else ""
    text = f'<span class="pv-tone"{_tone_class(cell.tone)}{hover}>{escape(cell.text)}</span>'
    return f'<td data-align="{alignment}">{text}</td>'


def _tone_class(tone: Tone | None) -> str:
    return f' data-tone="{tone}"' if tone else ""
