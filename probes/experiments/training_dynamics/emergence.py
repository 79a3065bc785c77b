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
from probes.stats.intervals import LEVEL, Estimate

Order = Literal["before", "with", "after", "cannot tell"]

MARGIN = 0.1
"""By how much of the whole the final model must exceed the nulls to have something at all."""

_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


@dataclass(frozen=True, eq=False)
class Course:
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
    beside: str
    values: tuple[Estimate, ...]
    final: Estimate
    drawn: Float[np.ndarray, "checkpoint draw"]
    last: Float[np.ndarray, " draw"]
    nulls: tuple[float, ...] = ()
    lot: tuple[float, float] | None = None
    seeds: Mapping[str, Estimate] | None = None
    notes: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """What untrained nets give, or sets drawn by lot if that is more; 0 where none was asked.

        A mean: a single net among few says little.
        """
        found = [float(np.mean(self.nulls))] if self.nulls else [0.0]
        return max(*found, float(np.mean(self.lot))) if self.lot else found[0]

    @property
    def there(self) -> bool:
        """Whether the final model has it: surely more than every null, and by the margin."""
        bar = max((self.chance, *self.nulls, *((self.lot[1],) if self.lot else ())))
        return bool(np.quantile(self.last, _ENDS[0]) > bar + MARGIN)

    @property
    def half(self) -> float:
        """Half the way from chance to the final model's value."""
        return (self.chance + self.final.value) / 2

    def above(self) -> Float[np.ndarray, "checkpoint draw"]:
        """Return how far each draw stands above its own half-way mark."""
        return self.drawn - (self.chance + self.last) / 2


@dataclass(frozen=True, slots=True)
class Onset:
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


def onset(steps: Sequence[int], course: Course) -> Onset:
    """Return the step from which a measure stays above half its final value.

    Raises:
        ProbeError: Steps do not ascend, or are not as many as the course has.
    """
    _check(steps, course)
    if not course.there:
        return Onset(None, None, float("inf"), float("inf"))
    sure = np.quantile(course.above(), _ENDS[0], axis=1) > 0
    stays = np.logical_and.accumulate(sure[::-1])[::-1]
    each = _first(course)
    low, high = (_step(steps, np.quantile(each, q, method="nearest")) for q in _ENDS)
    if not stays.any():
        return Onset(None, None, low, high)
    place = int(stays.argmax())
    return Onset(steps[place], steps[place - 1] if place else None, low, high)


def order(course: Course, beside: Course) -> Order:
    """Say whether a measure appears before another, after it, or between the same checkpoints.

    By the share of pairs of draws, as the two are judged on prompts of their own: 97.5 % must
    agree on "before" or "after", 95 % on "with". The coarser the checkpoints, the more is "with".
    """
    if not (course.there and beside.there):
        return "cannot tell"
    gap = _first(course)[:, None] - _first(beside)
    sides: dict[Order, float] = {"before": (gap < 0).mean(), "after": (gap > 0).mean()}
    for word, part in sides.items():
        if part >= _ENDS[1]:
            return word
    return "with" if (gap == 0).mean() >= LEVEL else "cannot tell"


def _first(course: Course) -> Float[np.ndarray, " draw"]:
    """Return for each draw the place of the first checkpoint from which it stays above half."""
    stays = np.logical_and.accumulate((course.above() > 0)[::-1], axis=0)[::-1]
    never = float(len(stays))
    return np.where(stays.any(0), stays.argmax(0), never).astype(float)


def _step(steps: Sequence[int], place: float) -> float:
    return float(steps[int(place)]) if place < len(steps) else float("inf")


def _check(steps: Sequence[int], course: Course) -> None:
    if len(steps) != len(course.values) or len(course.drawn) != len(steps):
        raise ProbeError(
            f"{course.name!r} has {len(course.values)} values for {len(steps)} steps: give one each"
        )
    refuse_disorder(steps)


def refuse_disorder(steps: Sequence[int]) -> None:
    """Refuse steps that are none, or do not ascend.

    Raises:
        ProbeError: They are so.
    """
    if not len(steps) or any(a >= b for a, b in pairwise(steps)):
        raise ProbeError(
            f"Checkpoints of steps {list(steps)[:6]} were given: give one or more, in the order "
            "of training, each step once"
        )
