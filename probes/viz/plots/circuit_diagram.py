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
from probes.viz.colours import hexed, paint
from probes.viz.drawing import drawable
from probes.viz.html_text import escaped, visible
from probes.viz.picture import Picture
from probes.viz.plots.circuit_layout import PORTS, Line, Node, Scene, scene
from probes.viz.plots.heat_table import exact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 300
"""More lines than this are not drawn: nobody can follow them."""

_TOP = 10
_THICK, _THIN = 7.0, 0.9
_DASH = (5.0, 3.0)
_ROOM = 20.0
"""A lower box has no room for words: the row's label says what it is."""

_NOTE = "Lines run upward, from the embedding to the logits"
_PORT_NOTE = "q, k, v: what a line enters a head by"
_GROUP_NOTE = "An edge to shared keys or values is drawn into each head that shares them"
_UP, _DOWN, _UP_DARK, _DOWN_DARK = (
    hexed(colour) for colour in paint(np.array([0.78, -0.78, 0.5, -0.5]), "change")
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


def circuit_picture(circuit: Circuit, *, title: str = "") -> Picture:
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
    drawn = scene(circuit, MOST)
    heading = title or f"Circuit of {circuit.model}"
    says = _says(circuit)
    body = (
        f'<style>{_STYLE}{_traces(drawn)}</style><p class="pv-title">{escaped(heading)}</p>'
        f'<p class="pv-soft">{escaped(says)}</p>{_legend(drawn)}'
        f'<div class="pv-scroll">{_svg(drawn, heading, says)}</div>'
    )
    return Picture(visible(heading), body, lambda figure: _draw(figure, drawn, heading, says))


def circuit_card(circuit: Circuit) -> Picture:
    """Sum a circuit up: its size, how it was found, and its ten strongest edges."""
    found = "; ".join(f"{name}: {value}" for name, value in circuit.protocol)
    strongest = circuit.top(_TOP)
    rows = sorted(
        zip(strongest.edges, strongest.scores, strongest.errors, strict=True),
        key=lambda row: -abs(row[1]),
    )
    table = Table(
        ["edge", "score (logits)"],
        [[str(edge), exact(score, error, True)] for edge, score, error in rows],
        caption=f"The {len(rows)} strongest edges" if len(rows) < len(circuit) else "All edges",
    )
    size = f"{len(circuit):,} of {len(circuit.wiring):,} edges ({circuit.share:.1%})"
    title = f"Circuit of {circuit.model}: {size}"
    body = f'<p class="pv-title">{escaped(title)}</p>'
    body += f'<p class="pv-soft">{escaped(found)}</p>' if found else ""
    return Picture(visible(title), body + (table.body if rows else ""))


def _says(circuit: Circuit) -> str:
    """How much of the model and of the circuit is drawn."""
    size = f"{len(circuit):,} of the model's {len(circuit.wiring):,} edges ({circuit.share:.1%})"
    if len(circuit) <= MOST:
        return size
    return f"{size}; the {MOST} strongest are drawn, {len(circuit) - MOST:,} weaker are left out"


# --- the page ---------------------------------------------------------------------------------


def _svg(drawn: Scene, title: str, says: str) -> str:
    """The drawing. y is turned around: in a page it grows downward."""
    size = f'width="{drawn.width:.0f}" height="{drawn.height:.0f}"'
    parts = [
        f'<svg class="pv-circuit" role="img" aria-label="{escaped(title)}" {size} '
        f'viewBox="0 0 {drawn.width:.0f} {drawn.height:.0f}">',
        f"<title>{escaped(title)}</title><desc>{escaped(f'{_NOTE}. {says}.')}</desc>",
    ]
    for place, (words, name, left, right) in enumerate(drawn.bands):
        if place % 2 == 0:
            parts.append(
                f'<rect class="pv-stripe" x="{left:.1f}" y="0" width="{right - left:.1f}" '
                f'height="{drawn.height:.1f}"/>'
            )
        y = drawn.height - 10
        parts.append(
            f'<text x="{(left + right) / 2:.1f}" y="{y:.1f}">{escaped(words)}'
            f"<title>{escaped(name)}</title></text>"
        )
    parts += [
        f'<text class="pv-side" x="4" y="{drawn.height - y + 4:.1f}">{escaped(words)}</text>'
        for words, y in drawn.rows
    ]
    parts += [_wire(drawn, line) for line in drawn.lines]
    parts += [_box(drawn, number) for number in range(len(drawn.nodes))]
    return "".join(parts) + "</svg>"


def _wire(drawn: Scene, line: Line) -> str:
    path = ""
    for start, first, last, end in line.curves():
        path += "" if path else f"M{_at(drawn, start)}"
        path += f"C{_at(drawn, first)} {_at(drawn, last)} {_at(drawn, end)}"
    score = drawn.scores[line.edge]
    thick, clear = _weight(drawn, line)
    down = score < 0
    kind = f"pv-wire pv-n{line.source} pv-n{line.target}{' pv-down' if down else ''}"
    dash = f' stroke-dasharray="{_DASH[0]:g} {_DASH[1]:g}"' if down else ""
    says = f"{drawn.names[line.edge]}: {exact(score, drawn.errors[line.edge], True)}"
    return (
        f'<g class="{kind}"><title>{escaped(says)}</title>'
        f'<path class="pv-touch" d="{path}"/>'
        f'<path class="pv-edge" d="{path}" stroke-width="{thick + 1.6:.2f}"/>'
        f'<path class="pv-stroke" d="{path}" stroke-width="{thick:.2f}" '
        f'stroke-opacity="{clear:.2f}"{dash}/></g>'
    )


def _at(drawn: Scene, point: tuple[float, float]) -> str:
    return f"{point[0]:.1f},{drawn.height - point[1]:.1f}"


def _box(drawn: Scene, number: int) -> str:
    node = drawn.nodes[number]
    left, up = node.x - node.width / 2, drawn.height - node.y - node.high / 2
    size = f'width="{node.width:.1f}" height="{node.high:.1f}" rx="4"'
    words = "".join(
        f'<text{kind} x="{x:.1f}" y="{drawn.height - y + drop:.1f}">{escaped(text)}</text>'
        for text, x, y, kind, drop in (
            (text, x, y, ' class="pv-letter"' if small else "", 3.0 if small else 4.0)
            for text, x, y, small in _words(node)
        )
    )
    return (
        f'<g class="pv-n{number}{"" if node.live else " pv-idle"}">'
        f"<title>{escaped(node.name)}</title>"
        f'<rect class="pv-box" x="{left:.1f}" y="{up:.1f}" {size}/>{words}</g>'
    )


def _words(node: Node) -> list[tuple[str, float, float, bool]]:
    """What stands in a box: text, its middle, and whether it is one of the small letters."""
    if node.high < _ROOM:
        return []
    ports = [port for port in PORTS if port in node.ports]
    rise = 4.5 if ports else 0.0
    letters = [(port, node.x + PORTS[port], node.y - 8.5, True) for port in ports]
    return [(node.label, node.x, node.y + rise, False), *letters]


def _traces(drawn: Scene) -> str:
    """Rules by which all lines but a node's own fade while the mouse is on it."""
    return "".join(
        f".pv.pv .pv-circuit:has(g.pv-n{n}:not(.pv-wire):hover) .pv-wire:not(.pv-n{n})"
        "{opacity:.07}\n"
        for n, node in enumerate(drawn.nodes)
        if node.live
    )


def _legend(drawn: Scene) -> str:
    keys = [
        f'<span class="pv-key"><svg class="pv-circuit" width="34" height="12" aria-hidden="true">'
        f'<g class="pv-wire{" pv-down" if down else ""}"><path class="pv-stroke" d="M2,6H32" '
        f'stroke-width="{thick:.1f}"{dash}/></g></svg>{escaped(words)}</span>'
        for words, thick, down in _samples(drawn)
        for dash in (f' stroke-dasharray="{_DASH[0]:g} {_DASH[1]:g}"' if down else "",)
    ]
    notes = "".join(f'<span class="pv-key">{note}</span>' for note in _notes(drawn))
    return f'<div class="pv-legend">{"".join(keys)}{notes}</div>'


def _samples(drawn: Scene) -> list[tuple[str, float, bool]]:
    """Words, thickness and sign of the lines in the legend."""
    large = drawn.largest
    found = [
        (f"{large:.2g} logits", _THICK, False),
        (f"{large / 4:.2g}", _THIN + (_THICK - _THIN) / 4, False),
        ("keeps the lead up", 3.0, False),
    ]
    down = any(score < 0 for score in drawn.scores)
    return [*found, *([("pulls it down", 3.0, True)] if down else [])]


def _notes(drawn: Scene) -> list[str]:
    found = [_NOTE]
    if any(line.port in PORTS for line in drawn.lines):
        found.append(_PORT_NOTE)
    if len(drawn.lines) > len(drawn.scores):
        found.append(_GROUP_NOTE)
    return found


def _weight(drawn: Scene, line: Line) -> tuple[float, float]:
    """Thickness in pixels, and opacity from 0 to 1: the weak stand back."""
    share = abs(drawn.scores[line.edge]) / (drawn.largest or 1.0)
    return _THIN + (_THICK - _THIN) * share, 0.55 + 0.4 * share**0.5


# --- the figure -------------------------------------------------------------------------------


def _draw(figure: "Figure", drawn: Scene, title: str, says: str) -> None:
    from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
    from matplotlib.path import Path

    notes = _notes(drawn)
    width = max(drawn.width, 6.4 * len(says), 520.0)
    heading = wrap(visible(title), int(width / 9)) or [""]
    head, foot = 24.0 + 20.0 * len(heading), 26.0 + 16.0 * len(notes)
    height = drawn.height + head + foot
    figure.set_size_inches(width / 96, height / 96)
    # Places are fixed here: nothing is left to lay out.
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(-foot, drawn.height + head)
    for place, words in enumerate(heading):
        _write(axes, words, 4.0, drawn.height + head - 14 - 20 * place, 15.0, left=True)
    _write(axes, says, 4.0, drawn.height + 12, 11.0, left=True, colour="#5d6470")
    for place, (words, _, left, right) in enumerate(drawn.bands):
        if place % 2 == 0:
            axes.add_patch(Rectangle((left, 0), right - left, drawn.height, fc="#f5f6f8", lw=0))
        _write(axes, words, (left + right) / 2, 13.0, 11.0)
    for words, y in drawn.rows:
        _write(axes, words, 4.0, y, 11.0, left=True, colour="#5d6470")
    for line in drawn.lines:
        curves = line.curves()
        points = [curves[0][0], *(point for curve in curves for point in curve[1:])]
        codes = [Path.MOVETO] + [Path.CURVE4] * (len(points) - 1)
        thick, clear = _weight(drawn, line)
        path = Path(points, codes)
        under = {"fill": False, "ec": "white", "alpha": 0.9, "capstyle": "butt"}
        axes.add_patch(PathPatch(path, lw=(thick + 1.6) * 0.75, **under))
        axes.add_patch(
            PathPatch(path, fill=False, capstyle="butt", alpha=clear, **_pen(drawn, line, thick))
        )
    for node in drawn.nodes:
        left, low = node.x - node.width / 2, node.y - node.high / 2
        box = FancyBboxPatch(
            (left, low), node.width, node.high, boxstyle="round,pad=0,rounding_size=4",
            fc="white", ec="#16181d" if node.live else "#dfe2e7", lw=0.9, zorder=2,
        )  # fmt: skip
        axes.add_patch(box)
        for text, x, y, small in _words(node):
            colour = "#5d6470" if small else "#16181d" if node.live else "#a3aab6"
            _write(axes, text, x, y, 8.5 if small else 11.0, colour=colour)
    _key(axes, drawn)


def _pen(drawn: Scene, line: Line, thick: float) -> dict:
    down = drawn.scores[line.edge] < 0
    # matplotlib counts dashes in widths of the line.
    dash = (0, tuple(length / thick for length in _DASH)) if down else "solid"
    return {"ec": _DOWN if down else _UP, "lw": thick * 0.75, "ls": dash}


def _key(axes: "Axes", drawn: Scene) -> None:
    at = 4.0
    for words, thick, down in _samples(drawn):
        dash = (0, tuple(length / thick for length in _DASH)) if down else "solid"
        colour = _DOWN if down else _UP
        axes.plot([at, at + 28], [-12, -12], lw=thick * 0.75, ls=dash, color=colour)
        axes.lines[-1].set_solid_capstyle("butt")
        _write(axes, words, at + 34, -12.0, 10.0, left=True, colour="#5d6470")
        at += 50 + 5.8 * len(words)
    for place, note in enumerate(_notes(drawn)):
        _write(axes, note, 4.0, -30.0 - 16 * place, 10.0, left=True, colour="#5d6470")


def _write(axes: "Axes", text: str, x: float, y: float, size: float, **style: str | bool) -> None:
    """Write text at its middle, or from the left; sizes are pixels, as in the page."""
    colour = str(style.get("colour", "#16181d"))
    side = "left" if style.get("left") else "center"
    axes.text(
        x, y, drawable(visible(text)), fontsize=size * 0.75, color=colour, ha=side,
        va="center_baseline", parse_math=False, zorder=3,
    )  # fmt: skip
