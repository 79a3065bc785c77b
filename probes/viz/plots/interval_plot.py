"""Estimates with their intervals, beside what chance does and what is best possible."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.errors import FigureError
from probes.viz.blocks import Block, Tone, caption_html
from probes.viz.html_text import axis_label, escape, show_invisible, typographic_minus

_ROW_HEIGHT = 26


@dataclass(frozen=True, slots=True)
class Interval:
    """One estimate.

    Attributes:
        label: What is estimated.
        estimate: The number.
        low: Lower end of its interval, or None if unknown.
        high: Upper end of its interval, or None if unknown.
        chance: The band that chance reaches, or None.
        null: What null models reached, one number each.
        ceiling: The best that could be reached, or None.
        tone: Whether it is good news; the numbers say so too.
    """

    label: str
    estimate: float
    low: float | None = None
    high: float | None = None
    chance: tuple[float, float] | None = None
    null: Sequence[float] = ()
    upper_reference: float | None = None
    tone: Tone | None = None

    def __post_init__(self) -> None:
        numbers = self.numbers()
        if not numbers or not np.isfinite(numbers).all():
            raise FigureError(
                f"{self.label!r} holds a number that is not finite: leave such rows out"
            )
        if (self.low is None) != (self.high is None):
            raise FigureError(f"{self.label!r} has one end of its interval: give both or neither")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise FigureError(
                f"{self.label!r} has the interval {self.low} to {self.high}: swap the ends"
            )

    def numbers(self) -> list[float]:
        """Every number that the row shows."""
        maybe = [
            self.estimate,
            self.low,
            self.high,
            self.upper_reference,
            *(self.chance or ()),
            *self.null,
        ]
        return [float(number) for number in maybe if number is not None]


@dataclass(frozen=True)
class IntervalPlot(Block):
    """Estimates under one another on one axis.

    Attributes:
        rows: The estimates.
        caption: A line above the plot.
        limits: The ends of the axis; by default 0 and 1, or wider if a number lies outside.
        axis: What the axis measures, with its unit.
        digits: Decimals of the printed numbers.
    """

    rows: Sequence[Interval]
    caption: str = ""
    limits: tuple[float, float] | None = None
    axis: str = ""
    digits: int = 2

    def __post_init__(self) -> None:
        if self.limits and not self.limits[0] < self.limits[1]:
            raise FigureError(f"limits are {self.limits}: give the smaller end first")

    @property
    def body(self) -> str:
        """A table with a small drawing in each row."""
        low, high = self.limits or _limits(self.rows)
        lines = "".join(self._line(row, low, high) for row in self.rows)
        return (
            f'{caption_html(self.caption)}{_legend(self.rows)}<table class="pv-line" '
            f'aria-label="{escape(self.caption or "estimates")}"><tbody>{lines}</tbody>'
            f"<tfoot><tr><td></td><td>{_axis(low, high)}</td><td></td></tr></tfoot></table>"
            + (f'<p class="pv-soft pv-axis">{escape(self.axis)}</p>' if self.axis else "")
        )

    def _line(self, row: Interval, low: float, high: float) -> str:
        text = f"{row.estimate:.{self.digits}f}"
        if row.low is not None and row.high is not None:
            text += f" [{row.low:.{self.digits}f}, {row.high:.{self.digits}f}]"
        tone = f' data-tone="{row.tone}"' if row.tone else ""
        return (
            f'<tr{tone}><th scope="row" title="{escape(row.label)}">{escape(axis_label(row.label))}'
            f"</th><td>{_row_svg(row, low, high)}</td>"
            f'<td><span class="pv-tone"{tone}>{typographic_minus(text)}</span></td></tr>'
        )

    def __repr__(self) -> str:
        return f"IntervalPlot({show_invisible(self.caption)!r}, {len(self.rows)} rows)"


def _limits(rows: Sequence[Interval]) -> tuple[float, float]:
    numbers = [number for row in rows for number in row.numbers()]
    return min(0.0, *numbers, 0.0), max(1.0, *numbers, 1.0)


def _percent(value: float, low: float, high: float) -> str:
    """Where the value lies, in percent; what is off the axis sits at its end."""
    return f"{100 * min(1.0, max(0.0, (value - low) / (high - low))):.2f}%"


def _row_svg(row: Interval, low: float, high: float) -> str:
    middle = _ROW_HEIGHT // 2
    parts = [
        _vertical_rule(_percent(tick, low, high), 0, _ROW_HEIGHT, "pv-rule")
        for tick in _ticks(low, high)
    ]
    if row.chance:
        start, stop = (_percent(end, low, high) for end in sorted(row.chance))
        wide = f"{float(stop[:-1]) - float(start[:-1]):.2f}%"
        size = f'width="{wide}" height="{_ROW_HEIGHT - 8}"'
        parts.append(f'<rect class="pv-band" x="{start}" y="4" {size}/>')
    parts += [
        _vertical_rule(_percent(one, low, high), middle - 6, middle + 6, "pv-null")
        for one in row.null
    ]
    if row.low is not None and row.high is not None:
        start, stop = _percent(row.low, low, high), _percent(row.high, low, high)
        parts.append(
            f'<line class="pv-span" x1="{start}" x2="{stop}" y1="{middle}" y2="{middle}"/>'
            + _vertical_rule(start, middle - 4, middle + 4, "pv-span")
            + _vertical_rule(stop, middle - 4, middle + 4, "pv-span")
        )
    if row.upper_reference is not None:
        parts.append(_diamond(_percent(row.upper_reference, low, high)))
    center = _percent(row.estimate, low, high)
    parts.append(f'<circle class="pv-dot" cx="{center}" cy="{middle}" r="4.5"/>')
    return f'<svg width="100%" height="{_ROW_HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def _vertical_rule(x: str, top: int, bottom: int, css_class: str) -> str:
    return f'<line class="{css_class}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'


def _diamond(x: str) -> str:
    """A diamond. It is moved by percent, and percent cannot stand in a path."""
    half, middle = 4.5, _ROW_HEIGHT // 2
    return (
        f'<svg x="{x}" y="{middle}" overflow="visible"><rect class="pv-ceiling" x="{-half}" '
        f'y="{-half}" width="{2 * half}" height="{2 * half}" transform="rotate(45)"/></svg>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers along the axis."""
    rough = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    # Of the round steps the first that is wide enough; rounding must not skip one.
    step = float(next(by * power for by in (1, 2, 2.5, 5, 10) if by * power >= rough * 0.999))
    first = int(np.ceil(low / step - 1e-9))
    last = int(np.floor(high / step + 1e-9))
    return [step * at for at in range(first, last + 1)]


def _axis(low: float, high: float) -> str:
    marks = "".join(
        f'<text x="{_percent(tick, low, high)}" y="12" text-anchor="middle">'
        f"{typographic_minus(f'{tick:.10g}')}</text>"
        for tick in _ticks(low, high)
    )
    return f'<svg width="100%" height="16" aria-hidden="true">{marks}</svg>'


def _legend(rows: Sequence[Interval]) -> str:
    """Only the marks that occur."""
    middle = _ROW_HEIGHT // 2
    spans = any(row.low is not None for row in rows)
    line = f'<line class="pv-span" x1="0" x2="28" y1="{middle}" y2="{middle}"/>' if spans else ""
    dot = line + f'<circle class="pv-dot" cx="14" cy="{middle}" r="4.5"/>'
    marks = [("estimate with its interval" if spans else "estimate", dot)]
    if any(row.chance for row in rows):
        band = f'<rect class="pv-band" x="0" y="4" width="28" height="{_ROW_HEIGHT - 8}"/>'
        marks.append(("what chance reaches", band))
    if any(row.null for row in rows):
        null = "".join(
            _vertical_rule(str(x), middle - 6, middle + 6, "pv-null") for x in (6, 11, 20)
        )
        marks.append(("null models", null))
    if any(row.upper_reference is not None for row in rows):
        marks.append(("ceiling", _diamond("14")))
    keys = "".join(
        f'<span class="pv-key"><svg width="28" height="{_ROW_HEIGHT}" aria-hidden="true">{mark}</svg>'
        f"{word}</span>"
        for word, mark in marks
    )
    return f'<div class="pv-legend">{keys}</div>'
