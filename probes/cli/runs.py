"""The store of finished work: options of commands that use one, and `probes runs`."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probes.cli.common import (
    EXIT_CHECK_FAILED,
    folding_table,
    open_console,
    print_line,
    reports_errors,
)
from probes.errors import StoreError

if TYPE_CHECKING:
    from probes.scale.store import Store

runs_app = typer.Typer(no_args_is_help=True, help="List and tidy the store of finished work.")

_DAY = 86_400.0

RunFolder = Annotated[
    Path, typer.Option("--run", help="Store of finished work: what is there is not measured again.")
]
NoStore = Annotated[bool, typer.Option("--no-store", help="Read and keep nothing in a store.")]
_Folder = Annotated[Path, typer.Option("--run", help="Folder of the store.")]

DEFAULT_RUN = Path("runs")


def store_options(run: Path, no_store: bool, *, plan_only: bool = False) -> dict[str, Any]:
    """Settings of a command that keeps finished work; a plan keeps none."""
    if no_store or plan_only:
        return {}
    from probes.scale.store import Store

    return {"run": Store(run, " ".join(["probes", *sys.argv[1:]]))}


def print_reuse(settings: Any) -> None:  # noqa: ANN401
    """Say where the numbers come from, if a store gave all of them."""
    store = getattr(settings, "run", None)
    if store is not None and store.reused and not store.measured:
        line = f"Nothing was measured: all is read from the store in {str(store.folder)!r}, where "
        print_line(open_console(), line + "the same work was kept (--no-store measures again).")


@runs_app.command("list")
@reports_errors
def list_runs(run: _Folder = DEFAULT_RUN) -> None:
    """List the commands that used a store."""
    store = _open(run)
    table = folding_table("run", "began", "command", "state", "measured", "reused", caption="")
    for one in store.runs():
        counts = (str(one.measured), str(one.reused))
        table.add_row(str(one.id), _date(one.began), one.command, one.state, *counts)
    units = store.ledger.units()
    console = open_console()
    console.print(table)
    size = sum(unit.bytes for unit in units) / 1e6
    print_line(console, f"Units: {len(units)}, {size:,.1f} MB in {str(run)!r}")


@runs_app.command()
@reports_errors
def show(
    number: Annotated[int, typer.Argument(help="Number of the run in `probes runs list`.")],
    run: _Folder = DEFAULT_RUN,
) -> None:
    """Show the units of a run: what was measured, and what was read."""
    store = _open(run)
    found = [one for one in store.runs() if one.id == number]
    if not found:
        known = ", ".join(str(one.id) for one in store.runs()) or "none"
        raise StoreError(f"There is no run {number} in {str(run)!r}: choose one of {known}")
    console = open_console()
    print_line(console, f"{found[0].command}: {found[0].state}")
    table = folding_table("stage", "models", "", "seconds", "kB", caption="")
    for unit in store.ledger.units(number):
        how = "reused" if unit.reused else "measured"
        table.add_row(
            unit.label, unit.subject, how, f"{unit.seconds:.1f}", f"{unit.bytes / 1e3:.0f}"
        )
    console.print(table)


@runs_app.command()
@reports_errors
def prune(
    days: Annotated[
        float, typer.Option(help="Remove what no run of the last days used.", min=0)
    ] = 30.0,
    run: _Folder = DEFAULT_RUN,
) -> None:
    """Remove units that no recent run used, and files of killed writers."""
    store, before = _open(run), time.time() - days * _DAY
    recent = [one.id for one in store.runs() if one.began >= before]
    used = {unit.key for number in recent for unit in store.ledger.units(number)}
    # A unit that a run of now has written is noted as its own a moment later.
    old = [u for u in store.ledger.units() if u.key not in used and u.created < before]
    strays = [path for path in store.strays() if path.stat().st_mtime < before]
    store.remove(old)
    store.ledger.forget_runs(before)
    for path in strays:
        path.unlink(missing_ok=True)
    size = sum(unit.bytes for unit in old) / 1e6
    line = f"Removed units: {len(old)} ({size:,.1f} MB); files of killed writers: {len(strays)}"
    print_line(open_console(), line)


@runs_app.command()
@reports_errors
def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove broken units, so that they are measured again.")
    ] = False,
    run: _Folder = DEFAULT_RUN,
) -> None:
    """Read every unit, and list those whose file is missing or was changed."""
    store, console = _open(run), open_console()
    broken = store.broken()
    for unit in broken:
        subject = f", {unit.subject}" if unit.subject else ""
        print_line(console, f"- broken: {unit.label}{subject} ({store.path(unit.key).name})")
    if repair:
        store.remove(broken)
    state = "removed" if repair else "broken"
    print_line(console, f"Units in the ledger: {len(store.ledger.units())}; {state}: {len(broken)}")
    if broken and not repair:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _open(run: Path) -> "Store":
    """Open a store that exists."""
    from probes.scale.store import Store

    if not (run / "ledger.sqlite").is_file():
        raise StoreError(f"There is no store in {str(run)!r}: give the folder of one with --run")
    return Store(run)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
