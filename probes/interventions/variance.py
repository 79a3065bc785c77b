"""Which share of a site's variance goes with the operation, the numbers, the object, the words."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from probes.interventions.interchange import InterchangeRuns
from probes.models.site import Site
from probes.prompts.interchange_pairs import OPERATION
from probes.prompts.question import Question

FACTORS = ("operation", "x", "y", "thing", "name", "verb", "frame")


def variance_fractions(
    runs: InterchangeRuns, sites: Sequence[Site]
) -> dict[str, Float[np.ndarray, " site"]]:
    """Say which share of the states' variance goes with each factor, site by site.

    It is omega squared (Hays 1963) summed over dimensions, of bases and sources together: about 0,
    or just below, where a factor explains no more than chance; NaN where some base lacks the role.
    Factors overlap.
    """
    found = runs.interchange_pairs
    asked = [pair.clean for pair in found.other] + [pair.counterfactual for pair in found.other]
    levels = {factor: _factor_levels(asked, factor) for factor in FACTORS}
    shares = {factor: np.full(len(sites), np.nan) for factor in FACTORS}
    for n, cell in enumerate(sites):
        if not bool(runs.role_masks[cell.role].any(-1).all()):
            continue
        states = torch.cat([runs.states(cell), runs.states(cell, "other")]).double()
        for factor, level in levels.items():
            shares[factor][n] = omega_squared(states, level)
    return shares


def omega_squared(
    states: Float[Tensor, "row d_model"], levels: Shaped[np.ndarray, " row"]
) -> float:
    """Return the share of variance that goes with a factor, corrected for how many levels it has.

    Source: Hays 1963. NaN where the factor has one level, or as many as there are rows.
    """
    names, index = np.unique(levels, return_inverse=True)
    rows, kinds = len(levels), len(names)
    if not 1 < kinds < rows:
        return float("nan")
    centered = states - states.mean(0)
    place = torch.from_numpy(index).to(states.device)
    counts = torch.bincount(place, minlength=kinds)[:, None]
    sums = torch.zeros(kinds, states.shape[1], dtype=states.dtype, device=states.device)
    sums.index_add_(0, place, centered)
    total, between = float(centered.square().sum()), float((sums.square() / counts).sum())
    noise = (total - between) / (rows - kinds)
    return (between - (kinds - 1) * noise) / (total + noise) if total > 0 else 0.0


def _factor_levels(questions: Sequence[Question], factor: str) -> Shaped[np.ndarray, " row"]:
    def level(question: Question) -> str:
        slots = dict(question.slots)
        if factor == OPERATION:
            return question.pattern
        if factor == "frame":
            return question.template
        return str(slots.get({"verb": "op"}.get(factor, factor), ""))

    return np.array([level(question) for question in questions])
