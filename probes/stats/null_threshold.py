"""Threshold of a null, such as the best scores of random-init models."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from jaxtyping import Float

from probes.errors import ProbeError

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

    Raises:
        ProbeError: There is no draw. Its threshold would be infinite, and a value below it would
            look like a failed test, not like one without a null.
    """
    ordered = np.sort(np.asarray(null, dtype=float), axis=0)
    if not len(ordered):
        raise ProbeError("A null of 0 draws has no threshold: give at least one draw, as nulls=1")
    return np.asarray(ordered[_rank(len(ordered)) - 1])


def exceedance_rate(n: int) -> float:
    """Probability that a further draw exceeds the threshold of n; at most 0.05 from n = 19."""
    return (n + 1 - _rank(n)) / (n + 1)


def _rank(n: int) -> int:
    return min(n, ceil((1 - ERROR_RATE) * (n + 1) - 1e-9))
