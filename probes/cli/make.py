"""Commands that make models: the shipped models, and relatives of any model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from probes.cli.common import (
    MAX_SEED,
    THREADS_HELP,
    Device,
    check_output_paths,
    open_console,
    print_line,
    reports_errors,
    silence_libraries,
)
from probes.cli.plan import Budget, PlanOnly, make_settings
from probes.cli.training import (
    Batch,
    Rate,
    Steps,
    StudentBatch,
    StudentRate,
    StudentSteps,
    StudentTexts,
    Texts,
    announce,
    announce_training,
    checkpoint_folder,
    family_texts,
    follow_training,
    new_folder,
    option,
    save_and_print,
    student_rows,
    student_training,
)
from probes.errors import ProbeError

make_app = typer.Typer(no_args_is_help=True, help="Make models.")


_Source = Annotated[
    str, typer.Argument(help="Name of a shipped model, a folder, a GGUF file, or a hub id.")
]
_Members = Annotated[list[str] | None, typer.Argument(help="Names; all by default.")]
_Work = Annotated[Path, option("Folder of checkpoints and of models between.")]
_Name = Annotated[str, option("Name of the new model, saved in runs/relatives/NAME.")]
_Force = Annotated[bool, option("Replace a model of this name; train from the start.")]
_Seed = Annotated[int, option("Random seed.", min=0, max=MAX_SEED)]
_Threads = Annotated[int, option(THREADS_HELP, min=1)]


@make_app.command("family")
@reports_errors
def make_family(
    members: _Members = None,
    folder: Annotated[Path, option("Folder of the new models.")] = Path("runs/family"),
    work: _Work = Path("runs/work"),
    threads: _Threads = 1,
) -> None:
    """Train the shipped models again, with fixed seeds (one to two hours on two cores)."""
    silence_libraries(threads)
    from probes.experiments.family.make import make_members

    for path in make_members(members or (), folder=folder, work=work):
        print_line(open_console(), f"Made {path}")


@make_app.command("series")
@reports_errors
def make_series(
    members: _Members = None,
    folder: Annotated[Path, option("Shipped models.")] = Path("data/models"),
    work: _Work = Path("runs/work"),
    pattern: Annotated[str, option("Pattern they are measured on.")] = "take-away",
    out: Annotated[Path, option("The table.")] = Path("runs/series.csv"),
    threads: _Threads = 1,
) -> None:
    """Train small models over seeds and numbers of objects, and measure them (hours)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    check_output_paths(out, None)
    silence_libraries(threads)
    from probes.experiments.family.seed_series import measure_series
    from probes.files import write_rows

    rows = []
    for row in measure_series(members or (), pattern, folder=folder, work=work):
        rows.append(row)
        write_rows(rows, out)
        print_line(open_console(), f"Measured {row['model']}")


@make_app.command("quantized")
@reports_errors
def make_quantized(
    model: _Source,
    scheme: Annotated[str, option("int8, int4, int2, bnb-int8, nf4, rtn-2 to rtn-16.")] = "int4",
    group: Annotated[int | None, option("Weights per scale; 0: whole rows.", min=0)] = None,
    asymmetric: Annotated[bool, option("Quantize with a zero point (rtn).")] = False,
    embeddings: Annotated[bool, option("Quantize embeddings as well (rtn).")] = False,
    name: _Name = "",
    force: _Force = False,
    budget: Budget = "",
    plan_only: PlanOnly = False,
    seed: _Seed = 0,
) -> None:
    """Quantize a model, and measure how far the real kernel is from the rounded weights."""
    silence_libraries()
    asked = make_settings("quantized", budget, plan_only)
    from probes.compression.derived_model import load_parent
    from probes.compression.plan import plan_quantization
    from probes.compression.quantization.quantize import QuantizationSettings, quantize

    folder = new_folder(name or f"{Path(model).name}-{scheme}", force)
    settings = QuantizationSettings(group, not asymmetric, embeddings, seed)
    # It is read again: what `quantize` reads itself it need not copy.
    announce(plan_quantization(load_parent(model), scheme, settings), asked)
    made = quantize(model, scheme, settings)
    save_and_print(made, folder, model)


@make_app.command("pruned")
@reports_errors
def make_pruned(
    model: _Source,
    fraction: Annotated[float, option("Fraction of what the method removes.", min=0, max=1)] = 0.5,
    method: Annotated[str, option("magnitude, wanda, heads, neurons or random.")] = "magnitude",
    scope: Annotated[str, option("Weights ranked together; empty: the method's default.")] = "",
    pattern: Annotated[str, option("Pattern that scores wanda, heads and neurons.")] = "take-away",
    name: _Name = "",
    force: _Force = False,
    budget: Budget = "",
    plan_only: PlanOnly = False,
    seed: _Seed = 0,
) -> None:
    """Prune a model: set weights, or the heads or neurons of each layer, to zero."""
    silence_libraries()
    asked = make_settings("pruned", budget, plan_only)
    from probes.compression.derived_model import load_parent
    from probes.compression.plan import plan_pruning
    from probes.compression.pruning.prune import METHOD_SCOPES, PruningSettings, prune
    from probes.prompts.catalog import pattern as load_pattern

    suffix = f"-{scope}" if scope and scope not in METHOD_SCOPES.get(method, ())[:1] else ""
    default = f"{Path(model).name}-{method}{suffix}-{float(f'{fraction:.4g}'):g}"
    folder = new_folder(name or default, force)
    settings, texts = PruningSettings(scope=scope or None, seed=seed), load_pattern(pattern)
    origin = load_parent(model)
    announce(plan_pruning(origin, method, texts, settings), asked)
    made = prune(origin, fraction, method=method, calibration=texts, settings=settings)
    save_and_print(made, folder, model)


@make_app.command("grown")
@reports_errors
def make_grown(
    model: _Source,
    method: Annotated[str, option("identity, stack or wider.")] = "identity",
    layers: Annotated[int | None, option("Layers after growth.", min=1)] = None,
    width: Annotated[int | None, option("Neurons of each MLP, for wider.")] = None,
    steps: Steps = 0,
    batch: Batch = 64,
    rate: Rate = 1e-3,
    texts: Texts = None,
    name: _Name = "",
    force: _Force = False,
    budget: Budget = "",
    plan_only: PlanOnly = False,
    device: Device = "",
    seed: _Seed = 0,
    threads: _Threads = 1,
) -> None:
    """Grow a model by layers or neurons; with --steps, train it further."""
    silence_libraries(threads)
    asked = make_settings("grown", budget, plan_only)
    from probes.compression.distillation.distill import continue_training
    from probes.compression.distillation.plan import TrainingConfig
    from probes.compression.grow import grow
    from probes.compression.plan import plan_growth

    if (layers is None) == (width is None):
        raise ProbeError("Growth needs either --layers or, for 'wider', --width: give one of them")
    if (width is not None) != (method == "wider"):
        raise ProbeError(
            f"{method!r} does not fit the option: 'wider' takes --width, others --layers"
        )
    size = layers or width
    folder = new_folder(name or f"{Path(model).name}-{method}-{size}", force)
    made = grown = grow(model, method, size, seed=seed)
    plan = None if steps else announce(plan_growth(grown), asked)
    if steps:
        settings = TrainingConfig(steps, seed, batch=batch, learning_rate=rate, device=device)
        plan, settings = announce_training(grown, grown.hf_model, texts, settings, asked)
        rows, home = texts or family_texts(grown, settings), checkpoint_folder(folder, force)
        with follow_training(plan, settings) as report:
            made = continue_training(grown, rows, settings, folder=home, progress=report)
        if texts is None:  # The shipped corpus leaves out what it left out for the parent.
            kept = replace(made.provenance, held_out=grown.provenance.held_out)
            made = replace(made, provenance=kept)
    save_and_print(made, folder, model, plan)


@make_app.command("distilled")
@reports_errors
def make_distilled(
    teacher: _Source,
    start: Annotated[
        str, option("layers or alternate (of the teacher), fresh, or a model.")
    ] = "layers",
    layers: Annotated[int, option("Layers of the student; half by default.", min=0)] = 0,
    width: Annotated[int, option("Width of a fresh student.", min=0)] = 0,
    labels: Annotated[
        str, option("soft, hard, top-k:8, sampled:12, smoothed:0.1 or permuted.")
    ] = "soft",
    teacher_text: Annotated[bool, option("Train on the teacher's texts.")] = False,
    temperature: Annotated[float, option("Temperature of soft labels.")] = 1.0,
    steps: StudentSteps = None,
    batch: StudentBatch = None,
    rate: StudentRate = None,
    texts: StudentTexts = None,
    name: _Name = "",
    force: _Force = False,
    budget: Budget = "",
    plan_only: PlanOnly = False,
    device: Device = "",
    seed: _Seed = 0,
    threads: _Threads = 1,
) -> None:
    """Distill a model: train a smaller one on its predictions."""
    silence_libraries(threads)
    asked = make_settings("distilled", budget, plan_only)
    from probes.compression.derived_model import load_parent
    from probes.compression.distillation.distill import (
        DistillationSettings,
        build_student,
        distill,
    )
    from probes.compression.distillation.targets import parse_labels

    folder = new_folder(name or f"{Path(teacher).name}-distilled-{seed}", force)
    targets = parse_labels(labels, temperature=temperature)
    origin = load_parent(teacher)
    given = {"steps": steps, "batch": batch, "learning_rate": rate, "seed": seed, "device": device}
    training = student_training(origin, start, given)
    settings = DistillationSettings(start, layers, width, targets, teacher_text, training)
    student = build_student(origin, settings)
    old = checkpoint_folder(folder, False)  # Nothing is removed before the plan.
    plan, less = announce_training(
        origin, student, texts, training, asked, labels=targets, writes=teacher_text, kept=old
    )
    training = student_training(origin, start, given | {"steps": less.steps})  # And its warmup.
    home = checkpoint_folder(folder, force)
    rows = student_rows(origin, texts, training, home)
    with follow_training(plan, training) as report:
        settings = replace(settings, training=training, progress=report)
        made = distill(origin, rows, settings, folder=home)
    save_and_print(made, folder, teacher, plan)


@make_app.command("ticket")
@reports_errors
def make_ticket(
    model: _Source,
    early: Annotated[str, option("Early model; known for shipped models.")] = "",
    rounds: Annotated[int, option("Rounds of pruning.", min=1)] = 3,
    fraction: Annotated[float, option("Pruned in each round.", min=0, max=1)] = 0.5,
    steps: Steps = 1500,
    batch: Batch = 128,
    rate: Rate = 1e-3,
    texts: Texts = None,
    name: _Name = "",
    force: _Force = False,
    budget: Budget = "",
    plan_only: PlanOnly = False,
    device: Device = "",
    seed: _Seed = 0,
    threads: _Threads = 1,
) -> None:
    """Find a lottery ticket: prune, rewind to early weights, train again, in rounds."""
    silence_libraries(threads)
    asked = make_settings("ticket", budget, plan_only, rounds=rounds)
    from probes.compression.derived_model import load_parent
    from probes.compression.distillation.plan import TrainingConfig
    from probes.compression.pruning.lottery_ticket import TicketSettings, lottery_ticket
    from probes.experiments.family.make import pretraining_model

    folder = new_folder(name or f"{Path(model).name}-ticket", force)
    training = TrainingConfig(steps, seed, batch=batch, learning_rate=rate, device=device)
    origin = load_parent(model)
    first = load_parent(early or pretraining_model(origin))
    plan, training = announce_training(origin, first.hf_model, texts, training, asked)
    rows, home = texts or family_texts(origin, training), checkpoint_folder(folder, force)
    with follow_training(plan, training, rounds) as report:
        settings = TicketSettings(rounds, fraction, training, report)
        made = lottery_ticket(origin, first, rows, settings, folder=home)
    save_and_print(made, folder, model, plan)
