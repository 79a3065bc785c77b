"""Files are written whole or not at all."""

import secrets
from pathlib import Path

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
