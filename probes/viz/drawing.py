"""A drawing that becomes SVG in a page and a matplotlib figure on paper."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

import numpy as np

from probes.viz.blocks import Block, Table
from probes.viz.colours import hexed, paint
from probes.viz.html_text import escaped, visible
from probes.viz.picture import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 900.0
"""Pixels that a drawing keeps to where it can."""

Pixels = float | int
Point = tuple[Pixels, Pixels]

# Okabe and Ito's colours, with olive and grey for the two that vanish on white or on black.
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8f8f2e", "#7f8794",
)  # fmt: skip
_STYLE = (
    ".pv.pv .pv-sheet{display:block;max-width:none;overflow:visible}"
    ".pv.pv .pv-sheet path~text{pointer-events:none}"
    ".pv.pv .pv-cloud g>*{fill-opacity:.85}"
    ".pv.pv .pv-cloud g:hover>*{stroke:var(--ink);stroke-width:3px;fill-opacity:1}"
)
HOT_STYLE = (
    "<style>.pv.pv .pv-hot g:hover>path:first-of-type{stroke:var(--ink);stroke-width:1.5px}"
    ".pv.pv .pv-numbers{font-size:13px;margin:4px 0 0}"
    ".pv.pv .pv-numbers summary{cursor:pointer;color:var(--soft)}</style>"
)
"""What a drawing with hovering cells or bars, and with its numbers below, brings along."""

LIGHT = {
    "ink": "#16181d", "soft": "#5d6470", "line": "#dfe2e7", "paper": "#ffffff", "wash": "#f5f6f8",
    "mark": "#d6246e", "none": "none",
}  # fmt: skip
"""The page's colours by name, as they are in its light form."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A closed shape; two points are a line, and one is a circle of `radius` pixels."""

    points: tuple[Point, ...]
    fill: str = "none"
    edge: str = "none"
    thick: Pixels = 1.0
    radius: Pixels = 0.0


@dataclass(frozen=True, slots=True)
class Words:
    """A line of text that stands on y; `turned` text runs upward."""

    x: Pixels
    y: Pixels
    text: str
    size: Pixels = 11.0
    side: Literal["start", "middle", "end"] = "start"
    colour: str = "ink"
    bold: bool = False
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Parts that say something on hover; `edge` is around those that have none of their own."""

    says: str
    parts: tuple[Shape | Words, ...]
    edge: str = "none"


Part = Shape | Words | Group


@dataclass(frozen=True, eq=False)
class Sheet:
    """A drawing in pixels, y downward; colours are `#rrggbb` or one of the page's names."""

    width: Pixels
    height: Pixels
    parts: tuple[Part, ...]
    name: str
    says: str


def box(  # noqa: PLR0913 - a rectangle has four sides
    x: Pixels, y: Pixels, wide: Pixels, high: Pixels, fill: str, edge: str = "none"
) -> Shape:
    """A rectangle by its upper left corner."""
    return Shape(((x, y), (x + wide, y), (x + wide, y + high), (x, y + high)), fill, edge)


def wide(text: str, size: Pixels) -> float:
    """About how many pixels a text takes."""
    return 0.6 * size * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shade(unit: float) -> str:
    """The colour of a share from 0 to 1."""
    return hexed(paint(np.array(unit, dtype=float), "share"))


def fitted(text: str, room: Pixels, size: Pixels) -> str:
    """The visible text, cut off where it is too long."""
    shown = visible(text)
    if wide(shown, size) <= room:
        return shown
    while shown and wide(shown + "…", size) > room:
        shown = shown[:-1]
    return shown + "…"


def headings(
    titles: Iterable[tuple[str, str]], lefts: Sequence[Pixels], room: Pixels
) -> tuple[list[Part], Pixels]:
    """The name and the caption above each column, and where the lowest of them ends."""
    parts: list[Part] = []
    lowest = 0.0
    for (name, says), left in zip(titles, lefts, strict=False):
        words = Words(left, 14, fitted(name, room, 13), 13, bold=True)
        parts.append(Group(name, (words,)) if words.text != visible(name) else words)
        lines = wrap(visible(says), max(8, int(room / 6.3)))
        for at, line in enumerate(lines):
            parts.append(Words(left, 30 + 14 * at, line, 10.5, colour="soft"))
        lowest = max(lowest, 24 + 14 * len(lines))
    return parts, lowest


def scrolled(sheet: Sheet, kind: str) -> str:
    """The drawing as SVG that scrolls where it is too wide."""
    name = escaped(sheet.name)
    size = f'width="{sheet.width:.0f}" height="{sheet.height:.0f}"'
    return (
        f'<style>{_STYLE}</style><div class="pv-scroll" tabindex="0" role="group" '
        f'aria-label="{name}"><svg class="pv-sheet {kind}" role="img" aria-label="{name}" {size} '
        f'viewBox="0 0 {sheet.width:.0f} {sheet.height:.0f}" font-size="11" fill="var(--ink)">'
        f"<desc>{escaped(sheet.says)}</desc>{''.join(map(_svg, sheet.parts))}</svg></div>"
    )


def details(table: Table) -> str:
    """The numbers, folded: the keyboard opens them and a screen reader reads them."""
    return (
        f'<details class="pv-numbers"><summary>The numbers as a table</summary>{table.body}'
        "</details>"
    )


def pictured(title: str, block: Block, sheet: Sheet) -> Picture:
    """The block as a picture, which saves as a figure too."""
    body = f'<p class="pv-title">{escaped(title)}</p>{block.body}'
    return Picture(visible(title), body, lambda figure: _draw(figure, sheet, title))


def _svg(part: Part) -> str:
    if isinstance(part, Group):
        edge = f' stroke="{_named(part.edge)}" stroke-width=".6"' if part.edge != "none" else ""
        inside = "".join(map(_svg, part.parts))
        return f"<g{edge}><title>{escaped(part.says)}</title>{inside}</g>"
    if isinstance(part, Words):
        return _text(part)
    paint = "" if part.fill == "none" and len(part.points) < 3 else f' fill="{_named(part.fill)}"'
    if part.edge != "none":
        paint += f' stroke="{_named(part.edge)}"'
        paint += f' stroke-width="{_short(part.thick)}"' if part.thick != 1 else ""
    if len(part.points) == 1:
        x, y = map(_short, part.points[0])
        return f'<circle cx="{x}" cy="{y}" r="{_short(part.radius)}"{paint}/>'
    places = [(round(x, 1), round(y, 1)) for x, y in part.points]
    path = f"M{_short(places[0][0])} {_short(places[0][1])}l"
    steps = [f"{_short(b[0] - a[0])} {_short(b[1] - a[1])}" for a, b in pairwise(places)]
    return f'<path d="{path}{" ".join(steps)}z"{paint}/>'


def _text(words: Words) -> str:
    style = f' font-size="{words.size:g}"' if words.size != 11 else ""
    style += f' text-anchor="{words.side}"' if words.side != "start" else ""
    style += f' fill="{_named(words.colour)}"' if words.colour != "ink" else ""
    style += ' font-weight="600"' if words.bold else ""
    x, y = _short(words.x), _short(words.y)
    style += f' transform="rotate(-90 {x} {y})"' if words.turned else ""
    return f'<text x="{x}" y="{y}"{style}>{escaped(words.text)}</text>'


def _named(colour: str) -> str:
    return f"var(--{colour})" if colour in LIGHT and colour != "none" else colour


def _short(value: Pixels) -> str:
    return f"{round(value, 1) + 0.0:g}"


def _draw(figure: "Figure", sheet: Sheet, title: str) -> None:
    lines = wrap(visible(title), int(sheet.width / 9.5)) or [""]
    head = 8.0 + 20 * len(lines)
    figure.set_size_inches((sheet.width + 16) / 96, (sheet.height + head + 12) / 96)
    # Places are fixed here: nothing is left to lay out.
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(-8, sheet.width + 8)
    axes.set_ylim(sheet.height + 6, -head - 6)
    for at, line in enumerate(lines):
        _ink(axes, Words(0, 10 + 20 * at - head, line, 15, bold=True), "none")
    for part in sheet.parts:
        inside, edge = (part.parts, part.edge) if isinstance(part, Group) else ((part,), "none")
        for one in inside:
            _ink(axes, one, edge)


def _ink(axes: "Axes", part: Shape | Words, around: str) -> None:
    from matplotlib.patches import Circle, Polygon

    if isinstance(part, Words):
        text = drawable(visible(part.text))
        axes.text(
            part.x, part.y, text, fontsize=part.size * 0.72, parse_math=False, zorder=2,
            color=LIGHT.get(part.colour, part.colour), rotation=90 if part.turned else 0,
            ha={"start": "left", "middle": "center", "end": "right"}[part.side],
            va="center" if part.turned else "baseline",
            fontweight="bold" if part.bold else "normal",
        )  # fmt: skip
        return
    edge, thick = (around, 0.6) if part.edge == "none" else (part.edge, part.thick)
    fill, edge = (LIGHT.get(colour, colour) for colour in (part.fill, edge))
    style = {"fc": fill, "ec": edge, "lw": thick * 0.75, "zorder": 1}
    one = len(part.points) == 1
    axes.add_patch(
        Circle(part.points[0], part.radius, **style) if one else Polygon(part.points, **style)
    )


def drawable(text: str) -> str:
    """The text with characters that the font lacks written as code points."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(char if ord(char) in known else f"U+{ord(char):04X}" for char in text)
