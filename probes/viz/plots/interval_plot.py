"""Estimates with their intervals on one axis, with their null and an upper reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.errors import FigureError
from probes.stats.intervals import Estimate
from probes.viz.blocks import Block, Tone, caption_html
from probes.viz.html_text import axis_label, escape, typographic_minus

_ROW_HEIGHT = 26
_MIDDLE = _ROW_HEIGHT // 2


@dataclass(frozen=True, slots=True)
class Interval:
    """One row of an interval plot.

    Attributes:
        label: Row label.
        estimate: Point estimate.
        low: Lower end of its interval, or None.
        high: Upper end of its interval, or None.
        chance: Range of the null, drawn as a band, or None.
        null: Value of each null model, drawn as ticks.
        upper_reference: Best value to expect, drawn as a diamond, or None.
        tone: Color of the row.
    """

    label: str
    estimate: float
    low: float | None = None
    high: float | None = None
    chance: tuple[float, float] | None = None
    null: Sequence[float] = ()
    upper_reference: float | None = None
    tone: Tone | None = None

    @classmethod
    def of(cls, label: str, estimate: Estimate, **marks: object) -> "Interval":
        """Row of an estimate; `marks` are the other fields, and those that are NaN are left out."""
        known: dict = {name: mark for name, mark in marks.items() if mark == mark}
        return cls(label, estimate.value, estimate.low, estimate.high, **known)

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
        """All numbers of the row."""
        single = (self.estimate, self.low, self.high, self.upper_reference)
        numbers = (*single, *(self.chance or ()), *self.null)
        return [float(number) for number in numbers if number is not None]


@dataclass(frozen=True, repr=False)
class IntervalPlot(Block):
    """Estimates below one another on a common axis.

    Attributes:
        rows: Estimates.
        caption: Line above the plot.
        limits: Ends of the axis; by default 0 and 1, or wider if a number lies outside.
        axis: Axis label with its unit.
        digits: Decimals of the printed numbers.
        chance_label: Legend entry of the band.
        null_label: Legend entry of the ticks.
        reference_label: Legend entry of the diamond.
    """

    rows: Sequence[Interval]
    caption: str = ""
    limits: tuple[float, float] | None = None
    axis: str = ""
    digits: int = 2
    chance_label: str = "range of the null"
    null_label: str = "null models"
    reference_label: str = "upper reference"

    def __post_init__(self) -> None:
        if self.limits and not self.limits[0] < self.limits[1]:
            raise FigureError(f"limits are {self.limits}: give the smaller end first")

    @property
    def body(self) -> str:
        """Table with one small drawing in each row."""
        numbers = [number for row in self.rows for number in row.numbers()]
        low, high = self.limits or (min(0.0, *numbers, 0.0), max(1.0, *numbers, 1.0))
        lines = "".join(self._line(row, low, high) for row in self.rows)
        return (
            f'{caption_html(self.caption)}{self._legend()}<table class="pv-line" '
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

    def _legend(self) -> str:
        """Legend of the marks that occur."""
        has_interval = any(row.low is not None for row in self.rows)
        line = f'<line class="pv-span" x1="0" x2="28" y1="{_MIDDLE}" y2="{_MIDDLE}"/>'
        name = "estimate with 95 % interval" if has_interval else "estimate"
        marks = [(name, line * has_interval + _dot("14"))]
        if any(row.chance for row in self.rows):
            marks.append((self.chance_label, _band("0", "28")))
        if any(row.null for row in self.rows):
            marks.append(
                (self.null_label, "".join(_tick(str(x), 6, "pv-null") for x in (6, 11, 20)))
            )
        if any(row.upper_reference is not None for row in self.rows):
            marks.append((self.reference_label, _diamond("14")))
        entries = "".join(
            f'<span class="pv-key"><svg width="28" height="{_ROW_HEIGHT}" aria-hidden="true">'
            f"{mark}</svg>{escape(name)}</span>"
            for name, mark in marks
        )
        return f'<div class="pv-legend">{entries}</div>'


def _percent(value: float, low: float, high: float) -> str:
    """Position on the axis in percent, clipped to its ends."""
    return f"{100 * min(1.0, max(0.0, (value - low) / (high - low))):.2f}%"


def _row_svg(row: Interval, low: float, high: float) -> str:
    def at(value: float) -> str:
        return _percent(value, low, high)

    parts = [_tick(at(tick), _MIDDLE, "pv-rule") for tick in _axis_ticks(low, high)]
    if row.chance:
        start, end = map(at, sorted(row.chance))
        parts.append(_band(start, f"{float(end[:-1]) - float(start[:-1]):.2f}%"))
    parts += [_tick(at(value), 6, "pv-null") for value in row.null]
    if row.low is not None and row.high is not None:
        start, end = at(row.low), at(row.high)
        parts.append(
            f'<line class="pv-span" x1="{start}" x2="{end}" y1="{_MIDDLE}" y2="{_MIDDLE}"/>'
            + _tick(start, 4, "pv-span")
            + _tick(end, 4, "pv-span")
        )
    if row.upper_reference is not None:
        parts.append(_diamond(at(row.upper_reference)))
    parts.append(_dot(at(row.estimate)))
    return f'<svg width="100%" height="{_ROW_HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def _tick(x: str, half_height: int, css_class: str) -> str:
    ends = f'y1="{_MIDDLE - half_height}" y2="{_MIDDLE + half_height}"'
    return f'<line class="{css_class}" x1="{x}" x2="{x}" {ends}/>'


def _band(x: str, width: str) -> str:
    return f'<rect class="pv-band" x="{x}" y="4" width="{width}" height="{_ROW_HEIGHT - 8}"/>'


def _dot(x: str) -> str:
    return f'<circle class="pv-dot" cx="{x}" cy="{_MIDDLE}" r="4.5"/>'


def _diamond(x: str) -> str:
    # Its position is in percent, which a path cannot hold: hence a nested svg.
    return (
        f'<svg x="{x}" y="{_MIDDLE}" overflow="visible"><rect class="pv-ceiling" x="-4.5" '
        f'y="-4.5" width="9.0" height="9.0" transform="rotate(45)"/></svg>'
    )


def _axis_ticks(low: float, high: float) -> list[float]:
    """Round numbers along the axis."""
    rough = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    # The first round step that is wide enough; rounding must not skip one.
    step = float(next(by * power for by in (1, 2, 2.5, 5, 10) if by * power >= rough * 0.999))
    first = int(np.ceil(low / step - 1e-9))
    last = int(np.floor(high / step + 1e-9))
    return [step * at for at in range(first, last + 1)]


def _axis(low: float, high: float) -> str:
    labels = "".join(
        f'<text x="{_percent(tick, low, high)}" y="12" text-anchor="middle">'
        f"{typographic_minus(f'{tick:.10g}')}</text>"
        for tick in _axis_ticks(low, high)
    )
    return f'<svg width="100%" height="16" aria-hidden="true">{labels}</svg>'
