"""Texts with a cue word, tokenized so that only the cue differs."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from probes.errors import BatchError, OutcomeError, TokenizerError
from probes.prompts.question import Question
from probes.prompts.tokens.special_tokens import special_prefix

GivenAnswer = Literal["right", "wrong"]
"""Answer before the cue, as if the model had written it."""

FULL_STOP = "."

_SPACE_MARKERS = "Ġ▁ "


@dataclass(frozen=True, slots=True)
class CueItem:
    """Text to continue after a cue.

    Attributes:
        prompt: Prompt, without a space at its end.
        answers: Answers that count as correct when they are parsed from the model's text.
        right: Right answer as text; by default the first of `answers`.
        wrong: Wrong answer as text; needed only if it is given.
        continuation: Text between the comma of the cue and the readout; may be empty.
    """

    prompt: str
    answers: tuple[str, ...] = ()
    right: str = ""
    wrong: str = ""
    continuation: str = ""

    def stem(self, given_answer: GivenAnswer) -> str:
        """Prompt with the given answer, if there is one, and a full stop."""
        text = self.right or next(iter(self.answers), "")
        if given_answer == "wrong":
            text = self.wrong
            if not text:
                raise OutcomeError(f"{self.prompt!r} has no wrong answer: give the item `wrong`")
        return end_sentence(f"{self.prompt} {text}" if text else self.prompt)


def end_sentence(text: str) -> str:
    """Text that ends with a full stop."""
    return text if text.endswith(FULL_STOP) else text + FULL_STOP


CueText = CueItem | Question | str


def to_cue_items(texts: Sequence[CueText], *, seed: int = 0) -> tuple[CueItem, ...]:
    """Items of questions and plain texts.

    The wrong answer to a question is sampled from its other outcomes (such as the sum for a
    difference) and from the neighbors of the right number.
    """
    if not texts:
        raise BatchError("There is no text: give at least one")
    return tuple(_to_cue_item(text, seed) for text in texts)


def _to_cue_item(text: CueText, seed: int) -> CueItem:
    if isinstance(text, CueItem):
        return text
    if isinstance(text, str):
        return CueItem(text)
    named = next(((name, a) for name, a in text.answers if a.isdecimal()), None)
    if named is None:
        raise OutcomeError(
            f"The answers of {text.text!r} are {dict(text.answers)}, and a number is needed: make "
            "a CueItem of it"
        )
    name, number = named
    others = {other for other in dict(text.outcomes)[name] if other.isdecimal()}
    others |= {str(int(number) + step) for step in (-1, 1) if int(number) + step >= 0}
    wrong_number = random.Random(f"{seed}:{text.text}").choice(sorted(others - {number}))
    right, wrong = (
        " ".join(value if n == name else a for n, a in text.answers)
        for value in (number, wrong_number)
    )
    return CueItem(text.text, (number,), right, wrong)


@dataclass(frozen=True, slots=True)
class CueTokens:
    """Token ids of texts and cues.

    Attributes:
        stems: Each text up to the full stop before the cue.
        prompts: Number of tokens of each stem that belong to the prompt.
        words: Tokens of each cue, equally many.
        tail: Tokens of the comma.
        continuations: Tokens of each text after the comma.
    """

    stems: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]
    words: tuple[tuple[int, ...], ...]
    tail: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    def rows(self, words: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """Tokens of the texts, each with a cue of its own."""
        parts = zip(self.stems, words, self.continuations, strict=True)
        return [[*stem, *word, *self.tail, *continuation] for stem, word, continuation in parts]


def tokenize_cues(
    tokenizer: Any,  # noqa: ANN401 (any fast tokenizer)
    items: Sequence[CueItem],
    stems: Sequence[str],
    cues: Sequence[str],
) -> CueTokens:
    """Tokens of texts and cues; only the tokens of the cue differ between cues.

    Args:
        tokenizer: Fast tokenizer.
        items: Texts.
        stems: Prompt of each item with its answer, up to the full stop.
        cues: Cue words.

    Raises:
        TokenizerError: The cues have unequal numbers of tokens, or the tokens of a cue depend on
            the text.
    """
    if tokenizer is None:
        raise TokenizerError("The model came without a tokenizer: load it with one")
    if not cues or len(set(cues)) < len(cues):
        raise OutcomeError(f"The cues are {', '.join(cues) or 'missing'}: give different words")

    def tokens(texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [tuple(row) for row in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    prompt_ids, stem_ids = tokens([item.prompt for item in items]), tokens(stems)
    _strip_prefixes(prompt_ids, stem_ids, "its answer")
    endings = [f" {item.continuation}" if item.continuation else "" for item in items]
    by_cue = {}
    for cue in cues:
        words = tokens([f"{stem} {cue}" for stem in stems])
        commas = tokens([f"{stem} {cue}," for stem in stems])
        whole = tokens([f"{stem} {cue},{end}" for stem, end in zip(stems, endings, strict=True)])
        word, tail = _strip_prefixes(stem_ids, words, cue), _strip_prefixes(words, commas, ",")
        continuations = _strip_prefixes(commas, whole, "the text after the cue")
        if len(set(word)) > 1 or len(set(tail)) > 1:
            raise TokenizerError(f"The tokens of {cue!r} depend on the text: choose another cue")
        by_cue[cue] = word[0], tail[0], tuple(continuations)
    if len({(len(word), *rest) for word, *rest in by_cue.values()}) > 1:
        counts = ", ".join(f"{cue!r} {len(word)}" for cue, (word, *_) in by_cue.items())
        raise TokenizerError(
            f"The numbers of tokens of the cues differ: {counts}. A longer cue would give the "
            "model more steps: choose words of one length"
        )
    _, tail, continuations = by_cue[cues[0]]
    start = special_prefix(tokenizer)
    return CueTokens(
        stems=tuple(start + stem for stem in stem_ids),
        prompts=tuple(len(start) + len(prompt) for prompt in prompt_ids),
        words=tuple(word for word, *_ in by_cue.values()),
        tail=tail,
        continuations=continuations,
    )


def sample_random_words(
    tokenizer: Any,  # noqa: ANN401
    words: Sequence[tuple[int, ...]],
    count: int,
    *,
    seed: int,
) -> list[tuple[int, ...]]:
    """Random words in place of a cue, with as many tokens.

    Each token of letters is replaced by another one, with a space before it and a capital where
    the first cue has them. No token of a cue is sampled.
    """
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    excluded = {*tokenizer.all_special_ids, *(token for word in words for token in word)}
    by_shape: dict[tuple, list[int]] = {}
    for token, name in enumerate(names):
        if token not in excluded and (shape := _token_shape(name)):
            by_shape.setdefault(shape, []).append(token)
    pools = []
    for token in words[0]:
        shape = _token_shape(names[token])
        pools.append(by_shape.get(shape, []) if shape else [token])
    if not all(pools) or all(len(pool) < 2 for pool in pools):
        raise TokenizerError(
            f"There are no words like {tokenizer.decode(list(words[0]))!r} to replace it: choose a "
            "cue of letters"
        )
    rng = random.Random(seed)
    return [tuple(rng.choice(pool) for pool in pools) for _ in range(count)]


def _strip_prefixes(
    shorter: Sequence[tuple[int, ...]], longer: Sequence[tuple[int, ...]], what: str
) -> list[tuple[int, ...]]:
    """What each longer row adds to the shorter one, with which it must begin."""
    for a, b in zip(shorter, longer, strict=True):
        if b[: len(a)] != a:
            raise TokenizerError(
                f"The tokens of a text change before {what!r}: choose words that this tokenizer "
                "separates"
            )
    return [b[len(a) :] for a, b in zip(shorter, longer, strict=True)]


def _token_shape(name: str) -> tuple[bool, bool, bool, bool] | None:
    """Space, capital, more than one letter, ASCII; None for a token that is not of letters."""
    body = name.lstrip(_SPACE_MARKERS)
    if not body.isalpha():
        return None
    return name != body, body[0].isupper(), len(body) > 1, body.isascii()
