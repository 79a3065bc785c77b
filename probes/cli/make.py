"""Commands that make models: the shipped models, and relatives of any model."""

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from probes.cli.common import (
    MAX_SEED,
    THREADS_HELP,
    check_output_paths,
    reports_errors,
    silence_libraries,
)
from probes.errors import ProbeError

make_app = typer.Typer(no_args_is_help=True, help="Make models.")

_SOURCE = typer.Argument(help="Name of a shipped model, a folder, or a hub id.")
_NAME = typer.Option(help="Name of the new model; it is saved in runs/relatives/NAME.")
_FORCE = typer.Option(help="Replace a model of this name, and train it from the beginning.")
_TEXTS = typer.Option(
    help="File of texts, one a line; by default the corpus of the shipped models."
)
_STEPS = typer.Option(help="Training steps.", min=0)
_BATCH = typer.Option(help="Texts in each step.", min=1)
_RATE = typer.Option(help="Learning rate.", min=0.0)
_DEVICE = typer.Option(help="Device for training, as torch names it; empty: torch's default.")
_SEED = typer.Option(help="Random seed.", min=0, max=MAX_SEED)


@make_app.command("family")
@reports_errors
def make_family(
    members: Annotated[list[str] | None, typer.Argument(help="Names; all by default.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the new models.")] = Path("runs/family"),
    work: Annotated[Path, typer.Option(help="Folder of checkpoints.")] = Path("runs/work"),
    threads: Annotated[int, typer.Option(help=THREADS_HELP, min=1)] = 1,
) -> None:
    """Train the shipped models again, from fixed seeds (one to two hours on two cores)."""
    silence_libraries(threads)
    from probes.experiments.family.make import make_members

    for place in make_members(members or (), folder=folder, work=work):
        Console(soft_wrap=True).print(f"Made {place}", markup=False, highlight=False)


@make_app.command("series")
@reports_errors
def make_series(
    members: Annotated[list[str] | None, typer.Argument(help="Names; all by default.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the shipped models.")] = Path(
        "data/models"
    ),
    work: Annotated[Path, typer.Option(help="Folder of the new models.")] = Path("runs/work"),
    pattern: Annotated[str, typer.Option(help="Pattern they are measured on.")] = "take-away",
    out: Annotated[Path, typer.Option(help="Where the table is written.")] = Path(
        "runs/series.csv"
    ),
    threads: Annotated[int, typer.Option(help=THREADS_HELP, min=1)] = 1,
) -> None:
    """Train small models over seeds and numbers of objects, and measure them (hours)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    check_output_paths(out, None)
    silence_libraries(threads)
    from probes.experiments.family.seed_series import measure_series, write_series

    rows = []
    for row in measure_series(members or (), pattern, folder=folder, work=work):
        rows.append(row)
        write_series(rows, out)
        Console(soft_wrap=True).print(f"Measured {row['model']}", markup=False, highlight=False)


@make_app.command("quantized")
@reports_errors
def make_quantized(
    model: Annotated[str, _SOURCE],
    scheme: Annotated[
        str, typer.Option(help="int8, int4, int2, bnb-int8, nf4, or rtn-2 to rtn-16.")
    ] = "int4",
    group: Annotated[
        int | None, typer.Option(help="Weights that share a scale; 0: whole rows.", min=0)
    ] = None,
    asymmetric: Annotated[bool, typer.Option(help="Quantize with a zero point (rtn).")] = False,
    embeddings: Annotated[
        bool, typer.Option(help="Quantize the embeddings as well (rtn).")
    ] = False,
    name: Annotated[str, _NAME] = "",
    force: Annotated[bool, _FORCE] = False,
    seed: Annotated[int, _SEED] = 0,
) -> None:
    """Quantize a model, and measure how far the real kernel is from the rounded weights."""
    silence_libraries()
    from probes.compression.quantization.quantize import QuantizationSettings, quantize

    folder = _new_folder(name or f"{_base(model)}-{scheme}", force)
    made = quantize(model, scheme, QuantizationSettings(group, not asymmetric, embeddings, seed))
    _save_and_print(made, folder, model)


@make_app.command("pruned")
@reports_errors
def make_pruned(
    model: Annotated[str, _SOURCE],
    fraction: Annotated[
        float, typer.Option(help="Fraction of weights set to zero.", min=0, max=1)
    ] = 0.5,
    method: Annotated[
        str, typer.Option(help="magnitude, wanda, heads, neurons or random.")
    ] = "magnitude",
    scope: Annotated[
        str, typer.Option(help="Weights that are ranked together; empty: the method's default.")
    ] = "",
    pattern: Annotated[
        str, typer.Option(help="Pattern whose questions score wanda, heads and neurons.")
    ] = "take-away",
    name: Annotated[str, _NAME] = "",
    force: Annotated[bool, _FORCE] = False,
    seed: Annotated[int, _SEED] = 0,
) -> None:
    """Prune a model: set a fraction of its weights to zero."""
    silence_libraries()
    from probes.compression.pruning.prune import METHOD_SCOPES, PruningSettings, prune
    from probes.prompts.catalog import pattern as load_pattern

    suffix = f"-{scope}" if scope and scope not in METHOD_SCOPES.get(method, ())[:1] else ""
    default = f"{_base(model)}-{method}{suffix}-{float(f'{fraction:.4g}'):g}"
    folder = _new_folder(name or default, force)
    settings = PruningSettings(scope=scope or None, seed=seed)
    made = prune(
        model, fraction, method=method, calibration=load_pattern(pattern), settings=settings
    )
    _save_and_print(made, folder, model)


@make_app.command("grown")
@reports_errors
def make_grown(
    model: Annotated[str, _SOURCE],
    method: Annotated[str, typer.Option(help="identity, stack or wider.")] = "identity",
    layers: Annotated[
        int | None, typer.Option(help="Number of layers after growth.", min=1)
    ] = None,
    width: Annotated[int | None, typer.Option(help="Neurons of each MLP, for wider.")] = None,
    steps: Annotated[int, _STEPS] = 0,
    batch: Annotated[int, _BATCH] = 64,
    rate: Annotated[float, _RATE] = 1e-3,
    texts: Annotated[Path | None, _TEXTS] = None,
    name: Annotated[str, _NAME] = "",
    force: Annotated[bool, _FORCE] = False,
    device: Annotated[str, _DEVICE] = "",
    seed: Annotated[int, _SEED] = 0,
    threads: Annotated[int, typer.Option(help=THREADS_HELP, min=1)] = 1,
) -> None:
    """Grow a model by layers or neurons; with --steps, train it further."""
    silence_libraries(threads)
    from probes.compression.distillation.distill import continue_training
    from probes.compression.distillation.plan import TrainingConfig
    from probes.compression.grow import grow

    if (layers is None) == (width is None):
        raise ProbeError("Growth needs either --layers or, for 'wider', --width: give one of them")
    if (width is not None) != (method == "wider"):
        raise ProbeError(
            f"{method!r} does not fit the option: 'wider' takes --width, others --layers"
        )
    size = layers or width
    folder = _new_folder(name or f"{_base(model)}-{method}-{size}", force)
    made = grow(model, method, size, seed=seed)
    if steps:
        settings = TrainingConfig(steps, seed, batch=batch, learning_rate=rate, device=device)
        made = continue_training(
            made,
            texts or _family_texts(made, settings),
            settings,
            folder=_checkpoint_folder(folder, force),
            progress=_show_progress(),
        )
    _save_and_print(made, folder, model)


@make_app.command("distilled")
@reports_errors
def make_distilled(
    teacher: Annotated[str, _SOURCE],
    start: Annotated[
        str, typer.Option(help="layers (of the teacher), fresh, or a model to start from.")
    ] = "layers",
    layers: Annotated[int, typer.Option(help="Layers of the student; half by default.", min=0)] = 0,
    width: Annotated[int, typer.Option(help="Width of a fresh student.", min=0)] = 0,
    labels: Annotated[
        str, typer.Option(help="soft, hard, top-k:8, sampled:12, smoothed:0.1 or permuted.")
    ] = "soft",
    teacher_text: Annotated[
        bool, typer.Option(help="Train on texts that the teacher writes.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Temperature of soft labels.")] = 1.0,
    steps: Annotated[int, _STEPS] = 1500,
    batch: Annotated[int, _BATCH] = 64,
    rate: Annotated[float, _RATE] = 1e-3,
    texts: Annotated[Path | None, _TEXTS] = None,
    name: Annotated[str, _NAME] = "",
    force: Annotated[bool, _FORCE] = False,
    device: Annotated[str, _DEVICE] = "",
    seed: Annotated[int, _SEED] = 0,
    threads: Annotated[int, typer.Option(help=THREADS_HELP, min=1)] = 1,
) -> None:
    """Distill a model: train a smaller one on its predictions."""
    silence_libraries(threads)
    from probes.compression.derived_model import load_parent
    from probes.compression.distillation.distill import DistillationSettings, distill
    from probes.compression.distillation.plan import TrainingConfig
    from probes.compression.distillation.targets import parse_labels

    folder = _new_folder(name or f"{_base(teacher)}-distilled-{seed}", force)
    settings = DistillationSettings(
        start=start,
        layers=layers,
        width=width,
        labels=parse_labels(labels, temperature=temperature),
        teacher_text=teacher_text,
        training=TrainingConfig(steps, seed, batch=batch, learning_rate=rate, device=device),
        progress=_show_progress(),
    )
    origin = load_parent(teacher)
    rows = texts or _family_texts(origin, settings.training)
    made = distill(origin, rows, settings, folder=_checkpoint_folder(folder, force))
    _save_and_print(made, folder, teacher)


@make_app.command("ticket")
@reports_errors
def make_ticket(
    model: Annotated[str, _SOURCE],
    early: Annotated[
        str, typer.Option(help="The model early in training; known for shipped models.")
    ] = "",
    rounds: Annotated[int, typer.Option(help="Rounds of pruning.", min=1)] = 3,
    fraction: Annotated[
        float, typer.Option(help="Fraction pruned in each round.", min=0, max=1)
    ] = 0.5,
    steps: Annotated[int, _STEPS] = 1500,
    batch: Annotated[int, _BATCH] = 128,
    rate: Annotated[float, _RATE] = 1e-3,
    texts: Annotated[Path | None, _TEXTS] = None,
    name: Annotated[str, _NAME] = "",
    force: Annotated[bool, _FORCE] = False,
    device: Annotated[str, _DEVICE] = "",
    seed: Annotated[int, _SEED] = 0,
    threads: Annotated[int, typer.Option(help=THREADS_HELP, min=1)] = 1,
) -> None:
    """Find a lottery ticket: prune, rewind to early weights, train again, in rounds."""
    silence_libraries(threads)
    from probes.compression.derived_model import load_parent
    from probes.compression.distillation.plan import TrainingConfig
    from probes.compression.pruning.lottery_ticket import TicketSettings, lottery_ticket
    from probes.experiments.family.make import pretraining_model

    folder = _new_folder(name or f"{_base(model)}-ticket", force)
    training = TrainingConfig(steps, seed, batch=batch, learning_rate=rate, device=device)
    settings = TicketSettings(rounds, fraction, training, _show_progress())
    origin = load_parent(model)
    start = early or pretraining_model(origin)
    rows = texts or _family_texts(origin, training)
    made = lottery_ticket(origin, start, rows, settings, folder=_checkpoint_folder(folder, force))
    _save_and_print(made, folder, model)


def _base(source: str) -> str:
    return Path(source).name


def _new_folder(name: str, force: bool) -> Path:
    """Folder of the new model; its name is checked before the work begins."""
    from probes.compression.derived_model import new_model_folder

    return new_model_folder(name, force=force)


def _checkpoint_folder(folder: Path, force: bool) -> Path:
    checkpoints = Path("runs") / "work" / f"{folder.name}-checkpoints"
    if force:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return checkpoints


def _family_texts(model: Any, settings: Any) -> Any:  # noqa: ANN401
    """Texts of the shipped models' corpus, one for each row of the run."""
    from probes.experiments.family.train import family_corpus

    settings.torch_device()  # A wrong one ends before the texts are written.
    return family_corpus(model, count=settings.steps * settings.batch, seed=settings.seed)


def _show_progress() -> bool:
    return sys.stderr.isatty()


def _save_and_print(derived: Any, folder: Path, source: str) -> None:  # noqa: ANN401
    """Save a relative, and print its storage cost next to its parent's."""
    from dataclasses import replace

    from probes.compression.derived_model import load_parent

    name = folder.name
    derived = replace(derived, name=name)
    place = derived.save(folder)
    console = Console(soft_wrap=True)
    table = Table("", Path(source).name, name)
    sides = (load_parent(source).provenance.storage, derived.provenance.storage)
    for part in ("weights", "scales", "zero_points", "mask_index", "embeddings", "other", "total"):
        numbers = [getattr(side, part) for side in sides]
        if any(numbers):
            table.add_row(f"{part}, kB", *(f"{number / 8e3:.1f}" for number in numbers))
    console.print(table)
    if derived.provenance.kernel_gap is not None:
        console.print(
            f"Largest difference of a logit from the real kernel: {derived.provenance.kernel_gap:.2g}",
            highlight=False,
        )
    console.print(f"Made {place}: load it as {name!r}", markup=False, highlight=False)
