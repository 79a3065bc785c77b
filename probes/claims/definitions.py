"""Titles and thresholds of the claims."""

from probes.interventions.hotspots.result import Hotspots
from probes.interventions.interchange_outcomes import NUMBER_READOUT
from probes.interventions.site_search import EQUIVALENCE_MARGIN

TITLES = {
    "H1a": "one state codes the operation, whatever the object",
    "H1b": "operation and operands meet in one state before the last block",
    "H2": "the noun has a path of its own",
    "H3": "the operation has the same direction for every object",
    "H4": "tuning reused what the base model had",
    "H5": "the operation was learned from many objects",
}
"""Title of each claim."""

MAJORITY = 0.5
"""Accuracy above which a site carries a variable."""

FEWEST_BASES = 20
"""Bases below which a test of a part of them is undecided."""


def near_ceiling(hotspots: Hotspots, variable: str) -> float:
    """Threshold of an interchange accuracy that must be near the ceiling.

    The ceiling is the model's own accuracy on the same bases. The threshold is two margins below
    it, and at least one half and the null of random-init models.
    """
    ceiling = hotspots.accuracy[NUMBER_READOUT].value
    return max(MAJORITY, ceiling - 2 * EQUIVALENCE_MARGIN, hotspots.thresholds[variable])
