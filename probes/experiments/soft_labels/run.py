"""The experiment "My name is ⟨?⟩": do soft labels teach faster, and why?

The claim. A text says one continuation of "My name is"; a teacher says them all at once with how
likely each is. So one soft example should teach what takes many hard ones.

Design.
- Teacher: `full` of the embedded family. Texts: the family's own, every one opened by "My name
  is …"; what may follow is known exactly (see `naming_texts`).
- Students: small, fresh, and the same for all arms of a seed, as are the texts and their order.
  Every text is seen once, so that one run is one curve; the learning rate stands still after a
  short warmup, so that a curve does not know where it ends. What is counted is examples. A step
  takes four: with many to a step it is steps, not examples, that a student is short of.
- Arms: all that the teacher says; the text's own token; one token drawn from the teacher, or
  eight, which is unbiased; its best eight, which is biased; its first choice alone; the text's
  token smoothed; and what the teacher says with its likenesses dealt at random. The last two are
  softness without a teacher's knowledge. One token drawn, against the text's own, tells whether
  it matters that the teacher chose; the first choice, which is sure but never drawn, whether it
  is noise that hard labels suffer from.
- Beside them, with the rates of their namesakes: soft and hard on the same 64 texts again and
  again, where no haste helps and only what an example says counts; and soft and hard with a rate
  that falls in the last quarter, as a still one leaves noise that hard labels suffer from more.
- Tuning: for each arm a ladder of learning rates, on a seed of its own, from the middle outward
  until the best is not the last one tried or the ladder ends. The best has the least KL(teacher ||
  student) over all tokens, the mean of its logarithm over the looks at the student, which stand
  evenly on the logarithm of examples.
- Beside the students: the teacher itself, and a reader who knows which names there are and counts
  them from one half of each: what so many hard labels are worth to one who wastes nothing.
- Intervals are Student's t over seeds, of logarithms where the measure is a divergence.
"""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from probes.compression.derived_model import DerivedModel, load_parent
from probes.compression.distillation.plan import TrainingConfig, TrainingPlan
from probes.compression.distillation.targets import parse_labels
from probes.compression.distillation.trainer import fit
from probes.errors import ModelError
from probes.experiments.family.recipes import Recipe, recipe
from probes.experiments.family.tokenizer import PAD
from probes.experiments.family.train import random_init_model
from probes.experiments.soft_labels.plan import (
    ARMS,
    COUNTING,
    TEACHER,
    NameRow,
    NameStudySettings,
    chosen_rates,
    is_complete,
    untried,
)
from probes.experiments.soft_labels.texts import (
    LabelInformation,
    TeacherTargets,
    evaluate_student,
    kl_bits,
    label_information,
    sample_name_texts,
    teacher_targets,
    tokenize_name_texts,
    true_name_distribution,
)

_TEST_SEED = 900_000


def name_study(
    arms: Collection[str] = tuple(ARMS),
    *,
    plan: NameStudySettings | None = None,
    done: Sequence[NameRow] = (),
    teacher: str | Path | DerivedModel = "full",
) -> Iterator[tuple[NameRow, ...]]:
    """Tune and run arms, and yield the rows of each run as it ends.

    Args:
        arms: Which of `ARMS`.
        plan: How large; by default what the table of the kit was made with.
        done: Rows of an earlier study of the same plan; its whole runs are not run again.
        teacher: Who knows which names there are.

    Raises:
        ModelError: An arm is unknown.
    """
    plan, rows = plan or NameStudySettings(), list(done)
    for arm in arms:
        if arm not in ARMS:
            raise ModelError(f"There is no arm {arm!r}: the arms are {', '.join(ARMS)}")
    bench = _shared_setup(load_parent(teacher), plan)
    for one in _reference_rows(bench, rows):
        rows += one
        yield one
    for arm in dict.fromkeys(ARMS[arm].rate_from or arm for arm in arms):
        while (rate := untried(arm, plan, rows)) is not None:
            one = _run(bench, NameRow("tuning", arm, plan.tuning_seed, rate, 0, *_NO_SCORES))
            rows += one
            yield one
    # Seed after seed, so that a study that is stopped has all arms of fewer seeds.
    for seed in plan.seeds:
        for arm in arms:
            rate = chosen_rates(rows, plan)[ARMS[arm].rate_from or arm].rate
            wanted = NameRow("run", arm, seed, rate, 0, *_NO_SCORES)
            if not is_complete(rows, wanted, plan):
                one = _run(bench, wanted)
                rows += one
                yield one


def name_label_information(
    teacher: str | Path | DerivedModel = "full", *, plan: NameStudySettings | None = None
) -> list[LabelInformation]:
    """Count the bits of the labels on the texts that students are judged on."""
    return list(
        label_information(_shared_setup(load_parent(teacher), plan or NameStudySettings()).test)
    )


@dataclass(frozen=True, eq=False)
class _SharedSetup:
    """What all runs share."""

    plan: NameStudySettings
    teacher: nn.Module
    tokenizer: PreTrainedTokenizerFast
    test: TeacherTargets
    truth: Float[Tensor, " vocab"]


_NO_SCORES = (float("nan"),) * 6


def _shared_setup(teacher: DerivedModel, plan: NameStudySettings) -> _SharedSetup:
    test = teacher_targets(
        teacher.hf_model, teacher.tokenizer, sample_name_texts(plan.test, seed=_TEST_SEED)
    )
    return _SharedSetup(
        plan, teacher.hf_model, teacher.tokenizer, test, true_name_distribution(teacher.tokenizer)
    )


def _run(setup: _SharedSetup, run: NameRow) -> tuple[NameRow, ...]:
    """Teach one student."""
    plan, arm, found = setup.plan, ARMS[run.arm], []
    student = random_init_model(_student_recipe(plan, run.seed), setup.tokenizer)

    def watch(step: int, model: nn.Module) -> None:
        if step in plan.look_steps:
            marks = evaluate_student(model, setup.test, setup.truth)
            found.append(replace(run, examples=step * plan.batch, **asdict(marks)))

    settings = TrainingConfig(
        plan.updates, run.seed, plan.batch, run.rate, weight_decay=0.1, warmup=plan.warmup,
        schedule="stable" if arm.decay else "constant", save_every=plan.updates,
    )  # fmt: skip
    texts = sample_name_texts(plan.updates * plan.batch, seed=run.seed)[: arm.texts or None]
    rows = tokenize_name_texts(setup.tokenizer, texts)
    training = TrainingPlan(rows, settings, PAD, parse_labels(arm.labels), setup.teacher)
    with tempfile.TemporaryDirectory() as folder:
        fit(student, training, folder=Path(folder), callback=watch)
    return tuple(found)


def _student_recipe(plan: NameStudySettings, seed: int) -> Recipe:
    shape = {"layers": plan.layers, "d_model": plan.width, "heads": plan.heads}
    return replace(recipe("scratch"), seed=seed, d_mlp=3 * plan.width, **shape)


def _reference_rows(setup: _SharedSetup, rows: Sequence[NameRow]) -> Iterator[tuple[NameRow, ...]]:
    """Measure the teacher, and one who counts names."""
    plan = setup.plan
    if not any(row.arm == TEACHER for row in rows):
        marks = astuple(evaluate_student(setup.teacher, setup.test, setup.truth))
        yield (NameRow("beside", TEACHER, 0, 0.0, 0, *marks),)
    if not any(row.arm == COUNTING for row in rows):
        for seed in plan.seeds:
            counts = [plan.batch * at for at in plan.look_steps]
            found = zip(counts, counting_kl(setup.truth, counts, seed=seed), strict=True)
            yield tuple(
                NameRow("beside", COUNTING, seed, 0.0, n, kl, *_NO_SCORES[1:]) for n, kl in found
            )


def counting_kl(
    truth: Float[Tensor, " vocab"], examples: Sequence[int], *, seed: int
) -> tuple[float, ...]:
    """Return KL(truth || counts) in bits after so many draws from the truth.

    Each of the possible tokens starts at one half, as Krichevsky and Trofimov (1981) do.
    """
    share = truth[truth > 0].double().numpy()
    drawn = np.random.default_rng(seed).choice(len(share), max(examples), p=share / share.sum())
    found = []
    for count in examples:
        counts = np.bincount(drawn[:count], minlength=len(share)) + 0.5
        said = torch.from_numpy(np.log(counts / counts.sum()))
        found.append(kl_bits(torch.from_numpy(share), said))
    return tuple(found)
