"""A drawing that becomes SVG in a page and a matplotlib figure on paper."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

import numpy as np

from probes.viz.blocks import Block, Table
from probes.viz.colors import apply_colormap, to_hex
from probes.viz.html_text import escape, show_invisible
from probes.viz.picture import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 900.0
"""Pixels that a drawing keeps to where it can."""

Pixels = float | int
Point = tuple[Pixels, Pixels]

# Okabe and Ito's colors, with olive and gray for the two that vanish on white or on black.
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8f8f2e", "#7f8794",
)  # fmt: skip
_DRAWING_STYLE = (
    ".pv.pv .pv-sheet{display:block;max-width:none;overflow:visible}"
    ".pv.pv .pv-sheet path~text{pointer-events:none}"
    ".pv.pv .pv-cloud g>*{fill-opacity:.85}"
    ".pv.pv .pv-cloud g:hover>*{stroke:var(--ink);stroke-width:3px;fill-opacity:1}"
)
HOVER_STYLE = (
    "<style>.pv.pv .pv-hot g:hover>path:first-of-type{stroke:var(--ink);stroke-width:1.5px}"
    ".pv.pv .pv-numbers{font-size:13px;margin:4px 0 0}"
    ".pv.pv .pv-numbers summary{cursor:pointer;color:var(--soft)}</style>"
)
"""What a drawing with hovering cells or bars, and with its numbers below, brings along."""

LIGHT_COLORS = {
    "ink": "#16181d", "soft": "#5d6470", "line": "#dfe2e7", "paper": "#ffffff", "wash": "#f5f6f8",
    "mark": "#d6246e", "none": "none",
}  # fmt: skip
"""The page's colors by name, as they are in its light form."""


@dataclass(frozen=True, slots=True)
class DrawingShape:
    """A closed shape; two points are a line, and one is a circle of `radius` pixels."""

    points: tuple[Point, ...]
    fill: str = "none"
    stroke: str = "none"
    stroke_width: Pixels = 1.0
    radius: Pixels = 0.0


@dataclass(frozen=True, slots=True)
class TextLabel:
    """A line of text that stands on y; `turned` text runs upward."""

    x: Pixels
    y: Pixels
    text: str
    size: Pixels = 11.0
    anchor: Literal["start", "middle", "end"] = "start"
    color: str = "ink"
    bold: bool = False
    rotated: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Parts that say something on hover; `edge` is around those that have none of their own."""

    tooltip: str
    parts: tuple[DrawingShape | TextLabel, ...]
    stroke: str = "none"


Part = DrawingShape | TextLabel | Group


@dataclass(frozen=True, eq=False)
class Drawing:
    """A drawing in pixels, y downward; colors are `#rrggbb` or one of the page's names."""

    width: Pixels
    height: Pixels
    parts: tuple[Part, ...]
    name: str
    description: str


def rectangle(  # noqa: PLR0913 - a rectangle has four sides
    x: Pixels, y: Pixels, width: Pixels, height: Pixels, fill: str, stroke: str = "none"
) -> DrawingShape:
    """A rectangle by its upper left corner."""
    return DrawingShape(
        ((x, y), (x + width, y), (x + width, y + height), (x, y + height)), fill, stroke
    )


def text_width(text: str, size: Pixels) -> float:
    """About how many pixels a text takes."""
    return 0.6 * size * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fraction_color(fraction: float) -> str:
    """The color of a share from 0 to 1."""
    return to_hex(apply_colormap(np.array(fraction, dtype=float), "share"))


def truncate_text(text: str, max_width: Pixels, size: Pixels) -> str:
    """The visible text, cut off where it is too long."""
    shown = show_invisible(text)
    if text_width(shown, size) <= max_width:
        return shown
    while shown and text_width(shown + "…", size) > max_width:
        shown = shown[:-1]
    return shown + "…"


def column_titles(
    titles: Iterable[tuple[str, str]], column_x: Sequence[Pixels], max_width: Pixels
) -> tuple[list[Part], Pixels]:
    """The name and the caption above each column, and where the lowest of them ends."""
    parts: list[Part] = []
    lowest = 0.0
    for (name, says), left in zip(titles, column_x, strict=False):
        words = TextLabel(left, 14, truncate_text(name, max_width, 13), 13, bold=True)
        parts.append(Group(name, (words,)) if words.text != show_invisible(name) else words)
        lines = wrap(show_invisible(says), max(8, int(max_width / 6.3)))
        for at, line in enumerate(lines):
            parts.append(TextLabel(left, 30 + 14 * at, line, 10.5, color="soft"))
        lowest = max(lowest, 24 + 14 * len(lines))
    return parts, lowest


def scrollable_svg(drawing: Drawing, css_class: str) -> str:
    """The drawing as SVG that scrolls where it is too wide."""
    name = escape(drawing.name)
    size = f'width="{drawing.width:.0f}" height="{drawing.height:.0f}"'
    return (
        f'<style>{_DRAWING_STYLE}</style><div class="pv-scroll" tabindex="0" role="group" '
        f'aria-label="{name}"><svg class="pv-sheet {css_class}" role="img" aria-label="{name}" {size} '
        f'viewBox="0 0 {drawing.width:.0f} {drawing.height:.0f}" font-size="11" fill="var(--ink)">'
        f"<desc>{escape(drawing.description)}</desc>{''.join(map(_svg, drawing.parts))}</svg></div>"
    )


def collapsed_table(table: Table) -> str:
    """The numbers, folded: the keyboard opens them and a screen reader reads them."""
    return (
        f'<details class="pv-numbers"><summary>The numbers as a table</summary>{table.body}'
        "</details>"
    )


def block_picture(title: str, block: Block, drawing: Drawing) -> Picture:
    """The block as a picture, which saves as a figure too."""
    body = f'<p class="pv-title">{escape(title)}</p>{block.body}'
    return Picture(show_invisible(title), body, lambda figure: _draw_figure(figure, drawing, title))


def _svg(part: Part) -> str:
    if isinstance(part, Group):
        edge = (
            f' stroke="{_css_color(part.stroke)}" stroke-width=".6"'
            if part.stroke != "none"
            else ""
        )
        inside = "".join(map(_svg, part.parts))
        return f"<g{edge}><title>{escape(part.tooltip)}</title>{inside}</g>"
    if isinstance(part, TextLabel):
        return _svg_text(part)
    paint = (
        "" if part.fill == "none" and len(part.points) < 3 else f' fill="{_css_color(part.fill)}"'
    )
    if part.stroke != "none":
        paint += f' stroke="{_css_color(part.stroke)}"'
        paint += (
            f' stroke-width="{_format_number(part.stroke_width)}"' if part.stroke_width != 1 else ""
        )
    if len(part.points) == 1:
        x, y = map(_format_number, part.points[0])
        return f'<circle cx="{x}" cy="{y}" r="{_format_number(part.radius)}"{paint}/>'
    places = [(round(x, 1), round(y, 1)) for x, y in part.points]
    path = f"M{_format_number(places[0][0])} {_format_number(places[0][1])}l"
    steps = [
        f"{_format_number(b[0] - a[0])} {_format_number(b[1] - a[1])}" for a, b in pairwise(places)
    ]
    return f'<path d="{path}{" ".join(steps)}z"{paint}/>'


def _svg_text(text_label: TextLabel) -> str:
    style = f' font-size="{text_label.size:g}"' if text_label.size != 11 else ""
    style += f' text-anchor="{text_label.anchor}"' if text_label.anchor != "start" else ""
    style += f' fill="{_css_color(text_label.color)}"' if text_label.color != "ink" else ""
    style += ' font-weight="600"' if text_label.bold else ""
    x, y = _format_number(text_label.x), _format_number(text_label.y)
    style += f' transform="rotate(-90 {x} {y})"' if text_label.rotated else ""
    return f'<text x="{x}" y="{y}"{style}>{escape(text_label.text)}</text>'


def _css_color(color: str) -> str:
    return f"var(--{color})" if color in LIGHT_COLORS and color != "none" else color


def _format_number(value: Pixels) -> str:
    return f"{round(value, 1) + 0.0:g}"


def _draw_figure(figure: "Figure", drawing: Drawing, title: str) -> None:
    lines = wrap(show_invisible(title), int(drawing.width / 9.5)) or [""]
    head = 8.0 + 20 * len(lines)
    figure.set_size_inches((drawing.width + 16) / 96, (drawing.height + head + 12) / 96)
    # Places are fixed here: nothing is left to lay out.
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(-8, drawing.width + 8)
    axes.set_ylim(drawing.height + 6, -head - 6)
    for at, line in enumerate(lines):
        _draw_part(axes, TextLabel(0, 10 + 20 * at - head, line, 15, bold=True), "none")
    for part in drawing.parts:
        inside, edge = (part.parts, part.stroke) if isinstance(part, Group) else ((part,), "none")
        for one in inside:
            _draw_part(axes, one, edge)


def _draw_part(axes: "Axes", part: DrawingShape | TextLabel, stroke: str) -> None:
    from matplotlib.patches import Circle, Polygon

    if isinstance(part, TextLabel):
        text = drawable_text(show_invisible(part.text))
        axes.text(
            part.x, part.y, text, fontsize=part.size * 0.72, parse_math=False, zorder=2,
            color=LIGHT_COLORS.get(part.color, part.color), rotation=90 if part.rotated else 0,
            ha={"start": "left", "middle": "center", "end": "right"}[part.anchor],
            va="center" if part.rotated else "baseline",
            fontweight="bold" if part.bold else "normal",
        )  # fmt: skip
        return
    edge, thick = (stroke, 0.6) if part.stroke == "none" else (part.stroke, part.stroke_width)
    fill, edge = (LIGHT_COLORS.get(color, color) for color in (part.fill, edge))
    style = {"fc": fill, "ec": edge, "lw": thick * 0.75, "zorder": 1}
    one = len(part.points) == 1
    axes.add_patch(
        Circle(part.points[0], part.radius, **style) if one else Polygon(part.points, **style)
    )


def drawable_text(text: str) -> str:
    """The text with characters that the font lacks written as code points."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(char if ord(char) in known else f"U+{ord(char):04X}" for char in text)
