"""The clean and the ablated run of a task, in memory, from which patched passes start."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from probes.circuits.edges.writer_changes import KnownChanges, WriterChanges
from probes.circuits.graph import ComputationGraph
from probes.circuits.task import Task
from probes.models.layers.decoder import DecoderActivations, DecoderInputs, DecoderWeights
from probes.models.model import Model

Ablation = Literal["counterfactual", "mean", "zero"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Run:
    """A run from which patched passes start: what it has from the first position on.

    Keys and values are those of all positions.

    Attributes:
        activations: What readers read, and what writers make of it.
        embed, z, mlp_out: What the edges carry; differs from `activations` where edges carry means
            or zeros.
    """

    activations: DecoderActivations
    embed: Tensor
    z: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]

    @property
    def is_consistent(self) -> bool:
        """Whether edges carry what the writers compute."""
        return self.z is self.activations.z

    @classmethod
    def begin(cls, activations: DecoderActivations, first: int) -> "Run":
        """Run whose edges carry what its writers compute, from the first position on."""
        if first == 0:
            return cls(activations, activations.embed, activations.z, activations.mlp_out)
        kept: dict = {"k": activations.k, "v": activations.v}
        for name in ("embed", "resid_final"):
            kept[name] = getattr(activations, name)[:, first:].clone()
        for name in ("resid_pre", "resid_mid", "q", "z", "mlp_out"):
            # Copies: a view would keep all positions in memory.
            kept[name] = tuple(value[:, first:].clone() for value in getattr(activations, name))
        activations = DecoderActivations(**kept)
        return cls(activations, activations.embed, activations.z, activations.mlp_out)


@dataclass(frozen=True, eq=False)
class RunSetup:
    """What the runs of one model and task have in common.

    Attributes:
        graph: Numbers the edges of masks.
        ablation: What an ablated edge carries.
        first_position: The position before which nothing differs.
    """

    model: Model
    task: Task
    graph: ComputationGraph
    ablation: Ablation
    weights: DecoderWeights
    first_position: int


@dataclass(frozen=True, eq=False)
class ReferenceRuns(RunSetup, ABC):
    """What all circuits of one model and task share.

    Attributes:
        clean_logit_diffs, ablated_logit_diffs: Logit differences of the run with all edges kept,
            and of that with none (logits).
    """

    clean_logit_diffs: Float[Tensor, " prompt"]
    ablated_logit_diffs: Float[Tensor, " prompt"]

    @property
    def is_consistent(self) -> bool:
        """Whether ablated edges carry what the writers of some run compute."""
        return self.ablation == "counterfactual"

    @abstractmethod
    def each_part(self, run: Callable[["HeldRuns"], T]) -> Iterator[T]:
        """Results of a function of the runs of consecutive prompts, all of them at once or fewer.

        Raises:
            OutOfMemoryError: The runs of a single pair do not fit into memory.
        """


@dataclass(frozen=True, eq=False)
class HeldRuns(ReferenceRuns):
    """Reference runs whose activations are in memory.

    Attributes:
        clean, ablated: The runs with all edges kept, and with none.
        known: Changes that passes of these runs have computed and may share.
    """

    entry: DecoderInputs
    clean: Run
    ablated: Run
    known: KnownChanges = field(default_factory=KnownChanges, init=False, repr=False)

    def each_part(self, run: Callable[["HeldRuns"], T]) -> Iterator[T]:
        """The result of all prompts."""
        yield run(self)


def readout_logit_diffs(
    weights: DecoderWeights, task: Task, resid: Float[Tensor, "circuit prompt d_model"]
) -> Float[Tensor, "circuit prompt"]:
    """Logit differences from the final residual stream at the readouts.

    Only the logits of answers and foils are computed.
    """
    tokens = torch.cat([task.answer[:, None], task.foils.clamp(min=0)], 1)
    logits = weights.token_logits(weights.final_norm(resid), tokens)
    present = task.foils >= 0
    foils = logits[..., 1:].where(present, 0.0).sum(-1) / present.sum(1).clamp(min=1)
    return logits[..., 0] - foils


def ablation_change(runs: HeldRuns, writer: int) -> Tensor:
    """Ablated minus clean output of a writer from the first position on; before a post-norm."""
    heads = runs.model.shape.heads
    if writer == 0:
        return runs.ablated.embed - runs.clean.embed
    layer, head = divmod(writer - 1, heads + 1)
    if head == heads:
        return runs.ablated.mlp_out[layer] - runs.clean.mlp_out[layer]
    change = (runs.ablated.z[layer] - runs.clean.z[layer])[..., head, :]
    return change @ runs.weights.layers[layer].o[head]


def ablation_changes(runs: HeldRuns, masks: Sequence[Tensor], prompts: slice) -> WriterChanges:
    """What ablation changes in some prompts, for writers with a masked edge.

    `masks` are block masks. Writers that the two runs share are left out.
    """
    has_edge = torch.zeros(len(runs.graph.writers), dtype=torch.bool)
    for mask in masks:
        has_edge[: mask.shape[-1]] |= mask.flatten(0, -2).any(0).cpu()
    writers = has_edge.nonzero()[:, 0].tolist()
    changes = {writer: ablation_change(runs, writer)[prompts] for writer in writers}
    changes = {writer: change for writer, change in changes.items() if bool(change.any())}
    if not changes:
        return WriterChanges(runs.clean.embed[prompts][None, None][:, :0])
    return WriterChanges(torch.stack([*changes.values()])[None], [*changes])
