"""Which is lost first, mechanism or accuracy, and whether weight noise would cost as much."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.rate_distortion.losses import (
    LOSS_MARGIN,
    MIN_PAIRS,
    UNKNOWN,
    LossOrder,
    LossOrderLabel,
    NoiseComparison,
    NoiseLabel,
)
from probes.comparison.rate_distortion.mechanism import InterchangeOutcome
from probes.stats.intervals import (
    BOOTSTRAP_DRAWS,
    Estimate,
    bootstrap_estimate,
    bootstrap_weights,
    proportion,
)
from probes.stats.paired import mcnemar_test


@dataclass(frozen=True, eq=False)
class NoisyCopy:
    """Measurements of a copy of the parent with weight noise; fields as in `NoiseComparison`."""

    scale: float
    kl: float
    outcome: InterchangeOutcome
    circuit: float = float("nan")


def loss_order(
    parent: InterchangeOutcome, relative: InterchangeOutcome, *, seed: int
) -> LossOrder | None:
    """Order of losses; None if both models solve fewer than 20 pairs."""
    both = parent.solved & relative.solved
    if both.sum() < MIN_PAIRS:
        return None
    weights = bootstrap_weights(len(both), BOOTSTRAP_DRAWS, seed=seed)
    missed_hits = _mean_draws(parent.mean_hits - relative.mean_hits, both, weights)
    missed_answers = parent.right.astype(float) - relative.right
    missed_answers = _mean_draws(missed_answers, np.ones_like(both), weights)
    mechanism = bootstrap_estimate(missed_hits)
    accuracy = mcnemar_test(relative.right, parent.right).difference
    difference, pairs = bootstrap_estimate(missed_hits - missed_answers), int(both.sum())
    label: LossOrderLabel = "cannot tell"
    if _can_exclude_margin(pairs) and max(mechanism.high, accuracy.high) < LOSS_MARGIN:
        label = "neither"
    elif _is_within_margin(difference, pairs):
        label = "together"
    elif difference.low > 0:
        label = "mechanism first"
    elif difference.high < 0:
        label = "accuracy first"
    return LossOrder(pairs, mechanism, accuracy, difference, label)


def compare_with_noise(
    parent: InterchangeOutcome,
    relative: InterchangeOutcome,
    copies: Sequence[NoisyCopy],
    *,
    seed: int,
) -> NoiseComparison | None:
    """Compare a relative with noisy copies of its parent at the same KL; None without copies."""
    if not copies:
        return None
    weights = bootstrap_weights(len(parent.right), BOOTSTRAP_DRAWS, seed=seed)
    hit_gaps, right_gaps, counts = [], [], []
    for copy in (one.outcome for one in copies):
        shared = parent.solved & relative.solved & copy.solved
        if shared.sum() >= MIN_PAIRS:
            hit_gaps.append(_mean_draws(relative.mean_hits - copy.mean_hits, shared, weights))
            counts.append(int(shared.sum()))
        gap = relative.right * 1.0 - copy.right
        right_gaps.append(_mean_draws(gap, np.ones_like(parent.right), weights))
    difference = _pool_copies(hit_gaps, seed)
    return NoiseComparison(
        scales=tuple(copy.scale for copy in copies),
        kl=tuple(copy.kl for copy in copies),
        right=tuple(float(copy.outcome.right.mean()) for copy in copies),
        mechanism=tuple(_copy_accuracy(parent, copy.outcome) for copy in copies),
        circuit=tuple(copy.circuit for copy in copies),
        difference=difference,
        accuracy_difference=_pool_copies(right_gaps, seed),
        label=_noise_label(difference, min(counts))
        if len(counts) == len(copies)
        else "cannot tell",
        compared=len(counts),
    )


def shared_interchange_accuracy(
    parent: InterchangeOutcome, relative: InterchangeOutcome, *, seed: int
) -> Estimate:
    """Interchange accuracy on pairs that both models solve, as a mean over the variables."""
    both = parent.solved & relative.solved
    if both.sum() < MIN_PAIRS:
        return UNKNOWN
    weights = bootstrap_weights(len(both), BOOTSTRAP_DRAWS, seed=seed)
    return bootstrap_estimate(_mean_draws(relative.mean_hits, both, weights))


def _copy_accuracy(parent: InterchangeOutcome, copy: InterchangeOutcome) -> float:
    both = parent.solved & copy.solved
    return float(copy.mean_hits[both].mean()) if both.sum() >= MIN_PAIRS else float("nan")


def _mean_draws(
    values: Float[np.ndarray, " prompt"],
    selected: Bool[np.ndarray, " prompt"],
    weights: Float[np.ndarray, "draw prompt"],
) -> Float[np.ndarray, " _"]:
    """Mean over the selected prompts: of all of them, then of each bootstrap sample."""
    draws = (weights @ (values * selected)) / np.maximum(weights @ selected.astype(float), 1)
    return np.concatenate([[values[selected].mean()], draws])


def _pool_copies(by_copy: Sequence[Float[np.ndarray, " _"]], seed: int) -> Estimate:
    """Mean over copies; each draw resamples the copies as well."""
    if not by_copy:
        return UNKNOWN
    draws = np.stack(by_copy, 1)
    weights = bootstrap_weights(draws.shape[1], len(draws) - 1, seed=seed + 1) / draws.shape[1]
    pooled = (draws[1:] * weights).sum(1)
    return bootstrap_estimate(np.concatenate([[draws[0].mean()], pooled]))


def _can_exclude_margin(pairs: int) -> bool:
    """Whether so many pairs without a change exclude a change as large as the margin."""
    return proportion(np.zeros(pairs, bool)).high < LOSS_MARGIN


def _is_within_margin(estimate: Estimate, pairs: int) -> bool:
    return (
        _can_exclude_margin(pairs) and estimate.low > -LOSS_MARGIN and estimate.high < LOSS_MARGIN
    )


def _noise_label(difference: Estimate, pairs: int) -> NoiseLabel:
    if _is_within_margin(difference, pairs):
        return "like noise"
    if difference.high < 0:
        return "worse than noise"
    return "better than noise" if difference.low > 0 else "cannot tell"
