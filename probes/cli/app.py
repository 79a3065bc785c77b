"""Command line: each command calls one public function, prints its result and writes its page."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from probes.cli.ask import ask_app
from probes.cli.check import check_app
from probes.cli.claims import claims_app
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
    require_equivalence,
    silence_libraries,
)
from probes.cli.explain import explain_app
from probes.cli.fit import fit_app
from probes.cli.make import make_app
from probes.cli.plan import Budget, PlanOnly, plan_options, require_planned
from probes.cli.runs import DEFAULT_RUN, NoStore, RunFolder, print_reuse, runs_app, store_options
from probes.cli.study import study_app
from probes.cli.tables import write_with_tables
from probes.errors import ProbeError, ResultError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Trace the circuits a query pattern drives, and compare them across relatives of a model.",
)
app.add_typer(make_app, name="make")
app.add_typer(runs_app, name="runs")
for commands in (claims_app, study_app, check_app, fit_app, ask_app, explain_app):
    app.add_typer(commands)


def _print_version(wanted: bool) -> bool:
    if wanted:
        from probes import __version__

        Console().print(__version__, highlight=False)
        raise typer.Exit
    return wanted  # What a callback returns is the option's value.


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print version."),
    ] = False,
) -> None:
    """Trace the circuits a query pattern drives, and compare them across relatives of a model."""


EdgeScoring = StrEnum("EdgeScoring", {"eap_ig": "eap-ig", "eap": "eap", "exact": "exact"})

_PICTURE_SUFFIXES = (".html", ".png", ".svg", ".pdf")

Model = Annotated[
    str, typer.Argument(help="Name of a shipped model, a folder, a GGUF file, or a hub id.")
]
Json = Annotated[Path | None, typer.Option(help="Where the numbers are written.")]
Page = Annotated[Path, typer.Option(help="Where the page is written.")]
PatternName = Annotated[str, typer.Option(help="Name of a pattern, or a .jsonl file of pairs.")]
Prompts = Annotated[int, typer.Option(help="Pairs for each contrast.", min=4, max=100_000)]
Seed = Annotated[
    int, typer.Option(help="Seed of prompts, random models and bootstrap.", min=0, max=MAX_SEED)
]


@app.command()
@reports_errors
def compare(
    full: Model,
    relatives: Annotated[
        list[str],
        typer.Argument(help="One or more relatives; random-init is a fresh model of its shape."),
    ],
    pattern: PatternName = "take-away",
    format: Format = "plain",
    prompts: Prompts = 32,
    seed: Seed = 0,
    gate: GateAsks = None,
    nulls: Annotated[int, typer.Option(help="Draws of the null.", min=20)] = 20,
    draws: Annotated[int, typer.Option(help="Draws of prompts for variables.", min=1)] = 5,
    repeats: Annotated[
        int, typer.Option(help="Whole comparisons with other prompts; as many times slower.", min=1)
    ] = 1,
    out: Page = Path("report.html"),
    json: Json = None,
    workers: Workers = 2,
    engine: EngineName = "inprocess",
    device: Device = "",
    budget: Budget = "",
    plan_only: PlanOnly = False,
    run: RunFolder = DEFAULT_RUN,
    no_store: NoStore = False,
    screen: Annotated[Screen, typer.Option(help="Attribution patching first.")] = Screen.auto,
    null: Annotated[Null, typer.Option(help="What gives the thresholds.")] = Null.auto,
    assert_equivalent: Annotated[
        float | None,
        typer.Option(
            help="Exit with code 3 unless each relative is equivalent to the full model within "
            "this margin, a fraction of prompts; with code 4 if no path, variable or head could "
            "be tested. The report is written first.",
            min=0.0,
            max=1.0,
        ),
    ] = None,
) -> None:
    """Compare the circuits of a model and its relatives on a query pattern."""
    check_output_paths(out, json, page=True)
    silence_libraries()
    from probes.comparison.compare import compare_family
    from probes.comparison.setup.references import ComparisonSettings

    settings = ComparisonSettings(
        prompts=prompts,
        draws=draws,
        repeats=repeats,
        seed=seed,
        gate=gate.value if gate else None,
        nulls=nulls,
        workers=workers,
        engine=engine,
        format=format,
        device=device,
        screen=screen.value,
        null=null.value,
        **plan_options(budget, plan_only),
        **store_options(run, no_store, plan_only=plan_only),
    )
    family = compare_family(full, relatives, pattern, settings)
    result = family.comparisons[0] if len(relatives) == 1 else family
    write_with_tables(result, out, json)
    print_reuse(settings)
    if assert_equivalent is not None:
        require_equivalence(result, assert_equivalent)


@app.command()
@reports_errors
def trace(
    model: Model,
    pattern: PatternName = "take-away",
    beside: Annotated[
        str,
        typer.Option(help="A relative of equal shape; the circuits are compared edge by edge."),
    ] = "",
    format: Format = "plain",
    method: Annotated[EdgeScoring, typer.Option(help="How edges are scored.")] = EdgeScoring.eap_ig,
    ig_steps: Annotated[int, typer.Option(help="Steps of eap-ig.", min=1, max=1000)] = 1,
    keep: Annotated[float, typer.Option(help="Faithfulness that the circuit keeps.")] = 0.9,
    roles: Annotated[bool, typer.Option(help="Resolve edges by role; 3 times slower.")] = False,
    answer: Annotated[str, typer.Option(help="Answer that is traced; empty: the first.")] = "",
    prompts: Prompts = 32,
    seed: Seed = 0,
    gate: GateAsks = None,
    device: Device = "",
    engine: EngineName = "inprocess",
    workers: Workers = 2,
    budget: Budget = "",
    plan_only: PlanOnly = False,
    run: RunFolder = DEFAULT_RUN,
    no_store: NoStore = False,
    out: Page = Path("trace.html"),
    json: Json = None,
) -> None:
    """Find the smallest faithful circuit of a pattern, and compare it with random circuits."""
    check_output_paths(out, json, page=True)
    silence_libraries()
    from probes.circuits.trace import TraceSettings
    from probes.circuits.trace import trace as measure
    from probes.comparison.circuits.traces import compare_traces

    settings = TraceSettings(
        method=method.value,
        ig_steps=ig_steps,
        answer=answer,
        prompts=prompts,
        seed=seed,
        format=format,
        device=device,
        engine=engine,
        workers=workers,
        gate=gate.value if gate else None,
        **plan_options(budget, plan_only),
        **store_options(run, no_store, plan_only=plan_only),
    )
    asked = {"keep": keep, "roles": roles, "settings": settings}
    if beside and not plan_only:
        found = compare_traces(model, beside, pattern, **asked)
    else:
        found = measure(model, pattern, **asked)
    write_with_tables(found, out, json)
    print_reuse(settings)


@app.command(context_settings={"ignore_unknown_options": True})
@reports_errors
def plan(
    command: Annotated[str, typer.Argument(help="compare, trace, claims, curve or make.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Its arguments and options; for make its kind first.")
    ] = None,
) -> None:
    """Print what a command would do, and do nothing: passes, time, memory, what a budget costs."""
    require_planned(command, arguments or ())
    app([command, *(arguments or ()), "--plan-only"], prog_name="probes")


@app.command()
@reports_errors
def show(
    result: Annotated[Path, typer.Argument(help="A result that was saved as .json.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the page is written; by default next to it.")
    ] = None,
) -> None:
    """Print a saved result, and write its page."""
    if result.is_dir():
        raise ResultError(f"{str(result)!r} is a folder: give a .json file that was saved")
    page = out or result.with_suffix(".html")
    check_output_paths(page, None, page=True)
    from probes.result import load_result

    write_with_tables(load_result(result), page, None)


@app.command()
@reports_errors
def heatmap(
    model: Model,
    text: Annotated[str, typer.Argument(help="Text that the model reads.")],
    compare_with: Annotated[str, typer.Option(help="Second model, drawn next to the first.")] = "",
    head: Annotated[list[str] | None, typer.Option(help="One head only, as L2.H3.")] = None,
    pattern: Annotated[str, typer.Option(help="Pattern whose roles label the axes.")] = "",
    device: Device = "",
    out: Annotated[Path, typer.Option(help=".html, .png, .svg or .pdf")] = Path("heatmap.html"),
) -> None:
    """Draw the attention of every head of a model on a text."""
    check_output_paths(out, None)
    if out.suffix.lower() not in _PICTURE_SUFFIXES:
        raise ProbeError(
            f"A picture ends in {', '.join(_PICTURE_SUFFIXES)}, and {out.name!r} not: rename it"
        )
    if len(heads := head or [""]) > 1:
        raise ProbeError(f"{len(heads)} heads found: give one --head, or none to draw all")
    silence_libraries()
    from probes.models.model import load
    from probes.prompts.catalog import pattern as find
    from probes.viz.plots.attention.heatmap import heatmap as draw

    roles = find(pattern) if pattern else None
    second = load(compare_with, device=device) if compare_with else None
    first = load(model, device=device)
    draw(first, text, compare_with=second, head=heads[0], roles=roles).save(out)
    print_line(open_console(), f"Heatmap: {out}")


@app.command("list")
@reports_errors
def list_all() -> None:
    """List the shipped models, the relatives made here, and the patterns."""
    from probes.files import derived_folder, list_derived_models, list_models, model_note
    from probes.models.files.provenance import read_provenance
    from probes.prompts.catalog import list_patterns

    console = open_console(soft_wrap=False)
    models = Table("model", "what it is", title="Shipped models", title_justify="left")
    for name in list_models():
        models.add_row(name, model_note(name))
    console.print(models)
    own = Table(
        "model", "what it is", title=f"Relatives in {derived_folder()}", title_justify="left"
    )
    for name in list_derived_models():
        made = read_provenance(derived_folder() / name)
        own.add_row(name, f"{made.kind} from {made.parent}" if made else "(no provenance)")
    if own.row_count:
        console.print(own)
    table = Table("pattern", "content", "contrasts", title="Patterns", title_justify="left")
    for name, entry in list_patterns().items():
        table.add_row(name, entry.title, ", ".join(entry.contrasts))
    console.print(table)
