"""Where the nodes and lines of a circuit stand, in pixels, before anything is drawn.

y grows upward: the embedding at the bottom, then layer after layer, heads under their MLP unless
both read the same residual, then the logits. Lines pass between nodes and never behind one.
"""

import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from probes.circuits.circuit import Circuit
from probes.circuits.graph import LOGITS
from probes.viz.html_text import axis_label

HEAD_SIZE, MLP_SIZE, NODE_HEIGHT = 34.0, 38.0, 28.0
PORT_OFFSETS = {"q": -10.0, "k": 0.0, "v": 10.0}

_BAR_HEIGHT = 12.0
_LEFT_MARGIN, _RIGHT_MARGIN, _BOTTOM_MARGIN, _TOP_MARGIN = 62.0, 12.0, 34.0, 10.0
_CHAR_WIDTH = 6.9
_MAX_LABEL = 12
_LINE_SPACING = 5.0
_MAX_FAN = 50.0
_NODE_MARGIN = 5.0

Point = tuple[float, float]
NodeKey = tuple[int, int]


@dataclass(eq=False)
class Node:
    """A writer, or the logits, at a role: its box and what enters it. (x, y) is its center."""

    name: str
    label: str
    kind: str
    row: int
    column: int
    has_edges: bool
    x: float = 0.0
    y: float = 0.0
    width: float = HEAD_SIZE
    height: float = NODE_HEIGHT
    ports: set[str] = field(default_factory=set)

    @property
    def is_bar(self) -> bool:
        """Whether lines may leave or enter it anywhere."""
        return self.kind in ("embed", "logits")


@dataclass(eq=False)
class EdgeLine:
    """One way of an edge from node to node.

    Attributes:
        edge: Its number among the edges drawn.
        source, target: Numbers of the nodes at its ends.
        port: What it enters by.
        start, end: Where it leaves and enters.
        gaps: Where it passes each row between, upward.
        care: How closely it keeps to each gap: 0 not at all, 1 through its middle, 2 straight up.
    """

    edge: int
    source: int
    target: int
    port: str
    start: Point = (0.0, 0.0)
    end: Point = (0.0, 0.0)
    waypoints: list[Point] = field(default_factory=list)
    tightness: list[int] = field(default_factory=list)

    @property
    def bend_points(self) -> list[Point]:
        """The points that it runs through, upward."""
        found = [self.start]
        for (x, y), care in zip(self.waypoints, self.tightness, strict=True):
            found += ([], [(x, y)], [(x, y - NODE_HEIGHT / 2), (x, y + NODE_HEIGHT / 2)])[care]
        return [*found, self.end]

    def curves(self) -> list[tuple[Point, Point, Point, Point]]:
        """The line as cubic curves that never swing beyond its points."""
        slopes, bends = [0.0], self.bend_points
        steps = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(bends)]
        for before, after in pairwise(steps):
            turns = before * after <= 0
            slopes.append(0.0 if turns else 2 * before * after / (before + after))
        slopes.append(0.0)
        found = []
        for at, ((x0, y0), (x1, y1)) in enumerate(pairwise(bends)):
            # At its ends a line is drawn out a little, to meet the node straight.
            first = (y1 - y0) * (0.5 if slopes[at] == 0 else 1 / 3)
            last = (y1 - y0) * (0.5 if slopes[at + 1] == 0 else 1 / 3)
            before = (x0 + slopes[at] * first, y0 + first)
            found.append(((x0, y0), before, (x1 - slopes[at + 1] * last, y1 - last), (x1, y1)))
        return found


@dataclass(frozen=True, eq=False)
class CircuitLayout:
    """All that is drawn.

    Attributes:
        width, height: In pixels; y grows upward from 0.
        nodes, lines: In drawing order: strong lines last.
        bands: For each role its label, its full name, and where its column starts and ends.
        rows: The labels on the left, with their height.
        scores, errors, names: For each edge, by the number that its lines carry.
    """

    width: float
    height: float
    nodes: tuple[Node, ...]
    lines: tuple[EdgeLine, ...]
    columns: tuple[tuple[str, str, float, float], ...]
    rows: tuple[tuple[str, float], ...]
    scores: tuple[float, ...]
    errors: tuple[float, ...]
    names: tuple[str, ...]

    @property
    def max_score(self) -> float:
        """The greatest absolute score (logits)."""
        return max(map(abs, self.scores), default=0.0)


def layout_circuit(circuit: Circuit, max_edges: int) -> CircuitLayout:
    """Place the strongest edges of a circuit, `most` at the most, and all nodes they need."""
    shown = circuit.top(max_edges)
    wires = _edge_ends(shown)
    known = _nodes(shown, {end for _, *ends, _ in wires for end in ends})
    number, nodes = {key: at for at, key in enumerate(known)}, list(known.values())
    lines = [EdgeLine(edge, number[a], number[b], port) for edge, a, b, port in wires]
    for line in lines:
        nodes[line.target].ports.add(line.port)
    bands = _set_columns(shown, nodes, len(lines))
    height, rows = _set_rows(shown, nodes)
    _route_lines(lines, nodes)
    width = bands[-1][3] + _RIGHT_MARGIN
    weak_first = sorted(lines, key=lambda line: abs(shown.scores[line.edge]))
    return CircuitLayout(
        width, height, tuple(nodes), tuple(weak_first), bands if shown.graph.roles else (), rows,
        shown.scores, shown.errors, tuple(map(str, shown.edges)),
    )  # fmt: skip


def truncate_label(text: str, max_length: int = _MAX_LABEL) -> str:
    """The label, cut off where it is too long."""
    shown = axis_label(text)
    return shown if len(shown) <= max_length else shown[: max_length - 1] + "…"


def _edge_ends(circuit: Circuit) -> list[tuple[int, NodeKey, NodeKey, str]]:
    """List the lines: edge, the (writer, role) at both ends, and what they enter by."""
    wiring = circuit.graph
    table = wiring.edge_table[:, circuit.edge_indices].T.tolist()
    writes = {(source, here) for source, _, here, _ in table}
    found = []
    for at, (source, target, here, there) in enumerate(table):
        owners = [(owner, there) for owner in wiring.writers_fed_by(target)]
        # Of the heads that share keys and values, those that pass something on.
        ends = [end for end in owners if end in writes] or owners
        for end in ends or [(len(wiring.writers), there)]:
            found.append((at, (source, here), end, wiring.port(target)))
    return found


def _nodes(circuit: Circuit, used: set[NodeKey]) -> dict[NodeKey, Node]:
    """Make the nodes with lines; without roles the idle ones too: they show the model's shape."""
    wiring = circuit.graph
    roles = wiring.roles or ("",)
    steps = 1 if wiring.parallel else 2
    last = len(wiring.writers)
    nodes = {}
    for key in sorted({*used, *((w, 0) for w in range(last + 1) if not wiring.roles)}):
        writer, band = key
        layer, place = divmod(writer - 1, wiring.heads + 1)
        name = wiring.writers[writer] if writer < last else LOGITS
        kind = "mlp" if place == wiring.heads else "head"
        row, shown = 1 + layer * steps, f"H{place}"
        if writer in (0, last):
            kind = shown = name
            row = 0 if writer == 0 else 1 + wiring.layers * steps
        elif kind == "mlp":
            row, shown = row + steps - 1, "MLP"
        column = band if wiring.roles else place
        role = f"@{roles[band]}" if wiring.roles else ""
        nodes[key] = Node(name + role, shown, kind, row, column, key in used)
    return nodes


def _set_columns(
    circuit: Circuit, nodes: list[Node], lines: int
) -> tuple[tuple[str, str, float, float], ...]:
    """Set x and width of every node; return the columns."""
    roles = circuit.graph.roles
    air = 14.0 + min(lines, 150) / 12 if roles else 24.0 + min(lines, 150) / 3
    cells: dict[tuple[int, int], list[Node]] = defaultdict(list)
    for node in nodes:
        node.width = MLP_SIZE if node.kind == "mlp" else HEAD_SIZE
        if not node.is_bar:
            cells[node.column, node.row].append(node)
    count = len(roles) if roles else circuit.graph.heads + 1
    bands, at = [], _LEFT_MARGIN
    for band in range(count):
        most = max((len(cell) for (b, _), cell in cells.items() if b == band), default=0)
        words = truncate_label(roles[band]) if roles else ""
        size = _CHAR_WIDTH * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in words)
        wide = max(most * (MLP_SIZE + air), size + 14)
        bands.append((words, roles[band] if roles else "", at, at + wide))
        for (own, _), cell in cells.items():
            for place, node in enumerate(cell if own == band else ()):
                node.x = at + wide / 2 + (place - (len(cell) - 1) / 2) * (MLP_SIZE + air)
        at += wide
    for node in nodes:
        if node.is_bar:
            left, right = (bands[node.column][2:]) if roles else (_LEFT_MARGIN, at)
            node.x, node.width = (left + right) / 2, right - left - 8
            node.height = _BAR_HEIGHT if roles else 22.0
    return tuple(bands)


def _set_rows(circuit: Circuit, nodes: list[Node]) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Set y of every node; return the height of all, and the labels of the rows."""
    steps = 1 if circuit.graph.parallel else 2
    used = sorted({node.row for node in nodes} | {0, 1 + circuit.graph.layers * steps})
    tall = 34.0 + min(len(circuit), 150) / 5
    heights, at = {}, (_BOTTOM_MARGIN if circuit.graph.roles else 8.0) + NODE_HEIGHT / 2
    for below, row in zip([None, *used], used, strict=False):
        if below is not None:
            inside = steps == 2 and row % 2 == 0 and below == row - 1
            at += NODE_HEIGHT + tall * (0.75 if inside else 1.0)
        heights[row] = at
    for node in nodes:
        node.y = heights[node.row]
    places: dict[str, list[float]] = defaultdict(list)
    for row, height in heights.items():
        name = f"layer {(row - 1) // steps}"
        name = "embed" if row == 0 else "logits" if row == used[-1] else name
        places[name].append(height)
    if not circuit.graph.roles:
        # These two are written in their bars.
        del places["embed"], places["logits"]
    return at + NODE_HEIGHT / 2 + _TOP_MARGIN, tuple(
        (name, sum(ys) / len(ys)) for name, ys in places.items()
    )


def _route_lines(lines: list[EdgeLine], nodes: list[Node]) -> None:
    """Bend every line around the nodes of the rows that it passes."""
    rows: dict[int, list[Node]] = defaultdict(list)
    for node in nodes:
        rows[node.row].append(node)
    for line in lines:
        source, target = nodes[line.source], nodes[line.target]
        above = target.x if target.is_bar else _port_x(target, line.port)
        start = _clamp_to_bar(source, above) if source.is_bar else source.x
        line.start = (start, source.y + source.height / 2)
    for row in sorted(rows):
        passing = [e for e in lines if nodes[e.source].row < row < nodes[e.target].row]
        _route_row(passing, rows[row], nodes)
    for line in lines:
        source, target = nodes[line.source], nodes[line.target]
        if source.is_bar and line.waypoints:
            line.start = (_clamp_to_bar(source, line.waypoints[0][0]), line.start[1])
        before = (line.waypoints or [line.start])[-1][0]
        x = _clamp_to_bar(target, before) if target.is_bar else _port_x(target, line.port)
        line.end = (x, target.y - target.height / 2)
    _spread_ends(lines, nodes)
    for line in lines:
        passed = range(nodes[line.source].row + 1, nodes[line.target].row)
        _tighten_line(line, [rows[row] for row in passed if row in rows])


def _tighten_line(line: EdgeLine, rows: list[list[Node]]) -> None:
    """Hold a line closer to its gaps, until it runs behind no node."""
    steps = np.linspace(0, 1, 25)[:, None]
    weights = np.stack([(1 - steps) ** 3, 3 * steps * (1 - steps) ** 2, 3 * steps**2 * (1 - steps)])
    weights = np.concatenate([weights, steps[None] ** 3])
    for _ in range(2 * len(rows)):
        curves = np.array(line.curves())
        x, y = np.einsum("tsi,ctd->dcs", weights, curves).reshape(2, -1)
        hit = [
            at
            for at, row in enumerate(rows)
            if line.tightness[at] < 2 and any(_overlaps(node, x, y) for node in row)
        ]
        if not hit:
            return
        for at in hit:
            line.tightness[at] += 1


def _overlaps(node: Node, x: np.ndarray, y: np.ndarray) -> bool:
    wide, high = node.width / 2 + 3, node.height / 2 + 3
    return bool(((np.abs(x - node.x) < wide) & (np.abs(y - node.y) < high)).any())


def _port_x(node: Node, port: str) -> float:
    return node.x + PORT_OFFSETS.get(port, 0.0)


def _clamp_to_bar(bar: Node, x: float) -> float:
    half = bar.width / 2 - 4
    return min(max(x, bar.x - half), bar.x + half)


def _route_row(lines: list[EdgeLine], row: list[Node], nodes: list[Node]) -> None:
    """Let lines through the gaps of one row, each by the gap that is least out of its way."""
    row = sorted(row, key=lambda node: node.x)
    edges = [-np.inf]
    for node in row:
        edges += [node.x - node.width / 2 - _NODE_MARGIN, node.x + node.width / 2 + _NODE_MARGIN]
    gaps = list(zip(edges[::2], [*edges[1::2], np.inf], strict=True))
    y = row[0].y
    inside: dict[int, list[tuple[float, float, EdgeLine]]] = defaultdict(list)
    for line in lines:
        target = nodes[line.target]
        x, low = (line.waypoints or [line.start])[-1]
        end = _clamp_to_bar(target, x) if target.is_bar else _port_x(target, line.port)
        # A line that is all but under its end stays where it is, and does not waver.
        step = (y - low) / (target.y - target.height / 2 - low) if abs(end - x) > _MAX_FAN else 0.0
        want = x + (end - x) * step
        best = min(
            range(len(gaps)), key=lambda at: max(gaps[at][0] - want, want - gaps[at][1], 0.0)
        )
        inside[best].append((min(max(want, gaps[best][0]), gaps[best][1]), end, line))
    for gap, queue in inside.items():
        queue.sort(key=lambda entry: entry[:2])
        places = _separate([want for want, _, _ in queue], *gaps[gap])
        for (_, _, line), x in zip(queue, places, strict=True):
            near = min(abs(x - node.x) - node.width / 2 for node in row)
            line.waypoints.append((x, row[0].y))
            line.tightness.append(2 if near < 20 else 1 if near < 70 else 0)


def _separate(positions: list[float], low: float, high: float) -> list[float]:
    """Move ascending places apart, as little as it takes, between two bounds."""
    apart = min(_LINE_SPACING, (high - low) / len(positions))
    places = list(positions)
    for at in range(1, len(places)):
        places[at] = max(places[at], places[at - 1] + apart)
    if places[-1] > high:
        places[-1] = high
        for at in range(len(places) - 2, -1, -1):
            places[at] = min(places[at], places[at + 1] - apart)
    return places


def _spread_ends(lines: list[EdgeLine], nodes: list[Node]) -> None:
    """Let lines leave a node, or enter an MLP, side by side in the order of where they go."""
    leaving, entering = defaultdict(list), defaultdict(list)
    for line in lines:
        leaving[line.source].append(line)
        if nodes[line.target].kind in ("mlp", "logits"):
            entering[line.target].append(line)
    for number, group in leaving.items():
        for line, x in _end_offsets(nodes[number], group, [e.start for e in group], 0):
            line.start = (x, line.start[1])
    for number, group in entering.items():
        for line, x in _end_offsets(nodes[number], group, [e.end for e in group], -1):
            line.end = (x, line.end[1])


def _end_offsets(
    node: Node, group: list[EdgeLine], ends: list[Point], gap: int
) -> list[tuple[EdgeLine, float]]:
    """Order the lines at a node by where they go next, and give each its place."""
    half = node.width / 2 - 4
    step = min(_LINE_SPACING, 2 * half / len(group))
    queue = []
    for line, end in zip(group, ends, strict=True):
        other = line.start if gap else line.end
        queue.append((end[0] if node.is_bar else 0.0, (line.waypoints or [other])[gap][0], line))
    queue.sort(key=lambda entry: entry[:2])
    middle = (len(group) - 1) / 2
    wanted = [
        want if node.is_bar else node.x + (place - middle) * step
        for place, (want, _, _) in enumerate(queue)
    ]
    places = _separate(wanted, node.x - half, node.x + half)
    return [(line, x) for (_, _, line), x in zip(queue, places, strict=True)]
