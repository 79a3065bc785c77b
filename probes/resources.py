"""Where the shipped data lies: patterns, word lists and the embedded family."""

from pathlib import Path

from probes.errors import ProbeError


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
