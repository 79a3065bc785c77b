"""Logit lens: what the residual stream would already answer, at each layer and role."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probes.models.model import Model
from probes.observe.activations import Activations, capture
from probes.observe.behavior import foil_tokens, logit_diff
from probes.prompts.batch import Batch


@dataclass(frozen=True, eq=False)
class LogitLens:
    """How far each answer leads its rivals when the stream is read early.

    Attributes:
        model: Name of the model.
        layers: "embed", then "L0" and so on: the stream behind each block.
        roles, answers: The other axes; a role is read at its last token.
        each: The answer's logit less the mean of the other outcomes' (logits), NaN where a
            prompt lacks the role.
    """

    model: str
    layers: tuple[str, ...]
    roles: tuple[str, ...]
    answers: tuple[str, ...]
    per_prompt: Float[Tensor, "prompt layer role answer"]

    @property
    def mean(self) -> Float[Tensor, "layer role answer"]:
        """Mean over the prompts that have the role."""
        return self.per_prompt.nanmean(0)


@torch.no_grad()
def logit_lens(model: Model, batch: Batch, *, activations: Activations | None = None) -> LogitLens:
    """Read every layer's residual stream with the final norm and the unembedding.

    A stream that is not yet written in the unembedding's terms reads as noise: a lead of 0 early
    does not say that the answer is not there. Source: nostalgebraist 2020, "interpreting GPT".
    """
    resid = (activations or capture(model, batch, ("resid",)))["resid"]
    layers = ("embed", *(f"L{layer}" for layer in range(model.shape.layers)))
    last = _last_positions(batch)
    rows = torch.arange(len(batch))
    foils = [foil_tokens(readout) for readout in batch.readouts]
    each = torch.full((len(batch), len(layers), len(batch.roles), len(foils)), torch.nan)
    for r in range(len(batch.roles)):
        there = last[:, r] >= 0
        for layer in range(len(layers)):
            stream = resid[layer][rows[there], last[there, r].to(resid.device)]
            logits = model.bridge.unembed(model.bridge.ln_final(stream[:, None]))[:, 0].cpu()
            for k, readout in enumerate(batch.readouts):
                each[there, layer, r, k] = logit_diff(
                    logits, foils[k][there], readout.answer[there]
                )
    answers = tuple(readout.name for readout in batch.readouts)
    return LogitLens(model.name, layers, batch.roles, answers, each)


def _last_positions(batch: Batch) -> Tensor:
    """Return each role's last position in each prompt, -1 where the prompt lacks it."""
    position = torch.arange(batch.ids.shape[1])
    found = [torch.where(batch.role_mask(role), position, -1).amax(-1) for role in batch.roles]
    return torch.stack(found, 1)
