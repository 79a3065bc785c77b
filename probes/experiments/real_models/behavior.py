"""Answers and circuits of a relative, on prompts that are the same for all relatives."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.faithfulness import (
    edge_masks,
    evaluate_masks,
    faithfulness_values,
    sample_random_circuits,
)
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task, TaskSettings, sample_tasks
from probes.errors import CircuitError
from probes.files import TableRow, data_folder
from probes.models.model import Model
from probes.observe.gate import gate
from probes.prompts.catalog import list_patterns
from probes.prompts.catalog import pattern as shipped_pattern
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate

KEEP = 0.9
"""Faithfulness of the circuit of the full model on the prompts that it is found on."""

SIZES = tuple(round(2 ** (n / 2)) for n in range(6, 33))
"""Numbers of edges that are tried."""


@dataclass(frozen=True, slots=True)
class BehaviorSizes:
    """Numbers of prompts and circuits.

    Attributes:
        questions: Questions of the gate.
        pairs: Pairs that find the circuit, and other pairs that evaluate it.
        random_circuits: Random circuits of as many edges.
        seed: Of all samples.
    """

    questions: int = 40
    pairs: int = 16
    random_circuits: int = 10
    seed: int = 0


def study_pattern(name: str) -> Pattern:
    """Pattern of the study, or a shipped one."""
    own = list_patterns(data_folder() / "studies" / "real_models.toml")
    return own[name] if name in own else shipped_pattern(name)


def answer_rows(model: Model, pattern: str, sizes: BehaviorSizes) -> Iterator[TableRow]:
    """Accuracy, choice among the outcomes, and logit difference of each answer.

    The null of the accuracy is the best heuristic, that of the choice a guess.
    """
    for one in gate(model, study_pattern(pattern), prompts=sizes.questions, seed=sizes.seed):
        answer = "" if one.answer in ("number", "answer") else f" of the {one.answer}"
        n, note = one.n_questions, f"gate {one.state}; heuristic: {one.heuristic}"
        yield estimate_row(f"accuracy{answer}", one.accuracy, n, one.heuristic_accuracy, note)
        if one.choice is not None:
            yield estimate_row(f"choice{answer}", one.choice, n, one.chance, "null: a guess")
        yield estimate_row(f"logit difference{answer}", one.logit_diff, n, 0.0, "in logits")


def circuit_tasks(
    full: Model, pattern: str, contrast: str, sizes: BehaviorSizes
) -> tuple[Task, Task]:
    """Pairs of a contrast that find the circuit, and others that evaluate it."""
    settings = TaskSettings(contrasts=(contrast,), prompts=sizes.pairs, seed=sizes.seed)
    return sample_tasks(full, study_pattern(pattern), settings)


def kept_circuit(full: Model, discovery: Task, place: Path) -> Circuit:
    """Circuit of the full model in a file; if there is none, it is found and kept there.

    It is the smallest by greedy search over the scores that keeps `KEEP` of the logit difference.

    Raises:
        CircuitError: Even the most edges that are tried keep less.
    """
    if place.is_file():
        return Circuit.load(place)
    scores = edge_attribution(full, discovery, per_prompt=False)
    runs = run_references(full, discovery)
    for size in SIZES:
        circuit = scores.greedy(size)
        if float(faithfulness_values(runs, edge_masks(runs, [circuit]))[0]) >= KEEP:
            place.parent.mkdir(parents=True, exist_ok=True)
            circuit.save(place)
            return circuit
    raise CircuitError(
        f"{SIZES[-1]} edges keep less than {KEEP} of the logit difference of {discovery.name}: "
        "try more"
    )


def circuit_rows(
    model: Model, circuit: Circuit, held_out: Task, sizes: BehaviorSizes
) -> Iterator[TableRow]:
    """Faithfulness of the full model's circuit, and of all edges without it, in a relative.

    Both are fractions of the relative's own logit difference. The nulls are random circuits, paths
    of as many edges: the best of them alone, and the worst loss without one of them.
    """
    runs, size = run_references(model, held_out), len(circuit)
    found = evaluate_masks(runs, edge_masks(runs, [circuit]), seed=sizes.seed)[0]
    masks = sample_random_circuits(runs, size, "paths", sizes.random_circuits, seed=sizes.seed)
    inside, outside = faithfulness_values(runs, torch.cat([masks, ~masks])).split(len(masks))
    n, note = len(held_out), f"{size} of {len(runs.graph)} edges; null of {len(masks)}"
    yield estimate_row("circuit alone", found.value, n, float(inside.max()), note)
    yield estimate_row("without the circuit", found.complement, n, float(outside.min()), note)


def estimate_row(measure: str, value: Estimate, n: int, null: float, note: str = "") -> TableRow:
    """One measurement with its interval, number of prompts, and null.

    A ratio is undefined (NaN) where the interval of its denominator includes 0.
    """
    null = null if value.value == value.value else value.value  # No null of an undefined ratio.
    return {
        "measure": measure,
        "value": value.value,
        "low": value.low,
        "high": value.high,
        "n": float(n),
        "null": null,
        "note": note,
    }
