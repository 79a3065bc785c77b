"""The new layers of a grown model: answers that need them, and their part of the circuit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.graph import Edge
from probes.circuits.pruning import prune_circuit
from probes.circuits.runs.reference import run_references
from probes.circuits.task import TaskSettings, sample_tasks
from probes.errors import ModelError
from probes.models.model import Model
from probes.observe.gate import answer_questions
from probes.prompts.catalog import pattern as load_pattern
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.pair_batch import tokenizable_by
from probes.stats.intervals import Estimate, proportion
from probes.stats.paired import mcnemar_test


@dataclass(frozen=True, slots=True)
class NewLayers:
    """Effect of zero ablation of the new layers.

    Attributes:
        model: Name of the grown model.
        layers: Indices of its new layers.
        accuracy: Accuracy of the whole first answer, 0 to 1.
        accuracy_without_new: The same with the new layers ablated.
        accuracy_drop: Paired difference of the two, -1 to 1.
        accuracy_drop_old: The same difference for as many old layers, the last ones.
        edges: Edges of the circuit that keeps 0.9 of the logit difference.
        edges_new_fraction: Fraction of them that start or end in a new layer.
        all_new_fraction: The same fraction of all edges of the model.
    """

    model: str
    layers: tuple[int, ...]
    accuracy: Estimate
    accuracy_without_new: Estimate
    accuracy_drop: Estimate
    accuracy_drop_old: Estimate
    edges: int
    edges_new_fraction: float
    all_new_fraction: float


@dataclass(frozen=True, slots=True)
class NewLayersSettings:
    """Size of the measurement.

    Attributes:
        prompts: Questions for the accuracy.
        pairs: Pairs of each contrast for the circuit.
        seed: Seed of questions and pairs.
    """

    prompts: int = 200
    pairs: int = 32
    seed: int = 0


def new_layers(
    model: Model,
    layers: Sequence[int] | None = None,
    pattern: str | Pattern = "take-away",
    settings: NewLayersSettings | None = None,
) -> NewLayers:
    """Zero ablation of the new layers of a grown model, and their edges in the circuit.

    Args:
        model: Grown model.
        layers: Indices of the new layers; by default those in its `relative.json`.
        pattern: Pattern to measure on.
        settings: Size of the measurement.

    Raises:
        ModelError: The new layers are unknown or out of range.
    """
    settings, pattern = settings or NewLayersSettings(), load_pattern(pattern)
    new = _new_layer_indices(model, layers)
    old = [layer for layer in range(model.shape.layers) if layer not in new][-len(new) :]
    tokenizable = tokenizable_by(model.tokenizer)
    questions = pattern.sample_questions(settings.prompts, seed=settings.seed, keep=tokenizable)
    correct = answer_questions(model, questions).correct[:, 0].numpy()
    without_new, without_old = (_ablated_correct(model, some, questions) for some in (new, old))
    task_settings = TaskSettings(prompts=settings.pairs, seed=settings.seed)
    task, _ = sample_tasks(model, pattern, task_settings)
    scores = edge_attribution(model, task, method="eap-ig")
    circuit = prune_circuit(run_references(model, task), scores, 0.9)
    return NewLayers(
        model=model.name,
        layers=tuple(new),
        accuracy=proportion(correct),
        accuracy_without_new=proportion(without_new),
        accuracy_drop=mcnemar_test(without_new, correct).difference,
        accuracy_drop_old=mcnemar_test(without_old, correct).difference,
        edges=len(circuit),
        edges_new_fraction=_fraction_touching(circuit.edges, new),
        all_new_fraction=_fraction_touching(list(scores.graph.edges()), new),
    )


def _new_layer_indices(model: Model, layers: Sequence[int] | None) -> list[int]:
    if layers is None and model.provenance is not None:
        layers = model.provenance.settings.get("new_layers")  # pyright: ignore[reportAssignmentType]
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
        raise ModelError(
            f"It is not known which layers of {model.name} are new: name them, as in layers=(1, 3)"
        )
    new = [int(layer) for layer in layers]
    if not all(0 <= layer < model.shape.layers for layer in new):
        raise ModelError(f"{model.name} has layers 0 to {model.shape.layers - 1}, not {new}")
    return new


def _ablated_correct(model: Model, layers: Sequence[int], questions: Sequence) -> np.ndarray:
    """Whether each first answer is correct with zero ablation of some layers."""

    def zero(value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    parts = ("hook_attn_out", "hook_mlp_out")
    edits = {f"blocks.{layer}.{part}": zero for layer in layers for part in parts}
    with model.editing(edits):
        return answer_questions(model, questions).correct[:, 0].numpy()


def _fraction_touching(edges: Sequence[Edge], new: Sequence[int]) -> float:
    prefixes = tuple(f"L{layer}." for layer in new)
    touching = [any(end.startswith(prefixes) for end in (e.source, e.target)) for e in edges]
    return sum(touching) / max(len(touching), 1)
