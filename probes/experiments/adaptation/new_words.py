"""New words: words in no training text, texts that teach one, and questions that test it."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from probes.compression.derived_model import DerivedModel
from probes.errors import ModelError, PatternError
from probes.experiments.family.corpus import sample_texts
from probes.prompts.catalog import pattern as load_pattern
from probes.prompts.held_out import family_split
from probes.prompts.interchange_pairs import OBJECT
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import Batch, tokenize
from probes.prompts.tokens.pair_batch import tokenizable_by
from probes.prompts.tokens.special_tokens import special_prefix

TUNING_WORDS = 3
"""Number of words that choose the learning rate."""

LEARNING_RATES = (3e-5, 1e-4, 2e-4, 4e-4, 7e-4, 1e-3, 2e-3)

_CORPUS_TEXTS = 400


@dataclass(frozen=True, slots=True)
class AdaptationSettings:
    """Settings of adaptation.

    Attributes:
        patterns: Names of the patterns of texts and questions.
        texts: Number of training texts about a word.
        batch: Texts in each step.
        rates: Learning rates to try.
        max_steps: Most steps.
        held_out: Test questions about the word, and as many about known nouns.
        seed: Seed of embeddings, texts and their order.
    """

    patterns: Sequence[str] = ("take-away", "get-more")
    texts: int = 32
    batch: int = 8
    rates: Sequence[float] = LEARNING_RATES
    max_steps: int = 128
    held_out: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.texts, self.batch, self.max_steps, self.held_out)
        if min(sizes) < 1 or not self.rates or min(self.rates) <= 0:
            raise ModelError(
                f"{self.texts} texts in batches of {self.batch}, {self.max_steps} steps, "
                f"{self.held_out} questions, rates {tuple(self.rates)}: give 1 or more of each, "
                "and rates above 0"
            )


def unused_words(
    tokenizer: Any,  # noqa: ANN401
    known: set[int] | None = None,
) -> tuple[str, ...]:
    """Lower-case words of one token that are in no text of the corpus."""
    known = _known_tokens(tokenizer) if known is None else known
    words = []
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        word = text[1:]
        if token in known or not text.startswith(" ") or len(word) < 2 or not word.islower():
            continue
        if word.isalpha() and token_ids(tokenizer, text) == [token]:
            words.append(word)
    return tuple(words)


def _known_tokens(tokenizer: Any) -> set[int]:  # noqa: ANN401
    """Tokens of a sample of the corpus, and of the lexicon."""
    texts = [
        item.text
        for kind in ("statements", "questions")
        for item in sample_texts(kind, _CORPUS_TEXTS, seed=0)
    ]
    # Rare words may be in none of these texts.
    words = [word for _, some in load_pattern("take-away").lexicon.choices for word in some]
    rows = tokenizer([*texts, *(f" {word}" for word in words)], add_special_tokens=False)
    return {token for row in rows.input_ids for token in row}


def token_ids(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401
    """Tokens of a text, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def check_words(words: Sequence[str], tokenizer: Any) -> None:  # noqa: ANN401
    """Refuse words that are too few, known, or not one token.

    Raises:
        PatternError: They are.
    """
    if len(set(words)) < TUNING_WORDS + 1:
        raise PatternError(
            f"There are {len(set(words))} new words: {TUNING_WORDS} choose the learning rate and "
            "the others are tested, so give more"
        )
    known = _known_tokens(tokenizer)
    for word in words:
        ids = token_ids(tokenizer, f" {word}")
        if len(ids) != 1 or ids[0] in known:
            why = "in the training texts" if set(ids) <= known else f"{len(ids)} tokens long"
            raise PatternError(
                f"{word!r} is {why}: give words of one token that are in no text, such as "
                f"{', '.join(unused_words(tokenizer, known)[:4]) or 'those of a larger tokenizer'}"
            )


@dataclass(frozen=True, eq=False)
class NewWord:
    """Training texts and test questions of a word.

    Attributes:
        noun, token: The word and its token.
        rows: Token ids of the training texts.
        word_questions, other_questions: Test questions about the word, and about known nouns.
        seed: Seed of its embedding and of the order of texts.
    """

    noun: str
    token: int
    rows: tuple[tuple[int, ...], ...]
    word_questions: Batch
    other_questions: Batch
    seed: int


def prepare_word(
    model: DerivedModel, noun: str, settings: AdaptationSettings, *, seed: int
) -> NewWord:
    """Sample training texts and test questions of a word.

    Those of one pattern share no pair of numbers.
    """
    patterns = [load_pattern(name) for name in settings.patterns]
    tokenizer, rng = model.tokenizer, random.Random(f"{seed}:{noun}")
    training: dict[tuple[str, Any, Any], Question] = {}
    samples = _sample_questions(patterns, noun, tokenizer, rng)
    while len(training) < settings.texts:
        question = next(samples)
        training.setdefault((question.pattern, question["x"], question["y"]), question)
    test: list[Question] = []
    while len(test) < settings.held_out:
        question = next(samples)
        if (question.pattern, question["x"], question["y"]) not in training:
            test.append(question)
    known = sorted(set(patterns[0].lexicon.words("noun")) - family_split().nouns)
    others = [
        next(_sample_questions(patterns, rng.choice(known), tokenizer, rng))
        for _ in range(settings.held_out)
    ]
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    rows = [
        (*special_prefix(tokenizer), *token_ids(tokenizer, q.full_text + "."), *eos)
        for q in training.values()
    ]
    return NewWord(
        noun=noun,
        token=token_ids(tokenizer, f" {noun}")[0],
        rows=tuple(rows),
        word_questions=tokenize(tokenizer, test),
        other_questions=tokenize(tokenizer, others),
        seed=seed,
    )


def _sample_questions(
    patterns: Sequence[Pattern],
    noun: str,
    tokenizer: Any,  # noqa: ANN401
    rng: random.Random,
) -> Iterator[Question]:
    """Questions about a noun in which nothing else is held out."""
    is_tokenizable = tokenizable_by(tokenizer)
    while True:
        question = rng.choice(patterns).sample_question(rng, fixed={OBJECT: noun})
        if question is None or not family_split().in_training(question):
            continue
        if is_tokenizable(question):
            yield question
