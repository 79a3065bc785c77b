"""How few directions carry the operation at a site, and whether a search can be fooled there."""

from dataclasses import replace

import numpy as np
import torch

from probes.interventions.directions import operation_direction, patch_direction
from probes.interventions.geometry import decode_labels, intrinsic_dimension, off_manifold_distance
from probes.interventions.interchange import (
    NUMBER_READOUT,
    InterchangeRuns,
    interchange_intervention,
    run_interchange_pairs,
)
from probes.interventions.result import DASResult, DecodingResult
from probes.interventions.subspace import Subspace, das
from probes.models.model import Model, random_init
from probes.models.site import Site, joined_roles
from probes.prompts.interchange_pairs import OBJECT, OPERATION, InterchangePairs
from probes.stats.intervals import Estimate, proportion

MIN_FRACTION_OF_FULL = 0.9
"""Share of what the whole state does that a subspace must do to carry the variable."""

MAX_RANDOM_INIT_ACCURACY = 0.2
"""What a search may reach in an untrained model before the method itself is in doubt."""


def search_subspace(
    search_runs: InterchangeRuns, evaluation_runs: InterchangeRuns, site: Site, *, dimensions: tuple[int, ...] = (1, 2, 4, 8),
    seed: int = 0,
) -> DASResult:  # fmt: skip
    """Search for the directions that carry the operation at a site, and for what chance finds.

    Distributed alignment search; see `das`. The search stops at the first size that is enough.

    Args:
        finding: Runs to search on.
        judging: Runs to judge on, of the same model.
        cell: A residual site of both.
        sizes: Numbers of directions to try, from few to many.
        seed: Of searches and permutations.
    """
    target = _target_tokens(search_runs)
    whole = proportion(_full_state_hits(evaluation_runs, site))
    found: list[tuple[int, Subspace, Estimate]] = []
    for size in dimensions:
        space = _run_das(search_runs, site, size, target, seed)
        found.append((size, space, proportion(patch_direction(evaluation_runs, space))))
        if 0 < MIN_FRACTION_OF_FULL * whole.value <= found[-1][2].value:
            break
    size, space, best = found[-1]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(target)))
    lost = _run_das(search_runs, site, size, target[order.to(target.device)], seed)
    quiet = _least_effective_site(search_runs, evaluation_runs, site)
    strange = _random_init_accuracy(search_runs, evaluation_runs, site, size, seed)
    clean, theirs = evaluation_runs.states(site), evaluation_runs.states(site, "other")
    natural = torch.cat([search_runs.states(site), search_runs.states(site, "other")])
    return DASResult(
        full_state=whole,
        dimensions_tried=tuple(n for n, _, _ in found),
        accuracies=tuple(value for _, _, value in found),
        min_dimensions=size if 0 < MIN_FRACTION_OF_FULL * whole.value <= best.value else None,
        mean_difference=proportion(
            patch_direction(evaluation_runs, operation_direction(search_runs, site))
        ),
        permuted_labels=proportion(patch_direction(evaluation_runs, lost)),
        control_site=None
        if quiet is None
        else proportion(
            patch_direction(evaluation_runs, _run_das(search_runs, quiet, size, target, seed))
        ),
        random_init=strange,
        off_manifold_distance=float(
            off_manifold_distance(natural, space.replace_projection(clean, theirs)).median()
        ),
        state_dimension=intrinsic_dimension(natural),
        subspace=space,
    )


def _target_tokens(runs: InterchangeRuns) -> torch.Tensor:
    """Return the token that the operation alone would make each base say."""
    return runs.outcome_tokens[NUMBER_READOUT][
        :, runs.interchange_pairs.number_labels.index(OPERATION)
    ]


def _full_state_hits(evaluation_runs: InterchangeRuns, site: Site) -> np.ndarray:
    every = torch.eye(
        evaluation_runs.clean.resid.shape[-1], device=evaluation_runs.clean.resid.device
    )
    return patch_direction(evaluation_runs, Subspace(site.layer, site.role, "means", every))


def _run_das(
    runs: InterchangeRuns, site: Site, dims: int, target: torch.Tensor, seed: int
) -> Subspace:
    return das(
        runs.clean,
        runs.sources["other"],
        runs.role_masks[site.role],
        layer=site.layer,
        role=site.role,
        dims=dims,
        readout=NUMBER_READOUT,
        target=target,
        seed=seed,
    )


def _least_effective_site(
    search_runs: InterchangeRuns, evaluation_runs: InterchangeRuns, site: Site
) -> Site | None:
    """Return the site of the same layer that hands over least, though it differs; if any does."""
    roles = [
        r for r in search_runs.roles if r in evaluation_runs.roles and r not in site.role.split("+")
    ]
    cells = [replace(site, role=role) for role in roles]
    clean, theirs = (r.resid[site.layer] for r in (search_runs.clean, search_runs.sources["other"]))
    differs = (clean != theirs).any(-1)
    cells = [c for c in cells if bool((differs & search_runs.role_masks[c.role]).any(-1).all())]
    if not cells:
        return None
    takes = interchange_intervention(search_runs, cells).takes_variable(OPERATION).mean(1)
    return cells[int(takes.argmin())]


def _random_init_accuracy(
    search_runs: InterchangeRuns, evaluation_runs: InterchangeRuns, site: Site, dims: int, seed: int
) -> Estimate:
    """Search in an untrained model, for the same answers."""
    null = random_init(search_runs.model, seed=seed)
    here, there = (
        run_interchange_pairs(null, runs.interchange_pairs, joined_roles=joined_roles(site))
        for runs in (search_runs, evaluation_runs)
    )
    return proportion(
        patch_direction(there, _run_das(here, site, dims, _target_tokens(here), seed))
    )


def decode_object(
    model: Model, interchange_pairs: InterchangePairs, site: Site, *, seed: int = 0
) -> DecodingResult:
    """Say whether the object can be read from a site's states, one base a row.

    Raises:
        BatchError: An object stands in one base only.
    """
    crossed = run_interchange_pairs(model, interchange_pairs, joined_roles=joined_roles(site))
    words = [str(pair.clean[OBJECT]) for pair in interchange_pairs.other]
    labels = torch.tensor([sorted(set(words)).index(word) for word in words])
    return decode_labels(crossed.states(site), labels, seed=seed)
