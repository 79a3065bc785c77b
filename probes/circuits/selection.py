"""Which wires to keep: the strongest, or those that a search from the logits reaches.

All work on flat arrays whose index is the wiring's number of an edge, and return edge numbers in
ascending order. A score that is NaN is never taken. Of equally strong edges the first one wins,
so that the same scores always give the same edges.
"""

import heapq

import numpy as np

from probes.circuits.graph import Wiring
from probes.errors import CircuitError

# Ways in a row that bring nothing new, after which a random circuit is filled up edge by edge.
_IDLE = 100


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Take the `count` edges of greatest absolute score, or all that have one if fewer."""
    order = _strongest(scores)
    return np.sort(order[: _counted(count)])


def above(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Take the edges whose absolute score is `threshold` (in the scores' unit, >= 0) or more."""
    if not threshold >= 0:
        raise CircuitError(
            f"The threshold is {threshold}: absolute scores are held against it, so give 0 or more"
        )
    # NaN compares as false.
    return np.flatnonzero(np.abs(scores) >= threshold)


def greedy(wiring: Wiring, scores: np.ndarray, count: int) -> np.ndarray:
    """Grow a circuit from the logits, by the strongest edge into what is already in it.

    Each step takes the edge of greatest absolute score among those that run into a node already
    taken; all edges into the node that it comes from may then be taken (Hanna et al. 2024, arXiv
    2403.17806). So every edge has a path to the logits, but not always one from the embedding.

    Args:
        wiring: What the numbers mean.
        scores: One for each edge of the wiring; NaN where it is not to be taken.
        count: How many edges to take. Fewer are returned where no more can be reached.
    """
    if len(scores) != len(wiring):
        raise CircuitError(f"{len(scores)} scores for {len(wiring)} edges: give one for each")
    count, order = _counted(count), _strongest(scores)
    # Candidates wait by their place in the order, which settles ties as well.
    place = np.full(len(scores), -1)
    place[order] = np.arange(len(order))
    sources = _sources(wiring)
    into, starts = _into(wiring)
    waiting = place[wiring.starts[-2] :]
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


def connected(wiring: Wiring, numbers: np.ndarray) -> np.ndarray:
    """Keep the edges that lie on some path from the embedding to the logits.

    A head passes on what comes in by any of its queries, keys and values. Where wires are resolved
    by roles, it does so at each role by itself.
    """
    numbers = np.unique(np.asarray(numbers, dtype=np.int64))
    sources = _sources(wiring)[numbers].tolist()
    targets = [_targets(wiring, number) for number in numbers.tolist()]
    # Numbers grow along the residual stream: one pass each way meets every edge in order.
    wide = _wide(wiring)
    fed = set(range(wide))
    for source, nodes in zip(sources, targets, strict=True):
        if source in fed:
            fed.update(nodes)
    heard: set[int] = set()
    kept = []
    for number, source, nodes in zip(numbers[::-1], sources[::-1], targets[::-1], strict=True):
        if source in fed and (not nodes or not heard.isdisjoint(nodes)):
            heard.add(source)
            kept.append(int(number))
    return np.array(kept[::-1], dtype=np.int64)


def _strongest(scores: np.ndarray) -> np.ndarray:
    """Edge numbers from the strongest down, ties by number; those without a score left out."""
    sizes = np.abs(np.asarray(scores, dtype=float))
    order = np.argsort(-sizes, kind="stable")
    return order[: len(sizes) - int(np.isnan(sizes).sum())]


def _counted(count: int) -> int:
    if count < 0:
        raise CircuitError(f"{count} edges were asked for: give 0 or more")
    return count


def _wide(wiring: Wiring) -> int:
    """How many nodes a writer is: one for each role."""
    return max(1, len(wiring.roles))


def _sources(wiring: Wiring) -> np.ndarray:
    """The node that each edge comes from: writer x roles + role."""
    return wiring.table[0] * _wide(wiring) + wiring.table[2]


def _targets(wiring: Wiring, number: int) -> list[int]:
    """The nodes that an edge runs into: none for the logits, several for a group of heads."""
    reader, role = int(wiring.table[1, number]), int(wiring.table[3, number])
    wide = _wide(wiring)
    return [owner * wide + role for owner in wiring.owners(reader)]


def _into(wiring: Wiring) -> tuple[np.ndarray, np.ndarray]:
    """List the edges into each node, node after node, and where each node's begin."""
    wide = _wide(wiring)
    edges, nodes = [], []
    for reader in range(len(wiring.readers) - 1):
        block = np.arange(wiring.starts[reader], wiring.starts[reader + 1])
        for owner in wiring.owners(reader):
            edges.append(block)
            nodes.append(owner * wide + wiring.table[3, block])
    flat, node = np.concatenate(edges), np.concatenate(nodes)
    order = np.argsort(node, kind="stable")
    bounds = np.arange(len(wiring.writers) * wide + 1)
    return flat[order], np.searchsorted(node[order], bounds)


def random_paths(wiring: Wiring, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a circuit of `count` edges by lot, of whole ways from the logits to the embedding.

    Each way goes back by a random edge at every node (Shi et al. 2024, arXiv 2410.13032); the
    last one stops where the count is reached.
    """
    wide, sources = _wide(wiring), _sources(wiring)
    into, starts = _into(wiring)
    count, taken, idle = min(_counted(count), len(wiring)), set[int](), 0
    while len(taken) < count and idle < _IDLE:
        before = len(taken)
        ahead = np.arange(wiring.starts[-2], wiring.starts[-1])
        while len(ahead) and len(taken) < count:
            edge = int(rng.choice(ahead))
            taken.add(edge)
            node = int(sources[edge])
            ahead = into[starts[node] : starts[node + 1]] if node >= wide else ahead[:0]
        idle = 0 if len(taken) > before else idle + 1
    if len(taken) < count:
        rest = np.setdiff1d(np.arange(len(wiring)), list(taken))
        taken.update(rng.choice(rest, count - len(taken), replace=False).tolist())
    return np.sort(np.array(list(taken), dtype=np.int64))
