"""Several students side by side: each is trained alone, and the teacher is asked once for all.

A small student's step costs less than its teacher's answer does, so that eight students by
themselves would mostly pay for the same answers eight times.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from probes.compression.distillation.targets import Labels, loss, wanted
from probes.compression.distillation.trainer import Row, Training, collate
from probes.errors import ModelError

_BETAS, _NORM, _LEAST = (0.9, 0.98), 1.0, 0.05
_POOL = 50  # Batches that are sorted by length together, so that little is padding.


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


Look = Callable[[int, Mapping[str, Any]], None]
"""Called with how many steps were taken and the students by name; it must not change them."""


def teach(  # noqa: PLR0913 (whom, by whom, what and how)
    learners: Mapping[str, Learner],
    teacher: Any,  # noqa: ANN401
    rows: Sequence[Row],
    dials: Training,
    *,
    pad: int,
    labels: Labels | None = None,
    watch: Look | None = None,
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
    labels = labels or Labels("soft")
    _check(learners, teacher)
    teacher.eval()
    fittings = {name: _Fitting(learner, dials) for name, learner in learners.items()}
    models = {name: learner.hf_model for name, learner in learners.items()}
    if watch is not None:
        watch(0, models)
    for step, some in enumerate(_batches(rows, dials), 1):
        feed = collate([{"input_ids": row.ids, "skipped": row.skipped} for row in some], pad)
        truth = feed.pop("labels")[:, 1:]
        trained = truth >= 0
        with torch.no_grad():
            said = teacher(**feed).logits[:, :-1][trained].float()
        draw = torch.Generator().manual_seed((dials.seed << 24) + step)
        target = wanted(labels, truth[trained], said, draw)
        for fitting in fittings.values():
            fitting.learn(feed, trained, (labels, target))
        if watch is not None:
            watch(step, models)
    for model in models.values():
        model.eval()


class _Fitting:
    """A student with its optimiser."""

    def __init__(self, learner: Learner, dials: Training) -> None:
        self.model: nn.Module = learner.hf_model.train()
        rate = {"lr": learner.learning_rate, "betas": _BETAS}
        # As the Hugging Face trainer does: matrices decay, norms and biases do not.
        sides = [[p for p in self.model.parameters() if (p.ndim > 1) == wide] for wide in (1, 0)]
        decay = [learner.weight_decay, 0.0]
        groups = [{"params": p, "weight_decay": d} for p, d in zip(sides, decay, strict=True)]
        self.optimiser = torch.optim.AdamW(groups, **rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: _rate(step, dials)
        )

    def learn(
        self, feed: Mapping[str, Tensor], trained: Tensor, taught: tuple[Labels, Tensor]
    ) -> None:
        labels, target = taught
        self.model.train()
        own = self.model(**feed).logits[:, :-1][trained].float()
        loss(labels, own, target).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), _NORM)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()


def _rate(step: int, dials: Training) -> float:
    """Return the share of the learning rate that holds at a step."""
    if step < dials.warmup:
        return (step + 1) / dials.warmup
    fall = max(dials.steps // 4, 1)
    return max(_LEAST, min(1.0, _LEAST + (1 - _LEAST) * (dials.steps - step) / fall))


def _batches(rows: Sequence[Row], dials: Training) -> Iterator[list[Row]]:
    """Deal rows of like lengths to batches, pool by pool, for as many steps as there are."""
    draw, done = torch.Generator().manual_seed(dials.seed), 0
    while True:
        order = torch.randperm(len(rows), generator=draw)
        for pool in order.split(_POOL * dials.batch):
            near = sorted(pool.tolist(), key=lambda at: len(rows[at].ids))
            starts = torch.arange(0, len(near), dials.batch)
            for start in starts[torch.randperm(len(starts), generator=draw)].tolist():
                if done == dials.steps:
                    return
                done += 1
                yield [rows[at] for at in near[start : start + dials.batch]]


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
