"""Commands about many relatives: studies that vary one factor, and rate–distortion curves."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from probes.cli.common import (
    MAX_SEED,
    THREADS_HELP,
    Device,
    EngineName,
    Format,
    GateAsks,
    Workers,
    check_output_paths,
    open_console,
    print_line,
    reports_errors,
    silence_libraries,
    write_result,
)
from probes.cli.plan import Budget, PlanOnly, plan_options
from probes.cli.runs import DEFAULT_RUN, NoStore, RunFolder, print_reuse, store_options

study_app = typer.Typer()

_COLUMNS = (
    *("cells", "nouns", "divergence", "mean_interchange_accuracy", "operation", "x", "y"),
    *("object", "circuit_faithfulness"),
)


@study_app.command("study")
@reports_errors
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="labels, names, adapting, tickets, growing, along, fewest, inheritance or "
            "real-models."
        ),
    ],
    folder: Annotated[
        Path, typer.Option(help="Folder of the shipped models, or of pretrained ones.")
    ] = Path("data/models"),
    work: Annotated[Path, typer.Option(help="Folder of the new models.")] = Path("runs/work"),
    out: Annotated[
        Path | None, typer.Option(help="Where the table is written; runs/NAME.csv by default.")
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Measure known rows again.")] = False,
    threads: Annotated[int, typer.Option(help=THREADS_HELP, min=1)] = 1,
    engine: EngineName = "inprocess",
    workers: Workers = 2,
) -> None:
    """Make relatives that differ in one factor, measure each, and write one table (hours)."""
    silence_libraries(threads)
    from probes.experiments.studies.registry import STUDIES, run_study
    from probes.experiments.studies.tables import read_study
    from probes.files import write_rows
    from probes.scale.engine import open_engine

    path = out or Path("runs") / f"{name}.csv"
    if name in STUDIES:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_output_paths(path, None)
    known = [] if fresh else read_study(name, path)
    rows: list[Any] = []
    console = open_console()
    with open_engine(engine, workers=workers) as opened:
        for row in run_study(name, folder=folder, work=work, known=known, engine=opened):
            rows.append(row)
            if len(rows) >= len(known):  # A run that is stopped does not shorten the table.
                write_rows(rows, path)
            if sys.stderr.isatty() and "model" in row:
                print_line(console, f"Measured {row['model']}")
    if any("mean_interchange_accuracy" in row for row in rows):
        console.print(_scorecard_table(rows))
    if name == "growing":
        from probes.experiments.studies.growth import circuit_table, growth_table

        console.print(_frame_table(growth_table(rows)), _frame_table(circuit_table(rows)))
    if any("kin" in row for row in rows):
        console.print(_separation_table(rows))
    print_line(console, f"Table: {path}, {len(rows)} rows")


def _frame_table(frame: Any) -> Table:  # noqa: ANN401
    """Table of a data frame; numbers have two decimals."""
    table = Table(*map(str, frame.columns))
    for row in frame.itertuples(index=False):
        cells = (f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row)
        table.add_row(*cells)
    return table


def _scorecard_table(rows: list[Any]) -> Table:
    table = Table("model", "parent", *_COLUMNS)
    for row in rows:
        numbers = [row[column] for column in _COLUMNS]
        table.add_row(
            str(row["model"]), str(row["parent"]), *("–" if n != n else f"{n:.2f}" for n in numbers)
        )
    return table


def _separation_table(rows: list[Any]) -> Table:
    from probes.experiments.inheritance.result import score_separations

    table = Table("reference", "score", "its students", "others", "AUROC", "p (Holm)", "students")
    for found in score_separations(rows):
        auroc = found.auroc
        table.add_row(
            *(found.reference, found.score, f"{found.kin:.3g}", f"{found.others:.3g}"),
            *(str(auroc.value), f"{found.p_corrected:.2g}"),
            f"{auroc.n_related} + {auroc.n_negative_controls}",
        )
    return table


@study_app.command("curve")
@reports_errors
def curve(
    parent: Annotated[
        str, typer.Argument(help="Name of a shipped model, a folder, a GGUF file, or a hub id.")
    ],
    relatives: Annotated[list[str], typer.Argument(help="One or more relatives.")],
    pattern: Annotated[
        str, typer.Option(help="Name of a pattern, or a .jsonl file of pairs.")
    ] = "take-away",
    format: Format = "plain",
    bases: Annotated[int, typer.Option(help="Questions to measure on.", min=16, max=100_000)] = 200,
    prompts: Annotated[int, typer.Option(help="Pairs for the circuit.", min=4, max=100_000)] = 32,
    noise: Annotated[
        int, typer.Option(help="Copies with weight noise for each relative.", min=0)
    ] = 3,
    verdicts: Annotated[
        bool, typer.Option(help="Count verdicts on heads and variables as well (minutes).")
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Seed of prompts, noise and random models.", min=0, max=MAX_SEED)
    ] = 0,
    gate: GateAsks = None,
    device: Device = "",
    budget: Budget = "",
    plan_only: PlanOnly = False,
    engine: EngineName = "inprocess",
    workers: Workers = 2,
    run: RunFolder = DEFAULT_RUN,
    no_store: NoStore = False,
    out: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("curve.html"),
    json: Annotated[Path | None, typer.Option(help="Where the numbers are written.")] = None,
) -> None:
    """Rate–distortion: storage of each relative against loss of behavior and mechanism."""
    check_output_paths(out, json, page=True)
    silence_libraries()
    from probes.comparison.rate_distortion.measure import RateDistortionSettings, rate_distortion

    settings = RateDistortionSettings(
        **plan_options(budget, plan_only),
        **store_options(run, no_store, plan_only=plan_only),
        bases=bases,
        prompts=prompts,
        noise_copies=noise,
        verdicts=verdicts,
        seed=seed,
        format=format,
        gate=gate.value if gate else None,
        device=device,
        engine=engine,
        workers=workers,
    )
    result = rate_distortion(parent, relatives, pattern, settings)
    write_result(result, out, json)
    print_reuse(settings)
