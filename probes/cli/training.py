"""Parts of the commands that train a model: options, texts, checkpoints and progress."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from probes.cli.common import open_console, print_line
from probes.progress import Progress

_LINE_SECONDS = 60
_WRITTEN_FILE = "teacher_texts.json"
_WRITTEN = 32  # Texts that a teacher writes to tell the time of all.


def option(text: str, **limits: Any) -> Any:  # noqa: ANN401
    """Option of a command with its help and limits."""
    return typer.Option(help=text, **limits)


Texts = Annotated[Path | None, option("Texts, one a line; default: the shipped corpus.")]
Steps = Annotated[int, option("Training steps.", min=0)]
Batch = Annotated[int, option("Texts in each step.", min=1)]
Rate = Annotated[float, option("Learning rate.", min=0.0)]

_BY_SIZE = "default: by the size of the model"
StudentSteps = Annotated[int | None, option(f"Training steps; {_BY_SIZE}.", min=0)]
StudentBatch = Annotated[int | None, option(f"Texts in each step; {_BY_SIZE}.", min=1)]
StudentRate = Annotated[float | None, option(f"Learning rate; {_BY_SIZE} and start.", min=0.0)]
StudentTexts = Annotated[
    Path | None,
    option(
        "Texts, one a line; default: the shipped corpus, for other tokenizers prompts of the "
        "shipped patterns and texts that the teacher writes."
    ),
]


def new_folder(name: str, force: bool) -> Path:
    """Folder of the new model; its name is checked first."""
    from probes.compression.derived_model import new_model_folder

    return new_model_folder(name, force=force)


def checkpoint_folder(folder: Path, force: bool) -> Path:
    """Folder of the checkpoints of a new model; emptied if it is trained from the start."""
    checkpoints = Path("runs") / "work" / f"{folder.name}-checkpoints"
    if force:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return checkpoints


def family_texts(model: Any, settings: Any) -> Any:  # noqa: ANN401
    """Texts of the shipped models' corpus, one for each row of the run."""
    from probes.experiments.family.train import family_corpus

    settings.torch_device()  # A wrong one ends before the texts are written.
    return family_corpus(model, count=settings.steps * settings.batch, seed=settings.seed)


def _sample_texts(
    model: Any,  # noqa: ANN401
    texts: Path | None,
    settings: Any,  # noqa: ANN401
    *,
    writes: bool = False,
    patterns: Path | None = None,
) -> Any:  # noqa: ANN401
    """Some texts of a training run (`TextSample`), and the time that all of them take.

    `writes`: the teacher writes the texts anew. `patterns`: where the shipped corpus does not fit,
    they are questions of patterns, and texts that the teacher writes once, into this folder.
    """
    from probes.compression.distillation import pattern_texts
    from probes.compression.distillation.texts import generate_continuations, load_texts
    from probes.compression.plan import TIMED_STEPS, TextSample
    from probes.experiments.family.train import has_family_tokenizer

    device, once, each = settings.torch_device(), 0.0, 0.0
    few = min(settings.steps, TIMED_STEPS) * settings.batch
    begun = time.thread_time()
    if texts or patterns is None or has_family_tokenizer(model):
        fewer = replace(settings, steps=min(settings.steps, TIMED_STEPS))
        rows = load_texts(model, texts) if texts else family_texts(model, fewer)
        each = 0.0 if texts else (time.thread_time() - begun) / few
    else:
        model.hf_model.to(device)
        rows = pattern_texts.pattern_questions(model, seed=settings.seed)
        if not (patterns / _WRITTEN_FILE).is_file():
            once = pattern_texts.time_written_texts(model, rows, seed=settings.seed)
    if writes:
        begun, count = time.thread_time(), len(rows)
        rows = generate_continuations(model, rows[:_WRITTEN], seed=settings.seed)
        spent = (time.thread_time() - begun) / len(rows)
        once, each = (once + count * spent, each) if texts else (once, each + spent)
    return TextSample(rows, each, once)


def announce(plan: Any, asked: Any) -> Any:  # noqa: ANN401
    """Tell the plan of a command that nothing can lower, and return it."""
    from probes.compression.plan import require_budget

    asked.on_plan(require_budget(plan, asked))
    return plan


def announce_training(
    origin: Any,  # noqa: ANN401
    student: Any,  # noqa: ANN401
    texts: Path | None,
    settings: Any,  # noqa: ANN401
    asked: Any,  # noqa: ANN401
    *,
    labels: Any = None,  # noqa: ANN401
    writes: bool = False,
    kept: Path | None = None,
) -> tuple[Any, Any]:
    """Tell the plan of a training run; return it, and the settings that keep to the budget.

    `labels` are those of a teacher, `origin`; `writes`: it writes the texts; `kept`: checkpoints of
    its student.
    """
    from probes.compression.distillation.plan import TrainingPlan
    from probes.compression.distillation.texts import pad_token
    from probes.compression.plan import plan_training

    sample = _sample_texts(origin, texts, settings, writes=writes, patterns=kept)
    run = TrainingPlan(sample.rows, settings, pad_token(origin))
    if labels is not None:
        teacher = origin.hf_model if labels.needs_teacher else None
        run = replace(run, labels=labels, teacher=teacher)
    plan, settings = plan_training(student, run, sample, asked)
    asked.on_plan(plan)
    return plan, settings


def student_rows(teacher: Any, texts: Path | None, training: Any, checkpoints: Path) -> Any:  # noqa: ANN401
    """Texts of a student: those of a file, of the shipped corpus, or of patterns and the teacher.

    The settings are printed before the teacher writes.
    """
    from probes.compression.distillation.texts import load_texts

    rows = load_texts(teacher, texts) if texts else None
    _print_plan(training, checkpoints)
    return rows or _student_texts(teacher, training, checkpoints)


def _student_texts(teacher: Any, settings: Any, checkpoints: Path) -> Any:  # noqa: ANN401
    from probes.compression.distillation.pattern_texts import pattern_texts
    from probes.experiments.family.train import has_family_tokenizer

    if has_family_tokenizer(teacher):
        return family_texts(teacher, settings)
    teacher.hf_model.to(settings.torch_device())
    return pattern_texts(
        teacher,
        settings.steps * settings.batch,
        seed=settings.seed,
        written_file=checkpoints / _WRITTEN_FILE,
    )


def student_training(teacher: Any, start: str, given: dict[str, Any]) -> Any:  # noqa: ANN401
    """Settings of a student's training: the given ones, else those that suit the teacher's size."""
    from probes.compression.distillation.distill import default_training

    given = {name: value for name, value in given.items() if value is not None}
    suited = default_training(teacher, start, given.get("steps"), given.get("batch"))
    return replace(suited, **given)


def _print_plan(settings: Any, checkpoints: Path) -> None:  # noqa: ANN401
    """Print what a training run will do."""
    plan = f"{settings.steps} steps of {settings.batch} texts at rate {settings.learning_rate:g}"
    kept = f"a checkpoint every {settings.save_every} steps in {checkpoints}"
    print_line(open_console(stderr=True), f"Training: {plan}, {kept}")


@contextmanager
def follow_training(plan: Any, settings: Any, rounds: int = 1) -> Iterator[Callable]:  # noqa: ANN401
    """Report of a training run: a bar that counts the plan's work, or a line a minute."""
    if not sys.stderr.isatty():
        yield minute_lines(settings.steps)
        return
    before, last = 0, 0
    with Progress(plan) as progress:
        progress.begin("training")

        def report(step: int, _: float) -> None:
            nonlocal before, last
            before += last * (step < last)  # Another round begins.
            last = step
            progress.reach((before + step) / (rounds * settings.steps))

        yield report


def minute_lines(steps: int) -> Callable[[int, float], None]:
    """Report of a training run, a line a minute."""
    console = open_console(stderr=True)
    first: tuple[int, float] | None = None
    last = 0.0

    def report(step: int, loss: float) -> None:
        nonlocal first, last
        now = time.monotonic()
        if (
            first is None or step <= first[0]
        ):  # Another round begins. What precedes the first step tells no speed.
            first, last = (step, now), now
            return
        if now - last < _LINE_SECONDS:
            return
        last, seconds = now, (now - first[1]) / (step - first[0])
        left = f"{seconds:.2f} s a step, {(steps - step) * seconds / 60:.0f} min left"
        print_line(console, f"Step {step} of {steps}: loss {loss:.3f}, {left}")

    return report


def save_and_print(derived: Any, folder: Path, source: str, plan: Any = None) -> None:  # noqa: ANN401
    """Save a derived model with what a budget left out; print its storage cost and its parent's."""
    from probes.compression.derived_model import load_parent
    from probes.plan import LEFT_OUT, budget_lines

    name, made = folder.name, derived.provenance
    if plan and plan.left_out:
        made = replace(made, settings={**made.settings, LEFT_OUT: "; ".join(plan.left_out)})
    path = replace(derived, name=name, provenance=made).save(folder)
    console = open_console()
    table = Table("", Path(source).name, name)
    sides = (load_parent(source).provenance.storage, made.storage)
    for part in ("weights", "scales", "zero_points", "mask_index", "embeddings", "other", "total"):
        numbers = [getattr(side, part) for side in sides]
        if any(numbers):
            table.add_row(f"{part}, kB", *(f"{number / 8e3:.1f}" for number in numbers))
    console.print(table)
    if made.kernel_gap is not None:
        gap = f"{made.kernel_gap:.2g}"
        print_line(console, f"Largest difference of a logit from the real kernel: {gap}")
    for line in budget_lines(plan.left_out if plan else ()):
        print_line(console, line)
    print_line(console, f"Made {path}: load it as {name!r}")
