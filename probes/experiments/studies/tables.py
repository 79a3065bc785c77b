"""The tables of studies: those that come with the kit, and those made here."""

import csv
from pathlib import Path

from probes.experiments.scorecard import TableRow
from probes.files import data_folder


def study_file(name: str) -> Path:
    """Return the table of a study that comes with the kit."""
    return data_folder() / "studies" / f"{name}.csv"


def read_study(name: str, path: Path | None = None) -> list[TableRow]:
    """Read the table of a study; no rows where there is no file."""
    path = path or study_file(name)
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{n: _parse_value(text) for n, text in row.items()} for row in csv.DictReader(file)]


def _parse_value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
