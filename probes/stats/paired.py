"""Right and wrong answers to the same items twice over: their difference, and what would show.

One item is one unit throughout, however many texts were made of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binom, binomtest

from probes.errors import OutcomeError
from probes.stats.intervals import (
    CONFIDENCE_LEVEL,
    Estimate,
    bootstrap_weights,
    percentile_interval,
)

_DRAWS = 2000
_MAX_ITEMS = 10_000_000


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The same items answered twice.

    Attributes:
        both, gained, lost, neither: Items right both times, only the second, only the first, never.
        difference: Second accuracy less the first, -1 to 1, with Newcombe's 95 % interval.
        p: Two-sided exact McNemar test: of the items that changed, as many went either way.
    """

    both_correct: int
    gained: int
    lost: int
    neither_correct: int
    difference: Estimate
    p_value: float

    @property
    def n_items(self) -> int:
        """How many items there are."""
        return self.both_correct + self.gained + self.lost + self.neither_correct

    @property
    def discordance(self) -> float:
        """Share of items answered rightly only once, 0 to 1."""
        return (self.gained + self.lost) / self.n_items

    def minimum_detectable_effect(self, level: float = 0.05) -> float:
        """Return the smallest difference so many items likely show, if as many answers change."""
        rate = (self.both_correct + self.lost) / self.n_items
        return minimum_detectable_effect(
            self.n_items, rate, discordance=self.discordance, level=level
        )

    def verdict(self, *, p_value: float | None = None, margin: float | None = None) -> str:
        """Say "more", "less", "alike" (the interval lies within ±`margin`) or "cannot tell".

        `p` stands for the own one where several comparisons were made and it was corrected.
        """
        if (self.p_value if p_value is None else p_value) < 1 - CONFIDENCE_LEVEL:
            return "more" if self.difference.value > 0 else "less"
        widest = max(-self.difference.low, self.difference.high)
        return "alike" if margin is not None and widest < margin else "cannot tell"


def mcnemar_test(
    first: Bool[np.ndarray, " prompt"], second: Bool[np.ndarray, " prompt"]
) -> PairedTest:
    """Compare two sets of answers to the same items, item by item.

    Raises:
        OutcomeError: There is no item, or the two are not equally many.
    """
    if len(first) != len(second) or not len(first):
        raise OutcomeError(
            f"Answers cannot be paired: {len(first)} and {len(second)} found. Give both for the "
            "same items, and at least one"
        )
    cells = [(first & second), (~first & second), (first & ~second), (~first & ~second)]
    return _from_counts(*(int(cell.sum()) for cell in cells))


def possible_tables(first: int, second: int, n_items: int) -> Iterator[PairedTest]:
    """Yield every pairing that two published counts of right answers leave open.

    Papers often give "15 of 30" and "16 of 30", but not how many items changed.
    """
    if not (0 <= first <= n_items and 0 <= second <= n_items and n_items > 0):
        raise OutcomeError(
            f"{first} and {second} right of {n_items}: counts run from 0 to the items"
        )
    for both in range(max(0, first + second - n_items), min(first, second) + 1):
        gained, lost = second - both, first - both
        yield _from_counts(both, gained, lost, n_items - both - gained - lost)


def _from_counts(both_correct: int, gained: int, lost: int, neither_correct: int) -> PairedTest:
    changed = gained + lost
    p = float(binomtest(gained, changed).pvalue) if changed else 1.0
    return PairedTest(
        both_correct,
        gained,
        lost,
        neither_correct,
        _newcombe(both_correct, gained, lost, neither_correct),
        p,
    )


def _newcombe(both_correct: int, gained: int, lost: int, neither_correct: int) -> Estimate:
    """Newcombe's interval of a paired difference (1998, Stat Med 17:2635, method 10).

    A bootstrap would shrink to a point where no item changed, as if all were known then.
    """
    items = both_correct + gained + lost + neither_correct
    ends = []
    for count in (both_correct + lost, both_correct + gained):
        found = binomtest(count, items).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
        ends.append((count / items - float(found.low), float(found.high) - count / items))
    (down1, up1), (down2, up2) = ends
    sides = (
        (both_correct + gained)
        * (lost + neither_correct)
        * (both_correct + lost)
        * (gained + neither_correct)
    )
    cross = both_correct * neither_correct - gained * lost
    cross = max(cross - items / 2, 0) if cross > 0 else cross
    phi = cross / sqrt(sides) if sides else 0.0
    value = (gained - lost) / items
    low = value - sqrt(max(0.0, down2**2 - 2 * phi * down2 * up1 + up1**2))
    high = value + sqrt(max(0.0, up2**2 - 2 * phi * up2 * down1 + down1**2))
    return Estimate(value, max(low, -1.0), min(high, 1.0))


def minimum_detectable_effect(
    n_items: int,
    accuracy: float,
    *,
    discordance: float | None = None,
    power: float = 0.8,
    level: float = 0.05,
) -> float:
    """Return the smallest difference of accuracy that a paired comparison would likely show.

    Exact for McNemar's exact two-sided test; the difference lies between 0 and 1, and leads away
    from the nearer end of the scale, where there is room. Infinite where even the largest
    difference would be missed.

    Args:
        items: How many items are answered twice.
        rate: Accuracy without the change, 0 to 1.
        discordance: Share of items whose answer changes, whichever way (a difference needs at
            least itself). None: the two answers to an item know nothing of one another, which
            asks more of the items than answers that mostly agree.
        power: How likely the test shall be significant.
        level: Of the test.
    """
    _check_arguments(n_items, accuracy, discordance)

    def enough(difference: float) -> bool:
        gain, loss = _change_rates(accuracy, difference, discordance)
        return mcnemar_power(n_items, gain, loss, level=level) >= power

    low, high = 0.0, max(accuracy, 1 - accuracy)
    if not enough(high):
        return inf
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def items_needed(
    difference: float,
    accuracy: float,
    *,
    discordance: float | None = None,
    power: float = 0.8,
    level: float = 0.05,
) -> int:
    """Return how many items a difference of accuracy needs; arguments as in `minimum_effect`.

    Exact tests lose a little power at some larger numbers, as their counts are whole.

    Raises:
        OutcomeError: There is no room for such a difference, or ten million do not do.
    """
    _check_arguments(1, accuracy, discordance)
    if not 0 < difference <= max(accuracy, 1 - accuracy):
        raise OutcomeError(
            f"A difference of {difference} does not fit an accuracy of {accuracy}: give one above 0 "
            f"and at most {max(accuracy, 1 - accuracy):g}"
        )
    gain, loss = _change_rates(accuracy, difference, discordance)

    def seen(items: int) -> bool:
        return mcnemar_power(items, gain, loss, level=level) >= power

    low, high = 0, 1
    while not seen(high):
        low, high = high, 2 * high
        if high > _MAX_ITEMS:
            raise OutcomeError(
                f"{_MAX_ITEMS} items do not show {difference}: look for a larger one"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def mcnemar_power(n_items: int, gain: float, loss: float, *, level: float = 0.05) -> float:
    """Return how likely McNemar's exact test finds more gained than lost.

    `gain` and `loss` are the shares of items that change in each direction.
    """
    changing = min(1.0, gain + loss)
    if changing <= 0:
        return 0.0
    # How many items change lies within a few standard deviations; the rest weighs nothing.
    spread = 10 * sqrt(n_items * changing * (1 - changing)) + 10
    low, high = (int(np.clip(n_items * changing + k * spread, 0, n_items)) for k in (-1, 1))
    changed = np.arange(low, high + 1)
    # The fewest gains whose tail is at most half the level.
    fewest = binom.isf(level / 2, changed, 0.5) + 1
    seen = binom.sf(fewest - 1, changed, min(1.0, gain / (gain + loss)))
    return float((binom.pmf(changed, n_items, changing) * seen).sum())


def accuracy_step(n_items: int) -> float:
    """Return what one item more or less is, in points of accuracy (0 to 100)."""
    if n_items < 1:
        raise OutcomeError(f"{n_items} items found: give at least one")
    return 100 / n_items


def bootstrap_ratio(
    numerator: Float[np.ndarray, " prompt"], denominator: Float[np.ndarray, " prompt"], *, seed: int
) -> Estimate:
    """Return the ratio of two means over the same prompts, with its bootstrap interval."""
    weights = bootstrap_weights(len(numerator), _DRAWS, seed=seed)
    return percentile_interval(
        float(numerator.mean() / denominator.mean()),
        (weights @ numerator) / (weights @ denominator),
    )


def _change_rates(
    accuracy: float, difference: float, discordance: float | None
) -> tuple[float, float]:
    """Shares of items that go from wrong to right and back, for a rise from the nearer end."""
    low = min(accuracy, 1 - accuracy)
    if discordance is None:
        return (1 - low) * (low + difference), low * (1 - low - difference)
    room = min(2 * low + difference, 2 * (1 - low) - difference)
    changing = max(difference, min(discordance, room))
    return (changing + difference) / 2, (changing - difference) / 2


def _check_arguments(n_items: int, accuracy: float, discordance: float | None) -> None:
    if n_items < 1 or not 0 <= accuracy <= 1 or not 0 <= (discordance or 0) <= 1:
        raise OutcomeError(
            f"{n_items} items, accuracy {accuracy}, discordance {discordance}: give at least one item, "
            "and shares between 0 and 1"
        )
