"""Several students side by side: each is trained alone, and the teacher is asked once for all.

A small student's step costs less than its teacher's answer does, so that eight students by
themselves would mostly pay for the same answers eight times.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from probes.compression.distillation.plan import TrainingConfig, TrainingText
from probes.compression.distillation.targets import (
    DistillationTargets,
    distillation_loss,
    target_distribution,
)
from probes.compression.distillation.trainer import collate
from probes.errors import ModelError

_BETAS, _MAX_GRAD_NORM, _MIN_RATE_FRACTION = (0.9, 0.98), 1.0, 0.05
_POOL_BATCHES = 50  # Batches that are sorted by length together, so that little is padding.


@dataclass(frozen=True, eq=False)
class Learner:
    """A student and its dials.

    Attributes:
        hf_model: The student; it is trained in place.
        learning_rate, weight_decay: Its own, as small models want larger steps.
    """

    hf_model: Any = field(repr=False)
    learning_rate: float = 1e-3
    weight_decay: float = 1.0


StepCallback = Callable[[int, Mapping[str, Any]], None]
"""Called with how many steps were taken and the students by name; it must not change them."""


def distill_cohort(  # noqa: PLR0913 (whom, by whom, what and how)
    learners: Mapping[str, Learner],
    teacher: Any,  # noqa: ANN401
    rows: Sequence[TrainingText],
    settings: TrainingConfig,
    *,
    pad: int,
    labels: DistillationTargets | None = None,
    callback: StepCallback | None = None,
) -> None:
    """Train students in place on the same batches of a teacher's soft labels.

    Each has its own AdamW, gradients clipped to norm 1, a warm-up and the schedule "stable":
    a fall to a twentieth in the last quarter. Nothing that one does changes another. There are no
    checkpoints: it is meant for students that take minutes.

    Args:
        learners: The students by name.
        teacher: A Hugging Face model with their vocabulary.
        rows: What all read, in an order drawn from the seed.
        dials: Steps, batch, warm-up and seed; rates are each learner's own.
        pad: The token that fills rows up.
        labels: What is taught; all that the teacher says by default.
        watch: What looks on, at step 0 and after every step.

    Raises:
        ModelError: There is no student, one is there twice, or a vocabulary is another.
    """
    labels = labels or DistillationTargets("soft")
    _check(learners, teacher)
    teacher.eval()
    fittings = {name: _StudentOptimizer(learner, settings) for name, learner in learners.items()}
    models = {name: learner.hf_model for name, learner in learners.items()}
    if callback is not None:
        callback(0, models)
    for step, some in enumerate(_batches(rows, settings), 1):
        feed = collate([{"input_ids": row.ids, "skipped": row.ignored_prefix} for row in some], pad)
        truth = feed.pop("labels")[:, 1:]
        trained = truth >= 0
        with torch.no_grad():
            said = teacher(**feed).logits[:, :-1][trained].float()
        draw = torch.Generator().manual_seed((settings.seed << 24) + step)
        target = target_distribution(labels, truth[trained], said, draw)
        for fitting in fittings.values():
            fitting.step(feed, trained, (labels, target))
        if callback is not None:
            callback(step, models)
    for model in models.values():
        model.eval()


class _StudentOptimizer:
    """A student with its optimizer."""

    def __init__(self, learner: Learner, settings: TrainingConfig) -> None:
        self.model: nn.Module = learner.hf_model.train()
        rate = {"lr": learner.learning_rate, "betas": _BETAS}
        # As the Hugging Face trainer does: matrices decay, norms and biases do not.
        sides = [[p for p in self.model.parameters() if (p.ndim > 1) == wide] for wide in (1, 0)]
        decay = [learner.weight_decay, 0.0]
        groups = [{"params": p, "weight_decay": d} for p, d in zip(sides, decay, strict=True)]
        self.optimizer = torch.optim.AdamW(groups, **rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _rate_fraction(step, settings)
        )

    def step(
        self,
        feed: Mapping[str, Tensor],
        trained: Tensor,
        targets: tuple[DistillationTargets, Tensor],
    ) -> None:
        labels, target = targets
        self.model.train()
        own = self.model(**feed).logits[:, :-1][trained].float()
        distillation_loss(labels, own, target).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_GRAD_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()


def _rate_fraction(step: int, settings: TrainingConfig) -> float:
    """Return the share of the learning rate that holds at a step."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    fall = max(settings.steps // 4, 1)
    return max(
        _MIN_RATE_FRACTION,
        min(1.0, _MIN_RATE_FRACTION + (1 - _MIN_RATE_FRACTION) * (settings.steps - step) / fall),
    )


def _batches(
    rows: Sequence[TrainingText], settings: TrainingConfig
) -> Iterator[list[TrainingText]]:
    """Deal rows of like lengths to batches, pool by pool, for as many steps as there are."""
    draw, done = torch.Generator().manual_seed(settings.seed), 0
    while True:
        order = torch.randperm(len(rows), generator=draw)
        for pool in order.split(_POOL_BATCHES * settings.batch):
            near = sorted(pool.tolist(), key=lambda at: len(rows[at].ids))
            starts = torch.arange(0, len(near), settings.batch)
            for start in starts[torch.randperm(len(starts), generator=draw)].tolist():
                if done == settings.steps:
                    return
                done += 1
                yield [rows[at] for at in near[start : start + settings.batch]]


def _check(learners: Mapping[str, Learner], teacher: Any) -> None:  # noqa: ANN401
    if not learners or len({id(learner.hf_model) for learner in learners.values()}) < len(learners):
        raise ModelError(
            f"{len(learners)} students were given: one or more are needed, each a model of its own"
        )
    size = int(teacher.config.vocab_size)
    for name, learner in learners.items():
        if int(learner.hf_model.config.vocab_size) != size:
            raise ModelError(
                f"The teacher has {size} tokens and the student {name!r} "
                f"{int(learner.hf_model.config.vocab_size)}: soft labels need one vocabulary"
            )
