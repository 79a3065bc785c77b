"""Store of finished work: a unit that was measured once is read again.

A unit is a function of values. Its key is the digest of everything that shapes its result: the
function, its arguments (weights, prompts, settings, seeds) and the versions of the code. Files are
written whole, then noted in the ledger; what is not in the ledger was not measured.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from threading import RLock
from typing import Any, ParamSpec, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from probes.errors import FigureError, StoreError
from probes.files import write_atomic
from probes.models.model import Model
from probes.scale.decoding import decode
from probes.scale.encoding import Digests, encode
from probes.scale.ledger import Ledger, Run, Unit
from probes.scale.versions import versions

P = ParamSpec("P")
T = TypeVar("T")

# What a file can raise that is whole, but of a model that is gone or of other classes.
_BROKEN = (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, StoreError)
_KEY = re.compile(r"[0-9a-f]{16,128}")
_TREE, _LEDGER = "tree", "ledger.sqlite"


class Store:
    """Folder of finished units; several threads and processes may share it.

    Args:
        folder: Where it is, or will be.
        command: Command line that its run is listed under.

    Raises:
        StoreError: The folder cannot be used.
    """

    def __init__(self, folder: str | Path, command: str = "") -> None:
        self.folder, self.command = Path(folder), command
        self.reused = self.measured = 0  # Units since the store was opened.
        self.digests, self._run, self._is_open, self._guard = Digests(), 0, False, RLock()
        ancestor = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
            reason = "is no folder" if not ancestor.is_dir() else "cannot be written"
            raise StoreError(
                f"There can be no store in {str(folder)!r} ({str(ancestor)!r} {reason}): give "
                "another folder with --run, or --no-store"
            )
        if self.exists:
            self.ledger.close()  # Another schema, or no ledger at all, ends before the work begins.

    @property
    def exists(self) -> bool:
        """Whether anything was kept; until then no file is made."""
        return (self.folder / _LEDGER).is_file()

    @cached_property
    def ledger(self) -> Ledger:
        """Its ledger, which is made if there is none."""
        try:
            (self.folder / "units").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_keep(error) from error
        return Ledger(self.folder / _LEDGER)

    @contextmanager
    def running(self) -> Iterator["Store"]:
        """Note the units that are used inside as those of one run; outer runs go on."""
        if self._is_open:
            yield self
            return
        self._is_open, state = True, "failed"
        try:
            with ExitStack() as self._run_lock:
                yield self
            state = "done"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            with suppress(StoreError):  # A full disk must not hide the error that is on its way.
                if self._run:
                    self.ledger.end(self._run, state)
                    self.ledger.close()
            self._run, self._is_open = 0, False

    def remember(
        self, label: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return the stored result of a function of this package, or measure and store it.

        Raises:
            StoreError: Arguments or result have no plain form, or a file cannot be written.
        """
        return self.remember_by(_call, label, function, *args, **kwargs)

    def remember_by(
        self,
        call: Callable[..., Any],
        label: str,
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Like `remember`; `call(function, *args, **kwargs)` measures, as an engine does."""
        key = self.key(function, args, kwargs)
        with self._locked(key):
            found = self.ledger.find(key) if self.exists else None
            if found is not None:
                with suppress(_Unreadable):
                    value = self._read(found)
                    self._note(key, reused=True)
                    return value
            began = time.perf_counter()
            value = call(function, *args, **kwargs)
            self._write(key, (label, _subject(args)), value, time.perf_counter() - began)
            self._note(key, reused=False)
        return value

    def key(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> str:
        """Key of a unit."""
        return self.digests.of((versions(), function, args, sorted(kwargs.items())))

    @contextmanager
    def _locked(self, name: str, seconds: float = -1.0) -> Iterator[None]:
        """Hold a lock that ends with its process, so that a killed one holds up nobody."""
        user = os.getuid() if hasattr(os, "getuid") else 0
        place = hashlib.blake2b(str(self.folder.resolve()).encode(), digest_size=10).hexdigest()
        folder = Path(tempfile.gettempdir()) / f"probes-locks-{user}" / place
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"There can be no locks in {str(folder)!r} ({error.strerror}): set TMPDIR to a "
                "folder that can be written, or use --no-store"
            ) from error
        with FileLock(folder / name, seconds, thread_local=False):
            yield
            # Whoever waits for this file finds the unit in the ledger afterwards.
            (folder / name).unlink(missing_ok=True)

    def _note(self, key: str, *, reused: bool) -> None:
        with self._guard:  # Threads of one run begin it once.
            self.reused, self.measured = self.reused + reused, self.measured + (not reused)
            if self._is_open and not self._run:
                self._run = self.ledger.begin(self.command)
                self._run_lock.enter_context(self._locked(f"run-{self._run}"))
            if self._run:
                self.ledger.use(self._run, key, reused=reused)

    def path(self, key: str) -> Path:
        """File of a unit.

        Raises:
            StoreError: The key is no digest: a ledger that was edited names files elsewhere.
        """
        if not _KEY.fullmatch(key):
            raise StoreError(
                f"The ledger of {str(self.folder)!r} has a unit {key[:80]!r}, which is no digest: "
                "give another folder with --run"
            )
        return self.folder / "units" / key[:2] / f"{key}.safetensors"

    def _read(self, unit: Unit) -> Any:  # noqa: ANN401
        path = self.path(unit.key)
        if _digest(path) != unit.digest:
            raise _Unreadable
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return decode(json.loads(file.metadata()[_TREE]), tensors, self.digests.models)
        except _BROKEN as error:
            raise _Unreadable from error

    def _write(self, key: str, about: tuple[str, str], value: object, seconds: float) -> None:
        encoded, path = encode(value, self.digests), self.path(key)
        ledger = self.ledger
        tensors = {name: tensor.cpu().clone() for name, tensor in encoded.tensors.items()}
        content = save(tensors, {_TREE: json.dumps(encoded.tree, separators=(",", ":"))})
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, content)
        except (OSError, FigureError) as error:
            raise self._cannot_keep(error) from error
        digest = hashlib.sha256(content).hexdigest()
        ledger.add(Unit(key, *about, digest, len(content), seconds, time.time()))

    def _cannot_keep(self, error: Exception) -> StoreError:
        return StoreError(
            f"What was measured cannot be kept in {str(self.folder)!r} ({error}): free the disk "
            "and run the same command again, or use --no-store"
        )

    def runs(self) -> list[Run]:
        """Runs, the latest first; those that were killed are "killed"."""
        found = self.ledger.runs()
        return [
            replace(run, state="killed")
            if run.state == "running" and not self._is_held(f"run-{run.id}")
            else run
            for run in found
        ]

    def _is_held(self, name: str) -> bool:
        try:
            with self._locked(name, 0.0):
                return False
        except Timeout:
            return True

    def broken(self) -> list[Unit]:
        """Units whose file is missing, or is not the one that was written."""
        return [unit for unit in self.ledger.units() if _digest(self.path(unit.key)) != unit.digest]

    def remove(self, units: list[Unit]) -> None:
        """Remove units: first from the ledger, then their files."""
        paths = [self.path(unit.key) for unit in units]
        self.ledger.remove([unit.key for unit in units])
        for path in paths:
            path.unlink(missing_ok=True)

    def strays(self) -> list[Path]:
        """Files of units that the ledger does not know: those of killed writers."""
        known = {self.path(unit.key) for unit in self.ledger.units()}
        return [path for path in (self.folder / "units").glob("*/*") if path not in known]


def _call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return function(*args, **kwargs)


class _Unreadable(Exception):
    """A stored unit that cannot be read, and is measured again."""


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _subject(args: tuple) -> str:
    """Names of the models among a unit's arguments."""
    names = (getattr(part, "name", "") for part in flat_values(args))
    return ", ".join(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def flat_values(value: object) -> Iterator[object]:
    """Models and other named values among arguments, also those of functions."""
    if isinstance(value, partial):
        value = (*value.args, *value.keywords.values())
    if isinstance(value, tuple | list):
        for part in value:
            yield from flat_values(part)
    elif isinstance(value, Model) or hasattr(value, "name"):
        yield value
