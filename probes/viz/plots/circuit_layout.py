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
from probes.viz.html_text import label

HEAD, MLP, HIGH = 34.0, 38.0, 28.0
PORTS = {"q": -10.0, "k": 0.0, "v": 10.0}

_BAR = 12.0
_LEFT, _RIGHT, _BELOW, _ABOVE = 62.0, 12.0, 34.0, 10.0
_LETTER = 6.9
_LONGEST = 12
_APART = 5.0
_NEAR = 50.0
_MARGIN = 5.0

Point = tuple[float, float]
Key = tuple[int, int]


@dataclass(eq=False)
class Node:
    """A writer, or the logits, at a role: its box and what enters it. (x, y) is its centre."""

    name: str
    label: str
    kind: str
    row: int
    band: int
    live: bool
    x: float = 0.0
    y: float = 0.0
    width: float = HEAD
    high: float = HIGH
    ports: set[str] = field(default_factory=set)

    @property
    def is_bar(self) -> bool:
        """Whether lines may leave or enter it anywhere."""
        return self.kind in ("embed", "logits")


@dataclass(eq=False)
class Line:
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
    gaps: list[Point] = field(default_factory=list)
    care: list[int] = field(default_factory=list)

    @property
    def bends(self) -> list[Point]:
        """The points that it runs through, upward."""
        found = [self.start]
        for (x, y), care in zip(self.gaps, self.care, strict=True):
            found += ([], [(x, y)], [(x, y - HIGH / 2), (x, y + HIGH / 2)])[care]
        return [*found, self.end]

    def curves(self) -> list[tuple[Point, Point, Point, Point]]:
        """The line as cubic curves that never swing beyond its points."""
        slopes, bends = [0.0], self.bends
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
class Scene:
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
    lines: tuple[Line, ...]
    bands: tuple[tuple[str, str, float, float], ...]
    rows: tuple[tuple[str, float], ...]
    scores: tuple[float, ...]
    errors: tuple[float, ...]
    names: tuple[str, ...]

    @property
    def largest(self) -> float:
        """The greatest absolute score (logits)."""
        return max(map(abs, self.scores), default=0.0)


def scene(circuit: Circuit, most: int) -> Scene:
    """Place the strongest edges of a circuit, `most` at the most, and all nodes they need."""
    shown = circuit.top(most)
    wires = _wires(shown)
    known = _nodes(shown, {end for _, *ends, _ in wires for end in ends})
    number, nodes = {key: at for at, key in enumerate(known)}, list(known.values())
    lines = [Line(edge, number[a], number[b], port) for edge, a, b, port in wires]
    for line in lines:
        nodes[line.target].ports.add(line.port)
    bands = _columns(shown, nodes, len(lines))
    height, rows = _heights(shown, nodes)
    _route(lines, nodes)
    width = bands[-1][3] + _RIGHT
    weak_first = sorted(lines, key=lambda line: abs(shown.scores[line.edge]))
    return Scene(
        width, height, tuple(nodes), tuple(weak_first), bands if shown.wiring.roles else (), rows,
        shown.scores, shown.errors, tuple(map(str, shown.edges)),
    )  # fmt: skip


def cut(text: str, longest: int = _LONGEST) -> str:
    """The label, cut off where it is too long."""
    shown = label(text)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _wires(circuit: Circuit) -> list[tuple[int, Key, Key, str]]:
    """List the lines: edge, the (writer, role) at both ends, and what they enter by."""
    wiring = circuit.wiring
    table = wiring.table[:, circuit.numbers].T.tolist()
    writes = {(source, here) for source, _, here, _ in table}
    found = []
    for at, (source, target, here, there) in enumerate(table):
        owners = [(owner, there) for owner in wiring.owners(target)]
        # Of the heads that share keys and values, those that pass something on.
        ends = [end for end in owners if end in writes] or owners
        for end in ends or [(len(wiring.writers), there)]:
            found.append((at, (source, here), end, wiring.port(target)))
    return found


def _nodes(circuit: Circuit, live: set[Key]) -> dict[Key, Node]:
    """Make the nodes with lines; without roles the idle ones too: they show the model's shape."""
    wiring = circuit.wiring
    roles = wiring.roles or ("",)
    steps = 1 if wiring.parallel else 2
    last = len(wiring.writers)
    nodes = {}
    for key in sorted({*live, *((w, 0) for w in range(last + 1) if not wiring.roles)}):
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
        nodes[key] = Node(name + role, shown, kind, row, column, key in live)
    return nodes


def _columns(
    circuit: Circuit, nodes: list[Node], lines: int
) -> tuple[tuple[str, str, float, float], ...]:
    """Set x and width of every node; return the columns."""
    roles = circuit.wiring.roles
    air = 14.0 + min(lines, 150) / 12 if roles else 24.0 + min(lines, 150) / 3
    cells: dict[tuple[int, int], list[Node]] = defaultdict(list)
    for node in nodes:
        node.width = MLP if node.kind == "mlp" else HEAD
        if not node.is_bar:
            cells[node.band, node.row].append(node)
    count = len(roles) if roles else circuit.wiring.heads + 1
    bands, at = [], _LEFT
    for band in range(count):
        most = max((len(cell) for (b, _), cell in cells.items() if b == band), default=0)
        words = cut(roles[band]) if roles else ""
        size = _LETTER * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in words)
        wide = max(most * (MLP + air), size + 14)
        bands.append((words, roles[band] if roles else "", at, at + wide))
        for (own, _), cell in cells.items():
            for place, node in enumerate(cell if own == band else ()):
                node.x = at + wide / 2 + (place - (len(cell) - 1) / 2) * (MLP + air)
        at += wide
    for node in nodes:
        if node.is_bar:
            left, right = (bands[node.band][2:]) if roles else (_LEFT, at)
            node.x, node.width = (left + right) / 2, right - left - 8
            node.high = _BAR if roles else 22.0
    return tuple(bands)


def _heights(circuit: Circuit, nodes: list[Node]) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Set y of every node; return the height of all, and the labels of the rows."""
    steps = 1 if circuit.wiring.parallel else 2
    used = sorted({node.row for node in nodes} | {0, 1 + circuit.wiring.layers * steps})
    tall = 34.0 + min(len(circuit), 150) / 5
    heights, at = {}, (_BELOW if circuit.wiring.roles else 8.0) + HIGH / 2
    for below, row in zip([None, *used], used, strict=False):
        if below is not None:
            inside = steps == 2 and row % 2 == 0 and below == row - 1
            at += HIGH + tall * (0.75 if inside else 1.0)
        heights[row] = at
    for node in nodes:
        node.y = heights[node.row]
    places: dict[str, list[float]] = defaultdict(list)
    for row, height in heights.items():
        name = f"layer {(row - 1) // steps}"
        name = "embed" if row == 0 else "logits" if row == used[-1] else name
        places[name].append(height)
    if not circuit.wiring.roles:
        # These two are written in their bars.
        del places["embed"], places["logits"]
    return at + HIGH / 2 + _ABOVE, tuple((name, sum(ys) / len(ys)) for name, ys in places.items())


def _route(lines: list[Line], nodes: list[Node]) -> None:
    """Bend every line around the nodes of the rows that it passes."""
    rows: dict[int, list[Node]] = defaultdict(list)
    for node in nodes:
        rows[node.row].append(node)
    for line in lines:
        source, target = nodes[line.source], nodes[line.target]
        above = target.x if target.is_bar else _entry(target, line.port)
        start = _within(source, above) if source.is_bar else source.x
        line.start = (start, source.y + source.high / 2)
    for row in sorted(rows):
        passing = [e for e in lines if nodes[e.source].row < row < nodes[e.target].row]
        _pass(passing, rows[row], nodes)
    for line in lines:
        source, target = nodes[line.source], nodes[line.target]
        if source.is_bar and line.gaps:
            line.start = (_within(source, line.gaps[0][0]), line.start[1])
        before = (line.gaps or [line.start])[-1][0]
        x = _within(target, before) if target.is_bar else _entry(target, line.port)
        line.end = (x, target.y - target.high / 2)
    _fan(lines, nodes)
    for line in lines:
        passed = range(nodes[line.source].row + 1, nodes[line.target].row)
        _clear(line, [rows[row] for row in passed if row in rows])


def _clear(line: Line, rows: list[list[Node]]) -> None:
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
            if line.care[at] < 2 and any(_hits(node, x, y) for node in row)
        ]
        if not hit:
            return
        for at in hit:
            line.care[at] += 1


def _hits(node: Node, x: np.ndarray, y: np.ndarray) -> bool:
    wide, high = node.width / 2 + 3, node.high / 2 + 3
    return bool(((np.abs(x - node.x) < wide) & (np.abs(y - node.y) < high)).any())


def _entry(node: Node, port: str) -> float:
    return node.x + PORTS.get(port, 0.0)


def _within(bar: Node, x: float) -> float:
    half = bar.width / 2 - 4
    return min(max(x, bar.x - half), bar.x + half)


def _pass(lines: list[Line], row: list[Node], nodes: list[Node]) -> None:
    """Let lines through the gaps of one row, each by the gap that is least out of its way."""
    row = sorted(row, key=lambda node: node.x)
    edges = [-np.inf]
    for node in row:
        edges += [node.x - node.width / 2 - _MARGIN, node.x + node.width / 2 + _MARGIN]
    gaps = list(zip(edges[::2], [*edges[1::2], np.inf], strict=True))
    y = row[0].y
    inside: dict[int, list[tuple[float, float, Line]]] = defaultdict(list)
    for line in lines:
        target = nodes[line.target]
        x, low = (line.gaps or [line.start])[-1]
        end = _within(target, x) if target.is_bar else _entry(target, line.port)
        # A line that is all but under its end stays where it is, and does not waver.
        step = (y - low) / (target.y - target.high / 2 - low) if abs(end - x) > _NEAR else 0.0
        want = x + (end - x) * step
        best = min(
            range(len(gaps)), key=lambda at: max(gaps[at][0] - want, want - gaps[at][1], 0.0)
        )
        inside[best].append((min(max(want, gaps[best][0]), gaps[best][1]), end, line))
    for gap, queue in inside.items():
        queue.sort(key=lambda entry: entry[:2])
        places = _spread([want for want, _, _ in queue], *gaps[gap])
        for (_, _, line), x in zip(queue, places, strict=True):
            near = min(abs(x - node.x) - node.width / 2 for node in row)
            line.gaps.append((x, row[0].y))
            line.care.append(2 if near < 20 else 1 if near < 70 else 0)


def _spread(wanted: list[float], low: float, high: float) -> list[float]:
    """Move ascending places apart, as little as it takes, between two bounds."""
    apart = min(_APART, (high - low) / len(wanted))
    places = list(wanted)
    for at in range(1, len(places)):
        places[at] = max(places[at], places[at - 1] + apart)
    if places[-1] > high:
        places[-1] = high
        for at in range(len(places) - 2, -1, -1):
            places[at] = min(places[at], places[at + 1] - apart)
    return places


def _fan(lines: list[Line], nodes: list[Node]) -> None:
    """Let lines leave a node, or enter an MLP, side by side in the order of where they go."""
    leaving, entering = defaultdict(list), defaultdict(list)
    for line in lines:
        leaving[line.source].append(line)
        if nodes[line.target].kind in ("mlp", "logits"):
            entering[line.target].append(line)
    for number, group in leaving.items():
        for line, x in _side_by_side(nodes[number], group, [e.start for e in group], 0):
            line.start = (x, line.start[1])
    for number, group in entering.items():
        for line, x in _side_by_side(nodes[number], group, [e.end for e in group], -1):
            line.end = (x, line.end[1])


def _side_by_side(
    node: Node, group: list[Line], ends: list[Point], gap: int
) -> list[tuple[Line, float]]:
    """Order the lines at a node by where they go next, and give each its place."""
    half = node.width / 2 - 4
    step = min(_APART, 2 * half / len(group))
    queue = []
    for line, end in zip(group, ends, strict=True):
        other = line.start if gap else line.end
        queue.append((end[0] if node.is_bar else 0.0, (line.gaps or [other])[gap][0], line))
    queue.sort(key=lambda entry: entry[:2])
    middle = (len(group) - 1) / 2
    wanted = [
        want if node.is_bar else node.x + (place - middle) * step
        for place, (want, _, _) in enumerate(queue)
    ]
    places = _spread(wanted, node.x - half, node.x + half)
    return [(line, x) for (_, _, line), x in zip(queue, places, strict=True)]
