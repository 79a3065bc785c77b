"""Arms, size and table of the "My name is" study, and the choice of learning rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from probes.errors import ModelError
from probes.experiments.studies.tables import read_study

Stage = Literal["tuning", "run", "beside"]

COUNTING, TEACHER = "counting", "teacher"
"""Arms without a student: a reader that counts names, and the teacher itself."""

LEARNING_RATES = (0.001, 0.002, 0.004, 0.008, 0.016)


@dataclass(frozen=True, slots=True)
class Arm:
    """Condition of the study: the labels of a student.

    Attributes:
        labels: Distillation targets, as `parse_labels` reads them.
        rate_from: Arm whose learning rate it uses; "" if it is tuned itself.
        texts: Number of different texts, repeated; 0 if each text is new.
        decay: Whether the learning rate decays in the last quarter.
    """

    labels: str
    rate_from: str = ""
    texts: int = 0
    decay: bool = False


ARMS = {
    "soft": Arm("soft"),
    "hard": Arm("hard"),
    "1 drawn": Arm("sampled:1"),
    "8 drawn": Arm("sampled:8"),
    "top 8": Arm("top-k:8"),
    "top 1": Arm("top-k:1"),
    "smoothed": Arm("smoothed:0.1"),
    "permuted": Arm("permuted"),
    "soft, 64 texts": Arm("soft", rate_from="soft", texts=64),
    "hard, 64 texts": Arm("hard", rate_from="hard", texts=64),
    "soft, falling": Arm("soft", rate_from="soft", decay=True),
    "hard, falling": Arm("hard", rate_from="hard", decay=True),
}
"""Arms by name; "top 1" is the teacher's most likely token."""


@dataclass(frozen=True, slots=True)
class NameStudySettings:
    """Size of the study.

    Attributes:
        updates, batch: Steps of a run, and texts in each.
        layers, width, heads: Shape of the student; its MLPs are three times as wide.
        warmup: Steps in which the learning rate rises.
        seeds: Seeds of the runs.
        tuning_seed: Seed of the runs that choose the learning rate.
        rates: Learning rates to try, in ascending order.
        test: Number of test texts.
        looks_per_doubling: Evaluations for each doubling of the examples.
        first_look: Step of the first evaluation.
    """

    updates: int = 362
    batch: int = 4
    layers: int = 2
    width: int = 64
    heads: int = 4
    warmup: int = 8
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    tuning_seed: int = 101
    rates: tuple[float, ...] = LEARNING_RATES
    test: int = 128
    looks_per_doubling: int = 2
    first_look: int = 8

    def __post_init__(self) -> None:
        if self.tuning_seed in self.seeds:
            raise ModelError(
                f"The tuning seed {self.tuning_seed} is one of the seeds of the runs: give a "
                "tuning seed that is not among the seeds"
            )
        if not 1 <= self.first_look <= self.updates or not self.rates:
            raise ModelError(
                f"A run of {self.updates} steps, first evaluated at step {self.first_look}, with "
                f"{len(self.rates)} learning rates, yields nothing: give more"
            )

    @property
    def look_steps(self) -> tuple[int, ...]:
        """Steps of the evaluations."""
        doublings = int(np.ceil(np.log2(self.updates / self.first_look) * self.looks_per_doubling))
        steps = {
            round(self.first_look * 2 ** (k / self.looks_per_doubling))
            for k in range(doublings + 1)
        }
        return tuple(sorted({step for step in steps if step < self.updates} | {self.updates}))


@dataclass(frozen=True, slots=True)
class NameRow:
    """Evaluation of one student; the last six fields are those of `StudentScores`.

    Attributes:
        stage: "tuning", "run", or "beside" for arms without a student.
        arm: One of `ARMS`, `COUNTING` or `TEACHER`.
        seed: Seed of the student, of the texts and of their order.
        rate: Learning rate.
        examples: Number of texts seen.
        name_kl: KL(truth || student) after "My name is", in bits.
        ambiguous_kl: KL(teacher || student) in bits, mean over ambiguous tokens.
        all_kl: The same over all trained tokens.
        certain: Accuracy on certain tokens.
        noun: Accuracy on the first token of the answer's noun.
        number: Accuracy on the answer's number.
    """

    stage: Stage
    arm: str
    seed: int
    rate: float
    examples: int
    name_kl: float
    ambiguous_kl: float
    all_kl: float
    certain: float
    noun: float
    number: float


@dataclass(frozen=True, slots=True)
class ChosenRate:
    """Learning rate of an arm, and whether it is the lowest or highest that could be tried."""

    arm: str
    rate: float
    at_edge: bool


def untried(arm: str, plan: NameStudySettings, rows: Sequence[NameRow]) -> float | None:
    """Next learning rate to try; None if the best is known."""
    costs = tuning_costs(rows, plan)
    middle = len(plan.rates) // 2
    for rate in plan.rates[max(middle - 1, 0) : middle + 2]:
        if (arm, rate) not in costs:
            return rate
    tried = [at for at, rate in enumerate(plan.rates) if (arm, rate) in costs]
    best = min(tried, key=lambda at: costs[arm, plan.rates[at]])
    beyond = {min(tried): min(tried) - 1, max(tried): max(tried) + 1}.get(best, -1)
    return plan.rates[beyond] if 0 <= beyond < len(plan.rates) else None


def tuning_costs(
    rows: Sequence[NameRow], plan: NameStudySettings | None = None
) -> dict[tuple[str, float], float]:
    """Cost of each arm and learning rate: mean of log2 of `all_kl` over the evaluations."""
    plan, costs = plan or NameStudySettings(), {}
    for key in dict.fromkeys((row.arm, row.rate) for row in rows if row.stage == "tuning"):
        run = [row for row in rows if row.stage == "tuning" and (row.arm, row.rate) == key]
        if is_complete(rows, run[0], plan):
            cost = float(np.mean([np.log2(row.all_kl) for row in run]))
            # A student that diverged is worse than any other.
            costs[key] = cost if np.isfinite(cost) else float("inf")
    return costs


def chosen_rates(
    rows: Sequence[NameRow], plan: NameStudySettings | None = None
) -> dict[str, ChosenRate]:
    """Learning rate of each tuned arm."""
    plan, chosen = plan or NameStudySettings(), {}
    costs = tuning_costs(rows, plan)
    for arm in dict.fromkeys(arm for arm, _ in costs):
        rate = min((rate for a, rate in costs if a == arm), key=lambda rate: costs[arm, rate])
        chosen[arm] = ChosenRate(arm, rate, rate in (plan.rates[0], plan.rates[-1]))
    return chosen


def is_complete(rows: Sequence[NameRow], run: NameRow, plan: NameStudySettings) -> bool:
    """Whether the last evaluation of a run is among the rows."""
    key = (run.stage, run.arm, run.seed, run.rate, plan.updates * plan.batch)
    return any((row.stage, row.arm, row.seed, row.rate, row.examples) == key for row in rows)


def read_name_study(path: Path | None = None) -> list[NameRow]:
    """Rows of a table of the study, by default the shipped one; none if there is no file."""
    return to_name_rows(read_study("names", path))


def to_name_rows(rows: Sequence[Mapping[str, Any]]) -> list[NameRow]:
    """Rows of a table, in which all numbers are floats, as `NameRow`."""
    whole = {field.name for field in fields(NameRow) if field.type is int}
    values: list[dict[str, Any]] = [
        {name: int(value) if name in whole else value for name, value in row.items()}
        for row in rows
    ]
    return [NameRow(**row) for row in values]
