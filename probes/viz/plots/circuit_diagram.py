"""Diagram of a circuit: nodes in layers from the bottom up, edges as thick as their scores.

An edge that raises the logit difference is red and solid, one that lowers it blue and dashed. Where
it enters a head shows whether queries, keys or values read it.
"""

from probes.circuits.circuit import Circuit
from probes.errors import FigureError
from probes.viz.blocks import Table
from probes.viz.drawing import (
    Curve,
    Drawing,
    DrawingShape,
    Group,
    Part,
    Pixels,
    TextLabel,
    rectangle,
    scrollable_svg,
    text_width,
)
from probes.viz.figure import drawing_picture
from probes.viz.html_text import escape, show_invisible
from probes.viz.picture import Picture
from probes.viz.plots.circuit_layout import CircuitLayout, layout_circuit
from probes.viz.plots.edge_routing import PORT_OFFSETS, EdgeLine, Node
from probes.viz.plots.heat_table import format_exact
from probes.viz.registry import figure, report

MAX_EDGES = 300
"""More edges are not drawn, because nobody can follow them."""

_TABLE_EDGES = 10
_MAX_THICKNESS, _MIN_THICKNESS = 7.0, 0.9
_DASH = (5.0, 3.0)
_MIN_BAR_HEIGHT = 20.0  # Lower boxes have no room for text.

_NOTE = "Edges run upward, from the embedding to the logits"
_PORT_NOTE = "q, k, v: input of the head that reads the edge"
_GROUP_NOTE = "An edge to shared keys or values is drawn into each head that shares them"
_STYLE = (
    ".pv.pv .pv-circuit .pv-wire:hover path{stroke-opacity:1}"
    ".pv.pv .pv-circuit:has(.pv-wire:hover) .pv-wire:not(:hover){opacity:.18}"
)


@figure.register
def circuit_diagram(circuit: Circuit, *, title: str = "") -> Picture:
    """Diagram of a circuit, with the embedding at the bottom and the logits at the top.

    Where edges are resolved by roles, each role has a column, and a node is at the role at which it
    writes. Only the 300 edges with the largest absolute scores are drawn.

    Args:
        circuit: Circuit with at least one edge. Thickness is proportional to the absolute score.
        title: Line above the diagram.

    Raises:
        FigureError: The circuit has no edges.
    """
    if not len(circuit):
        raise FigureError("The circuit has no edges to draw: keep some, as by circuit.top(50)")
    layout = layout_circuit(circuit, MAX_EDGES)
    title = title or f"Circuit of {circuit.model}"
    drawing = _draw_circuit(layout, title, _size_text(circuit))
    body = f"<style>{_STYLE}{_hover_rules(layout)}</style>{scrollable_svg(drawing, 'pv-circuit')}"
    return drawing_picture(title, body, drawing)


@report.register
def circuit_summary(circuit: Circuit) -> Picture:
    """Size of a circuit, its method, and its strongest edges."""
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
    method = "; ".join(f"{name}: {value}" for name, value in circuit.protocol)
    body = f'<p class="pv-title">{escape(title)}</p>'
    body += f'<p class="pv-soft">{escape(method)}</p>' if method else ""
    return Picture(show_invisible(title), body + (table.body if rows else ""))


def _size_text(circuit: Circuit) -> str:
    size = f"{len(circuit):,} of the model's {len(circuit.graph):,} edges ({circuit.fraction:.1%})"
    if len(circuit) <= MAX_EDGES:
        return size
    rest = len(circuit) - MAX_EDGES
    return f"{size}; the {MAX_EDGES} strongest are drawn, {rest:,} weaker are left out"


def _hover_rules(layout: CircuitLayout) -> str:
    """CSS that fades all edges but those of the node under the mouse."""
    return "".join(
        f".pv.pv .pv-circuit:has(g.pv-n{n}:not(.pv-wire):hover) .pv-wire:not(.pv-n{n})"
        "{opacity:.07}"
        for n, node in enumerate(layout.nodes)
        if node.has_edges
    )


def _draw_circuit(layout: CircuitLayout, title: str, size: str) -> Drawing:
    """Notes and legend, then the layout with y turned downward."""
    notes = [size, _NOTE]
    notes += [_PORT_NOTE] if any(line.port in PORT_OFFSETS for line in layout.lines) else []
    notes += [_GROUP_NOTE] if len(layout.lines) > len(layout.scores) else []
    parts: list[Part] = [
        TextLabel(0, 11 + 16 * at, note, color="soft") for at, note in enumerate(notes)
    ]
    top = 16.0 * len(notes) + 30
    parts += _legend(layout, top - 18)
    bottom = top + layout.height
    for at, (text, name, left, right) in enumerate(layout.columns):
        if at % 2 == 0:
            parts.append(rectangle((left, top, right - left, layout.height), "wash"))
        label = TextLabel((left + right) / 2, bottom - 10, text, 11.5, "middle")
        parts.append(Group(name, (label,)))
    parts += [TextLabel(4, bottom - y + 4, text, 11.5, color="soft") for text, y in layout.rows]
    parts += [_draw_edge(layout, line, bottom) for line in layout.lines]
    parts += [_draw_node(node, at, bottom) for at, node in enumerate(layout.nodes)]
    width = max(layout.width, *(text_width(note, 11) for note in notes))
    return Drawing(width, bottom, tuple(parts), title, f"{_NOTE}. {size}.")


def _draw_edge(layout: CircuitLayout, line: EdgeLine, bottom: Pixels) -> Group:
    score, error = layout.scores[line.edge], layout.errors[line.edge]
    curves = line.curves()
    path = (curves[0][0], *(point for curve in curves for point in curve[1:]))
    points = tuple((x, bottom - y) for x, y in path)
    fraction = abs(score) / (layout.max_score or 1.0)
    thickness, opacity = _thickness(fraction), 0.55 + 0.4 * fraction**0.5
    color, dash = ("down", _DASH) if score < 0 else ("up", None)
    return Group(
        f"{layout.names[line.edge]}: {format_exact(score, error, True)}",
        (
            # Thin edges are hard to hit with the mouse.
            Curve(points, "transparent", 9),
            Curve(points, "paper", thickness + 1.6, 0.9),
            Curve(points, color, thickness, opacity, dash),
        ),
        css_class=f"pv-wire pv-n{line.source} pv-n{line.target}",
    )


def _draw_node(node: Node, number: int, bottom: Pixels) -> Group:
    y = bottom - node.y
    box = (node.x - node.width / 2, y - node.height / 2, node.width, node.height)
    stroke, ink = ("ink", "ink") if node.has_edges else ("line", "soft")
    parts: list[DrawingShape | TextLabel] = [rectangle(box, "paper", stroke)]
    if node.height >= _MIN_BAR_HEIGHT:
        ports = [port for port in PORT_OFFSETS if port in node.ports]
        baseline = y - 0.5 if ports else y + 4
        parts.append(TextLabel(node.x, baseline, node.label, 11.5, "middle", ink))
        parts += [
            TextLabel(node.x + PORT_OFFSETS[port], y + 11.5, port, 9, "middle", "soft")
            for port in ports
        ]
    return Group(node.name, tuple(parts), css_class=f"pv-n{number}")


def _thickness(fraction: float) -> float:
    return _MIN_THICKNESS + (_MAX_THICKNESS - _MIN_THICKNESS) * fraction


def _legend(layout: CircuitLayout, y: Pixels) -> list[Part]:
    """Thickness of two scores, and the meaning of color and dashes."""
    samples = [
        (f"{layout.max_score:.2g} logits", _thickness(1.0), False),
        (f"{layout.max_score / 4:.2g}", _thickness(0.25), False),
        ("raises the logit difference", 3.0, False),
    ]
    if any(score < 0 for score in layout.scores):
        samples.append(("lowers it", 3.0, True))
    parts: list[Part] = []
    x = 2.0
    for text, thickness, is_down in samples:
        ends = ((x, y), (x + 10, y), (x + 18, y), (x + 28, y))
        color, dash = ("down", _DASH) if is_down else ("up", None)
        parts.append(Curve(ends, color, thickness, dash=dash))
        parts.append(TextLabel(x + 34, y + 4, text, color="soft"))
        x += 50 + text_width(text, 11)
    return parts
