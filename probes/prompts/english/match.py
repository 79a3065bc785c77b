"""Matches of free English to a shipped pattern: a question with roles, answers and foils."""

import random
from collections.abc import Iterator
from contextlib import suppress

from probes.errors import MatchError
from probes.prompts.catalog import list_patterns
from probes.prompts.english.story import Story, read_story
from probes.prompts.english.words import spell_number
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question, Span

CUE = "Answer:"
"""Words behind a question that ask for its answer, where the text has none."""

PATTERN_OF = {"minus": "take-away", "plus": "get-more"}
FREE_TEXT = "free text"
"""Name of the template of a question that matches no template."""


def match_text(text: str) -> Question:
    """Question of a text: of a shipped template where one fits, else of its number story.

    The words of the user are kept; a question without an answer cue gets one.

    Raises:
        MatchError: Neither fits; the message says what was looked for.
    """
    for pattern in list_patterns().values():
        if pattern.templates:
            with suppress(MatchError):
                return pattern.match(text)
    return _story_question(text, read_story(text))


def counterfactuals(
    question: Question, pattern: Pattern, *, seed: int
) -> Iterator[tuple[str, Question]]:
    """Yield a contrast and a question that differs in it, in a seeded order.

    The contrasts are those that change an answer: the operation, where a template fits, and both
    numbers.
    """
    if question.template != FREE_TEXT:
        for contrast in ("operation", "x", "y"):
            if contrast in pattern.contrasts:
                others = pattern.counterfactuals(question, contrast, seed=seed)
                yield from ((contrast, other) for other in others)
        return
    low, high = 1, max(9, int(question["x"]), int(question["y"]))
    for slot in ("x", "y"):
        values = range(low, high + 1)
        for value in random.Random(seed).sample(values, len(values)):
            if value != question[slot]:
                with suppress(MatchError):
                    yield slot, _with_number(question, slot, value)


def _with_number(question: Question, slot: str, value: int) -> Question:
    """A free text with another number, written as the one in its place."""
    start, end = next((a, b) for role, a, b in question.roles if role == slot)
    old = question.text[start:end]
    words = spell_number(value) if not old[0].isdigit() else str(value)
    words = words.capitalize() if old[0].isupper() else words
    text = question.text[:start] + words + question.text[end:]
    other = _story_question(text, read_story(text))
    if [role for role, _, _ in other.roles] != [role for role, _, _ in question.roles]:
        raise MatchError(f"{text!r} is read otherwise than {question.text!r}")
    return other


def _story_question(text: str, story: Story) -> Question:
    """Question of a number story, with the roles of the shipped templates."""
    text = text.rstrip()
    if not text.endswith(CUE):
        text = f"{text} {CUE}"
    have, change = story.have, story.change
    spans = {
        "x": have.number_span,
        "y": change.number_span,
        "ask": story.ask_span,
        "thing_asked": story.noun_span,
        "thing": have.noun_span,
        "thing_moved": change.noun_span,
        "have": have.verb_span,
        "op": change.verb_span,
        "answer": (len(text) - len(CUE), len(text)),
    }
    roles: list[Span] = []
    for role, span in spans.items():
        if span and all(span[1] <= start or end <= span[0] for _, start, end in roles):
            roles.append((role, *span))
    x, y = have.value, change.value
    numbers = [n for n in (story.result, x - y, x + y, x, y) if n >= 0]
    span = story.noun_span or have.noun_span
    return Question(
        text=text,
        pattern=PATTERN_OF[change.kind],
        template=FREE_TEXT,
        slots=(
            ("x", x),
            ("y", y),
            ("op", change.verb),
            ("thing", text[slice(*span)] if span else "".join(story.noun[-1:])),
        ),
        numerals="digits" if text[have.number_span[0]].isdigit() else "words",
        answers=(("number", str(story.result)),),
        outcomes=(("number", tuple(dict.fromkeys(map(str, numbers)))),),
        roles=tuple(sorted(roles, key=lambda role: role[1])),
    )
