"""Result of a cross-model interchange of one variable."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from probes.stats.intervals import Estimate

RANDOM_INIT = "random-init"
"""Control: the best random-init model."""

EMBEDDING_CONTROL = "token embedding"
"""Control that is part of the donor: the embedding of the variable's own words."""


@dataclass(frozen=True, slots=True)
class VariableDraw:
    """A variable in one draw of prompts, held-out words, folds and sites.

    Attributes:
        variable: "operation", an operand, or "thing".
        seed: Seed of the draw.
        full_site, site: Site in the full model and in the relative.
        interchange_accuracy: Accuracy in the relative with states of the full model.
        label: Verdict by this draw alone.
    """

    variable: str
    seed: int
    full_site: str
    site: str
    interchange_accuracy: Estimate
    label: str


@dataclass(frozen=True, slots=True)
class CrossModelTransfer:
    """Interchange accuracy in a recipient whose states come from a donor.

    All accuracies are over the same interchange pairs. Their words are held out from the maps. With
    several draws of prompts, words and folds they are means over the draws, and their intervals
    cover what further draws give on average; `nulls`, "random-init" and `negative_controls` run in
    the first draw only.

    Attributes:
        variable: "operation", an operand, or "thing".
        donor, recipient: Names of the models.
        pairs: Number of interchange pairs.
        site: Site of the variable in the recipient.
        donor_sites: Sites of the donor, one for each role of `site`.
        own_accuracy: Accuracy of the recipient's own states, without a map.
        own_ridge_accuracy: Accuracy of the recipient's own states through a ridge map.
        maps: Accuracy of the donor's states by kind of map: "identity" (equal widths only),
            "orthogonal", "ridge".
        controls: Accuracy through a ridge map of the donor's "token embedding", of a one-hot
            "label" of the word, of the donor's states "shuffled" among the questions of a
            template, and of the best "random-init" model.
        nulls: Accuracy of each random-init model.
        negative_controls: Accuracy of each negative control.
        excesses: Ridge accuracy minus that of each control, paired by prompt within a draw.
        shortfall: `own_ridge_accuracy` minus ridge accuracy, paired.
        by_verbs: For the operation, ridge accuracy with each group of held-out verbs; each draw
            leaves out one group, on which sites are searched.
        missed_pairs: Pairs that succeed with the recipient's own mapped states and fail with the
            donor's.
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
    excesses: Mapping[str, Estimate]
    shortfall: Estimate
    missed_pairs: tuple[int, ...]
    by_verbs: Mapping[str, Estimate] = field(default_factory=dict)

    def row(self) -> dict[str, str | float]:
        """Row of a table."""
        return {
            "variable": self.variable,
            "donor": self.donor,
            "recipient": self.recipient,
            "site": self.site,
            "donor site": " + ".join(self.donor_sites),
            "own": self.own_accuracy.value,
            "own, ridge": self.own_ridge_accuracy.value,
            **{kind: value.value for kind, value in self.maps.items()},
            **{name: value.value for name, value in self.controls.items()},
            "negative control": max(self.negative_controls.values(), default=float("nan")),
            "excess": self.excess.value,
            "excess low": self.excess.low,
            "best control": self.best_control,
            "shortfall": self.shortfall.value,
            "shortfall high": self.shortfall.high,
            "pairs": self.pairs,
        }

    @property
    def best_control(self) -> str:
        """Name of the control with the highest accuracy."""
        return max(self.controls, key=lambda name: self.controls[name].value)

    @property
    def excess(self) -> Estimate:
        """Ridge accuracy minus that of the best control."""
        return self.excesses[self.best_control]

    @property
    def interchange_accuracy(self) -> Estimate:
        """Interchange accuracy through a ridge map."""
        return self.maps["ridge"]
