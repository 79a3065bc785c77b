"""Values that ablated edges carry where these are means over prompts, or zero."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from probes.circuits.task import Task
from probes.errors import BatchError
from probes.models.layers.decoder import DecoderActivations

WriterValues = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]
"""Values of the embedding, of z and of MLPs, as edges carry them."""


@dataclass(frozen=True, eq=False)
class RoleMeans:
    """Mean value of each writer over the tokens of each role.

    Attributes:
        roles: Roles of the first axis of the means.
        embed, z, mlp_out: Means; tuples have one entry a layer.
    """

    roles: tuple[str, ...]
    embed: Float[Tensor, "role feature"]
    z: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]

    def at(self, task: Task, heads: int) -> WriterValues:
        """Means of the roles of a task's tokens."""
        index = {role: n for n, role in enumerate(self.roles)}
        to = torch.tensor([index.get(role, 0) for role in task.roles], device=task.role_of.device)
        role_of = torch.where(task.role_of >= 0, to[task.role_of.clamp(min=0)], 0)
        return (
            self.embed[role_of],
            tuple(mean[role_of].unflatten(-1, (heads, -1)) for mean in self.z),
            tuple(mean[role_of] for mean in self.mlp_out),
        )


def require_roles(task: Task, mean_task: Task) -> None:
    """Raise where the prompts of means lack a role of a task."""
    used = [task.roles[n] for n in task.role_of.unique().tolist() if n >= 0]
    present = {mean_task.roles[n] for n in mean_task.role_of.unique().tolist() if n >= 0}
    if missing := [role for role in used if role not in present]:
        raise BatchError(
            f"The prompts of means lack the roles {', '.join(missing)}, which the task has: take "
            "means over prompts of the same pattern"
        )


def role_sums(task: Task, activations: DecoderActivations) -> list[Tensor]:
    """Tokens of each role, then the sums of the embedding, of each z and of each MLP over them."""
    has_role = one_hot(task.role_of.clamp(min=0), len(task.roles))
    has_role = (has_role * (task.role_of >= 0)[..., None]).to(activations.embed.dtype)
    values = (activations.embed, *activations.z, *activations.mlp_out)
    sums = [einsum(has_role, value.flatten(2), "b t r, b t f -> r f") for value in values]
    return [has_role.sum((0, 1)), *sums]


def role_means(roles: Sequence[str], parts: Iterator[list[Tensor]]) -> RoleMeans:
    """Means of all prompts from the sums of parts of them."""
    total = next(parts)
    for part in parts:
        total = [a + b for a, b in zip(total, part, strict=True)]
    count, *sums = total
    embed, *means = (each / count.clamp(min=1)[:, None] for each in sums)
    layers = len(means) // 2
    return RoleMeans(tuple(roles), embed, tuple(means[:layers]), tuple(means[layers:]))
