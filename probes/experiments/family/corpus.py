"""The corpus of the embedded family: statements first, then questions with answers.

All of it is written from the patterns: frames x verbs x nouns x names x numbers, with sentences
around them. The dials are what later experiments turn.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from probes.prompts.catalog import list_patterns
from probes.prompts.held_out import family_split
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question

TrainingTask = Literal["counting", "copying", "permuted"]

CUES = ("Wait", "Hmm", "So")

_PATTERN_WEIGHTS = {
    "take-away": 0.30,
    "get-more": 0.24,
    "distractor": 0.08,
    "distractor-more": 0.07,
    "two-owners": 0.07,
    "two-owners-more": 0.06,
    "copy": 0.03,
    "copy-more": 0.03,
    "taken": 0.03,
    "gotten": 0.03,
    "bystander": 0.03,
    "bystander-more": 0.03,
}

_COPYING_PATTERNS = ("copy", "copy-more", "taken", "gotten", "bystander", "bystander-more")


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """What may be turned in the corpus; every share is between 0 and 1.

    Attributes:
        nouns: How many nouns stand in sentences with an operation, or None for all.
        recheck: Share of items whose answer is checked again after a cue word.
        ambiguous: Share of items that open with a sentence whose end cannot be known
            ("My name is …").
        context: Share of items that open with a sentence that has nothing to do with them.
        task: What the questions train: "counting"; "copying" asks only how many there were or
            how many were moved, so that the operation does not matter; "permuted" counts, but
            answers with the number of another question.
    """

    nouns: int | None = None
    task: TrainingTask = "counting"
    recheck: float = 0.15
    ambiguous: float = 0.05
    context: float = 0.15


@dataclass(frozen=True, slots=True)
class CorpusText:
    """One text of the corpus, split where the prompt ends and the answers start."""

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        """The whole text."""
        return self.prompt + self.completion


def sample_texts(
    kind: str, count: int, *, seed: int, settings: CorpusSettings | None = None
) -> Iterator[CorpusText]:
    """Write items of one kind, "statements" or "questions"; nothing held out is among them."""
    settings = settings or CorpusSettings()
    rng = random.Random(f"{kind}:{seed}")
    suffix = "-told" if kind == "statements" else ""
    shares = {
        n: s
        for n, s in _PATTERN_WEIGHTS.items()
        if settings.task != "copying" or n in _COPYING_PATTERNS
    }
    choices = [list_patterns()[name + suffix] for name in shares]
    weights = list(shares.values())
    for _ in range(count):
        question = _sample_question(rng.choices(choices, weights)[0], rng, settings)
        if settings.task == "permuted":
            other = _sample_question(rng.choices(choices, weights)[0], rng, settings)
            question = replace(question, answers=_swap_number(other, question))
        yield _corpus_text(question, rng, settings)


def _swap_number(other: Question, question: Question) -> tuple[tuple[str, str], ...]:
    """Return the answers of a question with the number of another."""
    theirs = dict(other.answers)
    return tuple((name, theirs[name] if name == "number" else t) for name, t in question.answers)


def _sample_question(pattern: Pattern, rng: random.Random, settings: CorpusSettings) -> Question:
    split = family_split()
    nouns = pattern.lexicon.words("noun")[: settings.nouns]
    while True:
        fixed = None if settings.nouns is None else {"thing": rng.choice(nouns)}
        question = pattern.sample_question(rng, fixed=fixed)
        if question is not None and split.in_training(question):
            return question


def _corpus_text(question: Question, rng: random.Random, settings: CorpusSettings) -> CorpusText:
    lexicon = list_patterns()[question.pattern].lexicon
    before = ""
    if rng.random() < settings.ambiguous:
        before = f"My name is {rng.choice(lexicon.words('name'))}. "
    elif rng.random() < settings.context:
        before = rng.choice(lexicon.words("filler")) + " "
    after = "".join(f" {text}" for _, text in question.answers) + "."
    if rng.random() < settings.recheck and settings.task == "counting":
        after += _recheck(question, rng)
    return CorpusText(before + question.text, after)


def _recheck(question: Question, rng: random.Random) -> str:
    pattern = list_patterns()[question.pattern]
    x, y = int(question["x"]), int(question["y"])
    word, result = ("less", x - y) if pattern.operation == "minus" else ("and", x + y)
    return f" {rng.choice(CUES)}, {x} {word} {y} is {result}."
