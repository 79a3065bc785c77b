"""The two runs that all circuits of a task share: every edge kept, and every edge replaced."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from probes.circuits.graph import Wiring
from probes.circuits.task import Task
from probes.errors import BatchError, CircuitError
from probes.models.decoder import Anatomised, Anatomy, Entry, attend, dissect, observe, turn
from probes.models.model import Model, refuse_training

Ablation = Literal["counterfactual", "mean", "zero"]


@dataclass(frozen=True, eq=False)
class Side:
    """A run to begin with.

    Attributes:
        run: The residuals that its parts read, and what they make of them.
        embed, z, mlp_out: What its edges carry; other than what `run` makes where edges carry
            means or zeros.
    """

    run: Anatomised
    embed: Tensor
    z: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]

    @property
    def settled(self) -> bool:
        """Whether its edges carry just what its parts make."""
        return self.z is self.run.z


@dataclass(frozen=True, eq=False)
class Stage:
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
    wiring: Wiring
    ablation: Ablation
    anatomy: Anatomy
    entry: Entry
    clean: Side
    replaced: Side
    first: int
    leads: Float[Tensor, " prompt"]
    floor: Float[Tensor, " prompt"]


@torch.no_grad()
def stage(
    model: Model,
    task: Task,
    *,
    roles: bool = False,
    ablation: Ablation = "counterfactual",
    reference: Task | None = None,
) -> Stage:
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
    refuse_training(model)
    anatomy, task = dissect(model), task.to(model)
    entry, clean = observe(model, anatomy, task.clean, task.mask, task.readout)
    own = Side(clean, clean.embed, clean.z, clean.mlp_out)
    if ablation == "counterfactual":
        ids = task.counterfactual
        _, other = observe(model, anatomy, ids, task.mask, task.readout)
        replaced = Side(other, other.embed, other.z, other.mlp_out)
    else:
        no_z, no_mlp = (tuple(map(torch.zeros_like, kind)) for kind in (clean.z, clean.mlp_out))
        constant = (torch.zeros_like(clean.embed), no_z, no_mlp)
        if ablation == "mean":
            pool = task if reference is None else reference.to(model)
            ids = pool.counterfactual
            _, other = observe(model, anatomy, ids, pool.mask, pool.readout)
            constant = _means(task, pool, other)
        replaced = _carrying(own, anatomy, entry, constant)
    first = task.first if ablation == "counterfactual" else 0
    at = (torch.arange(len(task), device=model.device), task.readout)
    leads, floor = (
        task.lead(anatomy.unembed(anatomy.final(side.run.last[at]))) for side in (own, replaced)
    )
    return Stage(
        model=model,
        task=task,
        wiring=task.wiring(model, roles=roles),
        ablation=ablation,
        anatomy=anatomy,
        entry=entry,
        clean=own,
        replaced=replaced,
        first=min(first, int(task.readout.min())),
        leads=leads,
        floor=floor,
    )


def carried(stage: Stage, writer: int) -> Tensor:
    """Return what an edge brings when it is cut: its replacement less its clean value."""
    heads = stage.model.shape.heads
    if writer == 0:
        return stage.replaced.embed - stage.clean.embed
    layer, place = divmod(writer - 1, heads + 1)
    if place == heads:
        return stage.replaced.mlp_out[layer] - stage.clean.mlp_out[layer]
    change = (stage.replaced.z[layer] - stage.clean.z[layer])[..., place, :]
    return change @ stage.anatomy.layers[layer].o[place]


def _means(
    task: Task, pool: Task, run: Anatomised
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return what writers write on the mean over the pool's tokens of each token's role."""
    index = {role: n for n, role in enumerate(pool.roles)}
    used = [task.roles[n] for n in task.role_of.unique().tolist() if n >= 0]
    found = {pool.roles[n] for n in pool.role_of.unique().tolist() if n >= 0}
    if lacking := [role for role in used if role not in found]:
        raise BatchError(
            f"The reference lacks the roles {', '.join(lacking)}, which the task has: take means "
            "over prompts of the same pattern"
        )
    to = torch.tensor([index.get(role, 0) for role in task.roles], device=task.role_of.device)
    asked = torch.where(task.role_of >= 0, to[task.role_of.clamp(min=0)], 0)
    there = one_hot(pool.role_of.clamp(min=0), len(pool.roles))
    there = (there * (pool.role_of >= 0)[..., None]).to(run.embed.dtype)
    count = there.sum((0, 1)).clamp(min=1)

    def mean(value: Tensor) -> Tensor:
        total = einsum(there, value.flatten(2), "b t r, b t f -> r f") / count[:, None]
        return total[asked].unflatten(-1, value.shape[2:])

    return mean(run.embed), tuple(map(mean, run.z)), tuple(map(mean, run.mlp_out))


def _carrying(
    clean: Side, anatomy: Anatomy, entry: Entry, carried: tuple[Tensor, tuple, tuple]
) -> Side:
    """Return the run in which every edge carries a constant; its parts read the sums of them."""
    embed, z, mlp_out = carried
    run, found = clean.run, {n: [] for n in ("pre", "mid", "q", "k", "v", "z", "mlp_out")}
    shift = embed - run.embed
    for number, layer in enumerate(anatomy.layers):
        pre = run.pre[number] + shift
        y = layer.attn_norm(pre)
        q, k = (turn(layer.project(port, y), entry.angles) for port in "qk")
        v = layer.project("v", y)
        made = attend(q, k, v, entry.allowed, layer.scale)
        heads = einsum(z[number] - run.z[number], layer.o, "b t h e, h e d -> b t d")
        mid = run.mid[number] + shift + (0 if anatomy.parallel else heads)
        out = layer.mlp(layer.mlp_norm(mid))
        for name, value in zip(found, (pre, mid, q, k, v, made, out), strict=True):
            found[name].append(value)
        shift = shift + heads + mlp_out[number] - run.mlp_out[number]
    parts = {name: tuple(values) for name, values in found.items()}
    return Side(Anatomised(embed=run.embed, last=run.last + shift, **parts), embed, z, mlp_out)
