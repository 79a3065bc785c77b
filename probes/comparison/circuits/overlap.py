"""Scores of the same edges in two models: how far apart, beside chance and beside other prompts.

Two circuits of one model, found in different prompts, are not the same either. So both models are
held against that: in each draw the prompts are drawn anew and dealt to two sides that share none,
a circuit is chosen by each side in each model, and

    excess = √(J(A, A') J(B, B')) - (J(A, B') + J(B, A')) / 2        J: Jaccard, ': the other side

Every term is of two sides. Had both circuits of a term some prompt in common, or had only those
of one model, then two models that differ by noise alone would seem to be apart. The mean within
is the geometric one, as where one model is noisier (Spearman 1904): each edge that is chosen by a
given chance is chosen in both by the product of two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.circuits.graph import ComputationGraph
from probes.stats.intervals import Estimate, bootstrap_weights, percentile_interval

_SPLITS = 8  # Ways to deal each draw's prompts to two sides: their mean has less noise of its own.
_BLOCK = 4_000_000  # Floats of drawn scores held at once.
_RANDOM_DRAWS = 200  # Random choices that give the chance level where no formula does.


@dataclass(frozen=True, slots=True)
class Overlap:
    """How alike two models' scores are, by one measure: 0 nothing in common, 1 the same.

    Attributes:
        edges: How many of the strongest edges are compared; 0 for all, weighted by their size.
        same: The measure where both models are scored on the same prompts, all there are.
        chance: The same for edges chosen, or scores dealt out, by lot.
        within_a, within_b: The measure within one model, between two sides that share no prompt.
        between: The same between the models.
        excess: Geometric mean of the two within, less between; 0 is expected where the models
            differ by noise alone, and little more where one of them is noisier. The interval is
            over prompts, and wider than need be: what is drawn anew is noisier than the prompts.
    """

    edges: int
    same_prompts: float
    chance: float
    within_a: Estimate
    within_b: Estimate
    between: Estimate
    excess: Estimate


def edge_overlaps(
    a: Float[Tensor, "prompt edge"],
    b: Float[Tensor, "prompt edge"],
    counts: Sequence[int],
    *,
    times: int = 1000,
    seed: int = 0,
) -> tuple[Overlap, ...]:
    """Compare scores by their strongest edges at each count, and at last by the weight of all.

    The last is the weighted Jaccard of scores as shares of their own sum of sizes: the sum of
    what both have over the sum of what either has, an edge of the other sign being another edge.

    Args:
        a, b: Scores of the same prompts (logits), in both models.
        counts: How many of the strongest edges, 1 up to all.
        times: How often prompts are drawn anew.
        seed: Of the draws.
    """
    pairs = _bootstrap_splits(len(a), times, seed)
    rows = max(1, _BLOCK // a.shape[1])
    found = []
    for one, two in zip(*(side.split(rows) for side in pairs), strict=True):
        a1, b1 = (_rank_and_normalize(one @ x, counts) for x in (a, b))
        a2, b2 = (_rank_and_normalize(two @ x, counts) for x in (a, b))
        cross = (_jaccard(a1, b2, counts) + _jaccard(b1, a2, counts)) / 2
        found.append(torch.stack([_jaccard(a1, a2, counts), _jaccard(b1, b2, counts), cross]))
    # kind (draw split) measure -> kind measure draw
    each = torch.cat(found, 1).unflatten(1, (times, _SPLITS)).mean(2).transpose(1, 2).numpy()
    one, two = (_rank_and_normalize(x.sum(0, keepdim=True), counts) for x in (a, b))
    same = _jaccard(one, two, counts)[0].tolist()
    size = a.shape[1]
    chance = [k / (2 * size - k) for k in counts] + [_permutation_chance((one, two), counts, seed)]
    sizes = (*counts, 0)
    return tuple(
        _overlap(sizes[m], same[m], chance[m], each[:, m].astype(float)) for m in range(len(sizes))
    )


def _overlap(
    edges: int, same: float, chance: float, each: Float[np.ndarray, "kind draw"]
) -> Overlap:
    within_a, within_b, between = (percentile_interval(float(kind.mean()), kind) for kind in each)
    drawn = _excess(*each)
    value = _excess(*each.mean(1, keepdims=True))
    excess = percentile_interval(float(value[0]), drawn)
    return Overlap(edges, same, chance, within_a, within_b, between, excess)


def _excess(
    a: Float[np.ndarray, " draw"], b: Float[np.ndarray, " draw"], both: Float[np.ndarray, " draw"]
) -> Float[np.ndarray, " draw"]:
    """Return the excess; rounding must not part a model from itself."""
    return np.round(np.sqrt(a * b) - both, 9)


def _bootstrap_splits(count: int, times: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw prompts anew and deal them to two sides: how often each is on it, "row prompt"."""
    rng = np.random.default_rng(seed)
    drawn = np.repeat(bootstrap_weights(count, times, seed=seed), _SPLITS, axis=0)
    # Those that were not drawn come last, so that both sides have as many that were.
    order = np.where(drawn > 0, rng.random(drawn.shape), 2.0).argsort(1).argsort(1)
    first = order < ((drawn > 0).sum(1, keepdims=True) + 1) // 2
    one, two = (torch.from_numpy(np.where(side, drawn, 0)).float() for side in (first, ~first))
    return one, two


def _rank_and_normalize(
    scores: Float[Tensor, "row edge"], counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return each edge's place among the strongest, and its share of all sizes."""
    size = scores.abs()
    most = max(counts)
    strongest = size.topk(most, dim=1).indices
    place = torch.full(scores.shape, most, dtype=torch.int32)
    place.scatter_(1, strongest, torch.arange(most, dtype=torch.int32).expand(strongest.shape))
    return place, scores / size.sum(1, keepdim=True).clamp(min=1e-12)


def _jaccard(
    one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor], counts: Sequence[int]
) -> Float[Tensor, "row measure"]:
    last = torch.maximum(one[0], two[0])
    both = torch.stack([(last < k).sum(1) for k in counts], 1).float()
    joint = both / (2 * torch.tensor(counts) - both)
    x, y = one[1], two[1]
    shared = torch.where(x * y > 0, torch.minimum(x.abs(), y.abs()), 0.0).sum(1, keepdim=True)
    total = x.abs().sum(1, keepdim=True) + y.abs().sum(1, keepdim=True)
    return torch.cat([joint, shared / (total - shared).clamp(min=1e-12)], 1)


def _permutation_chance(
    whole: Sequence[tuple[Tensor, Tensor]], counts: Sequence[int], seed: int
) -> float:
    """Return the mean weighted Jaccard where one model's scores are dealt out by lot."""
    lot = torch.Generator().manual_seed(seed)
    (place, x), (_, y) = whole
    order = torch.rand(_RANDOM_DRAWS, y.shape[1], generator=lot).argsort(1)
    here = (place.expand(_RANDOM_DRAWS, -1), x.expand(_RANDOM_DRAWS, -1))
    return float(_jaccard(here, (here[0], y[0, order]), counts[:1])[:, -1].mean())


def touched_writers(
    graph: ComputationGraph, kept: Bool[Tensor, "circuit edge"]
) -> Bool[Tensor, "circuit writer"]:
    """Say which writers have a kept edge in or out."""
    ends = torch.zeros(len(graph), len(graph.writers))
    ends[torch.arange(len(graph)), torch.from_numpy(graph.edge_table[0])] = 1
    for reader in range(len(graph.readers)):
        into = torch.from_numpy(graph.edge_table[1] == reader)
        for owner in graph.writers_fed_by(reader):
            ends[into, owner] = 1
    return (kept.float() @ ends) > 0


def node_overlap(
    graph: ComputationGraph, kept: Bool[Tensor, "circuit edge"], *, seed: int = 0
) -> tuple[float, float]:
    """Return the Jaccard of the writers that two circuits touch, and that of circuits by lot."""
    one, two = touched_writers(graph, kept)
    size, lot = int(kept[0].sum()), torch.Generator().manual_seed(seed)
    order = torch.rand(2 * _RANDOM_DRAWS, len(graph), generator=lot).argsort(1)
    first, second = touched_writers(graph, order < size).split(_RANDOM_DRAWS)
    chance = (first & second).sum(1) / (first | second).sum(1)
    return float((one & two).sum() / (one | two).sum()), float(chance.mean())


def sum_by_group(
    scores: Float[Tensor, "prompt edge"], group: Int[np.ndarray, " prompt"]
) -> Float[Tensor, "group edge"]:
    """Add up the scores of each group of pairs: they are drawn, dealt and flipped together."""
    found, place = np.unique(group, return_inverse=True)
    total = torch.zeros(len(found), scores.shape[1], dtype=scores.dtype)
    return total.index_add(0, torch.from_numpy(place), scores)
