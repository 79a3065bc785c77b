"""Attention pooled from role to role, so that prompts and models of any size can be compared."""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from probes.models.model import Model
from probes.observe.activations import Activations, capture
from probes.prompts.batch import Batch


@dataclass(frozen=True, eq=False)
class RoleAttention:
    """How much a token of one role attends to all tokens of another, averaged over prompts.

    Attributes:
        model: Name of the model.
        roles: The roles on both axes.
        each: One value a prompt, NaN where the prompt lacks the attending role. Each row over
            `role_key` sums to 1.
    """

    model: str
    roles: tuple[str, ...]
    per_prompt: Float[Tensor, "prompt layer head role role_key"]

    @property
    def mean(self) -> Float[Tensor, "layer head role role_key"]:
        """Mean over the prompts that have the attending role."""
        return self.per_prompt.nanmean(0)

    @property
    def standard_error(self) -> Float[Tensor, "layer head role role_key"]:
        """Standard error of the mean over prompts; NaN where fewer than two prompts count."""
        there = ~self.per_prompt.isnan()
        count = there.sum(0)
        spread = (self.per_prompt - self.mean).square().nansum(0)
        return torch.where(
            count > 1, (spread / (count * (count - 1)).clamp(min=1)).sqrt(), torch.nan
        )


def pool_by_role(
    attention: Float[Tensor, "layer prompt head query key"], batch: Batch
) -> Float[Tensor, "prompt layer head role role_key"]:
    """Sum attention over the keys of a role, then average over the queries of a role."""
    member = _role_membership(batch).to(attention.device, attention.dtype)
    to_role = einsum(
        attention,
        member,
        "layer prompt head query key, prompt role_key key -> layer prompt head query role_key",
    )
    share = member / member.sum(-1, keepdim=True)  # 0/0 = NaN where a prompt lacks the role
    there = share.nan_to_num()
    pooled = einsum(
        to_role,
        there,
        "layer prompt head query role_key, prompt role query -> prompt layer head role role_key",
    )
    lacks = rearrange(member.sum(-1) == 0, "prompt role -> prompt 1 1 role 1")
    return pooled.masked_fill(lacks, torch.nan)


def role_attention(
    model: Model, batch: Batch, *, activations: Activations | None = None
) -> RoleAttention:
    """Run a batch (or take what was captured from it) and pool its attention by roles."""
    activations = activations or capture(model, batch, ("attention",))
    return RoleAttention(
        model.name, batch.roles, pool_by_role(activations["attention"], batch).cpu()
    )


def uniform_attention(batch: Batch) -> Float[Tensor, "prompt role role_key"]:
    """Pool what a head would do that attends to all tokens up to its own alike.

    Any causal head resembles any other by this much; subtract it before comparing heads.
    """
    mask = batch.mask
    causal = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
    reach = causal & rearrange(mask, "prompt key -> prompt 1 key")
    even = reach.float() / reach.sum(-1, keepdim=True).clamp(min=1)
    return pool_by_role(rearrange(even, "prompt query key -> 1 prompt 1 query key"), batch)[:, 0, 0]


def _role_membership(batch: Batch) -> Bool[Tensor, "prompt role position"]:
    return torch.stack([batch.role_mask(role) for role in batch.roles], dim=1)
