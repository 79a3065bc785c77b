"""Command that walks one question through a model."""

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
from probes.cli.runs import DEFAULT_RUN, NoStore, RunFolder, print_reuse, store_options
from probes.cli.tables import write_with_tables

explain_app = typer.Typer()


@explain_app.command()
@reports_errors
def explain(
    model: Annotated[str, typer.Argument(help="Name of a shipped model, a folder, or a hub id.")],
    text: Annotated[str, typer.Argument(help="A question in English about an amount.")],
    beside: Annotated[str, typer.Option(help="A relative that is shown beside it.")] = "",
    prompts: Annotated[
        int, typer.Option(help="Other questions for each word that is changed.", min=8, max=10_000)
    ] = 32,
    nulls: Annotated[int, typer.Option(help="Random-init models.", min=1)] = 5,
    seed: Annotated[
        int, typer.Option(help="Seed of questions and random models.", min=0, max=MAX_SEED)
    ] = 0,
    device: Device = "",
    run: RunFolder = DEFAULT_RUN,
    no_store: NoStore = False,
    out: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("explain.html"),
    json: Annotated[Path | None, typer.Option(help="Where the numbers are written.")] = None,
) -> None:
    """Walk one question through a model, step by step, by interventions."""
    check_output_paths(out, json, page=True)
    from probes.prompts.english.match import match_text

    match_text(text)  # A text without a pattern is refused before anything is loaded.
    silence_libraries()
    from probes.comparison.walkthrough.explain import ExplainSettings
    from probes.comparison.walkthrough.explain import explain as walk

    settings = ExplainSettings(
        prompts=prompts,
        nulls=nulls,
        seed=seed,
        device=device,
        **store_options(run, no_store),
    )
    write_with_tables(walk(model, text, beside or None, settings), out, json)
    print_reuse(settings)
