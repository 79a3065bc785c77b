"""How well a number tells related models from strangers, with a model as the unit.

A score that runs high in relatives proves nothing unless it runs lower in models that are not
related, and with few models even a perfect order may be luck.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import root_scalar
from scipy.stats import norm, rankdata

from probes.errors import OutcomeError
from probes.stats.intervals import CONFIDENCE_LEVEL, Estimate

_EPSILON = 1e-9

AUROCLabel = Literal["above", "below", "cannot tell", "too few models"]


@dataclass(frozen=True, slots=True)
class GroupAUROC:
    """How often a related model scores above a stranger.

    Attributes:
        value: The share of pairs in which it does, ties counted half (0 to 1, 0.5 by chance; the
            area under the ROC curve), with Newcombe's 95 % interval (2006, Stat Med 25:559,
            method 5), which does not shrink to a point where the order is perfect, as a
            bootstrap's or DeLong's does.
        related, strangers: How many models there are of each.
        p: Two-sided exact permutation test: how likely an order at least as uneven is if the
            labels mean nothing. Ties are taken into account.
        smallest_p: The smallest p that so many models can yield, that of a perfect order.
    """

    value: Estimate
    n_related: int
    n_negative_controls: int
    p_value: float
    min_p_value: float

    @property
    def label(self) -> AUROCLabel:
        """Say where related models stand: a word is given only if interval and test agree."""
        if self.min_p_value >= 1 - CONFIDENCE_LEVEL:
            return "too few models"
        if self.p_value >= 1 - CONFIDENCE_LEVEL or self.value.low <= 0.5 <= self.value.high:
            return "cannot tell"
        return "above" if self.value.value > 0.5 else "below"

    def summary(self) -> tuple[str, ...]:
        """Say in plain sentences whether the two groups can be told apart."""
        counts = f"{self.n_related} related models and {self.n_negative_controls} strangers"
        found = (
            f"A related model scores above a stranger with probability {self.value} ({counts}; "
            f"exact permutation p = {self.p_value:.2g}, the smallest possible {self.min_p_value:.2g})."
        )
        says = {
            "above": "Related models score higher than strangers.",
            "below": "Related models score LOWER than strangers: the score points the wrong way.",
            "cannot tell": "Related models and strangers cannot be told apart by this score.",
            "too few models": "Too few models to tell them apart: even a perfect order would be "
            f"luck with p = {self.min_p_value:.2g}. Add models, such as other seeds.",
        }
        return (found, says[self.label])


def group_auroc(
    related: Float[np.ndarray, " model_a"], negative_controls: Float[np.ndarray, " model_b"]
) -> GroupAUROC:
    """Return how likely a related model scores above a stranger (Mann and Whitney 1947).

    Args:
        related: One score for each related model. Scores of one model on other prompts are not
            further models.
        strangers: One for each model that is not related, such as untrained nets.

    Raises:
        OutcomeError: A group is empty, or a score is not a finite number.
    """
    if not len(related) or not len(negative_controls):
        raise OutcomeError(
            f"{len(related)} related models and {len(negative_controls)} strangers: give at least one each"
        )
    scores = np.concatenate([related, negative_controls])
    if not np.isfinite(scores).all():
        raise OutcomeError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are NaN or infinite: "
            "leave out models that could not be scored, and say so"
        )
    m, n = len(related), len(negative_controls)
    twice = np.rint(2 * rankdata(scores)).astype(np.int64)  # mid-ranks are halves: twice is whole
    wins = int(twice[:m].sum()) - m * (m + 1)
    value = wins / (2 * m * n)
    low, high = _newcombe(value, m, n)
    return GroupAUROC(
        value=Estimate(value, low, high),
        n_related=m,
        n_negative_controls=n,
        p_value=_permutation_p_value(twice, m),
        min_p_value=min(1.0, 2 / comb(m + n, m)),
    )


def _permutation_p_value(doubled_ranks: Int[np.ndarray, " model"], m: int) -> float:
    """Count the labelings whose rank sum is as far from its mean as that of the first m."""
    models, total = len(doubled_ranks), int(doubled_ranks.sum())
    # ways[k, s]: the share of labelings of the models so far that label k with rank sum s.
    ways = np.zeros((m + 1, total + 1))
    ways[0, 0] = 1.0
    for rank in doubled_ranks.tolist():
        ways[1:, rank:] += ways[:-1, : total + 1 - rank]
        ways /= 2  # so that the counts stay finite; the last division undoes it
    # Whole numbers, as doubled ranks times the number of models: no rounding at the edge.
    away = np.abs(np.arange(total + 1) * models - m * total)
    far = away >= abs(int(doubled_ranks[:m].sum()) * models - m * total)
    return min(1.0, float(ways[m, far].sum() / ways[m].sum()))


def _newcombe(value: float, m: int, n: int) -> tuple[float, float]:
    """Newcombe's score-like interval: the true values from which `value` is not too far."""
    z = float(norm.isf((1 - CONFIDENCE_LEVEL) / 2))
    spare = (m + n) / 2 - 1

    def beyond(true: float) -> float:
        spread = 1 + spare * ((1 - true) / (2 - true) + true / (1 + true))
        return abs(true - value) - z * (true * (1 - true) * spread / (m * n)) ** 0.5

    # At a value of 0 or 1 the interval reaches that end, and only the other end is sought.
    low = 0.0 if value == 0 else _find_root(beyond, 0.0, min(value, 1 - _EPSILON))
    high = 1.0 if value == 1 else _find_root(beyond, max(value, _EPSILON), 1.0)
    return low, high


def _find_root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(root_scalar(function, bracket=(low, high), method="brentq").root)
