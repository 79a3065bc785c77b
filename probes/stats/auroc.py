"""AUROC of a score between related models and negative controls; the unit is the model."""

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
    """AUROC of related models over negative controls.

    Attributes:
        value: AUROC (0 to 1, 0.5 by chance, ties count half) with Newcombe's 95 % interval (2006,
            Stat Med 25:559, method 5), which has a width at a perfect order too.
        n_related, n_negative_controls: Number of models.
        p_value: Two-sided exact permutation test, with ties.
        min_p_value: Smallest p-value that this number of models can give.
    """

    value: Estimate
    n_related: int
    n_negative_controls: int
    p_value: float
    min_p_value: float

    @property
    def label(self) -> AUROCLabel:
        """Verdict: "above" or "below" only where interval and test agree."""
        if self.min_p_value >= 1 - CONFIDENCE_LEVEL:
            return "too few models"
        if self.p_value >= 1 - CONFIDENCE_LEVEL or self.value.low <= 0.5 <= self.value.high:
            return "cannot tell"
        return "above" if self.value.value > 0.5 else "below"

    def summary(self) -> tuple[str, ...]:
        """Sentences on whether the score separates the two groups."""
        counts = f"{self.n_related} related models and {self.n_negative_controls} negative controls"
        numbers = (
            f"A related model scores above a negative control with probability {self.value} "
            f"({counts}; exact permutation p = {self.p_value:.2g}, the smallest possible "
            f"{self.min_p_value:.2g})."
        )
        verdicts = {
            "above": "Related models score higher than negative controls.",
            "below": "Related models score LOWER than negative controls.",
            "cannot tell": "This score does not separate related models from negative controls.",
            "too few models": "Too few models: a perfect order "
            f"has p = {self.min_p_value:.2g}. Add models, such as other seeds.",
        }
        return (numbers, verdicts[self.label])


def group_auroc(
    related: Float[np.ndarray, " model_a"], negative_controls: Float[np.ndarray, " model_b"]
) -> GroupAUROC:
    """AUROC with interval and exact test (Mann and Whitney 1947, Ann Math Stat 18:50).

    Args:
        related: One score for each related model, not for each prompt.
        negative_controls: One score for each unrelated model, such as a random-init model.

    Raises:
        OutcomeError: A group is empty, or a score is not a finite number.
    """
    if not len(related) or not len(negative_controls):
        raise OutcomeError(
            f"{len(related)} related models and {len(negative_controls)} negative controls: give "
            "at least one each"
        )
    scores = np.concatenate([related, negative_controls])
    if not np.isfinite(scores).all():
        raise OutcomeError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are NaN or infinite: "
            "leave out models without a score, and report them"
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
    """Fraction of labelings whose rank sum is as far from its mean as that of the first m."""
    models, total = len(doubled_ranks), int(doubled_ranks.sum())
    # weights[k, s]: fraction of labelings so far that label k models with rank sum s.
    weights = np.zeros((m + 1, total + 1))
    weights[0, 0] = 1.0
    for rank in doubled_ranks.tolist():
        weights[1:, rank:] += weights[:-1, : total + 1 - rank]
        weights /= 2  # so that the counts stay finite; the last division undoes it
    # Whole numbers, as doubled ranks times the number of models: no rounding at the edge.
    away = np.abs(np.arange(total + 1) * models - m * total)
    far = away >= abs(int(doubled_ranks[:m].sum()) * models - m * total)
    return min(1.0, float(weights[m, far].sum() / weights[m].sum()))


def _newcombe(value: float, m: int, n: int) -> tuple[float, float]:
    """Newcombe's score-like interval of an AUROC."""
    z = float(norm.isf((1 - CONFIDENCE_LEVEL) / 2))
    spare = (m + n) / 2 - 1

    def beyond(true: float) -> float:
        spread = 1 + spare * ((1 - true) / (2 - true) + true / (1 + true))
        return abs(true - value) - z * (true * (1 - true) * spread / (m * n)) ** 0.5

    # At a value of 0 or 1 the interval reaches that end.
    low = 0.0 if value == 0 else _find_root(beyond, 0.0, min(value, 1 - _EPSILON))
    high = 1.0 if value == 1 else _find_root(beyond, max(value, _EPSILON), 1.0)
    return low, high


def _find_root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(root_scalar(function, bracket=(low, high), method="brentq").root)
