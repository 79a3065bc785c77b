"""Attribution patching of single sites: a screen for exact activation patching.

    effect of a site ≈ <a - a', gradient of the logit difference at a>

a, a': activations of the site in the clean and in the counterfactual run; the gradient is that of
the clean run (Nanda 2023; Kramár et al. 2024, arXiv:2403.00745). One pass on each side and one
backward pass give every component × role, where exact patching runs the model once for each.
Outputs of heads and MLPs are patched, not queries and keys, so that no site stands directly before
a saturated softmax, which AtP* corrects. `screened_patching` measures the error that remains.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from probes.interventions.cached_run import MLP, Z, record_run
from probes.interventions.result import ScreenCheck
from probes.interventions.sweep import (
    PatchingEffects,
    mask_lacking_roles,
    pair_logit_diffs,
    patch_cells,
    patched_roles,
)
from probes.models.model import Model
from probes.models.run_checks import require_unedited
from probes.models.site import RESID, Site, component_sites
from probes.prompts.tokens.pair_batch import PairBatch

_FLOATS_PER_UNIT, _MAX_GRADIENT_FLOATS = 20, 60_000_000  # Kept per token, layer and unit of width.

_HOOKS = {"resid": RESID, "heads": Z, "mlps": MLP}  # In the order of `component_sites`.

_COMPARED_TOP = 20  # Strongest cells whose recall is printed.


@dataclass(frozen=True, slots=True)
class ExactCells:
    """Cells, components at a role, that are patched exactly after a screen.

    Attributes:
        top: Number of strongest cells.
        random: Number of cells of a random sample among all whose activation changes.
        seed: Seed of the sample.
    """

    top: int = 40
    random: int = 40
    seed: int = 0


_EXACT_CELLS = ExactCells()


def attribution_patching(
    model: Model,
    pairs: PairBatch,
    *,
    kinds: Sequence[str] = ("heads", "mlps"),
    roles: Sequence[str] | None = None,
) -> PatchingEffects:
    """Approximate the effects of `activation_patching` by one gradient.

    Args:
        model: Model whose activations are patched.
        pairs: Clean and counterfactual prompts.
        kinds: Kinds of components: "heads", "mlps", "resid".
        roles: Roles to patch; those of the clean prompts by default.

    Raises:
        SiteError: A kind is unknown, none is given, or the prompts lack a role.
        ModelError: The model is being edited, or in training mode.
    """
    roles = patched_roles(pairs, kinds, roles)
    require_unedited(model)
    components = component_sites(model.shape.layers, model.shape.heads, kinds, "")
    parts = [_attribute(model, pairs, rows, kinds, roles) for rows in _batches(model, pairs)]
    effects, totals = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return PatchingEffects(
        model=model.name,
        contrast=pairs.contrast,
        components=tuple(site.component_name for site in components),
        roles=roles,
        answers=tuple(readout.name for readout in pairs.clean.readouts),
        per_prompt=mask_lacking_roles(effects, pairs, roles),
        total=totals,
        aligned_fraction=float(pairs.fully_aligned.float().mean()),
    )


def screened_patching(
    model: Model,
    pairs: PairBatch,
    *,
    kinds: Sequence[str] = ("heads", "mlps"),
    roles: Sequence[str] | None = None,
    cells: ExactCells = _EXACT_CELLS,
) -> PatchingEffects:
    """Attribution patching of all cells, with exact effects where they matter.

    The strongest cells and a random sample are patched exactly and take these effects; the random
    ones give the error of the screen. Other arguments and errors as in `attribution_patching`.
    """
    screen = attribution_patching(model, pairs, kinds=kinds, roles=roles)
    means = screen.mean.nan_to_num().abs().amax(-1)
    live = means.flatten().nonzero()[:, 0]
    order = live[means.flatten()[live].argsort(descending=True)].numpy()
    rng = np.random.default_rng(cells.seed)
    drawn = rng.permutation(len(order))[: cells.random]
    chosen = order[np.union1d(np.arange(min(cells.top, len(order))), drawn)]
    every = torch.arange(len(pairs))[:, None]
    if not len(chosen):
        return screen
    component, role = torch.from_numpy(chosen // len(screen.roles)), chosen % len(screen.roles)
    role = torch.from_numpy(role)
    sites = [
        replace(Site.parse(screen.components[c]), role=screen.roles[r])
        for c, r in zip(component.tolist(), role.tolist(), strict=True)
    ]
    exact = rearrange(
        patch_cells(model, pairs, sites)[0], "cell prompt answer -> prompt cell answer"
    )
    approximate = screen.per_prompt[:, component, role]
    exact = exact.masked_fill(approximate.isnan(), torch.nan)
    per_prompt = screen.per_prompt.index_put((every, component, role), exact)
    check = ScreenCheck(
        screen.model,
        screen.contrast,
        cells=len(order),
        exact=len(chosen),
        random=len(drawn),
        **_agreement(approximate.nanmean(0), exact.nanmean(0), np.isin(chosen, order[drawn])),
    )
    return replace(screen, per_prompt=per_prompt, screen=check)


def _agreement(
    approximate: Float[Tensor, "cell answer"],
    exact: Float[Tensor, "cell answer"],
    is_random: Bool[np.ndarray, " cell"],
) -> dict[str, Any]:
    """Numbers of a `ScreenCheck`, from mean effects of the cells that were patched exactly."""
    a, b = approximate[is_random].flatten().numpy(), exact[is_random].flatten().numpy()
    top = min(_COMPARED_TOP, len(exact))
    strongest = [
        set(effect.abs().amax(1).argsort(descending=True)[:top].tolist())
        for effect in (approximate, exact)
    ]
    return {
        "spearman": float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
        if len(a) > 1
        else float("nan"),
        "mean_absolute_error": float(np.abs(a - b).mean()) if len(a) else float("nan"),
        "mean_absolute_effect": float(np.abs(b).mean()) if len(a) else float("nan"),
        "top": top,
        "top_recall": len(strongest[0] & strongest[1]) / top,
    }


def _batches(model: Model, pairs: PairBatch) -> tuple[Int[Tensor, " row"], ...]:
    shape, width = model.shape, pairs.clean.ids.shape[1]
    floats = _FLOATS_PER_UNIT * width * shape.layers * shape.d_model
    return torch.arange(len(pairs)).split(max(1, _MAX_GRADIENT_FLOATS // floats))


def _attribute(
    model: Model,
    pairs: PairBatch,
    rows: Int[Tensor, " row"],
    kinds: Sequence[str],
    roles: Sequence[str],
) -> tuple[Float[Tensor, "row part role answer"], Float[Tensor, "row answer"]]:
    """Effects and total effect of some of the pairs."""
    device, measure = model.device, pair_logit_diffs(pairs, model.device)
    other, clean = (
        (batch.ids[rows].to(device), batch.mask[rows].to(device), batch.positions[rows].to(device))
        for batch in (pairs.counterfactual, pairs.clean)
    )
    source = record_run(model, *other, for_restarts=False)
    source = source.realigned(pairs.source_positions[rows].to(device))
    after = measure(source.logits, rows.to(device))
    hooks = {kind: _HOOKS[kind] for kind in _HOOKS if kind in kinds}
    with torch.enable_grad(), _retaining(model, [*hooks.values()]) as kept:
        before = measure(model.forward(*clean), rows.to(device))
    sources = {"resid": source.resid, "heads": source.z, "mlps": source.mlp_out}
    masks = torch.stack([pairs.role_mask(role)[rows] for role in roles], 1).to(before)
    by_answer = []
    for answer in range(before.shape[1]):
        grads = torch.autograd.grad(
            before[:, answer].sum(), [*kept.values()], retain_graph=True, materialize_grads=True
        )
        slopes = dict(zip(kept, grads, strict=True))
        products = [
            _products(kept[name], sources[kind][layer], slopes[name])
            for layer in range(model.shape.layers)
            for kind, hook in hooks.items()
            for name in [f"blocks.{layer}.{hook}"]
        ]
        by_answer.append(
            einsum(torch.cat(products, -1), masks, "row p part, row role p -> row part role")
        )
    return torch.stack(by_answer, -1), before.detach() - after


def _products(
    clean: Float[Tensor, "row p *part d"],
    source: Float[Tensor, "row p *part d"],
    grad: Float[Tensor, "row p *part d"],
) -> Float[Tensor, "row p part"]:
    """First-order effect of each component at each position."""
    effect = ((clean.detach() - source) * grad).sum(-1)
    return effect if effect.ndim == 3 else effect[..., None]


@contextmanager
def _retaining(model: Model, hooks: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep activations of all layers with their autograd graph, which starts at the embeddings."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        # Autograd gives gradients only at what a hook returns.
        kept[name] = value.view_as(value)
        return kept[name]

    names = [f"blocks.{layer}.{hook}" for layer in range(model.shape.layers) for hook in hooks]
    start = {"hook_embed": lambda value: value.detach().requires_grad_()}
    with model.editing(start | {name: partial(keep, name) for name in names}):
        yield kept
