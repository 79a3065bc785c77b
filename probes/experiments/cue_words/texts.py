"""Texts with a cue word behind them, cut into tokens so that only the cue differs."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probes.errors import BatchError, OutcomeError, TokenizerError
from probes.prompts.batch import pad_token_id
from probes.prompts.question import Question
from probes.prompts.special_tokens import special_prefix

GivenAnswer = Literal["right", "wrong"]
"""Which answer stands before the cue, as if the model had written it."""

FULL_STOP = "."

_SPACE_MARKERS = "Ġ▁ "


@dataclass(frozen=True, slots=True)
class CueItem:
    """A text to continue behind a cue.

    Attributes:
        prompt: What the model is asked, with no space behind it.
        answers: What counts as right when it is read from the model's text.
        right: The right answer as it is written; by default the first of `answers`.
        wrong: A wrong answer as it is written; may be left out where none is said.
        then: What is written between the cue's comma and the place that is read; may be nothing.
    """

    prompt: str
    answers: tuple[str, ...] = ()
    right: str = ""
    wrong: str = ""
    continuation: str = ""

    def stem(self, given_answer: GivenAnswer) -> str:
        """Return the prompt with the answer that is said, if there is one, and its full stop."""
        text = self.right or next(iter(self.answers), "")
        if given_answer == "wrong":
            text = self.wrong
            if not text:
                raise OutcomeError(
                    f"No wrong answer to {self.prompt!r} was found: give the item one as `wrong`"
                )
        return end_sentence(f"{self.prompt} {text}" if text else self.prompt)


def end_sentence(text: str) -> str:
    """Put a full stop behind a text that has none."""
    return text if text.endswith(FULL_STOP) else text + FULL_STOP


CueText = CueItem | Question | str


def to_cue_items(texts: Sequence[CueText], *, seed: int = 0) -> tuple[CueItem, ...]:
    """Read questions and plain texts as items.

    The wrong answer to a question is a number drawn from its other outcomes (the sum for a
    difference, a number copied) and the right one's neighbors.
    """
    if not texts:
        raise BatchError("No text was given: give at least one")
    return tuple(_to_cue_item(text, seed) for text in texts)


def _to_cue_item(text: CueText, seed: int) -> CueItem:
    if isinstance(text, CueItem):
        return text
    if isinstance(text, str):
        return CueItem(text)
    named = next(((name, a) for name, a in text.answers if a.isdecimal()), None)
    if named is None:
        raise OutcomeError(
            f"{text.text!r} is answered by {dict(text.answers)}, and a number is needed. Make an "
            "Item of it"
        )
    name, number = named
    others = {other for other in dict(text.outcomes)[name] if other.isdecimal()}
    others |= {str(int(number) + step) for step in (-1, 1) if int(number) + step >= 0}
    drawn = random.Random(f"{seed}:{text.text}").choice(sorted(others - {number}))
    right, wrong = (
        " ".join(number if n == name else a for n, a in text.answers) for number in (number, drawn)
    )
    return CueItem(text.text, (number,), right, wrong)


def cue_prompt(
    text: CueText, cue: str, *, given_answer: GivenAnswer = "right", seed: int = 0
) -> str:
    """Write a text with an answer, a full stop, the cue word and a comma behind it."""
    return f"{_to_cue_item(text, seed).stem(given_answer)} {cue},"


@dataclass(frozen=True, slots=True)
class CueTokens:
    """Token ids of texts and cues, apart.

    Attributes:
        stems: Each text up to the full stop before the cue.
        prompts: How many tokens of each stem are the prompt's.
        words: Each cue's tokens, equally many.
        tail: The comma's.
        thens: What each text has behind the comma.
    """

    stems: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]
    words: tuple[tuple[int, ...], ...]
    tail: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    def rows(self, words: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """Put a cue, each its own, behind the texts."""
        parts = zip(self.stems, words, self.continuations, strict=True)
        return [[*stem, *word, *self.tail, *then] for stem, word, then in parts]


def tokenize_cues(
    tokenizer: Any,  # noqa: ANN401 (any fast tokenizer)
    items: Sequence[CueItem],
    texts: Sequence[str],
    cues: Sequence[str],
) -> CueTokens:
    """Cut texts into tokens, and see to it that cues alone make the difference.

    `texts` holds each item's prompt with what is said behind it, up to the full stop.

    Raises:
        TokenizerError: The cues have unequal numbers of tokens, or a cue is cut otherwise in some
            texts than in others.
    """
    if tokenizer is None:
        raise TokenizerError("The model came without a tokenizer: load it with one")
    if not cues or len(set(cues)) < len(cues):
        raise OutcomeError(f"Cues found: {', '.join(cues) or 'none'}. Give different words")

    def ids(texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [tuple(row) for row in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    prompts, stems = ids([item.prompt for item in items]), ids(texts)
    _strip_prefixes(prompts, stems, "its prompt alone")
    found = {}
    for cue in cues:
        words = ids([f"{text} {cue}" for text in texts])
        commas = ids([f"{text} {cue}," for text in texts])
        behind = [f" {item.continuation}" if item.continuation else "" for item in items]
        wholes = ids([f"{text} {cue},{then}" for text, then in zip(texts, behind, strict=True)])
        word, tail = _strip_prefixes(stems, words, cue), _strip_prefixes(words, commas, f"{cue},")
        thens = _strip_prefixes(commas, wholes, "what follows the cue")
        if len(set(word)) > 1 or len(set(tail)) > 1:
            raise TokenizerError(f"{cue!r} is cut into other tokens in other texts: choose another")
        found[cue] = word[0], tail[0], tuple(thens)
    if len({(len(word), tail, thens) for word, tail, thens in found.values()}) > 1:
        counts = ", ".join(f"{cue!r} {len(word)}" for cue, (word, *_) in found.items())
        raise TokenizerError(
            f"The cues are not alike in tokens: {counts}. A longer cue would give the model more "
            "steps: choose words of one length"
        )
    _, tail, thens = found[cues[0]]
    start = special_prefix(tokenizer)
    return CueTokens(
        stems=tuple(start + stem for stem in stems),
        prompts=tuple(len(start) + len(prompt) for prompt in prompts),
        words=tuple(word for word, *_ in found.values()),
        tail=tail,
        continuations=thens,
    )


def sample_random_words(
    tokenizer: Any,  # noqa: ANN401
    words: Sequence[tuple[int, ...]],
    count: int,
    *,
    seed: int,
) -> list[tuple[int, ...]]:
    """Draw random words to stand where a cue stands: as many tokens, of the same make.

    Each token of letters is replaced by one of letters, with a space before it and a capital
    where the first cue has them; no token of any cue is drawn.
    """
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    out = {*tokenizer.all_special_ids, *(token for word in words for token in word)}
    makes: dict[tuple, list[int]] = {}
    for token, name in enumerate(names):
        if token not in out and (make := _token_shape(name)):
            makes.setdefault(make, []).append(token)
    pools = []
    for token in words[0]:
        make = _token_shape(names[token])
        pools.append(makes.get(make, []) if make else [token])
    if not all(pools) or all(len(pool) < 2 for pool in pools):
        raise TokenizerError(
            f"No words like {tokenizer.decode(list(words[0]))!r} were found to stand for it: "
            "choose a cue of letters"
        )
    rng = random.Random(seed)
    return [tuple(rng.choice(pool) for pool in pools) for _ in range(count)]


def left_pad(
    tokenizer: Any,  # noqa: ANN401
    rows: Sequence[Sequence[int]],
    device: torch.device,
) -> tuple[Int[Tensor, "prompt position"], Bool[Tensor, "prompt position"]]:
    """Pad rows on the left to one width."""
    width, pad = max(len(row) for row in rows), pad_token_id(tokenizer)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths[:, None]


def _strip_prefixes(
    shorter: Sequence[tuple[int, ...]], longer: Sequence[tuple[int, ...]], what: str
) -> list[tuple[int, ...]]:
    """Return what each longer row has behind the shorter one, which it must begin with."""
    for a, b in zip(shorter, longer, strict=True):
        if b[: len(a)] != a:
            raise TokenizerError(
                f"A text is cut into other tokens before {what!r} than without it: choose words "
                "that this tokenizer keeps apart"
            )
    return [b[len(a) :] for a, b in zip(shorter, longer, strict=True)]


def _token_shape(name: str) -> tuple[bool, bool, bool, bool] | None:
    """What a token looks like: a space, a capital, more than one letter, plain ones; or None."""
    body = name.lstrip(_SPACE_MARKERS)
    if not body.isalpha():
        return None
    return name != body, body[0].isupper(), len(body) > 1, body.isascii()
