"""Contrast pairs of the user, from JSON lines."""

import json
from collections.abc import Mapping
from pathlib import Path

from probes.errors import PatternError
from probes.prompts.question import Pair, Question, Span


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """All pairs of a file; blank lines are skipped.

    Raises:
        PatternError: The file cannot be read, has no pair, or a line is malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PatternError(f"Pair file {str(path)!r} cannot be read: {error}") from None
    pairs = [
        _parse_pair(line, f"{path.name}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not pairs:
        raise PatternError(f"Pair file {str(path)!r} has no pair: write one JSON object a line")
    return tuple(pairs)


def _parse_pair(line: str, location: str) -> Pair:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise PatternError(f"{location}: not JSON ({error.msg})") from None
    needed = ("clean", "counterfactual", "answer", "counterfactual_answer")
    if not isinstance(entry, dict) or any(not _is_nonempty_text(entry.get(key)) for key in needed):
        raise PatternError(f"{location}: needs the texts {', '.join(needed)}, none of them empty")
    roles = entry.get("roles", {})
    answers = [entry["answer"].strip(), entry["counterfactual_answer"].strip()]
    others = entry.get("outcomes", [])
    if not isinstance(others, list) or not all(map(_is_nonempty_text, others)):
        raise PatternError(f"{location}: outcomes must be a list of texts, found {others!r}")
    outcomes = [text.strip() for text in others]
    name = Path(location.rsplit(", line", 1)[0]).stem
    clean = _make_question(
        entry["clean"], answers + outcomes, _find_spans(entry["clean"], roles, location), name
    )
    other_roles = entry.get("counterfactual_roles", roles)
    other = _make_question(
        entry["counterfactual"],
        answers[::-1] + outcomes,
        _find_spans(entry["counterfactual"], other_roles, location),
        name,
    )
    return Pair(str(entry.get("contrast", "given")), clean, other)


def _is_nonempty_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _make_question(text: str, outcomes: list[str], roles: tuple[Span, ...], name: str) -> Question:
    return Question(
        text=text.rstrip(),
        pattern=name,
        template="given",
        slots=(),
        numerals="digits",
        answers=(("answer", outcomes[0]),),
        outcomes=(("answer", tuple(dict.fromkeys(outcomes))),),
        roles=roles,
    )


def _find_spans(text: str, roles: object, location: str) -> tuple[Span, ...]:
    """Character spans of the roles, each after the one before."""
    if not isinstance(roles, Mapping):
        raise PatternError(f"{location}: roles must map a role to its words, found {roles!r}")
    spans, at = [], 0
    for role, words in roles.items():
        start = text.find(str(words), at)
        if start < 0:
            raise PatternError(
                f"{location}: the words {words!r} of role {role!r} are not in {text[at:]!r}; "
                "give roles in the order of the text"
            )
        at = start + len(str(words))
        spans.append((str(role), start, at))
    return tuple(spans)
