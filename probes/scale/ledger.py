"""Ledger of a store: which units are finished, and which run used them (SQLite)."""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from probes.errors import StoreError

_SCHEMA = 1
_SECONDS = 60.0  # That a process waits while another one writes.
_TABLES = """
CREATE TABLE IF NOT EXISTS units (
    key TEXT PRIMARY KEY, label TEXT NOT NULL, subject TEXT NOT NULL, digest TEXT NOT NULL,
    bytes INTEGER NOT NULL, seconds REAL NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY, command TEXT NOT NULL, began REAL NOT NULL, ended REAL,
    state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS run_units (
    run INTEGER NOT NULL, key TEXT NOT NULL, reused INTEGER NOT NULL,
    PRIMARY KEY (run, key)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """A finished unit of work.

    Attributes:
        key: Digest of everything that shapes it.
        label: Stage of the command.
        subject: Models that it is about.
        digest: SHA-256 of its file.
        bytes: Size of its file.
        seconds: Time that it took.
        created: When it was finished, in seconds since 1970.
        reused: In a run, whether it was there before; None outside of a run.
    """

    key: str
    label: str
    subject: str
    digest: str
    bytes: int
    seconds: float
    created: float
    reused: bool | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A command that used a store.

    Attributes:
        id: Its number.
        command: Its command line.
        began, ended: When, in seconds since 1970; `ended` is None while it runs, and where it was
            killed.
        state: "running", "done", "failed" or "interrupted".
        measured, reused: Units that it measured, and that were there before.
    """

    id: int
    command: str
    began: float
    ended: float | None
    state: str
    measured: int
    reused: int


class Ledger:
    """The table of finished units and of runs, shared by all processes that use a folder."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, RLock()
        self._base: sqlite3.Connection | None = None
        with self._open() as base:
            version = base.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _SCHEMA):
                raise StoreError(
                    f"{str(path)!r} has schema {version}, and this version reads {_SCHEMA}: give "
                    "another folder"
                )
            base.execute("PRAGMA journal_mode=WAL")
            base.executescript(_TABLES)
            base.execute(f"PRAGMA user_version={_SCHEMA}")

    def find(self, key: str) -> Unit | None:
        """Return a unit that is finished."""
        found = self._units("SELECT *, NULL FROM units WHERE key = ?", (key,))
        return found[0] if found else None

    def add(self, unit: Unit) -> None:
        """Add a unit; its file is written before."""
        values = (unit.key, unit.label, unit.subject, unit.digest)
        with self._open() as base:
            base.execute(
                "INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*values, unit.bytes, unit.seconds, unit.created),
            )

    def remove(self, keys: Sequence[str]) -> None:
        """Forget units."""
        with self._open() as base:
            base.executemany("DELETE FROM units WHERE key = ?", [(key,) for key in keys])

    def units(self, run: int | None = None) -> list[Unit]:
        """Return all units, the oldest first, or those of a run."""
        if run is None:
            return self._units("SELECT *, NULL FROM units ORDER BY created")
        return self._units(
            "SELECT u.*, r.reused FROM units u JOIN run_units r ON u.key = r.key WHERE r.run = ? "
            "ORDER BY u.created",
            (run,),
        )

    def begin(self, command: str) -> int:
        """Note that a run begins; returns its number."""
        with self._open() as base:
            added = base.execute(
                "INSERT INTO runs (command, began, state) VALUES (?, ?, 'running')",
                (command, time.time()),
            )
            return int(added.lastrowid or 0)

    def use(self, run: int, key: str, *, reused: bool) -> None:
        """Note that a run used a unit."""
        with self._open() as base:
            base.execute("INSERT OR IGNORE INTO run_units VALUES (?, ?, ?)", (run, key, reused))

    def end(self, run: int, state: str) -> None:
        """Note that a run ended."""
        with self._open() as base:
            base.execute(
                "UPDATE runs SET state = ?, ended = ? WHERE id = ?", (state, time.time(), run)
            )

    def runs(self) -> list[Run]:
        """Return all runs, the latest first."""
        text = (
            "SELECT runs.*, COALESCE(SUM(reused = 0), 0), COALESCE(SUM(reused = 1), 0) FROM runs "
            "LEFT JOIN run_units ON runs.id = run GROUP BY runs.id ORDER BY runs.id DESC"
        )
        with self._open() as base:
            return [Run(*row) for row in base.execute(text)]

    def forget_runs(self, before: float) -> None:
        """Forget runs that began before a time, and uses of units that are gone."""
        with self._open() as base:
            base.execute("DELETE FROM runs WHERE began < ?", (before,))
            base.execute("DELETE FROM run_units WHERE run NOT IN (SELECT id FROM runs)")
            base.execute("DELETE FROM run_units WHERE key NOT IN (SELECT key FROM units)")

    def _units(self, text: str, values: tuple = ()) -> list[Unit]:
        with self._open() as base:
            rows = base.execute(text, values).fetchall()
        # SQLite has no booleans.
        return [Unit(*row[:-1], reused=None if row[-1] is None else bool(row[-1])) for row in rows]

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        with self._lock:
            base, self._base = self._base, None
            if base is not None:
                base.close()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Give the connection, which threads share in turn, and commit."""
        try:
            # Opened once: closing the last connection writes the log back to the disk.
            with self._lock:
                if self._base is None:
                    self._base = sqlite3.connect(
                        self.path, timeout=_SECONDS, check_same_thread=False
                    )
                    self._base.execute("PRAGMA synchronous=NORMAL")
                with self._base:
                    yield self._base
        except sqlite3.Error as error:
            raise StoreError(
                f"The ledger {str(self.path)!r} cannot be used ({error}): free the disk, move the "
                "folder away, or give another with --run"
            ) from error
