"""The command line: each command is one public function with its words printed."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from probes.cli.common import check_output_paths, reports_errors, silence_libraries
from probes.cli.make import make_app
from probes.cli.study import study_app
from probes.errors import EquivalenceError, GateError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Trace the circuits a query pattern drives, and compare them across relatives of a model.",
)
app.add_typer(make_app, name="make")
app.add_typer(study_app)


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
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Trace the circuits a query pattern drives, and compare them across relatives of a model."""


class EdgeScoring(StrEnum):
    """How edges are scored."""

    eap_ig = "eap-ig"
    eap = "eap"
    exact = "exact"


_EXIT_NOT_EQUIVALENT = 3


@app.command()
@reports_errors
def compare(
    full: Annotated[str, typer.Argument(help="A family name, a folder, or a hub id.")],
    relatives: Annotated[
        list[str],
        typer.Argument(help="Its relatives, one or more; untrained is a fresh net of its shape."),
    ],
    pattern: Annotated[str, typer.Option(help="A pattern's name, or a .jsonl file.")] = "take-away",
    prompts: Annotated[int, typer.Option(help="Pairs for each contrast.", min=4)] = 32,
    seed: Annotated[int, typer.Option(help="Of prompts, nets and bootstrap.", min=0)] = 0,
    nulls: Annotated[int, typer.Option(help="Untrained nets for the chance level.", min=20)] = 20,
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("report.html"),
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
    workers: Annotated[int, typer.Option(help="Models measured at once.", min=1)] = 2,
    assert_equivalent: Annotated[
        float | None,
        typer.Option(
            help="Exit with 3 unless each relative is surely as good as the full model within "
            "this margin, a share; all is written first.",
            min=0.0,
            max=1.0,
        ),
    ] = None,
) -> None:
    """Compare what a model and its relatives do with a query pattern, and write a page about it."""
    check_output_paths(out, json, page=True)
    silence_libraries()
    from probes.comparison.compare import compare_family

    found = compare_family(
        full,
        relatives,
        pattern,
        prompts=prompts,
        seed=seed,
        nulls=nulls,
        workers=workers,
        progress=sys.stderr.isatty(),
    )
    alone = found.comparisons[0] if len(relatives) == 1 else None
    shown = alone or found
    shown.save(out)
    if json:
        shown.save(json)
    console = Console(soft_wrap=True)
    for line in shown.summary():
        console.print(f"- {line}", markup=False, highlight=False)
    tables = [_match_table(alone), _verdict_table(alone)] if alone else [_family_table(found)]
    for table in tables:
        console.print(table)
    console.print(f"Report: {out}", markup=False, highlight=False)
    if assert_equivalent is not None:
        _assert_equivalent(shown, assert_equivalent)


@app.command()
@reports_errors
def trace(
    model: Annotated[str, typer.Argument(help="A family name, a folder, or a hub id.")],
    pattern: Annotated[str, typer.Option(help="A pattern's name, or a .jsonl file.")] = "take-away",
    method: Annotated[EdgeScoring, typer.Option(help="How edges are scored.")] = EdgeScoring.eap_ig,
    keep: Annotated[float, typer.Option(help="Share of the lead that the circuit keeps.")] = 0.9,
    roles: Annotated[
        bool, typer.Option(help="Resolve edges by role; about 3 times slower.")
    ] = False,
    answer: Annotated[
        str, typer.Option(help="The answer that is traced; the first if empty.")
    ] = "",
    prompts: Annotated[int, typer.Option(help="Pairs for each contrast.", min=4)] = 32,
    seed: Annotated[int, typer.Option(help="Of prompts and random circuits.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("trace.html"),
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    """Cut out the smallest circuit that keeps a model's behavior, and judge it beside chance."""
    check_output_paths(out, json, page=True)
    silence_libraries()
    from probes.circuits.trace import TraceSettings
    from probes.circuits.trace import trace as run

    settings = TraceSettings(method=method.value, answer=answer, prompts=prompts, seed=seed)
    found = run(model, pattern, keep=keep, roles=roles, settings=settings)
    found.save(out)
    if json:
        found.save(json)
    console = Console(soft_wrap=True)
    for line in found.summary():
        console.print(f"- {line}", markup=False, highlight=False)
    console.print(f"Page: {out}", markup=False, highlight=False)


@app.command()
@reports_errors
def claims(
    models: Annotated[list[str], typer.Argument(help="Family names, folders, or hub ids.")],
    pattern: Annotated[str, typer.Option(help="A pattern's name.")] = "take-away",
    base_model: Annotated[
        str, typer.Option(help="The model that they were tuned from, if it is not known.")
    ] = "",
    bases: Annotated[int, typer.Option(help="Prompts to judge by.", min=80)] = 200,
    nulls: Annotated[int, typer.Option(help="Untrained nets for the chance level.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Of prompts, nets and searches.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("claims.html"),
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    """Put the fox claim to the test: one state whatever the object, and a branch for the noun."""
    check_output_paths(out, json, page=True)
    silence_libraries()
    from probes.claims.result import ClaimsReport, save_reports
    from probes.claims.run import evaluate_claims as run

    console, found = Console(soft_wrap=True), list[ClaimsReport]()
    for name in models:
        try:
            made = run(
                name, pattern, base_model=base_model or None, bases=bases, nulls=nulls, seed=seed
            )
        except GateError as error:  # One that cannot do it leaves the others theirs.
            console.print(f"- {name}: behavior absent. {error}", markup=False, highlight=False)
            continue
        found.append(made)
        for line in made.summary():
            console.print(f"- {line}", markup=False, highlight=False)
    if not found:
        raise GateError(f"None of {', '.join(models)} has the behavior: there is nothing to prove")
    save_reports(found, out)
    if json:
        save_reports(found, json)
    console.print(f"Page: {out}", markup=False, highlight=False)


@app.command()
@reports_errors
def heatmap(
    model: Annotated[str, typer.Argument(help="A family name, a folder, or a hub id.")],
    text: Annotated[str, typer.Argument(help="What the model reads.")],
    compare_with: Annotated[str, typer.Option(help="Another model to draw next to it.")] = "",
    head: Annotated[str, typer.Option(help="One head alone, such as L2.H3.")] = "",
    pattern: Annotated[str, typer.Option(help="Put this pattern's roles on the axes.")] = "",
    out: Annotated[Path, typer.Option(help=".html, .png, .svg or .pdf")] = Path("heatmap.html"),
) -> None:
    """Draw what every head of a model attends to in a text."""
    check_output_paths(out, None)
    silence_libraries()
    from probes.prompts.catalog import pattern as find
    from probes.viz.plots.attention.heatmap import heatmap as draw

    roles = find(pattern) if pattern else None
    draw(model, text, compare_with=compare_with or None, head=head, roles=roles).save(out)
    Console(soft_wrap=True).print(f"Heatmap: {out}", markup=False, highlight=False)


@app.command("list")
@reports_errors
def list_all() -> None:
    """List the models of the embedded family, the relatives made here, and the patterns."""
    from probes.files import derived_folder, list_derived_models, list_models, model_note
    from probes.models.provenance import read_provenance
    from probes.prompts.catalog import list_patterns

    console = Console()
    models = Table("model", "what it is", title="The embedded family", title_justify="left")
    for name in list_models():
        models.add_row(name, model_note(name))
    console.print(models)
    own = Table("model", "what it is", title=f"Made in {derived_folder()}", title_justify="left")
    for name in list_derived_models():
        made = read_provenance(derived_folder() / name)
        own.add_row(name, f"{made.kind} from {made.parent}" if made else "(nothing told)")
    if own.row_count:
        console.print(own)
    table = Table("pattern", "says", "contrasts", title="Patterns", title_justify="left")
    for name, entry in list_patterns().items():
        table.add_row(name, entry.title, ", ".join(entry.contrasts))
    console.print(table)


def _match_table(comparison: Any) -> Table:  # noqa: ANN401
    table = Table("head", "partner", "score", "threshold", "other seed", "verdict")
    for row in comparison.table().to_dict("records"):
        numbers = [row["score"], row["threshold"], row["other_seed"]]
        written = ["–" if number != number else f"{number:.2f}" for number in numbers]
        table.add_row(row["head"], row["partner"] or "–", *written, row["verdict"])
    return table


def _verdict_table(comparison: Any) -> Table:  # noqa: ANN401
    table = _folding_table("variable or head", "verdict", "where", "why")
    for verdict in comparison.verdicts:
        if verdict.label != "no reliable effect":
            told = (
                verdict.subject or "(its own)",
                verdict.label,
                verdict.counterpart or "–",
                verdict.reason,
            )
            table.add_row(*map(Text, told))
    return table


def _family_table(family: Any) -> Table:  # noqa: ANN401
    words = family.table()
    table = _folding_table("variable or head", *map(escape, words.columns))
    for subject, row in words.iterrows():
        if set(row) - {"no reliable effect", "behavior absent"} or "no reliable effect" not in set(
            row
        ):
            table.add_row(*map(Text, (subject, *row)))
    return table


def _folding_table(*columns: str) -> Table:
    """Return a table that breaks what is too long: names must not lose their ends."""
    table = Table(caption="Idle heads are left out.", caption_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _assert_equivalent(result: Any, margin: float) -> None:  # noqa: ANN401
    """End with a code of its own where a relative is not surely the full model's equal."""
    try:
        result.assert_equivalent(margin)
    except EquivalenceError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), markup=False, highlight=False)
        raise typer.Exit(_EXIT_NOT_EQUIVALENT) from None
