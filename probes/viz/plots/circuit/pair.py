"""Diagram of the circuits of two models in one layout: edges of both, and of only one of them."""

import numpy as np

from probes.circuits.circuit import Circuit
from probes.circuits.graph import Edge
from probes.comparison.circuits.trace_result import EdgeMark, TraceComparison, TracedEdge
from probes.viz.html_text import format_number
from probes.viz.picture import Picture
from probes.viz.plots.circuit.diagram import STROKES, CircuitScene, draw_scene, drawable
from probes.viz.plots.circuit.paths import PathRow
from probes.viz.plots.heat_table import format_exact
from probes.viz.registry import figure

_MARKS: tuple[EdgeMark, ...] = ("both", "a only", "b only")


def mark_text(mark: EdgeMark, comparison: TraceComparison) -> str:
    """Whose circuit has an edge or a path."""
    first, second = comparison.names
    return {"both": "in both", "a only": f"only in {first}", "b only": f"only in {second}"}[mark]


@figure.register
def trace_pair_diagram(comparison: TraceComparison, *, title: str = "") -> Picture:
    """Diagram of two circuits and table of their paths.

    An edge is as thick as the larger of its scores in the models whose circuit has it. At most 300
    edges are drawn, those with the largest scores.

    Args:
        comparison: Two traces.
        title: Line above the diagram.
    """
    first, second = comparison.names
    by_name = {edge.edge: edge for edge in comparison.edges}
    graph = comparison.a.circuit.graph.union(comparison.b.circuit.graph)
    scores = np.full(len(graph), np.nan)
    for edge in comparison.edges:
        scores[graph.index_of(Edge.parse(edge.edge))] = _score(edge)
    both = comparison.a.circuit | comparison.b.circuit
    union = Circuit.from_scores(f"{first} and {second}", graph, scores)
    shown = drawable(_with_roles(union, both))
    marks: list[EdgeMark] = [mark for mark in _MARKS if comparison.count(mark)]
    size = ", ".join(f"{comparison.count(mark)} {mark_text(mark, comparison)}" for mark in marks)
    left_out = len(union) - len(shown)
    scene = CircuitScene(
        circuit=shown,
        strokes=tuple(by_name[str(edge)].mark for edge in shown.edges),
        evidence=tuple(_evidence(by_name[str(edge)], comparison) for edge in shown.edges),
        meanings=tuple((mark, mark_text(mark, comparison)) for mark in marks),
        title=title or f"Circuits of {first} and {second}",
        size=f"Edges: {size}" + (f"; {left_out} weaker are not drawn" if left_out else ""),
    )
    rows = [
        PathRow(
            each.path,
            (mark_text(each.mark, comparison), format_number(each.path.strength)),
            STROKES[each.mark],
        )
        for each in comparison.paths()
    ]
    return draw_scene(scene, rows, ("circuit", "weakest edge (logits)"))


def _with_roles(circuit: Circuit, both: Circuit) -> Circuit:
    """The circuit with roles of heads, those of the first model where both have the head."""
    return Circuit(
        circuit.model, circuit.graph, circuit.edges, circuit.scores, circuit.errors,
        head_roles=both.head_roles,
    )  # fmt: skip


def _score(edge: TracedEdge) -> float:
    """Larger score among the models whose circuit has the edge."""
    scores = {"both": (edge.a, edge.b), "a only": (edge.a,), "b only": (edge.b,)}[edge.mark]
    return max(scores, key=abs)


def _evidence(edge: TracedEdge, comparison: TraceComparison) -> str:
    first, second = comparison.names
    one = format_exact(edge.a, edge.a_error, True)
    two = format_exact(edge.b, edge.b_error, True)
    differs = "; the scores differ" if edge.differs else ""
    return (
        f"{edge.edge}: {mark_text(edge.mark, comparison)}; {one} in {first}, {two} in {second}"
        f"{differs}"
    )
