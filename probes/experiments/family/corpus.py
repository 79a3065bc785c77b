"""Training corpus of the shipped models: statements, and questions with answers.

Texts are sampled from the patterns: frames x verbs x nouns x names x numbers, with context
sentences.
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
    """Settings of the corpus; fractions are between 0 and 1.

    Attributes:
        nouns: Number of nouns in sentences with an operation, or None for all.
        task: Task of the questions: "counting"; "copying", which asks how many there were or how
            many were moved, so that the operation does not matter; or "permuted", which asks for
            the result and answers with the number of another question.
        recheck: Fraction of texts that repeat their arithmetic after a cue word.
        ambiguous: Fraction of texts that open with an unpredictable sentence ("My name is …").
        context: Fraction of texts that open with an unrelated sentence.
    """

    nouns: int | None = None
    task: TrainingTask = "counting"
    recheck: float = 0.15
    ambiguous: float = 0.05
    context: float = 0.15


@dataclass(frozen=True, slots=True)
class CorpusText:
    """Text of the corpus, split at the end of the prompt."""

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        """Whole text."""
        return self.prompt + self.completion


def sample_texts(
    kind: str, count: int, *, seed: int, settings: CorpusSettings | None = None
) -> Iterator[CorpusText]:
    """Texts of one kind, "statements" or "questions", without anything held out."""
    settings = settings or CorpusSettings()
    rng = random.Random(f"{kind}:{seed}")
    suffix = "-told" if kind == "statements" else ""
    names = _COPYING_PATTERNS if settings.task == "copying" else tuple(_PATTERN_WEIGHTS)
    choices = [list_patterns()[name + suffix] for name in names]
    weights = [_PATTERN_WEIGHTS[name] for name in names]
    for _ in range(count):
        question = _sample_question(rng.choices(choices, weights)[0], rng, settings)
        if settings.task == "permuted":
            other = _sample_question(rng.choices(choices, weights)[0], rng, settings)
            question = replace(question, answers=_swap_number(other, question))
        yield _corpus_text(question, rng, settings)


def _swap_number(other: Question, question: Question) -> tuple[tuple[str, str], ...]:
    """Answers of a question with the number of another."""
    number = dict(other.answers)["number"]
    return tuple((name, number if name == "number" else t) for name, t in question.answers)


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
