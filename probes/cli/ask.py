"""Command that asks one question."""

from pathlib import Path
from typing import Annotated

import typer

from probes.cli.common import (
    MAX_SEED,
    Device,
    check_output_paths,
    reports_errors,
    silence_libraries,
)
from probes.cli.runs import DEFAULT_RUN, NoStore, RunFolder, store_options
from probes.cli.tables import write_with_tables

ask_app = typer.Typer()


@ask_app.command()
@reports_errors
def ask(
    model: Annotated[str, typer.Argument(help="Name of a shipped model, a folder, or a hub id.")],
    text: Annotated[str, typer.Argument(help="A question in English about an amount.")],
    pattern: Annotated[
        str, typer.Option(help="Pattern whose circuit is traced; by default the one that matches.")
    ] = "",
    trace: Annotated[
        Path | None, typer.Option(help="A saved trace (.json) of the model, in place of a new one.")
    ] = None,
    answer_only: Annotated[
        bool, typer.Option("--answer-only", help="Trace no circuit: answer and attention only.")
    ] = False,
    prompts: Annotated[
        int, typer.Option(help="Pairs for each contrast of the trace.", min=4, max=100_000)
    ] = 32,
    seed: Annotated[
        int,
        typer.Option(help="Seed of prompts, random circuits and bootstrap.", min=0, max=MAX_SEED),
    ] = 0,
    device: Device = "",
    run: RunFolder = DEFAULT_RUN,
    no_store: NoStore = False,
    out: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("ask.html"),
    json: Annotated[Path | None, typer.Option(help="Where the numbers are written.")] = None,
) -> None:
    """Ask a question in English: answer, foils, attention, and use of the pattern's circuit."""
    check_output_paths(out, json, page=True)
    from probes.prompts.english.match import match_text

    match_text(text)  # A text without a pattern is refused before anything is loaded.
    silence_libraries()
    from probes.circuits.question.ask import AskSettings
    from probes.circuits.question.ask import ask as answer
    from probes.circuits.result import Trace
    from probes.models.model import load

    saved = Trace.load(trace) if trace else None
    settings = AskSettings(
        pattern=pattern,
        circuit=saved,
        trace=not answer_only,
        prompts=prompts,
        seed=seed,
        **store_options(run, no_store),
    )
    write_with_tables(answer(load(model, device=device), text, settings), out, json)
