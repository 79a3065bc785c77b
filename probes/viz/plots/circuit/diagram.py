"""Diagram of a circuit: nodes in layers from the bottom up, edges as thick as their scores.

In a circuit of one model, an edge that raises the logit difference is red and solid, one that
lowers it blue and dashed. In the circuits of two models, color and stroke show whose an edge is.
Where an edge enters a head shows whether queries, keys or values read it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from probes.circuits.circuit import Circuit
from probes.circuits.paths import circuit_paths
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
    text_width,
)
from probes.viz.html_text import escape, show_invisible
from probes.viz.picture import Picture
from probes.viz.plots.circuit.layout import ROLE_FONT_SIZE, CircuitLayout, layout_circuit
from probes.viz.plots.circuit.paths import PathRow, circuit_picture
from probes.viz.plots.circuit.routing import PORT_OFFSETS, EdgeLine, Node
from probes.viz.plots.heat_table import format_exact
from probes.viz.registry import figure, report

MAX_EDGES = 300
"""More edges are not drawn, because nobody can follow them."""

Stroke = Literal["up", "down", "both", "a only", "b only"]
"""How an edge is drawn: by its sign, or by whose circuit it is in."""

STROKES: dict[Stroke, tuple[str, tuple[float, float] | None]] = {
    "up": ("up", None),
    "down": ("down", (5.0, 3.0)),
    "both": ("kept", None),
    "a only": ("up", (2.0, 3.5)),
    "b only": ("new", (9.0, 4.0)),
}

_TABLE_EDGES = 10
_MAX_THICKNESS, _MIN_THICKNESS = 7.0, 0.9
_NOTE_WIDTH = 340.0  # Notes and legend are read without scrolling on the screen of a telephone.
_MIN_BAR_HEIGHT = 20.0  # Lower boxes have no room for text.

_NOTE = "Edges run upward, from the embedding to the logits"
_PORT_NOTE = "q, k, v: input of the head that reads the edge"
_EMPTY_NOTE = "Thin rows: layers without a member of the circuit"
_ROLE_NOTE = "to ← from: roles between which the largest part of the effect of the head passes"
_GROUP_NOTE = "An edge to shared keys or values is drawn into each head that shares them"


@dataclass(frozen=True, eq=False)
class CircuitScene:
    """What a diagram shows.

    Attributes:
        circuit: The edges with the scores that make them thick, at most `MAX_EDGES`.
        strokes: Stroke of each edge.
        evidence: What is said of each edge.
        meanings: Legend of the strokes that occur.
        title, size: Line above, and the size of the circuit in words.
    """

    circuit: Circuit
    strokes: tuple[Stroke, ...]
    evidence: tuple[str, ...]
    meanings: tuple[tuple[Stroke, str], ...]
    title: str
    size: str


@figure.register
def circuit_diagram(
    circuit: Circuit, *, title: str = "", evidence: Callable[[str], str] | None = None
) -> Picture:
    """Diagram of a circuit and table of its paths; the embedding is at the bottom.

    Where edges are resolved by roles, each role has a column, and a node is at the role at which it
    writes. Only the 300 edges with the largest absolute scores are drawn.

    Args:
        circuit: Circuit with at least one edge. Thickness is proportional to the absolute score.
        title: Line above the diagram.
        evidence: What else is known of an edge, by its name.

    Raises:
        FigureError: The circuit has no edges.
    """
    shown = drawable(circuit)
    texts = (
        f"{edge}: {format_exact(score, error, True)}" + (evidence(str(edge)) if evidence else "")
        for edge, score, error in zip(shown.edges, shown.scores, shown.errors, strict=True)
    )
    meanings: list[tuple[Stroke, str]] = [("up", "raises the logit difference")]
    if min(shown.scores) < 0:
        meanings.append(("down", "lowers it"))
    scene = CircuitScene(
        circuit=shown,
        strokes=tuple("down" if score < 0 else "up" for score in shown.scores),
        evidence=tuple(texts),
        meanings=tuple(meanings),
        title=title or f"Circuit of {circuit.model}",
        size=_size_text(circuit),
    )
    rows = [PathRow(path, (f"{path.strength:.2f}",)) for path in circuit_paths(shown)]
    return draw_scene(scene, rows, ("weakest edge (logits)",))


def drawable(circuit: Circuit) -> Circuit:
    """The edges that are drawn.

    Raises:
        FigureError: There are none.
    """
    if not len(circuit):
        raise FigureError("The circuit has no edges to draw: keep some, as by circuit.top(50)")
    return circuit.top(MAX_EDGES)


def draw_scene(scene: CircuitScene, rows: Sequence[PathRow], columns: Sequence[str]) -> Picture:
    """Diagram with a table of paths beside it; `columns` are those behind the path."""
    layout = layout_circuit(scene.circuit, MAX_EDGES)
    drawing, edges = _draw_circuit(layout, scene), scene.circuit.edges
    return circuit_picture(drawing, len(layout.nodes), edges, rows, columns)


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


def _draw_circuit(layout: CircuitLayout, scene: CircuitScene) -> Drawing:
    """Notes and legend, then the layout with y turned downward."""
    notes = [scene.size, _NOTE]
    notes += [_PORT_NOTE] if any(line.port in PORT_OFFSETS for line in layout.lines) else []
    notes += [_EMPTY_NOTE] if layout.empty_rows else []
    notes += [_ROLE_NOTE] if any(node.role_label for node in layout.nodes) else []
    notes += [_GROUP_NOTE] if len(layout.lines) > len(layout.scores) else []
    lines = [line for note in notes for line in _wrap(note)]
    parts: list[Part] = [
        TextLabel(0, 11 + 16 * at, line, color="soft") for at, line in enumerate(lines)
    ]
    width = max(layout.width, *(text_width(line, 11) for line in lines))
    legend, top = _legend(layout, scene, 16.0 * len(lines) + 12)
    parts += legend
    bottom = top + layout.height
    for at, (text, name, left, right) in enumerate(layout.columns):
        if at % 2 == 0:
            parts.append(rectangle((left, top, right - left, layout.height), "wash"))
        label = TextLabel((left + right) / 2, bottom - 10, text, 11.5, "middle")
        parts.append(Group(name, (label,)))
    for text, y in layout.empty_rows:
        parts.append(rectangle((0, bottom - y - 7, layout.width, 14), "wash"))
        parts.append(TextLabel(4, bottom - y + 4, text, color="soft"))
    parts += [TextLabel(4, bottom - y + 4, text, 11.5, color="soft") for text, y in layout.rows]
    parts += [_draw_edge(layout, scene, line, bottom) for line in layout.lines]
    parts += [_draw_node(node, at, bottom) for at, node in enumerate(layout.nodes)]
    return Drawing(width, bottom, tuple(parts), scene.title, f"{_NOTE}. {scene.size}.")


def _wrap(note: str) -> list[str]:
    """The words of a note in lines that are at most `_NOTE_WIDTH` wide."""
    lines = [""]
    for word in note.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, 11) > _NOTE_WIDTH:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _draw_edge(layout: CircuitLayout, scene: CircuitScene, line: EdgeLine, bottom: Pixels) -> Group:
    curves = line.curves()
    path = (curves[0][0], *(point for curve in curves for point in curve[1:]))
    points = tuple((x, bottom - y) for x, y in path)
    fraction = abs(layout.scores[line.edge]) / (layout.max_score or 1.0)
    thickness, opacity = _thickness(fraction), 0.55 + 0.4 * fraction**0.5
    stroke = scene.strokes[line.edge]
    color, dash = STROKES[stroke]
    if stroke in ("a only", "b only"):
        thickness, opacity = max(thickness, 1.8), 0.95  # Dots of a hairline cannot be seen.
    return Group(
        scene.evidence[line.edge],
        (
            # Thin edges are hard to hit with the mouse.
            Curve(points, "transparent", 9),
            Curve(points, "paper", thickness + 1.6, 0.9),
            Curve(points, color, thickness, opacity, dash),
        ),
        css_class=f"pv-wire pv-e{line.edge} pv-n{line.source} pv-n{line.target}",
    )


def _draw_node(node: Node, number: int, bottom: Pixels) -> Group:
    y = bottom - node.y
    left = node.x - node.width / 2
    box = (left, y - node.height / 2, node.width, node.height)
    parts: list[DrawingShape | TextLabel] = [rectangle(box, "paper", "ink")]
    ports = [port for port in PORT_OFFSETS if port in node.ports]
    baseline = y - 0.5 if ports else y + 4
    if node.role_label:
        parts += [
            TextLabel(left + 5, baseline, node.label, 11.5),
            TextLabel(left + node.width - 5, baseline, node.role_label, ROLE_FONT_SIZE, "end"),
        ]
    elif node.height >= _MIN_BAR_HEIGHT:
        parts.append(TextLabel(node.x, baseline, node.label, 11.5, "middle"))
    parts += [
        TextLabel(node.x + PORT_OFFSETS[port], y + 11.5, port, 9, "middle", "soft")
        for port in ports
    ]
    return Group(node.evidence or node.name, tuple(parts), css_class=f"pv-node pv-n{number}")


def _thickness(fraction: float) -> float:
    return _MIN_THICKNESS + (_MAX_THICKNESS - _MIN_THICKNESS) * fraction


def _legend(layout: CircuitLayout, scene: CircuitScene, y: Pixels) -> tuple[list[Part], Pixels]:
    """Thickness of two scores and meaning of color and dashes; then where the diagram begins."""
    first = "up" if scene.meanings[0][0] == "up" else "ink"
    samples = [
        (f"{layout.max_score:.2g} logits", _thickness(1.0), first, None),
        (f"{layout.max_score / 4:.2g}", _thickness(0.25), first, None),
        *((text, 3.0, *STROKES[stroke]) for stroke, text in scene.meanings),
    ]
    parts: list[Part] = []
    x = 2.0
    for text, thickness, color, dash in samples:
        step = 50 + text_width(text, 11)
        if x > 2 and x + step > _NOTE_WIDTH + 16:
            x, y = 2.0, y + 17
        ends = ((x, y), (x + 10, y), (x + 18, y), (x + 28, y))
        parts.append(Curve(ends, color, thickness, dash=dash))
        parts.append(TextLabel(x + 34, y + 4, text, color="soft"))
        x += step
    return parts, y + 18
