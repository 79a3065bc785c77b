"""Measured series of small models that differ in how many objects they were trained on.

The table is `data/series.csv`; `probes make series` makes it.
"""

import csv
from pathlib import Path

from probes.files import data_folder

TableRow = dict[str, float | str]


def series_file() -> Path:
    """Path of the shipped table."""
    return data_folder() / "series.csv"


def read_series(path: Path | None = None) -> list[TableRow]:
    """Rows of a table of measured series; none if there is no file."""
    path = path or series_file()
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: _parse_number(text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def dose_response_rows() -> list[TableRow]:
    """Rows of the models that differ in the number of objects they were trained on."""
    return [row for row in read_series() if row["kind"] == "dose"]


def _parse_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
