"""Numbers with their intervals."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest

CONFIDENCE_LEVEL = 0.95
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        # Adding 0 turns a rounded -0 into 0.
        value, low, high = (round(n, 2) + 0.0 for n in (self.value, self.low, self.high))
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def proportion(hits: Bool[np.ndarray, " prompt"]) -> Estimate:
    """Return a share with its Wilson interval, which is honest at 0 and at 1 (Wilson 1927).

    Of no prompts the share is NaN, and may be anything from 0 to 1.
    """
    if not len(hits):
        return Estimate(float("nan"), 0.0, 1.0)
    found = binomtest(int(hits.sum()), len(hits)).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return Estimate(float(hits.mean()), float(found.low), float(found.high))


def bootstrap_mean(values: Float[np.ndarray, " prompt"], *, seed: int) -> Estimate:
    """Return a mean with its bootstrap interval over prompts (percentile, 2,000 draws)."""
    weights = bootstrap_weights(len(values), _DRAWS, seed=seed) / len(values)
    return percentile_interval(float(values.mean()), weights @ values)


def percentile_interval(value: float, samples: Float[np.ndarray, " draw"]) -> Estimate:
    """Return a number with the middle 95 % of its bootstrap draws."""
    low, high = np.quantile(samples, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


def bootstrap_weights(count: int, n_draws: int, *, seed: int) -> Float[np.ndarray, "draw prompt"]:
    """Say how often each prompt is drawn in each bootstrap sample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=n_draws).astype(np.float64)
