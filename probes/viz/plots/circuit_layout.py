"""Layout of a circuit diagram in pixels: positions of nodes, columns and rows.

y grows upward: the embedding, then layer after layer with heads below their MLP (side by side where
both read the same residual stream), then the logits.
"""

from collections import defaultdict
from dataclasses import dataclass

from probes.circuits.circuit import Circuit
from probes.circuits.graph import LOGITS
from probes.viz.drawing import text_width
from probes.viz.html_text import axis_label
from probes.viz.plots.edge_routing import HEAD_SIZE, EdgeLine, Node, route_lines

MLP_SIZE = 38.0
_ROW_HEIGHT = 28.0
_BAR_HEIGHT = 12.0
_LEFT_MARGIN, _RIGHT_MARGIN, _BOTTOM_MARGIN, _TOP_MARGIN = 62.0, 12.0, 34.0, 10.0
_LABEL_FONT_SIZE = 11.5
_MAX_LABEL = 12

NodeKey = tuple[int, int]
"""Writer and role."""
Column = tuple[str, str, float, float]
"""Label, full name, left and right end."""


@dataclass(frozen=True, eq=False)
class CircuitLayout:
    """Positions of everything in a diagram.

    Attributes:
        width, height: Size in pixels.
        nodes: Nodes.
        lines: Edges, strong ones last, so that they are on top.
        columns: Columns of the roles; empty if the circuit has none.
        rows: Label and height of each row.
        scores, errors, names: Score, standard error and name of each edge.
    """

    width: float
    height: float
    nodes: tuple[Node, ...]
    lines: tuple[EdgeLine, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, float], ...]
    scores: tuple[float, ...]
    errors: tuple[float, ...]
    names: tuple[str, ...]

    @property
    def max_score(self) -> float:
        """Largest absolute score in logits."""
        return max(map(abs, self.scores), default=0.0)


def layout_circuit(circuit: Circuit, max_edges: int) -> CircuitLayout:
    """Layout of the `max_edges` strongest edges and their nodes."""
    shown = circuit.top(max_edges)
    ends = _edge_ends(shown)
    by_key = _make_nodes(shown, {key for _, *keys, _ in ends for key in keys})
    number, nodes = {key: at for at, key in enumerate(by_key)}, list(by_key.values())
    lines = [EdgeLine(edge, number[a], number[b], port) for edge, a, b, port in ends]
    for line in lines:
        nodes[line.target].ports.add(line.port)
    columns = _set_columns(shown, nodes, len(lines))
    height, rows = _set_rows(shown, nodes)
    route_lines(lines, nodes)
    width = columns[-1][3] + _RIGHT_MARGIN
    weak_first = sorted(lines, key=lambda line: abs(shown.scores[line.edge]))
    return CircuitLayout(
        width, height, tuple(nodes), tuple(weak_first), columns if shown.graph.roles else (), rows,
        shown.scores, shown.errors, tuple(map(str, shown.edges)),
    )  # fmt: skip


def _edge_ends(circuit: Circuit) -> list[tuple[int, NodeKey, NodeKey, str]]:
    """Number of the edge, nodes at both ends, and input port, for each line to draw."""
    graph = circuit.graph
    table = graph.edge_table[:, circuit.edge_indices].T.tolist()
    writers = {(source, source_role) for source, _, source_role, _ in table}
    lines = []
    for at, (source, target, source_role, target_role) in enumerate(table):
        readers = [(writer, target_role) for writer in graph.writers_fed_by(target)]
        # Of the heads that share keys and values, those that write into the circuit.
        targets = [key for key in readers if key in writers] or readers
        for key in targets or [(len(graph.writers), target_role)]:
            lines.append((at, (source, source_role), key, graph.port(target)))
    return lines


def _make_nodes(circuit: Circuit, used: set[NodeKey]) -> dict[NodeKey, Node]:
    """Nodes with edges; without roles also all others, which show the shape of the model."""
    graph = circuit.graph
    steps = 1 if graph.parallel else 2
    last = len(graph.writers)
    nodes = {}
    for key in sorted({*used, *((w, 0) for w in range(last + 1) if not graph.roles)}):
        writer, role = key
        layer, place = divmod(writer - 1, graph.heads + 1)
        name = graph.writers[writer] if writer < last else LOGITS
        kind = "mlp" if place == graph.heads else "head"
        row, label = 1 + layer * steps, f"H{place}"
        if writer in (0, last):
            kind = label = name
            row = 0 if writer == 0 else 1 + graph.layers * steps
        elif kind == "mlp":
            row, label = row + steps - 1, "MLP"
        column = role if graph.roles else place
        suffix = f"@{graph.roles[role]}" if graph.roles else ""
        nodes[key] = Node(name + suffix, label, kind, row, column, key in used)
    return nodes


def _set_columns(circuit: Circuit, nodes: list[Node], n_lines: int) -> tuple[Column, ...]:
    """Set x and width of every node; return the columns."""
    roles = circuit.graph.roles
    gap = 14.0 + min(n_lines, 150) / 12 if roles else 24.0 + min(n_lines, 150) / 3
    cells: dict[tuple[int, int], list[Node]] = defaultdict(list)
    for node in nodes:
        node.width = MLP_SIZE if node.kind == "mlp" else HEAD_SIZE
        if not node.is_bar:
            cells[node.column, node.row].append(node)
    columns, left = [], _LEFT_MARGIN
    for column in range(len(roles) if roles else circuit.graph.heads + 1):
        own = [cell for (of_column, _), cell in cells.items() if of_column == column]
        name = roles[column] if roles else ""
        label = truncate_label(name) if roles else ""
        label_width = text_width(label, _LABEL_FONT_SIZE)
        width = max(max(map(len, own), default=0) * (MLP_SIZE + gap), label_width + 14)
        columns.append((label, name, left, left + width))
        for cell in own:
            for at, node in enumerate(cell):
                node.x = left + width / 2 + (at - (len(cell) - 1) / 2) * (MLP_SIZE + gap)
        left += width
    for node in nodes:
        if node.is_bar:
            start, end = columns[node.column][2:] if roles else (_LEFT_MARGIN, left)
            node.x, node.width = (start + end) / 2, end - start - 8
            node.height = _BAR_HEIGHT if roles else 22.0
    return tuple(columns)


def truncate_label(text: str) -> str:
    """Visible label of at most 12 characters."""
    label = axis_label(text)
    return label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "…"


def _set_rows(circuit: Circuit, nodes: list[Node]) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Set y of every node; return the height of the diagram and the labels of the rows."""
    graph = circuit.graph
    steps = 1 if graph.parallel else 2
    rows = sorted({node.row for node in nodes} | {0, 1 + graph.layers * steps})
    gap = 34.0 + min(len(circuit), 150) / 5
    heights, y = {}, (_BOTTOM_MARGIN if graph.roles else 8.0) + _ROW_HEIGHT / 2
    for below, row in zip([None, *rows], rows, strict=False):
        if below is not None:
            is_same_layer = steps == 2 and row % 2 == 0 and below == row - 1
            y += _ROW_HEIGHT + gap * (0.75 if is_same_layer else 1.0)
        heights[row] = y
    for node in nodes:
        node.y = heights[node.row]
    labels: dict[str, list[float]] = defaultdict(list)
    for row, height in heights.items():
        name = f"layer {(row - 1) // steps}"
        labels["embed" if row == 0 else "logits" if row == rows[-1] else name].append(height)
    if not graph.roles:
        # Their bars hold these labels.
        del labels["embed"], labels["logits"]
    return y + _ROW_HEIGHT / 2 + _TOP_MARGIN, tuple(
        (name, sum(ys) / len(ys)) for name, ys in labels.items()
    )
