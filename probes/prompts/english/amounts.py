"""Amounts of a number story: each number with its verb, its owner and what is counted."""

from collections.abc import Sequence
from dataclasses import dataclass

from probes.prompts.english.owners import possessor, subject
from probes.prompts.english.sentences import Word, split_sentences
from probes.prompts.english.transfers import Transfer, read_transfer
from probes.prompts.english.words import (
    AMBIGUOUS,
    AUXILIARIES,
    BE,
    BUYING,
    MODIFIERS,
    MONEY,
    PARTICLES,
    RATES,
    STOPS,
    UNKNOWN_AMOUNTS,
    number_value,
    singular,
    verb_forms,
)

_MAX_NOUN_WORDS = 4


@dataclass(frozen=True, slots=True)
class Amount:
    """One number of a story.

    Attributes:
        kind: "have", "minus", "plus", or "" where no known verb governs it.
        value: The number.
        verb: Base form of the verb, with its particle.
        owner: Who has it, or has less or more by it, in lower case: a name, a noun, a pronoun as
            subject, or "".
        noun: Words of what is counted, singular, the last one its head; empty for "5 more".
        people: Words behind the verb that may name others.
        actor: Subject of the verb, where another has more or less by it; else "".
        doubt: Words by which another may be the owner; "" where there are none.
        spans: Characters of the verb, the number and the noun; None where there is none.
    """

    kind: str
    value: int
    verb: str
    owner: str
    noun: tuple[str, ...]
    verb_span: tuple[int, int] | None
    number_span: tuple[int, int]
    noun_span: tuple[int, int] | None
    people: frozenset[str] = frozenset()
    actor: str = ""
    doubt: str = ""

    @property
    def start(self) -> int:
        """First character of the verb and the number."""
        return min(self.number_span[0], *(self.verb_span or self.number_span)[:1])


def read_amounts(words: Sequence[Word]) -> list[Amount]:
    """Amounts of all sentences, in the order of the text."""
    return [amount for each in split_sentences(words) for amount in _sentence_amounts(each)]


def has_unknown_amount(words: Sequence[Word], noun: tuple[str, ...]) -> bool:
    """Whether "some more coins" or "5 coins a day" change an amount by no given number."""
    for at, word in enumerate(words):
        after = words[at + 1].lower if at + 1 < len(words) else ""
        if word.lower in RATES or (word.lower == "a" and after in ("day", "week", "hour", "year")):
            return True
        if word.lower in UNKNOWN_AMOUNTS and number_value(word.text) is None:
            phrase, _ = noun_phrase(words, at + 1)
            if not phrase or not noun or phrase[-1] == noun[-1]:
                return True
    return False


def _sentence_amounts(words: Sequence[Word]) -> list[Amount]:
    found: list[Amount] = []
    previous, first = 0, 0
    for at, word in enumerate(words):
        value = number_value(word.text)
        if value is None or _is_article_like(words, at):
            continue
        noun, noun_span = noun_phrase(words, at + 1)
        if at and words[at - 1].text == "$":
            noun, noun_span = ("dollar",), None
        verb = _find_verb(words, previous, at)
        if verb is None and found and found[-1].kind and not _verb_follows(words, at):
            # "He ate 15 cookies and 4 apples": the verb of the number before.
            verb = _find_verb(words, first, first + 1)
        elif verb is None:
            # "5 were eaten": the verb follows.
            verb = _find_verb(words, at + 1, len(words), forward=True)
        kind, base, own, first = verb or ("", "", None, at)
        transfer = _read_change(words, (first, at), kind, base, noun)
        amount = Amount(
            transfer.kind,
            value,
            base,
            transfer.owner,
            noun,
            own,
            (word.start, word.end),
            noun_span,
            transfer.people,
            transfer.actor,
            transfer.doubt,
        )
        found.append(amount)
        previous = at + 1
    return found


def _read_change(
    words: Sequence[Word], places: tuple[int, int], kind: str, base: str, noun: tuple[str, ...]
) -> Transfer:
    """Class and owner of a verb in its sentence, from the indices of the verb and its number."""
    verb, number = places
    if verb < number:
        owner = subject(words, verb)
    else:  # Of "5 were eaten" the number is the subject, of "Ben's 5 were eaten" Ben has them.
        owner = possessor(words[number - 1]) if number else ""
    following = words[number + 1].lower if number + 1 < len(words) else ""
    if base in AMBIGUOUS and following in ("more", "new"):
        return Transfer("", owner, frozenset())  # "She cut 8 more roses and put them in the vase."
    if kind == "plus" and noun and noun[-1] in MONEY and base in BUYING:
        return Transfer("minus", owner, frozenset())  # A price.
    return read_transfer(words, places, kind, base, owner)


def _is_article_like(words: Sequence[Word], at: int) -> bool:
    """Whether "one" is a pronoun, as in "each one", or a number is part of a name."""
    return words[at].lower == "one" and at > 0 and words[at - 1].lower in ("each", "this", "that")


def noun_phrase(
    words: Sequence[Word], start: int
) -> tuple[tuple[str, ...], tuple[int, int] | None]:
    """Nouns from a word on, singular, and their characters; empty where none follows."""
    kept: list[Word] = []
    at = start
    while at < len(words) and len(kept) < _MAX_NOUN_WORDS:
        word = words[at].lower
        if not kept and word in MODIFIERS:
            at += 1
            continue
        if not word[0].isalpha() or word in STOPS | AUXILIARIES or number_value(word) is not None:
            break
        if word == "ones" or (word in verb_forms() and (kept or not word.endswith("s"))):
            break  # "5 new ones" and "5 died" count what was counted before.
        if kept and (word.endswith("ing") or _is_adverb(word)):
            break
        kept.append(words[at])
        at += 1
    if not kept:
        return (), None
    return tuple(singular(word.text) for word in kept), (kept[0].start, kept[-1].end)


def _is_adverb(word: str) -> bool:
    """Whether a word ends as "quickly", but not as "butterfly", "jelly" and "lily" do."""
    return word.endswith("ly") and not word.endswith(("fly", "lly", "ily"))


def _find_verb(
    words: Sequence[Word], start: int, end: int, *, forward: bool = False
) -> tuple[str, str, tuple[int, int], int] | None:
    """Class, base form, characters and index of the verb that is nearest to a number."""
    forms = verb_forms()
    order = range(start, end) if forward else range(end - 1, start - 1, -1)
    for at in order:
        word = words[at].lower
        if forward and (word in ("and", "but", ",", "from") or number_value(word) is not None):
            return None
        if word in BE:
            after = next((w.lower for w in words[at + 1 : at + 3] if w.lower in forms), "")
            if forward and after:
                continue
            if not forward:
                return "have", "be", (words[at].start, words[at].end), at
            continue
        if word not in forms or _is_noun_here(words, at):
            continue
        kind, base = forms[word]
        last = words[at]
        for later in words[at + 1 : at + 8]:
            if later.lower in PARTICLES and f"{word} {later.lower}" in forms:
                kind, base = forms[f"{word} {later.lower}"]
                last = later if later is words[at + 1] else last
                break
        return kind, base, (words[at].start, last.end), at
    return None


def _is_noun_here(words: Sequence[Word], at: int) -> bool:
    """Whether a word that may be a verb is a noun: behind an article, "of" or a possessive."""
    before = words[at - 1].lower if at else ""
    return before in {"a", "an", "the", "of", "his", "her", "my", "their", "to", "its"} and (
        before != "to"
    )


def _verb_follows(words: Sequence[Word], at: int) -> bool:
    """Whether a new clause with its own verb begins at a number: "… and 5 flew away"."""
    for word in words[at + 1 : at + 6]:
        if number_value(word.text) is not None or word.lower in ("and", "but", ","):
            return False
        if word.lower in verb_forms() or word.lower in BE:
            return True
    return False
