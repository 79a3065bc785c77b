"""Command: the claims H1a to H5 in one or more models."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from probes.cli.common import (
    MAX_SEED,
    Device,
    EngineName,
    Format,
    GateAsks,
    Null,
    Screen,
    Workers,
    check_output_paths,
    open_console,
    print_line,
    reports_errors,
    silence_libraries,
)
from probes.cli.plan import Budget, PlanOnly, plan_options
from probes.cli.runs import DEFAULT_RUN, NoStore, RunFolder, print_reuse, store_options
from probes.cli.tables import write_with_tables
from probes.errors import GateError

claims_app = typer.Typer()


@claims_app.command()
@reports_errors
def claims(
    models: Annotated[
        list[str], typer.Argument(help="Names of shipped models, folders, GGUF files, or hub ids.")
    ],
    pattern: Annotated[str, typer.Option(help="Name of a pattern.")] = "take-away",
    format: Format = "plain",
    base_model: Annotated[
        str, typer.Option(help="Model before tuning, if the provenance does not say.")
    ] = "",
    bases: Annotated[int, typer.Option(help="Prompts to measure on.", min=80, max=100_000)] = 200,
    nulls: Annotated[int, typer.Option(help="Random-init models for the null.", min=1)] = 20,
    seed: Annotated[
        int, typer.Option(help="Seed of prompts and random models.", min=0, max=MAX_SEED)
    ] = 0,
    screen: Annotated[Screen, typer.Option(help="Attribution patching first.")] = Screen.auto,
    null: Annotated[Null, typer.Option(help="What gives the thresholds.")] = Null.auto,
    gate: GateAsks = None,
    device: Device = "",
    engine: EngineName = "inprocess",
    workers: Workers = 2,
    budget: Budget = "",
    plan_only: PlanOnly = False,
    run: RunFolder = DEFAULT_RUN,
    no_store: NoStore = False,
    out: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("claims.html"),
    json: Annotated[Path | None, typer.Option(help="Where the numbers are written.")] = None,
) -> None:
    """Test claims H1a to H5: one operation state for all objects, and a branch for the noun."""
    check_output_paths(out, json, page=True)
    silence_libraries()
    from probes.claims.result import ClaimsReport, ClaimsReports
    from probes.claims.run import ClaimSettings, evaluate_claims

    console, reports = open_console(), list[ClaimsReport]()
    settings = ClaimSettings(
        bases=bases,
        nulls=nulls,
        seed=seed,
        format=format,
        screen=screen.value,
        null=null.value,
        device=device,
        engine=engine,
        workers=workers,
        gate=gate.value if gate else None,
        **plan_options(budget, plan_only),
        **store_options(run, no_store, plan_only=plan_only),
    )
    for name in models:
        try:
            report = evaluate_claims(name, pattern, settings, base_model=base_model or None)
            # Its runs hold the model, which is freed before the next one is loaded.
            reports.append(replace(report, hotspots=report.hotspots.without_runs()))
            del report
        except typer.Exit:  # Only its plan is wanted.
            continue
        except GateError as error:  # The other models are still measured.
            print_line(console, f"- {name}: behavior absent. {error}")
    if plan_only:
        return
    if not reports:
        raise GateError(f"None of {', '.join(models)} has the behavior: there is nothing to test")
    write_with_tables(ClaimsReports(tuple(reports)), out, json)
    print_reuse(settings)
