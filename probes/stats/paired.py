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
from probes.stats.intervals import LEVEL, Estimate, draws, interval

_DRAWS = 2000
_MOST = 10_000_000


@dataclass(frozen=True, slots=True)
class Paired:
    """The same items answered twice.

    Attributes:
        both, gained, lost, neither: Items right both times, only the second, only the first, never.
        difference: Second accuracy less the first, -1 to 1, with Newcombe's 95 % interval.
        p: Two-sided exact McNemar test: of the items that changed, as many went either way.
    """

    both: int
    gained: int
    lost: int
    neither: int
    difference: Estimate
    p: float

    @property
    def items(self) -> int:
        """How many items there are."""
        return self.both + self.gained + self.lost + self.neither

    @property
    def discordance(self) -> float:
        """Share of items answered rightly only once, 0 to 1."""
        return (self.gained + self.lost) / self.items

    def least(self, level: float = 0.05) -> float:
        """Return the smallest difference so many items likely show, if as many answers change."""
        rate = (self.both + self.lost) / self.items
        return minimum_effect(self.items, rate, discordance=self.discordance, level=level)

    def verdict(self, *, p: float | None = None, margin: float | None = None) -> str:
        """Say "more", "less", "alike" (the interval lies within ±`margin`) or "cannot tell".

        `p` stands for the own one where several comparisons were made and it was corrected.
        """
        if (self.p if p is None else p) < 1 - LEVEL:
            return "more" if self.difference.value > 0 else "less"
        widest = max(-self.difference.low, self.difference.high)
        return "alike" if margin is not None and widest < margin else "cannot tell"


def paired(first: Bool[np.ndarray, " prompt"], second: Bool[np.ndarray, " prompt"]) -> Paired:
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
    return _counted(*(int(cell.sum()) for cell in cells))


def possible(first: int, second: int, items: int) -> Iterator[Paired]:
    """Yield every pairing that two published counts of right answers leave open.

    Papers often give "15 of 30" and "16 of 30", but not how many items changed.
    """
    if not (0 <= first <= items and 0 <= second <= items and items > 0):
        raise OutcomeError(f"{first} and {second} right of {items}: counts run from 0 to the items")
    for both in range(max(0, first + second - items), min(first, second) + 1):
        gained, lost = second - both, first - both
        yield _counted(both, gained, lost, items - both - gained - lost)


def _counted(both: int, gained: int, lost: int, neither: int) -> Paired:
    changed = gained + lost
    p = float(binomtest(gained, changed).pvalue) if changed else 1.0
    return Paired(both, gained, lost, neither, _newcombe(both, gained, lost, neither), p)


def _newcombe(both: int, gained: int, lost: int, neither: int) -> Estimate:
    """Newcombe's interval of a paired difference (1998, Stat Med 17:2635, method 10).

    A bootstrap would shrink to a point where no item changed, as if all were known then.
    """
    items = both + gained + lost + neither
    ends = []
    for count in (both + lost, both + gained):
        found = binomtest(count, items).proportion_ci(LEVEL, method="wilson")
        ends.append((count / items - float(found.low), float(found.high) - count / items))
    (down1, up1), (down2, up2) = ends
    sides = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    cross = both * neither - gained * lost
    cross = max(cross - items / 2, 0) if cross > 0 else cross
    phi = cross / sqrt(sides) if sides else 0.0
    value = (gained - lost) / items
    low = value - sqrt(max(0.0, down2**2 - 2 * phi * down2 * up1 + up1**2))
    high = value + sqrt(max(0.0, up2**2 - 2 * phi * up2 * down1 + down1**2))
    return Estimate(value, max(low, -1.0), min(high, 1.0))


def minimum_effect(
    items: int,
    rate: float,
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
    _check(items, rate, discordance)

    def enough(difference: float) -> bool:
        gain, loss = _changes(rate, difference, discordance)
        return chance_to_see(items, gain, loss, level=level) >= power

    low, high = 0.0, max(rate, 1 - rate)
    if not enough(high):
        return inf
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def enough(
    difference: float,
    rate: float,
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
    _check(1, rate, discordance)
    if not 0 < difference <= max(rate, 1 - rate):
        raise OutcomeError(
            f"A difference of {difference} does not fit an accuracy of {rate}: give one above 0 "
            f"and at most {max(rate, 1 - rate):g}"
        )
    gain, loss = _changes(rate, difference, discordance)

    def seen(items: int) -> bool:
        return chance_to_see(items, gain, loss, level=level) >= power

    low, high = 0, 1
    while not seen(high):
        low, high = high, 2 * high
        if high > _MOST:
            raise OutcomeError(f"{_MOST} items do not show {difference}: look for a larger one")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def chance_to_see(items: int, gain: float, loss: float, *, level: float = 0.05) -> float:
    """Return how likely McNemar's exact test finds more gained than lost.

    `gain` and `loss` are the shares of items that change in each direction.
    """
    changing = min(1.0, gain + loss)
    if changing <= 0:
        return 0.0
    # How many items change lies within a few standard deviations; the rest weighs nothing.
    spread = 10 * sqrt(items * changing * (1 - changing)) + 10
    low, high = (int(np.clip(items * changing + k * spread, 0, items)) for k in (-1, 1))
    changed = np.arange(low, high + 1)
    # The fewest gains whose tail is at most half the level.
    fewest = binom.isf(level / 2, changed, 0.5) + 1
    seen = binom.sf(fewest - 1, changed, min(1.0, gain / (gain + loss)))
    return float((binom.pmf(changed, items, changing) * seen).sum())


def single_question(items: int) -> float:
    """Return what one item more or less is, in points of accuracy (0 to 100)."""
    if items < 1:
        raise OutcomeError(f"{items} items found: give at least one")
    return 100 / items


def ratio(
    above: Float[np.ndarray, " prompt"], below: Float[np.ndarray, " prompt"], *, seed: int
) -> Estimate:
    """Return the ratio of two means over the same prompts, with its bootstrap interval."""
    weights = draws(len(above), _DRAWS, seed=seed)
    return interval(float(above.mean() / below.mean()), (weights @ above) / (weights @ below))


def _changes(rate: float, difference: float, discordance: float | None) -> tuple[float, float]:
    """Shares of items that go from wrong to right and back, for a rise from the nearer end."""
    low = min(rate, 1 - rate)
    if discordance is None:
        return (1 - low) * (low + difference), low * (1 - low - difference)
    room = min(2 * low + difference, 2 * (1 - low) - difference)
    changing = max(difference, min(discordance, room))
    return (changing + difference) / 2, (changing - difference) / 2


def _check(items: int, rate: float, discordance: float | None) -> None:
    if items < 1 or not 0 <= rate <= 1 or not 0 <= (discordance or 0) <= 1:
        raise OutcomeError(
            f"{items} items, accuracy {rate}, discordance {discordance}: give at least one item, "
            "and shares between 0 and 1"
        )
