"""Paired comparison of two accuracies on the same items; the unit is the item."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
from jaxtyping import Bool

from probes.errors import OutcomeError
from probes.stats.intervals import CONFIDENCE_LEVEL, Estimate
from probes.stats.power import minimum_detectable_effect


@dataclass(frozen=True, slots=True)
class PairedTest:
    """McNemar's exact test of two accuracies on the same items.

    Attributes:
        both_correct, neither_correct: Number of items correct both times, or never.
        gained, lost: Number of items correct only the second time, or only the first.
        difference: Second accuracy minus the first, -1 to 1, with Newcombe's 95 % interval.
        p_value: Two-sided.
    """

    both_correct: int
    gained: int
    lost: int
    neither_correct: int
    difference: Estimate
    p_value: float

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.both_correct + self.gained + self.lost + self.neither_correct

    @property
    def discordance(self) -> float:
        """Fraction of items correct exactly once, 0 to 1."""
        return (self.gained + self.lost) / self.n_items

    def minimum_detectable_effect(self, level: float = 0.05) -> float:
        """Smallest difference that this number of items detects, at the same discordance."""
        rate = (self.both_correct + self.lost) / self.n_items
        return minimum_detectable_effect(
            self.n_items, rate, discordance=self.discordance, level=level
        )

    def verdict(self, *, p_value: float | None = None, margin: float | None = None) -> str:
        """Label "more", "less", "alike" (the interval lies within ±`margin`) or "cannot tell".

        Args:
            p_value: The p-value corrected for multiple tests, in place of the test's own.
            margin: Equivalence margin of the difference, 0 to 1.
        """
        if (self.p_value if p_value is None else p_value) < 1 - CONFIDENCE_LEVEL:
            return "more" if self.difference.value > 0 else "less"
        widest = max(-self.difference.low, self.difference.high)
        return "alike" if margin is not None and widest < margin else "cannot tell"


def mcnemar_test(
    first: Bool[np.ndarray, " prompt"], second: Bool[np.ndarray, " prompt"]
) -> PairedTest:
    """McNemar's exact test of two sets of answers to the same items.

    Raises:
        OutcomeError: There is no item, or the numbers of answers differ.
    """
    if len(first) != len(second) or not len(first):
        raise OutcomeError(
            f"Answers cannot be paired: {len(first)} and {len(second)} found. Give both for the "
            "same items, and at least one"
        )
    cells = [(first & second), (~first & second), (first & ~second), (~first & ~second)]
    return _from_counts(*(int(cell.sum()) for cell in cells))


def possible_tables(first: int, second: int, n_items: int) -> Iterator[PairedTest]:
    """Yield every paired table with the given margins.

    Papers often report "15 of 30" and "16 of 30", but not how many items changed.

    Args:
        first, second: Number of correct answers, 0 to `n_items`.
        n_items: Number of items.
    """
    if not (0 <= first <= n_items and 0 <= second <= n_items and n_items > 0):
        raise OutcomeError(
            f"{first} and {second} of {n_items} are correct: give counts from 0 to the number of "
            "items"
        )
    for both in range(max(0, first + second - n_items), min(first, second) + 1):
        gained, lost = second - both, first - both
        yield _from_counts(both, gained, lost, n_items - both - gained - lost)


def _from_counts(both_correct: int, gained: int, lost: int, neither_correct: int) -> PairedTest:
    from scipy.stats import binomtest  # Slow to import.

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

    A bootstrap interval has no width where no item changed.
    """
    items = both_correct + gained + lost + neither_correct
    from scipy.stats import binomtest  # Slow to import.

    ends = []
    for count in (both_correct + lost, both_correct + gained):
        wilson = binomtest(count, items).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
        ends.append((count / items - float(wilson.low), float(wilson.high) - count / items))
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
