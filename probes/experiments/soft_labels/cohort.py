"""Distillation of several students at once; the teacher runs once for all.

A step of a small student costs less than the teacher's forward pass.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probes.compression.derived_model import DerivedModel, dense_storage, load_parent
from probes.compression.distillation.plan import TrainingConfig, TrainingPlan, TrainingText
from probes.compression.distillation.targets import (
    DistillationTargets,
    distillation_loss,
    target_distribution,
)
from probes.compression.distillation.trainer import collate
from probes.errors import ModelError
from probes.experiments.family.make import family_tokenizer
from probes.experiments.family.recipes import Recipe, recipe
from probes.experiments.family.tokenizer import PAD
from probes.experiments.family.train import random_init_model, training_rows
from probes.models.files.provenance import Provenance

_BETAS, _MAX_GRAD_NORM, _MIN_RATE_FRACTION = (0.9, 0.98), 1.0, 0.05
_LEARNING_RATES = {128: 1e-3, 64: 2e-3, 32: 4e-3, 16: 4e-3}  # by width
_HEAD_WIDTH = 16
_POOL_BATCHES = 50  # Batches that are sorted by length together, to save padding.


@dataclass(frozen=True, eq=False)
class Learner:
    """Student and its own settings of AdamW.

    Attributes:
        hf_model: Student; it is trained in place.
        learning_rate, weight_decay: Settings of AdamW.
    """

    hf_model: Any = field(repr=False)
    learning_rate: float = 1e-3
    weight_decay: float = 1.0


StepCallback = Callable[[int, Mapping[str, Any]], None]
"""Called with the number of steps and the students by name; it must not change them."""


def distill_cohort(
    learners: Mapping[str, Learner], plan: TrainingPlan, callback: StepCallback | None = None
) -> None:
    """Train students in place, on the same batches and the same labels.

    Each has its own AdamW, gradients clipped to norm 1, a warmup, and a decay to a twentieth in
    the last quarter. No student affects another. There are no checkpoints.

    Args:
        learners: Students by name.
        plan: Texts, teacher, labels and settings; learning rates are the students' own.
        callback: Called before the first step and after every step.

    Raises:
        ModelError: There is no student, one is given twice, or a vocabulary differs.
    """
    teacher, settings, labels = plan.teacher, plan.settings, plan.labels
    _check(learners, teacher)
    teacher.eval()
    optimizers = {name: _StudentOptimizer(learner, settings) for name, learner in learners.items()}
    models = {name: learner.hf_model for name, learner in learners.items()}
    if callback is not None:
        callback(0, models)
    for step, batch in enumerate(_batches(plan), 1):
        rows = [{"input_ids": row.ids, "skipped": row.ignored_prefix} for row in batch]
        inputs = collate(rows, plan.pad_token)
        tokens = inputs.pop("labels")[:, 1:]
        trained = tokens >= 0
        with torch.no_grad():
            logits = teacher(**inputs).logits[:, :-1][trained].float()
        generator = torch.Generator().manual_seed((settings.seed << 24) + step)
        target = target_distribution(labels, tokens[trained], logits, generator)
        for optimizer in optimizers.values():
            optimizer.step(inputs, trained, (labels, target))
        if callback is not None:
            callback(step, models)
    for model in models.values():
        model.eval()


def student_recipe(layers: int, width: int, seed: int) -> Recipe:
    """Recipe of a student from fresh weights, with the learning rate of its width."""
    return replace(
        recipe("scratch"), layers=layers, d_model=width, heads=max(1, width // (2 * _HEAD_WIDTH)),
        d_mlp=3 * width, learning_rate=_LEARNING_RATES[width], seed=seed,
    )  # fmt: skip


def train_students(
    students: Mapping[str, Recipe], teacher: Path, settings: TrainingConfig, *, work: Path
) -> list[Path]:
    """Folders of soft-label students from fresh weights; missing ones are trained as one cohort.

    Args:
        students: Shapes, seeds and learning rates by name.
        teacher: Folder of the teacher.
        settings: Steps, batch and seed of the texts, which are the same for all students.
        work: Folder of the students.
    """
    paths = {name: work / name for name in students}
    missing = [name for name, path in paths.items() if not (path / "config.json").is_file()]
    if missing:
        source, tokenizer = load_parent(teacher), family_tokenizer(work)
        corpus = replace(
            recipe("scratch"), seed=settings.seed, items=settings.steps * settings.batch
        )
        learners = {
            name: Learner(
                random_init_model(students[name], tokenizer), students[name].learning_rate
            )
            for name in missing
        }
        rows, soft = training_rows(corpus, tokenizer), DistillationTargets("soft")
        distill_cohort(learners, TrainingPlan(rows, settings, PAD, soft, source.hf_model))
        for name, learner in learners.items():
            rate = {"learning_rate": learner.learning_rate, "labels": "soft"}
            learner.hf_model.half()
            storage = dense_storage(learner.hf_model, bits=16)
            provenance = Provenance("distilled", source.name, storage, asdict(settings) | rate)
            DerivedModel(name, learner.hf_model, tokenizer, provenance).save(paths[name])
    return list(paths.values())


class _StudentOptimizer:
    """Student with its optimizer."""

    def __init__(self, learner: Learner, settings: TrainingConfig) -> None:
        self.model: nn.Module = learner.hf_model.train()
        # Matrices decay, norms and biases do not, as in the Hugging Face trainer.
        matrices, others = (
            [p for p in self.model.parameters() if (p.ndim > 1) == is_matrix]
            for is_matrix in (True, False)
        )
        groups = [
            {"params": matrices, "weight_decay": learner.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=learner.learning_rate, betas=_BETAS)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _rate_fraction(step, settings)
        )

    def step(
        self,
        inputs: Mapping[str, Tensor],
        trained: Tensor,
        targets: tuple[DistillationTargets, Tensor],
    ) -> None:
        labels, target = targets
        self.model.train()
        logits = self.model(**inputs).logits[:, :-1][trained].float()
        distillation_loss(labels, logits, target).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_GRAD_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()


def _rate_fraction(step: int, settings: TrainingConfig) -> float:
    """Learning rate at a step as a fraction of its maximum."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    decay = max(settings.steps // 4, 1)
    fraction = _MIN_RATE_FRACTION + (1 - _MIN_RATE_FRACTION) * (settings.steps - step) / decay
    return max(_MIN_RATE_FRACTION, min(1.0, fraction))


def _batches(plan: TrainingPlan) -> Iterator[list[TrainingText]]:
    """Batches of texts of similar length, pool by pool, one for each step."""
    rows, settings = plan.texts, plan.settings
    generator, done = torch.Generator().manual_seed(settings.seed), 0
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for pool in order.split(_POOL_BATCHES * settings.batch):
            by_length = sorted(pool.tolist(), key=lambda at: len(rows[at].ids))
            starts = torch.arange(0, len(by_length), settings.batch)
            for start in starts[torch.randperm(len(starts), generator=generator)].tolist():
                if done == settings.steps:
                    return
                done += 1
                yield [rows[at] for at in by_length[start : start + settings.batch]]


def _check(learners: Mapping[str, Learner], teacher: Any) -> None:  # noqa: ANN401
    if not learners or len({id(learner.hf_model) for learner in learners.values()}) < len(learners):
        raise ModelError(
            f"{len(learners)} students were given: give at least one, each a model of its own"
        )
    size = int(teacher.config.vocab_size)
    for name, learner in learners.items():
        if int(learner.hf_model.config.vocab_size) != size:
            raise ModelError(
                f"The teacher has {size} tokens and the student {name!r} "
                f"{int(learner.hf_model.config.vocab_size)}: soft labels need one vocabulary"
            )
