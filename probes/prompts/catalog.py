"""Catalog of query patterns, from `data/patterns.toml` and `data/real_patterns.toml`."""

import copy
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from probes.errors import PatternError
from probes.files import data_folder
from probes.prompts.format.examples import formatted
from probes.prompts.format.prompt_format import PLAIN_NAME, PromptFormat
from probes.prompts.pattern import OppositePattern, Pattern
from probes.prompts.question import Question, evaluate_expression
from probes.prompts.template import Lexicon, parse_templates
from probes.prompts.word_patterns import read_word_pattern

_UNASKED_SEED = 1_000_003  # Seeds that users choose are seldom above it.


@cache
def _read_toml(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8-sig"))


@cache
def load_lexicon(path: Path) -> Lexicon:
    """Words of a pattern file."""
    table = _read_toml(path)
    numbers = table["numbers"]
    low, high = numbers["low"], numbers["high"]
    if type(low) is not int or type(high) is not int or not 0 <= low <= high:
        raise PatternError(f"Numbers from {low!r} to {high!r} found: give whole ones, low to high")
    if not {*numbers.get("numerals", ("digits",))} <= {"digits", "words"}:
        raise PatternError(f"numerals are {numbers['numerals']!r}: write digits, words or both")
    lexicon = Lexicon(
        slot_kinds=tuple(table["slots"].items()),
        verbs=tuple(
            tuple((side, tuple(forms.items())) for side, forms in pair.items())
            for pair in table["verbs"]
        ),
        choices=tuple((kind, tuple(words)) for kind, words in table["words"].items()),
        number_range=(low, high),
        number_words=tuple(numbers["words"]),
        numerals=tuple(numbers.get("numerals", ("digits", "words"))),
    )
    _check_lexicon(lexicon, table["words"])
    return lexicon


def _check_lexicon(lexicon: Lexicon, lists: Mapping[str, object]) -> None:
    for kind, words in lists.items():
        if not isinstance(words, list) or not words or not all(map(_is_word, words)):
            raise PatternError(f"The words of {kind!r} are {words!r:.60}: give a list of texts")
    kinds = ("number", "verb", *lists)
    for slot, kind in lexicon.slot_kinds:
        if kind not in kinds:
            raise PatternError(f"Slot {slot!r} has the kind {kind!r}: known are {', '.join(kinds)}")
    forms = {tuple(dict(side)) for pair in lexicon.verbs for _, side in pair}
    sides = {tuple(dict(pair)) for pair in lexicon.verbs}
    if len(forms) != 1 or len(sides) != 1 or "base" not in next(iter(forms)):
        raise PatternError(
            f"Verbs have the sides {sorted(sides)} and the forms {sorted(forms)}: give each pair "
            "the same sides and each side the same forms, 'base' among them"
        )


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_pattern(found: Pattern) -> None:
    """Fill each template once with each verb, and evaluate the answers there."""
    lexicon, names = found.lexicon, [template.name for template in found.templates]
    for template in found.templates:
        if template.swapped_template not in ("", *names):
            raise PatternError(
                f"Template {template.name!r} has the order {template.swapped_template!r}: use one "
                f"of {', '.join(names)}"
            )
        for verb in lexicon.verbs_of(found.operation):
            kinds = {slot: lexicon.kind_of(slot) for slot in template.slots}
            slots = {s: verb if k == "verb" else lexicon.values(s)[0] for s, k in kinds.items()}
            template.fill(slots, lexicon, "words")
        for rule in (found.remainder, *(rule for _, rule in found.answers)):
            evaluate_expression(rule, slots)


@cache
def list_patterns(path: str | Path | None = None) -> dict[str, Pattern]:
    """All patterns of a file (of both shipped ones by default) by name.

    Raises:
        PatternError: The file is missing or malformed.
    """
    if path is None:
        shipped = (data_folder() / name for name in ("patterns.toml", "real_patterns.toml"))
        return {name: found for one in shipped for name, found in list_patterns(one).items()}
    try:
        return _read_patterns(Path(path))
    except PatternError as error:
        raise PatternError(f"Pattern file {str(path)!r}: {error}") from None
    except OSError as error:
        raise PatternError(
            f"Pattern file {str(path)!r} cannot be read: {error.strerror}. Check it"
        ) from None
    except UnicodeDecodeError as error:
        raise PatternError(
            f"Pattern file {str(path)!r} is not UTF-8 ({error}): save it as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise PatternError(f"Pattern file {str(path)!r} is not TOML: {error}. Correct it") from None
    except KeyError as error:
        raise PatternError(
            f"Pattern file {str(path)!r} lacks {error}: add it as in data/patterns.toml"
        ) from None
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PatternError(
            f"Pattern file {str(path)!r} is malformed ({reason}): write it as data/patterns.toml"
        ) from None


def _read_patterns(path: Path) -> dict[str, Pattern]:
    table = _read_toml(path)
    frames = table.get("frames", {})
    frames = {name: tuple(parse_templates(entry)) for name, entry in frames.items()}
    patterns = {}
    for name, entry in table["pattern"].items():
        if "templates" in entry:
            pairs = read_word_pattern(name, entry, table).pairs()
            patterns[name] = Pattern.of_pairs(name, entry["title"], pairs, shuffled=True)
            continue
        lexicon = load_lexicon(path)
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
                _check_pattern(patterns[name + suffix])
        if not {name, f"{name}-told"} & set(patterns):
            raise PatternError(
                f"Pattern {name!r} has the frames {entry['frames']!r}: use one of "
                f"{', '.join(frames)}"
            )
    return patterns


def _operation_fields(table: dict, name: str, entry: dict, suffix: str) -> dict[str, Any]:
    """Fields in which a pattern and its opposite differ."""
    return {
        "name": name + suffix,
        "title": entry["title"] + (", told as statements" if suffix else ""),
        "operation": entry["operation"],
        "answers": tuple(entry["answers"].items()),
        "remainder": table["operations"][entry["operation"]],
    }


def pattern(name: str | Pattern, *, format: str | PromptFormat = PLAIN_NAME) -> Pattern:
    """Pattern by its name, or of the user's pairs in a `.jsonl` file; a pattern is returned as is.

    Args:
        name: Name, path of a pairs file, or a pattern.
        format: Prompt format, such as "few-shot-4"; see `PromptFormat`.

    Raises:
        PatternError: The name or the format is unknown, or the pattern does not allow the format.
    """
    if str(format) != PLAIN_NAME:
        return formatted(pattern(name), format)
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


def example_question(own: Pattern) -> Question | None:
    """Question that the catalog names as the example of a pattern; None without one."""
    known = _read_toml(data_folder() / "patterns.toml")["pattern"].get(own.name, {})
    is_shipped = "example" in known and own == list_patterns()[own.name]
    return own.match(known["example"]) if is_shipped else None


def unasked_questions(count: int, *, seed: int) -> dict[str, tuple[Question, ...]]:
    """Questions of `data/real_patterns.toml` that gates and comparisons do not ask, by pattern.

    Those of word patterns are in none of the shipped pairs, and patterns whose words allow no
    others are left out. Those of number patterns are drawn with another seed, from more than
    10,000 questions, so that few coincide. Of patterns that ask the same for other answers, the
    first counts.

    Args:
        count: Most questions of a pattern.
        seed: Seed of the draws.
    """
    path, result = data_folder() / "real_patterns.toml", {}
    table, known = _read_toml(path), set()
    for name, shipped in list_patterns(path).items():
        if not shipped.user_pairs:
            asked = (shipped.templates, shipped.operation, shipped.lexicon)
            if asked in known:
                continue
            known.add(asked)
            result[name] = shipped.sample_questions(count, seed=_UNASKED_SEED + seed)
            continue
        asked = {
            side.text for pair in shipped.user_pairs for side in (pair.clean, pair.counterfactual)
        }
        word_pattern = read_word_pattern(name, table["pattern"][name], table)
        drawn = word_pattern.pairs(2 * count, seed=f":unasked:{seed}")
        found = {side.text: side for pair in drawn for side in (pair.clean, pair.counterfactual)}
        if left := [question for text, question in found.items() if text not in asked]:
            result[name] = tuple(left[:count])
    return result


def held_out_table() -> dict[str, Any]:
    """Table of the family's held-out split."""
    return copy.deepcopy(_read_toml(data_folder() / "patterns.toml")["held_out"])


def published_circuit(name: str) -> dict[str, Any]:
    """Source, models and heads of the published circuit of a pattern; empty if none is known."""
    table = _read_toml(data_folder() / "real_patterns.toml")
    return copy.deepcopy(table["published"].get(name, {}))
