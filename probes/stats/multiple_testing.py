"""Error rates of many tests: corrected p-values and false discoveries."""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values (1979, Scand J Stat 6:65), in the given order."""
    order = np.argsort(p_values)
    stepped = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected.tolist()


def false_discovery_rate(p_values: Sequence[float], accepted: Sequence[bool]) -> float:
    """Bound on the expected fraction of false discoveries among the accepted tests.

    Benjamini and Hochberg (1995, J R Stat Soc B 57:289): number of tests times the largest accepted
    p-value, divided by the number of accepted tests; NaN if none is accepted.
    """
    largest = [p for p, is_accepted in zip(p_values, accepted, strict=True) if is_accepted]
    if not largest:
        return float("nan")
    return min(1.0, len(p_values) * max(largest) / len(largest))
