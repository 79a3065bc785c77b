"""Files are written whole or not at all, and numbers as any JSON reader takes them."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from probes.errors import FigureError


def write_whole(path: Path, content: bytes) -> None:
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


def jsonable(value: object) -> Any:  # noqa: ANN401
    """Return dataclasses, mappings and sequences as plain JSON values; NaN and infinity as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable({item.name: getattr(value, item.name) for item in fields(value)})
    if isinstance(value, Mapping):
        return {str(name): jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
