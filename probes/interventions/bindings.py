"""Bindings: which number belongs to which of two objects, swapped by their vectors."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probes.errors import SiteError
from probes.interventions.interchange import (
    InterchangeRuns,
    interchange_intervention,
    with_residual,
)
from probes.interventions.interchange_outcomes import NUMBER_READOUT
from probes.interventions.result import BindingSwap
from probes.models.site import Site
from probes.prompts.interchange_pairs import OBJECT
from probes.stats.intervals import proportion


def swap_bindings(runs: InterchangeRuns, *, seed: int = 0) -> tuple[BindingSwap, ...]:
    """Swap the binding vectors of two objects, before each block in turn.

    The mean difference between the tokens of the two objects is added to one and subtracted from
    the other; nouns cancel in the mean (Feng and Steinhardt 2023, arXiv:2310.17191). The number
    should become that of the other object after the operation; bases where there are too few of
    those for it are not counted in what is swapped.

    Raises:
        SiteError: The prompts have one object only.
    """
    roles = (OBJECT, f"other_{OBJECT}")
    if lacking := [role for role in roles if role not in runs.role_masks]:
        raise SiteError(
            f"Bindings need two objects: the prompts lack the role {', '.join(lacking)}"
        )
    other_number, is_possible = _other_object_tokens(runs)
    masks = [runs.role_masks[role] for role in roles]
    joined = replace(runs, role_masks={**runs.role_masks, "both": masks[0] | masks[1]})
    generator = torch.Generator().manual_seed(seed)
    swaps = []
    for layer in range(runs.model.shape.layers):
        first, second = (runs.states(Site(layer, "resid", role)).mean(0) for role in roles)
        step = second - first
        noise = torch.randn(step.shape, generator=generator).to(step)
        outcomes = []
        for shift in (step, noise * step.norm() / noise.norm()):
            resid = runs.clean.resid[layer] + torch.where(masks[0][..., None], shift, 0.0)
            resid = resid - torch.where(masks[1][..., None], shift, 0.0)
            source = with_residual(runs, layer, resid)
            site = Site(layer, "resid", "both")
            outcomes.append(interchange_intervention(joined, [site], source=source))
        swapped, random_swapped = (
            proportion((predicted == other_number).numpy()[is_possible])
            for predicted in (one.predicted_tokens[NUMBER_READOUT][0] for one in outcomes)
        )
        unchanged = proportion(outcomes[0].unchanged()[0])
        swaps.append(BindingSwap(layer, swapped, unchanged, random_swapped))
    return tuple(swaps)


def _other_object_tokens(
    runs: InterchangeRuns,
) -> tuple[Int[Tensor, " prompt"], Bool[np.ndarray, " prompt"]]:
    """Last token of the number of the other object after the operation, and whether it is >= 0."""
    sign = 1 if runs.interchange_pairs.pattern.removesuffix("-told").endswith("-more") else -1
    bases = [pair.clean for pair in runs.interchange_pairs.other]
    numbers = np.array([int(base["d"]) + sign * int(base["y"]) for base in bases])
    encoded = runs.model.tokenizer([f" {n}" for n in numbers], add_special_tokens=False).input_ids
    return torch.tensor([ids[-1] for ids in encoded]), numbers >= 0
