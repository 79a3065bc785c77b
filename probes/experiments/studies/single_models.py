"""Studies of single models: adaptation to new words, "My name is", and fewest parameters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from probes.compression.distillation.plan import TrainingConfig
from probes.experiments.adaptation.adapt import adapt
from probes.experiments.fewest.result import FewestParameters
from probes.experiments.fewest.search import count_parameters, evaluate_students, fewest_parameters
from probes.experiments.soft_labels.cohort import student_recipe, train_students
from probes.experiments.soft_labels.plan import to_name_rows
from probes.experiments.soft_labels.run import name_study
from probes.experiments.studies.parts import Part, run_parts
from probes.files import TableRow
from probes.models.model import load
from probes.scale.engine import HERE, Engine

MODELS = ("full", "full-b", "distilled", "distilled-narrow", "scratch")
"""Models of the studies of adaptation and of fewest parameters."""

SMALL_STUDENTS = {
    f"small-{layers}x{width}-{seed}": (layers, width, seed)
    for layers, width, seeds in (
        (1, 128, (71, 72)), (2, 64, (71, 72)), (1, 64, (71, 72)), (2, 32, (71, 72)),
    )
    for seed in seeds
}  # fmt: skip
"""Students of `full` from fresh weights with soft labels: layers, width and seed."""

_TRAINING = TrainingConfig(steps=2500, seed=71, batch=32)


def adaptation_rows(
    *,
    folder: Path,
    work: Path,
    known: Sequence[Mapping[str, float | str]] = (),
    engine: Engine = HERE,
) -> Iterator[TableRow]:
    """Adaptation of each model to new words, one a unit; arguments as in `run_study`."""
    parts = []
    for name in MODELS:
        rows = [dict(row) for row in known if row["model"] == name]
        measure = partial(_measure_adaptation, folder / name)
        parts.append(Part(name, known=rows) if rows else Part(name, measure))
    return run_parts(parts, engine)


def _measure_adaptation(model: Path) -> list[TableRow]:
    result = adapt(model)
    tuned = {f"tuned_{rate:g}": steps for rate, steps in result.rate_search.items()}
    return [row | tuned for row in _rows(result.table())]


def name_study_rows(
    *,
    folder: Path,
    work: Path,
    known: Sequence[Mapping[str, float | str]] = (),
    engine: Engine = HERE,
) -> Iterator[TableRow]:
    """The "My name is" study, one run a unit; arguments as in `run_study`."""
    done = to_name_rows(known)
    yield from (asdict(row) for row in done)
    for rows in name_study(done=done, teacher=folder / "full", engine=engine):
        yield from (asdict(row) for row in rows)


def fewest_rows(
    *,
    folder: Path,
    work: Path,
    known: Sequence[Mapping[str, float | str]] = (),
    engine: Engine = HERE,
) -> Iterator[TableRow]:
    """Fewest directions, edges and parameters, one model a unit; arguments as in `run_study`."""
    parts = []
    for name in MODELS:
        rows = [dict(row) for row in known if row["model"] == name and row["what"] != "student"]
        measure = partial(_measure_fewest, folder / name)
        parts.append(Part(name, known=rows) if rows else Part(name, measure))
    parts.append(Part("small students", partial(_measure_students, folder, work)))
    return run_parts(parts, engine)


def _measure_fewest(model: Path) -> list[TableRow]:
    return _rows(fewest_parameters([model]).table())


def _measure_students(folder: Path, work: Path) -> list[TableRow]:
    """Train the small students if they are missing, and measure them."""
    students = evaluate_students(train_small_students(folder=folder, work=work))
    parameters = count_parameters(load(folder / "full"))
    table = FewestParameters("take-away", 0.9, (), students).table()
    return [
        row | {"of": float(parameters), "part": row["fewest"] / parameters} for row in _rows(table)
    ]


def _rows(table: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return [{str(n): value for n, value in row.items()} for row in table.to_dict("records")]


def train_small_students(*, folder: Path, work: Path) -> list[Path]:
    """Folders of the small students; missing ones are trained."""
    recipes = {name: student_recipe(*shape) for name, shape in SMALL_STUDENTS.items()}
    return train_students(recipes, folder / "full", _TRAINING, work=work)
