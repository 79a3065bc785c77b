"""Vector drawings: SVG in a page, a matplotlib figure in a file."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from probes.viz.blocks import Table
from probes.viz.colors import apply_colormap, to_hex
from probes.viz.html_text import escape, show_invisible

_MARGIN = 14
_FITTING_WIDTH = 520.0  # Wider drawings would be too small to read in a narrow window.
WIDTH = 900.0
"""Preferred width of a drawing in pixels."""

Pixels = float | int
Point = tuple[Pixels, Pixels]
Box = tuple[Pixels, Pixels, Pixels, Pixels]
"""Left, top, width and height in pixels."""

# Colors of Okabe and Ito (2008), with olive and gray for the two that vanish on white or on black.
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8f8f2e", "#7f8794",
)  # fmt: skip
_DRAWING_STYLE = (
    ".pv.pv .pv-sheet{display:block;max-width:none;overflow:visible}"
    ".pv.pv .pv-sheet.pv-fit{max-width:100%;height:auto}"
    ".pv.pv .pv-sheet path~text{pointer-events:none}"
    ".pv.pv .pv-cloud g>*{fill-opacity:.85}"
    ".pv.pv .pv-cloud g:hover>*{stroke:var(--ink);stroke-width:3px;fill-opacity:1}"
)
HOVER_STYLE = (
    "<style>.pv.pv .pv-hot g:hover>path:first-of-type{stroke:var(--ink);stroke-width:1.5px}"
    ".pv.pv .pv-numbers{font-size:13px;margin:4px 0 0}"
    ".pv.pv .pv-numbers summary{cursor:pointer;color:var(--soft)}</style>"
)
"""Style of drawings whose cells or bars react to the mouse, and of their collapsed table."""

LIGHT_COLORS = {
    "ink": "#16181d", "soft": "#5d6470", "line": "#dfe2e7", "paper": "#ffffff", "wash": "#f5f6f8",
    "mark": "#d6246e", "up": "#b31f2e", "down": "#256aad", "kept": "#0b6fb8", "new": "#c65102",
    "none": "none", "transparent": "none",
}  # fmt: skip
"""Named colors of the page, in light mode; a transparent shape catches the mouse."""

DARK_COLORS = {
    "ink": "#e9ebef", "soft": "#a3aab6", "line": "#343942", "paper": "#14161a", "wash": "#1d2026",
    "mark": "#ff6aa8", "up": "#e48066", "down": "#6bacd1", "kept": "#5ab0f2", "new": "#ff9d4d",
}  # fmt: skip
"""The same in dark mode."""


@dataclass(frozen=True, slots=True)
class DrawingShape:
    """Polygon; two points are a line, one point is a circle of `radius` pixels."""

    points: tuple[Point, ...]
    fill: str = "none"
    stroke: str = "none"
    stroke_width: Pixels = 1.0
    radius: Pixels = 0.0


@dataclass(frozen=True, slots=True)
class Curve:
    """Cubic Bézier curve: a start point, then three points for each segment."""

    points: tuple[Point, ...]
    stroke: str
    stroke_width: Pixels = 1.0
    opacity: float = 1.0
    dash: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class TextLabel:
    """Line of text with its baseline at y; `rotated` text runs upward."""

    x: Pixels
    y: Pixels
    text: str
    size: Pixels = 11.0
    anchor: Literal["start", "middle", "end"] = "start"
    color: str = "ink"
    bold: bool = False
    rotated: bool = False


Single = DrawingShape | Curve | TextLabel


@dataclass(frozen=True, slots=True)
class Group:
    """Parts with a common tooltip; `stroke` outlines the shapes that have no stroke."""

    tooltip: str
    parts: tuple[Single, ...]
    stroke: str = "none"
    css_class: str = ""


Part = Single | Group


@dataclass(frozen=True, eq=False)
class Drawing:
    """Drawing in pixels, y downward; colors are `#rrggbb` or keys of `LIGHT_COLORS`."""

    width: Pixels
    height: Pixels
    parts: tuple[Part, ...]
    name: str
    description: str


def rectangle(box: Box, fill: str = "none", stroke: str = "none") -> DrawingShape:
    """Rectangle."""
    x, y, width, height = box
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    return DrawingShape(corners, fill, stroke)


def text_width(text: str, size: Pixels) -> float:
    """Estimated width of a text in pixels."""
    return 0.6 * size * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def truncate_text(text: str, max_width: Pixels, size: Pixels) -> str:
    """Visible text, cut off where it exceeds `max_width` pixels."""
    shown = show_invisible(text)
    if text_width(shown, size) <= max_width:
        return shown
    while shown and text_width(shown + "…", size) > max_width:
        shown = shown[:-1]
    return shown + "…"


def fraction_color(fraction: float) -> str:
    """Color of a fraction in [0, 1]."""
    return to_hex(apply_colormap(np.array(fraction, dtype=float), "sequential"))


def scrollable_svg(drawing: Drawing, css_class: str) -> str:
    """SVG that scrolls where it is too wide."""
    name = escape(drawing.name)
    size = f'width="{drawing.width:.0f}" height="{drawing.height:.0f}"'
    css_class += " pv-fit" * (drawing.width <= _FITTING_WIDTH)
    return (
        f'<style>{_DRAWING_STYLE}</style><div class="pv-scroll" tabindex="0" role="group" '
        f'aria-label="{name}">'
        f'<svg class="pv-sheet {css_class}" role="img" aria-label="{name}" {size} '
        f'viewBox="0 0 {drawing.width:.0f} {drawing.height:.0f}" font-size="11" fill="var(--ink)">'
        f"<desc>{escape(drawing.description)}</desc>{''.join(map(_svg, drawing.parts))}</svg></div>"
    )


def inline_svg(parts: tuple[Part, ...], width: int, height: int) -> str:
    """Small drawing inside a line of text, which says the same."""
    return (
        f'<svg class="pv-inline" width="{width}" height="{height}" aria-hidden="true">'
        f"{''.join(map(_svg, parts))}</svg>"
    )


def svg_document(drawing: Drawing) -> str:
    """SVG file that is light or dark as its reader prefers, on a ground of its own."""
    width, height = (f"{side + 2 * _MARGIN:.0f}" for side in (drawing.width, drawing.height))
    light, dark = (_css_variables(colors) for colors in (LIGHT_COLORS, DARK_COLORS))
    name = escape(drawing.name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{name}" width="{width}" '
        f'height="{height}" viewBox="{-_MARGIN} {-_MARGIN} {width} {height}" font-size="11" '
        f'font-family="system-ui,-apple-system,Segoe UI,Roboto,Noto Sans,DejaVu Sans,sans-serif" '
        f'fill="var(--ink)"><title>{name}</title><desc>{escape(drawing.description)}</desc>'
        f"<style>svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
        f'<rect x="{-_MARGIN}" y="{-_MARGIN}" width="100%" height="100%" rx="8" '
        f'fill="var(--paper)"/>{"".join(map(_svg, drawing.parts))}</svg>\n'
    )


def _css_variables(colors: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{color};" for name, color in colors.items() if color != "none")


def collapsed_table(table: Table) -> str:
    """Table that opens on a click or a key, and that screen readers read."""
    return (
        f'<details class="pv-numbers"><summary>The numbers as a table</summary>{table.body}'
        "</details>"
    )


def _svg(part: Part) -> str:
    if isinstance(part, Group):
        has_stroke = part.stroke != "none"
        stroke = f' stroke="{_css_color(part.stroke)}" stroke-width=".6"' if has_stroke else ""
        name = f' class="{part.css_class}"' if part.css_class else ""
        content = "".join(map(_svg, part.parts))
        return f"<g{name}{stroke}><title>{escape(part.tooltip)}</title>{content}</g>"
    if isinstance(part, Curve):
        return _svg_curve(part)
    return _svg_text(part) if isinstance(part, TextLabel) else _svg_shape(part)


def _svg_shape(shape: DrawingShape) -> str:
    is_line = shape.fill == "none" and len(shape.points) < 3
    paint = "" if is_line else f' fill="{_css_color(shape.fill)}"'
    if shape.stroke != "none":
        paint += f' stroke="{_css_color(shape.stroke)}"'
        width = _format_pixels(shape.stroke_width)
        paint += f' stroke-width="{width}"' if shape.stroke_width != 1 else ""
    if len(shape.points) == 1:
        x, y = map(_format_pixels, shape.points[0])
        return f'<circle cx="{x}" cy="{y}" r="{_format_pixels(shape.radius)}"{paint}/>'
    # Steps between rounded points: they are shorter than coordinates, and errors do not add up.
    points = [(round(x, 1), round(y, 1)) for x, y in shape.points]
    start = " ".join(map(_format_pixels, points[0]))
    steps = " ".join(
        f"{_format_pixels(b[0] - a[0])} {_format_pixels(b[1] - a[1])}" for a, b in pairwise(points)
    )
    return f'<path d="M{start}l{steps}z"{paint}/>'


def _svg_curve(curve: Curve) -> str:
    start, *points = (f"{_format_pixels(x)},{_format_pixels(y)}" for x, y in curve.points)
    style = f' stroke-opacity="{curve.opacity:.2f}"' if curve.opacity != 1 else ""
    style += f' stroke-dasharray="{curve.dash[0]:g} {curve.dash[1]:g}"' if curve.dash else ""
    return (
        f'<path d="M{start}C{" ".join(points)}" fill="none" stroke="{_css_color(curve.stroke)}" '
        f'stroke-width="{curve.stroke_width:.2f}"{style}/>'
    )


def _svg_text(label: TextLabel) -> str:
    style = f' font-size="{label.size:g}"' if label.size != 11 else ""
    style += f' text-anchor="{label.anchor}"' if label.anchor != "start" else ""
    style += f' fill="{_css_color(label.color)}"' if label.color != "ink" else ""
    style += ' font-weight="600"' if label.bold else ""
    x, y = _format_pixels(label.x), _format_pixels(label.y)
    style += f' transform="rotate(-90 {x} {y})"' if label.rotated else ""
    return f'<text x="{x}" y="{y}"{style}>{escape(label.text)}</text>'


def _css_color(color: str) -> str:
    is_named = LIGHT_COLORS.get(color, "none") != "none"
    return f"var(--{color})" if is_named else color


def _format_pixels(value: Pixels) -> str:
    return f"{round(value, 1) + 0.0:g}"
