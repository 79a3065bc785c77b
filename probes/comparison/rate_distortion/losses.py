"""Losses of one relative: mechanism against accuracy, and against weight noise at the same KL."""

from dataclasses import dataclass
from typing import Literal

from probes.stats.intervals import Estimate

LossOrderLabel = Literal["mechanism first", "accuracy first", "together", "neither", "cannot tell"]
NoiseLabel = Literal["worse than noise", "better than noise", "like noise", "cannot tell"]

LOSS_MARGIN = 0.05
"""Largest difference of two fractions that counts as equal."""

UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))
"""Estimate of what was not measured."""


MIN_PAIRS = 20
"""Smallest number of pairs solved by both models for a statement about the mechanism."""


@dataclass(frozen=True, slots=True)
class LossOrder:
    """Loss of mechanism against loss of accuracy, relative to the parent.

    Attributes:
        pairs: Number of pairs on which both models answer base and source correctly.
        mechanism_loss: Interchange accuracy of the parent minus that of the relative on these
            pairs, as a mean over the variables.
        accuracy_loss: Fraction of all bases answered correctly, parent minus relative.
        difference: `mechanism_loss` minus `accuracy_loss`, from the same bootstrap samples.
        label: "neither" if the 95 % intervals of both losses lie below 0.05, else "together" if
            that of the difference lies within 0.05 of 0, else the larger loss if the interval of
            the difference excludes 0, else "cannot tell". The first two need at least 73 pairs.
    """

    pairs: int
    mechanism_loss: Estimate
    accuracy_loss: Estimate
    difference: Estimate
    label: LossOrderLabel


@dataclass(frozen=True, slots=True)
class NoiseComparison:
    """A relative against copies of its parent with weight noise at the same KL.

    Attributes:
        scales: Noise of each copy, in standard deviations of each matrix.
        kl: KL of each copy (bits per readout).
        right: Fraction of bases that each copy answers correctly.
        mechanism: Interchange accuracy of each copy on pairs that it and the parent solve; NaN if
            these are too few.
        circuit: Faithfulness of the parent's circuit in each copy, or NaN.
        difference: Interchange accuracy of the relative minus that of each copy, on pairs that the
            parent, the relative and this copy solve; the bootstrap resamples pairs and copies.
            Copies with too few such pairs are left out.
        accuracy_difference: The same for the fraction of bases answered correctly, on all bases.
        label: "like noise" if the 95 % interval of `difference` lies within 0.05 of 0, else
            "worse than noise" or "better than noise" if it excludes 0, else "cannot tell"; this
            also where a copy is left out, as those that solve most remain.
        compared: Number of copies in `difference`.
    """

    scales: tuple[float, ...]
    kl: tuple[float, ...]
    right: tuple[float, ...]
    mechanism: tuple[float, ...]
    circuit: tuple[float, ...]
    difference: Estimate
    accuracy_difference: Estimate
    label: NoiseLabel
    compared: int
