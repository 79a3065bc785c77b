"""Role spans: character spans of the roles of a user's prompt, from their words."""

import re
import unicodedata
from collections.abc import Iterator, Mapping

from probes.errors import PatternError
from probes.prompts.question import Span
from probes.prompts.tokens.tokenization import BOS, REST

_ROLE_NAME = re.compile(r"\w[\w -]*")
_SCRIPTS_WITHOUT_SPACES = (
    "CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN",
)  # fmt: skip


def find_role_spans(text: str, roles: object, location: str) -> tuple[Span, ...]:
    """Spans of roles in a text: whole words, in the order of the text, without overlap.

    Args:
        text: Prompt.
        roles: Role to its words, or to a list of its words and which occurrence is meant, from 1.
        location: Place of the prompt, for errors.

    Raises:
        PatternError: A name or its words are not usable, the words are not in the text as whole
            words, or they fit more than one place.
    """
    if not isinstance(roles, Mapping):
        raise PatternError(f"{location}: roles must map a role to its words, found {roles!r}")
    candidates = {
        _check_name(role, location): _candidate_spans(text, role, value, location)
        for role, value in roles.items()
    }
    first, last = [], []
    at, until = 0, len(text)
    for role, spans in candidates.items():
        fitting = [span for span in spans if span[0] >= at]
        if not fitting:
            raise PatternError(
                f"{location}: the words of role {role!r} are not in {text[at:][:80]!r}: give roles "
                "in the order of the text"
            )
        first.append(fitting[0])
        at = fitting[0][1]
    for spans in reversed(candidates.values()):
        last.insert(0, [span for span in spans if span[1] <= until][-1])
        until = last[0][0]
    for role, here, there in zip(candidates, first, last, strict=True):
        if here != there:
            raise PatternError(
                f"{location}: the words {text[slice(*here)]!r} of role {role!r} occur more than "
                f'once: say which, as in {{"{role}": ["{text[slice(*here)]}", 2]}}'
            )
    return tuple((role, *span) for role, span in zip(candidates, first, strict=True))


def _check_name(role: str, location: str) -> str:
    if role in (BOS, REST) or role.startswith("reply_"):
        raise PatternError(
            f"{location}: the role name {role!r} is reserved ({BOS}, {REST}, reply_…): take another"
        )
    if not _ROLE_NAME.fullmatch(role):
        raise PatternError(
            f"{location}: the role name {role!r} may hold letters, digits, spaces, _ and - only"
        )
    return role


def _candidate_spans(text: str, role: str, value: object, location: str) -> list[tuple[int, int]]:
    """Spans at which the words of a role occur as whole words."""
    match value:
        case str(words):
            number = None
        case [str(words), int(number)] if type(number) is int and number > 0:
            pass
        case _:
            raise PatternError(
                f"{location}: role {role!r} needs its words, or [words, number of the occurrence], "
                f"found {value!r}"
            )
    if not words.strip():
        raise PatternError(f"{location}: role {role!r} has no words: give some, or leave it out")
    starts = list(_find_all(text, words))
    spans = [
        (start, start + len(words))
        for start in starts
        if _is_boundary(text, start) and _is_boundary(text, start + len(words))
    ]
    if not spans:
        problem = "are part of another word in" if starts else "are not in"
        raise PatternError(
            f"{location}: the words {words!r} of role {role!r} {problem} {text[:80]!r}: give whole "
            "words, and counterfactual_roles where the counterfactual has others"
        )
    if number is None:
        return spans
    if number > len(spans):
        raise PatternError(
            f"{location}: the words {words!r} of role {role!r} occur {len(spans)} times, not "
            f"{number}"
        )
    return [spans[number - 1]]


def _find_all(text: str, words: str) -> Iterator[int]:
    """Starts of words in a text; they may overlap. A compiled pattern for each is slower."""
    at = text.find(words)
    while at >= 0:
        yield at
        at = text.find(words, at + 1)


def _is_boundary(text: str, at: int) -> bool:
    """Whether a word may begin or end between two characters."""
    if not 0 < at < len(text):
        return True
    before, after = text[at - 1], text[at]
    if not (_is_word_character(before) and _is_word_character(after)):
        return True
    return any(
        unicodedata.name(character, "").startswith(_SCRIPTS_WITHOUT_SPACES)
        for character in (before, after)
    )


def _is_word_character(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LMN"
