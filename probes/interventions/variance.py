"""Which share of a site's variance goes with the operation, the numbers, the object, the words."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from probes.interventions.interchange import Crossed
from probes.models.site import Cell
from probes.prompts.interchange_pairs import OPERATION
from probes.prompts.question import Question

FACTORS = ("operation", "x", "y", "thing", "name", "verb", "frame")


def variance_shares(
    crossed: Crossed, cells: Sequence[Cell]
) -> dict[str, Float[np.ndarray, " site"]]:
    """Say which share of the states' variance goes with each factor, site by site.

    It is omega squared (Hays 1963) summed over dimensions, of bases and sources together: about 0,
    or just below, where a factor explains no more than chance; NaN where some base lacks the role.
    Factors overlap.
    """
    found = crossed.crossings
    asked = [pair.clean for pair in found.other] + [pair.counterfactual for pair in found.other]
    levels = {factor: _levels(asked, factor) for factor in FACTORS}
    shares = {factor: np.full(len(cells), np.nan) for factor in FACTORS}
    for n, cell in enumerate(cells):
        if not bool(crossed.where[cell.role].any(-1).all()):
            continue
        states = torch.cat([crossed.states(cell), crossed.states(cell, "other")]).double()
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
    centred = states - states.mean(0)
    place = torch.from_numpy(index).to(states.device)
    counts = torch.bincount(place, minlength=kinds)[:, None]
    sums = torch.zeros(kinds, states.shape[1], dtype=states.dtype, device=states.device)
    sums.index_add_(0, place, centred)
    total, between = float(centred.square().sum()), float((sums.square() / counts).sum())
    noise = (total - between) / (rows - kinds)
    return (between - (kinds - 1) * noise) / (total + noise) if total > 0 else 0.0


def _levels(asked: Sequence[Question], factor: str) -> Shaped[np.ndarray, " row"]:
    def level(question: Question) -> str:
        slots = dict(question.slots)
        if factor == OPERATION:
            return question.pattern
        if factor == "frame":
            return question.frame
        return str(slots.get({"verb": "op"}.get(factor, factor), ""))

    return np.array([level(question) for question in asked])
