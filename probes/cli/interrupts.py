"""Interrupts: Ctrl-C, SIGTERM and what is full end a command in one line."""

import errno
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

# As safetensors and torch say it of files.
_NO_DISK = ("No space left on device", "PytorchStreamWriter failed writing")

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems and shutdowns send: it stops a command as Ctrl-C does."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` inside; other threads than the main one get no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def exit_code(error: KeyboardInterrupt) -> int:
    """Exit code after an interrupt: 128 and the number of the signal."""
    return EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED


def interrupt_line(error: KeyboardInterrupt, options: Mapping[str, Any]) -> str:
    """Line for a command that was interrupted: what is kept, and how to go on.

    Args:
        error: The interrupt.
        options: Arguments and options of the command.
    """
    what = "Terminated." if isinstance(error, Terminated) else "Interrupted."
    return f"{what} {_kept_line(options)}"


def resource_line(error: Exception, options: Mapping[str, Any]) -> str:
    """Line for a command that ran out of memory or of disk; empty for another error."""
    from probes.models.files.memory import is_out_of_memory

    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        what = f"MemoryError: The memory is full ({text[:200]}): give fewer prompts, texts or"
        return f"{what} workers, or a smaller model. {_kept_line(options)}"
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_full or any(reason in text for reason in _NO_DISK):
        return f"OSError: The disk is full ({text[:200]}): free it. {_kept_line(options)}"
    return ""


def _kept_line(options: Mapping[str, Any]) -> str:
    places = " and ".join(repr(str(place)) for place in _kept_in(options))
    if not places:
        return "No unfinished work is kept: give the same command again to start anew."
    return f"What is finished is kept in {places}: give the same command again to go on."


def _kept_in(options: Mapping[str, Any]) -> list[Path]:
    """Files and folders from which a command goes on: its store, table, checkpoints, models."""
    if "run" in options and not options.get("no_store"):
        return [Path(options["run"])]
    places = []
    if "work" in options:
        places.append(Path(options["work"]))
    elif "steps" in options:
        places.append(Path("runs") / "work")
    if "force" in options:  # A command that makes a model may have saved it already.
        places.append(Path("runs") / "relatives")
    if "fresh" in options and not options["fresh"]:
        places.append(Path(options.get("out") or f"runs/{options['name']}.csv"))
    return places
