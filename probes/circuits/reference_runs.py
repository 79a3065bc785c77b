"""The two runs that all circuits of a task share: every edge kept, and every edge replaced."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from probes.circuits.graph import ComputationGraph
from probes.circuits.task import Task
from probes.errors import BatchError, CircuitError
from probes.models.decoder import (
    DecoderActivations,
    DecoderInputs,
    DecoderWeights,
    apply_rotary,
    attend,
    capture_decoder,
    decompose,
)
from probes.models.model import Model
from probes.models.run_checks import require_eval

Ablation = Literal["counterfactual", "mean", "zero"]


@dataclass(frozen=True, eq=False)
class Run:
    """A run to begin with.

    Attributes:
        run: The residuals that its parts read, and what they make of them.
        embed, z, mlp_out: What its edges carry; other than what `run` makes where edges carry
            means or zeros.
    """

    activations: DecoderActivations
    embed: Tensor
    z: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]

    @property
    def is_consistent(self) -> bool:
        """Whether its edges carry just what its parts make."""
        return self.z is self.activations.z


@dataclass(frozen=True, eq=False)
class ReferenceRuns:
    """Everything that circuits of one model and task share.

    Attributes:
        wiring: What the kept edges' numbers mean.
        clean, replaced: All edges kept, and none.
        leads: The clean run's lead (logits).
        floor: The lead with every edge replaced.
        first: The position before which nothing differs.
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


@torch.no_grad()
def run_references(
    model: Model,
    task: Task,
    *,
    roles: bool = False,
    ablation: Ablation = "counterfactual",
    mean_task: Task | None = None,
) -> ReferenceRuns:
    """Run a task's clean and counterfactual prompts once, for all circuits to come.

    Args:
        model: A decoder whose blocks are plain sums of heads and MLP.
        task: What to run.
        roles: Whether kept edges are resolved by roles.
        ablation: What a cut edge carries: its counterfactual value, its mean over the
            counterfactuals of `reference` at tokens of the same role, or zero.
        reference: The prompts to take means over; the task itself by default.

    Raises:
        ModelError: The blocks are other sums, the model is in training mode, or a run breaks.
        BatchError: The reference lacks a role of the task.
    """
    if ablation not in ("counterfactual", "mean", "zero"):
        raise CircuitError(
            f"The ablation {ablation!r} is unknown: use 'counterfactual', 'mean' or 'zero'"
        )
    require_eval(model)
    anatomy, task = decompose(model), task.to(model)
    entry, clean = capture_decoder(model, anatomy, task.clean, task.mask, task.readout)
    own = Run(clean, clean.embed, clean.z, clean.mlp_out)
    if ablation == "counterfactual":
        ids = task.counterfactual
        _, other = capture_decoder(model, anatomy, ids, task.mask, task.readout)
        replaced = Run(other, other.embed, other.z, other.mlp_out)
    else:
        no_z, no_mlp = (tuple(map(torch.zeros_like, kind)) for kind in (clean.z, clean.mlp_out))
        constant = (torch.zeros_like(clean.embed), no_z, no_mlp)
        if ablation == "mean":
            pool = task if mean_task is None else mean_task.to(model)
            ids = pool.counterfactual
            _, other = capture_decoder(model, anatomy, ids, pool.mask, pool.readout)
            constant = _role_means(task, pool, other)
        replaced = _run_with_constants(own, anatomy, entry, constant)
    first = task.first_difference if ablation == "counterfactual" else 0
    at = (torch.arange(len(task), device=model.device), task.readout)
    leads, floor = (
        task.logit_diff(anatomy.unembed(anatomy.final_norm(side.activations.resid_final[at])))
        for side in (own, replaced)
    )
    return ReferenceRuns(
        model=model,
        task=task,
        graph=task.computation_graph(model, roles=roles),
        ablation=ablation,
        weights=anatomy,
        entry=entry,
        clean=own,
        ablated=replaced,
        first_position=min(first, int(task.readout.min())),
        clean_logit_diffs=leads,
        ablated_logit_diffs=floor,
    )


def ablation_change(runs: ReferenceRuns, writer: int) -> Tensor:
    """Return what an edge brings when it is cut: its replacement less its clean value."""
    heads = runs.model.shape.heads
    if writer == 0:
        return runs.ablated.embed - runs.clean.embed
    layer, place = divmod(writer - 1, heads + 1)
    if place == heads:
        return runs.ablated.mlp_out[layer] - runs.clean.mlp_out[layer]
    change = (runs.ablated.z[layer] - runs.clean.z[layer])[..., place, :]
    return change @ runs.weights.layers[layer].o[place]


def _role_means(
    task: Task, mean_task: Task, activations: DecoderActivations
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return what writers write on the mean over the pool's tokens of each token's role."""
    index = {role: n for n, role in enumerate(mean_task.roles)}
    used = [task.roles[n] for n in task.role_of.unique().tolist() if n >= 0]
    found = {mean_task.roles[n] for n in mean_task.role_of.unique().tolist() if n >= 0}
    if lacking := [role for role in used if role not in found]:
        raise BatchError(
            f"The reference lacks the roles {', '.join(lacking)}, which the task has: take means "
            "over prompts of the same pattern"
        )
    to = torch.tensor([index.get(role, 0) for role in task.roles], device=task.role_of.device)
    asked = torch.where(task.role_of >= 0, to[task.role_of.clamp(min=0)], 0)
    there = one_hot(mean_task.role_of.clamp(min=0), len(mean_task.roles))
    there = (there * (mean_task.role_of >= 0)[..., None]).to(activations.embed.dtype)
    count = there.sum((0, 1)).clamp(min=1)

    def mean(value: Tensor) -> Tensor:
        total = einsum(there, value.flatten(2), "b t r, b t f -> r f") / count[:, None]
        return total[asked].unflatten(-1, value.shape[2:])

    return (
        mean(activations.embed),
        tuple(map(mean, activations.z)),
        tuple(map(mean, activations.mlp_out)),
    )


def _run_with_constants(
    clean: Run,
    weights: DecoderWeights,
    entry: DecoderInputs,
    constants: tuple[Tensor, tuple, tuple],
) -> Run:
    """Return the run in which every edge carries a constant; its parts read the sums of them."""
    embed, z, mlp_out = constants
    run, found = (
        clean.activations,
        {n: [] for n in ("resid_pre", "resid_mid", "q", "k", "v", "z", "mlp_out")},
    )
    shift = embed - run.embed
    for number, layer in enumerate(weights.layers):
        pre = run.resid_pre[number] + shift
        y = layer.attn_norm(pre)
        q, k = (apply_rotary(layer.project(port, y), entry.rotary) for port in "qk")
        v = layer.project("v", y)
        made = attend(q, k, v, layer.visible_keys(entry.attention_mask), layer.scale)
        heads = einsum(z[number] - run.z[number], layer.o, "b t h e, h e d -> b t d")
        mid = run.resid_mid[number] + shift + (0 if weights.parallel else heads)
        out = layer.mlp(layer.mlp_norm(mid))
        for name, value in zip(found, (pre, mid, q, k, v, made, out), strict=True):
            found[name].append(value)
        shift = shift + heads + mlp_out[number] - run.mlp_out[number]
    parts = {name: tuple(values) for name, values in found.items()}
    return Run(
        DecoderActivations(embed=run.embed, resid_final=run.resid_final + shift, **parts),
        embed,
        z,
        mlp_out,
    )
