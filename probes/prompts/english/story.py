"""Number stories: free English that has an amount, changes it once, and asks what is there.

A story is read by rules and word lists. It is matched only where one reading is left: one amount
of what is asked, one change of it, and a question for the rest.
"""

from dataclasses import dataclass

from probes.errors import MatchError
from probes.prompts.english.amounts import (
    Amount,
    has_unknown_amount,
    noun_phrase,
    read_amounts,
)
from probes.prompts.english.checks import (
    condition_word,
    unknown_place,
    unnumbered_change,
    unreadable_number,
    unreal_words,
)
from probes.prompts.english.choice import Question, choose, unmatched
from probes.prompts.english.owners import asked_owner
from probes.prompts.english.sentences import Word, split_words
from probes.prompts.english.words import NO_REMAINDER, REMAINDER, verb_forms


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
    ask, end = _find_question(text, words)
    question, told = words[ask:end], (*words[:ask], *words[end:])
    _check_words(text, told, question, words[:ask])
    noun, noun_span = noun_phrase(question, 2)
    asked = {word.lower for word in question}
    if asked & NO_REMAINDER or _names_two(question, noun_span):
        raise unmatched(text, "a question for what is there after the change")
    amounts = read_amounts(told)
    _check_remainder(text, question, asked)
    owner = asked_owner(question)
    have, change = choose(text, told, amounts, Question(question, owner, noun))
    if has_unknown_amount(told, noun or have.noun):
        raise unmatched(text, "a number for each amount, without 'some' and 'each'")
    place = unknown_place(told, question)
    if place is not None:
        raise unmatched(text, f"an amount in the place that is asked about, {place!r}")
    undone = unnumbered_change(told)
    if undone is not None:
        raise unmatched(text, "a number for each change", f"{undone!r} without one")
    story = Story(
        have, change, noun or have.noun, owner, (words[ask].start, words[ask + 1].end), noun_span
    )
    if story.result < 0:
        raise unmatched(text, f"a change of at most {have.value}, not {change.value}")
    return story


def _find_question(text: str, words: tuple[Word, ...]) -> tuple[int, int]:
    """Indices of "how" in the last question and of what follows that question."""
    asks = [
        at
        for at in range(len(words) - 1)
        if words[at].lower == "how" and words[at + 1].lower in ("many", "much", "long")
    ]
    if not asks:
        raise unmatched(text, "a question with 'how many' or 'how much'")
    ask = asks[-1]
    if any(word.text == "?" for word in words[:ask]):
        raise unmatched(text, "one question, the last sentence", "another before it")
    ends = (at for at in range(ask, len(words)) if words[at].lower in ("?", ".", "if", "when"))
    return ask, next(ends, len(words))


def _check_words(
    text: str, told: tuple[Word, ...], question: tuple[Word, ...], before: tuple[Word, ...]
) -> None:
    """Refuse numbers that are not whole, and what did not happen or is not certain."""
    number = unreadable_number(text, (*told, *question))
    if number is not None:
        raise MatchError(
            f"No number story in {text[:160]!r}: {number[:40]!r} is not a whole number that "
            "can be read. Write each number as digits (7 or 1,000) or as a word up to ninety-nine, "
            "without a sign, a fraction, % or units"
        )
    unreal = unreal_words(told, question) or condition_word(before)
    if unreal is not None:
        raise MatchError(
            f"No number story in {text[:160]!r}: {unreal!r} says that something is not so, or not "
            "sure. Tell only what happens, with exact numbers, and ask for what is there"
        )


def _names_two(question: tuple[Word, ...], noun_span: tuple[int, int] | None) -> bool:
    """Whether a question asks for "tomatoes and potatoes" together."""
    end = noun_span[1] if noun_span else -1
    after = next((word.lower for word in question if word.start >= end >= 0), "")
    return after in ("and", "or")


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
    raise unmatched(text, "a question for what is there after the change")
