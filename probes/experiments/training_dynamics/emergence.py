"""Emergence of a measure: the first step from which it stays above half of its final value.

A measure has a value at every checkpoint, and one in every bootstrap sample of prompts. So the step
has an interval, and two measures can be tested for their order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float

from probes.errors import ProbeError
from probes.stats.intervals import CONFIDENCE_LEVEL, Estimate

Order = Literal["before", "with", "after", "cannot tell"]

MARGIN = 0.1
"""Difference to the nulls that a measure must have in the final model to be present."""

_QUANTILES = ((1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2)


@dataclass(frozen=True, eq=False)
class MeasureOverTraining:
    """One measure at every checkpoint.

    Attributes:
        name: Name.
        accuracy_name: Name of the accuracy measure that it is compared with.
        values: Values at the checkpoints, with intervals over prompts.
        final: Value of the final model.
        bootstrap: Values in bootstrap samples of prompts, the same samples at all checkpoints.
        final_bootstrap: The same for the final model.
        nulls: Values of random-init models of the same shape.
        random_mean, random_interval: Mean and 95 % interval of random edge sets, for overlaps.
        other_seeds: Values of other-seed models at the same sites and edges.
        notes: Text for each checkpoint, such as a site; or empty.
    """

    name: str
    accuracy_name: str
    values: tuple[Estimate, ...]
    final: Estimate
    bootstrap: Float[np.ndarray, "checkpoint draw"]
    final_bootstrap: Float[np.ndarray, " draw"]
    nulls: tuple[float, ...] = ()
    random_mean: float | None = None
    random_interval: tuple[float, float] | None = None
    other_seeds: Mapping[str, Estimate] | None = None
    notes: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """Mean of the random-init models or of random edge sets, the larger one; 0 without any."""
        means = [float(np.mean(self.nulls)) if self.nulls else 0.0]
        if self.random_mean is not None:
            means.append(self.random_mean)
        return max(means)

    @property
    def is_present(self) -> bool:
        """Whether the final model exceeds every null by `MARGIN`, by the end of its interval."""
        random = self.random_interval[1:] if self.random_interval else ()
        threshold = max((self.chance, *self.nulls, *random)) + MARGIN
        return bool(np.quantile(self.final_bootstrap, _QUANTILES[0]) > threshold)

    def above_halfway(self) -> Float[np.ndarray, "checkpoint draw"]:
        """Distance of each bootstrap value above half the way from chance to the final value."""
        return self.bootstrap - (self.chance + self.final_bootstrap) / 2


@dataclass(frozen=True, slots=True)
class EmergenceStep:
    """Step at which a measure emerges.

    Attributes:
        step: First checkpoint from which the interval stays above half the way from chance to the
            final value; None if there is none, or if the final model has no more than chance.
        since: Checkpoint before it; None if `step` is the first checkpoint.
        low, high: 95 % interval of the first such step, over bootstrap samples of prompts;
            infinite where the measure never stays above.
    """

    step: int | None
    since: int | None
    low: float
    high: float

    def __str__(self) -> str:
        if self.step is None:
            return "never"
        since = "at or before" if self.since is None else f"after {self.since:,}, by"
        return f"{since} {self.step:,}"

    @property
    def interval(self) -> str:
        """Interval as a text."""
        ends = ("never" if np.isinf(n) else f"{n:,.0f}" for n in (self.low, self.high))
        return " to ".join(ends)


def emergence_step(steps: Sequence[int], measure: MeasureOverTraining) -> EmergenceStep:
    """Step from which a measure stays above half of its final value.

    Raises:
        ProbeError: The steps do not ascend, or their number differs from that of the values.
    """
    if len(steps) != len(measure.values) or len(measure.bootstrap) != len(steps):
        raise ProbeError(
            f"{measure.name!r} has {len(measure.values)} values for {len(steps)} steps: give one "
            "for each"
        )
    require_ascending(steps)
    if not measure.is_present:
        return EmergenceStep(None, None, float("inf"), float("inf"))
    is_above = np.quantile(measure.above_halfway(), _QUANTILES[0], axis=1) > 0
    stays = np.logical_and.accumulate(is_above[::-1])[::-1]
    first = _first_checkpoint(measure)
    low, high = (_step_at(steps, np.quantile(first, q, method="nearest")) for q in _QUANTILES)
    if not stays.any():
        return EmergenceStep(None, None, low, high)
    at = int(stays.argmax())
    return EmergenceStep(steps[at], steps[at - 1] if at else None, low, high)


def emergence_order(measure: MeasureOverTraining, other: MeasureOverTraining) -> Order:
    """Whether a measure emerges before another, after it, or between the same checkpoints.

    All pairs of bootstrap samples are compared, since most measures have prompts of their own; what
    two measures of the same prompts share is not used. 97.5 % must agree on "before" or "after",
    95 % on "with". Pairs in which neither emerges agree on nothing. Coarse checkpoints favor
    "with".
    """
    if not (measure.is_present and other.is_present):
        return "cannot tell"
    own, others = _first_checkpoint(measure)[:, None], _first_checkpoint(other)
    never = len(measure.bootstrap)
    together = (own == others) & (own < never)
    fractions: dict[Order, float] = {
        "before": (own < others).mean(),
        "after": (own > others).mean(),
    }
    for order, fraction in fractions.items():
        if fraction >= _QUANTILES[1]:
            return order
    return "with" if together.mean() >= CONFIDENCE_LEVEL else "cannot tell"


def _first_checkpoint(measure: MeasureOverTraining) -> Float[np.ndarray, " draw"]:
    """Index of the first checkpoint from which each bootstrap sample stays above half."""
    stays = np.logical_and.accumulate((measure.above_halfway() > 0)[::-1], axis=0)[::-1]
    never = float(len(stays))
    return np.where(stays.any(0), stays.argmax(0), never).astype(float)


def _step_at(steps: Sequence[int], index: float) -> float:
    return float(steps[int(index)]) if index < len(steps) else float("inf")


def require_ascending(steps: Sequence[int]) -> None:
    """Refuse an empty list of steps, or steps that do not ascend.

    Raises:
        ProbeError: They do not ascend, or there are none.
    """
    if not len(steps) or any(a >= b for a, b in pairwise(steps)):
        raise ProbeError(
            f"Checkpoints of steps {list(steps)[:6]} were given: give one or more, in the order "
            "of training, each step once"
        )
