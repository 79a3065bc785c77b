"""Distributed alignment search for the operation, with its controls."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool

from probes.interventions.interchange import (
    InterchangeRuns,
    interchange_intervention,
    run_interchange_pairs,
)
from probes.interventions.interchange_outcomes import NUMBER_READOUT, OBJECT_READOUT
from probes.interventions.result import DASResult, DecodingResult
from probes.interventions.subspaces.das import DASObjective, DASSettings, Subspace, das
from probes.interventions.subspaces.directions import operation_direction, patch_direction
from probes.interventions.subspaces.geometry import (
    decode_labels,
    intrinsic_dimension,
    off_manifold_distance,
)
from probes.models.model import Model, random_init
from probes.models.site import Site, joined_roles
from probes.prompts.interchange_pairs import OBJECT, OPERATION, InterchangePairs
from probes.stats.intervals import Estimate, proportion

MIN_FRACTION_OF_FULL = 0.9
"""Fraction of the full state's accuracy at which a subspace carries the variable."""

FEWEST_LEFT_OUT = 8
"""Fewest runs that the number of directions is chosen on apart from those of the search."""

MAX_RANDOM_INIT_ACCURACY = 0.2
"""Largest accuracy in a random-init model at which the search is trusted."""


def interchange_objective(runs: InterchangeRuns, site: Site, variable: str) -> DASObjective:
    """DAS objective: the answer that takes one variable from sources about another object."""
    pairs = runs.interchange_pairs
    answer = OBJECT_READOUT if variable == OBJECT else NUMBER_READOUT
    labels = pairs.object_labels if variable == OBJECT else pairs.number_labels
    return DASObjective(
        clean=runs.clean,
        source=runs.sources["other"],
        token_mask=runs.role_masks[site.role],
        readout=answer,
        target=runs.outcome_tokens[answer][:, labels.index(variable)],
    )


def search_subspace(
    search_runs: InterchangeRuns,
    evaluation_runs: InterchangeRuns,
    site: Site,
    *,
    dimensions: tuple[int, ...] = (1, 2, 4, 8),
    seed: int = 0,
) -> DASResult:
    """Find the fewest directions that carry the operation at a site, and evaluate controls.

    Subspaces are searched on two thirds of the search runs, and the third that is left out chooses
    their number of directions. With so few runs that less than `FEWEST_LEFT_OUT` would be left out,
    the runs that they are searched on choose it. A subspace that was chosen is not searched again:
    another search may end elsewhere.

    Args:
        search_runs: Runs to search on.
        evaluation_runs: Runs of the same model to evaluate on; nothing is chosen on them.
        site: Residual site of both.
        dimensions: Numbers of directions to try in turn; the first that suffices ends the search.
        seed: Of searches, permutations and the runs that are left out.
    """
    settings, left_out = DASSettings(seed=seed), _leave_out(search_runs, seed)
    objective = _without(interchange_objective(search_runs, site, OPERATION), left_out)
    judged = left_out if left_out.any() else ~left_out
    full_state = float(_full_state_hits(search_runs, site)[judged].mean())
    tried: list[Subspace] = []
    accuracy = 0.0
    for dims in dimensions:
        tried.append(das(objective, site, dims=dims, settings=settings))
        accuracy = float(patch_direction(search_runs, tried[-1])[judged].mean())
        if _suffices(accuracy, full_state):
            break
    subspace, dims = tried[-1], len(tried[-1].basis)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(objective.target)))
    permuted = replace(objective, target=objective.target[order.to(objective.target.device)])
    control = _least_effective_site(search_runs, evaluation_runs, site)

    def control_accuracy(control_objective: DASObjective, where: Site) -> Estimate:
        searched = _without(control_objective, left_out)
        found = das(searched, where, dims=dims, settings=settings)
        return proportion(patch_direction(evaluation_runs, found))

    base_states, source_states = (
        evaluation_runs.states(site),
        evaluation_runs.states(site, "other"),
    )
    patched = subspace.replace_projection(base_states, source_states)
    natural = torch.cat([search_runs.states(site), search_runs.states(site, "other")])
    mean_direction = operation_direction(search_runs, site)
    return DASResult(
        full_state=proportion(_full_state_hits(evaluation_runs, site)),
        dimensions_tried=dimensions[: len(tried)],
        accuracies=tuple(proportion(patch_direction(evaluation_runs, each)) for each in tried),
        min_dimensions=dims if _suffices(accuracy, full_state) else None,
        mean_difference=proportion(patch_direction(evaluation_runs, mean_direction)),
        permuted_labels=control_accuracy(permuted, site),
        control_site=None
        if control is None
        else control_accuracy(interchange_objective(search_runs, control, OPERATION), control),
        random_init=_random_init_accuracy(search_runs, evaluation_runs, site, dims, settings),
        off_manifold_distance=float(off_manifold_distance(natural, patched).median()),
        state_dimension=intrinsic_dimension(natural),
        subspace=subspace,
        left_out=int(left_out.sum()),
    )


def _suffices(accuracy: float, full_state: float) -> bool:
    return 0 < MIN_FRACTION_OF_FULL * full_state <= accuracy


def _leave_out(runs: InterchangeRuns, seed: int) -> Bool[np.ndarray, " prompt"]:
    """Runs that the search leaves out: a third, or none where these would be too few."""
    count = len(runs) // 3
    if count < FEWEST_LEFT_OUT:
        return np.zeros(len(runs), dtype=bool)
    return np.random.default_rng(seed).permutation(len(runs)) < count


def _without(objective: DASObjective, left_out: Bool[np.ndarray, " prompt"]) -> DASObjective:
    """The objective of the other prompts: one without a token to patch is not searched on."""
    searched = torch.from_numpy(~left_out).to(objective.token_mask.device)
    return replace(objective, token_mask=objective.token_mask & searched[:, None])


def _full_state_hits(runs: InterchangeRuns, site: Site) -> np.ndarray:
    resid = runs.clean.resid
    identity = torch.eye(resid.shape[-1], device=resid.device)
    return patch_direction(runs, Subspace(site.layer, site.role, "means", identity))


def _least_effective_site(
    search_runs: InterchangeRuns, evaluation_runs: InterchangeRuns, site: Site
) -> Site | None:
    """Site of the same layer with the least effect though states differ; None if none differ."""
    roles = [role for role in search_runs.roles if role in evaluation_runs.roles]
    sites = [replace(site, role=role) for role in roles if role not in site.role.split("+")]
    clean, source = (
        run.resid[site.layer] for run in (search_runs.clean, search_runs.sources["other"])
    )
    differs = (clean != source).any(-1)
    sites = [s for s in sites if bool((differs & search_runs.role_masks[s.role]).any(-1).all())]
    if not sites:
        return None
    rates = interchange_intervention(search_runs, sites).takes_variable(OPERATION).mean(1)
    return sites[int(rates.argmin())]


def _random_init_accuracy(
    search_runs: InterchangeRuns,
    evaluation_runs: InterchangeRuns,
    site: Site,
    dims: int,
    settings: DASSettings,
) -> Estimate:
    """Accuracy of a subspace found in a random-init model, for the same answers."""
    model = random_init(search_runs.model, seed=settings.seed)

    def run(runs: InterchangeRuns) -> InterchangeRuns:
        pairs = runs.interchange_pairs
        return run_interchange_pairs(model, pairs, joined_roles=joined_roles(site))

    # One after the other: the runs of a large model take much memory.
    objective = interchange_objective(run(search_runs), site, OPERATION)
    objective = _without(objective, _leave_out(search_runs, settings.seed))
    subspace = das(objective, site, dims=dims, settings=settings)
    del objective
    return proportion(patch_direction(run(evaluation_runs), subspace))


def decode_object(
    model: Model, interchange_pairs: InterchangePairs, site: Site, *, seed: int = 0
) -> DecodingResult:
    """Decode the object from the states of the bases at a site.

    Raises:
        BatchError: An object occurs in one base only.
    """
    runs = run_interchange_pairs(model, interchange_pairs, joined_roles=joined_roles(site))
    objects = [str(pair.clean[OBJECT]) for pair in interchange_pairs.other]
    labels = torch.tensor([sorted(set(objects)).index(name) for name in objects])
    return decode_labels(runs.states(site), labels, seed=seed)
