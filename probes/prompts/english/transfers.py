"""Who has less or more after a change: givers, takers, receivers and possessors."""

from collections.abc import Sequence
from dataclasses import dataclass

from probes.prompts.english.owners import is_owner, person_after, possessor
from probes.prompts.english.sentences import Word
from probes.prompts.english.words import (
    ADVERBS,
    BE,
    GIVING,
    KIN,
    OBJECT_PRONOUNS,
    OWNER_OF,
    PARTICLES,
    POSSESSIVES,
    PURPOSES,
    STOPS,
    TAKING,
    verb_forms,
)


@dataclass(frozen=True, slots=True)
class Transfer:
    """Change of one owner.

    Attributes:
        kind: Class of the change for that owner.
        owner: Who has less or more, as told.
        people: Words behind the verb that may name others, pronouns as subjects.
        actor: Subject of the verb, where another has more or less by it; else "".
        doubt: Words by which another may be the owner; "" where there are none.
    """

    kind: str
    owner: str
    people: frozenset[str]
    actor: str = ""
    doubt: str = ""


def read_transfer(
    words: Sequence[Word], places: tuple[int, int], kind: str, base: str, owner: str
) -> Transfer:
    """Transfer of a verb in its sentence, from the indices of the verb and of its number."""
    verb, number = places
    people = _people(words, verb)
    receiver = words[verb + 1].lower if verb + 1 < len(words) else ""
    is_given = base in GIVING and number == verb + 2 and receiver in OBJECT_PRONOUNS
    if is_given and owner not in ("i", "we", "you"):
        # "Ann gave him 3": he has more. "I gave him 3": I have less.
        return Transfer("plus", OWNER_OF[receiver], people, owner)
    source = _source(words, verb)
    passive = _passive(words, verb) if verb < number else ""
    if passive and kind in ("minus", "plus"):
        return Transfer(kind, owner, people, doubt=passive)  # "Tom was given 2."
    if base == "pick" and not source:
        return Transfer("", owner, people)  # What is picked is lost or gained.
    if kind == "minus":
        if base in TAKING and source and source not in ("they", "it"):
            return Transfer(kind, source, people, owner)
        actor = owner if base == "steal" and verb < number else ""
        return Transfer(kind, _possessor_of_part(words, number, owner), people, actor)
    if kind == "plus":
        if source in OWNER_OF.values() and source != "it":
            return Transfer("minus", source, people, owner)  # What another buys of him is lost.
        doubt = _receiver(words, verb, number) or _participle(words, number)
        return Transfer(kind, owner, people, doubt=doubt)
    return Transfer(kind, owner, people)


def _passive(words: Sequence[Word], verb: int) -> str:
    """Verb in the passive with its auxiliary, as in "was given"; "" for other verbs."""
    at = verb - 1
    while at >= 0 and words[at].lower in ADVERBS:
        at -= 1
    is_passive = at >= 0 and words[at].lower in BE and not words[verb].lower.endswith("ing")
    return f"{words[at].text} {words[verb].text}" if is_passive else ""


def _participle(words: Sequence[Word], number: int) -> str:
    """Verb behind what is counted, as in "got 2 nuts stolen"; "" where there is none."""
    for word in words[number + 2 : number + 4]:
        if not word.text.isalpha() or word.lower in STOPS:
            break
        if verb_forms().get(word.lower, ("",))[0] == "minus" and not word.lower.endswith("s"):
            return word.text
    return ""


def _people(words: Sequence[Word], verb: int) -> frozenset[str]:
    found: set[str] = set()
    for at in range(verb + 1, len(words)):
        word = words[at].lower
        if word in POSSESSIVES and (
            word != "her" or (at + 1 < len(words) and is_owner(words[at + 1]))
        ):
            continue
        found.add(word if word in ("them", "it") else OWNER_OF.get(word, word))
    return frozenset(found)


def _source(words: Sequence[Word], verb: int) -> str:
    """Owner behind "from"."""
    for at in range(verb + 1, len(words) - 1):
        if words[at].lower == "from":
            return person_after(words, at + 1)
    return ""


def _possessor_of_part(words: Sequence[Word], number: int, owner: str) -> str:
    """Who loses "2 of his nuts"; whoever has them loses "2 of them" and "2 of the nuts"."""
    part = [word.lower for word in words[number + 1 : number + 3]]
    if len(part) < 2 or part[0] != "of":
        return owner
    if part[1] in ("them", "these", "those", "the"):
        return ""
    return possessor(words[number + 2]) or owner


def _receiver(words: Sequence[Word], verb: int, number: int) -> str:
    """Words that name another who gets what is bought: "for Ben", "to his sister", "Ben two"."""
    for at in range(verb + 1, len(words) - 1):
        name = person_after(words, at + 1)
        told = words[at + 1]
        is_person = told.text[0].isupper() or told.lower in OBJECT_PRONOUNS
        is_person |= bool(KIN & set(name.split()))
        if name and (words[at].lower == "for" or (words[at].lower == "to" and is_person)):
            return f"{words[at].text} {told.text}"
    between = words[verb + 1 : number]
    if between and between[0].lower in PARTICLES:
        between = between[1:]
    if not between or between[0].lower in PURPOSES:
        return ""
    starts = is_owner(between[0]) or between[0].lower in POSSESSIVES or bool(possessor(between[0]))
    if starts and not between[0].lower.endswith("ly") and between[0].lower != "another":
        return between[0].text
    return ""
