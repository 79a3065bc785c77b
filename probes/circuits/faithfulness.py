"""Faithfulness of circuits, with curves over size, random baselines and specificity.

    f(C) = (m(C) - m(∅)) / (m(G) - m(∅))        m: mean logit difference with the edges C kept

1 is the whole model G, 0 the model with every edge ablated. Below 0 and above 1 are possible.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_scores import EdgeScores
from probes.circuits.edges.path_patching import run_circuits
from probes.circuits.result import Faithfulness, FaithfulnessCurve, RandomBaseline
from probes.circuits.runs.held import Ablation, ReferenceRuns
from probes.circuits.runs.reference import run_references
from probes.circuits.selection import random_paths
from probes.circuits.specificity import Specificity
from probes.circuits.task import Task
from probes.errors import CircuitError
from probes.models.model import Model
from probes.stats.intervals import Estimate, bootstrap_mean, bootstrap_ratio, proportion

# Sizes of the MIB benchmark (Mueller et al. 2025, 2504.13151), as fractions of all edges.
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SPECIFICITY_CIRCUITS = 20
"""Random circuits whose ablation specificity is held against."""


def faithfulness(
    model: Model,
    task: Task,
    circuits: Sequence[Circuit],
    *,
    ablation: Ablation = "counterfactual",
    seed: int = 0,
) -> tuple[Faithfulness, ...]:
    """Faithfulness and completeness of each circuit.

    f is the mean logit difference of the circuit alone relative to that of the whole model, both
    minus that of the run without any edge: 1 keeps all, 0 nothing.

    Args:
        model: A decoder whose blocks are sums of heads and MLP.
        task: Aligned pairs of prompts, other ones than those that the circuits were found with.
        circuits: Circuits of this model.
        ablation: What all other edges carry: the value of the "counterfactual" run, the "mean"
            over prompts, or "zero".
        seed: Seed of the bootstrap.

    Returns:
        f of each circuit and of its complement, with 95 % intervals over prompts.

    Raises:
        CircuitError: A circuit is resolved by roles and another is not, or its edges do not exist.
        ModelError: The model's blocks are no plain sums, or it is in training mode.
    """
    resolved = {bool(circuit.graph.roles) for circuit in circuits}
    if len(resolved) != 1:
        raise CircuitError(
            f"{len(circuits)} circuits were given, {'some' if resolved else 'none'} of them "
            "resolved by roles: give at least one, and all of one kind"
        )
    runs = run_references(model, task, roles=resolved.pop(), ablation=ablation)
    return tuple(evaluate_circuit(runs, circuit, seed=seed) for circuit in circuits)


def evaluate_circuit(runs: ReferenceRuns, circuit: Circuit, *, seed: int = 0) -> Faithfulness:
    """Faithfulness of one circuit; see `faithfulness`."""
    return evaluate_masks(runs, edge_masks(runs, [circuit]), seed=seed)[0]


def edge_masks(runs: ReferenceRuns, circuits: Sequence[Circuit]) -> Bool[Tensor, "circuit edge"]:
    """Masks of the circuits' edges; edges at roles that the prompts lack are left out."""
    masks = torch.zeros(len(circuits), len(runs.graph), dtype=torch.bool)
    for row, circuit in enumerate(circuits):
        indices = circuit.graph.indices_in(runs.graph)[circuit.edge_indices]
        masks[row, indices[indices >= 0]] = True
    return masks


def evaluate_masks(
    runs: ReferenceRuns, masks: Tensor, *, seed: int = 0
) -> tuple[Faithfulness, ...]:
    """Faithfulness of edge masks "circuit edge"; see `faithfulness`."""
    inside, outside = run_circuits(runs, torch.cat([masks, ~masks])).split(len(masks))
    clean, ablated = runs.clean_logit_diffs, runs.ablated_logit_diffs
    # A prompt on which both runs agree, up to rounding, has nothing to keep a fraction of.
    has_gap = ~torch.isclose(clean, ablated, rtol=1e-5, atol=1e-6)
    gap = torch.where(has_gap, clean - ablated, torch.nan)
    return tuple(
        Faithfulness(
            edges=int(mask.sum()),
            fraction=float(mask.float().mean()),
            value=faithfulness_estimate(runs, kept, seed=seed),
            per_prompt=tuple(((kept - ablated) / gap).tolist()),
            positive_fraction=proportion((kept > 0).cpu().numpy()),
            complement=faithfulness_estimate(runs, rest, seed=seed),
        )
        for mask, kept, rest in zip(masks, inside, outside, strict=True)
    )


def faithfulness_estimate(
    runs: ReferenceRuns, logit_diffs: Float[Tensor, " prompt"], *, seed: int
) -> Estimate:
    """f with its bootstrap interval over prompts."""
    kept, whole, ablated = (
        values.cpu().double().numpy()
        for values in (logit_diffs, runs.clean_logit_diffs, runs.ablated_logit_diffs)
    )
    return bootstrap_ratio(kept - ablated, whole - ablated, seed=seed)


def faithfulness_values(runs: ReferenceRuns, masks: Tensor) -> Float[Tensor, " circuit"]:
    """f of edge masks "circuit edge", without intervals."""
    # Some devices have no double precision.
    logit_diffs = run_circuits(runs, masks).cpu().double()
    gap = (runs.clean_logit_diffs - runs.ablated_logit_diffs).cpu().double().mean()
    return (logit_diffs - runs.ablated_logit_diffs.cpu()).mean(1) / gap


def faithfulness_curve(
    runs: ReferenceRuns,
    edge_scores: EdgeScores,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> FaithfulnessCurve:
    """Faithfulness of the highest-scoring edges at each size, with the areas of MIB."""
    order = edge_scores.mean.abs().argsort(descending=True, stable=True).numpy()
    counts = [max(1, int(fraction * len(edge_scores))) for fraction in fractions]
    indices = edge_scores.graph.indices_in(runs.graph)[order]
    values = []
    for count in counts:
        mask = torch.zeros(1, len(runs.graph), dtype=torch.bool)
        mask[0, indices[:count][indices[:count] >= 0]] = True
        values.append(faithfulness_estimate(runs, run_circuits(runs, mask)[0], seed=seed))
    f = np.array([estimate.value for estimate in values])
    distance, logs = np.abs(1 - f), np.log(fractions)
    return FaithfulnessCurve(
        fractions=tuple(fractions),
        edges=tuple(counts),
        values=tuple(values),
        cpr=float(np.trapezoid(f, fractions)),
        cmd=float(np.trapezoid(distance, fractions)),
        log_cpr=float(np.trapezoid(f, logs) / (logs[-1] - logs[0])),
        log_cmd=float(np.trapezoid(distance, logs) / (logs[-1] - logs[0])),
    )


def random_baseline(runs: ReferenceRuns, masks: Tensor, value: float, kind: str) -> RandomBaseline:
    """Compare a circuit's f with random circuits; see `sample_random_circuits`."""
    values = faithfulness_values(runs, masks).numpy()
    return RandomBaseline(kind, tuple(values.tolist()), float((values < value).mean()))


def sample_random_circuits(
    runs: ReferenceRuns, count: int, kind: str, n_circuits: int, *, seed: int
) -> Bool[Tensor, "circuit edge"]:
    """Masks of random circuits of `count` edges; see `RandomBaseline` for the kinds."""
    rng, size = np.random.default_rng(seed), len(runs.graph)
    masks = torch.zeros(n_circuits, size, dtype=torch.bool)
    for mask in masks:
        if kind == "paths":
            mask[random_paths(runs.graph, count, rng)] = True
        else:
            mask[rng.choice(size, count, replace=False)] = True
    return masks


def specificity(
    runs_by_task: Mapping[str, ReferenceRuns], circuits: Mapping[str, Circuit], *, seed: int = 0
) -> tuple[Specificity, ...]:
    """Ablate each task's circuit in every task, and random paths of as many edges.

    As many as the circuit has in the prompts of that task. Circuits of different tasks often damage
    each other as much as themselves (Li & Subramani 2026, 2605.08348).
    """
    results = []
    for task, runs in runs_by_task.items():
        cut = edge_masks(runs, [*circuits.values()])
        sizes, random = cut.sum(1).tolist(), {}
        for size in dict.fromkeys(sizes):
            masks = sample_random_circuits(runs, size, "paths", SPECIFICITY_CIRCUITS, seed=seed)
            random[size] = run_circuits(runs, ~masks)
        rows = zip(circuits, sizes, run_circuits(runs, ~cut), strict=True)
        for name, size, kept in rows:
            left = faithfulness_estimate(runs, kept, seed=seed)
            values, extra = _extra_damage(runs, kept, random[size], seed=seed)
            interval = (left.low, left.high)
            results.append(Specificity(name, task, size, left.value, interval, values, extra))
    return tuple(results)


def _extra_damage(
    runs: ReferenceRuns,
    circuit: Float[Tensor, " prompt"],
    random: Float[Tensor, "circuit prompt"],
    *,
    seed: int,
) -> tuple[tuple[float, ...], Estimate]:
    """f without each random circuit, and the mean of these minus f without the circuit.

    The errors over prompts, paired, and over random circuits add in squares.
    """
    own, drawn, whole, ablated = (
        values.cpu().double().numpy()
        for values in (circuit, random, runs.clean_logit_diffs, runs.ablated_logit_diffs)
    )
    gap, left = whole - ablated, drawn - ablated
    over_prompts = bootstrap_ratio(drawn.mean(0) - own, gap, seed=seed)
    if np.isnan(mean := over_prompts.value):
        return (mean,) * len(left), over_prompts
    values = left.mean(1) / gap.mean()
    over_circuits = bootstrap_mean(values, seed=seed)
    errors = over_prompts, over_circuits
    below = math.hypot(*(each.value - each.low for each in errors))
    above = math.hypot(*(each.high - each.value for each in errors))
    return tuple(values.tolist()), Estimate(mean, mean - below, mean + above)
