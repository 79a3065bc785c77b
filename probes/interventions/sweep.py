"""Exact activation patching of every component at every role."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from probes.errors import SiteError
from probes.interventions.activation_patching import patch_sites, run_batch_with_cache
from probes.interventions.cached_run import CachedRun
from probes.interventions.screening.check import ScreenCheck
from probes.models.micro_batches import MicroBatches, fitting_prompts, run_micro_batches
from probes.models.model import Model, ModelSpec, load
from probes.models.site import COMPONENT_KINDS, Site, component_sites
from probes.observe.behavior import logit_diff, pair_foils
from probes.prompts.question import Pair
from probes.prompts.tokens.pair_batch import PairBatch, tokenize_pairs

T = TypeVar("T")

# Residual stream, z, MLP output, keys and values of two runs, with the copies that stack them.
_KEPT_UNITS = 20


@dataclass(frozen=True, eq=False)
class PatchingEffects:
    """Effect of patching each component at each role, in logits.

    Attributes:
        model: Name of the model.
        contrast: What differs in the counterfactual.
        components: "L0.H3" for heads, "L0.MLP", "L0.resid" for the input of a block.
        roles: Roles of the third axis.
        answers: Answers of the last axis.
        per_prompt: Decrease of the answer's logit difference when the component's output at the
            role takes its counterfactual value. Above 0: the component carries the contrast.
            NaN where a prompt lacks the role.
        total: Decrease of the logit difference from the clean to the counterfactual run.
        aligned_fraction: Fraction of prompts whose tokens all have a counterpart in the
            counterfactual.
        screen: Error of the effects that are approximated; None where one method gave all.
    """

    model: str
    contrast: str
    components: tuple[str, ...] = field(repr=False)
    roles: tuple[str, ...]
    answers: tuple[str, ...]
    per_prompt: Float[Tensor, "prompt component role answer"] = field(repr=False)
    total: Float[Tensor, "prompt answer"] = field(repr=False)
    aligned_fraction: float
    screen: ScreenCheck | None = None

    @property
    def mean(self) -> Float[Tensor, "component role answer"]:
        """Mean over the prompts that have the role."""
        return self.per_prompt.nanmean(0)

    @property
    def standard_error(self) -> Float[Tensor, "component role answer"]:
        """Standard error of the mean over prompts."""
        count = (~self.per_prompt.isnan()).sum(0)
        squares = (self.per_prompt - self.mean).square().nansum(0)
        return torch.where(
            count > 1, (squares / (count * (count - 1)).clamp(min=1)).sqrt(), torch.nan
        )


def activation_patching(
    model: ModelSpec,
    pairs: PairBatch | Sequence[Pair],
    *,
    kinds: Sequence[str] = ("heads", "mlps"),
    roles: Sequence[str] | None = None,
) -> PatchingEffects:
    """Patch every component at every role from the counterfactual run into the clean one.

    Args:
        model: Model to patch, or its name.
        pairs: Clean and counterfactual prompts, or pairs to tokenize, as of `sample_pairs`.
        kinds: Kinds of components: "heads", "mlps", "resid".
        roles: Roles to patch; those of the clean prompts by default.

    Raises:
        SiteError: A kind is unknown, none is given, or the prompts lack a role.
        ModelError: The model is being edited, or in training mode.
    """
    model = load(model)
    pairs = pairs if isinstance(pairs, PairBatch) else tokenize_pairs(model, pairs)
    roles = patched_roles(pairs, kinds, roles)
    by_role = [component_sites(model.shape.layers, model.shape.heads, kinds, r) for r in roles]
    effects, total = patch_cells(model, pairs, [site for group in by_role for site in group])
    effects = rearrange(
        effects, "(role part) prompt answer -> prompt part role answer", role=len(roles)
    )
    return PatchingEffects(
        model=model.name,
        contrast=pairs.contrast,
        components=tuple(site.component_name for site in by_role[0]),
        roles=roles,
        answers=tuple(readout.name for readout in pairs.clean.readouts),
        per_prompt=mask_lacking_roles(effects, pairs, roles),
        total=total,
        aligned_fraction=float(pairs.fully_aligned.float().mean()),
    )


def patched_roles(
    pairs: PairBatch, kinds: Sequence[str], roles: Sequence[str] | None
) -> tuple[str, ...]:
    """Roles to patch, by default those of the clean prompts.

    Raises:
        SiteError: There is no role or no kind of component.
    """
    roles = tuple(roles) if roles is not None else pairs.clean.roles
    if not roles or not kinds:
        raise SiteError(
            f"Roles {list(roles)} and components {list(kinds)} leave nothing to patch: choose from "
            f"{', '.join(pairs.clean.roles)} and from {', '.join(COMPONENT_KINDS)}"
        )
    return roles


@torch.no_grad()
def patch_cells(
    model: Model, pairs: PairBatch, sites: Sequence[Site]
) -> tuple[Float[Tensor, "site prompt answer"], Float[Tensor, "prompt answer"]]:
    """Exact effect of patching each site, and of the whole contrast."""
    measure = pair_logit_diffs(pairs, model.device)
    masks = {r: pairs.role_mask(r) for r in dict.fromkeys(s.role for s in sites)}

    def patch(rows: Int[Tensor, " row"]) -> tuple[Tensor, Tensor]:
        clean, source = pair_runs(model, pairs, rows)
        index = rows.to(model.device)
        here = {role: mask[rows].to(model.device) for role, mask in masks.items()}
        before, after = measure(clean.logits, index), measure(source.logits, index)
        source = source.realigned(pairs.source_positions[rows].to(model.device))
        patched = patch_sites(
            clean, source, sites, here, lambda logits, prompt: measure(logits, index[prompt])
        )
        return (before - patched).cpu(), (before - after).cpu()

    effects, totals = zip(*run_in_pairs(model, pairs, patch), strict=True)
    return torch.cat(effects, 1), torch.cat(totals)


def run_in_pairs(
    model: Model, pairs: PairBatch, run: Callable[[Int[Tensor, " row"]], T]
) -> list[T]:
    """Results of a function that caches runs of all pairs, or of fewer where memory runs out."""
    width = pairs.clean.ids.shape[1]
    read = 2 * len(pairs.clean.readouts)
    size = fitting_prompts(model, len(pairs), width=width, read=read, kept=_KEPT_UNITS)
    batches = MicroBatches("recording pairs", size, width)
    return [*run_micro_batches(model, torch.arange(len(pairs)), run, batches)]


def pair_runs(
    model: Model, pairs: PairBatch, rows: Int[Tensor, " row"]
) -> tuple[CachedRun, CachedRun]:
    """Cached runs of the clean prompts and of the counterfactuals of some pairs."""
    batches = (pairs.clean, pairs.counterfactual)
    clean, source = (run_batch_with_cache(model, batch, rows) for batch in batches)
    return clean, source


def pair_logit_diffs(
    pairs: PairBatch, device: torch.device
) -> Callable[[Float[Tensor, "row answer vocab"], Int[Tensor, " row"]], Tensor]:
    """Measure for `patch_sites`: the logit difference of each answer of the clean prompts."""
    answer = torch.stack([readout.answer for readout in pairs.clean.readouts], 1).to(device)
    foils = [tokens.to(device) for tokens in pair_foils(pairs)]

    def measure(
        logits: Float[Tensor, "row answer vocab"], prompt: Int[Tensor, " row"]
    ) -> Float[Tensor, "row answer"]:
        return torch.stack(
            [logit_diff(logits[:, k], f[prompt], answer[prompt, k]) for k, f in enumerate(foils)], 1
        )

    return measure


def mask_lacking_roles(
    effects: Float[Tensor, "prompt part role answer"], pairs: PairBatch, roles: Sequence[str]
) -> Float[Tensor, "prompt part role answer"]:
    """Effects with NaN where a prompt lacks the role, or no token of it has a counterpart."""
    lacks = torch.stack([~pairs.role_mask(role).any(-1) for role in roles], 1)
    return effects.masked_fill(lacks[:, None, :, None], torch.nan)
