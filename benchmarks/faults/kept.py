"""What a stopped command has kept: whether it is whole, and whether a rerun keeps it."""

import csv
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.killed_commands import WORKERS, known_rows
from probes.errors import ProbeError
from probes.models.files.provenance import changed_files
from probes.models.model import load
from probes.result import load_result
from probes.scale.ledger import Unit
from probes.scale.store import Store


def made(folder: Path) -> dict[str, bytes]:
    """Bytes of the models and numbers that a command has made."""
    models = folder / "runs" / "relatives"
    results = (p for ends in ("*.json", "*.html", "runs/*.csv") for p in folder.glob(ends))
    paths = [*models.glob("[!.]*/*"), *results]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def faults(folder: Path) -> list[str]:
    """What is half-made in a folder: nothing, if all is right."""
    found = [*_faults_of_models(folder), *_faults_of_store(folder), *_faults_of_tables(folder)]
    for path in folder.glob("*.json"):
        try:
            load_result(path)
        except ProbeError as error:
            found.append(str(error))
    found += [str(p) for p in folder.glob("*.html") if not p.read_bytes().rstrip().endswith(b">")]
    for path in folder.glob("runs/work/**/checkpoint-*/trainer_state.json"):
        with suppress(FileNotFoundError):
            json.loads(path.read_text())
    return found


def _faults_of_models(folder: Path) -> list[str]:
    found = []
    for model in (folder / "runs" / "relatives").glob("[!.]*/config.json"):
        try:
            load(model.parent)
            changed = changed_files(model.parent)
            if changed is None:
                found.append(f"{model.parent} records no hashes")
            found += [f"{name} has another hash" for name in changed or ()]
        except ProbeError as error:
            found.append(str(error))
    return found


def store_of(folder: Path) -> Store | None:
    """Store of a folder, if anything was kept."""
    store = Store(folder / "runs")
    return store if store.exists else None


def _faults_of_store(folder: Path) -> list[str]:
    store = store_of(folder)
    if store is None:
        return []
    found = [f"the unit {unit.label} of the store is broken" for unit in store.broken()]
    unknown = [path for path in store.strays() if path.suffix != ".part"]
    if len(unknown) > WORKERS:  # Units in work, whose file is written and not yet noted.
        found.append(f"{len(unknown)} units have a file and no row, and only {WORKERS} run at once")
    store.ledger.close()
    return found


def _faults_of_tables(folder: Path) -> list[str]:
    found = []
    for path in folder.glob("runs/*.csv"):
        text = path.read_text()
        rows = list(csv.reader(text.splitlines()))
        uneven = len({len(row) for row in rows}) > 1
        if uneven or len(rows) <= len(known_rows()) or not text.endswith("\n"):
            found.append(f"{path} is not whole")
    return found


@dataclass(frozen=True)
class Kept:
    """What a command has noted as finished.

    Attributes:
        units: Units of the ledger, by key.
        rows: Rows of tables as they are written, by table and model.
    """

    units: Mapping[str, Unit]
    rows: Mapping[tuple[str, str], Mapping[str, str]]

    @property
    def finished(self) -> int:
        """Units and rows that commands have finished."""
        return len(self.units) + len(self.rows) - len(known_rows())

    def lost_in(self, later: "Kept") -> list[str]:
        """What a later state has lost or measured again: nothing, if all is right."""
        found = []
        for key, unit in self.units.items():
            now = later.units.get(key)
            if now != unit:
                what = "is lost" if now is None else "was measured again"
                found.append(f"the unit {unit.label} {unit.subject} {what}")
        for key, row in self.rows.items():
            if later.rows.get(key) != row:
                found.append(f"the row of {key[1]} is lost or changed")
        return found


def kept(folder: Path) -> Kept:
    """What is noted as finished in a folder."""
    store = store_of(folder)
    units = store.ledger.units() if store else []
    if store:
        store.ledger.close()
    rows = {
        (path.name, row["model"]): row
        for path in folder.glob("runs/*.csv")
        for row in csv.DictReader(path.read_text().splitlines())
    }
    return Kept({unit.key: unit for unit in units}, rows)
