"""A user's own contrast pairs, read from JSON lines."""

import json
from collections.abc import Mapping
from pathlib import Path

from probes.errors import PatternError
from probes.prompts.question import Pair, Question, Span


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """Read every pair of a file; blank lines are passed over.

    Raises:
        PatternError: The file cannot be read, holds no pair, or a line is malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PatternError(f"Pair file {str(path)!r} cannot be read: {error}") from None
    pairs = [
        _pair(line, f"{path.name}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not pairs:
        raise PatternError(f"Pair file {str(path)!r} holds no pair: write one JSON object a line")
    return tuple(pairs)


def _pair(line: str, where: str) -> Pair:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise PatternError(f"{where}: not JSON ({error.msg})") from None
    needed = ("clean", "counterfactual", "answer", "counterfactual_answer")
    if not isinstance(entry, dict) or any(not _is_words(entry.get(key)) for key in needed):
        raise PatternError(f"{where}: needs the texts {', '.join(needed)}, none of them empty")
    roles = entry.get("roles", {})
    answers = [entry["answer"].strip(), entry["counterfactual_answer"].strip()]
    others = entry.get("outcomes", [])
    if not isinstance(others, list) or not all(map(_is_words, others)):
        raise PatternError(f"{where}: outcomes must be a list of texts, found {others!r}")
    outcomes = [text.strip() for text in others]
    name = Path(where.rsplit(", line", 1)[0]).stem
    clean = _question(
        entry["clean"], answers + outcomes, _spans(entry["clean"], roles, where), name
    )
    other_roles = entry.get("counterfactual_roles", roles)
    other = _question(
        entry["counterfactual"],
        answers[::-1] + outcomes,
        _spans(entry["counterfactual"], other_roles, where),
        name,
    )
    return Pair(str(entry.get("contrast", "given")), clean, other)


def _is_words(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _question(text: str, outcomes: list[str], roles: tuple[Span, ...], name: str) -> Question:
    return Question(
        text=text.rstrip(),
        pattern=name,
        frame="given",
        slots=(),
        numerals="digits",
        answers=(("answer", outcomes[0]),),
        outcomes=(("answer", tuple(dict.fromkeys(outcomes))),),
        roles=roles,
    )


def _spans(text: str, roles: object, where: str) -> tuple[Span, ...]:
    """Find the words of each role, reading on from the end of the role before."""
    if not isinstance(roles, Mapping):
        raise PatternError(f"{where}: roles must map a role to its words, found {roles!r}")
    spans, at = [], 0
    for role, words in roles.items():
        start = text.find(str(words), at)
        if start < 0:
            raise PatternError(
                f"{where}: the words {words!r} of role {role!r} do not stand in {text[at:]!r}; "
                "give roles in the order of the text"
            )
        at = start + len(str(words))
        spans.append((str(role), start, at))
    return tuple(spans)
