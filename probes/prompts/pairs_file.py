"""Pairs files: contrast pairs of the user, one JSON object a line.

Texts are used exactly as given. `docs/patterns.md` lists the keys.
"""

import codecs
import difflib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from probes.errors import PatternError
from probes.prompts.question import Pair, Question, Span, append_answer
from probes.prompts.tokens.role_spans import find_role_spans
from probes.prompts.tokens.tokenization import MAX_CHARACTERS, find_surrogate

_NEEDED = ("clean", "counterfactual", "answer", "counterfactual_answer")
_KEYS = (*_NEEDED, "contrast", "outcomes", "roles", "counterfactual_roles", "delimiter")
_MAX_LINE_BYTES = 8_000_000
_BAR_BYTES = 5_000_000  # Larger files show a progress bar.


class DuplicatePairsWarning(UserWarning):
    """A pairs file has the same pair more than once."""


def read_pairs(path: Path) -> tuple[tuple[Pair, ...], int]:
    """Distinct pairs of a file, and the number of duplicates that were removed.

    The file is read line by line. Blank lines are skipped.

    Raises:
        PatternError: The file cannot be read, has no pair, a line is malformed, a pair has equal
            prompts or equal answers, or one prompt has two answers.
    """
    pairs: dict[tuple[str, ...], Pair] = {}
    answers: dict[str, tuple[str, int]] = {}
    n_pairs = 0
    try:
        for number, line in _read_lines(path):
            location = f"{path.name}, line {number}"
            pair = _parse_pair(line, location, path.stem)
            clean, other = pair.clean.full_text, pair.counterfactual.full_text
            for question, whole in ((pair.clean, clean), (pair.counterfactual, other)):
                answer, first = answers.setdefault(question.text, (whole, number))
                if answer != whole:
                    raise PatternError(
                        f"{location}: {question.text[:80]!r} has the answer "
                        f"{question.answer('answer')!r} here and another one in line {first}: "
                        "give each prompt one answer, and other possible ones as outcomes"
                    )
            pairs.setdefault((pair.contrast, clean, other), pair)
            n_pairs += 1
    except (OSError, ValueError) as error:  # A null character in the name is a ValueError.
        reason = getattr(error, "strerror", None) or str(error)
        raise PatternError(
            f"Pair file {str(path)[-200:]!r} cannot be read: {reason}. Check the path"
        ) from None
    if not pairs:
        raise PatternError(f"Pair file {str(path)!r} has no pair: write one JSON object a line")
    if duplicates := n_pairs - len(pairs):
        warnings.warn(
            f"{path.name}: {duplicates} of {n_pairs} pairs are duplicates and were removed",
            DuplicatePairsWarning,
            stacklevel=3,
        )
    return tuple(pairs.values()), duplicates


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank. Only line feeds end a line."""
    size = path.stat().st_size
    bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=size < _BAR_BYTES)
    with path.open("rb") as file, bar:
        number = 0
        while raw := file.readline(_MAX_LINE_BYTES):
            number += 1
            location = f"{path.name}, line {number}"
            bar.update(len(raw))
            if len(raw) == _MAX_LINE_BYTES:
                raise PatternError(
                    f"{location}: longer than {_MAX_LINE_BYTES} bytes: write one pair a line"
                )
            try:
                text = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode("utf-8")
            except UnicodeDecodeError as error:
                raise PatternError(
                    f"{location}: not UTF-8 (byte {raw[error.start]:#04x} at position "
                    f"{error.start}): save the file as UTF-8"
                ) from None
            if text.strip():
                yield number, text


def _parse_pair(line: str, location: str, name: str) -> Pair:
    entry = _parse_json(line, location)
    _check_entry(entry, location, "\\u" in line)
    delimiter = entry.get("delimiter", " ")
    roles = entry.get("roles", {})
    sides = []
    for text, answers, words in (
        ("clean", ("answer", "counterfactual_answer"), "roles"),
        ("counterfactual", ("counterfactual_answer", "answer"), "counterfactual_roles"),
    ):
        spans = find_role_spans(entry[text], entry.get(words, roles), f"{location}: {text}")
        outcomes = [entry[key] for key in answers] + entry.get("outcomes", [])
        sides.append(_make_question(entry[text], outcomes, spans, name, delimiter))
    clean, other = sides
    if clean.text == other.text:
        raise PatternError(
            f"{location}: clean and counterfactual are the same text, so the pair tests nothing: "
            f"{clean.text[:60]!r}. Change what the answer depends on"
        )
    if clean.full_text == clean.append(clean.text, entry["counterfactual_answer"]):
        raise PatternError(
            f"{location}: both answers are {entry['answer']!r}, so the pair tests nothing: give a "
            "counterfactual with another answer"
        )
    return Pair(entry.get("contrast", "given"), clean, other)


def _to_unique_dict(items: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(items)
    if len(entry) < len(items):
        keys = [key for key, _ in items]
        raise KeyError(next(key for key in keys if keys.count(key) > 1))
    return entry


_DECODER = json.JSONDecoder(object_pairs_hook=_to_unique_dict)


def _parse_json(line: str, location: str) -> Any:  # noqa: ANN401 (any JSON value)
    try:
        return _DECODER.decode(line)
    except KeyError as error:
        raise PatternError(f"{location}: the key {error} occurs twice: keep one") from None
    except json.JSONDecodeError as error:
        raise PatternError(
            f"{location}: not JSON ({error.msg} at column {error.colno}): write one object a line"
        ) from None
    except ValueError:  # Python reads at most 4,300 digits.
        raise PatternError(f"{location}: a number has too many digits: give texts") from None
    except RecursionError:
        raise PatternError(f"{location}: nested too deeply: give one flat object") from None


def _check_entry(entry: Any, location: str, has_escapes: bool) -> None:  # noqa: ANN401
    """Check keys and types of a line, which may have escaped characters.

    Raises:
        PatternError: A key is missing or unknown, or a value is not a text, is too long or is not
            valid Unicode.
    """
    _check_needed(entry, location)
    for key in entry:
        if key not in _KEYS:
            raise PatternError(f"{location}: {_suggest_key(key)}")
    outcomes = entry.get("outcomes", [])
    if not isinstance(outcomes, list) or not all(map(_is_nonempty_text, outcomes)):
        raise PatternError(f"{location}: outcomes must be a list of texts, found {outcomes!r}")
    if not _is_nonempty_text(entry.get("contrast", "given")):
        raise PatternError(f"{location}: contrast must be a text, found {entry['contrast']!r}")
    if not isinstance(entry.get("delimiter", ""), str):
        raise PatternError(f"{location}: delimiter must be a text, found {entry['delimiter']!r}")
    for key in _NEEDED:
        if len(entry[key]) > MAX_CHARACTERS:
            raise PatternError(
                f"{location}: {key} has {len(entry[key])} characters, at most {MAX_CHARACTERS} are "
                "tokenized: shorten it"
            )
    # A line of UTF-8 holds a surrogate only where it is escaped.
    if has_escapes and (surrogate := find_surrogate(json.dumps(entry, ensure_ascii=False))):
        raise PatternError(
            f"{location}: a lone surrogate ({surrogate}) is not valid Unicode: write the whole "
            "character"
        )


def _check_needed(entry: Any, location: str) -> None:  # noqa: ANN401
    needed = f"{location}: needs the texts {', '.join(_NEEDED)}, none of them empty"
    if not isinstance(entry, dict):
        raise PatternError(f"{needed}, and {entry!r:.60} is no object: write one object a line")
    for key in _NEEDED:
        if not _is_nonempty_text(entry.get(key)):
            unknown = [key for key in entry if key not in _KEYS]
            state = f"is {entry[key]!r:.60}" if key in entry else "is missing"
            raise PatternError(
                f"{needed}, and {key} {state}: "
                + (_suggest_key(unknown[0]) if unknown else "write it")
            )


def _suggest_key(key: str) -> str:
    near = difflib.get_close_matches(key, _KEYS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(_KEYS)}"
    return f"the key {key!r} is unknown: {hint}"


def _is_nonempty_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _make_question(
    text: str, outcomes: list[str], roles: tuple[Span, ...], name: str, delimiter: str
) -> Question:
    distinct: dict[str, str] = {}
    for outcome in outcomes:  # "she" and " she" are one outcome after a word.
        distinct.setdefault(append_answer(text, outcome, delimiter), outcome)
    return Question(
        text=text,
        pattern=name,
        template="given",
        slots=(),
        numerals="digits",
        answers=(("answer", outcomes[0]),),
        outcomes=(("answer", tuple(distinct.values())),),
        roles=roles,
        delimiter=delimiter,
    )
