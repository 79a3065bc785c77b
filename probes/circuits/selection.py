"""Which wires to keep: the strongest, or those that a search from the logits reaches.

All work on flat arrays whose index is the wiring's number of an edge, and return edge numbers in
ascending order. A score that is NaN is never taken. Of equally strong edges the first one wins,
so that the same scores always give the same edges.
"""

import heapq

import numpy as np

from probes.circuits.graph import ComputationGraph
from probes.errors import CircuitError

# Ways in a row that bring nothing new, after which a random circuit is filled up edge by edge.
_MAX_FAILED_PATHS = 100


def top_edges(scores: np.ndarray, count: int) -> np.ndarray:
    """Take the `count` edges of greatest absolute score, or all that have one if fewer."""
    order = _order_by_strength(scores)
    return np.sort(order[: _check_count(count)])


def edges_above(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Take the edges whose absolute score is `threshold` (in the scores' unit, >= 0) or more."""
    if not threshold >= 0:
        raise CircuitError(
            f"The threshold is {threshold}: absolute scores are held against it, so give 0 or more"
        )
    # NaN compares as false.
    return np.flatnonzero(np.abs(scores) >= threshold)


def greedy_edges(graph: ComputationGraph, scores: np.ndarray, count: int) -> np.ndarray:
    """Grow a circuit from the logits, by the strongest edge into what is already in it.

    Each step takes the edge of greatest absolute score among those that run into a node already
    taken; all edges into the node that it comes from may then be taken (Hanna et al. 2024, arXiv
    2403.17806). So every edge has a path to the logits, but not always one from the embedding.

    Args:
        wiring: What the numbers mean.
        scores: One for each edge of the wiring; NaN where it is not to be taken.
        count: How many edges to take. Fewer are returned where no more can be reached.
    """
    if len(scores) != len(graph):
        raise CircuitError(f"{len(scores)} scores for {len(graph)} edges: give one for each")
    count, order = _check_count(count), _order_by_strength(scores)
    # Candidates wait by their place in the order, which settles ties as well.
    place = np.full(len(scores), -1)
    place[order] = np.arange(len(order))
    sources = _source_nodes(graph)
    into, starts = _incoming_edges(graph)
    waiting = place[graph.edge_offsets[-2] :]
    waiting = waiting[waiting >= 0].tolist()
    heapq.heapify(waiting)
    offered = np.zeros(len(scores), dtype=bool)
    reached = np.zeros(len(starts), dtype=bool)
    taken: list[int] = []
    while waiting and len(taken) < count:
        edge = int(order[heapq.heappop(waiting)])
        taken.append(edge)
        node = sources[edge]
        if reached[node]:
            continue
        reached[node] = True
        new = into[starts[node] : starts[node + 1]]
        # Heads of a group share their keys and values: such an edge is offered once.
        new = new[(place[new] >= 0) & ~offered[new]]
        offered[new] = True
        for candidate in place[new].tolist():
            heapq.heappush(waiting, candidate)
    return np.sort(np.array(taken, dtype=np.int64))


def connected_edges(graph: ComputationGraph, indices: np.ndarray) -> np.ndarray:
    """Keep the edges that lie on some path from the embedding to the logits.

    A head passes on what comes in by any of its queries, keys and values. Where wires are resolved
    by roles, it does so at each role by itself.
    """
    indices = np.unique(np.asarray(indices, dtype=np.int64))
    sources = _source_nodes(graph)[indices].tolist()
    targets = [_target_nodes(graph, number) for number in indices.tolist()]
    # Numbers grow along the residual stream: one pass each way meets every edge in order.
    wide = _roles_per_writer(graph)
    fed = set(range(wide))
    for source, nodes in zip(sources, targets, strict=True):
        if source in fed:
            fed.update(nodes)
    heard: set[int] = set()
    kept = []
    for number, source, nodes in zip(indices[::-1], sources[::-1], targets[::-1], strict=True):
        if source in fed and (not nodes or not heard.isdisjoint(nodes)):
            heard.add(source)
            kept.append(int(number))
    return np.array(kept[::-1], dtype=np.int64)


def _order_by_strength(scores: np.ndarray) -> np.ndarray:
    """Edge numbers from the strongest down, ties by number; those without a score left out."""
    sizes = np.abs(np.asarray(scores, dtype=float))
    order = np.argsort(-sizes, kind="stable")
    return order[: len(sizes) - int(np.isnan(sizes).sum())]


def _check_count(count: int) -> int:
    if count < 0:
        raise CircuitError(f"{count} edges were asked for: give 0 or more")
    return count


def _roles_per_writer(graph: ComputationGraph) -> int:
    """How many nodes a writer is: one for each role."""
    return max(1, len(graph.roles))


def _source_nodes(graph: ComputationGraph) -> np.ndarray:
    """The node that each edge comes from: writer x roles + role."""
    return graph.edge_table[0] * _roles_per_writer(graph) + graph.edge_table[2]


def _target_nodes(graph: ComputationGraph, index: int) -> list[int]:
    """The nodes that an edge runs into: none for the logits, several for a group of heads."""
    reader, role = int(graph.edge_table[1, index]), int(graph.edge_table[3, index])
    wide = _roles_per_writer(graph)
    return [owner * wide + role for owner in graph.writers_fed_by(reader)]


def _incoming_edges(graph: ComputationGraph) -> tuple[np.ndarray, np.ndarray]:
    """List the edges into each node, node after node, and where each node's begin."""
    wide = _roles_per_writer(graph)
    edges, nodes = [], []
    for reader in range(len(graph.readers) - 1):
        block = np.arange(graph.edge_offsets[reader], graph.edge_offsets[reader + 1])
        for owner in graph.writers_fed_by(reader):
            edges.append(block)
            nodes.append(owner * wide + graph.edge_table[3, block])
    flat, node = np.concatenate(edges), np.concatenate(nodes)
    order = np.argsort(node, kind="stable")
    bounds = np.arange(len(graph.writers) * wide + 1)
    return flat[order], np.searchsorted(node[order], bounds)


def random_paths(graph: ComputationGraph, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a circuit of `count` edges by lot, of whole ways from the logits to the embedding.

    Each way goes back by a random edge at every node (Shi et al. 2024, arXiv 2410.13032); the
    last one stops where the count is reached.
    """
    wide, sources = _roles_per_writer(graph), _source_nodes(graph)
    into, starts = _incoming_edges(graph)
    count, taken, idle = min(_check_count(count), len(graph)), set[int](), 0
    while len(taken) < count and idle < _MAX_FAILED_PATHS:
        before = len(taken)
        ahead = np.arange(graph.edge_offsets[-2], graph.edge_offsets[-1])
        while len(ahead) and len(taken) < count:
            edge = int(rng.choice(ahead))
            taken.add(edge)
            node = int(sources[edge])
            ahead = into[starts[node] : starts[node + 1]] if node >= wide else ahead[:0]
        idle = 0 if len(taken) > before else idle + 1
    if len(taken) < count:
        rest = np.setdiff1d(np.arange(len(graph)), list(taken))
        taken.update(rng.choice(rest, count - len(taken), replace=False).tolist())
    return np.sort(np.array(list(taken), dtype=np.int64))
