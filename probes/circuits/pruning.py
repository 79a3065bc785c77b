"""Pruning: the smallest faithful circuit, and which of its edges are necessary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import ttest_1samp
from torch import Tensor

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_scores import EdgeScores
from probes.circuits.edges.path_patching import run_circuits
from probes.circuits.faithfulness import edge_masks
from probes.circuits.result import EdgeNecessity
from probes.circuits.runs.held import HeldRuns, ReferenceRuns
from probes.circuits.selection import random_paths
from probes.errors import CircuitError
from probes.stats.multiple_testing import holm

# Circuits that pruning tries in one call where the runs of all pairs are not in memory: each call
# makes these runs anew.
_TRIED_TOGETHER = 16
# Rounding error of a logit difference, as a fraction of the gap between the two runs.
_ROUNDING_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class PruningRule:
    """Which circuits are tried, and which are faithful.

    Attributes:
        supporting_first: Whether edges that support the answer are tried first and those that speak
            against it last, the weakest first; otherwise all by the size of their score.
        standard_errors: By how many standard errors over prompts f must be above what is kept. Of
            many circuits, pruning selects one that reaches it in part by chance; on other prompts
            it keeps less.
        max_runs: Most circuits that are run; None for as many as needed.
    """

    supporting_first: bool = False
    standard_errors: float = 0.0
    max_runs: int | None = None

    def __str__(self) -> str:
        above = f" and {self.standard_errors:g} standard errors" if self.standard_errors else ""
        return above + ", supporting edges first" * self.supporting_first


def prune_circuit(
    runs: ReferenceRuns, edge_scores: EdgeScores, keep: float, rule: PruningRule = PruningRule()
) -> Circuit:
    """Smallest circuit found whose faithfulness on these prompts is at least `keep`.

    Edges are ranked by their scores. Bisection finds a short faithful prefix of that list; greedy
    pruning then removes edges from it, in halving blocks and at last one by one, as ACDC does
    (Conmy et al. 2023, 2304.14997). It stops after the rule's `max_runs` circuits; the circuit is
    as faithful then, but larger, and its protocol says so.

    Raises:
        CircuitError: Even all edges keep less, or the two runs do not differ.
    """
    gap = float((runs.clean_logit_diffs - runs.ablated_logit_diffs).mean())
    if not abs(gap) > 1e-6:
        raise CircuitError(
            f"The logit difference drops by {gap:.1e} from the clean to the ablated run: there is "
            "nothing for a circuit to keep. Choose contrasts that change the answer."
        )
    ranks = edge_scores.mean * (1 if gap > 0 else -1)
    ranks = ranks if rule.supporting_first else ranks.abs()
    order = ranks.argsort(descending=True, stable=True)

    def are_faithful(circuits: Sequence[Int[Tensor, " _"]]) -> list[bool]:
        values = _faithfulness(runs, circuits)
        return [f - rule.standard_errors * error >= keep - 1e-5 for f, error in values]  # rounding

    def is_faithful(edges: Int[Tensor, " edge"]) -> bool:
        return are_faithful([edges])[0]

    if not is_faithful(order):
        raise CircuitError(
            f"All {len(order)} edges keep {_faithfulness(runs, [order])[0][0]:.3f} of the logit "
            f"difference, less than {keep:g}: request less"
        )
    prefix = order[: _shortest_prefix(order, is_faithful)]
    together = 1 if isinstance(runs, HeldRuns) else _TRIED_TOGETHER
    kept, is_finished = _prune_edges(prefix, are_faithful, rule.max_runs, together)
    circuit = edge_scores.to_circuit(kept.numpy(), f"bisection and pruning to {keep:.4g}{rule}")
    # Otherwise an edge without any input still carries a change.
    if runs.is_consistent:
        circuit = circuit.connected()
    evaluation = (("judged by ablation", runs.ablation), ("faithfulness", "ratio of means"))
    if not is_finished:
        evaluation += (("pruning", f"stopped after {rule.max_runs} circuits"),)
    return replace(circuit, protocol=(*circuit.protocol, *evaluation))


def _faithfulness(
    runs: ReferenceRuns, circuits: Sequence[Int[Tensor, " _"]]
) -> list[tuple[float, float]]:
    """f of each circuit, a ratio of means, and its standard error over prompts."""
    masks = torch.zeros(len(circuits), len(runs.graph), dtype=torch.bool)
    for mask, edges in zip(masks, circuits, strict=True):
        mask[edges] = True
    every = (run_circuits(runs, masks) - runs.ablated_logit_diffs).cpu().double()
    gap = (runs.clean_logit_diffs - runs.ablated_logit_diffs).cpu().double()
    found = []
    for kept in every:
        value, error = kept.mean() / gap.mean(), 0.0
        if len(gap) > 1:
            error = (kept - value * gap).std() / (len(gap) ** 0.5 * gap.mean().abs())
        found.append((float(value), float(error)))
    return found


def _shortest_prefix(
    order: Int[Tensor, " edge"], is_faithful: Callable[[Int[Tensor, " _"]], bool]
) -> int:
    """Length of the shortest faithful prefix, by doubling and bisection."""
    low, high = 0, 1
    while not is_faithful(order[:high]):
        low, high = high, min(2 * high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_faithful(order[:middle]) else (middle, high)
    return high


def _prune_edges(
    kept: Int[Tensor, " edge"],
    are_faithful: Callable[[Sequence[Int[Tensor, " _"]]], list[bool]],
    max_runs: int | None,
    together: int,
) -> tuple[Int[Tensor, " _"], bool]:
    """Greedily drop edges while the rest is faithful, from the weak end, in halving blocks.

    The next blocks are tried `together`, as if all were needed; those behind the first that is not
    are tried again without it. Also returns whether the last blocks of one edge were tried within
    the runs.
    """
    block, runs = max(1, len(kept) // 2), 0
    while True:
        starts = [*reversed(range(0, len(kept), block))]
        while starts:
            left = together if max_runs is None else min(together, max_runs - runs)
            rests = [torch.cat([kept[:at], kept[at + block :]]) for at in starts[:together]]
            tried = [rest for rest in rests if len(rest)][: max(left, 0)]
            if not tried and len(kept) > block:
                return kept, False
            found = are_faithful(tried) if tried else []
            needed = found.index(True) if True in found else len(found)
            runs += min(needed + 1, len(found))
            kept = tried[needed] if needed < len(found) else kept
            starts = starts[max(1, min(needed + 1, len(found))) :]
        if block == 1:
            return kept, True
        block = max(1, block // 2)


def minimality(
    runs: ReferenceRuns, circuit: Circuit, *, added: int = 50, seed: int = 0
) -> tuple[EdgeNecessity, ...]:
    """Necessity of each edge: the drop without it, compared with `added` random edges.

    Random paths inflate the circuit (Shi et al. 2024, 2410.13032). An edge is necessary if removing
    it moves the logit difference toward that of the ablated run more than removing an added edge
    changes it, in the mean over prompts.
    """
    rng, own = np.random.default_rng(seed), edge_masks(runs, [circuit])[0]
    inflated = own.clone()
    # So many edges that at least `added` of them are new, whatever they share with the circuit.
    inflated[random_paths(runs.graph, int(own.sum()) + added, rng)] = True
    new = (inflated & ~own).nonzero()[:, 0]
    new = new[torch.from_numpy(rng.permutation(len(new))[:added])]
    drops = _drop_per_edge(runs, own, own.nonzero()[:, 0])
    null = _drop_per_edge(runs, inflated, new).abs()
    null = null if len(null) else torch.zeros(1, drops.shape[1])
    # Each prompt of each edge is compared with a random added edge.
    rows = torch.from_numpy(rng.integers(len(null), size=drops.shape))
    gap = float((runs.clean_logit_diffs - runs.ablated_logit_diffs).mean())
    # Where ablation raises the logit difference, so does the removal of a necessary edge.
    excess = drops * (1 if gap > 0 else -1) - null.gather(0, rows)
    excess = torch.where(excess.abs() > _ROUNDING_TOLERANCE * abs(gap), excess, 0.0)
    p_values = holm([_p_value_above_zero(row) for row in excess.double().numpy()])
    relative = (drops.mean(1) / gap).tolist()
    names = [str(runs.graph.edge(int(index))) for index in own.nonzero()[:, 0]]
    return tuple(map(EdgeNecessity, names, relative, p_values))


def _p_value_above_zero(excess: Float[np.ndarray, " prompt"]) -> float:
    """p-value of a mean above 0; 1 for a single prompt or zeros only."""
    if len(excess) < 2 or not excess.any():
        return 1.0
    if np.ptp(excess) == 0:
        return float(excess[0] < 0)
    result: Any = ttest_1samp(excess, 0, alternative="greater")  # scipy's type lacks `pvalue`
    return float(result.pvalue)


def _drop_per_edge(
    runs: ReferenceRuns, mask: Tensor, indices: Tensor
) -> Float[Tensor, "edge prompt"]:
    """Drop of the logit difference when each of some kept edges is removed alone."""
    whole = run_circuits(runs, mask[None])[0]
    rows = mask.repeat(len(indices), 1)
    rows[torch.arange(len(indices)), indices] = False
    return (whole - run_circuits(runs, rows)).cpu()
