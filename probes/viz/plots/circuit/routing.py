"""Routes of edges in a circuit diagram: smooth lines that pass between nodes, never behind one."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

HEAD_SIZE, NODE_HEIGHT = 34.0, 28.0
PORT_OFFSETS = {"q": -10.0, "k": 0.0, "v": 10.0}

_LINE_SPACING = 5.0
_MAX_FAN = 50.0
_NODE_MARGIN = 5.0

Point = tuple[float, float]


@dataclass(eq=False)
class Node:
    """Box of a writer, or of the logits, at a role; (x, y) is its center.

    `role_label` and `evidence` are the roles of a head, in short and with their numbers.
    """

    name: str
    label: str
    kind: str
    row: int
    column: int
    role_label: str = ""
    evidence: str = ""
    x: float = 0.0
    y: float = 0.0
    width: float = HEAD_SIZE
    height: float = NODE_HEIGHT
    ports: set[str] = field(default_factory=set)

    @property
    def is_bar(self) -> bool:
        """Whether lines may leave or enter it anywhere."""
        return self.kind in ("embed", "logits")

    def port_x(self, port: str, x: float) -> float:
        """Where a line that comes from x enters."""
        if not self.is_bar:
            return self.x + PORT_OFFSETS.get(port, 0.0)
        half = self.width / 2 - 4
        return min(max(x, self.x - half), self.x + half)


@dataclass(eq=False)
class EdgeLine:
    """Line of an edge between two nodes.

    Attributes:
        edge: Number of the edge.
        source, target: Numbers of the nodes.
        port: Input of the target: "q", "k", "v" or "".
        start, end: Ends of the line.
        waypoints: Where it passes each row between its ends, upward.
        tightness: For each waypoint, 0 to ignore it, 1 to pass through it, 2 to pass vertically.
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
        """Points that the line passes through, upward."""
        points = [self.start]
        for (x, y), tightness in zip(self.waypoints, self.tightness, strict=True):
            vertical = [(x, y - NODE_HEIGHT / 2), (x, y + NODE_HEIGHT / 2)]
            points += ([], [(x, y)], vertical)[tightness]
        return [*points, self.end]

    def curves(self) -> list[tuple[Point, Point, Point, Point]]:
        """Cubic Bézier segments with monotone slopes, so that the line never overshoots."""
        points = self.bend_points
        steps = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(points)]
        slopes = [0.0]
        for before, after in pairwise(steps):
            is_turn = before * after <= 0
            slopes.append(0.0 if is_turn else 2 * before * after / (before + after))
        slopes.append(0.0)
        segments = []
        for at, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
            # A longer handle at a vertical end makes the line meet the node straight.
            first = (y1 - y0) * (0.5 if slopes[at] == 0 else 1 / 3)
            last = (y1 - y0) * (0.5 if slopes[at + 1] == 0 else 1 / 3)
            handle = (x0 + slopes[at] * first, y0 + first)
            segments.append(((x0, y0), handle, (x1 - slopes[at + 1] * last, y1 - last), (x1, y1)))
        return segments


def route_lines(lines: list[EdgeLine], nodes: list[Node]) -> None:
    """Set ends and waypoints of all lines so that they pass between the nodes of each row."""
    rows: dict[int, list[Node]] = defaultdict(list)
    for node in nodes:
        rows[node.row].append(node)
    for line in lines:
        source, target = nodes[line.source], nodes[line.target]
        x = source.port_x("", target.port_x(line.port, target.x)) if source.is_bar else source.x
        line.start = (x, source.y + source.height / 2)
    for row in sorted(rows):
        passing = [e for e in lines if nodes[e.source].row < row < nodes[e.target].row]
        _route_row(passing, rows[row], nodes)
    for line in lines:
        source, target = nodes[line.source], nodes[line.target]
        if source.is_bar and line.waypoints:
            line.start = (source.port_x("", line.waypoints[0][0]), line.start[1])
        below = (line.waypoints or [line.start])[-1][0]
        line.end = (target.port_x(line.port, below), target.y - target.height / 2)
    _spread_ends(lines, nodes)
    for line in lines:
        passed = range(nodes[line.source].row + 1, nodes[line.target].row)
        _tighten_line(line, [rows[row] for row in passed if row in rows])


def _route_row(lines: list[EdgeLine], row: list[Node], nodes: list[Node]) -> None:
    """Send each line through the gap of a row that is nearest to its way."""
    row = sorted(row, key=lambda node: node.x)
    borders = [-np.inf]
    for node in row:
        borders += [node.x - node.width / 2 - _NODE_MARGIN, node.x + node.width / 2 + _NODE_MARGIN]
    gaps = list(zip(borders[::2], [*borders[1::2], np.inf], strict=True))
    y = row[0].y
    queues: dict[int, list[tuple[float, float, EdgeLine]]] = defaultdict(list)
    for line in lines:
        target = nodes[line.target]
        x, low = (line.waypoints or [line.start])[-1]
        end = target.port_x(line.port, x)
        # A line almost below its end stays vertical.
        step = (y - low) / (target.y - target.height / 2 - low) if abs(end - x) > _MAX_FAN else 0.0
        want = x + (end - x) * step
        detours = [max(left - want, want - right, 0.0) for left, right in gaps]
        nearest = int(np.argmin(detours))
        queues[nearest].append((min(max(want, gaps[nearest][0]), gaps[nearest][1]), end, line))
    for gap, queue in queues.items():
        queue.sort(key=lambda entry: entry[:2])
        positions = _separate([want for want, _, _ in queue], *gaps[gap])
        for (_, _, line), x in zip(queue, positions, strict=True):
            distance = min(abs(x - node.x) - node.width / 2 for node in row)
            line.waypoints.append((x, y))
            line.tightness.append(2 if distance < 20 else 1 if distance < 70 else 0)


def _tighten_line(line: EdgeLine, rows: list[list[Node]]) -> None:
    """Raise the tightness of waypoints until the line crosses no node."""
    t = np.linspace(0, 1, 25)[:, None]
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    for _ in range(2 * len(rows)):
        x, y = np.einsum("tsi,ctd->dcs", weights, np.array(line.curves())).reshape(2, -1)
        hits = [
            at
            for at, row in enumerate(rows)
            if line.tightness[at] < 2 and any(_overlaps(node, x, y) for node in row)
        ]
        if not hits:
            return
        for at in hits:
            line.tightness[at] += 1


def _overlaps(node: Node, x: np.ndarray, y: np.ndarray) -> bool:
    width, height = node.width / 2 + 3, node.height / 2 + 3
    return bool(((np.abs(x - node.x) < width) & (np.abs(y - node.y) < height)).any())


def _separate(positions: list[float], low: float, high: float) -> list[float]:
    """Move ascending positions apart within bounds."""
    spacing = min(_LINE_SPACING, (high - low) / len(positions))
    moved = list(positions)
    for at in range(1, len(moved)):
        moved[at] = max(moved[at], moved[at - 1] + spacing)
    if moved[-1] > high:
        moved[-1] = high
        for at in range(len(moved) - 2, -1, -1):
            moved[at] = min(moved[at], moved[at + 1] - spacing)
    return moved


def _spread_ends(lines: list[EdgeLine], nodes: list[Node]) -> None:
    """Place the lines at a node side by side, in the order of where they go."""
    leaving, entering = defaultdict(list), defaultdict(list)
    for line in lines:
        leaving[line.source].append(line)
        if nodes[line.target].kind in ("mlp", "logits"):
            entering[line.target].append(line)
    for number, group in leaving.items():
        for line, x in _end_positions(nodes[number], group, [e.start for e in group], 0):
            line.start = (x, line.start[1])
    for number, group in entering.items():
        for line, x in _end_positions(nodes[number], group, [e.end for e in group], -1):
            line.end = (x, line.end[1])


def _end_positions(
    node: Node, group: list[EdgeLine], ends: list[Point], nearest: int
) -> list[tuple[EdgeLine, float]]:
    """Position of each line at a node; `nearest` is the index of its waypoint there."""
    half = node.width / 2 - 4
    step = min(_LINE_SPACING, 2 * half / len(group))
    queue = []
    for line, end in zip(group, ends, strict=True):
        other = line.start if nearest else line.end
        way = (line.waypoints or [other])[nearest][0]
        queue.append((end[0] if node.is_bar else 0.0, way, line))
    queue.sort(key=lambda entry: entry[:2])
    middle = (len(group) - 1) / 2
    wanted = [
        want if node.is_bar else node.x + (at - middle) * step
        for at, (want, _, _) in enumerate(queue)
    ]
    positions = _separate(wanted, node.x - half, node.x + half)
    return [(line, x) for (_, _, line), x in zip(queue, positions, strict=True)]
