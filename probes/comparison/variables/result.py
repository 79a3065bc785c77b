"""Result of a cross-model interchange of one variable."""

from collections.abc import Mapping
from dataclasses import dataclass

from probes.stats.intervals import Estimate

EMBEDDING_CONTROL = "token embedding"
"""The control that is part of the donor itself: what its words hold before any block."""


@dataclass(frozen=True, slots=True)
class CrossModelTransfer:
    """How often a variable of one model, put into another, turns the other's answer as foretold.

    All shares are of the same crossings, whose words no map was fitted on.

    Attributes:
        variable: "operation", an operand, or "thing".
        donor, recipient: The models.
        items: How many crossings.
        site: Where it is put in, as the recipient's own hotspot.
        places: Where the donor is read for each role of the site.
        whole: What the recipient's own states do there, with no map: its ceiling.
        ceiling: What its own states do through a ridge map, so fitted.
        maps: What the donor's do, by the map allowed: "identity" (equal widths), "orthogonal",
            "ridge".
        controls: What stands-in for the donor do through a ridge map: its "token embedding", a
            "label" of the word, its states "shuffled" among the questions of a frame, and the best
            "random-init" net.
        nulls: Each untrained net's share.
        strangers: The share of each net that was trained for another end.
        excess: The ridge map's share less the best control's, paired by crossing.
        best: Which control that is.
        shortfall: The ceiling less the ridge map's share, paired by crossing.
        missed: The crossings that the recipient's own states turned through a ridge map, and the
            donor's did not.
    """

    variable: str
    donor: str
    recipient: str
    pairs: int
    site: str
    donor_sites: tuple[str, ...]
    own_accuracy: Estimate
    own_ridge_accuracy: Estimate
    maps: Mapping[str, Estimate]
    controls: Mapping[str, Estimate]
    nulls: tuple[float, ...]
    negative_controls: Mapping[str, float]
    excess: Estimate
    best_control: str
    shortfall: Estimate
    missed_pairs: tuple[int, ...]

    @property
    def interchange_accuracy(self) -> Estimate:
        """The share by a ridge map."""
        return self.maps["ridge"]
