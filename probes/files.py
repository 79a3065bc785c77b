"""Files: atomic writes, JSON, tables, and the folders of shipped and derived models."""

import csv
import io
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from probes.errors import FigureError, ProbeError

# What spreadsheets take for a formula; a number is none.
_FORMULA = re.compile(r"([=@\t\r]|[+-](?!\d*\.?\d+(e[+-]?\d+)?$))(?=.)", re.IGNORECASE)
_GUARDED = re.compile(f"'{_FORMULA.pattern}", re.IGNORECASE)

TableRow = dict[str, float | str]


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with draft.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # A name never stands for bytes that a power cut loses.
        draft.replace(path)
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError, ValueError):  # A name may be too long for any file.
            draft.unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> FigureError:
    reason = getattr(error, "strerror", None) or error
    return FigureError(f"cannot write {str(path)[-200:]!r} ({reason}): choose another place")


def check_writable(path: Path) -> None:
    """Raise FigureError if `write_atomic` could not write a file, without changing it."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part") if path.name else path
    try:
        if path.is_dir():
            raise FigureError(f"{str(path)!r} is a folder: give the name of a file")
        draft.open("xb").close()
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError, ValueError):  # A name may be too long for any file.
            draft.unlink(missing_ok=True)


def to_jsonable(value: object) -> Any:  # noqa: ANN401
    """Plain JSON values of dataclasses, mappings, sequences and arrays.

    NaN and infinity become null. Arrays are rounded to four decimals. A dataclass with `parse`
    becomes its text, one with `to_dict` what that returns. Fields that are not saved are left out.
    """
    if hasattr(value, "to_dict") and not isinstance(value, type):
        return value.to_dict()  # pyright: ignore[reportAttributeAccessIssue]
    if is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "parse"):
            return str(value)
        saved = (item for item in fields(value) if item.metadata.get("saved", True))
        return {item.name: to_jsonable(getattr(value, item.name)) for item in saved}
    if isinstance(value, Mapping):
        return {str(name): to_jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(entry) for entry in value]
    if hasattr(value, "tolist"):
        rounded = value if value.dtype == bool else value.round(4)  # pyright: ignore
        return to_jsonable(rounded.tolist())  # pyright: ignore[reportAttributeAccessIssue]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> list[TableRow]:
    """Rows of a CSV file that `write_rows` wrote, numbers as floats; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{n: _parse_value(text) for n, text in row.items()} for row in csv.DictReader(file)]


def write_rows(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows with all their columns as CSV, atomically.

    Floats have four digits, unless they are whole.
    """
    columns, text = list(dict.fromkeys(name for row in rows for name in row)), io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({name: _format_value(value) for name, value in row.items()})
    write_atomic(path, text.getvalue().encode())


def write_frame(frame: Any, path: Path, *, index: bool) -> None:  # noqa: ANN401 (pandas)
    """Write a data frame as CSV, atomically; `index`: with the names of its rows."""
    frame = frame.map(as_text)
    frame.index = frame.index.map(as_text)
    write_atomic(path, frame.to_csv(index=index, lineterminator="\n").encode())


def as_text(value: object) -> object:
    """A text that a spreadsheet would run as a formula, with an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _parse_value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text[1:] if _GUARDED.match(text) else text


def _format_value(value: object) -> object:
    if not isinstance(value, float):
        return as_text(value)
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"


def data_folder() -> Path:
    """Folder of shipped data, in a wheel or in a checkout."""
    here = Path(__file__).resolve().parent
    # A wheel carries the folder as `_data`; an editable install ignores forced includes.
    for folder in (here / "_data", here.parent / "data"):
        if (folder / "patterns.toml").is_file():
            return folder
    raise ProbeError(
        f"The shipped data folder was not found next to {here}: reinstall the package, "
        "or run from a full checkout"
    )


def list_models() -> tuple[str, ...]:
    """Names of the shipped models."""
    return _model_names(data_folder() / "models")


def derived_folder() -> Path:
    """Folder of `probes make`, under the working directory."""
    return Path("runs") / "relatives"


def formats_file() -> Path:
    """File of the prompt formats that `probes fit` found, under the working directory."""
    return Path("runs") / "formats.json"


def list_derived_models() -> tuple[str, ...]:
    """Names of the derived models in `derived_folder`."""
    return _model_names(derived_folder())


def _model_names(folder: Path) -> tuple[str, ...]:
    found = (path.parent.name for path in folder.glob("*/config.json"))
    # Hidden folders are unfinished drafts.
    return tuple(sorted(name for name in found if not name.startswith(".")))


def model_note(name: str) -> str:
    """First sentence of a shipped model's card."""
    card = data_folder() / "models" / name / "README.md"
    if not card.is_file():
        return "(no card)"
    # The card begins with a block of fields between lines of dashes.
    lines = card.read_text(encoding="utf-8").split("\n---\n", 1)[-1].splitlines()
    return next((line for line in lines if line.strip() and not line.startswith("#")), "")
