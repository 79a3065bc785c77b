"""Outcomes of a question: the possible texts of each answer."""

import random
from collections.abc import Mapping
from dataclasses import replace

from probes.prompts.question import Question
from probes.prompts.template import Lexicon, Template


def possible_outcomes(
    lexicon: Lexicon, template: Template, slots: Mapping[str, int | str], answer: int | str
) -> tuple[str, ...]:
    """Possible answers: the correct one, that of the other operation, and copied words."""
    if isinstance(answer, int):
        x, y = int(slots["x"]), int(slots["y"])
        copied = [int(slots[slot]) for slot in template.slots if isinstance(slots[slot], int)]
        numbers = [answer, x - y, x + y, *copied]
        return tuple(dict.fromkeys(str(number) for number in numbers if number >= 0))
    nouns = [str(slots[s]) for s in template.slots if lexicon.kind_of(s) == "noun"]
    others = [word for word in lexicon.words("noun") if word not in nouns]
    # A noun that does not occur in the question, chosen by its slots.
    spare = random.Random(str(sorted(slots.items()))).choice(others)
    return tuple(dict.fromkeys([str(answer), *nouns, spare]))


def has_distinct_outcomes(question: Question) -> bool:
    """Whether the number outcomes differ and the answer is not 1."""
    answers = dict(question.answers)
    numbers = dict(question.outcomes).get("number", ())
    slots = dict(question.slots)
    return answers.get("number") != "1" and slots.get("y") != 0 and len(numbers) >= 3


def share_outcomes(other: Question, question: Question) -> Question:
    """A question with the outcomes of another added, its own answer first."""
    added = dict(question.outcomes)
    outcomes = [(name, tuple(dict.fromkeys(texts + added[name]))) for name, texts in other.outcomes]
    return replace(other, outcomes=tuple(outcomes))
