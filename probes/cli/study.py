"""The commands about many relatives: studies that turn one thing, and the curve of rates."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from probes.cli.common import THREADS_HELP, check_output_paths, reports_errors, silence_libraries

study_app = typer.Typer()

_COLUMNS = ("cells", "nouns", "divergence", "kinship", "operation", "x", "y", "thing", "circuit")


@study_app.command("study")
@reports_errors
def study(
    name: Annotated[
        str,
        typer.Argument(help="labels, names, adapting, tickets, growing, along or fewest."),
    ],
    folder: Annotated[Path, typer.Option(help="Where the family is.")] = Path("data/models"),
    work: Annotated[Path, typer.Option(help="Where the models go.")] = Path("runs/work"),
    out: Annotated[Path | None, typer.Option(help="The table; runs/NAME.csv by default.")] = None,
    fresh: Annotated[bool, typer.Option(help="Measure again what the table has.")] = False,
    threads: Annotated[int, typer.Option(help=THREADS_HELP, min=1)] = 1,
) -> None:
    """Make relatives that differ in one thing, measure each, and write one table (hours)."""
    silence_libraries(threads)
    from probes.experiments.scorecard import write_rows
    from probes.experiments.studies.registry import run_study as run
    from probes.experiments.studies.tables import read_study

    place = out or Path("runs") / f"{name}.csv"
    known = [] if fresh else read_study(name, place)
    rows: list[Any] = []
    console = Console(soft_wrap=True)
    for row in run(name, folder=folder, work=work, known=known):
        rows.append(row)
        if len(rows) >= len(known):  # A run that is stopped leaves the table as long as it was.
            place.parent.mkdir(parents=True, exist_ok=True)
            write_rows(rows, place)
        if sys.stderr.isatty() and "model" in row:
            console.print(f"Measured {row['model']}", markup=False, highlight=False)
    if any("kinship" in row for row in rows):
        console.print(_scorecard_table(rows))
    console.print(f"Table: {place}, {len(rows)} rows", markup=False, highlight=False)


def _scorecard_table(rows: list[Any]) -> Table:
    table = Table("model", "parent", *_COLUMNS)
    for row in rows:
        numbers = [row[part] for part in _COLUMNS]
        table.add_row(
            str(row["model"]), str(row["parent"]), *("–" if n != n else f"{n:.2f}" for n in numbers)
        )
    return table


@study_app.command("curve")
@reports_errors
def curve(
    parent: Annotated[str, typer.Argument(help="A family name, a folder, or a hub id.")],
    relatives: Annotated[list[str], typer.Argument(help="Its relatives, one or more.")],
    pattern: Annotated[str, typer.Option(help="A pattern's name, or a .jsonl file.")] = "take-away",
    bases: Annotated[int, typer.Option(help="Questions to judge by.", min=16)] = 200,
    prompts: Annotated[int, typer.Option(help="Pairs for the circuit.", min=4)] = 32,
    noise: Annotated[int, typer.Option(help="Copies with plain noise for each.", min=0)] = 3,
    verdicts: Annotated[bool, typer.Option(help="Count kept, lost …, too; minutes.")] = False,
    seed: Annotated[int, typer.Option(help="Of prompts, noise and nets.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("curve.html"),
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    """Draw what each relative stores against what is left of its behavior and its mechanism."""
    check_output_paths(out, json, page=True)
    silence_libraries()
    from probes.comparison.rate_distortion.measure import rate_distortion as run

    found = run(
        parent,
        relatives,
        pattern,
        bases=bases,
        prompts=prompts,
        noise_copies=noise,
        verdicts=verdicts,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    found.save(out)
    if json:
        found.save(json)
    console = Console(soft_wrap=True)
    for line in found.summary():
        console.print(f"- {line}", markup=False, highlight=False)
    console.print(f"Page: {out}", markup=False, highlight=False)
