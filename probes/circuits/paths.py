"""Paths of a circuit from the embedding to the logits, each edge on at least one of them."""

from collections import defaultdict
from dataclasses import dataclass

from probes.circuits.circuit import Circuit
from probes.circuits.graph import Edge

_Node = tuple[int, int]
"""Writer and role; a writer beyond the last is the logits."""


@dataclass(frozen=True, slots=True)
class CircuitPath:
    """One path through a circuit.

    Attributes:
        edges: Its edges, from the embedding upward.
        strength: Smallest absolute score on it (logits): of its weakest edge.
    """

    edges: tuple[Edge, ...]
    strength: float

    def __str__(self) -> str:
        """Nodes with the input that reads each edge, such as "embed → L0.H1.v → logits"."""
        first, last = self.edges[0], self.edges[-1]
        names = [_name(first.source, first.source_role)]
        for edge, following in zip(self.edges, self.edges[1:], strict=False):
            port = edge.target.rpartition(".")[2]
            port = f".{port}" if port in ("q", "k", "v") else ""
            names.append(_name(following.source + port, following.source_role))
        return " → ".join([*names, _name(last.target, last.target_role)])


def circuit_paths(circuit: Circuit) -> tuple[CircuitPath, ...]:
    """Paths through each edge in turn, the strongest edge first, until all edges are covered.

    A path goes on by the strongest edge at each node, so its other edges are covered, too. Where a
    circuit is not connected, a path ends early. The strongest path comes first.
    """
    graph, size = circuit.graph, [abs(score) for score in circuit.scores]
    table = graph.edge_table[:, circuit.edge_indices].T.tolist()
    sources = [(source, source_role) for source, _, source_role, _ in table]
    targets = [[(w, role) for w in graph.writers_fed_by(reader)] for _, reader, _, role in table]
    entering, leaving = defaultdict[_Node, list[int]](list), defaultdict[_Node, list[int]](list)
    for at in sorted(range(len(table)), key=lambda at: -size[at]):
        leaving[sources[at]].append(at)
        for node in targets[at]:
            entering[node].append(at)
    found, covered = [], set[int]()
    for at in sorted(range(len(table)), key=lambda at: -size[at]):
        if at in covered:
            continue
        way = [at]
        while below := entering.get(sources[way[0]]):
            way.insert(0, below[0])
        while above := [leaving[node][0] for node in targets[way[-1]] if leaving.get(node)]:
            way.append(max(above, key=lambda edge: size[edge]))
        covered.update(way)
        edges = tuple(circuit.edges[each] for each in way)
        found.append(CircuitPath(edges, min(size[each] for each in way)))
    return tuple(sorted(found, key=lambda path: -path.strength))


def _name(node: str, role: str) -> str:
    return f"{node}@{role}" if role else node
