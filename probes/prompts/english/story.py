"""Number stories: free English that has an amount, changes it once, and asks what is there.

A story is read by rules and word lists. It is matched only where one reading is left: one amount
of what is asked, one change of it, and a question for the rest.
"""

from dataclasses import dataclass
from itertools import pairwise

from probes.errors import MatchError
from probes.prompts.english.amounts import (
    Amount,
    Word,
    has_unknown_amount,
    noun_phrase,
    read_amounts,
    split_words,
)
from probes.prompts.english.words import (
    AUXILIARIES,
    MONEY,
    NO_REMAINDER,
    PRONOUNS,
    REMAINDER,
    verb_forms,
)


@dataclass(frozen=True, slots=True)
class Story:
    """Reading of a text: what there is, the change, and the question.

    Attributes:
        have: The amount before the change.
        change: The change, of the kind "minus" or "plus".
        noun: What is asked about, singular; empty for "how much is left".
        owner: Owner in the question, in lower case; "" where none is named.
        ask_span, noun_span: Characters of "how many" and of the noun in the question.
    """

    have: Amount
    change: Amount
    noun: tuple[str, ...]
    owner: str
    ask_span: tuple[int, int]
    noun_span: tuple[int, int] | None

    @property
    def result(self) -> int:
        """What is there after the change."""
        x, y = self.have.value, self.change.value
        return x - y if self.change.kind == "minus" else x + y


def read_story(text: str) -> Story:
    """Reading of a text.

    Raises:
        MatchError: There is no reading, or more than one; the message says what was looked for.
    """
    words = split_words(text)
    ask = next(
        (
            at
            for at in range(len(words) - 2, -1, -1)
            if words[at].lower == "how" and words[at + 1].lower in ("many", "much", "long")
        ),
        None,
    )
    if ask is None:
        raise _unmatched(text, "a question with 'how many' or 'how much'")
    end = next(
        (at for at in range(ask, len(words)) if words[at].lower in ("?", ".", "if", "when")),
        len(words),
    )
    question, told = words[ask:end], (*words[:ask], *words[end:])
    noun, noun_span = noun_phrase(question, 2)
    asked = {word.lower for word in question}
    if asked & NO_REMAINDER or _names_two(question, noun_span):
        raise _unmatched(text, "a question for what is there after the change")
    amounts = read_amounts(told)
    owner = _asked_owner(question)
    _check_remainder(text, question, asked)
    have, change = _choose(text, amounts, noun, owner)
    if has_unknown_amount(told, noun or have.noun):
        raise _unmatched(text, "a number for each amount, without 'some' and 'each'")
    story = Story(
        have, change, noun or have.noun, owner, (words[ask].start, words[ask + 1].end), noun_span
    )
    if story.result < 0:
        raise _unmatched(text, f"a change of at most {have.value}, not {change.value}")
    return story


def _names_two(question: tuple[Word, ...], noun_span: tuple[int, int] | None) -> bool:
    """Whether a question asks for "tomatoes and potatoes" together."""
    end = noun_span[1] if noun_span else -1
    after = next((word.lower for word in question if word.start >= end >= 0), "")
    return after in ("and", "or")


def _unmatched(text: str, expected: str) -> MatchError:
    return MatchError(f"No number story in {text[:160]!r}: looked for {expected}, and found none")


def _asked_owner(question: tuple[Word, ...]) -> str:
    """Owner in a question: "does Tom have", "do I have"."""
    for before, word in pairwise(question):
        if before.lower in AUXILIARIES and word.lower not in REMAINDER:
            if word.lower in PRONOUNS or word.text[0].isupper():
                return word.lower
            return ""
    return ""


def _check_remainder(text: str, question: tuple[Word, ...], asked: set[str]) -> None:
    """Refuse questions for the change itself ("how many did he eat") and for the past."""
    words = [word.lower for word in question]
    main = [word for word in words[2:] if verb_forms().get(word, ("",))[0] in ("minus", "plus")]
    past = "did" in asked or "had" in asked
    if asked & (REMAINDER - {"then"}) and not (main and past and not asked & {"left"}):
        if not main or asked & {"still", "left"}:
            return
    elif not main and not past and asked & {"have", "has", "are", "is", "own", "be"}:
        return
    raise _unmatched(text, "a question for what is there after the change")


def _choose(
    text: str, amounts: list[Amount], noun: tuple[str, ...], owner: str
) -> tuple[Amount, Amount]:
    """The one amount and the one change of what is asked."""
    own = [amount for amount in _of_owner(amounts, owner) if _is_same(amount, noun, amounts)]
    if any(not amount.kind for amount in own):
        raise _unmatched(text, "a known verb for each number of what is asked about")
    changes = [amount for amount in own if amount.kind in ("minus", "plus")]
    haves = [amount for amount in own if amount.kind == "have"]
    if not haves and len(changes) == 2 and changes[0].kind == "plus":
        # "She received 7 dollars and spent 5": what was received is what there is.
        haves, changes = changes[:1], changes[1:]
    for found, what in ((haves, "one amount"), (changes, "one change of it")):
        if len(found) != 1:
            counted = " ".join(noun) or "what is asked about"
            raise MatchError(
                f"No number story in {text[:160]!r}: looked for {what} of {counted!r}, and found "
                f"{len(found) or 'none'}"
            )
    return haves[0], changes[0]


def _of_owner(amounts: list[Amount], owner: str) -> list[Amount]:
    """Amounts without those of another named owner; a pronoun is the last name before it."""
    kept, last = [], ""
    for amount in amounts:
        named = amount.owner and amount.owner not in PRONOUNS
        last = amount.owner if named else last
        holder = amount.owner if named else last
        if not owner or owner in PRONOUNS or not holder or holder == owner:
            kept.append(amount)
    return kept


def _is_same(amount: Amount, noun: tuple[str, ...], amounts: list[Amount]) -> bool:
    """Whether an amount counts what is asked about; "5 more" counts what was counted before."""
    if not amount.noun:
        before = [other for other in amounts[: amounts.index(amount)] if other.noun]
        return not before or not noun or _is_same(before[-1], noun, amounts)
    if not noun:
        return True
    if amount.noun[-1] != noun[-1] and not {amount.noun[-1], noun[-1]} <= MONEY:
        return False
    # With "sweet cookies" and "salty cookies", the question says which.
    kinds = {other.noun[:-1] for other in amounts if other.noun and other.noun[-1] == noun[-1]}
    return len(kinds - {()}) < 2 or amount.noun[:-1] == noun[:-1] or not amount.noun[:-1]
