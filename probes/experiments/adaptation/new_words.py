"""Words that a model never saw, the few texts that teach one, and the questions that judge it."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from probes.compression.derived_model import DerivedModel
from probes.errors import PatternError
from probes.experiments.family.corpus import sample_texts
from probes.prompts.batch import Batch, tokenize
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.held_out import family_split
from probes.prompts.interchange_pairs import OBJECT
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.special_tokens import special_prefix

TUNING_WORDS = 3
"""How many of the words the learning rate is chosen by."""

_CORPUS_TEXTS = 400


def unused_words(
    tokenizer: Any,  # noqa: ANN401
    known: set[int] | None = None,
) -> tuple[str, ...]:
    """List the words of one token, in lower case, that stand in no text of the corpus."""
    known = _known_tokens(tokenizer) if known is None else known
    found = []
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        word = text[1:]
        if token in known or not text.startswith(" ") or len(word) < 2 or not word.islower():
            continue
        if word.isalpha() and token_ids(tokenizer, text) == [token]:
            found.append(word)
    return tuple(found)


def _known_tokens(tokenizer: Any) -> set[int]:  # noqa: ANN401
    """Return the tokens of a good part of the corpus, and of every noun."""
    texts = [
        item.text
        for k in ("statements", "questions")
        for item in sample_texts(k, _CORPUS_TEXTS, seed=0)
    ]
    # Words that are drawn seldom may stand in none of these.
    words = [word for _, some in find_pattern("take-away").lexicon.choices for word in some]
    rows = tokenizer([*texts, *(f" {word}" for word in words)], add_special_tokens=False)
    return {token for row in rows.input_ids for token in row}


def token_ids(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401
    """Return the tokens of a text, none added."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def check_words(words: Sequence[str], tokenizer: Any) -> None:  # noqa: ANN401
    """Refuse words that are too few, known, or not one token.

    Raises:
        PatternError: They are so.
    """
    if len(set(words)) < TUNING_WORDS + 1:
        raise PatternError(
            f"{len(set(words))} new words were found: {TUNING_WORDS} choose the learning rate and the "
            "others are judged, so give more"
        )
    known = _known_tokens(tokenizer)
    for word in words:
        ids = token_ids(tokenizer, f" {word}")
        if len(ids) != 1 or ids[0] in known:
            why = "known to it" if set(ids) <= known else f"{len(ids)} tokens long"
            raise PatternError(
                f"{word!r} is {why}: give words of one token that stand in no text, such as "
                f"{', '.join(unused_words(tokenizer, known)[:4]) or 'those of a larger tokenizer'}"
            )


@dataclass(frozen=True, eq=False)
class NewWord:
    """What a word is taught and judged by.

    Attributes:
        noun, token: The word.
        rows: Token ids of the texts to learn from.
        about, others: Held-out questions about it, and questions about nouns that are known.
        batch, most: Texts of one step, and the most steps.
        seed: Of its row and of the order.
    """

    noun: str
    token: int
    rows: tuple[tuple[int, ...], ...]
    word_questions: Batch
    other_questions: Batch
    batch: int
    max_steps: int
    seed: int


def prepare_word(
    model: DerivedModel,
    patterns: Sequence[Pattern],
    noun: str,
    sizes: tuple[int, int, int, int],
    seed: int,
) -> NewWord:
    """Draw the texts and the questions of a word; `sizes` as `adapt` names them."""
    texts, batch, most, held_out = sizes
    tokenizer, rng = model.tokenizer, random.Random(f"{seed}:{noun}")
    learned: dict[tuple[str, Any, Any], Question] = {}
    draws = _sample_questions(patterns, noun, tokenizer, rng)
    while len(learned) < texts:
        question = next(draws)
        learned.setdefault((question.pattern, question["x"], question["y"]), question)
    judged: list[Question] = []
    while len(judged) < held_out:
        question = next(draws)
        if (question.pattern, question["x"], question["y"]) not in learned:
            judged.append(question)
    known = sorted(set(patterns[0].lexicon.words("noun")) - family_split().nouns)
    others = [
        next(_sample_questions(patterns, rng.choice(known), tokenizer, rng))
        for _ in range(held_out)
    ]
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    rows = [
        (*special_prefix(tokenizer), *token_ids(tokenizer, q.full_text + "."), *eos)
        for q in learned.values()
    ]
    token = token_ids(tokenizer, f" {noun}")[0]
    about, apart = tokenize(tokenizer, judged), tokenize(tokenizer, others)
    return NewWord(noun, token, tuple(rows), about, apart, batch, most, seed)


def _sample_questions(
    patterns: Sequence[Pattern],
    noun: str,
    tokenizer: Any,  # noqa: ANN401
    rng: random.Random,
) -> Iterator[Question]:
    """Draw questions about a noun that hold nothing else that was held out."""
    tells = tokenizable_by(tokenizer)
    while True:
        question = rng.choice(patterns).sample_question(rng, fixed={OBJECT: noun})
        if question is not None and family_split().in_training(question) and tells(question):
            yield question
