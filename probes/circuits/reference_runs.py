"""Reference runs: the clean run of a task, and the run with every edge ablated."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from probes.circuits.edges.writer_changes import KnownChanges, WriterChanges
from probes.circuits.graph import ComputationGraph
from probes.circuits.task import Task
from probes.errors import BatchError, CircuitError
from probes.models.layers.decoder import (
    DecoderActivations,
    DecoderInputs,
    DecoderWeights,
    apply_rotary,
    capture_decoder,
    decompose,
)
from probes.models.layers.norm import IDENTITY
from probes.models.model import Model
from probes.models.run_checks import require_eval, require_unedited

Ablation = Literal["counterfactual", "mean", "zero"]

_WriterValues = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]
"""Values of the embedding, of z and of MLPs, as edges carry them."""


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
class ReferenceRuns:
    """What all circuits of one model and task share.

    Attributes:
        graph: Numbers the edges of masks.
        clean, ablated: The runs with all edges kept, and with none.
        first_position: The position before which nothing differs.
        clean_logit_diffs, ablated_logit_diffs: Logit differences of both runs (logits).
        known: Changes that passes of these runs have computed and may share.
    """

    model: Model
    task: Task
    graph: ComputationGraph
    ablation: Ablation
    weights: DecoderWeights
    entry: DecoderInputs
    clean: Run
    ablated: Run
    first_position: int
    clean_logit_diffs: Float[Tensor, " prompt"]
    ablated_logit_diffs: Float[Tensor, " prompt"]
    known: KnownChanges = field(default_factory=KnownChanges, init=False, repr=False)


@torch.no_grad()
def run_references(
    model: Model,
    task: Task,
    *,
    roles: bool = False,
    ablation: Ablation = "counterfactual",
    mean_task: Task | None = None,
) -> ReferenceRuns:
    """Run a task's clean and counterfactual prompts once, for all circuits.

    Args:
        model: A decoder whose blocks are sums of heads and MLP, with or without post-norms.
        task: The pairs of prompts.
        roles: Whether edges are resolved by roles.
        ablation: What an ablated edge carries: its counterfactual value, its mean over tokens of
            the same role in the counterfactuals of `mean_task`, or zero.
        mean_task: The prompts of means; by default the task itself.

    Raises:
        ModelError: The blocks are no plain sums, the model is in training mode or edited, or a
            run fails.
        BatchError: `mean_task` lacks a role of the task.
    """
    if ablation not in ("counterfactual", "mean", "zero"):
        raise CircuitError(
            f"The ablation {ablation!r} is unknown: use 'counterfactual', 'mean' or 'zero'"
        )
    require_eval(model)
    require_unedited(model)
    weights, task = decompose(model), task.to(model)
    first = task.first_difference if ablation == "counterfactual" else 0
    first = min(first, int(task.readout.min()))
    entry, clean = _capture_run(model, weights, task, task.clean, first)
    if ablation == "zero":
        z, mlp_out = (tuple(map(torch.zeros_like, values)) for values in (clean.z, clean.mlp_out))
        values = (torch.zeros_like(clean.embed), z, mlp_out)
        ablated = _run_with_constants(clean, weights, entry, values)
    else:
        other = task if mean_task is None or ablation != "mean" else mean_task.to(model)
        _, ablated = _capture_run(model, weights, other, other.counterfactual, first)
        if ablation == "mean":
            values = _role_means(task, other, ablated.activations)
            ablated = _run_with_constants(clean, weights, entry, values)
    at = (torch.arange(len(task), device=model.device), task.readout - first)
    clean_logit_diffs, ablated_logit_diffs = (
        readout_logit_diffs(weights, task, run.activations.resid_final[at][None])[0]
        for run in (clean, ablated)
    )
    return ReferenceRuns(
        model=model,
        task=task,
        graph=task.computation_graph(model, roles=roles),
        ablation=ablation,
        weights=weights,
        entry=entry,
        clean=clean,
        ablated=ablated,
        first_position=first,
        clean_logit_diffs=clean_logit_diffs,
        ablated_logit_diffs=ablated_logit_diffs,
    )


def _capture_run(
    model: Model, weights: DecoderWeights, task: Task, ids: Tensor, first: int
) -> tuple[DecoderInputs, Run]:
    """Run of token ids; what is before the first position is freed before the next run."""
    entry, activations = capture_decoder(model, weights, ids, task.mask, task.readout)
    return entry, Run.begin(activations, first)


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


def ablation_change(runs: ReferenceRuns, writer: int) -> Tensor:
    """Ablated minus clean output of a writer from the first position on; before a post-norm."""
    heads = runs.model.shape.heads
    if writer == 0:
        return runs.ablated.embed - runs.clean.embed
    layer, head = divmod(writer - 1, heads + 1)
    if head == heads:
        return runs.ablated.mlp_out[layer] - runs.clean.mlp_out[layer]
    change = (runs.ablated.z[layer] - runs.clean.z[layer])[..., head, :]
    return change @ runs.weights.layers[layer].o[head]


def ablation_changes(runs: ReferenceRuns, masks: Sequence[Tensor], prompts: slice) -> WriterChanges:
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


def _role_means(task: Task, mean_task: Task, activations: DecoderActivations) -> _WriterValues:
    """Mean value of each writer over the tokens of the same role in `mean_task`."""
    index = {role: n for n, role in enumerate(mean_task.roles)}
    used = [task.roles[n] for n in task.role_of.unique().tolist() if n >= 0]
    present = {mean_task.roles[n] for n in mean_task.role_of.unique().tolist() if n >= 0}
    if missing := [role for role in used if role not in present]:
        raise BatchError(
            f"The prompts of means lack the roles {', '.join(missing)}, which the task has: take "
            "means over prompts of the same pattern"
        )
    to = torch.tensor([index.get(role, 0) for role in task.roles], device=task.role_of.device)
    role_of = torch.where(task.role_of >= 0, to[task.role_of.clamp(min=0)], 0)
    has_role = one_hot(mean_task.role_of.clamp(min=0), len(mean_task.roles))
    has_role = (has_role * (mean_task.role_of >= 0)[..., None]).to(activations.embed.dtype)
    count = has_role.sum((0, 1)).clamp(min=1)

    def mean(value: Tensor) -> Tensor:
        total = einsum(has_role, value.flatten(2), "b t r, b t f -> r f") / count[:, None]
        return total[role_of].unflatten(-1, value.shape[2:])

    return (
        mean(activations.embed),
        tuple(map(mean, activations.z)),
        tuple(map(mean, activations.mlp_out)),
    )


def _run_with_constants(
    clean: Run, weights: DecoderWeights, entry: DecoderInputs, values: _WriterValues
) -> Run:
    """Run in which every edge carries a constant, and readers read the sums of these."""
    embed, z, mlp_out = values
    run = clean.activations
    parts = {name: [] for name in ("resid_pre", "resid_mid", "q", "k", "v", "z", "mlp_out")}
    post_norm = None
    shift, resid = embed - run.embed, entry.position_embed + embed
    for number, (layer, rotary) in enumerate(zip(weights.layers, entry.rotary, strict=True)):
        post_norm = None if layer.attn_post_norm is IDENTITY else layer.attn_post_norm
        pre = run.resid_pre[number] + shift if post_norm is None else resid
        y = layer.attn_norm(pre)
        q, k = (apply_rotary(layer.project(port, y), rotary) for port in "qk")
        v = layer.project("v", y)
        new_z = layer.attend(q, k, v, layer.visible_keys(entry.attention_mask))
        if post_norm is None:
            heads = einsum(z[number] - run.z[number], layer.o, "b t h e, h e d -> b t d")
            mid = run.resid_mid[number] + shift + (0 if weights.parallel else heads)
            shift = shift + heads + mlp_out[number] - run.mlp_out[number]
        else:  # Summed anew: a post-norm would amplify the rounding errors of differences.
            mid = resid + post_norm(layer.sum_heads(z[number]))
            resid = mid + mlp_out[number]
        out = layer.mlp(layer.mlp_norm(mid))
        for name, value in zip(parts, (pre, mid, q, k, v, new_z, out), strict=True):
            parts[name].append(value)
    activations = DecoderActivations(
        embed=run.embed,
        resid_final=run.resid_final + shift if post_norm is None else resid,
        **{name: tuple(layers) for name, layers in parts.items()},
    )
    return Run(activations, embed, z, mlp_out)
