"""Attention pooled by role, comparable across prompts and models of any size."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from probes.models.model import ModelSpec, load
from probes.observe.activations import Activations, capture
from probes.prompts.question import Question
from probes.prompts.tokens.batch import Batch, tokenize


@dataclass(frozen=True, eq=False)
class RoleAttention:
    """Attention from each role to each role: summed over keys, averaged over queries.

    Attributes:
        model: Name of the model.
        roles: Roles of both axes.
        per_prompt: Each row over `role_key` sums to 1; NaN where the prompt lacks the query role.
    """

    model: str
    roles: tuple[str, ...]
    per_prompt: Float[Tensor, "prompt layer head role role_key"] = field(repr=False)

    @property
    def mean(self) -> Float[Tensor, "layer head role role_key"]:
        """Mean over the prompts that have the query role."""
        return self.per_prompt.nanmean(0)

    @property
    def standard_error(self) -> Float[Tensor, "layer head role role_key"]:
        """Standard error of the mean over prompts; NaN for fewer than two prompts."""
        count = (~self.per_prompt.isnan()).sum(0)
        squares = (self.per_prompt - self.mean).square().nansum(0)
        return torch.where(
            count > 1, (squares / (count * (count - 1)).clamp(min=1)).sqrt(), torch.nan
        )


def pool_by_role(
    attention: Float[Tensor, "layer prompt head query key"], batch: Batch
) -> Float[Tensor, "prompt layer head role role_key"]:
    """Sum attention over the keys of a role, then average it over the queries of a role."""
    member = _role_membership(batch).to(attention.device).float()
    to_role = einsum(
        attention.float(),
        member,
        "layer prompt head query key, prompt role_key key -> layer prompt head query role_key",
    )
    weight = member / member.sum(-1, keepdim=True)  # 0/0 = NaN where a prompt lacks the role
    pooled = einsum(
        to_role,
        weight.nan_to_num(),
        "layer prompt head query role_key, prompt role query -> prompt layer head role role_key",
    )
    missing = rearrange(member.sum(-1) == 0, "prompt role -> prompt 1 1 role 1")
    return pooled.masked_fill(missing, torch.nan)


def role_attention(
    model: ModelSpec,
    batch: Batch | str | Question | Sequence[str | Question],
    *,
    activations: Activations | None = None,
) -> RoleAttention:
    """Attention of a batch pooled by role: summed over keys, averaged over queries.

    Args:
        model: A family name, a folder, a hub id or a loaded model.
        batch: Tokenized prompts with roles, or texts or questions to tokenize.
        activations: "attention" of the same batch, as `capture` gives it, which saves the run.

    Returns:
        Attention of each prompt, "prompt layer head role role_key", 0 to 1.

    Raises:
        ModelError: A prompt is too long for the model, or a logit is not finite.
    """
    model = load(model)
    batch = batch if isinstance(batch, Batch) else tokenize(model, batch)
    activations = activations or capture(model, batch, ("attention",))
    return RoleAttention(
        model.name, batch.roles, pool_by_role(activations["attention"], batch).cpu()
    )


def uniform_attention(batch: Batch) -> Float[Tensor, "prompt role role_key"]:
    """Role attention of a head that attends equally to all tokens up to its own.

    Any two causal heads are similar by this much: subtract it before a comparison.
    """
    mask = batch.mask
    causal = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
    allowed = causal & rearrange(mask, "prompt key -> prompt 1 key")
    uniform = allowed.float() / allowed.sum(-1, keepdim=True).clamp(min=1)
    pooled = pool_by_role(rearrange(uniform, "prompt query key -> 1 prompt 1 query key"), batch)
    return pooled[:, 0, 0]


def _role_membership(batch: Batch) -> Bool[Tensor, "prompt role position"]:
    return torch.stack([batch.role_mask(role) for role in batch.roles], dim=1)
