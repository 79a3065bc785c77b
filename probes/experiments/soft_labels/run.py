"""The "My name is" study: how fast students learn a known distribution from each kind of label.

A text shows one continuation of "My name is"; a teacher gives the probability of each.

Design
- Teacher: `full`. Texts: its own training corpus, each opened by "My name is …", so that the true
  distribution of the next token is known exactly (see `texts`).
- Students: small, from fresh weights, equal for all arms of a seed, as are the texts and their
  order. Each text is seen once, so that one run is one learning curve. The learning rate is
  constant after a short warmup, so that the curve does not depend on where it ends. Examples are
  counted; a step has four, as students with large batches lack steps, not examples.
- Arms: the teacher's distribution; the text's token; one token sampled from the teacher, or eight
  (unbiased); its eight largest probabilities (biased); its most likely token; the text's token
  smoothed; the teacher's distribution permuted. The last two are soft without the teacher's
  knowledge. One sampled token against the text's token tests whether the teacher's choice matters;
  the most likely token, which is never sampled, tests whether sampling noise hurts hard labels.
- Controls with the learning rates of the main arms: soft and hard labels on the same 64 texts
  repeated, and soft and hard labels with a decay in the last quarter, since a constant learning
  rate leaves noise that hurts hard labels more.
- Tuning: learning rates are tried on a seed of their own, from the middle outward, until the best
  is not the last one tried or none is left. The best has the lowest mean log KL(teacher ||
  student) over all tokens and evaluations, which are evenly spaced on log examples.
- References: the teacher, and a reader that knows the set of names and counts them from one half
  each.
- Intervals are Student's t over seeds, of logarithms for divergences.
"""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import cached_property, partial
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
from probes.experiments.studies.parts import Part, run_parts
from probes.scale.engine import HERE, Engine

_TEST_SEED = 900_000
_NO_SCORES = (float("nan"),) * 6


def name_study(
    arms: Collection[str] = tuple(ARMS),
    *,
    plan: NameStudySettings | None = None,
    done: Sequence[NameRow] = (),
    teacher: str | Path | DerivedModel = "full",
    engine: Engine = HERE,
) -> Iterator[tuple[NameRow, ...]]:
    """Tune and run arms; the rows of each run as it ends.

    Args:
        arms: Some of `ARMS`.
        plan: Size of the study; by default that of the shipped table.
        done: Rows of an earlier run of the same plan; its complete runs are not repeated.
        teacher: Teacher.
        engine: Where the runs of the seeds are trained, one a unit; learning rates are tuned here.

    Raises:
        ModelError: An arm is unknown.
    """
    plan, rows = plan or NameStudySettings(), list(done)
    for arm in arms:
        if arm not in ARMS:
            raise ModelError(f"There is no arm {arm!r}: use one of {', '.join(ARMS)}")
    name_teacher = NameTeacher(teacher, plan)
    setup = name_teacher.setup
    for new in _reference_rows(setup, rows):
        rows += new
        yield new
    for arm in dict.fromkeys(ARMS[arm].rate_from or arm for arm in arms):
        while (rate := untried(arm, plan, rows)) is not None:
            new = _run(setup, NameRow("tuning", arm, plan.tuning_seed, rate, 0, *_NO_SCORES))
            rows += new
            yield new
    rates = chosen_rates(rows, plan)
    # Seeds are the outer loop, so that a study that is stopped has all arms of fewer seeds.
    runs = [
        NameRow("run", arm, seed, rates[ARMS[arm].rate_from or arm].rate, 0, *_NO_SCORES)
        for seed in plan.seeds
        for arm in arms
    ]
    yield from run_parts(
        [
            Part(f"{run.arm}, seed {run.seed}", partial(_run_student, name_teacher, run))
            for run in runs
            if not is_complete(rows, run, plan)
        ],
        engine,
    )


def name_label_information(
    teacher: str | Path | DerivedModel = "full", *, plan: NameStudySettings | None = None
) -> list[LabelInformation]:
    """Bits of the labels on the test texts, by class of tokens."""
    setup = _shared_setup(load_parent(teacher), plan or NameStudySettings())
    return list(label_information(setup.test))


@dataclass(frozen=True, eq=False)
class _SharedSetup:
    """Teacher, test texts and true distribution of all runs."""

    plan: NameStudySettings
    teacher: nn.Module
    tokenizer: PreTrainedTokenizerFast
    test: TeacherTargets
    truth: Float[Tensor, " vocab"]


@dataclass(frozen=True)
class NameTeacher:
    """Teacher and plan as an argument of units.

    Attributes:
        source: Teacher; in a unit that another process runs, its name or folder.
        plan: Size of the study.
    """

    source: str | Path | DerivedModel
    plan: NameStudySettings

    @cached_property
    def setup(self) -> _SharedSetup:
        """What all runs share, made at first use."""
        return _shared_setup(load_parent(self.source), self.plan)


def _run_student(teacher: NameTeacher, run: NameRow) -> list[tuple[NameRow, ...]]:
    return [_run(teacher.setup, run)]


def _shared_setup(teacher: DerivedModel, plan: NameStudySettings) -> _SharedSetup:
    model, tokenizer = teacher.hf_model, teacher.tokenizer
    test = teacher_targets(model, tokenizer, sample_name_texts(plan.test, seed=_TEST_SEED))
    return _SharedSetup(plan, model, tokenizer, test, true_name_distribution(tokenizer))


def _run(setup: _SharedSetup, run: NameRow) -> tuple[NameRow, ...]:
    """Train one student; a row for each evaluation."""
    plan, arm = setup.plan, ARMS[run.arm]
    rows: list[NameRow] = []
    shape = {"layers": plan.layers, "d_model": plan.width, "heads": plan.heads}
    student_recipe: Recipe = replace(
        recipe("scratch"), seed=run.seed, d_mlp=3 * plan.width, **shape
    )
    student = random_init_model(student_recipe, setup.tokenizer)

    def evaluate(step: int, model: nn.Module) -> None:
        if step in plan.look_steps:
            scores = evaluate_student(model, setup.test, setup.truth)
            rows.append(replace(run, examples=step * plan.batch, **asdict(scores)))

    settings = TrainingConfig(
        plan.updates, run.seed, plan.batch, run.rate, weight_decay=0.1, warmup=plan.warmup,
        schedule="stable" if arm.decay else "constant", save_every=plan.updates,
    )  # fmt: skip
    texts = sample_name_texts(plan.updates * plan.batch, seed=run.seed)[: arm.texts or None]
    tokens = tokenize_name_texts(setup.tokenizer, texts)
    training = TrainingPlan(tokens, settings, PAD, parse_labels(arm.labels), setup.teacher)
    with tempfile.TemporaryDirectory() as folder:
        fit(student, training, folder=Path(folder), callback=evaluate)
    return tuple(rows)


def _reference_rows(setup: _SharedSetup, rows: Sequence[NameRow]) -> Iterator[tuple[NameRow, ...]]:
    """Rows of the teacher and of the reader that counts, unless they are there."""
    plan = setup.plan
    if not any(row.arm == TEACHER for row in rows):
        scores = astuple(evaluate_student(setup.teacher, setup.test, setup.truth))
        yield (NameRow("beside", TEACHER, 0, 0.0, 0, *scores),)
    if not any(row.arm == COUNTING for row in rows):
        for seed in plan.seeds:
            examples = [plan.batch * step for step in plan.look_steps]
            divergences = counting_kl(setup.truth, examples, seed=seed)
            yield tuple(
                NameRow("beside", COUNTING, seed, 0.0, n, kl, *_NO_SCORES[1:])
                for n, kl in zip(examples, divergences, strict=True)
            )


def counting_kl(
    truth: Float[Tensor, " vocab"], examples: Sequence[int], *, seed: int
) -> tuple[float, ...]:
    """KL(truth || counts) in bits after some numbers of samples from the truth.

    The count of each possible token starts at one half (Krichevsky and Trofimov 1981).
    """
    probs = truth[truth > 0].double().numpy()
    sampled = np.random.default_rng(seed).choice(len(probs), max(examples), p=probs / probs.sum())
    divergences = []
    for count in examples:
        counts = np.bincount(sampled[:count], minlength=len(probs)) + 0.5
        estimated = torch.from_numpy(np.log(counts / counts.sum()))
        divergences.append(kl_bits(torch.from_numpy(probs), estimated))
    return tuple(divergences)
