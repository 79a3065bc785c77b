"""Screened patching: attribution patching of every cell, exact patching of the strongest.

A cell is a component at a role.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from probes.interventions.attribution_patching import attribute_pairs, attribution_patching
from probes.interventions.result import ScreenCheck
from probes.interventions.sweep import PatchingEffects, patch_cells
from probes.models.model import Model
from probes.models.site import Site
from probes.prompts.tokens.pair_batch import PairBatch

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
    and a random sample are patched exactly and take these effects; the random ones give the error.
    """
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
    first, _ = attribute_pairs(model, pairs, parts, count=_PATH_PAIRS, points=_PATH_POINTS)
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
