"""Exact activation patching by role: what each component carries of each contrast."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.interventions.activation_patching import CachedRun, patch_sites, run_with_cache
from probes.models.model import Model
from probes.models.site import component_sites
from probes.observe.behavior import logit_diff, pair_foils
from probes.prompts.batch import Batch
from probes.prompts.pair_batch import PairBatch


@dataclass(frozen=True, eq=False)
class PatchingEffects:
    """How far patching each component at each role moves each answer.

    Attributes:
        model: Name of the model.
        contrast: What the counterfactual changes.
        components: "L0.H3" for heads, "L0.MLP", "L0.resid" for the input of a block.
        roles, answers: The other axes.
        each: The fall of the answer's lead (logits) when the component's output at the role is
            replaced by the counterfactual run's. Positive: the component carries what was
            changed. Zero: it carries nothing of it there. NaN where a prompt lacks the role.
        total: The fall of the lead when everything is replaced: the counterfactual run itself.
        exact: Share of prompts whose tokens all have a counterpart in the counterfactual.
    """

    model: str
    contrast: str
    components: tuple[str, ...]
    roles: tuple[str, ...]
    answers: tuple[str, ...]
    per_prompt: Float[Tensor, "prompt component role answer"]
    total: Float[Tensor, "prompt answer"]
    aligned_fraction: float

    @property
    def mean(self) -> Float[Tensor, "component role answer"]:
        """Mean over the prompts that have the role."""
        return self.per_prompt.nanmean(0)

    @property
    def standard_error(self) -> Float[Tensor, "component role answer"]:
        """Standard error of the mean over prompts."""
        count = (~self.per_prompt.isnan()).sum(0)
        spread = (self.per_prompt - self.mean).square().nansum(0)
        return torch.where(
            count > 1, (spread / (count * (count - 1)).clamp(min=1)).sqrt(), torch.nan
        )


@torch.no_grad()
def activation_patching(
    model: Model,
    pairs: PairBatch,
    *,
    kinds: Sequence[str] = ("heads", "mlps"),
    roles: Sequence[str] | None = None,
) -> PatchingEffects:
    """Patch every component at every role from the counterfactual run into the clean one."""
    roles = tuple(roles) if roles is not None else pairs.clean.roles
    clean = _run_batch(model, pairs.clean)
    source = _run_batch(model, pairs.counterfactual)
    answer = torch.stack([readout.answer for readout in pairs.clean.readouts], 1).to(model.device)
    foils = [found.to(model.device) for found in pair_foils(pairs)]

    def leads(
        logits: Float[Tensor, "row answer vocab"], prompt: Int[Tensor, " row"]
    ) -> Float[Tensor, "row answer"]:
        found = [
            logit_diff(logits[:, k], foils[k][prompt], answer[prompt, k]) for k in range(len(foils))
        ]
        return torch.stack(found, 1)

    named = [component_sites(model.shape.layers, model.shape.heads, kinds, role) for role in roles]
    cells = [site for group in named for site in group]
    where = {role: pairs.role_mask(role).to(model.device) for role in roles}
    every = torch.arange(len(pairs), device=model.device)
    before, after = leads(clean.logits, every), leads(source.logits, every)
    patched = patch_sites(
        clean, source.realigned(pairs.source_positions.to(model.device)), cells, where, leads
    )
    fall = (before - patched).reshape(len(roles), -1, len(pairs), len(foils))
    each = fall.permute(2, 1, 0, 3).cpu()
    lacks = torch.stack([~pairs.clean.role_mask(role).any(-1) for role in roles], 1)
    return PatchingEffects(
        model=model.name,
        contrast=pairs.contrast,
        components=tuple(site.component_name for site in named[0]),
        roles=roles,
        answers=tuple(readout.name for readout in pairs.clean.readouts),
        per_prompt=each.masked_fill(lacks[:, None, :, None], torch.nan),
        total=(before - after).cpu(),
        aligned_fraction=float(pairs.fully_aligned.float().mean()),
    )


def _run_batch(model: Model, batch: Batch) -> CachedRun:
    ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
    return run_with_cache(model, ids, mask, batch.positions.to(model.device))
