"""Static HTML of pictures: what a notebook shows where neither scripts nor styles are kept.

Drawings are images, made by matplotlib. Tables and texts stay as they are.
"""

import base64
import io
import re
from xml.etree import ElementTree

from probes.viz.drawing import Curve, Drawing, DrawingShape, Group, Part, Single, TextLabel
from probes.viz.figure import draw_figure
from probes.viz.html_text import escape
from probes.viz.picture import Draw, HasBody, Picture, figure_bytes

_COLORS = 256
_SCALE = 1.5
"""Pixels of an image for each pixel of the page."""

_NUMBER = re.compile(r"-?[\d.]+(?:e-?\d+)?")
_SHEET = re.compile(r'<svg class="pv-sheet.*?</svg>', re.DOTALL)
_INNERMOST_SVG = re.compile(r"<svg(?:(?!<svg).)*?</svg>", re.DOTALL)
_ONLY_STYLED = re.compile(
    r'<style>.*?</style>|<tfoot>.*?</tfoot>|<div class="pv-legend">.*?</div>', re.DOTALL
)
"""Styles, and what says nothing without them."""
_FOR_SCRIPTS = re.compile(r' (?:class|title|role|tabindex|id|data-[\w-]+|aria-[\w-]+)="[^"]*"')


def static_html(part: HasBody) -> str:
    """HTML of a picture or a block that needs neither scripts nor styles.

    Raises:
        FigureError: There is something to draw and no matplotlib.
    """
    if isinstance(part, Picture) and part.draw:
        return _image(part.draw, part.title)
    body = _ONLY_STYLED.sub("", part.body)
    body = _SHEET.sub(lambda found: _drawing_image(parse_svg(found[0])), body)
    while _INNERMOST_SVG.search(body):
        body = _INNERMOST_SVG.sub("", body)
    return _FOR_SCRIPTS.sub("", body)


def small_png(png: bytes) -> bytes:
    """The same image with a palette and without metadata: less than half the size."""
    from PIL import Image

    stream = io.BytesIO()
    image = Image.open(io.BytesIO(png))
    if image.mode == "P":
        return png
    # Of Pillow's methods the one that keeps rare colors, such as the ends of a color scale.
    few = image.convert("RGB").quantize(
        _COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    few.save(stream, "png", optimize=True)
    return stream.getvalue()


def parse_svg(svg: str) -> Drawing:
    """Drawing of an SVG that `scrollable_svg` wrote."""
    root = ElementTree.fromstring(svg)
    size = float(root.get("width", "")), float(root.get("height", ""))
    parts = tuple(_part(node) for node in root if node.tag != "desc")
    return Drawing(*size, parts, root.get("aria-label", ""), root.findtext("desc", ""))


def _drawing_image(drawing: Drawing) -> str:
    return _image(lambda figure: draw_figure(figure, drawing, ""), drawing.name)


def _image(draw: Draw, text: str) -> str:
    png = small_png(figure_bytes(draw, ".png", 96 * _SCALE))
    width = int.from_bytes(png[16:20]) / _SCALE
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(text)}" width="{width:.0f}">'


def _part(node: ElementTree.Element) -> Part:
    if node.tag != "g":
        return _single(node)
    content = tuple(_single(child) for child in node if child.tag != "title")
    return Group(node.findtext("title", ""), content, _color(node.get("stroke", "none")))


def _single(node: ElementTree.Element) -> Single:
    def number(name: str, default: float) -> float:
        return float(node.get(name, default))

    stroke, width = _color(node.get("stroke", "none")), number("stroke-width", 1.0)
    if node.tag == "text":
        return TextLabel(
            number("x", 0.0), number("y", 0.0), node.text or "", number("font-size", 11.0),
            node.get("text-anchor", "start"),  # pyright: ignore[reportArgumentType]
            _color(node.get("fill", "ink")), "font-weight" in node.attrib,
            "transform" in node.attrib,
        )  # fmt: skip
    fill = _color(node.get("fill", "none"))
    if node.tag == "circle":
        center = number("cx", 0.0), number("cy", 0.0)
        return DrawingShape((center,), fill, stroke, width, number("r", 0.0))
    path = node.get("d", "")
    numbers = [float(one) for one in _NUMBER.findall(path)]
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    if "C" in path:
        dash = tuple(float(one) for one in node.get("stroke-dasharray", "").split())
        opacity = number("stroke-opacity", 1.0)
        return Curve(tuple(points), stroke, width, opacity, dash or None)  # pyright: ignore[reportArgumentType]
    for at in range(1, len(points)):  # Steps from point to point.
        points[at] = points[at - 1][0] + points[at][0], points[at - 1][1] + points[at][1]
    return DrawingShape(tuple(points), fill, stroke, width)


def _color(color: str) -> str:
    return color.removeprefix("var(--").removesuffix(")")
