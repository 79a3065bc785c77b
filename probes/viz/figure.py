"""Drawings as pictures: HTML on a page, matplotlib in a figure that the caller makes."""

from textwrap import wrap
from typing import TYPE_CHECKING

from probes.viz.blocks import Block
from probes.viz.drawing import LIGHT_COLORS, Curve, Drawing, DrawingShape, Group, TextLabel
from probes.viz.html_text import escape, show_invisible
from probes.viz.picture import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 0.75
"""Points in a pixel: a pixel is 1/96 inch, a point 1/72 inch."""


def block_picture(title: str, block: Block, drawing: Drawing) -> Picture:
    """Picture of a block, saved as a figure by its drawing."""
    return drawing_picture(title, block.body, drawing)


def drawing_picture(title: str, body: str, drawing: Drawing) -> Picture:
    """Picture with a title above its HTML, saved as a figure by its drawing."""
    html = f'<p class="pv-title">{escape(title)}</p>{body}'
    return Picture(show_invisible(title), html, lambda figure: draw_figure(figure, drawing, title))


def draw_figure(figure: "Figure", drawing: Drawing, title: str) -> None:
    """Draw with a title above, if there is one; all positions are given in pixels."""
    lines = wrap(show_invisible(title), int(drawing.width / 9.5))
    head = 8.0 + 20 * len(lines)
    figure.set_size_inches((drawing.width + 16) / 96, (drawing.height + head + 12) / 96)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(-8, drawing.width + 8)
    axes.set_ylim(drawing.height + 6, -head - 6)
    for at, line in enumerate(lines):
        _draw_text(axes, TextLabel(0, 10 + 20 * at - head, line, 15, bold=True))
    for part in drawing.parts:
        is_group = isinstance(part, Group)
        for one in part.parts if is_group else (part,):
            if isinstance(one, TextLabel):
                _draw_text(axes, one)
            else:
                _draw_shape(axes, one, part.stroke if is_group else "none")


def drawable_text(text: str) -> str:
    """Visible text with characters that the font lacks written as code points."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    shown = show_invisible(text)
    return "".join(char if ord(char) in known else f"U+{ord(char):04X}" for char in shown)


def _draw_text(axes: "Axes", label: TextLabel) -> None:
    axes.text(
        label.x, label.y, drawable_text(label.text), fontsize=label.size * 0.72, parse_math=False,
        zorder=2, color=_color(label.color), rotation=90 if label.rotated else 0,
        ha={"start": "left", "middle": "center", "end": "right"}[label.anchor],
        va="center" if label.rotated else "baseline",
        fontweight="bold" if label.bold else "normal",
    )  # fmt: skip


def _draw_shape(axes: "Axes", shape: DrawingShape | Curve, stroke: str) -> None:
    from matplotlib.patches import Circle, PathPatch, Polygon
    from matplotlib.path import Path

    if isinstance(shape, Curve):
        codes = [Path.MOVETO] + [Path.CURVE4] * (len(shape.points) - 1)
        # matplotlib counts dashes in widths of the line.
        dash = (0, tuple(one / shape.stroke_width for one in shape.dash)) if shape.dash else "solid"
        style = {"lw": shape.stroke_width * _POINTS, "ls": dash, "alpha": shape.opacity}
        patch = PathPatch(
            Path(shape.points, codes), fc="none", ec=_color(shape.stroke), capstyle="butt", **style
        )
    else:
        has_own = shape.stroke != "none"
        edge, width = (shape.stroke, shape.stroke_width) if has_own else (stroke, 0.6)
        style = {"fc": _color(shape.fill), "ec": _color(edge), "lw": width * _POINTS}
        is_circle = len(shape.points) == 1
        patch = (
            Circle(shape.points[0], shape.radius, **style)
            if is_circle
            else Polygon(shape.points, **style)
        )
    patch.set_zorder(1)
    axes.add_patch(patch)


def _color(color: str) -> str:
    return LIGHT_COLORS.get(color, color)
