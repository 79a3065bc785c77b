"""Edge selection: the highest scores, a greedy search from the logits, and random paths.

Functions take flat arrays indexed by the graph's edge numbers and return ascending edge numbers.
NaN scores are never selected. Ties go to the lower number, so results are deterministic.
"""

import heapq

import numpy as np

from probes.circuits.graph import ComputationGraph
from probes.errors import CircuitError

# Paths without a new edge in a row, after which a random circuit is completed edge by edge.
_MAX_FAILED_PATHS = 100


def top_edges(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` edges with the greatest absolute scores, or all that have a score if fewer."""
    order = _order_by_strength(scores)
    return np.sort(order[: _check_count(count)])


def edges_above(scores: np.ndarray, threshold: float) -> np.ndarray:
    """The edges with absolute scores >= `threshold` (in the unit of the scores, at least 0)."""
    if not threshold >= 0:
        raise CircuitError(
            f"The threshold is {threshold}: absolute scores are compared with it, so give 0 or more"
        )
    return np.flatnonzero(np.abs(scores) >= threshold)  # NaN compares as false


def greedy_edges(graph: ComputationGraph, scores: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` edges by greedy search from the logits (Hanna et al. 2024, 2403.17806).

    Each step takes the edge with the greatest absolute score among those that lead into a node
    that is already part of the circuit. Every edge so has a path to the logits, but not always one
    from the embedding.

    Raises:
        CircuitError: The scores do not match the graph, or the count is negative.
    """
    if len(scores) != len(graph):
        raise CircuitError(f"{len(scores)} scores for {len(graph)} edges: give one for each")
    count, order = _check_count(count), _order_by_strength(scores)
    # Ranks serve as priorities, which settles ties as well.
    rank = np.full(len(scores), -1)
    rank[order] = np.arange(len(order))
    sources = _source_nodes(graph)
    incoming, starts = _incoming_edges(graph)
    candidates = rank[graph.edge_offsets[-2] :]
    candidates = candidates[candidates >= 0].tolist()
    heapq.heapify(candidates)
    queued = np.zeros(len(scores), dtype=bool)
    reached = np.zeros(len(starts), dtype=bool)
    selected: list[int] = []
    while candidates and len(selected) < count:
        edge = int(order[heapq.heappop(candidates)])
        selected.append(edge)
        node = sources[edge]
        if reached[node]:
            continue
        reached[node] = True
        edges = incoming[starts[node] : starts[node + 1]]
        # Heads of a group share their keys and values, so an edge can lead into several nodes.
        edges = edges[(rank[edges] >= 0) & ~queued[edges]]
        queued[edges] = True
        for value in rank[edges].tolist():
            heapq.heappush(candidates, value)
    return np.sort(np.array(selected, dtype=np.int64))


def connected_edges(graph: ComputationGraph, indices: np.ndarray) -> np.ndarray:
    """The edges on some path from the embedding to the logits.

    A head connects each of its inputs (queries, keys, values) with its output; in graphs resolved
    by roles, at each role separately.
    """
    indices = np.unique(np.asarray(indices, dtype=np.int64))
    sources = _source_nodes(graph)[indices].tolist()
    targets = [_target_nodes(graph, index) for index in indices.tolist()]
    # Edge numbers grow along the residual stream, so one pass in each direction suffices.
    from_embed = set(range(_roles_per_writer(graph)))
    for source, nodes in zip(sources, targets, strict=True):
        if source in from_embed:
            from_embed.update(nodes)
    to_logits: set[int] = set()
    kept = []
    for index, source, nodes in zip(indices[::-1], sources[::-1], targets[::-1], strict=True):
        if source in from_embed and (not nodes or not to_logits.isdisjoint(nodes)):
            to_logits.add(source)
            kept.append(int(index))
    return np.array(kept[::-1], dtype=np.int64)


def random_paths(graph: ComputationGraph, count: int, rng: np.random.Generator) -> np.ndarray:
    """A random circuit of `count` edges, made of paths from the logits back to the embedding.

    Each path takes a random incoming edge at every node (Shi et al. 2024, 2410.13032). The last one
    stops where the count is reached.
    """
    width, sources = _roles_per_writer(graph), _source_nodes(graph)
    incoming, starts = _incoming_edges(graph)
    count, selected, failed = min(_check_count(count), len(graph)), set[int](), 0
    while len(selected) < count and failed < _MAX_FAILED_PATHS:
        before = len(selected)
        edges = np.arange(graph.edge_offsets[-2], graph.edge_offsets[-1])
        while len(edges) and len(selected) < count:
            edge = int(rng.choice(edges))
            selected.add(edge)
            node = int(sources[edge])
            edges = incoming[starts[node] : starts[node + 1]] if node >= width else edges[:0]
        failed = 0 if len(selected) > before else failed + 1
    if len(selected) < count:
        rest = np.setdiff1d(np.arange(len(graph)), list(selected))
        selected.update(rng.choice(rest, count - len(selected), replace=False).tolist())
    return np.sort(np.array(list(selected), dtype=np.int64))


def _order_by_strength(scores: np.ndarray) -> np.ndarray:
    """Edge numbers by descending absolute score, without NaN."""
    sizes = np.abs(np.asarray(scores, dtype=float))
    order = np.argsort(-sizes, kind="stable")
    return order[: len(sizes) - int(np.isnan(sizes).sum())]


def _check_count(count: int) -> int:
    if count < 0:
        raise CircuitError(f"{count} edges were requested: give 0 or more")
    return count


def _roles_per_writer(graph: ComputationGraph) -> int:
    """Number of nodes of each writer: one for each role."""
    return max(1, len(graph.roles))


def _source_nodes(graph: ComputationGraph) -> np.ndarray:
    """The source node of each edge, numbered writer x roles + role."""
    return graph.edge_table[0] * _roles_per_writer(graph) + graph.edge_table[2]


def _target_nodes(graph: ComputationGraph, index: int) -> list[int]:
    """The nodes that an edge leads into: none for the logits, several for a group of heads."""
    reader, role = int(graph.edge_table[1, index]), int(graph.edge_table[3, index])
    width = _roles_per_writer(graph)
    return [writer * width + role for writer in graph.writers_fed_by(reader)]


def _incoming_edges(graph: ComputationGraph) -> tuple[np.ndarray, np.ndarray]:
    """The edges into all nodes in turn, and the offset at which each node's edges begin."""
    width = _roles_per_writer(graph)
    edges, nodes = [], []
    for reader in range(len(graph.readers) - 1):
        block = np.arange(graph.edge_offsets[reader], graph.edge_offsets[reader + 1])
        for writer in graph.writers_fed_by(reader):
            edges.append(block)
            nodes.append(writer * width + graph.edge_table[3, block])
    flat, node = np.concatenate(edges), np.concatenate(nodes)
    order = np.argsort(node, kind="stable")
    bounds = np.arange(len(graph.writers) * width + 1)
    return flat[order], np.searchsorted(node[order], bounds)
