"""Search for the site of the residual stream that holds a variable."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float

from probes.interventions.interchange import (
    NUMBER_READOUT,
    OBJECT_READOUT,
    InterchangeOutcomes,
    InterchangeRuns,
    interchange_intervention,
    run_interchange_pairs,
)
from probes.models.model import Model
from probes.models.site import Site, joined_roles
from probes.prompts.interchange_pairs import BASE, OBJECT, OPERATION, InterchangePairs
from probes.prompts.pattern import Pattern

EQUIVALENCE_MARGIN = 0.1
"""Largest difference of two fractions that counts as equal."""

_MIN_FRACTION = 0.03
"""Fraction that a role must reach to be one of two joined roles."""


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


def find_sites(
    model: Model,
    search_pairs: InterchangePairs,
    variables: Sequence[str],
    *,
    shared_roles_only: bool = False,
) -> list[Site]:
    """Find the site between blocks where each variable alone is interchanged most often.

    Sources about the same and about another object have equal weight, so that a state specific to
    one object is found as well. Two roles of one layer are joined where together they do more by
    `EQUIVALENCE_MARGIN`. Without any effect, the site is the variable's own token after block 0.

    Args:
        model: Any decoder.
        search_pairs: Pairs to search on.
        variables: What to look for.
        shared_roles_only: Only roles that all prompts have.
    """
    runs = run_interchange_pairs(model, search_pairs)
    sites = inner_sites(runs)
    if shared_roles_only:
        sites = [site for site in sites if bool(runs.role_masks[site.role].any(-1).all())]
    outcomes = interchange_both(runs, sites)
    chosen = []
    for variable in variables:
        rates = _takes_only_rate(outcomes, variable)
        best = int(rates.argmax())
        if rates[best] < EQUIVALENCE_MARGIN:
            own_role = "op" if variable == OPERATION else variable
            role = own_role if own_role in runs.roles else sites[best].role
            chosen.append(Site(1, "resid", role))
            continue
        joint = None
        if rates[best] <= 1 - EQUIVALENCE_MARGIN:
            partial = outcomes[0].takes_variable(variable).mean(1) if variable != OBJECT else rates
            parts = [site for site, r in zip(sites, partial, strict=True) if r > _MIN_FRACTION]
            joint = _find_joint_site(model, search_pairs, variable, parts, float(rates[best]))
        chosen.append(joint or sites[best])
    return chosen


def _find_joint_site(
    model: Model,
    search_pairs: InterchangePairs,
    variable: str,
    sites: Sequence[Site],
    single_best: float,
) -> Site | None:
    """Best two roles of one layer; None where no two exceed the best role by the margin."""
    pairs = [(a, b) for a, b in combinations(sites, 2) if a.layer == b.layer]
    if not pairs:
        return None
    joint = [Site(a.layer, "resid", f"{a.role}+{b.role}") for a, b in pairs]
    runs = run_interchange_pairs(model, search_pairs, joined_roles=joined_roles(*joint))
    rates = _takes_only_rate(interchange_both(runs, joint), variable)
    best = int(rates.argmax())
    return joint[best] if rates[best] > single_best + EQUIVALENCE_MARGIN else None


def _takes_only_rate(
    outcomes: tuple[InterchangeOutcomes, InterchangeOutcomes], variable: str
) -> Float[np.ndarray, " site"]:
    """Mean rate over both kinds of sources; of an object, over sources about another object."""
    other, same = (takes_only(one, variable).mean(1) for one in outcomes)
    return other if variable == OBJECT else (other + same) / 2
