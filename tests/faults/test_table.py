"""The table of faults names tests that exist."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
TABLE = (FOLDER / "README.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", TABLE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{file}::{name}" for file, name in NAMED])
def test_a_test_that_the_table_names_exists(file, name):
    path = FOLDER.parent / file
    assert path.is_file()
    assert re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_row_has_a_test():
    rows = [line for line in TABLE.splitlines() if line.startswith("| ") and "case |" not in line]
    assert len(rows) == 52
    assert [row for row in rows if "::test_" not in row] == []


def test_every_test_of_this_folder_is_in_the_table():
    own = {
        (f"faults/{path.name}", name)
        for path in FOLDER.glob("test_*.py")
        if path.name != Path(__file__).name
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert own <= set(NAMED)
