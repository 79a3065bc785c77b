"""What the new layers of a grown model do: which answers need them, what their circuit holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.circuits.attribution import edge_attribution
from probes.circuits.graph import Edge
from probes.circuits.pruning import prune_circuit
from probes.circuits.reference_runs import run_references
from probes.circuits.task import TaskSettings, sample_tasks
from probes.errors import ModelError
from probes.models.model import Model
from probes.observe.gate import answer_questions
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, proportion
from probes.stats.paired import mcnemar_test


@dataclass(frozen=True, slots=True)
class NewLayers:
    """What new layers do.

    Attributes:
        model: The grown model.
        layers: Numbers of its new layers.
        right: Share of whole answers that are right, the first answer.
        without: The same where the new layers write nothing.
        need: The first less the second, paired by question: -1 to 1.
        old: The same difference where as many old layers write nothing instead, the last ones.
        edges: Edges of the circuit that keeps 0.9 of the lead.
        touching: Share of them that start or end in a new layer, 0 to 1.
        expected: The share of all edges of the model that do.
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


def new_layers(  # noqa: PLR0913 (of what, and by how much)
    model: Model,
    layers: Sequence[int] | None = None,
    pattern: str | Pattern = "take-away",
    *,
    prompts: int = 200,
    pairs: int = 32,
    seed: int = 0,
) -> NewLayers:
    """Say what the new layers of a grown model do for a pattern.

    Args:
        model: A model that was grown, and perhaps trained on.
        layers: Which are new; by default those that its slip names.
        pattern: What is asked.
        prompts: How many questions.
        pairs: Pairs of each contrast that the circuit is found by.
        seed: Of questions and pairs.

    Raises:
        ModelError: It is not known which layers are new, or there are no such layers.
    """
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    new = _new_layer_indices(model, layers)
    old = [layer for layer in range(model.shape.layers) if layer not in new][-len(new) :]
    questions = asked.sample_questions(prompts, seed=seed, keep=tokenizable_by(model.tokenizer))
    right = answer_questions(model, questions).correct[:, 0].numpy()
    without, instead = (_accuracy_without(model, some, questions) for some in (new, old))
    finding, _ = sample_tasks(model, asked, TaskSettings(prompts=pairs, seed=seed))
    graph = edge_attribution(model, finding, method="eap-ig")
    circuit = prune_circuit(run_references(model, finding), graph, 0.9)
    return NewLayers(
        model=model.name,
        layers=tuple(new),
        accuracy=proportion(right),
        accuracy_without_new=proportion(without),
        accuracy_drop=mcnemar_test(without, right).difference,
        accuracy_drop_old=mcnemar_test(instead, right).difference,
        edges=len(circuit),
        edges_new_fraction=_fraction_touching(circuit.edges, new),
        all_new_fraction=_fraction_touching(list(graph.graph.edges()), new),
    )


def _new_layer_indices(model: Model, layers: Sequence[int] | None) -> list[int]:
    told = model.provenance.settings.get("new_layers") if model.provenance is not None else None
    found = layers if layers is not None else told
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise ModelError(
            f"It is not known which layers of {model.name} are new: name them, as in layers=(1, 3)"
        )
    new = [int(layer) for layer in found]  # pyright: ignore[reportArgumentType]
    if not all(0 <= layer < model.shape.layers for layer in new):
        raise ModelError(f"{model.name} has layers 0 to {model.shape.layers - 1}, and not {new}")
    return new


def _accuracy_without(model: Model, layers: Sequence[int], questions: Sequence) -> np.ndarray:
    """Ask a model in which some layers write nothing into the stream."""

    def zero(value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    parts = ("hook_attn_out", "hook_mlp_out")
    edits = {f"blocks.{layer}.{part}": zero for layer in layers for part in parts}
    with model.editing(edits):
        return answer_questions(model, questions).correct[:, 0].numpy()


def _fraction_touching(edges: Sequence[Edge], new: Sequence[int]) -> float:
    names = tuple(f"L{layer}." for layer in new)
    hits = [any(end.startswith(names) for end in (e.source, e.target)) for e in edges]
    return sum(hits) / max(len(hits), 1)
