"""Error rates of many tests: thresholds of a null, corrected p-values, false discoveries."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from jaxtyping import Float

ERROR_RATE = 0.05


def conformal_threshold(
    null: Sequence[float] | Float[np.ndarray, "draw ..."],
) -> Float[np.ndarray, "..."]:
    """Threshold that a further draw of the null exceeds with probability `exceedance_rate(n)`.

    The order statistic of conformal prediction (Vovk, Gammerman and Shafer 2005): draws of the null
    and the further draw are exchangeable. The 95th percentile of 20 draws is exceeded in 9 % of the
    cases, not in 5 %.

    Args:
        null: At least one draw, along the first axis.
    """
    ordered = np.sort(np.asarray(null, dtype=float), axis=0)
    return np.asarray(ordered[_rank(len(ordered)) - 1])


def exceedance_rate(n: int) -> float:
    """Probability that a further draw exceeds the threshold of n; at most 0.05 from n = 19."""
    return (n + 1 - _rank(n)) / (n + 1)


def _rank(n: int) -> int:
    return min(n, ceil((1 - ERROR_RATE) * (n + 1) - 1e-9))


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
