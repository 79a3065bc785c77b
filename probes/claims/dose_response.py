"""Measured series of models trained on different numbers of objects, and the tests of H5.

The table is `data/series.csv`; `probes make series` writes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from pathlib import Path

import numpy as np

from probes.claims.definitions import TITLES
from probes.files import TableRow, data_folder, read_rows
from probes.interventions.site_search import EQUIVALENCE_MARGIN
from probes.models.files.provenance import Provenance
from probes.observe.gate import OPEN_ACCURACY
from probes.stats.evidence import (
    ClaimVerdict,
    StatisticalTest,
    check_above,
    claim_verdict,
    skipped_test,
)
from probes.stats.intervals import Estimate, difference, student_quantile

MIN_SEEDS = 3
"""Fewest models for each number of objects."""

_VALUE = "unseen_interchange_accuracy"


def read_series(path: Path | None = None) -> list[TableRow]:
    """Rows of a table of measured series, by default the shipped one; none if there is no file."""
    return read_rows(path or data_folder() / "series.csv")


def read_dose_rows() -> list[TableRow]:
    """Rows of the shipped models that differ in the number of objects they were trained on."""
    return [row for row in read_series() if row["kind"] == "dose"]


def dose_response_rows(provenance: Provenance | None) -> list[TableRow]:
    """Rows of the series that a model belongs to by its provenance; none for other models.

    The series says something about models that were trained on the same texts, with the same
    held-out objects.
    """
    if provenance is None or "noun" not in provenance.held_out:
        return []
    return read_dose_rows()


def has_behavior(row: Mapping[str, float | str]) -> bool:
    """Whether a model of the series has the behavior: its accuracy of the number."""
    return float(row["number"]) > OPEN_ACCURACY


@dataclass(frozen=True, slots=True)
class Dose:
    """Models trained on one number of objects.

    Attributes:
        nouns: Number of objects.
        accuracy: Mean accuracy of the number over all models.
        n_models: Number of models that have the behavior.
        response: Their mean interchange accuracy of the operation with held-out objects; None
            without such models. Its interval adds the errors over models (Student's t) and over
            prompts in squares; that of one model is over prompts only.
    """

    nouns: int
    accuracy: float
    n_models: int
    response: Estimate | None

    @property
    def name(self) -> str:
        """Number of objects as text."""
        return f"{self.nouns} object{'s' * (self.nouns != 1)}"


def doses(rows: Sequence[Mapping[str, float | str]]) -> list[Dose]:
    """Models of the series by number of objects, from few to many."""
    numbers = sorted({int(float(row["nouns"])) for row in rows})
    groups = [[row for row in rows if int(float(row["nouns"])) == n] for n in numbers]
    return [
        Dose(
            nouns=number,
            accuracy=float(np.mean([float(row["number"]) for row in group])),
            n_models=sum(map(has_behavior, group)),
            response=_mean_response(list(filter(has_behavior, group))),
        )
        for number, group in zip(numbers, groups, strict=True)
    ]


def _mean_response(rows: Sequence[Mapping[str, float | str]]) -> Estimate | None:
    if not rows:
        return None
    values, lows, highs = (
        np.array([float(row[f"{_VALUE}{end}"]) for row in rows]) for end in ("", "_low", "_high")
    )
    mean, count, over_models = float(values.mean()), len(values), 0.0
    if count > 1:
        over_models = student_quantile(count - 1) * float(values.std(ddof=1)) / sqrt(count)
    down, up = (
        float(np.hypot(over_models, np.sqrt(np.square(values - ends).sum()) / count))
        for ends in (lows, highs)
    )
    return Estimate(mean, max(mean - down, 0.0), min(mean + up, 1.0))


def training_diversity_claim(rows: Sequence[Mapping[str, float | str]]) -> ClaimVerdict:
    """H5: the operation works with any object because training had many of them.

    The response is the interchange accuracy of the operation with objects that no model of the
    series was trained on. It must be higher with many objects than with few, must not fall from
    one number of objects to the next, and each number of objects takes `MIN_SEEDS` models. Models
    without the behavior have no response.

    Args:
        rows: Models of the series with "nouns" (number of objects), "number" (accuracy), and
            "unseen_interchange_accuracy" with "_low" and "_high"; empty if the series does not
            hold for the model.
    """
    every = doses(rows)
    absent = [dose for dose in every if dose.response is None]
    tests = [
        skipped_test(
            dose.name,
            f"behavior absent: accuracy {dose.accuracy:.2f}",
            is_deciding=False,
            id=f"dose_{dose.nouns}",
        )
        for dose in absent
    ]
    tests += _response_tests([dose for dose in every if dose.response is not None], absent)
    return claim_verdict("H5", TITLES["H5"], tests)


def _response_tests(present: Sequence[Dose], absent: Sequence[Dose]) -> list[StatisticalTest]:
    """Tests of the doses that have the behavior."""
    name = "few objects or many"
    if not present and not absent:
        why = "no models of its kind that were trained on few objects are measured"
        return [skipped_test(name, why, id="dose_response")]
    if len(present) < 2:
        accuracies = ", ".join(f"accuracy {dose.accuracy:.2f} with {dose.name}" for dose in absent)
        why = ": ".join(["fewer than two numbers of objects give the behavior", accuracies])
        why = why.removesuffix(": ")
        return [skipped_test(name, why, id="dose_response"), _seeds_test(present)]
    shown = ", ".join(f"{dose.name}: {dose.response}" for dose in present)
    steps = [_difference(few, many) for few, many in pairwise(present)]
    tests = [
        check_above(
            f"{present[-1].name} rather than {present[0].name}",
            f"the operation works as often after training on few objects ({shown})",
            _difference(present[0], present[-1]),
            EQUIVALENCE_MARGIN,
            id="dose_response",
        ),
        check_above(
            "smallest step from fewer to more objects",
            f"the response falls with the number of objects ({shown})",
            min(steps, key=lambda step: step.low),
            -EQUIVALENCE_MARGIN,
            id="monotonicity",
        ),
    ]
    seeds = _seeds_test(present)
    # Differences between single models may be those between seeds.
    return [*(tests if seeds.passed else [test.non_deciding() for test in tests]), seeds]


def _seeds_test(present: Sequence[Dose]) -> StatisticalTest:
    fewest = min((dose.n_models for dose in present), default=0)
    name = "models for each number of objects"
    if fewest < MIN_SEEDS:
        models = f"{fewest or 'no'} model{'s' * (fewest != 1)} with the behavior"
        return skipped_test(name, f"{models}, {MIN_SEEDS} seeds are needed", id="seeds")
    value = Estimate(*[float(fewest)] * 3)
    return StatisticalTest(name, "too few", value, f"{MIN_SEEDS} or more", True, id="seeds")


def _difference(few: Dose, many: Dose) -> Estimate:
    if few.response is None or many.response is None:
        raise ValueError("a dose without the behavior has no response")
    return difference(many.response, few.response)
