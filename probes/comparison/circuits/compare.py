"""Circuits of two models with the same graph: quantized, pruned or fine-tuned relatives.

pairs ─┬─ discovery half: edge scores in both models ─→ overlap, changed edges, circuits by size
       └─ held-out half: each circuit in both models ─→ does it work in the other?

Other edges can do the same work: low overlap is no loss while the circuit works in the other model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.circuits.edges.edge_attribution import AttributionMethod, edge_attribution
from probes.circuits.edges.edge_scores import EdgeScores
from probes.circuits.faithfulness import edge_masks
from probes.circuits.task import Task, TaskSettings, sample_tasks
from probes.comparison.circuits.edge_result import CircuitTransfer
from probes.comparison.circuits.edge_tests import (
    EdgeChange,
    edge_changes,
    min_detectable_edges,
)
from probes.comparison.circuits.overlap import Overlap, edge_overlaps, node_overlap, sum_by_group
from probes.comparison.circuits.result import CircuitComparison, SizeComparison
from probes.comparison.circuits.transfer import evaluate_transfer, run_open_task
from probes.errors import CircuitError
from probes.models.model import Model, ModelSpec, load
from probes.prompts.catalog import pattern
from probes.prompts.pattern import Pattern
from probes.prompts.splits import split_groups, text_groups
from probes.stats.intervals import Estimate, bootstrap_mean

SIZES = (0.01, 0.02, 0.05, 0.1, 0.2)

_MIN_PAIRS = 8  # Groups of pairs in a half; fewer leave too few sign patterns.
_NEGLIGIBLE = 1e-4  # Rounding error of a score, relative to the drop of the logit difference.
_INSTEAD = "`probes compare`, or pb.compare"
_SHAPE = (("layers", "layers"), ("heads", "heads"), ("kv_heads", "heads for keys and values"))


@dataclass(frozen=True, kw_only=True)
class CircuitComparisonSettings(TaskSettings):
    """Settings of `compare_circuits`; answer, prompts and seed as in `TaskSettings`.

    Attributes:
        sizes: Sizes of the compared circuits, as fractions of all edges.
        method: How edges are scored; see `edge_attribution`.
        draws: Number of bootstrap draws, at least 2.
        random_circuits: Number of random circuits of each size for the chance level.
    """

    sizes: tuple[float, ...] = SIZES
    method: AttributionMethod = "eap-ig"
    draws: int = 1000
    random_circuits: int = 10

    def __post_init__(self) -> None:
        if not self.sizes or not all(0 < size <= 1 for size in self.sizes):
            raise CircuitError(
                f"Circuits cannot have the sizes {list(self.sizes)}: give fractions above 0, and "
                "at most 1"
            )
        if self.draws < 2 or self.random_circuits < 1:
            raise CircuitError(
                f"{self.draws} draws and {self.random_circuits} random circuits are too few: give "
                "at least two draws and one random circuit"
            )


def compare_circuits(
    a: ModelSpec,
    b: ModelSpec,
    task: Task | str | Pattern,
    settings: CircuitComparisonSettings | None = None,
) -> CircuitComparison:
    """Overlap of two models' circuits, and whether each works in the other model.

    Args:
        a, b: Models with the same graph and vocabulary, or names that `load` takes.
        task: Pairs of prompts, which are split in halves; or a pattern or its name.
        settings: Pairs of a pattern, sizes, scoring and random baselines.

    Raises:
        CircuitError: The models differ in their graphs or tokens, or there are too few pairs.
        GateError: A model does not have the behavior.
    """
    settings = settings or CircuitComparisonSettings()
    seed, (one, two) = settings.seed, (load(a), load(b))
    if one.name == two.name:
        two = replace(two, name=f"{two.name} (2)")
    require_same_graph(one, two)
    source = pattern(task) if isinstance(task, str) else task
    if isinstance(source, Task):
        groups = _require_groups(source, 2 * _MIN_PAIRS, "find and to evaluate circuits")
        discovery, held_out = (source[rows] for rows in split_groups(groups, seed=seed))
    else:
        discovery, held_out = sample_tasks(one, source, settings)
    groups = _require_groups(discovery, _MIN_PAIRS, "find circuits")
    _require_groups(held_out, _MIN_PAIRS, "evaluate circuits")
    # Runs of two large models are not kept while edges are scored.
    logit_diffs = (_open_logit_diffs(one, held_out), _open_logit_diffs(two, held_out))
    edge_scores = (
        edge_attribution(one, discovery, method=settings.method),
        edge_attribution(two, discovery, method=settings.method),
    )
    rows_a, rows_b = (_sum_scores_by_group(scores, groups) for scores in edge_scores)
    counts = sorted({max(1, int(size * len(edge_scores[0]))) for size in settings.sizes})
    *by_size, weighted_overlap = edge_overlaps(
        rows_a, rows_b, counts, times=settings.draws, seed=seed
    )
    largest_drop = max(float((clean - ablated).mean()) for clean, ablated in logit_diffs)
    in_a, in_b = (
        _transfers((one, two)[m], held_out, (edge_scores[m], edge_scores[1 - m]), counts, settings)
        for m in (0, 1)
    )
    changes, _ = changed_edges(discovery, edge_scores, largest_drop, seed=seed)
    return CircuitComparison(
        a=one.name,
        b=two.name,
        logit_diffs=(
            _mean(logit_diffs[0][0], seed),
            _mean(logit_diffs[1][0], seed),
        ),
        sizes=tuple(
            _size_comparison(edge_scores, each, own, seed)
            for each, *own in zip(by_size, in_a, in_b, strict=True)
        ),
        weighted_overlap=weighted_overlap,
        edge_changes=changes,
        min_detectable_edges=min_detectable_edges(len(rows_a), len(edge_scores[0])),
        edge_scores=edge_scores,
        protocol=(
            *edge_scores[0].protocol,
            ("held-out prompts", str(len(held_out))),
            ("draws", str(settings.draws)),
            ("random circuits", f"{settings.random_circuits} of random paths"),
            ("seed", str(seed)),
        ),
    )


def require_same_graph(a: Model, b: Model) -> None:
    """Raise if edges or tokens of two models differ."""
    shapes = [
        ", ".join(f"{getattr(m.shape, name)} {word}" for name, word in _SHAPE) for m in (a, b)
    ]
    kinds = ["parallel" if m.shape.parallel else "sequential" for m in (a, b)]
    if shapes[0] != shapes[1] or kinds[0] != kinds[1]:
        raise CircuitError(
            f"{a.name} has {shapes[0]} (attention and MLP {kinds[0]}), {b.name} {shapes[1]} "
            f"({kinds[1]}): their edges differ. Compare their role paths and heads: {_INSTEAD}."
        )
    tokens = [None if m.tokenizer is None else m.tokenizer.get_vocab() for m in (a, b)]
    if tokens[0] and tokens[1] and tokens[0] != tokens[1]:
        raise CircuitError(
            f"{a.name} and {b.name} have different vocabularies, of {len(tokens[0])} and "
            f"{len(tokens[1])} tokens: they do not read the same prompts. Compare their role paths "
            f"and heads: {_INSTEAD}."
        )


def changed_edges(
    task: Task, edge_scores: Sequence[EdgeScores], drop: float, *, seed: int
) -> tuple[tuple[EdgeChange, ...], int]:
    """Edges whose scores differ between two models, and the number of groups of prompts.

    Args:
        task: The scored pairs; those with a common text are one group of the test.
        edge_scores: Scores of each prompt in both models.
        drop: Largest drop of the logit difference, in proportion to which a difference is 0.
        seed: Seed of signs and bootstrap.
    """
    groups = _text_groups(task)
    rows = [_sum_scores_by_group(scores, groups) for scores in edge_scores]
    means = (each.double().numpy() * len(each) / len(groups) for each in rows)
    graph, least = edge_scores[0].graph, _NEGLIGIBLE * drop
    return edge_changes(graph, *means, min_difference=least, seed=seed), len(rows[0])


def _text_groups(task: Task) -> Int[np.ndarray, " prompt"]:
    """Group of each pair; pairs with a common text share one."""
    texts = [[tuple(row) for row in ids.tolist()] for ids in (task.clean, task.counterfactual)]
    return text_groups(list(zip(*texts, strict=True)))


def _require_groups(task: Task, minimum: int, purpose: str) -> Int[np.ndarray, " prompt"]:
    """Groups of the pairs of a task. Raise if there are too few."""
    groups = _text_groups(task)
    if (count := len(np.unique(groups))) < minimum:
        raise CircuitError(
            f"There are {count} pairs without a common text to {purpose}, and {minimum} are "
            "needed: give more pairs, or pairs of more texts"
        )
    return groups


def _sum_scores_by_group(
    edge_scores: EdgeScores, groups: Int[np.ndarray, " prompt"]
) -> Float[Tensor, "group edge"]:
    assert edge_scores.per_prompt is not None  # edge_attribution keeps them by default
    return sum_by_group(edge_scores.per_prompt, groups)


def _open_logit_diffs(model: Model, task: Task) -> tuple[Tensor, Tensor]:
    """Logit differences of the clean and of the counterfactual prompts; the gate must be open."""
    runs = run_open_task(model, task)
    return runs.clean_logit_diffs, runs.ablated_logit_diffs


def _mean(logit_diffs: Tensor, seed: int) -> Estimate:
    return bootstrap_mean(logit_diffs.cpu().double().numpy(), seed=seed)


def _transfers(
    model: Model,
    held_out: Task,
    edge_scores: tuple[EdgeScores, EdgeScores],
    counts: Sequence[int],
    settings: CircuitComparisonSettings,
) -> list[CircuitTransfer]:
    """Circuits of each size in one model; the scores are its own, then those of the other."""
    runs, transfers = run_open_task(model, held_out), []
    for count in counts:
        own, other = edge_masks(runs, [scores.top(count) for scores in edge_scores])
        how = {"random_circuits": settings.random_circuits, "seed": settings.seed}
        transfers.append(evaluate_transfer(runs, own, other, **how))
    return transfers


def _size_comparison(
    edge_scores: Sequence[EdgeScores],
    overlap: Overlap,
    transfers: Sequence[CircuitTransfer],
    seed: int,
) -> SizeComparison:
    graph = edge_scores[0].graph
    masks = torch.zeros(2, len(graph), dtype=torch.bool)
    for mask, scores in zip(masks, edge_scores, strict=True):
        mask[torch.tensor(scores.top(overlap.edges).edge_indices)] = True
    nodes, random_nodes = node_overlap(graph, masks, seed=seed)
    in_a, in_b = transfers
    return SizeComparison(overlap.edges / len(graph), overlap, nodes, random_nodes, in_a, in_b)
