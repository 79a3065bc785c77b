"""Checks of a text before it is read: numbers that are not whole, and what did not happen."""

import re
from collections.abc import Sequence

from probes.prompts.english.owners import person_after
from probes.prompts.english.sentences import Word, split_sentences
from probes.prompts.english.words import (
    ALMOST,
    ARTICLES,
    FUTURE,
    INEXACT,
    NAMES_TOO,
    NEGATIONS,
    NUMBER_PARTS,
    SCALES,
    TIMES,
    UNREAL,
    UNREAL_PAIRS,
    number_value,
    singular,
    verb_forms,
)

_PLAIN = re.compile(r"[$\u20ac\u00a3]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,15})")
_OPENING, _CLOSING = "([{\"'\u201c\u2018", ")]}\"'\u201d\u2019.,?!;:\u2026"
# Signs of minus, of operations and of shares; between words a dash is punctuation.
_SIGNS = frozenset(
    "+-\u2010\u2011\u2012\u2013\u2014\u2212\u00b1~\u2248<>=/\u2044*\u00d7\u00f7^%\u2030"
)
_CONTRACTED = re.compile(r"\w+n['\u2019]t")


def unreadable_number(text: str, words: Sequence[Word]) -> str | None:
    """Characters of the first number that is no plain whole number, or None."""
    pieces = text.split()
    for at, piece in enumerate(pieces):
        core = piece.lstrip(_OPENING).rstrip(_CLOSING)
        if not any(_is_numeric(mark) for mark in core):
            continue
        if not _PLAIN.fullmatch(core):
            return core
        before = pieces[at - 1] if at else ""
        after = pieces[at + 1].rstrip(_CLOSING) if at + 1 < len(pieces) else ""
        if before and set(before) <= _SIGNS:
            return f"{before} {core}"
        if after and set(after) <= _SIGNS and piece.endswith(core):
            return f"{core} {after}"
    return _unreadable_words(words)


def _is_numeric(mark: str) -> bool:
    return mark.isnumeric() and (not mark.isalpha() or mark.isdigit())


def _unreadable_words(words: Sequence[Word]) -> str | None:
    """Number words that are a number only together: "one hundred", "minus three", "two thirds"."""
    for at, word in enumerate(words):
        before = words[at - 1].lower if at else ""
        after = words[at + 1].lower if at + 1 < len(words) else ""
        if word.lower in SCALES:
            is_counted = before in ARTICLES or number_value(before) is not None
            return f"{before} {word.text}" if is_counted else word.text
        first, _, last = word.lower.partition("-")
        if number_value(first) is not None and last in NUMBER_PARTS:
            return word.text
        if number_value(word.text) is None:
            continue
        if after in NUMBER_PARTS or number_value(after) is not None:
            return f"{word.text} {words[at + 1].text}"
        if before in ("minus", "negative", "plus", "times"):
            return f"{words[at - 1].text} {word.text}"
    return None


def unreal_words(told: Sequence[Word], question: Sequence[Word]) -> str | None:
    """Words by which something told did not happen or is not certain, or that negate a question.

    They are looked for in all that is told, since "He did not." denies the sentence before it.
    """
    for word in question:
        if _is_negation(word.lower):
            return word.text
    is_future = any(word.lower in ("will", "would") for word in question)
    for sentence in split_sentences(told):
        has_number = any(number_value(word.text) is not None for word in sentence)
        for at, word in enumerate(sentence):
            if at and sentence[at - 1].lower in ARTICLES:
                continue  # "A can of milk."
            if word.text[0].isupper() and word.lower in NAMES_TOO:
                continue  # "Will has 9 nuts."
            # "Winter is almost here" says nothing of a number.
            if _is_unreal(word.lower, is_future) or (has_number and word.lower in ALMOST):
                return word.text
            if at + 1 < len(sentence) and _is_unreal_pair(word.lower, sentence[at + 1].lower):
                return f"{word.text} {sentence[at + 1].text}"
    return None


def condition_word(before: Sequence[Word]) -> str | None:
    """The "if" of "If I eat 2, I am full.", told as a sentence before the one with the question.

    "If the tree had 7 nuts initially." is told so in word problems, and has no consequence.
    """
    ends = [at for at, word in enumerate(before) if word.text in (".", "!", ";")]
    for sentence in split_sentences(before[: ends[-1]] if ends else ()):
        for at, word in enumerate(sentence):
            if word.lower == "if" and (at or any(later.text == "," for later in sentence)):
                return word.text
    return None


def _is_negation(word: str) -> bool:
    return word in NEGATIONS or bool(_CONTRACTED.fullmatch(word))


def _is_unreal(word: str, is_future: bool) -> bool:
    if word in FUTURE or word.endswith(("'ll", "\u2019ll")):
        return not is_future
    return _is_negation(word) or word in UNREAL or word.endswith(("'d", "\u2019d"))


def _is_unreal_pair(word: str, after: str) -> bool:
    """Whether two words say so together: "going to", "at least 2", "over 2" (not "over night")."""
    return (word, after) in UNREAL_PAIRS or (word in INEXACT and number_value(after) is not None)


def unnumbered_change(told: Sequence[Word]) -> str | None:
    """Words that undo a change without a number: "finds them", "gives them back"."""
    for sentence in split_sentences(told):
        has_number = any(number_value(word.text) is not None for word in sentence)
        changes = [verb_forms().get(word.lower, ("", ""))[0] for word in sentence]
        for at, word in enumerate(sentence):
            if at and changes[at - 1] == "plus" and word.lower in ("them", "it", "these", "those"):
                return f"{sentence[at - 1].text} {word.text}"
            if word.lower == "back" and not has_number and {"plus", "minus"} & set(changes[:at]):
                return word.text
    return None


def unknown_place(told: Sequence[Word], question: Sequence[Word]) -> str | None:
    """Place in a question of which nothing is told: "in his bag", told of a box."""
    known = {singular(word.text) for word in told}
    for at, word in enumerate(question[:-1]):
        if word.lower in ("in", "on", "at", "inside", "under"):
            place = person_after(question, at + 1).split()
            if place and place[-1] not in TIMES and singular(place[-1]) not in known:
                return place[-1]
    return None
