"""Measured series of small models that differ in how many objects they were trained on.

The table is `data/series.csv`; `probes make series` makes it.
"""

from pathlib import Path

from probes.files import TableRow, data_folder, read_rows


def read_series(path: Path | None = None) -> list[TableRow]:
    """Rows of a table of measured series, by default the shipped one; none if there is no file."""
    return read_rows(path or data_folder() / "series.csv")


def dose_response_rows() -> list[TableRow]:
    """Rows of the models that differ in the number of objects they were trained on."""
    return [row for row in read_series() if row["kind"] == "dose"]
