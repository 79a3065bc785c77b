"""Query patterns by name, as `data/patterns.toml` states them."""

import copy
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from probes.errors import PatternError
from probes.files import data_folder
from probes.prompts.pattern import Opposite, Pattern
from probes.prompts.template import Lexicon, read_frames


@cache
def _tables(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8"))


@cache
def load_lexicon(path: Path) -> Lexicon:
    """Read the words of a pattern file."""
    table = _tables(path)
    numbers = table["numbers"]
    return Lexicon(
        kinds=tuple(table["slots"].items()),
        verbs=tuple(
            tuple((side, tuple(forms.items())) for side, forms in pair.items())
            for pair in table["verbs"]
        ),
        choices=tuple((kind, tuple(words)) for kind, words in table["words"].items()),
        numbers=(numbers["low"], numbers["high"]),
        number_words=tuple(numbers["words"]),
    )


@cache
def all_patterns(path: Path | None = None) -> dict[str, Pattern]:
    """Return all patterns of a file (the shipped one by default) by name.

    Raises:
        PatternError: The file is missing or malformed.
    """
    path = path or data_folder() / "patterns.toml"
    try:
        table, lexicon = _tables(path), load_lexicon(path)
        frames = {name: tuple(read_frames(entry)) for name, entry in table["frames"].items()}
        found = {}
        for name, entry in table["pattern"].items():
            for suffix in ("", "-told"):
                if entry["frames"] + suffix in frames:
                    opposite = table["pattern"][entry["opposite"]] if "opposite" in entry else None
                    found[name + suffix] = Pattern(
                        **_sides(table, name, entry, suffix),
                        opposite=Opposite(**_sides(table, entry["opposite"], opposite, suffix))
                        if opposite
                        else None,
                        frames=frames[entry["frames"] + suffix],
                        lexicon=lexicon,
                    )
        return found
    except OSError as error:
        raise PatternError(f"Pattern file {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PatternError(f"Pattern file {str(path)!r} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise PatternError(f"Pattern file {str(path)!r} is not TOML: {error}") from None
    except KeyError as error:
        raise PatternError(
            f"Pattern file {str(path)!r} lacks {error}: see data/patterns.toml"
        ) from None


def _sides(table: dict, name: str, entry: dict, suffix: str) -> dict[str, Any]:
    """Read what a pattern does not share with its opposite."""
    return {
        "name": name + suffix,
        "title": entry["title"] + (", told as statements" if suffix else ""),
        "operation": entry["operation"],
        "answers": tuple(entry["answers"].items()),
        "result": table["operations"][entry["operation"]],
    }


def pattern(name: str) -> Pattern:
    """Return a pattern by its name, or read the user's pairs from a `.jsonl` file.

    Raises:
        PatternError: The name is unknown; says which are known.
    """
    if str(name).endswith(".jsonl"):
        return Pattern.from_pairs(name)
    known = all_patterns()
    if name not in known:
        raise PatternError(
            f"Pattern {name!r} is unknown: known are {', '.join(known)}, or the path of a "
            ".jsonl file of pairs"
        )
    return known[name]


def held_out() -> dict[str, Any]:
    """Return the raw table of what the embedded family never saw."""
    return copy.deepcopy(_tables(data_folder() / "patterns.toml")["held_out"])
