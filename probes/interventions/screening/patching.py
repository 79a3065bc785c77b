"""Screened patching: attribution patching of every cell, exact patching of the strongest.

A cell is a component at a role.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from probes.interventions.attribution_patching import attribute_pairs, attribution_patching
from probes.interventions.screening.check import ScreenCheck
from probes.interventions.sweep import PatchingEffects, patch_cells
from probes.models.model import Model
from probes.models.site import Site
from probes.prompts.tokens.pair_batch import PairBatch

_COMPARED_TOP = 20  # Strongest cells whose recall is printed.
_PATH_POINTS = (1 / 6, 1 / 2, 5 / 6)  # Of the second screen for strong cells.

CHECKED_PAIRS = 8
"""Pairs of the second screen, and of the random cells that give the error."""


@dataclass(frozen=True, slots=True)
class ExactCells:
    """Cells, components at a role, that are patched exactly after a screen.

    Attributes:
        top: Number of strongest cells.
        random: Number of cells of a random sample among all whose activation changes at a role that
            one of the first 8 pairs has.
        seed: Seed of the sample.
    """

    top: int = 40
    random: int = 40
    seed: int = 0


_EXACT_CELLS = ExactCells()


def screened_patching(
    model: Model,
    pairs: PairBatch,
    *,
    kinds: Sequence[str] = ("heads", "mlps"),
    roles: Sequence[str] | None = None,
    cells: ExactCells = _EXACT_CELLS,
) -> PatchingEffects:
    """Attribution patching of all cells, then exact patching of some; see `confirm_exactly`.

    Other arguments and errors as in `attribution_patching`.
    """
    screen = attribution_patching(model, pairs, kinds=kinds, roles=roles)
    return confirm_exactly(model, pairs, screen, kinds=kinds, cells=cells)


def confirm_exactly(
    model: Model,
    pairs: PairBatch,
    screen: PatchingEffects,
    *,
    kinds: Sequence[str] = ("heads", "mlps"),
    cells: ExactCells = _EXACT_CELLS,
) -> PatchingEffects:
    """Effects of attribution patching with exact ones where they matter.

    Strong cells are sought by two gradients, of which one finds what is saturated. The strongest
    are patched exactly and take these effects. A random sample, which is patched exactly on the
    first 8 pairs, gives the error; its cells take exact effects where there are no more pairs.
    """
    if not cells.top and not cells.random:
        return screen
    strength = screen.mean.nan_to_num().abs().amax(-1)
    if cells.top:
        strength = torch.maximum(strength, _strength_along_path(model, pairs, screen, kinds))
    live = strength.flatten().nonzero()[:, 0]
    order = live[strength.flatten()[live].argsort(descending=True)].numpy()
    # Pairs that give the error of the screen may all lack a role that others have.
    checkable = order[_has_role(screen.per_prompt[:CHECKED_PAIRS])[order]]
    drawn = np.random.default_rng(cells.seed).permutation(checkable)[: cells.random]
    strongest = order[: cells.top]
    if not len(strongest) and not len(drawn):
        return screen
    at, exact = _patch_exactly(model, pairs, screen, strongest)
    sample, few = np.setdiff1d(drawn, strongest), pairs.first(CHECKED_PAIRS)
    checked_at, checked = _patch_exactly(model, few, screen, sample)
    component, role = (torch.cat(each) for each in zip(at, checked_at, strict=True))
    both = torch.cat([exact[: len(few)], checked], 1)
    if len(few) == len(pairs):
        at, exact = (component, role), both
    known = torch.from_numpy(_has_role(both[:, :, None]))
    check = ScreenCheck(
        screen.model,
        screen.contrast,
        cells=len(order),
        exact=len(component),
        random=len(drawn),
        **agreement(
            screen.per_prompt[: len(few), component, role].nanmean(0)[known],
            both.nanmean(0)[known],
            strength[component, role][known],
            np.isin(np.concatenate([strongest, sample]), drawn)[known.numpy()],
        ),
    )
    every = torch.arange(len(pairs))[:, None]
    per_prompt = screen.per_prompt.index_put((every, *at), exact)
    return replace(screen, per_prompt=per_prompt, screen=check)


def _has_role(
    per_prompt: Float[Tensor, "prompt component role answer"],
) -> Bool[np.ndarray, " cell"]:
    """Whether some prompt has the role of each cell; the effect of those without it is NaN."""
    return (~per_prompt.isnan()).any(-1).any(0).flatten().cpu().numpy()


def _patch_exactly(
    model: Model, pairs: PairBatch, screen: PatchingEffects, chosen: Int[np.ndarray, " cell"]
) -> tuple[tuple[Tensor, Tensor], Float[Tensor, "prompt cell answer"]]:
    """Component and role of each of some cells of a screen, and exact effects on these pairs."""
    number = torch.from_numpy(chosen)
    component, role = number // len(screen.roles), number % len(screen.roles)
    approximate = screen.per_prompt[: len(pairs), component, role]
    if not len(chosen):
        return (component, role), approximate
    sites = [
        replace(Site.parse(screen.components[c]), role=screen.roles[r])
        for c, r in zip(component.tolist(), role.tolist(), strict=True)
    ]
    exact = rearrange(
        patch_cells(model, pairs, sites)[0], "cell prompt answer -> prompt cell answer"
    )
    return (component, role), exact.masked_fill(approximate.isnan(), torch.nan)


def _strength_along_path(
    model: Model, pairs: PairBatch, screen: PatchingEffects, kinds: Sequence[str]
) -> Float[Tensor, "component role"]:
    """Strength of each cell by the mean gradient between the embeddings of both runs.

    The gradient of the clean run is right for most cells, but near 0 where the answer is saturated:
    there this one finds the strong cells (integrated gradients, Sundararajan et al. 2017,
    arXiv:1703.01365).
    """
    parts = (kinds, screen.roles)
    first, _ = attribute_pairs(model, pairs, parts, count=CHECKED_PAIRS, points=_PATH_POINTS)
    lacking = screen.per_prompt[: len(first)].isnan()
    return first.masked_fill(lacking, torch.nan).nanmean(0).nan_to_num().abs().amax(-1)


def agreement(
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
        "top_recall": len(strongest[0] & strongest[1]) / top if top else float("nan"),
    }
