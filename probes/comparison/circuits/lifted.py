"""Circuit transfer: do the counterparts of one model's heads, run alone, do the work in another?

heads of A's circuit → their partners in B → B with all other heads cut off → share of the lead
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.circuits.circuit import Circuit
from probes.circuits.faithfulness import evaluate_masks, faithfulness_values
from probes.circuits.graph import ComputationGraph
from probes.circuits.reference_runs import ReferenceRuns, run_references
from probes.circuits.task import TaskSettings, require_open_gate, sample_tasks
from probes.errors import CircuitError
from probes.models.model import Model
from probes.models.site import head_names
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate

_QUANTILE = 0.95


@dataclass(frozen=True, slots=True)
class TransferredCircuit:
    """What the counterparts of a circuit's heads keep of the relative's behavior.

    Attributes:
        heads: The circuit's heads, and for each its partner, "" where it has none.
        kept: Share of the lead that the relative keeps with these heads and all MLPs, and no
            other head: 1 is all of it. Judged on prompts that the circuit was not found by.
        without: The share that is left without these heads.
        chance, chance_high: Mean and 95th percentile of as many heads drawn at random.
        draws: How many such draws there were; where there are fewer sets than that, all of them.
    """

    heads: tuple[tuple[str, str], ...]
    kept_fraction: Estimate
    fraction_without: Estimate
    chance: float
    chance_high: float
    random_sets: int

    @property
    def partners(self) -> tuple[str, ...]:
        """The heads of the relative that were kept."""
        return tuple(dict.fromkeys(partner for _, partner in self.heads if partner))


def transfer_circuit(  # noqa: PLR0913 (a circuit, where it goes, and what it is judged on)
    circuit: Circuit,
    partners: Mapping[str, str],
    other: Model,
    pattern: str | Pattern = "take-away",
    *,
    answer: str = "",
    prompts: int = 32,
    random_sets: int = 200,
    seed: int = 0,
) -> TransferredCircuit:
    """Run the partners of a circuit's heads alone in another model.

    MLPs are kept all, as they are not paired: the question is which heads are needed to feed them.

    Args:
        circuit: Of one model, as `trace` finds it.
        partners: For its heads those of the other, as `Comparison.partners` pairs them.
        other: The relative.
        pattern: What is asked.
        answer: Whose lead is kept; the first by default.
        prompts: Pairs for each contrast.
        draws: Random sets of as many heads.
        seed: Of prompts and draws.

    Raises:
        CircuitError: The circuit has no head with a partner.
        GateError: The relative does not have the behavior.
    """
    heads = [node.split("@")[0] for node in circuit.nodes if ".H" in node]
    pairs = tuple((head, partners.get(head, "")) for head in dict.fromkeys(heads))
    kept = list(dict.fromkeys(there for _, there in pairs if there))
    if not kept:
        raise CircuitError(
            f"None of the circuit's heads {', '.join(heads) or '(it has none)'} has a partner in "
            f"{other.name}: there is nothing to run there"
        )
    if strange := set(kept) - set(_heads_of(other)):
        raise CircuitError(
            f"{other.name} has no heads {', '.join(sorted(strange))}: give partners that it has"
        )
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    opened = require_open_gate(other, asked, answer, seed=seed)
    _, judging = sample_tasks(
        other, asked, TaskSettings(answer=opened.answer, prompts=prompts, seed=seed)
    )
    there = run_references(other, judging)
    found = evaluate_masks(there, _edges_of_heads(there.graph, [kept]), seed=seed)[0]
    left = evaluate_masks(there, ~_edges_touching(there.graph, kept), seed=seed)[0]
    sets = _random_head_sets(there, len(kept), random_sets, seed)
    by_chance = faithfulness_values(there, _edges_of_heads(there.graph, sets)).numpy()
    return TransferredCircuit(
        heads=pairs,
        kept_fraction=found.value,
        fraction_without=left.value,
        chance=float(by_chance.mean()),
        chance_high=float(np.quantile(by_chance, _QUANTILE)),
        random_sets=len(sets),
    )


def _heads_of(model: Model) -> list[str]:
    shape = model.shape
    return list(head_names(shape.layers, shape.heads))


def _heads(graph: ComputationGraph) -> list[str]:
    return [writer for writer in graph.writers if ".H" in writer]


def _edges_touching(graph: ComputationGraph, heads: Sequence[str]) -> Tensor:
    """Mark the edges out of and into some heads: "1 edge"."""
    source, target = graph.edge_table[:2]
    mine = {graph.writers.index(head) for head in heads}
    into = np.array(
        [bool(mine & set(graph.writers_fed_by(reader))) for reader in range(len(graph.readers))]
    )
    return torch.from_numpy(np.isin(source, sorted(mine)) | into[target])[None]


def _edges_of_heads(graph: ComputationGraph, sets: Sequence[Sequence[str]]) -> Tensor:
    """Mark, for each set of heads, the edges that touch no other head: "set edge"."""
    every = _heads(graph)
    return torch.cat(
        [~_edges_touching(graph, [head for head in every if head not in kept]) for kept in sets]
    )


def _random_head_sets(stage: ReferenceRuns, size: int, draws: int, seed: int) -> list[list[str]]:
    rng, every = np.random.default_rng(seed), _heads(stage.graph)
    drawn = {tuple(sorted(rng.choice(every, size, replace=False))) for _ in range(draws)}
    return [list(map(str, some)) for some in sorted(drawn)]
