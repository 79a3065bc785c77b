"""Layout of a circuit diagram in pixels: positions of nodes, columns and rows.

y grows upward: the embedding, then layer after layer with heads below their MLP (side by side where
both read the same residual stream), then the logits. Only members of the circuit are drawn; layers
without a member are one thin row.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from probes.circuits.circuit import Circuit
from probes.circuits.graph import LOGITS
from probes.viz.drawing import text_width
from probes.viz.html_text import axis_label
from probes.viz.plots.circuit.routing import HEAD_SIZE, EdgeLine, Node, route_lines

MLP_SIZE = 38.0
ROLE_FONT_SIZE = 9.0
_ROW_HEIGHT, _EMPTY_HEIGHT = 28.0, 8.0
_BAR_HEIGHT = 12.0
_LEFT_MARGIN, _RIGHT_MARGIN, _BOTTOM_MARGIN, _TOP_MARGIN = 62.0, 12.0, 34.0, 10.0
_LABEL_FONT_SIZE = 11.5
_MAX_LABEL, _MAX_ROLE = 12, 10

NodeKey = tuple[int, int]
"""Writer and role."""
Column = tuple[str, str, float, float]
"""Label, full name, left and right end."""
Row = tuple[str, float]
"""Label and height."""


@dataclass(frozen=True, eq=False)
class CircuitLayout:
    """Positions of everything in a diagram.

    Attributes:
        width, height: Size in pixels.
        nodes: Nodes.
        lines: Edges, strong ones last, so that they are on top.
        columns: Columns of the roles; empty if the circuit has none.
        rows: Label and height of each layer with a member.
        empty_rows: Label and height of each thin row, of layers without a member.
        scores, errors, names: Score, standard error and name of each edge.
    """

    width: float
    height: float
    nodes: tuple[Node, ...]
    lines: tuple[EdgeLine, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    empty_rows: tuple[Row, ...]
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
    height, rows, empty_rows = _set_rows(shown, nodes)
    labels = [text_width(text, _LABEL_FONT_SIZE) for text, _ in (*rows, *empty_rows)]
    left = max([_LEFT_MARGIN, *(width + 14 for width in labels)])
    columns = _set_columns(shown, nodes, lines, left)
    route_lines(lines, nodes)
    # Where many lines pass beside the nodes, the drawing is wider than its columns.
    xs = [x for line in lines for x, _ in line.bend_points]
    if (shift := left - min(xs)) > 0 and not shown.graph.roles:
        _shift(lines, nodes, shift)
        xs = [x + shift for x in xs]
    width = max(columns[-1][3], *xs) + _RIGHT_MARGIN
    weak_first = sorted(lines, key=lambda line: abs(shown.scores[line.edge]))
    return CircuitLayout(
        width, height, tuple(nodes), tuple(weak_first), columns if shown.graph.roles else (), rows,
        empty_rows, shown.scores, shown.errors, tuple(map(str, shown.edges)),
    )  # fmt: skip


def _shift(lines: list[EdgeLine], nodes: list[Node], by: float) -> None:
    """Move everything to the right."""
    for node in nodes:
        node.x += by
    for line in lines:
        (x, y), (x_end, y_end) = line.start, line.end
        line.start, line.end = (x + by, y), (x_end + by, y_end)
        line.waypoints = [(x + by, y) for x, y in line.waypoints]


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
    """Nodes with edges."""
    graph = circuit.graph
    steps = 1 if graph.parallel else 2
    last = len(graph.writers)
    head_roles = {} if graph.roles else {role.head: role for role in circuit.head_roles}
    nodes = {}
    for key in sorted(used):
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
        suffix = f"@{graph.roles[role]}" if graph.roles else ""
        node = nodes[key] = Node(name + suffix, label, kind, row, role)
        if name in head_roles:
            ends = (
                truncate_label(each, _MAX_ROLE)
                for each in (head_roles[name].query, head_roles[name].key)
            )
            node.role_label, node.evidence = " ← ".join(ends), head_roles[name].evidence
    return nodes


def _set_columns(
    circuit: Circuit, nodes: list[Node], lines: list[EdgeLine], left: float
) -> tuple[Column, ...]:
    """Set x and width of every node; return the columns: one for each role, or one for all."""
    roles, start = circuit.graph.roles, left
    gap = (14.0 if roles else 12.0) + min(len(lines), 150) / (12 if roles else 16)
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for at, node in enumerate(nodes):
        label_width = text_width(node.role_label, ROLE_FONT_SIZE) + 28 if node.role_label else 0
        node.width = max(MLP_SIZE if node.kind == "mlp" else HEAD_SIZE, label_width)
        if not node.is_bar:
            cells[node.column, node.row].append(at)
    columns = []
    for column, name in enumerate(roles or ("",)):
        own = [cells[key] for key in sorted(cells) if key[0] == column]
        label = truncate_label(name) if roles else ""
        widths = [sum(nodes[at].width + gap for at in cell) for cell in own]
        width = max([text_width(label, _LABEL_FONT_SIZE) + 14, *widths])
        columns.append((label, name, left, left + width))
        for cell, used in zip(own, widths, strict=True):
            x = left + (width - used) / 2
            for at in cell if roles else _least_crossings(cell, lines, nodes):
                nodes[at].x = x + (nodes[at].width + gap) / 2
                x += nodes[at].width + gap
        left += width
    for node in nodes:
        if node.is_bar:
            begin, end = columns[node.column][2:] if roles else (start, left)
            node.x, node.width = (begin + end) / 2, end - begin - 8
            node.height = _BAR_HEIGHT if roles else 22.0
    return tuple(columns)


def _least_crossings(cell: list[int], lines: list[EdgeLine], nodes: list[Node]) -> list[int]:
    """Nodes of a row in the order of the mean place of what they read, below them."""
    below: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        if line.target in cell and not nodes[line.source].is_bar:
            below[line.target].append(nodes[line.source].x)
    middle = [sum(xs) / len(xs) for xs in below.values()]
    center = sum(middle) / len(middle) if middle else 0.0
    return sorted(cell, key=lambda at: sum(below[at]) / len(below[at]) if below[at] else center)


def truncate_label(text: str, most: int = _MAX_LABEL) -> str:
    """Visible label of at most 12 characters."""
    label = axis_label(text)
    return label if len(label) <= most else label[: most - 1] + "…"


def _set_rows(
    circuit: Circuit, nodes: list[Node]
) -> tuple[float, tuple[Row, ...], tuple[Row, ...]]:
    """Set y of every node; return the height of the diagram, and both kinds of rows."""
    graph = circuit.graph
    steps = 1 if graph.parallel else 2
    last = 1 + graph.layers * steps
    rows = sorted({node.row for node in nodes} | {0, last})
    gap = 22.0 + min(len(circuit), 150) / 8
    y = (_BOTTOM_MARGIN if graph.roles else 8.0) + _ROW_HEIGHT / 2
    heights, empty = {0: y}, []
    for below, row in pairwise(rows):
        first, end = ((at - 1) // steps for at in (below, row))
        skipped = range(first + 1 if below else 0, end)
        y += _ROW_HEIGHT + gap * (0.75 if below and first == end else 1.0)
        if skipped:
            empty.append((_empty_label(skipped), y - (_ROW_HEIGHT + gap - _EMPTY_HEIGHT) / 2))
            y += _EMPTY_HEIGHT
        heights[row] = y
    for node in nodes:
        node.y = heights[node.row]
    labels: dict[str, list[float]] = defaultdict(list)
    for row, height in heights.items():
        name = f"layer {(row - 1) // steps}"
        labels["embed" if row == 0 else "logits" if row == last else name].append(height)
    if not graph.roles:
        # Their bars hold these labels.
        del labels["embed"], labels["logits"]
    found = tuple((name, sum(ys) / len(ys)) for name, ys in labels.items())
    return y + _ROW_HEIGHT / 2 + _TOP_MARGIN, found, tuple(empty)


def _empty_label(layers: range) -> str:
    ends = f"{layers[0]}–{layers[-1]}" if len(layers) > 1 else str(layers[0])
    return f"{ends}: none"
