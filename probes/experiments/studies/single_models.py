"""Studies of single models: adaptation to new words, "My name is", and fewest parameters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from probes.compression.derived_model import DerivedModel, dense_storage, load_parent
from probes.compression.distillation.plan import TrainingConfig, TrainingPlan
from probes.compression.distillation.targets import DistillationTargets
from probes.experiments.adaptation.adapt import adapt
from probes.experiments.family.make import family_tokenizer
from probes.experiments.family.recipes import Recipe, recipe
from probes.experiments.family.tokenizer import PAD
from probes.experiments.family.train import random_init_model, training_rows
from probes.experiments.fewest.result import FewestParameters
from probes.experiments.fewest.search import count_parameters, evaluate_students, fewest_parameters
from probes.experiments.soft_labels.cohort import Learner, distill_cohort
from probes.experiments.soft_labels.plan import to_name_rows
from probes.experiments.soft_labels.run import name_study
from probes.files import TableRow
from probes.models.files.provenance import Provenance
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
_LEARNING_RATES = {128: 1e-3, 64: 2e-3, 32: 4e-3, 16: 4e-3}  # by width
_HEAD_WIDTH = 16


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
    paths = {name: work / name for name in SMALL_STUDENTS}
    missing = [name for name, path in paths.items() if not (path / "config.json").is_file()]
    if missing:
        teacher, tokenizer = load_parent(folder / "full"), family_tokenizer(work)
        texts = replace(
            recipe("scratch"), seed=_TRAINING.seed, items=_TRAINING.steps * _TRAINING.batch
        )
        learners = {
            name: Learner(
                random_init_model(_student_recipe(*SMALL_STUDENTS[name]), tokenizer),
                _LEARNING_RATES[SMALL_STUDENTS[name][1]],
            )
            for name in missing
        }
        rows, soft = training_rows(texts, tokenizer), DistillationTargets("soft")
        distill_cohort(learners, TrainingPlan(rows, _TRAINING, PAD, soft, teacher.hf_model))
        for name, learner in learners.items():
            rate = {"learning_rate": learner.learning_rate, "labels": "soft"}
            learner.hf_model.half()
            storage = dense_storage(learner.hf_model, bits=16)
            provenance = Provenance("distilled", "full", storage, asdict(_TRAINING) | rate)
            DerivedModel(name, learner.hf_model, tokenizer, provenance).save(paths[name])
    return list(paths.values())


def _student_recipe(layers: int, width: int, seed: int) -> Recipe:
    heads = max(1, width // (2 * _HEAD_WIDTH))
    return replace(
        recipe("scratch"), layers=layers, d_model=width, heads=heads, d_mlp=3 * width, seed=seed
    )
