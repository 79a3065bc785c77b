"""Search for the site where the operation and all operands meet (H1b)."""

import numpy as np
from jaxtyping import Bool

from probes.claims.definitions import FEWEST_BASES
from probes.claims.result import JointSite
from probes.interventions.hotspots.result import Hotspots
from probes.interventions.interchange import interchange_intervention
from probes.interventions.site_search import SiteSearch
from probes.interventions.subspaces.das import DASSettings, das
from probes.interventions.subspaces.das_search import interchange_objective
from probes.interventions.subspaces.directions import patch_direction
from probes.prompts.interchange_pairs import OPERATION, InterchangePairs
from probes.stats.intervals import proportion

_DIMENSIONS = 8
"""Dimensions of the subspace; as many as the largest of `search_subspace`."""


def find_joint_site(search: SiteSearch, hotspots: Hotspots, *, seed: int = 0) -> JointSite:
    """Find the site whose interchange most often gives the source's number; measure it on others.

    Sites are the roles of the residual stream between blocks; roles are not joined. The site is
    chosen in the search with sources about the object of the base, the earliest of equals. A
    state that holds only the result of operation and operands gives the source's number, too. So
    a subspace is searched (DAS) whose interchange changes the operation alone, which no subspace
    of such a state does. It is measured on other numbers than those of the search, of which it may
    have learned each.

    Args:
        search: Interchange at sites on other bases than those of the hotspots.
        hotspots: Hotspots with their runs.
        seed: Of the search.
    """
    source_label = search.runs.interchange_pairs.source_label
    variables, sites, found = source_label.split(" + "), search.sites, search.outcomes[1]
    joint = found.is_outcome(source_label).mean(1)
    single = np.mean([found.takes_variable(variable).mean(1) for variable in variables], 0)
    site = sites[max(range(len(sites)), key=lambda n: (joint[n], single[n]))]
    outcomes = interchange_intervention(hotspots.runs, [site], source_object="same")
    objective = interchange_objective(search.runs, site, OPERATION)
    is_new = _has_new_numbers(search.runs.interchange_pairs, hotspots.runs.interchange_pairs)
    subspace = das(objective, site, dims=_DIMENSIONS, settings=DASSettings(seed=seed))
    return JointSite(
        site=site,
        label=source_label,
        variables={v: proportion(outcomes.takes_variable(v)[0]) for v in variables},
        all_variables=proportion(outcomes.is_outcome(source_label)[0]),
        new_numbers=int(is_new.sum()),
        operation_alone=(
            proportion(patch_direction(hotspots.runs, subspace)[is_new])
            if is_new.sum() >= FEWEST_BASES
            else None
        ),
    )


def _has_new_numbers(
    fitted: InterchangePairs, others: InterchangePairs
) -> Bool[np.ndarray, " prompt"]:
    """Pairs whose operands, those of base and source together, are in no fitted pair."""
    operands = fitted.source_label.split(" + ")[1:]

    def numbers(pairs: InterchangePairs) -> list[tuple[object, ...]]:
        sides = [(pair.clean, pair.counterfactual) for pair in pairs.same]
        return [tuple(side[name] for side in both for name in operands) for both in sides]

    known = {*numbers(fitted)}
    return np.array([each not in known for each in numbers(others)])
