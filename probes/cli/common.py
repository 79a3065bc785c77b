"""Common parts of the commands: errors in one line, writable files, quiet libraries."""

import re
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from probes.cli.interrupts import exit_code, interrupt_line, resource_line, terminable
from probes.errors import EquivalenceError, NotTestedError, ProbeError
from probes.files import check_writable

MAX_SEED = 2**31 - 1
"""Largest seed that NumPy and PyTorch both take."""


Screen = StrEnum("Screen", {"auto": "auto", "never": "never", "always": "always"})
Null = StrEnum("Null", {"auto": "auto", "random_init": "random-init", "permuted": "permuted"})


class GateOption(StrEnum):
    """What the gate asks of an answer."""

    accuracy = "accuracy"
    choice = "choice"
    logit_diff = "logit-diff"
    none = "none"


GateAsks = Annotated[
    GateOption | None,
    typer.Option(
        help="What the gate asks: the whole answer (accuracy), the answer above each foil "
        "(choice), a positive logit difference, or nothing (none: behavior not established). By "
        "default accuracy for patterns with free answers, choice for pairs."
    ),
]

# What steers a terminal or turns the direction of a text, without tab and line end.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

EXIT_FAILED = 1
EXIT_NOT_EQUIVALENT = 3
EXIT_NOT_TESTED = 4
EXIT_CHECK_FAILED = 5
THREADS_HELP = "Threads of torch; more than one is slow on busy cores."


Device = Annotated[
    str, typer.Option(help="Device of the models, as torch names it; empty: torch's default.")
]

EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Where units run: inprocess, processes (of this machine), ray (a cluster of this "
        "machine, or that of RAY_ADDRESS), or ray:ADDRESS.",
    ),
]
Workers = Annotated[int, typer.Option(help="Units that run at once.", min=1)]

Format = Annotated[
    str,
    typer.Option(help="Prompt format: plain, few-shot-4, chat, chat-system …, or auto: as fitted."),
]


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print a `ProbeError` or an interrupt as one line; end with exit code 1, or 130 and 143."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        try:
            with terminable():
                command(*args, **kwargs)
        except ProbeError as error:
            print_line(open_console(stderr=True), f"{type(error).__name__}: {error}")
            raise typer.Exit(EXIT_FAILED) from None
        except Exception as error:  # Libraries have kinds of their own for full memory and disks.
            line = resource_line(error, kwargs)
            if not line:
                raise
            print_line(open_console(stderr=True), line)
            raise typer.Exit(EXIT_FAILED) from None
        except KeyboardInterrupt as interrupt:
            print_line(open_console(stderr=True), interrupt_line(interrupt, kwargs))
            raise typer.Exit(exit_code(interrupt)) from None

    return run


def check_output_paths(out: Path | None, json: Path | None, *, page: bool = False) -> None:
    """Refuse files that cannot be written, before the work begins; nothing is written."""
    for path in (out, json):
        if path is not None and not path.parent.is_dir():
            raise ProbeError(
                f"There is no folder {str(path.parent)!r} for {path.name!r}: create it"
            )
    if page and out is not None and out.suffix != ".html":
        raise ProbeError(f"The page goes to a .html file, and {out.name!r} is none: rename it")
    if json is not None and json.suffix != ".json":
        raise ProbeError(f"The numbers go to a .json file, and {json.name!r} is none: rename it")
    for path in (out, json):
        if path is not None:
            check_writable(path)


class PlainConsole(Console):
    """Console that shows control characters of a text as escapes, so that no name steers it."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401
        """Text of a string: names of models and words of patterns are data."""
        return super().render_str(_CONTROL.sub(lambda found: repr(found[0])[1:-1], text), **options)


def open_console(*, stderr: bool = False, soft_wrap: bool = True) -> Console:
    """Console that does not break lines, unless `soft_wrap` is false."""
    return PlainConsole(soft_wrap=soft_wrap, stderr=stderr)


def print_line(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False, highlight=False)


def folding_table(
    *columns: str, caption: str = "Heads without reliable effect are left out."
) -> Table:
    """Table that folds long cells, so that names stay whole."""
    table = Table(caption=caption, caption_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def write_result(
    result: Any,  # noqa: ANN401
    out: Path,
    json: Path | None,
    *,
    tables: Iterable[object] = (),
) -> None:
    """Write the page and the numbers of a result, then print its summary and some tables."""
    result.save(out)
    if json:
        result.save(json)
    console = open_console()
    for line in result.summary():
        print_line(console, f"- {line}")
    for table in tables:
        console.print(table)
    print_line(console, f"Page: {out}")


def require_equivalence(result: Any, margin: float) -> None:  # noqa: ANN401
    """Print what was tested; exit with code 3 for a difference, 4 if nothing was tested."""
    from probes.comparison.equivalence import require_all

    checks = result.equivalence(margin)
    checks = checks if isinstance(checks, tuple) else (checks,)
    for line in (line for check in checks for line in check.lines()):
        print_line(open_console(), f"- {line}")
    try:
        require_all(checks)
    except NotTestedError as error:
        print_line(open_console(stderr=True), str(error))
        raise typer.Exit(EXIT_NOT_TESTED) from None
    except EquivalenceError as error:
        print_line(open_console(stderr=True), str(error))
        raise typer.Exit(EXIT_NOT_EQUIVALENT) from None


def silence_libraries(threads: int = 1) -> None:
    """Set torch's threads, and silence the progress bars and notices of libraries."""
    if sys.stderr.isatty():
        open_console(stderr=True).print("Loading …", style="dim")
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)

    logging.set_verbosity_error()
    logging.disable_progress_bar()
