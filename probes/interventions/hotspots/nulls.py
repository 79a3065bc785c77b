"""Nulls of hotspots: what the best site reaches in random-init models, or by chance."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.screening.sites import SiteScreen, screen_sites
from probes.interventions.site_search import SiteSearch, inner_sites, takes_only
from probes.models.model import Model, random_init
from probes.prompts.interchange_pairs import InterchangePairs
from probes.stats.null_threshold import conformal_threshold


def best_null_rates(
    model: Model,
    pairs: InterchangePairs,
    variables: tuple[str, ...],
    screen: SiteScreen | None,
    *,
    seed: int,
) -> Float[np.ndarray, " variable"]:
    """Rate of the best site in a random-init model, searched and scored on one set.

    Sites are screened as they are in the model itself. The last rate is that of all variables of
    the number together.
    """
    runs = run_interchange_pairs(random_init(model, seed=seed), pairs)
    every = (*variables, pairs.source_label)
    if screen:
        outcomes = screen_sites(runs, variables, screen).outcomes[0]
    else:
        outcomes = interchange_intervention(runs, inner_sites(runs))
    return np.array([takes_only(outcomes, variable).mean(1).max() for variable in every])


def permuted_rates(
    search: SiteSearch, variables: Sequence[str], draws: int, *, seed: int
) -> list[Float[np.ndarray, " variable"]]:
    """Rates of the best site when each base is scored by the answers of another base.

    A null that needs no other model: it gives what answers in the range of the pattern hit by
    chance, at the best of the searched sites. The last rate is that of all variables of the number
    together.
    """
    runs, outcomes = search.runs, search.outcomes[0]
    rng, count = np.random.default_rng(seed), len(search.runs)
    every, rates = (*variables, runs.interchange_pairs.source_label), []
    for _ in range(draws):
        # Each base takes another one's answers, never its own.
        order = rng.permutation(count)
        order[order] = np.roll(order, 1)
        swapped = tuple(tokens.cpu()[torch.from_numpy(order)] for tokens in runs.outcome_tokens)
        drawn = outcomes.scored_by(swapped)
        rates.append(np.array([takes_only(drawn, name).mean(1).max() for name in every]))
    return rates


def null_thresholds(
    rates: Sequence[Float[np.ndarray, " variable"]], variables: Sequence[str]
) -> dict[str, float]:
    """Threshold of each variable from the rates of the draws of a null."""
    if not rates:
        return dict.fromkeys(variables, float("nan"))
    return dict(zip(variables, map(float, conformal_threshold(np.array(rates))), strict=True))
