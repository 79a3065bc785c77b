"""Commands that check models: the contract suite, and the hashes of files."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from probes.cli.common import (
    EXIT_CHECK_FAILED,
    EXIT_NOT_TESTED,
    MAX_SEED,
    check_output_paths,
    folding_table,
    open_console,
    print_line,
    reports_errors,
    silence_libraries,
)

check_app = typer.Typer()


@check_app.command()
@reports_errors
def check(
    models: Annotated[
        list[str], typer.Argument(help="Names of shipped models, folders, GGUF files, or hub ids.")
    ],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the random tokens.", min=0, max=MAX_SEED)] = 0,
    json: Annotated[Path | None, typer.Option(help="Where the numbers are written.")] = None,
) -> None:
    """Check that every probe is right on a model, or refuses it with a reason."""
    check_output_paths(None, json)
    silence_libraries()
    from probes.models.files.loading import parse_dtype
    from probes.testing.contract.check_model import check_named_model
    from probes.testing.contract.check_result import ModelCheck, ModelChecks

    parse_dtype(dtype)  # A model that cannot be loaded is a result; a wrong option is an error.
    console, results = open_console(), list[ModelCheck]()
    for name in models:
        result = check_named_model(name, dtype=dtype, seed=seed)
        results.append(result)
        table = folding_table("check", "state", "detail", caption="")
        for outcome in result.outcomes:
            table.add_row(*map(Text, (outcome.check, outcome.state, outcome.detail)))
        console.print(table)
        print_line(console, f"- {result.summary()[0]}")
        if json:  # After each model: a check of many takes long.
            (result if len(models) == 1 else ModelChecks(tuple(results))).save(json)
    if any(result.failed for result in results):
        raise typer.Exit(EXIT_CHECK_FAILED)
    if not all(result.is_loaded for result in results):
        raise typer.Exit(EXIT_NOT_TESTED)


@check_app.command()
@reports_errors
def verify(
    models: Annotated[
        list[str], typer.Argument(help="Names of shipped or derived models, or folders.")
    ],
) -> None:
    """Compare the files of a model with the SHA-256 in its provenance."""
    from probes.models.files.names import find_model
    from probes.models.files.provenance import changed_files, recorded_hashes

    console, exit_code = open_console(), 0
    for name in models:
        folder = Path(find_model(name)[0])
        if (changed := changed_files(folder)) is None:
            line = "no SHA-256 is recorded in relative.json, so nothing was compared"
            exit_code = exit_code or EXIT_NOT_TESTED
        elif changed:
            line = f"{', '.join(changed)} changed: make or fetch the model again"
            exit_code = EXIT_CHECK_FAILED
        else:
            line = f"{len(recorded_hashes(folder))} files have their recorded SHA-256"
        print_line(console, f"{name}: {line}")
    if exit_code:
        raise typer.Exit(exit_code)
