"""Owners in a number story: who does something, who has something, and whom a pronoun means."""

from collections.abc import Sequence

from probes.prompts.english.sentences import Word, split_sentences
from probes.prompts.english.words import (
    ADVERBS,
    ARTICLES,
    AUXILIARIES,
    BE,
    OWNER_OF,
    POSSESSIVES,
    PRONOUNS,
    PURPOSES,
    REMAINDER,
    STOPS,
    THIRD_PERSON,
    number_value,
    verb_forms,
)

UNCLEAR = "?"
"""Owner of a pronoun that may mean more than one."""

_JOINING = frozenset(("and", "or", "but", "then", ","))
_RELATIVE = frozenset(("who", "which", "that"))
_PLACING = frozenset(("at", "in", "on", "near"))
_NO_NAMES = STOPS | AUXILIARIES | ADVERBS | {"if", "there", "some", "suppose", "answer"}


def subject(words: Sequence[Word], verb: int) -> str:
    """Owner before a verb: a name, a noun, or a pronoun as subject; "" where none is told.

    A name in lower case is one, too: "tom has 9 nuts". A noun behind a possessive is led by it,
    "his sister" or "tom's sister", since no pronoun need mean it.
    """
    at = verb - 1
    while at >= 0 and _is_between(words, at):
        at -= 1
    if at < 0:
        return ""
    word = words[at]
    if word.lower in _RELATIVE:
        # "To Mary, who gives one back."
        return subject(words, at) if at and words[at - 1].text != "," else subject(words, at - 1)
    if word.lower in _JOINING or word.lower in verb_forms():
        return _earlier_subject(words, at)
    if not is_owner(word):
        return ""
    owner = _head(words, at)
    if words[verb].lower in BE and not word.text[0].isupper() and word.lower not in PRONOUNS:
        # "His hair was 9 inches long" is told of him.
        return owner.split()[0] if " " in owner else ""
    if _is_joined(words, at):
        return "we" if {owner, words[at - 2].lower} & {"i", "me"} else "they"
    return owner


def _is_joined(words: Sequence[Word], at: int) -> bool:
    """Whether "Tom and Ben" do something; of "I have 9 nuts and Ben eats 2", Ben alone does."""
    if at < 2 or words[at - 1].lower != "and" or not is_owner(words[at - 2]):
        return False
    return not any(word.lower in verb_forms() or word.lower in BE for word in words[: at - 2])


def is_owner(word: Word) -> bool:
    """Whether a word may name an owner: a pronoun, a name, or another noun."""
    if word.lower in OWNER_OF:
        return word.lower not in POSSESSIVES or word.lower == "her"
    return (
        word.text[0].isalpha() and word.lower not in _NO_NAMES and number_value(word.text) is None
    )


def _is_between(words: Sequence[Word], at: int) -> bool:
    """Whether a word stands between a subject and its verb: "had either", "managed to"."""
    word = words[at].lower
    is_factive = at + 1 < len(words) and words[at + 1].lower == "to" and word.endswith("ed")
    return word in ADVERBS | AUXILIARIES or word.endswith("ly") or is_factive


def _earlier_subject(words: Sequence[Word], end: int) -> str:
    """Subject of the verb before, "had 30 nuts and sold 12", or Leo in "Leo, his brother, lost"."""
    for at in range(end, -1, -1):
        if words[at].lower in verb_forms() or words[at].lower in BE:
            before = words[at - 1].lower if at else ""
            if before not in ARTICLES | POSSESSIVES | {"of"}:
                return subject(words, at)
    first = next((at for at in range(end) if is_owner(words[at])), None)
    return _head(words, first) if first is not None else ""


def _head(words: Sequence[Word], at: int) -> str:
    """Owner whose last word is given, led by a possessive where there is one."""
    word = words[at].lower
    if word in OWNER_OF:
        return OWNER_OF[word]
    for before in reversed(words[max(0, at - 3) : at]):
        if before.lower in POSSESSIVES:
            return f"{OWNER_OF[before.lower]} {word}"
        if is_possessive(before):
            return f"{before.lower[:-2]} {word}"
        if before.lower in ARTICLES or not is_owner(before):
            break
    return word


def is_possessive(word: Word) -> bool:
    """Whether a word ends in 's."""
    return word.lower.endswith(("'s", "\u2019s"))


def possessor(word: Word) -> str:
    """Owner that a possessive names: "his" is he, "Tom's" is tom; "" for other words."""
    if word.lower in POSSESSIVES:
        return OWNER_OF[word.lower]
    return word.lower[:-2] if is_possessive(word) else ""


def asked_owner(question: Sequence[Word]) -> str:
    """Owner in a question: "does Tom have", "do I have", "will the baker have"."""
    start = next((at for at, word in enumerate(question) if word.lower in AUXILIARIES), None)
    if start is None:
        return ""
    at = start + 1
    while at < len(question) and question[at].lower in ADVERBS | REMAINDER | ARTICLES:
        at += 1
    end = at
    while end < len(question) and _is_in_owner(question[end]):
        end += 1
    if end == at:
        return ""
    phrase = question[at:end]
    if question[start].lower in BE:
        # "Are there", "is the rope"; but "is his rope", "is tom left with".
        is_named = phrase[0].text[0].isupper() or question[-1].lower == "with"
        return possessor(phrase[0]) or (phrase[0].lower if is_named else "")
    if len(phrase) > 2 and phrase[-2].lower == "and":
        is_we = any(word.lower in ("i", "me") for word in phrase)
        return "we" if is_we else "&".join(word.lower for word in phrase if word.lower != "and")
    return _head(phrase, len(phrase) - 1)


def _is_in_owner(word: Word) -> bool:
    if word.lower in POSSESSIVES | {"and"}:
        return True
    return is_owner(word) and word.lower not in verb_forms() and word.lower not in REMAINDER


def person_after(words: Sequence[Word], at: int) -> str:
    """Owner from a word on: "him", "Ben", "the shop", "his sister"; "" where a purpose follows."""
    while at < len(words) and words[at].lower in ARTICLES:
        at += 1
    if at >= len(words) or not (is_owner(words[at]) or possessor(words[at])):
        return ""
    end = at + 1
    is_pronoun = words[at].lower in OWNER_OF and words[at].lower not in POSSESSIVES
    while not is_pronoun and end < len(words) and is_owner(words[end]):
        if words[end].lower in OWNER_OF or words[end].lower in verb_forms():
            break
        end += 1
    if any(word.lower in PURPOSES for word in words[at:end]):
        return ""
    return _head(words, end - 1)


def names_before(words: Sequence[Word], place: int, *, leading: bool = False) -> set[str]:
    """Names with a capital before a place in the text, without those of places: "in Paris".

    Args:
        words: What is told.
        place: Character at which to end.
        leading: Whether only names that begin a sentence count.
    """
    found: set[str] = set()
    for sentence in split_sentences(words):
        for at, word in enumerate(sentence[:1] if leading else sentence):
            before = sentence[at - 1].lower if at else ""
            if word.start < place and before not in _PLACING and _is_name(sentence, at):
                found.add(possessor(word) or word.lower)
    return found


def _is_name(words: Sequence[Word], at: int) -> bool:
    word = words[at]
    if not word.text[0].isupper() or word.lower in _NO_NAMES or word.lower in OWNER_OF:
        return False
    if number_value(word.text) is not None:
        return False
    if at or at + 1 == len(words):
        return True
    # Each sentence begins with a capital: "Take away 2", "Over the week", "Tomorrow he".
    after = words[at + 1]
    is_led = after.lower in ARTICLES | _PLACING or after.lower in OWNER_OF
    is_verb = word.lower in verb_forms() or word.lower.endswith("ly")
    return not (is_led or is_verb or after.text[0].isupper())


def resolve(owner: str, names: set[str], others: set[str]) -> str:
    """Owner that a pronoun means: the one name before it, else the one other owner.

    It is itself where there is none, and unclear where there are more.
    """
    if owner not in THIRD_PERSON:
        return owner
    known = names or others
    if len(known) > 1:
        return "they" if owner == "they" else UNCLEAR
    return next(iter(known), owner)
