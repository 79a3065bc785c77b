"""Learning curves over seeds, and examples needed to reach a divergence."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float
from scipy import stats

from probes.errors import ModelError
from probes.experiments.soft_labels.plan import NameRow
from probes.experiments.soft_labels.texts import StudentScores
from probes.stats.intervals import CONFIDENCE_LEVEL, Estimate

KL_TARGETS = (2.0, 1.0, 0.5, 0.25, 0.1)
"""Divergences to reach, in bits."""


@dataclass(frozen=True, slots=True)
class LearningCurvePoint:
    """Measure of one arm after a number of examples, with its interval over seeds."""

    arm: str
    examples: int
    value: Estimate
    seeds: int


@dataclass(frozen=True, slots=True)
class ExamplesNeeded:
    """Number of examples that an arm needs to reach a divergence.

    Attributes:
        arm, target: Arm, and divergence in bits.
        reached: Number of seeds that reached it.
        seeds: Number of seeds.
        examples: Geometric mean over seeds; None unless all reached it.
        ratio: Ratio to `soft` on the same seeds; None unless both always reached it.
        at_least: Lower bound of the ratio where `soft` always reached it and this arm did not:
            runs that did not reach it count with all their examples. Else NaN.
    """

    arm: str
    target: float
    reached: int
    seeds: int
    examples: Estimate | None
    ratio: Estimate | None
    at_least: float

    def __str__(self) -> str:
        if self.examples is None:
            more = "" if np.isnan(self.at_least) else f", more than {self.at_least:.1f} x soft"
            return f"not reached ({self.reached} of {self.seeds} seeds{more})"
        ratio = "" if self.ratio is None else f", {self.ratio} x soft"
        return f"{self.examples.value:.0f} examples{ratio}"


def arm_curve(rows: Sequence[NameRow], arm: str, measure: str) -> list[LearningCurvePoint]:
    """A measure of one arm against examples seen, with intervals over seeds.

    Args:
        rows: Table of the study.
        arm: One of `ARMS`, `COUNTING` or `TEACHER`.
        measure: Field of `StudentScores`; divergences are averaged as logarithms.

    Raises:
        ModelError: The measure is unknown.
    """
    known = [field.name for field in fields(StudentScores)]
    if measure not in known:
        raise ModelError(f"There is no measure {measure!r}: use one of {', '.join(known)}")
    own = [row for row in rows if row.arm == arm and row.stage != "tuning"]
    points = []
    for examples in sorted({row.examples for row in own}):
        values = np.array([getattr(row, measure) for row in own if row.examples == examples])
        value = over_seeds(values, logs=measure.endswith("_kl"))
        points.append(LearningCurvePoint(arm, examples, value, len(values)))
    return points


def over_seeds(values: Float[np.ndarray, " seed"], *, logs: bool) -> Estimate:
    """Mean with its t interval over seeds; the geometric mean with `logs`."""
    kept = np.log(values) if logs else values
    center, count = float(kept.mean()), len(kept)
    half = 0.0
    if count > 1:
        quantile = stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, count - 1)
        half = float(quantile * kept.std(ddof=1) / np.sqrt(count))
    ends = (center, center - half, center + half)
    return Estimate(*(float(np.exp(end)) if logs else end for end in ends))


def examples_needed(
    rows: Sequence[NameRow], arm: str, target: float, *, measure: str = "name_kl"
) -> ExamplesNeeded:
    """Number of examples until an arm reaches a divergence in bits.

    It is the first time that the curve of a seed reaches it, which favors noisy curves. Between two
    evaluations, log divergence is interpolated on log examples.
    """
    own, soft = (_examples_to_target(rows, name, target, measure) for name in (arm, "soft"))
    last = max((row.examples for row in rows if row.stage == "run"), default=0)
    reached = [at for at in own.values() if at is not None]
    all_reached = bool(own) and len(reached) == len(own)
    soft_reached = {seed: at for seed in own if (at := soft.get(seed)) is not None}
    comparable = bool(soft_reached) and len(soft_reached) == len(own)
    ratios = np.array([(own[seed] or last) / at for seed, at in soft_reached.items()])
    is_bound = comparable and not all_reached
    return ExamplesNeeded(
        arm,
        target,
        reached=len(reached),
        seeds=len(own),
        examples=over_seeds(np.array(reached), logs=True) if all_reached else None,
        ratio=over_seeds(ratios, logs=True) if all_reached and comparable else None,
        at_least=float(np.exp(np.log(ratios).mean())) if is_bound else float("nan"),
    )


def _examples_to_target(
    rows: Sequence[NameRow], arm: str, target: float, measure: str
) -> dict[int, float | None]:
    """Examples at which the curve of each seed first reaches the target; None if it never does."""
    own = [row for row in rows if row.arm == arm and row.stage != "tuning"]
    return {
        seed: first_crossing(
            sorted((row.examples, getattr(row, measure)) for row in own if row.seed == seed), target
        )
        for seed in sorted({row.seed for row in own})
    }


def first_crossing(points: Sequence[tuple[int, float]], target: float) -> float | None:
    """First position where a curve falls to a target, on logarithmic axes; None if it does not."""
    before: tuple[int, float] | None = None
    for examples, value in points:
        if value <= target:
            if before is None or not before[1] > value:  # NaN cannot be interpolated.
                return float(examples)
            part = np.log(before[1] / target) / np.log(before[1] / max(value, 1e-12))
            return float(before[0] * (examples / before[0]) ** part)
        before = (examples, value)
    return None
