"""Overlap of edge scores in two models, relative to chance and to split-half overlap.

Two circuits of one model differ as well when they are found on different prompts. Each bootstrap
draw of the prompts is therefore split in two halves without a common prompt, each half selects a
circuit in each model, and

    excess = √(J(A, A') J(B, B')) - (J(A, B') + J(B, A')) / 2        J: Jaccard, ': the other half

Every term compares two halves; otherwise shared prompts would raise the overlap within a model and
models that differ by noise alone would seem different. The geometric mean is what Spearman (1904)
divides correlations by, and is right for Jaccard indices where both models are equally noisy. Where
one is noisier, noise alone gives an excess (simulated: 0.06 at six times the noise), so a summary
names a model whose halves agree less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.circuits.graph import ComputationGraph
from probes.stats.intervals import Estimate, bootstrap_weights, percentile_interval

_SPLITS = 8  # Random halves of each draw; their mean has less noise.
_BLOCK = 4_000_000  # Floats of drawn scores held at once.
_RANDOM_DRAWS = 200  # Random circuits of the chance level where there is no formula.


@dataclass(frozen=True, slots=True)
class Overlap:
    """Jaccard index of two models' scores: 0 for nothing in common, 1 for equal.

    Attributes:
        edges: Number of highest-scoring edges compared; 0 for all edges, weighted by score.
        same_prompts: Overlap of both models on the same prompts, all of them.
        chance: Overlap of random edges, or of permuted scores.
        within_a, within_b: Overlap within one model, between halves of the prompts.
        between: Overlap between the models, between halves of the prompts.
        excess: Geometric mean within the models, minus between. About 0 where the models differ by
            noise alone and are equally noisy, above 0 where one is noisier. The interval over
            prompts is conservative, as bootstrap draws are noisier than the prompts.
    """

    edges: int
    same_prompts: float
    chance: float
    within_a: Estimate
    within_b: Estimate
    between: Estimate
    excess: Estimate

    @property
    def noisier(self) -> str:
        """Model whose halves agree less, "a" or "b"; empty where neither is shown to."""
        if self.within_a.high < self.within_b.low:
            return "a"
        return "b" if self.within_b.high < self.within_a.low else ""


def edge_overlaps(
    a: Float[Tensor, "prompt edge"],
    b: Float[Tensor, "prompt edge"],
    counts: Sequence[int],
    *,
    times: int = 1000,
    seed: int = 0,
) -> tuple[Overlap, ...]:
    """Overlap of the highest-scoring edges at each count, and at last weighted over all edges.

    The weighted Jaccard index compares scores divided by the sum of their absolute values: the sum
    of the shared part over the sum of the larger. Scores of opposite sign share nothing.

    Args:
        a, b: Scores of the same prompts (logits), in both models.
        counts: Numbers of highest-scoring edges, from 1.
        times: Number of bootstrap draws.
        seed: Seed of the draws.
    """
    halves = _bootstrap_halves(len(a), times, seed)
    rows = max(1, _BLOCK // a.shape[1])
    blocks = []
    for one, two in zip(*(half.split(rows) for half in halves), strict=True):
        a1, b1 = (_rank_and_normalize(one @ x, counts) for x in (a, b))
        a2, b2 = (_rank_and_normalize(two @ x, counts) for x in (a, b))
        cross = (_jaccard(a1, b2, counts) + _jaccard(b1, a2, counts)) / 2
        blocks.append(torch.stack([_jaccard(a1, a2, counts), _jaccard(b1, b2, counts), cross]))
    # kind (draw split) measure -> kind measure draw
    values = torch.cat(blocks, 1).unflatten(1, (times, _SPLITS)).mean(2).transpose(1, 2).numpy()
    one, two = (_rank_and_normalize(x.sum(0, keepdim=True), counts) for x in (a, b))
    same = _jaccard(one, two, counts)[0].tolist()
    size = a.shape[1]
    chance = [k / (2 * size - k) for k in counts] + [_permutation_chance((one, two), counts, seed)]
    sizes = (*counts, 0)
    return tuple(
        _overlap(sizes[m], same[m], chance[m], values[:, m].astype(float))
        for m in range(len(sizes))
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
    """Excess, rounded so that a model does not differ from itself."""
    return np.round(np.sqrt(a * b) - both, 9)


def _bootstrap_halves(
    count: int, times: int, seed: int
) -> tuple[Float[Tensor, "row prompt"], Float[Tensor, "row prompt"]]:
    """Weights of the prompts in two random halves of each bootstrap draw."""
    rng = np.random.default_rng(seed)
    drawn = np.repeat(bootstrap_weights(count, times, seed=seed), _SPLITS, axis=0)
    # Prompts that were not drawn come last, so that both halves have as many that were.
    order = np.where(drawn > 0, rng.random(drawn.shape), 2.0).argsort(1).argsort(1)
    first = order < ((drawn > 0).sum(1, keepdims=True) + 1) // 2
    one, two = (torch.from_numpy(np.where(half, drawn, 0)).float() for half in (first, ~first))
    return one, two


def _rank_and_normalize(
    scores: Float[Tensor, "row edge"], counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Rank of each edge by absolute score, and scores as fractions of all absolute scores."""
    size = scores.abs()
    most = max(counts)
    top = size.topk(most, dim=1).indices
    rank = torch.full(scores.shape, most, dtype=torch.int32)
    rank.scatter_(1, top, torch.arange(most, dtype=torch.int32).expand(top.shape))
    return rank, scores / size.sum(1, keepdim=True).clamp(min=1e-12)


def _jaccard(
    one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor], counts: Sequence[int]
) -> Float[Tensor, "row measure"]:
    """Jaccard index at each count, then the weighted one."""
    last = torch.maximum(one[0], two[0])
    both = torch.stack([(last < k).sum(1) for k in counts], 1).float()
    joint = both / (2 * torch.tensor(counts) - both)
    x, y = one[1], two[1]
    shared = torch.where(x * y > 0, torch.minimum(x.abs(), y.abs()), 0.0).sum(1, keepdim=True)
    total = x.abs().sum(1, keepdim=True) + y.abs().sum(1, keepdim=True)
    return torch.cat([joint, shared / (total - shared).clamp(min=1e-12)], 1)


def _permutation_chance(
    scores: Sequence[tuple[Tensor, Tensor]], counts: Sequence[int], seed: int
) -> float:
    """Mean weighted Jaccard index where one model's scores are permuted."""
    draw = torch.Generator().manual_seed(seed)
    (rank, x), (_, y) = scores
    found = []
    for rows in torch.arange(_RANDOM_DRAWS).split(max(1, _BLOCK // y.shape[1])):
        order = torch.rand(len(rows), y.shape[1], generator=draw).argsort(1)
        ranks = rank.expand(len(rows), -1)
        permuted = (ranks, y[0, order])
        found.append(_jaccard((ranks, x.expand(len(rows), -1)), permuted, counts[:1])[:, -1])
    return float(torch.cat(found).mean())


def touched_writers(
    graph: ComputationGraph, kept: Bool[Tensor, "circuit edge"]
) -> Bool[Tensor, "circuit writer"]:
    """Whether each writer has a kept edge in or out."""
    writers, (source, target) = len(graph.writers), graph.edge_table[:2]
    touched = torch.zeros(len(kept), writers, dtype=torch.bool)
    circuit, edge = kept.nonzero().unbind(1)
    touched[circuit, torch.from_numpy(source)[edge]] = True
    fed = torch.zeros(len(graph.readers), writers, dtype=torch.bool)
    for reader in range(len(graph.readers)):
        fed[reader, list(graph.writers_fed_by(reader))] = True
    reads = torch.zeros(len(kept), len(graph.readers), dtype=torch.bool)
    reads[circuit, torch.from_numpy(target)[edge]] = True
    return touched | ((reads.float() @ fed.float()) > 0)


def node_overlap(
    graph: ComputationGraph, kept: Bool[Tensor, "circuit edge"], *, seed: int = 0
) -> tuple[float, float]:
    """Jaccard index of the writers that two circuits touch, and that of random circuits."""
    one, two = touched_writers(graph, kept)
    size, rng = int(kept[0].sum()), np.random.default_rng(seed)
    drawn = torch.zeros(2 * _RANDOM_DRAWS, len(graph), dtype=torch.bool)
    for row in drawn:
        row[torch.from_numpy(rng.choice(len(graph), size, replace=False, shuffle=False))] = True
    first, second = touched_writers(graph, drawn).split(_RANDOM_DRAWS)
    chance = (first & second).sum(1) / (first | second).sum(1)
    return float((one & two).sum() / (one | two).sum()), float(chance.mean())


def sum_by_group(
    scores: Float[Tensor, "prompt edge"], group: Int[np.ndarray, " prompt"]
) -> Float[Tensor, "group edge"]:
    """Sum of the scores of each group of pairs, the unit of bootstrap, halves and sign flips."""
    groups, row = np.unique(group, return_inverse=True)
    total = torch.zeros(len(groups), scores.shape[1], dtype=scores.dtype)
    return total.index_add(0, torch.from_numpy(row), scores)
