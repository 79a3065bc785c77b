"""Engine of processes on this machine: each worker is a child of this process.

A child is a fresh interpreter that runs no script of the user, so an unguarded script or a
notebook can start it. Units and outcomes cross pipes; models and the dataclasses that units share
are written once, to files that all children read. A child ends when its parent does.
"""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from probes.errors import EngineError
from probes.scale.messages import Message
from probes.scale.packed_model import PackedModel
from probes.scale.worker import Outcome, Worker
from probes.scale.worker_pool import WorkerEnded, WorkerPool

# Ctrl-C reaches the children of a terminal's process, too: the parent ends them.
_PROGRAM = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = {path!r}; "
    "from probes.scale.process_engine import serve; serve({folder!r})"
)


@dataclass(frozen=True, eq=False)
class _Child:
    """Worker in a child process."""

    process: subprocess.Popen[bytes]

    def run(self, unit: Message, places: dict[str, str]) -> Outcome:
        """Outcome of a unit; `places` are files."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            pickle.dump((unit, places), self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            self.end()
            raise WorkerEnded from None

    def end(self) -> None:
        """End the child, and wait until it has ended."""
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True, eq=False)
class _Files:
    """Folder of packed models and dataclasses."""

    folder: str
    _next: Any = field(default_factory=count, init=False)

    def put(self, packed: PackedModel | Message) -> str:
        """Write it; returns its path."""
        path = Path(self.folder, str(next(self._next)))
        path.write_bytes(pickle.dumps(packed))
        return str(path)


@contextmanager
def open_processes(*, workers: int = 1) -> Iterator[WorkerPool]:
    """Start workers, which end with the `with`.

    Args:
        workers: Number of workers; each has a core.

    Raises:
        EngineError: There are fewer cores.
    """
    cores = _cores()
    if workers > cores:
        raise EngineError(f"{workers} workers found, and {cores} cores: give fewer --workers")
    with tempfile.TemporaryDirectory(prefix="probes-") as folder:
        engine = WorkerPool(workers, partial(_start, folder), _Files(folder).put)
        try:
            engine.start_all()
            yield engine
        finally:
            engine.close()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(folder: str) -> _Child:
    return _Child(
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path, folder=folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    )


def serve(folder: str) -> None:
    """Run the units that arrive on standard input, one after another, until it ends.

    Args:
        folder: Files of the parent; a parent that was killed leaves them.
    """
    outcomes = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # What a library prints is no outcome.
    units: SimpleQueue[tuple[Message, dict[str, str]]] = SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, units, folder), daemon=True).start()
    files: dict[str, str] = {}
    worker = Worker(lambda digest: pickle.loads(Path(files[digest]).read_bytes()))
    while True:
        unit, places = units.get()
        files |= places
        pickle.dump(worker.run(unit), outcomes)
        outcomes.flush()


def _read(
    stream: BinaryIO, units: SimpleQueue[tuple[Message, dict[str, str]]], folder: str
) -> None:
    """Queue what arrives; the end of the parent ends this process at once, also within a unit."""
    try:
        while True:
            units.put(pickle.load(stream))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
