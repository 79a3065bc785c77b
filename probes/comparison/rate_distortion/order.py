"""What breaks first, the mechanism or the accuracy, and is it more than plain noise would break?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.rate_distortion.mechanism import InterchangeOutcome
from probes.comparison.rate_distortion.result import (
    UNKNOWN,
    LossOrder,
    LossOrderLabel,
    NoiseComparison,
    NoiseLabel,
)
from probes.stats.intervals import (
    BOOTSTRAP_DRAWS,
    Estimate,
    bootstrap_weights,
    percentile_interval,
    proportion,
)
from probes.stats.paired import mcnemar_test

MARGIN = 0.05
"""How far two shares may differ and still count as the same."""

MIN_PAIRS = 20
"""So many items must be solved by both models, or nothing is said of their mechanism."""


def loss_order(
    parent: InterchangeOutcome, relative: InterchangeOutcome, *, seed: int
) -> LossOrder | None:
    """Say what broke first; None where too few items are solved by both."""
    both = parent.solved & relative.solved
    if both.sum() < MIN_PAIRS:
        return None
    weights = bootstrap_weights(len(both), BOOTSTRAP_DRAWS, seed=seed)
    lost = _bootstrap_mean(parent.mean_hits - relative.mean_hits, both, weights)
    missed = parent.right.astype(float) - relative.right
    wrong = _bootstrap_mean(missed, np.ones_like(both), weights)
    mechanism, items = _to_estimate(lost), int(both.sum())
    accuracy = mcnemar_test(relative.right, parent.right).difference
    lead = percentile_interval(float(lost[0] - wrong[0]), lost[1:] - wrong[1:])
    word: LossOrderLabel = "cannot tell"
    if _can_exclude_margin(items) and max(mechanism.high, accuracy.high) < MARGIN:
        word = "neither"
    elif _is_within_margin(lead, items):
        word = "together"
    elif lead.low > 0:
        word = "mechanism first"
    elif lead.high < 0:
        word = "accuracy first"
    return LossOrder(items, mechanism, accuracy, lead, word)


@dataclass(frozen=True, eq=False)
class NoisyCopy:
    """A copy with noise, and what was measured of it."""

    scale: float
    kl: float
    outcome: InterchangeOutcome
    circuit: float = float("nan")


def compare_with_noise(
    parent: InterchangeOutcome,
    relative: InterchangeOutcome,
    copies: Sequence[NoisyCopy],
    *,
    seed: int,
) -> NoiseComparison | None:
    """Compare a relative with copies of its parent that are as far away; None without any."""
    if not copies:
        return None
    weights = bootstrap_weights(len(parent.right), BOOTSTRAP_DRAWS, seed=seed)
    shared = [parent.solved & relative.solved & one.outcome.solved for one in copies]
    enough = [n for n, items in enumerate(shared) if items.sum() >= MIN_PAIRS]
    gaps = [
        _bootstrap_mean(relative.mean_hits - copies[n].outcome.mean_hits, shared[n], weights)
        for n in enough
    ]
    every = np.ones_like(parent.right)
    wrong = [
        _bootstrap_mean(relative.right * 1.0 - one.outcome.right, every, weights) for one in copies
    ]
    difference = _pool_copies(gaps, seed)
    least = min((int(shared[n].sum()) for n in enough), default=0)
    return NoiseComparison(
        scales=tuple(one.scale for one in copies),
        kl=tuple(one.kl for one in copies),
        right=tuple(float(one.outcome.right.mean()) for one in copies),
        mechanism=tuple(_copy_accuracy(parent, one.outcome) for one in copies),
        circuit=tuple(one.circuit for one in copies),
        difference=difference,
        accuracy_difference=_pool_copies(wrong, seed),
        label=_noise_label(difference, least),
    )


def shared_interchange_accuracy(
    parent: InterchangeOutcome, relative: InterchangeOutcome, *, seed: int
) -> Estimate:
    """Return the share of crossings that turn as foretold, on items that both solve."""
    both = parent.solved & relative.solved
    if both.sum() < MIN_PAIRS:
        return UNKNOWN
    return _to_estimate(
        _bootstrap_mean(
            relative.mean_hits, both, bootstrap_weights(len(both), BOOTSTRAP_DRAWS, seed=seed)
        )
    )


def _copy_accuracy(parent: InterchangeOutcome, copy: InterchangeOutcome) -> float:
    both = parent.solved & copy.solved
    return float(copy.mean_hits[both].mean()) if both.sum() >= MIN_PAIRS else float("nan")


def _bootstrap_mean(
    values: Float[np.ndarray, " prompt"],
    selected: Bool[np.ndarray, " prompt"],
    weights: Float[np.ndarray, "draw prompt"],
) -> Float[np.ndarray, " _"]:
    """Return the mean over some items, and after it that of each draw."""
    found = (weights @ (values * selected)) / np.maximum(weights @ selected.astype(float), 1)
    return np.concatenate([[values[selected].mean()], found])


def _to_estimate(drawn: Float[np.ndarray, " _"]) -> Estimate:
    return percentile_interval(float(drawn[0]), drawn[1:])


def _pool_copies(drawn: Sequence[Float[np.ndarray, " _"]], seed: int) -> Estimate:
    """Return the mean over copies; a draw takes copies anew as well as items."""
    if not drawn:
        return UNKNOWN
    table = np.stack(drawn, 1)
    picks = bootstrap_weights(table.shape[1], len(table) - 1, seed=seed + 1) / table.shape[1]
    return percentile_interval(float(table[0].mean()), (table[1:] * picks).sum(1))


def _can_exclude_margin(pairs: int) -> bool:
    """Say whether so many items without a change rule out a change as large as the margin."""
    return proportion(np.zeros(pairs, bool)).high < MARGIN


def _is_within_margin(estimate: Estimate, pairs: int) -> bool:
    return _can_exclude_margin(pairs) and estimate.low > -MARGIN and estimate.high < MARGIN


def _noise_label(estimate: Estimate, pairs: int) -> NoiseLabel:
    if _is_within_margin(estimate, pairs):
        return "like noise"
    if estimate.high < 0:
        return "worse than noise"
    return "better than noise" if estimate.low > 0 else "cannot tell"
