"""When a measure appears along training: the first step from which it stays above half its end.

A course holds one measure at every checkpoint and again for every draw of prompts, so that the step
has an interval, and two courses can be told to come one before the other.
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
"""By how much of the whole the final model must exceed the nulls to have something at all."""

_QUANTILES = ((1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2)


@dataclass(frozen=True, eq=False)
class MeasureOverTraining:
    """One measure at every checkpoint.

    Attributes:
        name: What is measured.
        beside: The course of the answer that it serves: that of the accuracy.
        values: At each checkpoint, with the interval over prompts.
        final: The same in the final model.
        drawn: The measure under prompts drawn anew, the same draws at all checkpoints.
        last: The same of the final model.
        nulls: What untrained nets of the same shape give, one number each.
        lot: The middle 95 % of what sets of edges drawn by lot give, for overlaps.
        seeds: What models of other seeds give, at the same place.
        notes: A word for each checkpoint, such as a site; or none.
    """

    name: str
    accuracy_name: str
    values: tuple[Estimate, ...]
    final: Estimate
    bootstrap: Float[np.ndarray, "checkpoint draw"]
    final_bootstrap: Float[np.ndarray, " draw"]
    nulls: tuple[float, ...] = ()
    random_interval: tuple[float, float] | None = None
    other_seeds: Mapping[str, Estimate] | None = None
    notes: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """What untrained nets give, or sets drawn by lot if that is more; 0 where none was asked.

        A mean: a single net among few says little.
        """
        found = [float(np.mean(self.nulls))] if self.nulls else [0.0]
        return (
            max(*found, float(np.mean(self.random_interval))) if self.random_interval else found[0]
        )

    @property
    def is_present(self) -> bool:
        """Whether the final model has it: surely more than every null, and by the margin."""
        bar = max(
            (
                self.chance,
                *self.nulls,
                *((self.random_interval[1],) if self.random_interval else ()),
            )
        )
        return bool(np.quantile(self.final_bootstrap, _QUANTILES[0]) > bar + MARGIN)

    @property
    def halfway(self) -> float:
        """Half the way from chance to the final model's value."""
        return (self.chance + self.final.value) / 2

    def above_halfway(self) -> Float[np.ndarray, "checkpoint draw"]:
        """Return how far each draw stands above its own half-way mark."""
        return self.bootstrap - (self.chance + self.final_bootstrap) / 2


@dataclass(frozen=True, slots=True)
class EmergenceStep:
    """When a measure appeared.

    Attributes:
        step: The first checkpoint from which it surely stays above half the way from chance to
            its final value: at that one and at all later ones; None if at none, or if the final
            model has no more than chance.
        since: The checkpoint before: it appeared between the two. None if `step` is the first.
        low, high: The middle 95 % of the first such step (not "surely") over prompts drawn anew;
            infinite where it never stays above.
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


def emergence_step(steps: Sequence[int], measure: MeasureOverTraining) -> EmergenceStep:
    """Return the step from which a measure stays above half its final value.

    Raises:
        ProbeError: Steps do not ascend, or are not as many as the course has.
    """
    _check(steps, measure)
    if not measure.is_present:
        return EmergenceStep(None, None, float("inf"), float("inf"))
    sure = np.quantile(measure.above_halfway(), _QUANTILES[0], axis=1) > 0
    stays = np.logical_and.accumulate(sure[::-1])[::-1]
    each = _first_checkpoint(measure)
    low, high = (_step_at(steps, np.quantile(each, q, method="nearest")) for q in _QUANTILES)
    if not stays.any():
        return EmergenceStep(None, None, low, high)
    place = int(stays.argmax())
    return EmergenceStep(steps[place], steps[place - 1] if place else None, low, high)


def emergence_order(measure: MeasureOverTraining, other: MeasureOverTraining) -> Order:
    """Say whether a measure appears before another, after it, or between the same checkpoints.

    By the share of pairs of draws, as the two are judged on prompts of their own: 97.5 % must
    agree on "before" or "after", 95 % on "with". The coarser the checkpoints, the more is "with".
    """
    if not (measure.is_present and other.is_present):
        return "cannot tell"
    gap = _first_checkpoint(measure)[:, None] - _first_checkpoint(other)
    sides: dict[Order, float] = {"before": (gap < 0).mean(), "after": (gap > 0).mean()}
    for word, part in sides.items():
        if part >= _QUANTILES[1]:
            return word
    return "with" if (gap == 0).mean() >= CONFIDENCE_LEVEL else "cannot tell"


def _first_checkpoint(measure: MeasureOverTraining) -> Float[np.ndarray, " draw"]:
    """Return for each draw the place of the first checkpoint from which it stays above half."""
    stays = np.logical_and.accumulate((measure.above_halfway() > 0)[::-1], axis=0)[::-1]
    never = float(len(stays))
    return np.where(stays.any(0), stays.argmax(0), never).astype(float)


def _step_at(steps: Sequence[int], index: float) -> float:
    return float(steps[int(index)]) if index < len(steps) else float("inf")


def _check(steps: Sequence[int], measure: MeasureOverTraining) -> None:
    if len(steps) != len(measure.values) or len(measure.bootstrap) != len(steps):
        raise ProbeError(
            f"{measure.name!r} has {len(measure.values)} values for {len(steps)} steps: give one each"
        )
    require_ascending(steps)


def require_ascending(steps: Sequence[int]) -> None:
    """Refuse steps that are none, or do not ascend.

    Raises:
        ProbeError: They are so.
    """
    if not len(steps) or any(a >= b for a, b in pairwise(steps)):
        raise ProbeError(
            f"Checkpoints of steps {list(steps)[:6]} were given: give one or more, in the order "
            "of training, each step once"
        )
