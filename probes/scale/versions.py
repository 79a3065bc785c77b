"""Versions of everything besides its arguments that shapes the result of a unit."""

import hashlib
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

from probes.files import data_folder

_DATA = (".toml", ".csv", ".json", ".jsonl")
_LIBRARIES = ("torch", "transformers", "transformer-lens", "numpy", "scipy")


def package_version() -> str:
    """Version of this package."""
    try:
        return metadata.version("circuit-relatives")
    except metadata.PackageNotFoundError:  # A checkout on the path, not installed.
        return "0+unknown"


@cache
def versions() -> tuple[str, ...]:
    """Versions of everything that shapes a result: this package, its data, libraries, machine.

    Weights are not read here: those of each model are in the keys of its units.
    """
    sources, package = hashlib.blake2b(digest_size=20), Path(__file__).resolve().parents[1]
    data = [path for end in _DATA for path in data_folder().rglob(f"*{end}")]
    for path in (*sorted(package.rglob("*.py")), *sorted(data)):
        sources.update(f"{path.name}\0".encode() + path.read_bytes())
    libraries = (f"{name} {metadata.version(name)}" for name in _LIBRARIES)
    return (sources.hexdigest(), *libraries, platform.machine())
