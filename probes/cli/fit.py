"""Command that fits a prompt format to a model."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from probes.cli.common import (
    MAX_SEED,
    Device,
    check_output_paths,
    folding_table,
    open_console,
    print_line,
    reports_errors,
    silence_libraries,
)
from probes.errors import GateError

fit_app = typer.Typer()


@fit_app.command()
@reports_errors
def fit(
    models: Annotated[
        list[str], typer.Argument(help="One model, or several that are to share a format.")
    ],
    pattern: Annotated[
        str, typer.Option(help="Name of a pattern, or a .jsonl file of pairs.")
    ] = "take-away",
    prompts: Annotated[
        int, typer.Option(help="Prompts of each operation in each half.", min=8, max=10_000)
    ] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.", min=0, max=MAX_SEED)] = 0,
    device: Device = "",
    out: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("fit.html"),
    json: Annotated[Path | None, typer.Option(help="Where the numbers are written.")] = None,
) -> None:
    """Find the prompt format in which a model has a pattern's behavior, and keep it."""
    check_output_paths(out, json, page=True)
    silence_libraries()
    from probes.files import formats_file
    from probes.models.model import load
    from probes.observe.format.fit import FitSettings, fit_format
    from probes.observe.format.kept import save_fit
    from probes.prompts.catalog import pattern as find

    chosen = find(pattern)
    loaded = [load(name, device=device) for name in models]
    settings = FitSettings(prompts=prompts, seed=seed, progress=sys.stderr.isatty())
    result = fit_format(loaded, chosen, settings)
    save_fit(result, chosen, loaded)
    result.save(out)
    if json:
        result.save(json)
    table = folding_table(
        "half", "model", "format", "weakest gate", "score", "heuristic", "gate", caption=""
    )
    for row in result.table().to_dict("records"):
        score = f"{row['score']:.2f} [{row['low']:.2f}, {row['high']:.2f}] of {row['prompts']}"
        heuristic = f"{row['heuristic']} {row['heuristic accuracy']:.2f}"
        cells = (row["half"], row["model"], row["format"], row["weakest"])
        table.add_row(*map(Text, (*cells, score, heuristic, row["gate"])))
    console = open_console()
    console.print(table)
    if not result.found:
        raise GateError(result.summary()[0])
    for line in result.summary():
        print_line(console, f"- {line}")
    print_line(console, f"Page: {out}")
    print_line(console, f"Kept in {formats_file()}: --format auto uses it")
