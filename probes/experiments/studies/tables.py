"""Tables of studies: those that come with the kit, and those of a run."""

from pathlib import Path

from probes.files import TableRow, data_folder, read_rows


def read_study(name: str, path: Path | None = None) -> list[TableRow]:
    """Rows of a study's table, by default the shipped one; none if there is no file."""
    return read_rows(path or data_folder() / "studies" / f"{name.replace('-', '_')}.csv")
