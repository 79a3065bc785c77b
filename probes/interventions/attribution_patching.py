"""Attribution patching of single sites: a screen for exact activation patching.

    effect of a site ≈ <a - a', gradient of the logit difference at a>

a, a': activations of the site in the clean and in the counterfactual run; the gradient is that of
the clean run (Nanda 2023; Kramár et al. 2024, arXiv:2403.00745). One pass on each side and one
backward pass give every component × role, where exact patching runs the model once for each.
Outputs of heads and MLPs are patched, not queries and keys, so that no site stands directly before
a saturated softmax, which AtP* corrects. Sites that act by way of saturated attention still have
small gradients. `screened_patching` seeks them by a second gradient, and measures the error.
"""

from collections.abc import Iterator, Mapping, Sequence
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

from probes.interventions.cached_run import MLP, CachedRun, Z, record_run
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
_PATH_POINTS, _PATH_PAIRS = (1 / 6, 1 / 2, 5 / 6), 8  # Of the second screen for strong cells.


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
    batches = _batches(model, pairs, len(pairs))
    runs = [_attribute(model, pairs, rows, (kinds, roles)) for rows in batches]
    effects, totals = (torch.cat(part).cpu() for part in zip(*runs, strict=True))
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

    Strong cells are sought by two gradients, of which one finds what is saturated. The strongest
    and a random sample are patched exactly and take these effects; the random ones give the error.
    Other arguments and errors as in `attribution_patching`.
    """
    screen = attribution_patching(model, pairs, kinds=kinds, roles=roles)
    if not cells.top and not cells.random:
        return screen
    strength = _strength(model, pairs, screen, kinds)
    live = strength.flatten().nonzero()[:, 0]
    order = live[strength.flatten()[live].argsort(descending=True)].numpy()
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
        **_agreement(
            approximate.nanmean(0),
            exact.nanmean(0),
            strength[component, role],
            np.isin(chosen, order[drawn]),
        ),
    )
    return replace(screen, per_prompt=per_prompt, screen=check)


def _strength(
    model: Model, pairs: PairBatch, screen: PatchingEffects, kinds: Sequence[str]
) -> Float[Tensor, "component role"]:
    """Strength of each cell, by which the ones that are patched exactly are chosen.

    The larger of two approximations. The gradient of the clean run is right for most cells, but
    near 0 where the answer is saturated: there the mean gradient between the embeddings of both
    runs finds the strong cells (integrated gradients, Sundararajan et al. 2017, arXiv:1703.01365).
    """
    parts = (kinds, screen.roles)
    runs = [
        _attribute(model, pairs, rows, parts, _PATH_POINTS)[0].cpu()
        for rows in _batches(model, pairs, _PATH_PAIRS)
    ]
    first = torch.cat(runs)
    lacking = screen.per_prompt[: len(first)].isnan()
    along_path = first.masked_fill(lacking, torch.nan).nanmean(0).nan_to_num()
    return torch.maximum(screen.mean.nan_to_num().abs(), along_path.abs()).amax(-1)


def _agreement(
    approximate: Float[Tensor, "cell answer"],
    exact: Float[Tensor, "cell answer"],
    strength: Float[Tensor, " cell"],
    is_random: Bool[np.ndarray, " cell"],
) -> dict[str, Any]:
    """Numbers of a `ScreenCheck`, from mean effects of the cells that were patched exactly."""
    a, b = approximate[is_random].flatten().numpy(), exact[is_random].flatten().numpy()
    top = min(_COMPARED_TOP, len(exact))
    strongest = [
        set(size.argsort(descending=True)[:top].tolist())
        for size in (strength, exact.abs().amax(1))
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


def _batches(model: Model, pairs: PairBatch, count: int) -> tuple[Int[Tensor, " row"], ...]:
    """Numbers of the first pairs, in batches whose graphs fit into memory."""
    shape, width = model.shape, pairs.clean.ids.shape[1]
    floats = _FLOATS_PER_UNIT * width * shape.layers * shape.d_model
    return torch.arange(min(count, len(pairs))).split(max(1, _MAX_GRADIENT_FLOATS // floats))


def _attribute(
    model: Model,
    pairs: PairBatch,
    rows: Int[Tensor, " row"],
    parts: tuple[Sequence[str], Sequence[str]],
    points: Sequence[float] = (0.0,),
) -> tuple[Float[Tensor, "row part role answer"], Float[Tensor, "row answer"]]:
    """Effects and total effect of some of the pairs.

    Args:
        model, pairs: As in `attribution_patching`.
        rows: Numbers of the pairs.
        parts: Kinds of components, and roles.
        points: Where gradients are taken and averaged: 0 for the clean run, 1 for a run from the
            embeddings of the counterfactual.
    """
    device, measure = model.device, pair_logit_diffs(pairs, model.device)
    other, clean = (
        (batch.ids[rows].to(device), batch.mask[rows].to(device), batch.positions[rows].to(device))
        for batch in (pairs.counterfactual, pairs.clean)
    )
    # The run whose gradient is taken is the clean run itself, unless it starts along the path.
    base = record_run(model, *clean, for_restarts=False) if any(points) else None
    source = record_run(model, *other, for_restarts=False)
    source = source.realigned(pairs.source_positions[rows].to(device))
    row, moves = rows.to(device), pairs.has_counterpart[rows].to(device)[..., None]
    hooks = {kind: hook for kind, hook in _HOOKS.items() if kind in parts[0]}
    masks = torch.stack([pairs.role_mask(role)[rows] for role in parts[1]], 1).to(source.resid)
    slopes, start = [], None
    for point in points:
        if base:
            start = torch.where(moves, base.resid[0].lerp(source.resid[0], point), base.resid[0])
        with torch.enable_grad(), _retaining(model, [*hooks.values()], start) as kept:
            logit_diffs = measure(model.forward(*clean), row)
        slopes.append(
            [
                torch.autograd.grad(
                    each.sum(), [*kept.values()], retain_graph=True, materialize_grads=True
                )
                for each in logit_diffs.unbind(1)
            ]
        )
    own = _activations(base, hooks) if base else [value.detach() for value in kept.values()]
    before = measure(base.logits, row) if base else logit_diffs.detach()
    changes = [a - b for a, b in zip(own, _activations(source, hooks), strict=True)]
    effects = []
    for by_point in zip(*slopes, strict=True):
        gradients = [torch.stack(each).mean(0) for each in zip(*by_point, strict=True)]
        products = [_products(a, grad) for a, grad in zip(changes, gradients, strict=True)]
        effects.append(
            einsum(torch.cat(products, -1), masks, "row p part, row role p -> row part role")
        )
    return torch.stack(effects, -1), before - measure(source.logits, row)


def _activations(run: CachedRun, hooks: Mapping[str, str]) -> list[Tensor]:
    """Recorded activations in the order of `_retaining`."""
    by_kind = {"resid": run.resid, "heads": run.z, "mlps": run.mlp_out}
    return [by_kind[kind][layer] for layer in range(len(run.z)) for kind in hooks]


def _products(
    change: Float[Tensor, "row p *part d"], grad: Float[Tensor, "row p *part d"]
) -> Float[Tensor, "row p part"]:
    """First-order effect of each component at each position."""
    effect = (change * grad).sum(-1)
    return effect if effect.ndim == 3 else effect[..., None]


@contextmanager
def _retaining(
    model: Model, hooks: Sequence[str], start: Tensor | None
) -> Iterator[dict[str, Tensor]]:
    """Keep activations with their autograd graph, from an input of the first block."""
    kept: dict[str, Tensor] = {}
    names = [f"blocks.{layer}.{hook}" for layer in range(model.shape.layers) for hook in hooks]
    first = f"blocks.0.{RESID}"

    def keep(name: str, value: Tensor) -> Tensor:
        # Autograd gives gradients only at what a hook returns.
        kept[name] = value.view_as(value)
        return kept[name]

    def begin(value: Tensor) -> Tensor:
        value = (value if start is None else start).detach().requires_grad_()
        return keep(first, value) if first in names else value

    with model.editing({name: partial(keep, name) for name in names} | {first: begin}):
        yield kept
