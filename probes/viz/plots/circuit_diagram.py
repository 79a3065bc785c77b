"""A circuit as a drawing: nodes in layers from the bottom up, lines as thick as their scores.

A line that keeps the lead up is red and whole, one that pulls it down blue and dashed; where it
enters a head says whether queries, keys or values read it. The page and the saved figure are
drawn from the same places.
"""

from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from probes.circuits.circuit import Circuit
from probes.errors import FigureError
from probes.viz.blocks import Table
from probes.viz.colors import apply_colormap, to_hex
from probes.viz.drawing import drawable_text
from probes.viz.html_text import escape, show_invisible
from probes.viz.picture import Picture
from probes.viz.plots.circuit_layout import (
    PORT_OFFSETS,
    CircuitLayout,
    EdgeLine,
    Node,
    layout_circuit,
)
from probes.viz.plots.heat_table import format_exact
from probes.viz.registry import figure, report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_EDGES = 300
"""More lines than this are not drawn: nobody can follow them."""

_TABLE_EDGES = 10
_MAX_THICKNESS, _MIN_THICKNESS = 7.0, 0.9
_DASH = (5.0, 3.0)
_MIN_BAR_HEIGHT = 20.0
"""A lower box has no room for words: the row's label says what it is."""

_NOTE = "Lines run upward, from the embedding to the logits"
_PORT_NOTE = "q, k, v: what a line enters a head by"
_GROUP_NOTE = "An edge to shared keys or values is drawn into each head that shares them"
_UP, _DOWN, _UP_DARK, _DOWN_DARK = (
    to_hex(color) for color in apply_colormap(np.array([0.78, -0.78, 0.5, -0.5]), "change")
)
_STYLE = f"""
.pv.pv .pv-circuit{{--up:{_UP};--down:{_DOWN};display:block;max-width:none;overflow:visible}}
@media (prefers-color-scheme:dark){{.pv.pv .pv-circuit{{--up:{_UP_DARK};--down:{_DOWN_DARK}}}}}
.pv.pv .pv-circuit text{{fill:var(--ink);font-size:11.5px;text-anchor:middle}}
.pv.pv .pv-circuit .pv-letter{{font-size:9px;fill:var(--soft)}}
.pv.pv .pv-circuit .pv-side{{text-anchor:start;fill:var(--soft)}}
.pv.pv .pv-circuit .pv-stripe{{fill:var(--wash)}}
.pv.pv .pv-circuit .pv-box{{fill:var(--paper);stroke:var(--ink);stroke-width:1.2}}
.pv.pv .pv-circuit .pv-idle .pv-box{{stroke:var(--line)}}
.pv.pv .pv-circuit .pv-idle text{{fill:var(--soft);opacity:.6}}
.pv.pv .pv-circuit .pv-wire path{{fill:none}}
.pv.pv .pv-circuit .pv-wire .pv-stroke{{stroke:var(--up)}}
.pv.pv .pv-circuit .pv-down .pv-stroke{{stroke:var(--down)}}
.pv.pv .pv-circuit .pv-wire .pv-edge{{stroke:var(--paper);opacity:.9}}
.pv.pv .pv-circuit .pv-wire .pv-touch{{stroke:transparent;stroke-width:9px}}
.pv.pv .pv-circuit .pv-wire:hover .pv-stroke{{stroke-opacity:1}}
.pv.pv .pv-circuit:has(.pv-wire:hover) .pv-wire:not(:hover){{opacity:.18}}
"""


@figure.register
def circuit_diagram(circuit: Circuit, *, title: str = "") -> Picture:
    """Draw a circuit: the embedding at the bottom, the logits at the top.

    Where edges are resolved by roles, each role has a column, and a node stands at the role at
    which it writes. At most the 300 strongest edges are drawn, and the picture says how many more
    there are.

    Args:
        circuit: What is drawn. Thickness is the absolute score beside the greatest one.
        title: A line above the picture.
    """
    if not len(circuit):
        raise FigureError("The circuit has no edges to draw: keep some, as by circuit.top(50)")
    drawn = layout_circuit(circuit, MAX_EDGES)
    heading = title or f"Circuit of {circuit.model}"
    says = _description(circuit)
    body = (
        f'<style>{_STYLE}{_hover_rules(drawn)}</style><p class="pv-title">{escape(heading)}</p>'
        f'<p class="pv-soft">{escape(says)}</p>{_legend(drawn)}'
        f'<div class="pv-scroll">{_svg(drawn, heading, says)}</div>'
    )
    return Picture(
        show_invisible(heading), body, lambda figure: _draw_figure(figure, drawn, heading, says)
    )


@report.register
def circuit_summary(circuit: Circuit) -> Picture:
    """Sum a circuit up: its size, how it was found, and its ten strongest edges."""
    found = "; ".join(f"{name}: {value}" for name, value in circuit.protocol)
    strongest = circuit.top(_TABLE_EDGES)
    rows = sorted(
        zip(strongest.edges, strongest.scores, strongest.errors, strict=True),
        key=lambda row: -abs(row[1]),
    )
    table = Table(
        ["edge", "score (logits)"],
        [[str(edge), format_exact(score, error, True)] for edge, score, error in rows],
        caption=f"The {len(rows)} strongest edges" if len(rows) < len(circuit) else "All edges",
    )
    size = f"{len(circuit):,} of {len(circuit.graph):,} edges ({circuit.fraction:.1%})"
    title = f"Circuit of {circuit.model}: {size}"
    body = f'<p class="pv-title">{escape(title)}</p>'
    body += f'<p class="pv-soft">{escape(found)}</p>' if found else ""
    return Picture(show_invisible(title), body + (table.body if rows else ""))


def _description(circuit: Circuit) -> str:
    """How much of the model and of the circuit is drawn."""
    size = f"{len(circuit):,} of the model's {len(circuit.graph):,} edges ({circuit.fraction:.1%})"
    if len(circuit) <= MAX_EDGES:
        return size
    return f"{size}; the {MAX_EDGES} strongest are drawn, {len(circuit) - MAX_EDGES:,} weaker are left out"


# --- the page ---------------------------------------------------------------------------------


def _svg(layout: CircuitLayout, title: str, description: str) -> str:
    """The drawing. y is turned around: in a page it grows downward."""
    size = f'width="{layout.width:.0f}" height="{layout.height:.0f}"'
    parts = [
        f'<svg class="pv-circuit" role="img" aria-label="{escape(title)}" {size} '
        f'viewBox="0 0 {layout.width:.0f} {layout.height:.0f}">',
        f"<title>{escape(title)}</title><desc>{escape(f'{_NOTE}. {description}.')}</desc>",
    ]
    for place, (words, name, left, right) in enumerate(layout.columns):
        if place % 2 == 0:
            parts.append(
                f'<rect class="pv-stripe" x="{left:.1f}" y="0" width="{right - left:.1f}" '
                f'height="{layout.height:.1f}"/>'
            )
        y = layout.height - 10
        parts.append(
            f'<text x="{(left + right) / 2:.1f}" y="{y:.1f}">{escape(words)}'
            f"<title>{escape(name)}</title></text>"
        )
    parts += [
        f'<text class="pv-side" x="4" y="{layout.height - y + 4:.1f}">{escape(words)}</text>'
        for words, y in layout.rows
    ]
    parts += [_svg_line(layout, line) for line in layout.lines]
    parts += [_svg_node(layout, number) for number in range(len(layout.nodes))]
    return "".join(parts) + "</svg>"


def _svg_line(layout: CircuitLayout, line: EdgeLine) -> str:
    path = ""
    for start, first, last, end in line.curves():
        path += "" if path else f"M{_svg_point(layout, start)}"
        path += f"C{_svg_point(layout, first)} {_svg_point(layout, last)} {_svg_point(layout, end)}"
    score = layout.scores[line.edge]
    thick, clear = _line_style(layout, line)
    down = score < 0
    kind = f"pv-wire pv-n{line.source} pv-n{line.target}{' pv-down' if down else ''}"
    dash = f' stroke-dasharray="{_DASH[0]:g} {_DASH[1]:g}"' if down else ""
    says = f"{layout.names[line.edge]}: {format_exact(score, layout.errors[line.edge], True)}"
    return (
        f'<g class="{kind}"><title>{escape(says)}</title>'
        f'<path class="pv-touch" d="{path}"/>'
        f'<path class="pv-edge" d="{path}" stroke-width="{thick + 1.6:.2f}"/>'
        f'<path class="pv-stroke" d="{path}" stroke-width="{thick:.2f}" '
        f'stroke-opacity="{clear:.2f}"{dash}/></g>'
    )


def _svg_point(layout: CircuitLayout, point: tuple[float, float]) -> str:
    return f"{point[0]:.1f},{layout.height - point[1]:.1f}"


def _svg_node(layout: CircuitLayout, number: int) -> str:
    node = layout.nodes[number]
    left, up = node.x - node.width / 2, layout.height - node.y - node.height / 2
    size = f'width="{node.width:.1f}" height="{node.height:.1f}" rx="4"'
    words = "".join(
        f'<text{kind} x="{x:.1f}" y="{layout.height - y + drop:.1f}">{escape(text)}</text>'
        for text, x, y, kind, drop in (
            (text, x, y, ' class="pv-letter"' if small else "", 3.0 if small else 4.0)
            for text, x, y, small in _node_text(node)
        )
    )
    return (
        f'<g class="pv-n{number}{"" if node.has_edges else " pv-idle"}">'
        f"<title>{escape(node.name)}</title>"
        f'<rect class="pv-box" x="{left:.1f}" y="{up:.1f}" {size}/>{words}</g>'
    )


def _node_text(node: Node) -> list[tuple[str, float, float, bool]]:
    """What stands in a box: text, its middle, and whether it is one of the small letters."""
    if node.height < _MIN_BAR_HEIGHT:
        return []
    ports = [port for port in PORT_OFFSETS if port in node.ports]
    rise = 4.5 if ports else 0.0
    letters = [(port, node.x + PORT_OFFSETS[port], node.y - 8.5, True) for port in ports]
    return [(node.label, node.x, node.y + rise, False), *letters]


def _hover_rules(layout: CircuitLayout) -> str:
    """Rules by which all lines but a node's own fade while the mouse is on it."""
    return "".join(
        f".pv.pv .pv-circuit:has(g.pv-n{n}:not(.pv-wire):hover) .pv-wire:not(.pv-n{n})"
        "{opacity:.07}\n"
        for n, node in enumerate(layout.nodes)
        if node.has_edges
    )


def _legend(layout: CircuitLayout) -> str:
    keys = [
        f'<span class="pv-key"><svg class="pv-circuit" width="34" height="12" aria-hidden="true">'
        f'<g class="pv-wire{" pv-down" if down else ""}"><path class="pv-stroke" d="M2,6H32" '
        f'stroke-width="{thick:.1f}"{dash}/></g></svg>{escape(words)}</span>'
        for words, thick, down in _legend_samples(layout)
        for dash in (f' stroke-dasharray="{_DASH[0]:g} {_DASH[1]:g}"' if down else "",)
    ]
    notes = "".join(f'<span class="pv-key">{note}</span>' for note in _notes(layout))
    return f'<div class="pv-legend">{"".join(keys)}{notes}</div>'


def _legend_samples(layout: CircuitLayout) -> list[tuple[str, float, bool]]:
    """Words, thickness and sign of the lines in the legend."""
    large = layout.max_score
    found = [
        (f"{large:.2g} logits", _MAX_THICKNESS, False),
        (f"{large / 4:.2g}", _MIN_THICKNESS + (_MAX_THICKNESS - _MIN_THICKNESS) / 4, False),
        ("keeps the lead up", 3.0, False),
    ]
    down = any(score < 0 for score in layout.scores)
    return [*found, *([("pulls it down", 3.0, True)] if down else [])]


def _notes(layout: CircuitLayout) -> list[str]:
    found = [_NOTE]
    if any(line.port in PORT_OFFSETS for line in layout.lines):
        found.append(_PORT_NOTE)
    if len(layout.lines) > len(layout.scores):
        found.append(_GROUP_NOTE)
    return found


def _line_style(layout: CircuitLayout, line: EdgeLine) -> tuple[float, float]:
    """Thickness in pixels, and opacity from 0 to 1: the weak stand back."""
    share = abs(layout.scores[line.edge]) / (layout.max_score or 1.0)
    return _MIN_THICKNESS + (_MAX_THICKNESS - _MIN_THICKNESS) * share, 0.55 + 0.4 * share**0.5


# --- the figure -------------------------------------------------------------------------------


def _draw_figure(figure: "Figure", layout: CircuitLayout, title: str, description: str) -> None:
    from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
    from matplotlib.path import Path

    notes = _notes(layout)
    width = max(layout.width, 6.4 * len(description), 520.0)
    heading = wrap(show_invisible(title), int(width / 9)) or [""]
    head, foot = 24.0 + 20.0 * len(heading), 26.0 + 16.0 * len(notes)
    height = layout.height + head + foot
    figure.set_size_inches(width / 96, height / 96)
    # Places are fixed here: nothing is left to lay out.
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(-foot, layout.height + head)
    for place, words in enumerate(heading):
        _write(axes, words, 4.0, layout.height + head - 14 - 20 * place, 15.0, left=True)
    _write(axes, description, 4.0, layout.height + 12, 11.0, left=True, color="#5d6470")
    for place, (words, _, left, right) in enumerate(layout.columns):
        if place % 2 == 0:
            axes.add_patch(Rectangle((left, 0), right - left, layout.height, fc="#f5f6f8", lw=0))
        _write(axes, words, (left + right) / 2, 13.0, 11.0)
    for words, y in layout.rows:
        _write(axes, words, 4.0, y, 11.0, left=True, color="#5d6470")
    for line in layout.lines:
        curves = line.curves()
        points = [curves[0][0], *(point for curve in curves for point in curve[1:])]
        codes = [Path.MOVETO] + [Path.CURVE4] * (len(points) - 1)
        thick, clear = _line_style(layout, line)
        path = Path(points, codes)
        under = {"fill": False, "ec": "white", "alpha": 0.9, "capstyle": "butt"}
        axes.add_patch(PathPatch(path, lw=(thick + 1.6) * 0.75, **under))
        axes.add_patch(
            PathPatch(
                path,
                fill=False,
                capstyle="butt",
                alpha=clear,
                **_line_arguments(layout, line, thick),
            )
        )
    for node in layout.nodes:
        left, low = node.x - node.width / 2, node.y - node.height / 2
        box = FancyBboxPatch(
            (left, low), node.width, node.height, boxstyle="round,pad=0,rounding_size=4",
            fc="white", ec="#16181d" if node.has_edges else "#dfe2e7", lw=0.9, zorder=2,
        )  # fmt: skip
        axes.add_patch(box)
        for text, x, y, small in _node_text(node):
            color = "#5d6470" if small else "#16181d" if node.has_edges else "#a3aab6"
            _write(axes, text, x, y, 8.5 if small else 11.0, color=color)
    _draw_legend(axes, layout)


def _line_arguments(layout: CircuitLayout, line: EdgeLine, thickness: float) -> dict:
    down = layout.scores[line.edge] < 0
    # matplotlib counts dashes in widths of the line.
    dash = (0, tuple(length / thickness for length in _DASH)) if down else "solid"
    return {"ec": _DOWN if down else _UP, "lw": thickness * 0.75, "ls": dash}


def _draw_legend(axes: "Axes", layout: CircuitLayout) -> None:
    at = 4.0
    for words, thick, down in _legend_samples(layout):
        dash = (0, tuple(length / thick for length in _DASH)) if down else "solid"
        color = _DOWN if down else _UP
        axes.plot([at, at + 28], [-12, -12], lw=thick * 0.75, ls=dash, color=color)
        axes.lines[-1].set_solid_capstyle("butt")
        _write(axes, words, at + 34, -12.0, 10.0, left=True, color="#5d6470")
        at += 50 + 5.8 * len(words)
    for place, note in enumerate(_notes(layout)):
        _write(axes, note, 4.0, -30.0 - 16 * place, 10.0, left=True, color="#5d6470")


def _write(axes: "Axes", text: str, x: float, y: float, size: float, **style: str | bool) -> None:
    """Write text at its middle, or from the left; sizes are pixels, as in the page."""
    color = str(style.get("color", "#16181d"))
    side = "left" if style.get("left") else "center"
    axes.text(
        x, y, drawable_text(show_invisible(text)), fontsize=size * 0.75, color=color, ha=side,
        va="center_baseline", parse_math=False, zorder=3,
    )  # fmt: skip
