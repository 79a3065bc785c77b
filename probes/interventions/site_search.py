"""Search for the site of the residual stream that holds a variable."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float

from probes.interventions.interchange import (
    InterchangeRuns,
    interchange_intervention,
    run_interchange_pairs,
)
from probes.interventions.interchange_outcomes import (
    NUMBER_READOUT,
    OBJECT_READOUT,
    InterchangeOutcomes,
)
from probes.interventions.screening.check import ScreenCheck
from probes.models.model import Model
from probes.models.site import Site, joined_roles
from probes.prompts.interchange_pairs import BASE, OBJECT, OPERATION, InterchangePairs
from probes.prompts.pattern import Pattern

EQUIVALENCE_MARGIN = 0.1
"""Largest difference of two fractions that counts as equal."""

MIN_FRACTION = 0.03
"""Fraction that a role must reach to be one of two joined roles."""

_MOST_PAIRS = 4
"""Pairs of roles that are tried for each variable of a screened model."""


def variables_of(interchange_pairs: InterchangePairs) -> tuple[str, ...]:
    """Variables of interchange pairs: operation and operands, then the object."""
    labels = interchange_pairs.number_labels
    return (*(label for label in labels if label != BASE and " " not in label), OBJECT)


def search_words(pattern: Pattern, *, held_out: bool = False) -> dict[str, list[str]]:
    """Words for site search: every second noun, in all slots of nouns; or the held-out others."""
    slots = {slot for template in pattern.templates for slot in template.slots}
    nouns = list(pattern.lexicon.words("noun")[int(held_out) :: 2])
    return {slot: nouns for slot in sorted(slots) if pattern.lexicon.kind_of(slot) == "noun"}


def takes_only(outcomes: InterchangeOutcomes, variable: str) -> Bool[np.ndarray, "site prompt"]:
    """Where the answers take the source's value of one variable and of no other."""
    if variable == OBJECT:
        object_taken = outcomes.is_outcome(OBJECT, OBJECT_READOUT)
        return object_taken & outcomes.is_outcome(BASE, NUMBER_READOUT)
    return outcomes.is_outcome(variable) & outcomes.is_outcome(BASE, OBJECT_READOUT)


def all_sites(runs: InterchangeRuns) -> list[Site]:
    """Residual stream before each block and after the last, at every role."""
    layers = range(runs.model.shape.layers + 1)
    return [Site(layer, "resid", role) for layer in layers for role in runs.roles]


def inner_sites(runs: InterchangeRuns) -> list[Site]:
    """Residual stream between blocks, where a hotspot may be."""
    return [site for site in all_sites(runs) if 0 < site.layer < runs.model.shape.layers]


def interchange_both(
    runs: InterchangeRuns, sites: Sequence[Site]
) -> tuple[InterchangeOutcomes, InterchangeOutcomes]:
    """Interchange with sources about another object, and about the same one."""
    return (
        interchange_intervention(runs, sites),
        interchange_intervention(runs, sites, source_object="same"),
    )


@dataclass(frozen=True, eq=False)
class SiteSearch:
    """Interchange at sites between blocks, on prompts that sites are chosen on.

    Attributes:
        runs: Runs on these prompts.
        sites: The sites: all of them, or those that a screen has left.
        outcomes: With sources about another object, and about the same one.
        screens: Error of the screen for each variable; empty where all sites were interchanged.
    """

    runs: InterchangeRuns
    sites: tuple[Site, ...]
    outcomes: tuple[InterchangeOutcomes, InterchangeOutcomes]
    screens: tuple[ScreenCheck, ...] = ()


def search_all_sites(runs: InterchangeRuns, *, shared_roles_only: bool = False) -> SiteSearch:
    """Interchange every site between blocks; only of roles that all prompts have, if so wanted."""
    sites = inner_sites(runs)
    if shared_roles_only:
        sites = [site for site in sites if bool(runs.role_masks[site.role].any(-1).all())]
    return SiteSearch(runs, tuple(sites), interchange_both(runs, sites))


def find_sites(
    model: Model,
    search_pairs: InterchangePairs,
    variables: Sequence[str],
    *,
    shared_roles_only: bool = False,
) -> list[Site]:
    """Find the site of each variable among all sites between blocks; see `choose_sites`.

    Args:
        model: Any decoder.
        search_pairs: Pairs to search on.
        variables: What to look for.
        shared_roles_only: Only roles that all prompts have.
    """
    runs = run_interchange_pairs(model, search_pairs)
    return choose_sites(search_all_sites(runs, shared_roles_only=shared_roles_only), variables)


def choose_sites(search: SiteSearch, variables: Sequence[str]) -> list[Site]:
    """Choose the site where each variable alone is interchanged most often.

    Sources about the same and about another object have equal weight, so that a state specific to
    one object is found as well. Two roles of one layer are joined where together they do more by
    `EQUIVALENCE_MARGIN`. Without any effect, the site is the variable's own token after block 0.
    """
    runs, sites, outcomes = search.runs, search.sites, search.outcomes
    chosen = []
    for variable in variables:
        rates = takes_only_rate(outcomes, variable)
        best = int(rates.argmax())
        if rates[best] < EQUIVALENCE_MARGIN:
            own_role = "op" if variable == OPERATION else variable
            role = own_role if own_role in runs.roles else sites[best].role
            chosen.append(Site(1, "resid", role))
            continue
        joint = None
        if rates[best] <= 1 - EQUIVALENCE_MARGIN:
            partial = zip(sites, taken_rate(outcomes, variable), strict=True)
            kept = {site: rate for site, rate in partial if rate > MIN_FRACTION}
            pairs = [pair for pair in combinations(kept, 2) if pair[0].layer == pair[1].layer]
            if search.screens:  # A screened model is large: only what does most is joined.
                pairs = sorted(pairs, key=lambda pair: -kept[pair[0]] - kept[pair[1]])[:_MOST_PAIRS]
            joint = _find_joint_site(runs, variable, pairs, float(rates[best]))
        chosen.append(joint or sites[best])
    return chosen


def _find_joint_site(
    runs: InterchangeRuns,
    variable: str,
    pairs: Sequence[tuple[Site, Site]],
    single_best: float,
) -> Site | None:
    """Best two roles of one layer; None where no two exceed the best role by the margin."""
    if not pairs:
        return None
    joint = [Site(a.layer, "resid", f"{a.role}+{b.role}") for a, b in pairs]
    runs = runs.with_joined_roles(joined_roles(*joint))
    rates = takes_only_rate(interchange_both(runs, joint), variable)
    best = int(rates.argmax())
    return joint[best] if rates[best] > single_best + EQUIVALENCE_MARGIN else None


def takes_only_rate(
    outcomes: tuple[InterchangeOutcomes, InterchangeOutcomes], variable: str
) -> Float[np.ndarray, " site"]:
    """Mean rate over both kinds of sources; of an object, over sources about another object."""
    other, same = (takes_only(one, variable).mean(1) for one in outcomes)
    return other if variable == OBJECT else (other + same) / 2


def taken_rate(
    outcomes: tuple[InterchangeOutcomes, InterchangeOutcomes], variable: str
) -> Float[np.ndarray, " site"]:
    """Rate at which a variable is taken, alone or with others, by which roles are joined."""
    if variable == OBJECT:
        return takes_only_rate(outcomes, variable)
    return outcomes[0].takes_variable(variable).mean(1)
