"""Circuit transfer: does the circuit of one model work in another?

`evaluate_transfer` runs the same edges in a model with the same graph. `transfer_circuit` runs the
partners of a circuit's heads in a model of any shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.circuits.circuit import Circuit
from probes.circuits.edges.path_patching import run_circuits
from probes.circuits.faithfulness import (
    evaluate_masks,
    faithfulness_estimate,
    faithfulness_values,
    sample_random_circuits,
)
from probes.circuits.graph import ComputationGraph
from probes.circuits.runs.held import ReferenceRuns
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task, TaskSettings, require_open_gate, sample_tasks
from probes.comparison.circuits.edge_result import (
    MARGIN,
    MIN_OWN_FRACTION,
    CircuitTransfer,
    TransferLabel,
)
from probes.errors import CircuitError, GateError
from probes.models.model import Model
from probes.models.site import head_names
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern
from probes.stats.intervals import BOOTSTRAP_DRAWS, Estimate, bootstrap_weights, percentile_interval
from probes.stats.null_threshold import conformal_threshold


def run_open_task(model: Model, task: Task) -> ReferenceRuns:
    """Reference runs of a task that the model can do.

    Raises:
        GateError: The mean logit difference is not above 0, or the counterfactuals do not lower it.
    """
    runs = run_references(model, task)
    clean, ablated = float(runs.clean_logit_diffs.mean()), float(runs.ablated_logit_diffs.mean())
    if not clean > 0:
        raise GateError(
            f"{model.name} does not have the behavior: over {len(task)} prompts its mean logit "
            f"difference is {clean:.2f}, not above 0. There is no circuit to compare; choose a "
            "model or a task whose gate is open."
        )
    if not clean > ablated:
        raise GateError(
            f"The counterfactuals do not lower the logit difference of {model.name}: {clean:.2f} "
            f"before, {ablated:.2f} after. There is nothing for a circuit to keep; choose "
            "contrasts that change the answer."
        )
    return runs


def evaluate_transfer(
    runs: ReferenceRuns,
    own: Bool[Tensor, " edge"],
    transferred: Bool[Tensor, " edge"],
    *,
    random_circuits: int = 10,
    seed: int = 0,
) -> CircuitTransfer:
    """Run a model's own circuit and another model's, given as edge masks.

    Args:
        runs: The model on held-out prompts.
        own, transferred: Masks of the edges.
        random_circuits: Number of circuits of random paths, as large as the larger circuit, for
            the chance level.
        seed: Seed of the bootstrap and of the random paths.
    """
    size = int(max(own.sum(), transferred.sum()))
    logit_diffs = run_circuits(runs, torch.stack([own, transferred]))
    own_f, transferred_f = (faithfulness_estimate(runs, each, seed=seed) for each in logit_diffs)
    gap = percentile_interval(
        min(transferred_f.value, 1.0) - min(own_f.value, 1.0),
        _bootstrap_gaps(runs, logit_diffs, seed),
    )
    chance = faithfulness_values(
        runs, sample_random_circuits(runs, size, "paths", random_circuits, seed=seed)
    )
    highest = float(chance.max())
    label: TransferLabel = "cannot tell"
    if not own_f.low > max(highest, MIN_OWN_FRACTION):  # NaN where the fraction is undefined.
        label = "no circuit"
    elif gap.low > -MARGIN:
        label = "works"
    elif gap.high < -MARGIN:
        label = "falls short"
    return CircuitTransfer(
        model=runs.model.name,
        own=own_f,
        transferred=transferred_f,
        gap=gap,
        chance=float(chance.median()),
        chance_high=highest,
        label=label,
    )


def _bootstrap_gaps(
    runs: ReferenceRuns, logit_diffs: Float[Tensor, "circuit prompt"], seed: int
) -> Float[np.ndarray, " draw"]:
    """Bootstrap draws of the transferred minus the own faithfulness, both capped at 1."""
    weights = bootstrap_weights(logit_diffs.shape[1], BOOTSTRAP_DRAWS, seed=seed)
    both, clean, ablated = (
        values.cpu().double().numpy()
        for values in (logit_diffs, runs.clean_logit_diffs, runs.ablated_logit_diffs)
    )
    ratios = (both - ablated) @ weights.T / ((clean - ablated) @ weights.T)
    own, transferred = np.minimum(ratios, 1.0)
    return transferred - own


@dataclass(frozen=True, kw_only=True)
class HeadTransferSettings(TaskSettings):
    """How `transfer_circuit` draws pairs and random heads.

    Attributes:
        random_sets: Number of random sets of as many heads.
    """

    random_sets: int = 200


@dataclass(frozen=True, slots=True)
class TransferredCircuit:
    """Faithfulness of the partners of a circuit's heads in another model.

    Attributes:
        heads: The circuit's heads, each with its partner, "" where it has none.
        kept_fraction: Faithfulness with the partners and all MLPs, and no other head, on held-out
            prompts.
        fraction_without: Faithfulness without the partners.
        chance, chance_high: Mean and threshold of random sets of as many heads.
        random_sets: Number of distinct random sets.
    """

    heads: tuple[tuple[str, str], ...]
    kept_fraction: Estimate
    fraction_without: Estimate
    chance: float
    chance_high: float
    random_sets: int

    @property
    def partners(self) -> tuple[str, ...]:
        """The heads that were kept."""
        return tuple(dict.fromkeys(partner for _, partner in self.heads if partner))


def transfer_circuit(
    circuit: Circuit,
    partners: Mapping[str, str],
    other: Model,
    pattern: str | Pattern = "take-away",
    settings: HeadTransferSettings | None = None,
) -> TransferredCircuit:
    """Run the partners of a circuit's heads alone in another model.

    All MLPs are kept, as they have no partners.

    Args:
        circuit: Circuit of the first model, as of `trace`.
        partners: Heads of the other model by heads of the first, as of `Comparison.partners`.
        other: The other model.
        pattern: A pattern, its name, or a .jsonl file.
        settings: Pairs and random heads.

    Raises:
        CircuitError: No head of the circuit has a partner, or the other model lacks a partner.
        GateError: The other model does not have the behavior.
    """
    settings = settings or HeadTransferSettings()
    heads = [node.split("@")[0] for node in circuit.nodes if ".H" in node]
    pairs = tuple((head, partners.get(head, "")) for head in dict.fromkeys(heads))
    kept = list(dict.fromkeys(partner for _, partner in pairs if partner))
    if not kept:
        raise CircuitError(
            f"None of the circuit's heads {', '.join(heads) or '(it has none)'} has a partner in "
            f"{other.name}: pair heads first, as Comparison.partners does"
        )
    every = list(head_names(other.shape.layers, other.shape.heads))
    if unknown := set(kept) - set(every):
        raise CircuitError(
            f"{other.name} has no heads {', '.join(sorted(unknown))}: give partners that it has"
        )
    found_pattern = find_pattern(pattern) if isinstance(pattern, str) else pattern
    gate = require_open_gate(other, found_pattern, settings.answer, seed=settings.seed)
    _, held_out = sample_tasks(other, found_pattern, replace(settings, answer=gate.answer))
    runs = run_references(other, held_out)
    alone, without = (
        evaluate_masks(runs, mask, seed=settings.seed)[0]
        for mask in (_masks_of_heads(runs.graph, [kept]), ~_edges_at_heads(runs.graph, kept))
    )
    rng = np.random.default_rng(settings.seed)
    draws = (rng.choice(every, len(kept), replace=False) for _ in range(settings.random_sets))
    distinct = sorted({tuple(sorted(map(str, draw))) for draw in draws})
    chance = faithfulness_values(runs, _masks_of_heads(runs.graph, distinct)).numpy()
    return TransferredCircuit(
        heads=pairs,
        kept_fraction=alone.value,
        fraction_without=without.value,
        chance=float(chance.mean()),
        chance_high=float(conformal_threshold(chance)),
        random_sets=len(distinct),
    )


def _edges_at_heads(graph: ComputationGraph, heads: Sequence[str]) -> Bool[Tensor, "1 edge"]:
    """Mask of the edges out of some heads, and into what they alone read."""
    source, target = graph.edge_table[:2]
    writers = {graph.writers.index(head) for head in heads}
    # Heads of a group read the same keys and values, which belong to the heads that are left.
    fed = [{*graph.writers_fed_by(n)} for n in range(len(graph.readers))]
    into = [bool(each) and each <= writers for each in fed]
    return torch.from_numpy(np.isin(source, sorted(writers)) | np.array(into)[target])[None]


def _masks_of_heads(
    graph: ComputationGraph, sets: Sequence[Sequence[str]]
) -> Bool[Tensor, "set edge"]:
    """Masks, for each set of heads, of the edges that touch no other head."""
    every = [writer for writer in graph.writers if ".H" in writer]
    others = ([head for head in every if head not in heads] for heads in sets)
    return torch.cat([~_edges_at_heads(graph, heads) for heads in others])
