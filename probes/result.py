"""Result: the base of every value that a measurement returns and that a file can hold.

A result is a frozen dataclass of plain numbers. It prints itself, gives a table, and saves itself
as JSON, CSV or a page. Pages register for a type of result in `probes.viz.registry`. This file
finds them late and by name, so that no result imports a page.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd


class Result:
    """Base of results: `summary`, `table`, `to_dict`, `save`, and a page in notebooks."""

    __slots__ = ()

    def summary(self) -> tuple[str, ...]:
        """Return the finding in plain sentences, each with its numbers."""
        raise NotImplementedError

    def table(self) -> "pd.DataFrame":
        """Return the numbers as a table."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain JSON values; NaN and infinity become null."""
        raise NotImplementedError

    def to_dataframe(self) -> "pd.DataFrame":
        """Return `table()` under the name that pandas users expect."""
        return self.table()

    def picture(self) -> Any:  # noqa: ANN401
        """Return the page about this result, a `probes.viz.picture.Picture`."""
        return page_of(self)

    def save(self, path: str | Path) -> None:
        """Write the numbers (.json), the table (.csv), the page (.html) or the picture (others).

        Raises:
            FigureError: The place cannot be written to; then nothing is written.
        """
        path = Path(path)
        match path.suffix.lower():
            case ".json":
                write_atomic(path, json.dumps(self.to_dict(), indent=1).encode())
            case ".csv":
                table = self.table()
                named = table.index.dtype == object
                write_atomic(path, table.to_csv(index=named, lineterminator="\n").encode())
            case ".html":
                page_of(self).save(path)
            case _:
                self.picture().save(path)

    def _repr_html_(self) -> str:
        return page_of(self)._repr_html_()


def page_of(result: object) -> Any:  # noqa: ANN401
    """Return the page that is registered for a type of result."""
    return import_module("probes.viz.registry").report(result)


def figure_of(result: object, **options: object) -> Any:  # noqa: ANN401
    """Return the drawing that is registered for a type of result."""
    return import_module("probes.viz.registry").figure(result, **options)
