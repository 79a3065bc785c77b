"""Tables of results in the terminal."""

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from probes.cli.common import folding_table, write_result


def write_with_tables(result: Any, out: Path, json: Path | None) -> None:  # noqa: ANN401
    """Write the page and the numbers of a result, then print its summary and its tables."""
    tables = {
        "Comparison": (_match_table, _verdict_table),
        "FamilyComparison": (_family_table,),
    }
    shown = (table(result) for table in tables.get(type(result).__name__, ()))
    write_result(result, out, json, tables=shown)


def _match_table(comparison: Any) -> Table:  # noqa: ANN401
    every = comparison.table().to_dict("records")
    rows = [row for row in every if row["verdict"] != "no reliable effect"]
    count = len(every) - len(rows)
    are = "head without reliable effect is" if count == 1 else "heads without reliable effect are"
    caption = f"{count} {are} left out." if count else None
    columns = ("head", "partner", "score", "threshold", "other seed", "verdict")
    table = Table(*columns, caption=caption, caption_justify="left")
    for row in rows:
        numbers = [row["score"], row["threshold"], row["other_seed"]]
        written = ["–" if number != number else f"{number:.2f}" for number in numbers]
        table.add_row(row["head"], row["partner"] or "–", *written, row["verdict"])
    return table


def _verdict_table(comparison: Any) -> Table:  # noqa: ANN401
    table = folding_table("path, variable or head", "verdict", "where", "why")
    for verdict in comparison.verdicts:
        if verdict.label != "no reliable effect":
            cells = (
                verdict.display_name if verdict.subject else "(relative only)",
                verdict.label,
                verdict.counterpart or "–",
                verdict.reason,
            )
            table.add_row(*map(Text, cells))
    return table


def _family_table(family: Any) -> Table:  # noqa: ANN401
    words = family.table()
    table = folding_table("path, variable or head", *map(escape, words.columns))
    for subject, row in words.iterrows():
        if set(row) - {"no reliable effect", "behavior absent"} or "no reliable effect" not in set(
            row
        ):
            table.add_row(*map(Text, (subject, *row)))
    return table
