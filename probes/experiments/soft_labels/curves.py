"""What the table of "My name is ⟨?⟩" says: curves over seeds, and examples needed."""

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
"""Bits of divergence that are to be reached."""


@dataclass(frozen=True, slots=True)
class LearningCurvePoint:
    """A measure of one arm after so many examples, with its interval over seeds."""

    arm: str
    examples: int
    value: Estimate
    seeds: int


@dataclass(frozen=True, slots=True)
class ExamplesNeeded:
    """How many examples an arm needs to come down to a divergence.

    Attributes:
        arm, target: Which, and to how many bits.
        reached: How many of the seeds came there.
        seeds: How many there are.
        examples: The geometric mean over seeds; None unless all came there.
        ratio: Times what `soft` needs on the same seed; None unless both always came there.
        at_least: Lower end of the ratio where `soft` always came there and this arm did not: the
            geometric mean with all examples of the run for what it would have taken. Else NaN.
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
    """Return a measure of one arm against examples seen, with intervals over seeds.

    Args:
        rows: A table.
        arm: One of `ARMS`, or `COUNTING`.
        measure: One of the measures in `Marks`. Divergences are averaged as logarithms.

    Raises:
        ModelError: There is no such measure.
    """
    if measure not in (field.name for field in fields(StudentScores)):
        known = ", ".join(field.name for field in fields(StudentScores))
        raise ModelError(f"There is no measure {measure!r}: the measures are {known}")
    here = [row for row in rows if row.arm == arm and row.stage != "tuning"]
    found = []
    for examples in sorted({row.examples for row in here}):
        values = np.array([getattr(row, measure) for row in here if row.examples == examples])
        value = over_seeds(values, logs=measure.endswith("_kl"))
        found.append(LearningCurvePoint(arm, examples, value, len(values)))
    return found


def over_seeds(values: Float[np.ndarray, " seed"], *, logs: bool) -> Estimate:
    """Return a mean with its t interval over seeds; with `logs`, the geometric mean."""
    kept = np.log(values) if logs else values
    center, count = float(kept.mean()), len(kept)
    half = 0.0
    if count > 1:
        half = float(
            stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, count - 1) * kept.std(ddof=1) / np.sqrt(count)
        )
    ends = (center, center - half, center + half)
    return Estimate(*(float(np.exp(end)) if logs else end for end in ends))


def examples_needed(
    rows: Sequence[NameRow], arm: str, target: float, *, measure: str = "name_kl"
) -> ExamplesNeeded:
    """Return how many examples an arm needs to come down to a divergence in bits.

    What counts is the first time that a seed's curve comes there, which favors arms whose curves
    are restless. Between two looks it is read off the line between their logarithms.
    """
    mine, soft = (_examples_to_target(rows, name, target, measure) for name in (arm, "soft"))
    last = max((row.examples for row in rows if row.stage == "run"), default=0)
    came = [at for at in mine.values() if at is not None]
    whole = bool(mine) and len(came) == len(mine)
    both = {seed: at for seed in mine if (at := soft.get(seed)) is not None}
    known = bool(both) and len(both) == len(mine)
    ratios = np.array([(mine[seed] or last) / at for seed, at in both.items()])
    return ExamplesNeeded(
        arm,
        target,
        reached=len(came),
        seeds=len(mine),
        examples=over_seeds(np.array(came), logs=True) if whole else None,
        ratio=over_seeds(ratios, logs=True) if whole and known else None,
        at_least=float(np.exp(np.log(ratios).mean())) if known and not whole else float("nan"),
    )


def _examples_to_target(
    rows: Sequence[NameRow], arm: str, target: float, measure: str
) -> dict[int, float | None]:
    """Return for each seed when its curve first came to the target; None where it never did."""
    found: dict[int, float | None] = {}
    here = [row for row in rows if row.arm == arm and row.stage != "tuning"]
    for seed in sorted({row.seed for row in here}):
        looks = sorted((row.examples, getattr(row, measure)) for row in here if row.seed == seed)
        found[seed] = first_crossing(looks, target)
    return found


def first_crossing(points: Sequence[tuple[int, float]], target: float) -> float | None:
    """Return where a curve first comes down to a target, on logarithms; None where it does not."""
    before: tuple[int, float] | None = None
    for examples, value in points:
        if value <= target:
            if before is None or not before[1] > value:  # NaN is no place to start from.
                return float(examples)
            part = np.log(before[1] / target) / np.log(before[1] / max(value, 1e-12))
            return float(before[0] * (examples / before[0]) ** part)
        before = (examples, value)
    return None
