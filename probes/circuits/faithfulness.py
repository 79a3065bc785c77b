"""How good a circuit is: faithful, complete, minimal, specific, and better than chance.

    f(C) = (m(C) - m(nothing)) / (m(all) - m(nothing))        m: mean lead with the edges C kept

1 is the whole model, 0 the model with every edge replaced; below 0 and above 1 are possible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import ttest_1samp
from torch import Tensor

from probes.circuits.circuit import Circuit
from probes.circuits.edge_patching import run_circuits
from probes.circuits.edge_scores import EdgeScores
from probes.circuits.reference_runs import Ablation, ReferenceRuns, run_references
from probes.circuits.selection import random_paths
from probes.circuits.task import Task
from probes.errors import CircuitError
from probes.models.model import Model
from probes.stats.intervals import (
    BOOTSTRAP_DRAWS,
    Estimate,
    bootstrap_weights,
    percentile_interval,
    proportion,
)
from probes.stats.multiple_testing import holm

# The sizes of the MIB benchmark (Mueller et al. 2025, 2504.13151), as shares of all edges.
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_SPECIFICITY_CIRCUITS = 20
# What rounding may do to a lead, as a share of the gap between the two runs.
_ROUNDING_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """How much of a behavior some edges hold by themselves.

    Attributes:
        edges: How many are kept.
        share: Of all edges.
        value: f, the ratio of mean leads, with its bootstrap interval over prompts.
        each: f of every prompt by itself; wild where a prompt's own gap is small.
        right: Share of prompts whose answer still leads the mean of its foils (Wilson interval).
        complement: f of all other edges: near 0 where the circuit is complete.
    """

    edges: int
    fraction: float
    value: Estimate
    per_prompt: tuple[float, ...]
    positive_fraction: Estimate
    complement: Estimate


@dataclass(frozen=True, slots=True)
class FaithfulnessCurve:
    """Faithfulness of the best edges at growing sizes.

    Attributes:
        shares: Sizes as shares of all edges.
        edges: Sizes as counts, at least 1.
        values: f at each size.
        cpr: Area under f over the share (MIB's circuit performance ratio; higher is better).
        cmd: Area between f and 1 over the share (MIB's circuit-model distance; lower is better).
        log_cpr, log_cmd: The same over the logarithm of the share, as a mean: a size of 1 % to
            2 % counts as much as one of 50 % to 100 %.
    """

    fractions: tuple[float, ...]
    edges: tuple[int, ...]
    values: tuple[Estimate, ...]
    cpr: float
    cmd: float
    log_cpr: float
    log_cmd: float


@dataclass(frozen=True, slots=True)
class RandomBaseline:
    """Circuits drawn by lot, of the same number of edges.

    Attributes:
        kind: "edges": any; "paths": random ways from the embedding to the logits, so that every
            edge can matter.
        values: f of each.
        percentile: Share of them that the circuit exceeds.
    """

    kind: str
    values: tuple[float, ...]
    percentile: float


@dataclass(frozen=True, slots=True)
class EdgeNecessity:
    """Whether one edge of a circuit is needed.

    Attributes:
        edge: Its name.
        fall: Fall of f when it is cut out of the circuit.
        p: One-sided paired t-test over prompts, Holm-corrected: cutting it lowers the lead by
            more than cutting an edge that was added to the circuit by lot moves it.
    """

    edge: str
    faithfulness_drop: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Specificity:
    """What cutting one task's circuit does to a task.

    Attributes:
        cut: Whose circuit is cut out, or "random paths" (the median of twenty).
        task: Whose lead is measured.
        edges: How many are cut.
        left: f of all other edges: near 0 on the circuit's own task and near 1 elsewhere, if the
            circuit does one task and no other.
    """

    cut_circuit: str
    task: str
    edges: int
    remaining: float


def faithfulness(
    model: Model,
    task: Task,
    circuits: Sequence[Circuit],
    *,
    ablation: Ablation = "counterfactual",
    seed: int = 0,
) -> tuple[Faithfulness, ...]:
    """Run a model with nothing but each circuit's edges, and with all but them.

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
    found = run_references(model, task, roles=resolved.pop(), ablation=ablation)
    return tuple(evaluate_masks(found, edge_masks(found, [c]), seed=seed)[0] for c in circuits)


def edge_masks(runs: ReferenceRuns, circuits: Sequence[Circuit]) -> Tensor:
    """Mark each circuit's edges: "circuit edge"; roles that the prompts lack have none to mark."""
    kept = torch.zeros(len(circuits), len(runs.graph), dtype=torch.bool)
    for row, circuit in enumerate(circuits):
        numbers = circuit.graph.indices_in(runs.graph)[circuit.edge_indices]
        kept[row, numbers[numbers >= 0]] = True
    return kept


def evaluate_masks(
    runs: ReferenceRuns, masks: Tensor, *, seed: int = 0
) -> tuple[Faithfulness, ...]:
    """Measure marked edges "circuit edge"; see `faithfulness`."""
    both = run_circuits(runs, torch.cat([masks, ~masks]))
    inside, outside = both.split(len(masks))
    result = []
    for row, mark in enumerate(masks):
        each = (inside[row] - runs.ablated_logit_diffs) / (
            runs.clean_logit_diffs - runs.ablated_logit_diffs
        )
        result.append(
            Faithfulness(
                edges=int(mark.sum()),
                fraction=float(mark.float().mean()),
                value=faithfulness_estimate(runs, inside[row], seed=seed),
                per_prompt=tuple(each.tolist()),
                positive_fraction=proportion((inside[row] > 0).cpu().numpy()),
                complement=faithfulness_estimate(runs, outside[row], seed=seed),
            )
        )
    return tuple(result)


def faithfulness_estimate(
    runs: ReferenceRuns, logit_diffs: Float[Tensor, " prompt"], *, seed: int
) -> Estimate:
    """Return f with its bootstrap interval: the ratio of means, over prompts drawn anew."""
    weights = bootstrap_weights(len(logit_diffs), BOOTSTRAP_DRAWS, seed=seed)
    inside, whole, none = (
        t.double().cpu().numpy()
        for t in (logit_diffs, runs.clean_logit_diffs, runs.ablated_logit_diffs)
    )
    value = (inside - none).mean() / (whole - none).mean()
    return percentile_interval(
        float(value), (weights @ (inside - none)) / (weights @ (whole - none))
    )


def faithfulness_values(runs: ReferenceRuns, masks: Tensor) -> Float[Tensor, " circuit"]:
    """Return f of marked edges "circuit edge", without intervals."""
    leads = run_circuits(runs, masks).double()
    gap = (runs.clean_logit_diffs - runs.ablated_logit_diffs).double().mean()
    return ((leads - runs.ablated_logit_diffs).mean(1) / gap).cpu()


def faithfulness_curve(
    runs: ReferenceRuns,
    edge_scores: EdgeScores,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> FaithfulnessCurve:
    """Measure the strongest edges at growing sizes, with MIB's areas and their log-size twins."""
    order = edge_scores.mean.abs().argsort(descending=True, stable=True).numpy()
    counts = [max(1, int(part * len(edge_scores))) for part in fractions]
    place = edge_scores.graph.indices_in(runs.graph)[order]
    kept = torch.zeros(len(counts), len(runs.graph), dtype=torch.bool)
    for row, count in enumerate(counts):
        kept[row, place[:count][place[:count] >= 0]] = True
    found = [
        faithfulness_estimate(runs, run_circuits(runs, row[None])[0], seed=seed) for row in kept
    ]
    f = np.array([estimate.value for estimate in found])
    off, logs = np.abs(1 - f), np.log(fractions)
    return FaithfulnessCurve(
        fractions=tuple(fractions),
        edges=tuple(counts),
        values=tuple(found),
        cpr=float(np.trapezoid(f, fractions)),
        cmd=float(np.trapezoid(off, fractions)),
        log_cpr=float(np.trapezoid(f, logs) / (logs[-1] - logs[0])),
        log_cmd=float(np.trapezoid(off, logs) / (logs[-1] - logs[0])),
    )


def random_baseline(runs: ReferenceRuns, masks: Tensor, value: float, kind: str) -> RandomBaseline:
    """Measure circuits that `lots` drew, "circuit edge", beside a circuit's own f."""
    found = faithfulness_values(runs, masks).numpy()
    return RandomBaseline(kind, tuple(found.tolist()), float((found < value).mean()))


def sample_random_circuits(
    runs: ReferenceRuns, count: int, kind: str, n_circuits: int, *, seed: int
) -> Tensor:
    """Mark circuits of `count` edges drawn by lot, "circuit edge"; see `Chance` for the kinds."""
    rng, size = np.random.default_rng(seed), len(runs.graph)
    kept = torch.zeros(n_circuits, size, dtype=torch.bool)
    for row in kept:
        if kind == "paths":
            row[random_paths(runs.graph, count, rng)] = True
        else:
            row[rng.choice(size, count, replace=False)] = True
    return kept


def minimality(
    runs: ReferenceRuns, circuit: Circuit, *, added: int = 50, seed: int = 0
) -> tuple[EdgeNecessity, ...]:
    """Cut each edge out of a circuit, beside edges that were added to it by lot (Shi et al. 2024).

    The circuit is inflated by random paths (2410.13032); an edge is needed if cutting it lowers the
    lead by more, in the mean over prompts, than cutting an added edge moves it either way.
    """
    rng, own = np.random.default_rng(seed), edge_masks(runs, [circuit])[0]
    extra = own.clone()
    # So many that, whatever they share with the circuit, enough of them are strangers to it.
    extra[random_paths(runs.graph, int(own.sum()) + added, rng)] = True
    strangers = (extra & ~own).nonzero()[:, 0]
    strangers = strangers[torch.from_numpy(rng.permutation(len(strangers))[:added])]
    moved, rival = (
        _drop_per_edge(runs, own, own.nonzero()[:, 0]),
        _drop_per_edge(runs, extra, strangers),
    )
    rival = rival.abs() if len(rival) else torch.zeros(1, moved.shape[1])
    # Each edge meets, prompt by prompt, one of the strangers, drawn anew.
    drawn = torch.from_numpy(rng.integers(len(rival), size=moved.shape))
    gap = float((runs.clean_logit_diffs - runs.ablated_logit_diffs).mean())
    ahead = moved - rival.gather(0, drawn)
    ahead = torch.where(ahead.abs() > _ROUNDING_TOLERANCE * abs(gap), ahead, 0.0).double().numpy()
    raw = [_p_value_above_zero(row) for row in ahead]
    falls = (moved.mean(1) / gap).tolist()
    names = [str(runs.graph.edge(int(number))) for number in own.nonzero()[:, 0]]
    return tuple(EdgeNecessity(*found) for found in zip(names, falls, holm(raw), strict=True))


def specificity(
    runs_by_task: Mapping[str, ReferenceRuns], circuits: Mapping[str, Circuit], *, seed: int = 0
) -> tuple[Specificity, ...]:
    """Cut each task's circuit out of every task, and random paths of as many edges for control.

    Li & Subramani (2026, 2605.08348) find that circuits of different tasks often damage each
    other as much as themselves.
    """
    found = []
    for task, where in runs_by_task.items():
        for name, circuit in circuits.items():
            kept = ~edge_masks(where, [circuit])
            found.append(
                Specificity(
                    name, task, int((~kept).sum()), float(faithfulness_values(where, kept)[0])
                )
            )
        size = max(len(circuit) for circuit in circuits.values())
        kept = ~sample_random_circuits(where, size, "paths", _SPECIFICITY_CIRCUITS, seed=seed)
        found.append(
            Specificity(
                "random paths", task, size, float(faithfulness_values(where, kept).median())
            )
        )
    return tuple(found)


def _p_value_above_zero(excess: Float[np.ndarray, " prompt"]) -> float:
    """Return the p-value of a mean above 0; 1 where all is 0 or one prompt is all there is."""
    if len(excess) < 2 or not excess.any():
        return 1.0
    if np.ptp(excess) == 0:
        return float(excess[0] < 0)
    found: Any = ttest_1samp(excess, 0, alternative="greater")  # its type says too little
    return float(found.pvalue)


def _drop_per_edge(
    runs: ReferenceRuns, mask: Tensor, indices: Tensor
) -> Float[Tensor, "edge prompt"]:
    """Return the fall of the lead when each of some kept edges is cut by itself."""
    whole = run_circuits(runs, mask[None])[0]
    rows = mask.repeat(len(indices), 1)
    rows[torch.arange(len(indices)), indices] = False
    return (whole - run_circuits(runs, rows)).cpu()
