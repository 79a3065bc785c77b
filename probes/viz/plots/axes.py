"""Axes of charts: scales, frame, ticks, legend, color bar and column titles."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from textwrap import wrap

from probes.viz.drawing import (
    Box,
    DrawingShape,
    Group,
    Part,
    Pixels,
    Point,
    TextLabel,
    fraction_color,
    rectangle,
    text_width,
    truncate_text,
)
from probes.viz.html_text import show_invisible

FONT_SIZE = 10.5
_BAR_STEPS = 24

Tick = tuple[float, str]
Mark = Callable[[Pixels, Pixels], Sequence[DrawingShape]]
"""Shapes of a legend mark around a center."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Panel with two axes.

    Attributes:
        box: The panel.
        x_range, y_range: Values at the ends of both axes; values outside are clipped.
        log_x, log_y: Whether an axis is logarithmic.
    """

    box: Box
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool = False
    log_y: bool = False

    def x(self, value: float) -> float:
        """Horizontal position in pixels."""
        return self.box[0] + self.box[2] * _unit(value, self.x_range, self.log_x)

    def y(self, value: float) -> float:
        """Vertical position in pixels, downward."""
        return self.box[1] + self.box[3] * (1 - _unit(value, self.y_range, self.log_y))

    def frame(self, title: str, x_ticks: Iterable[Tick], y_ticks: Iterable[Tick]) -> list[Part]:
        """Title, border, and grid lines with their labels; labels that would touch are left out."""
        left, top, width, height = self.box
        parts: list[Part] = [
            TextLabel(left, top - 8, truncate_text(title, width, 12), 12, bold=True),
            rectangle(self.box, "none", "line"),
        ]
        for value, text in y_ticks:
            y = self.y(value)
            parts.append(self.horizontal(value, "line"))
            parts.append(TextLabel(left - 5, y + 4, text, 10, "end", "soft"))
        end = -math.inf
        for value, text in x_ticks:
            x, half = self.x(value), text_width(text, 10) / 2
            parts.append(DrawingShape(((x, top), (x, top + height)), stroke="line"))
            if x - half > end + 3:
                parts.append(TextLabel(x, top + height + 14, text, 10, "middle", "soft"))
                end = x + half
        return parts

    def horizontal(self, value: float, color: str) -> DrawingShape:
        """Line across the panel at a value."""
        y = self.y(value)
        return DrawingShape(((self.box[0], y), (self.box[0] + self.box[2], y)), stroke=color)


def _unit(value: float, limits: tuple[float, float], is_log: bool) -> float:
    low, high = limits
    value = min(max(value, low), high)
    if is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / ((high - low) or 1.0)


def legend(
    entries: Iterable[tuple[str, Mark]], position: Point, width: Pixels, indent: Pixels = 0.0
) -> tuple[list[Part], Pixels]:
    """Marks with their names in rows, and the bottom of the last row.

    Args:
        entries: Name and mark.
        position: Left end and baseline of the first row.
        width: Width of a row in pixels.
        indent: Pixels before the first entry.
    """
    left, y = position
    x = left + indent
    parts: list[Part] = []
    for name, mark in entries:
        size = 34 + text_width(show_invisible(name), FONT_SIZE)
        if x + size > left + width and x > left:
            x, y = left, y + 18
        text = truncate_text(name, width - 20, FONT_SIZE)
        parts += [*mark(x + 8, y - 4), TextLabel(x + 20, y, text, FONT_SIZE, color="soft")]
        x += size
    return parts, y + 9


def color_bar(
    position: Point, ends: tuple[str, str], thresholds: Sequence[float] = ()
) -> tuple[list[Part], Pixels]:
    """Color scale between two texts, and its right end.

    Thresholds are fractions of the scale: each has a tick, and below the lowest the bar is thin.
    """
    (x, y), (low, high) = position, ends
    x += text_width(low, FONT_SIZE) + 5
    parts: list[Part] = [TextLabel(x - 4, y, low, FONT_SIZE, "end", "soft")]
    for at in range(_BAR_STEPS):
        is_thin = (at + 0.5) / _BAR_STEPS < min(thresholds, default=0.0)
        box = (x + 4 * at, y - 5 if is_thin else y - 9, 4.2, 3 if is_thin else 10)
        parts.append(rectangle(box, fraction_color(at / (_BAR_STEPS - 1))))
    for threshold in sorted(set(thresholds)):
        tick = x + 4 * _BAR_STEPS * threshold
        parts.append(DrawingShape(((tick, y - 12), (tick, y + 4)), "none", "ink", 1.4))
    x += 4 * _BAR_STEPS + 4
    parts.append(TextLabel(x, y, high, FONT_SIZE, color="soft"))
    return parts, x + text_width(high, FONT_SIZE) + 10


def column_titles(
    titles: Iterable[tuple[str, str]], column_x: Sequence[Pixels], max_width: Pixels
) -> tuple[list[Part], Pixels]:
    """Name and caption above each column, and the bottom of the lowest caption."""
    parts: list[Part] = []
    bottom = 0.0
    for (name, caption), left in zip(titles, column_x, strict=False):
        label = TextLabel(left, 14, truncate_text(name, max_width, 13), 13, bold=True)
        parts.append(Group(name, (label,)) if label.text != show_invisible(name) else label)
        lines = wrap(show_invisible(caption), max(8, int(max_width / 6.3)))
        for at, line in enumerate(lines):
            parts.append(TextLabel(left, 30 + 14 * at, line, FONT_SIZE, color="soft"))
        bottom = max(bottom, 24 + 14 * len(lines))
    return parts, bottom
