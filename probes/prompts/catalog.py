"""Catalog of query patterns, from `data/patterns.toml`."""

import copy
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from probes.errors import PatternError
from probes.files import data_folder
from probes.prompts.pattern import OppositePattern, Pattern
from probes.prompts.template import Lexicon, parse_templates


@cache
def _read_toml(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8"))


@cache
def load_lexicon(path: Path) -> Lexicon:
    """Words of a pattern file."""
    table = _read_toml(path)
    numbers = table["numbers"]
    return Lexicon(
        slot_kinds=tuple(table["slots"].items()),
        verbs=tuple(
            tuple((side, tuple(forms.items())) for side, forms in pair.items())
            for pair in table["verbs"]
        ),
        choices=tuple((kind, tuple(words)) for kind, words in table["words"].items()),
        number_range=(numbers["low"], numbers["high"]),
        number_words=tuple(numbers["words"]),
    )


@cache
def list_patterns(path: Path | None = None) -> dict[str, Pattern]:
    """All patterns of a file (the shipped one by default) by name.

    Raises:
        PatternError: The file is missing or malformed.
    """
    path = path or data_folder() / "patterns.toml"
    try:
        table, lexicon = _read_toml(path), load_lexicon(path)
        frames = {name: tuple(parse_templates(entry)) for name, entry in table["frames"].items()}
        patterns = {}
        for name, entry in table["pattern"].items():
            for suffix in ("", "-told"):
                if entry["frames"] + suffix in frames:
                    opposite = table["pattern"][entry["opposite"]] if "opposite" in entry else None
                    patterns[name + suffix] = Pattern(
                        **_operation_fields(table, name, entry, suffix),
                        opposite=OppositePattern(
                            **_operation_fields(table, entry["opposite"], opposite, suffix)
                        )
                        if opposite
                        else None,
                        templates=frames[entry["frames"] + suffix],
                        lexicon=lexicon,
                    )
        return patterns
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


def _operation_fields(table: dict, name: str, entry: dict, suffix: str) -> dict[str, Any]:
    """Fields in which a pattern and its opposite differ."""
    return {
        "name": name + suffix,
        "title": entry["title"] + (", told as statements" if suffix else ""),
        "operation": entry["operation"],
        "answers": tuple(entry["answers"].items()),
        "remainder": table["operations"][entry["operation"]],
    }


def pattern(name: str | Pattern) -> Pattern:
    """Pattern by its name, or of the user's pairs in a `.jsonl` file; a pattern is returned as is.

    Raises:
        PatternError: The name is unknown.
    """
    if isinstance(name, Pattern):
        return name
    if str(name).endswith(".jsonl"):
        return Pattern.from_pairs(name)
    known = list_patterns()
    if name not in known:
        raise PatternError(
            f"Pattern {name!r} is unknown: known are {', '.join(known)}, or the path of a "
            ".jsonl file of pairs"
        )
    return known[name]


def held_out_table() -> dict[str, Any]:
    """Table of the family's held-out split."""
    return copy.deepcopy(_read_toml(data_folder() / "patterns.toml")["held_out"])
