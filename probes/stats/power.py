"""Power of paired comparisons of accuracy (McNemar's exact test)."""

from math import inf, sqrt

import numpy as np
from scipy.stats import binom

from probes.errors import OutcomeError

_MAX_ITEMS = 10_000_000


def minimum_detectable_effect(
    n_items: int,
    accuracy: float,
    *,
    discordance: float | None = None,
    power: float = 0.8,
    level: float = 0.05,
) -> float:
    """Smallest difference of accuracy that McNemar's exact two-sided test detects, 0 to 1.

    The difference points away from the nearer end of the scale. It is infinite where the test
    lacks the power for even the largest difference.

    Args:
        n_items: Number of items, each answered twice.
        accuracy: Accuracy without the change, 0 to 1.
        discordance: Fraction of items whose answer changes in either direction, at least the
            difference. None: the two answers to an item are independent, which needs more items.
        power: Probability of a significant test, 0 to 1.
        level: Significance level of the test.
    """
    _check_arguments(n_items, accuracy, discordance)

    def is_detected(difference: float) -> bool:
        gain, loss = _change_rates(accuracy, difference, discordance)
        return mcnemar_power(n_items, gain, loss, level=level) >= power

    low, high = 0.0, max(accuracy, 1 - accuracy)
    if not is_detected(high):
        return inf
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if is_detected(middle) else (middle, high)
    return high


def items_needed(
    difference: float,
    accuracy: float,
    *,
    discordance: float | None = None,
    power: float = 0.8,
    level: float = 0.05,
) -> int:
    """Number of items that a difference needs; arguments as in `minimum_detectable_effect`.

    Power is not monotone in the number of items, because counts are whole numbers.

    Raises:
        OutcomeError: The difference does not fit the accuracy, or needs over ten million items.
    """
    _check_arguments(1, accuracy, discordance)
    if not 0 < difference <= max(accuracy, 1 - accuracy):
        raise OutcomeError(
            f"A difference of {difference} does not fit an accuracy of {accuracy}: give one "
            f"above 0 and at most {max(accuracy, 1 - accuracy):g}"
        )
    gain, loss = _change_rates(accuracy, difference, discordance)

    def is_detected(n: int) -> bool:
        return mcnemar_power(n, gain, loss, level=level) >= power

    low, high = 0, 1
    while not is_detected(high):
        low, high = high, 2 * high
        if high > _MAX_ITEMS:
            raise OutcomeError(
                f"{_MAX_ITEMS} items do not detect {difference}: give a larger difference"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_detected(middle) else (middle, high)
    return high


def mcnemar_power(n_items: int, gain: float, loss: float, *, level: float = 0.05) -> float:
    """Probability that McNemar's exact test finds significantly more gained than lost.

    `gain` and `loss` are the fractions of items that change in each direction.
    """
    changing = min(1.0, gain + loss)
    if changing <= 0:
        return 0.0
    # Counts more than ten standard deviations from the mean have no weight.
    spread = 10 * sqrt(n_items * changing * (1 - changing)) + 10
    low, high = (int(np.clip(n_items * changing + k * spread, 0, n_items)) for k in (-1, 1))
    changed = np.arange(low, high + 1)
    # The fewest gains whose tail is at most half the level.
    fewest = binom.isf(level / 2, changed, 0.5) + 1
    significant = binom.sf(fewest - 1, changed, min(1.0, gain / (gain + loss)))
    return float((binom.pmf(changed, n_items, changing) * significant).sum())


def accuracy_step(n_items: int) -> float:
    """Change of accuracy by one item, in percentage points."""
    if n_items < 1:
        raise OutcomeError(f"{n_items} items found: give at least one")
    return 100 / n_items


def _change_rates(
    accuracy: float, difference: float, discordance: float | None
) -> tuple[float, float]:
    """Fractions of items gained and lost, for a rise from the nearer end of the scale."""
    low = min(accuracy, 1 - accuracy)
    if discordance is None:
        return (1 - low) * (low + difference), low * (1 - low - difference)
    room = min(2 * low + difference, 2 * (1 - low) - difference)
    changing = max(difference, min(discordance, room))
    return (changing + difference) / 2, (changing - difference) / 2


def _check_arguments(n_items: int, accuracy: float, discordance: float | None) -> None:
    if n_items < 1 or not 0 <= accuracy <= 1 or not 0 <= (discordance or 0) <= 1:
        raise OutcomeError(
            f"{n_items} items, accuracy {accuracy}, discordance {discordance}: give at least one "
            "item, and fractions between 0 and 1"
        )
