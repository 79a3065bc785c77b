"""Studies of single models: adaptation to new words, "My name is", and fewest parameters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from probes.compression.distillation.plan import TrainingConfig
from probes.experiments.adaptation.adapt import adapt
from probes.experiments.fewest.result import FewestParameters
from probes.experiments.fewest.search import count_parameters, evaluate_students, fewest_parameters
from probes.experiments.soft_labels.cohort import student_recipe, train_students
from probes.experiments.soft_labels.plan import to_name_rows
from probes.experiments.soft_labels.run import name_study
from probes.files import TableRow
from probes.models.model import load

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
    *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[TableRow]:
    """Adaptation of each model to new words; arguments as in `run_study`."""
    for name in MODELS:
        if rows := [dict(row) for row in known if row["model"] == name]:
            yield from rows
            continue
        result = adapt(folder / name)
        tuned = {f"tuned_{rate:g}": steps for rate, steps in result.rate_search.items()}
        for row in result.table().to_dict("records"):
            yield {**{str(n): value for n, value in row.items()}, **tuned}


def name_study_rows(
    *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[TableRow]:
    """The "My name is" study; arguments as in `run_study`."""
    done = to_name_rows(known)
    yield from (asdict(row) for row in done)
    for rows in name_study(done=done, teacher=folder / "full"):
        yield from (asdict(row) for row in rows)


def fewest_rows(
    *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[TableRow]:
    """Fewest directions, edges and parameters; arguments as in `run_study`."""
    rows = [dict(row) for row in known if row["what"] != "student"]
    if {row["model"] for row in rows} != set(MODELS):
        result = fewest_parameters([folder / name for name in MODELS])
        rows = [{str(n): v for n, v in row.items()} for row in result.table().to_dict("records")]
    yield from rows
    students = evaluate_students(train_small_students(folder=folder, work=work))
    parameters = count_parameters(load(folder / "full"))
    for row in FewestParameters("take-away", 0.9, (), students).table().to_dict("records"):
        size = {"of": float(parameters), "part": row["fewest"] / parameters}
        yield {str(n): v for n, v in row.items()} | size


def train_small_students(*, folder: Path, work: Path) -> list[Path]:
    """Folders of the small students; missing ones are trained."""
    recipes = {name: student_recipe(*shape) for name, shape in SMALL_STUDENTS.items()}
    return train_students(recipes, folder / "full", _TRAINING, work=work)
