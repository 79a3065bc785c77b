"""What all commands share: mistakes in one line, places that can be written, quiet libraries."""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from probes.errors import ProbeError

EXIT_FAILED = 1
THREADS_HELP = "Threads of torch; more than one is slow on busy cores."


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a user's mistake into one line and an exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        try:
            command(*args, **kwargs)
        except ProbeError as error:
            Console(stderr=True, soft_wrap=True).print(
                f"{type(error).__name__}: {error}", markup=False, highlight=False
            )
            raise typer.Exit(EXIT_FAILED) from None

    return run


def check_output_paths(out: Path, json: Path | None, *, page: bool = False) -> None:
    """Refuse what could not be written before minutes are spent on it."""
    for path in (out, json):
        if path is not None and not path.parent.is_dir():
            raise ProbeError(f"There is no folder {str(path.parent)!r} for {path.name!r}: make it")
    if page and out.suffix != ".html":
        raise ProbeError(f"The page goes to a .html file, and {out.name!r} is none")
    if json is not None and json.suffix != ".json":
        raise ProbeError(f"The numbers go to a .json file, and {json.name!r} is none")


def silence_libraries(threads: int = 1) -> None:
    """Set torch's threads, and keep the libraries' own bars and notices out of the way."""
    if sys.stderr.isatty():
        Console(stderr=True).print("Loading …", style="dim")
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)

    logging.set_verbosity_error()
    logging.disable_progress_bar()
