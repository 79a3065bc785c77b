"""The circuits of two models that have the same wires: quantized, pruned or fine-tuned relatives.

prompts ─┬─ half: every edge scored in both models ─→ overlap, changed edges, circuits by size
         └─ half: each circuit run in both models ──→ does it do the job there as well?

Other edges can do the same job: low overlap is no loss while the circuit works in the other model.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from probes.circuits.attribution import AttributionMethod, edge_attribution
from probes.circuits.edge_scores import EdgeScores
from probes.circuits.faithfulness import edge_masks
from probes.circuits.reference_runs import ReferenceRuns
from probes.circuits.task import Task, TaskSettings, sample_tasks
from probes.comparison.circuits.edge_tests import edge_changes, min_detectable_edges
from probes.comparison.circuits.overlap import (
    Overlap,
    edge_overlaps,
    node_overlap,
    sum_by_group,
)
from probes.comparison.circuits.result import CircuitComparison, SizeComparison
from probes.comparison.circuits.transfer import evaluate_transfer, stage_task
from probes.errors import CircuitError
from probes.models.model import Model, load
from probes.prompts.catalog import pattern
from probes.prompts.pattern import Pattern
from probes.prompts.splits import split_groups, text_groups
from probes.stats.intervals import Estimate, bootstrap_mean

SIZES = (0.01, 0.02, 0.05, 0.1, 0.2)

_MIN_PAIRS = 8  # Pairs in a half: fewer leave too few patterns of signs, and too few to deal out.
_NEGLIGIBLE = 1e-4  # Of the lead that is at stake: what rounding may do to a score.
_SHAPE = (("layers", "layers"), ("heads", "heads"), ("kv_heads", "heads for keys and values"))


def compare_circuits(  # noqa: PLR0913 (the job has its dials)
    a: str | Path | Model,
    b: str | Path | Model,
    task: Task | str | Pattern,
    *,
    sizes: Sequence[float] = SIZES,
    method: AttributionMethod = "eap-ig",
    answer: str = "",
    contrasts: Sequence[str] = (),
    prompts: int = 32,
    draws: int = 1000,
    random_circuits: int = 10,
    seed: int = 0,
) -> CircuitComparison:
    """Say how alike two circuits are, and whether each does the other model's job.

    Args:
        a, b: Models with the same layers, heads and wires, or names that `load` takes.
        task: Pairs of prompts, which are halved; or a pattern, or its name, to draw them from.
        sizes: Of the circuits compared, as shares of all edges.
        method: How edges are scored; see `attribute`.
        answer: Which answer of a pattern is traced; the first by default.
        contrasts: What a pattern's counterfactuals change; by default all that change the answer.
        prompts: Pairs of a pattern for each contrast, to choose circuits by; as many to judge by.
        draws: How often prompts are drawn anew.
        controls: How many random circuits of each size give the chance level.
        seed: Of prompts, halves, draws and random circuits.

    Raises:
        CircuitError: The models differ in their wires or tokens, there are too few prompts, or a
            number makes no sense.
        GateError: The answer does not lead in a model, or its counterfactuals do not lower it.
    """
    if not sizes or not all(0 < part <= 1 for part in sizes) or draws < 2 or random_circuits < 1:
        raise CircuitError(
            f"Cannot compare circuits at sizes {list(sizes)} in {draws} draws beside {random_circuits} "
            "random ones: give shares above 0, up to 1, two draws or more, and one control or more"
        )
    one, two = load(a), load(b)
    if one.name == two.name:
        two = replace(two, name=f"{two.name} (2)")
    _require_same_graph(one, two)
    asked = pattern(task) if isinstance(task, str) else task
    if isinstance(asked, Task):
        group = _require_groups(asked, 2 * _MIN_PAIRS, "choose circuits by and to judge them")
        finding, judging = (asked[rows] for rows in split_groups(group, seed=seed))
    else:
        settings = TaskSettings(
            answer=answer, contrasts=tuple(contrasts), prompts=prompts, seed=seed
        )
        finding, judging = sample_tasks(one, asked, settings)
    group = _require_groups(finding, _MIN_PAIRS, "choose circuits by")
    _require_groups(judging, _MIN_PAIRS, "judge circuits by")
    stages = (stage_task(one, judging), stage_task(two, judging))
    edge_scores = (
        edge_attribution(one, finding, method=method),
        edge_attribution(two, finding, method=method),
    )
    rows = [_sum_scores_by_group(graph, group) for graph in edge_scores]
    counts = sorted({max(1, int(part * len(edge_scores[0]))) for part in sizes})
    *by_size, weighted_overlap = edge_overlaps(rows[0], rows[1], counts, times=draws, seed=seed)
    stake = max(
        float((found.clean_logit_diffs - found.ablated_logit_diffs).mean()) for found in stages
    )
    each = [scores.double().numpy() * len(scores) / len(group) for scores in rows]
    return CircuitComparison(
        a=one.name,
        b=two.name,
        logit_diffs=(_mean_logit_diff(stages[0], seed), _mean_logit_diff(stages[1], seed)),
        sizes=tuple(
            _compare_at_size(edge_scores, stages, found, random_circuits, seed) for found in by_size
        ),
        weighted_overlap=weighted_overlap,
        edge_changes=edge_changes(
            edge_scores[0].graph, each[0], each[1], min_difference=_NEGLIGIBLE * stake, seed=seed
        ),
        min_detectable_edges=min_detectable_edges(len(rows[0]), len(edge_scores[0])),
        edge_scores=edge_scores,
        protocol=(
            *edge_scores[0].protocol,
            ("held-out prompts", str(len(judging))),
            ("draws", str(draws)),
            ("random circuits", f"{random_circuits} of random paths"),
            ("seed", str(seed)),
        ),
    )


def _require_same_graph(a: Model, b: Model) -> None:
    """Refuse models whose edges, or tokens, are not the same ones."""
    shapes = [
        ", ".join(f"{getattr(m.shape, name)} {word}" for name, word in _SHAPE) for m in (a, b)
    ]
    kinds = ["parallel" if m.shape.parallel else "one after another" for m in (a, b)]
    if shapes[0] != shapes[1] or kinds[0] != kinds[1]:
        raise CircuitError(
            f"{a.name} has {shapes[0]} (attention and MLP {kinds[0]}), {b.name} {shapes[1]} "
            f"({kinds[1]}): their edges are not the same ones. Compare their heads by what they "
            "do: compare(a, b)."
        )
    known = [None if m.tokenizer is None else m.tokenizer.get_vocab() for m in (a, b)]
    if known[0] and known[1] and known[0] != known[1]:
        raise CircuitError(
            f"{a.name} and {b.name} have different tokens, {len(known[0])} and {len(known[1])} of "
            "them: the same prompt is not the same to both. Compare their heads by what they do: "
            "compare(a, b)."
        )


def _require_groups(task: Task, minimum: int, purpose: str) -> Int[np.ndarray, " prompt"]:
    """Return which pairs belong together, as they share a text; refuse too few."""
    rows = [[tuple(row) for row in ids.tolist()] for ids in (task.clean, task.counterfactual)]
    group = text_groups(list(zip(*rows, strict=True)))
    if (count := len(np.unique(group))) < minimum:
        raise CircuitError(
            f"{count} pairs that share no text were found to {purpose}, and {minimum} are needed: give "
            "more pairs, or pairs of more texts"
        )
    return group


def _sum_scores_by_group(
    edge_scores: EdgeScores, group: Int[np.ndarray, " prompt"]
) -> Float[Tensor, "group edge"]:
    assert edge_scores.per_prompt is not None  # `attribute` keeps them unless told otherwise
    return sum_by_group(edge_scores.per_prompt, group)


def _mean_logit_diff(stage: ReferenceRuns, seed: int) -> Estimate:
    return bootstrap_mean(stage.clean_logit_diffs.double().cpu().numpy(), seed=seed)


def _compare_at_size(
    edge_scores: tuple[EdgeScores, EdgeScores],
    stages: tuple[ReferenceRuns, ReferenceRuns],
    overlap: Overlap,
    random_circuits: int,
    seed: int,
) -> SizeComparison:
    wiring = edge_scores[0].graph
    kept = edge_masks(stages[0], [graph.top(overlap.edges) for graph in edge_scores])
    nodes, by_lot = node_overlap(wiring, kept, seed=seed)
    in_a, in_b = (
        evaluate_transfer(
            stages[m], kept[m], kept[1 - m], random_circuits=random_circuits, seed=seed
        )
        for m in (0, 1)
    )
    return SizeComparison(overlap.edges / len(wiring), overlap, nodes, by_lot, in_a, in_b)
