"""What the new layers of a grown model do: which answers need them, what their circuit holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.circuits.attribution import attribute
from probes.circuits.graph import Edge
from probes.circuits.reference_runs import stage
from probes.circuits.trace import cut, tasks
from probes.errors import ModelError
from probes.models.model import Model
from probes.observe.gate import ask
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pair_batch import fits
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, share
from probes.stats.paired import paired


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
    right: Estimate
    without: Estimate
    need: Estimate
    old: Estimate
    edges: int
    touching: float
    expected: float


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
    new = _new(model, layers)
    old = [layer for layer in range(model.shape.layers) if layer not in new][-len(new) :]
    questions = asked.questions(prompts, seed=seed, keep=fits(model.tokenizer))
    right = ask(model, questions).right[:, 0].numpy()
    without, instead = (_silent(model, some, questions) for some in (new, old))
    finding, _ = tasks(model, asked, asked.answers[0][0], (), prompts=pairs, seed=seed)
    graph = attribute(model, finding, method="eap-ig")
    circuit = cut(stage(model, finding), graph, 0.9)
    return NewLayers(
        model=model.name,
        layers=tuple(new),
        right=share(right),
        without=share(without),
        need=paired(without, right).difference,
        old=paired(instead, right).difference,
        edges=len(circuit),
        touching=_touching(circuit.edges, new),
        expected=_touching(list(graph.wiring.edges()), new),
    )


def _new(model: Model, layers: Sequence[int] | None) -> list[int]:
    told = model.made.dials.get("new_layers") if model.made is not None else None
    found = layers if layers is not None else told
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise ModelError(
            f"It is not known which layers of {model.name} are new: name them, as in layers=(1, 3)"
        )
    new = [int(layer) for layer in found]  # pyright: ignore[reportArgumentType]
    if not all(0 <= layer < model.shape.layers for layer in new):
        raise ModelError(f"{model.name} has layers 0 to {model.shape.layers - 1}, and not {new}")
    return new


def _silent(model: Model, layers: Sequence[int], questions: Sequence) -> np.ndarray:
    """Ask a model in which some layers write nothing into the stream."""

    def zero(value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    parts = ("hook_attn_out", "hook_mlp_out")
    edits = {f"blocks.{layer}.{part}": zero for layer in layers for part in parts}
    with model.editing(edits):
        return ask(model, questions).right[:, 0].numpy()


def _touching(edges: Sequence[Edge], new: Sequence[int]) -> float:
    names = tuple(f"L{layer}." for layer in new)
    hits = [any(end.startswith(names) for end in (e.source, e.target)) for e in edges]
    return sum(hits) / max(len(hits), 1)
