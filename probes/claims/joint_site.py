"""Search for the site where the operation and all operands meet (H1b)."""

from probes.claims.result import JointSite
from probes.errors import SiteError
from probes.interventions.directions import operation_direction, patch_direction
from probes.interventions.hotspot_result import Hotspots
from probes.interventions.interchange import InterchangeRuns, interchange_intervention
from probes.interventions.site_search import inner_sites
from probes.models.site import Site
from probes.stats.intervals import Estimate, proportion


def find_joint_site(search_runs: InterchangeRuns, hotspots: Hotspots) -> JointSite:
    """Find the site whose interchange most often gives the source's number; measure it on others.

    Sources are about the object of the base. Sites are the roles of the residual stream between
    blocks; roles are not joined. The site is chosen on the search runs, the earliest of equals,
    and measured on the bases of the hotspots. The source's number takes the operation and all
    operands. A state that holds only their result gives it, too: the test by a direction tells the
    two apart where the code of the operation is linear.

    Args:
        search_runs: Runs of the model on other bases than those of the hotspots.
        hotspots: Hotspots with their runs and outcomes.
    """
    source_label = search_runs.interchange_pairs.source_label
    variables, sites = source_label.split(" + "), inner_sites(search_runs)
    found = interchange_intervention(search_runs, sites, source_object="same")
    joint = found.is_outcome(source_label).mean(1)
    single = sum(found.takes_variable(variable).mean(1) for variable in variables)
    site = sites[max(range(len(sites)), key=lambda n: (joint[n], single[n]))]
    outcomes = interchange_intervention(hotspots.runs, [site], source_object="same")
    return JointSite(
        site=site,
        label=source_label,
        variables={v: proportion(outcomes.takes_variable(v)[0]) for v in variables},
        all_variables=proportion(outcomes.is_outcome(source_label)[0]),
        operation_direction=_direction_accuracy(search_runs, hotspots.runs, site),
    )


def _direction_accuracy(
    search_runs: InterchangeRuns, evaluation_runs: InterchangeRuns, site: Site
) -> Estimate | None:
    """Interchange accuracy of the operation by its direction; None if prompts lack the role."""
    try:
        direction = operation_direction(search_runs, site)
        return proportion(patch_direction(evaluation_runs, direction, "same"))
    except SiteError:
        return None
