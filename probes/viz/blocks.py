"""The parts of a report: tables, remarks and matrices. Each shows itself in a notebook too."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from probes.errors import FigureError
from probes.viz.html_text import escaped, prose, visible
from probes.viz.picture import fragment
from probes.viz.plots.heat_table import Look, heat_table

Tone = Literal["good", "bad", "muted"]


class Block(ABC):
    """Something that a page can hold."""

    @property
    @abstractmethod
    def body(self) -> str:
        """HTML in which all text is escaped already."""

    def _repr_html_(self) -> str:
        return fragment(self.body)


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table. `tone` is said by a mark as well as a colour; `hover` explains it."""

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
    rows: Sequence[Sequence[str | Cell]]
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
            f'<th scope="col" data-align="{side}">{escaped(name)}</th>'
            for name, side in zip(self.columns, align, strict=True)
        )
        lines = "".join(f"<tr>{''.join(map(_td, row, align))}</tr>" for row in self.rows)
        notes = "".join(f'<p class="pv-soft">{prose(note)}</p>' for note in self.notes)
        return (
            f'{caption(self.caption)}<div class="pv-scroll"><table class="pv-rows">'
            f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>{notes}"
        )

    def __repr__(self) -> str:
        return f"Table({visible(self.caption)!r}, {len(self.rows)} x {len(self.columns)})"


@dataclass(frozen=True)
class Note(Block):
    """A remark in plain words; its tone shows as a mark and a colour."""

    text: str
    tone: Tone | None = None

    @property
    def body(self) -> str:
        """The remark in a box."""
        return f'<div class="pv-note"{_toned(self.tone)}>{prose(self.text)}</div>'


@dataclass(frozen=True, eq=False)
class Matrix(Block):
    """A table of numbers with colours behind them.

    Attributes:
        values: The numbers; NaN is no such cell.
        rows: What each row is called.
        columns: What each column is called.
        error: Standard error of each number, or None if unknown.
        signed: Whether they are changes around 0 rather than shares from 0.
        caption: A line above the matrix.
        top: The number at the end of the colour scale; by default 1, or the largest
            number if that is more.
        corner: What the rows and the columns are.
    """

    values: Float[np.ndarray, "row column"]
    rows: Sequence[str]
    columns: Sequence[str]
    error: Float[np.ndarray, "row column"] | None = None
    signed: bool = True
    caption: str = ""
    top: float | None = None
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
        top = self.top or max(1.0, float(known.max(initial=0.0)))
        look = Look(self.caption or "matrix", self.signed, top, 40, self.corner, spread=True)
        table = heat_table(self.values, self.error, tuple(self.rows), tuple(self.columns), look)
        return f'{caption(self.caption)}<div class="pv-scroll pv-wide">{table}</div>'

    def __repr__(self) -> str:
        return f"Matrix({visible(self.caption)!r}, {len(self.rows)} x {len(self.columns)})"


def caption(text: str) -> str:
    """A line above a block, or nothing."""
    return f'<p class="pv-caption">{prose(text)}</p>' if text else ""


def _td(cell: str | Cell, side: str) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    hover = f' title="{escaped(cell.hover)}"' if cell.hover else ""
    text = f'<span class="pv-tone"{_toned(cell.tone)}{hover}>{escaped(cell.text)}</span>'
    return f'<td data-align="{side}">{text}</td>'


def _toned(tone: Tone | None) -> str:
    return f' data-tone="{tone}"' if tone else ""
