"""Files are written whole or not at all, and numbers as any JSON reader takes them."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from probes.errors import FigureError, ProbeError


def write_atomic(path: Path, content: bytes) -> None:
    """Write all of it or nothing: readers never meet half a file."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with draft.open("xb") as stream:
            stream.write(content)
        draft.replace(path)
    except OSError as error:
        raise FigureError(
            f"cannot write {str(path)!r} ({error.strerror or error}): choose another place"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def to_jsonable(value: object) -> Any:  # noqa: ANN401
    """Return dataclasses, mappings and sequences as plain JSON values; NaN and infinity as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_jsonable({item.name: getattr(value, item.name) for item in fields(value)})
    if isinstance(value, Mapping):
        return {str(name): to_jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def data_folder() -> Path:
    """Return the folder of shipped data, in a wheel or in a checkout."""
    here = Path(__file__).resolve().parent
    # A wheel carries the folder as `_data`; an editable install ignores forced includes.
    for folder in (here / "_data", here.parent / "data"):
        if (folder / "patterns.toml").is_file():
            return folder
    raise ProbeError(
        f"The shipped data folder was not found beside {here}: reinstall the package, "
        "or run from a full checkout"
    )


def list_models() -> tuple[str, ...]:
    """Return the names of the models that come with the kit."""
    found = (data_folder() / "models").glob("*/config.json")
    return tuple(sorted(path.parent.name for path in found))


def derived_folder() -> Path:
    """Return the folder where `probes make` puts relatives, in the folder that one works in."""
    return Path("runs") / "relatives"


def list_derived_models() -> tuple[str, ...]:
    """Return the names of the relatives that were made here."""
    return tuple(sorted(path.parent.name for path in derived_folder().glob("*/config.json")))


def model_note(name: str) -> str:
    """Return the one sentence that a member's card opens with."""
    card = data_folder() / "models" / name / "README.md"
    if not card.is_file():
        return "(no card)"
    # The card begins with a block of fields between lines of dashes.
    lines = card.read_text(encoding="utf-8").split("\n---\n", 1)[-1].splitlines()
    return next((line for line in lines if line.strip() and not line.startswith("#")), "")
