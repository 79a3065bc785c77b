"""Parts of the commands that train a model: options, texts, checkpoints and progress."""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from probes.cli.common import print_line

_LINE_SECONDS = 60


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


def student_rows(teacher: Any, texts: Path | None, settings: Any, checkpoints: Path) -> Any:  # noqa: ANN401
    """Texts of a student: those of a file, of the shipped corpus, or of patterns and the teacher.

    The plan is printed before the teacher writes, and after all that can be refused was checked.
    """
    from probes.compression.distillation.distill import build_student
    from probes.compression.distillation.texts import load_texts

    training = settings.training
    build_student(teacher, settings)
    training.torch_device()
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
        written_file=checkpoints / "teacher_texts.json",
    )


def student_training(
    teacher: Any,  # noqa: ANN401
    start: str,
    given: dict[str, Any],
    **other: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Settings of a student's training: the given ones, else those that suit the teacher's size."""
    from probes.compression.distillation.distill import default_training

    given = {name: value for name, value in given.items() if value is not None}
    return replace(default_training(teacher, start, given.get("steps")), **given, **other)


def _print_plan(settings: Any, checkpoints: Path) -> None:  # noqa: ANN401
    """Print what a training run will do."""
    plan = f"{settings.steps} steps of {settings.batch} texts at rate {settings.learning_rate:g}"
    kept = f"a checkpoint every {settings.save_every} steps in {checkpoints}"
    print_line(Console(stderr=True, soft_wrap=True), f"Training: {plan}, {kept}")


def show_progress() -> bool:
    """Whether a progress bar can be seen."""
    return sys.stderr.isatty()


def minute_lines(steps: int) -> Callable[[int, float], None]:
    """Report of a training run, a line a minute."""
    console = Console(stderr=True, soft_wrap=True)
    first: tuple[int, float] | None = None
    last = 0.0

    def report(step: int, loss: float) -> None:
        nonlocal first, last
        now = time.monotonic()
        if first is None:  # What precedes the first step tells no speed.
            first, last = (step, now), now
            return
        if now - last < _LINE_SECONDS:
            return
        last, seconds = now, (now - first[1]) / (step - first[0])
        left = f"{seconds:.2f} s a step, {(steps - step) * seconds / 60:.0f} min left"
        print_line(console, f"Step {step} of {steps}: loss {loss:.3f}, {left}")

    return report
