"""Studies of single models: how fast they take up a word, how few of their parts they need."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from probes.compression.derived_model import DerivedModel, dense_storage, load_parent
from probes.compression.distillation.plan import TrainingConfig
from probes.experiments.adaptation.adapt import adapt
from probes.experiments.family.make import family_tokenizer
from probes.experiments.family.recipes import Recipe, recipe
from probes.experiments.family.tokenizer import PAD
from probes.experiments.family.train import random_init_model
from probes.experiments.family.train import training_rows as texts_of
from probes.experiments.fewest.result import FewestParameters
from probes.experiments.fewest.search import count_parameters, evaluate_students, fewest_parameters
from probes.experiments.scorecard import TableRow
from probes.experiments.soft_labels.cohort import Learner, distill_cohort
from probes.experiments.soft_labels.plan import NameRow
from probes.experiments.soft_labels.run import name_study
from probes.models.model import load
from probes.models.provenance import Provenance

MODELS = ("full", "full-b", "distilled", "distilled-narrow", "scratch")
"""Who is asked."""

SMALL_STUDENTS = {
    f"small-{layers}x{width}-{seed}": (layers, width, seed)
    for layers, width, seeds in (
        (1, 128, (71, 72)), (2, 64, (71, 72)), (1, 64, (71, 72)), (2, 32, (71, 72)),
    )
    for seed in seeds
}  # fmt: skip
"""Fresh students of `full`, of soft labels: layers, width and seed."""

_TRAINING = TrainingConfig(steps=2500, seed=71, batch=32)
# What is small takes larger steps.
_LEARNING_RATES = {128: 1e-3, 64: 2e-3, 32: 4e-3, 16: 4e-3}
_HEAD_WIDTH = 16


def adaptation_rows(
    *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[TableRow]:
    """Teach each model words that it never saw; arguments as in `study`."""
    for name in MODELS:
        if rows := [dict(row) for row in known if row["model"] == name]:
            yield from rows
            continue
        found = adapt(folder / name)
        tuned = {f"tuned_{rate:g}": steps for rate, steps in found.rate_search.items()}
        for row in found.table().to_dict("records"):
            yield {**{str(n): value for n, value in row.items()}, **tuned}


def name_study_rows(
    *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[TableRow]:
    """Run "My name is ⟨?⟩"; arguments as in `study`."""
    whole = {field.name for field in fields(NameRow) if field.type is int}
    cast: list[dict[str, Any]] = [
        {n: int(value) if n in whole else value for n, value in row.items()} for row in known
    ]
    done = [NameRow(**row) for row in cast]
    yield from (asdict(row) for row in done)
    for rows in name_study(done=done, teacher=folder / "full"):
        yield from (asdict(row) for row in rows)


def fewest_rows(
    *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[TableRow]:
    """Count directions, edges and the weights of students; arguments as in `study`."""
    own = [dict(row) for row in known if row["what"] != "student"]
    if {row["model"] for row in own} != set(MODELS):
        found = fewest_parameters([folder / name for name in MODELS])
        own = [{str(n): v for n, v in row.items()} for row in found.table().to_dict("records")]
    yield from own
    students = evaluate_students(train_small_students(folder=folder, work=work))
    whole = count_parameters(load(folder / "full"))
    for row in FewestParameters("take-away", 0.9, (), students).table().to_dict("records"):
        size = {"of": float(whole), "part": row["fewest"] / whole}
        yield {str(n): v for n, v in row.items()} | size


def train_small_students(*, folder: Path, work: Path) -> list[Path]:
    """Return where the small students are; those that are not there are taught."""
    places = {name: work / name for name in SMALL_STUDENTS}
    missing = {
        n: SMALL_STUDENTS[n] for n, at in places.items() if not (at / "config.json").is_file()
    }
    if missing:
        teacher, tokenizer = load_parent(folder / "full"), family_tokenizer(work)
        texts = replace(
            recipe("scratch"), seed=_TRAINING.seed, items=_TRAINING.steps * _TRAINING.batch
        )
        learners = {
            name: Learner(
                random_init_model(_student_recipe(*shape), tokenizer), _LEARNING_RATES[shape[1]]
            )
            for name, shape in missing.items()
        }
        distill_cohort(learners, teacher.hf_model, texts_of(texts, tokenizer), _TRAINING, pad=PAD)
        for name, learner in learners.items():
            settings = {
                **asdict(_TRAINING),
                "learning_rate": learner.learning_rate,
                "labels": "soft",
            }
            learner.hf_model.half()
            made = Provenance(
                "distilled", "full", dense_storage(learner.hf_model, bits=16), settings
            )
            DerivedModel(name, learner.hf_model, tokenizer, made).save(places[name])
    return list(places.values())


def _student_recipe(layers: int, width: int, seed: int) -> Recipe:
    heads = max(1, width // (2 * _HEAD_WIDTH))
    return replace(
        recipe("scratch"), layers=layers, d_model=width, heads=heads, d_mlp=3 * width, seed=seed
    )
