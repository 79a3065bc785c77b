"""The arms, the size and the table of "My name is ⟨?⟩", and how a learning rate is chosen."""

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from probes.errors import ModelError
from probes.files import data_folder

Stage = Literal["tuning", "run", "beside"]

COUNTING, TEACHER = "counting", "teacher"
"""What stands beside the arms."""

LEARNING_RATES = (0.001, 0.002, 0.004, 0.008, 0.016)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to teach.

    Attributes:
        labels: What is taught, as `compress.labels` writes it.
        like: The arm whose learning rate it takes over; "" if it has one tuned for itself.
        texts: How many different texts it sees, again and again; 0 if each is new.
        falling: Whether the learning rate falls in the last quarter.
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
"""The arms by name; "top 1" is the teacher's first choice alone."""


@dataclass(frozen=True, slots=True)
class NameStudySettings:
    """How large the experiment is.

    Attributes:
        updates, batch: Steps of a run, and texts in each.
        layers, width, heads: The student's shape; its MLPs are three times as wide.
        warmup: Steps in which the learning rate rises.
        seeds: Of the runs that count.
        tuning_seed: Of the runs that choose the learning rate.
        rates: The ladder of learning rates.
        test: Texts that students are judged on.
        looks: Looks at the student for each doubling of the examples.
        first: Steps at the first look.
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
                f"The learning rate would be tuned on seed {self.tuning_seed}, which counts: "
                "give a tuning seed that is not among the seeds"
            )
        if not 1 <= self.first_look <= self.updates or not self.rates:
            raise ModelError(
                f"A run of {self.updates} steps that is first looked at after {self.first_look}, with "
                f"{len(self.rates)} learning rates, yields nothing: give more"
            )

    @property
    def look_steps(self) -> tuple[int, ...]:
        """Steps after which the student is looked at."""
        doublings = int(np.ceil(np.log2(self.updates / self.first_look) * self.looks_per_doubling))
        found = {
            round(self.first_look * 2 ** (k / self.looks_per_doubling))
            for k in range(doublings + 1)
        }
        return tuple(sorted({at for at in found if at < self.updates} | {self.updates}))


@dataclass(frozen=True, slots=True)
class NameRow:
    """One look at one student.

    Attributes:
        stage: "tuning", on the tuning seed; "run", what counts; "beside", no student at all.
        arm: One of `ARMS`, or what stands beside them.
        seed: Of the student, the texts and their order.
        rate: The learning rate.
        examples: Texts seen.
        name_kl: KL(truth || student) after "My name is", in bits; and so on as in `Marks`.
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
    """The learning rate of an arm, and whether it is at an end of the ladder."""

    arm: str
    rate: float
    at_edge: bool


def untried(arm: str, plan: NameStudySettings, rows: Sequence[NameRow]) -> float | None:
    """Return the next learning rate to try, or None where the best is known."""
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
    """Return what each learning rate cost each arm: the mean of log2 of `all_kl` over its looks."""
    plan, found = plan or NameStudySettings(), {}
    for one in dict.fromkeys((row.arm, row.rate) for row in rows if row.stage == "tuning"):
        here = [row for row in rows if row.stage == "tuning" and (row.arm, row.rate) == one]
        if is_complete(rows, here[0], plan):
            cost = float(np.mean([np.log2(row.all_kl) for row in here]))
            # A student that was lost costs more than any other.
            found[one] = cost if np.isfinite(cost) else float("inf")
    return found


def chosen_rates(
    rows: Sequence[NameRow], plan: NameStudySettings | None = None
) -> dict[str, ChosenRate]:
    """Return the learning rate that each tuned arm runs with."""
    plan, found = plan or NameStudySettings(), {}
    costs = tuning_costs(rows, plan)
    for arm in dict.fromkeys(arm for arm, _ in costs):
        rate = min((rate for a, rate in costs if a == arm), key=lambda rate: costs[arm, rate])
        found[arm] = ChosenRate(arm, rate, rate in (plan.rates[0], plan.rates[-1]))
    return found


def is_complete(rows: Sequence[NameRow], run: NameRow, plan: NameStudySettings) -> bool:
    """Say whether a run is there to its last look."""
    key = (run.stage, run.arm, run.seed, run.rate, plan.updates * plan.batch)
    return any((row.stage, row.arm, row.seed, row.rate, row.examples) == key for row in rows)


def name_study_file() -> Path:
    """Return the table that comes with the kit."""
    return data_folder() / "studies" / "names.csv"


def read_name_study(path: Path | None = None) -> list[NameRow]:
    """Read a table; none where there is no file."""
    path = path or name_study_file()
    if not path.is_file():
        return []
    kinds = {field.name: field.type for field in fields(NameRow)}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            NameRow(**{n: _parse_value(kinds[n], text) for n, text in row.items()})  # pyright: ignore
            for row in csv.DictReader(file)
        ]


def write_name_study(rows: Sequence[NameRow], path: Path) -> None:
    """Write a table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([field.name for field in fields(NameRow)])
        for row in rows:
            table.writerow([f"{v:.5g}" if isinstance(v, float) else v for v in astuple(row)])


def _parse_value(kind: object, text: str) -> float | int | str:
    return int(text) if kind is int else float(text) if kind is float else text
