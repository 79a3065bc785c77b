"""Interventions of a walk-through in one model: which answer a swapped state gives."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.comparison.walkthrough.result import Look
from probes.interventions.activation_patching import patch_sites, run_batch_with_cache
from probes.interventions.role_paths.graph import path_roles
from probes.models.model import Model
from probes.models.site import Site, head_name
from probes.observe.activations import capture
from probes.prompts.question import Question
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import PairBatch
from probes.prompts.tokens.tokenization import BOS


@dataclass(frozen=True, eq=False)
class Replies:
    """Answers of a model after each of some interventions.

    Attributes:
        tokens: Most likely token at each read-out.
        wanted: Token of the answer to the changed question.
        before: Token of the answer to the question itself.
    """

    tokens: Int[Tensor, "site prompt answer"]
    wanted: Int[Tensor, "prompt answer"]
    before: Int[Tensor, "prompt answer"]

    def takes(self, answer: int) -> Bool[np.ndarray, "site prompt"]:
        """Where the answer becomes that of the changed question."""
        return (self.tokens == self.wanted)[..., answer].numpy()

    def keeps(self, answer: int) -> Bool[np.ndarray, "site prompt"]:
        """Where the answer stays."""
        return (self.tokens == self.before)[..., answer].numpy()


@torch.no_grad()
def swap_states(model: Model, pairs: PairBatch, sites: Sequence[Site]) -> Replies:
    """Replace the state at each site, one at a time, by that of the changed question.

    Roles joined by "+" are replaced together.
    """
    clean = run_batch_with_cache(model, pairs.clean)
    source = run_batch_with_cache(model, pairs.counterfactual)
    source = source.realigned(pairs.source_positions.to(model.device))
    masks = {role: mask.to(model.device) for role, mask in path_roles(pairs.clean).items()}
    for joined in {site.role for site in sites} - set(masks):
        masks[joined] = torch.stack([masks[role] for role in joined.split("+")]).any(0)
    wanted, before = (
        torch.stack([readout.answer for readout in batch.readouts], 1)
        for batch in (pairs.counterfactual, pairs.clean)
    )
    # Token ids below 2**24 are exact in single precision.
    tokens = patch_sites(clean, source, sites, masks, lambda logits, _: logits.argmax(-1).float())
    return Replies(tokens.long().cpu(), wanted, before)


def state_sites(model: Model, roles: Sequence[str]) -> list[Site]:
    """States of each role before each layer, and behind the last."""
    return [Site(layer, "resid", role) for role in roles for layer in range(model.shape.layers + 1)]


def head_sites(model: Model, role: str) -> list[Site]:
    """Outputs of all heads at one role."""
    shape = model.shape
    return [Site(n, head, role) for n in range(shape.layers) for head in range(shape.heads)]


def rate_map(
    replies: Replies, answer: int, roles: Sequence[str]
) -> Float[np.ndarray, "role layer"]:
    """Fraction of prompts whose answer becomes the other one, for `state_sites`."""
    return replies.takes(answer).mean(1).reshape(len(roles), -1)


@torch.no_grad()
def attention_looks(model: Model, question: Question) -> tuple[Look, ...]:
    """For each head and role, the other role that its last token attends to most.

    A role cannot be attended to in itself here, nor the start token, where heads with nothing to do
    attend.
    """
    batch = tokenize(model.tokenizer, (question,), max_length=model.shape.context)
    masks = {role: mask[0] for role, mask in path_roles(batch).items()}
    attention = capture(model, batch, ("attention",))["attention"][:, 0].cpu()
    looks = []
    for role, own in masks.items():
        query = int(own.nonzero()[-1])
        keys = {
            other: mask
            for other, mask in masks.items()
            if other not in (role, BOS) and int(mask.int().argmax()) < query
        }
        if role == BOS or not keys:
            continue
        shares = torch.stack([attention[:, :, query, mask].sum(-1) for mask in keys.values()])
        uniform = [float(mask[: query + 1].sum()) / (query + 1) for mask in keys.values()]
        for layer, head in np.ndindex(model.shape.layers, model.shape.heads):
            best = int(shares[:, layer, head].argmax())
            weight = float(shares[best, layer, head])
            looks.append(
                Look(layer, head_name(layer, head), role, list(keys)[best], weight, uniform[best])
            )
    return tuple(looks)
