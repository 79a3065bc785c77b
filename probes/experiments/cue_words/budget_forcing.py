"""Budget forcing: a cue after the answer makes a model continue, several times (greedy decoding).

Method of s1 (Muennighoff et al. 2025, arXiv 2501.19393).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from probes.errors import BatchError, OutcomeError, TokenizerError
from probes.experiments.cue_words.forcing_result import RANDOM, BudgetForcing
from probes.experiments.cue_words.texts import (
    FULL_STOP,
    CueItem,
    CueText,
    CueTokens,
    GivenAnswer,
    end_sentence,
    sample_random_words,
    to_cue_items,
    tokenize_cues,
)
from probes.models.model import Model
from probes.models.readout import last_token
from probes.prompts.tokens.batch import left_pad
from probes.prompts.tokens.special_tokens import special_prefix

_BATCH_TOKENS = 2048


def last_number(text: str) -> str | None:
    """Last number of a text, with its sign and decimals; commas of thousands are removed."""
    numbers = re.findall(r"(?<!\d)-?\d+(?:,\d{3})*(?:\.\d+)?", text)
    return numbers[-1].replace(",", "") if numbers else None


@dataclass(frozen=True, slots=True)
class BudgetForcingSettings:
    """Settings of budget forcing.

    Attributes:
        times: Numbers of continuations after which the answer is read; 0 is before any cue.
        given_answer: Answer before the first cue; "own" is the model's, up to a full stop.
        parse_answer: Reads the answer from the text after the prompt.
        max_tokens: Most tokens of one continuation.
        seed: Seed of random words and of wrong answers.
    """

    times: Sequence[int] = (0, 1, 2, 4)
    given_answer: GivenAnswer | Literal["own"] = "own"
    parse_answer: Callable[[str], str | None] = last_number
    max_tokens: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        times = set(self.times)
        is_valid = len(times) == len(self.times) > 0 and min(times) >= 0 and max(times) > 0
        if not is_valid or self.max_tokens < 1:
            raise OutcomeError(
                f"times is {tuple(self.times)} and max_tokens {self.max_tokens}: give different "
                "numbers from 0, one of them above 0, and at least one token"
            )


@torch.no_grad()
def budget_forcing(
    model: Model,
    texts: Sequence[CueText],
    cues: Sequence[str],
    settings: BudgetForcingSettings | None = None,
) -> BudgetForcing:
    """Make a model continue several times after its answer, and read its last answer.

    Each time the cue and a comma are appended, and the model decodes greedily up to its next full
    stop, its end token or `max_tokens`. A full stop within a number counts.

    Args:
        model: Decoder with a tokenizer.
        texts: Questions, or items with the answers that count as correct.
        cues: Words with equal numbers of tokens; a random word for each item is their control.
        settings: Settings of budget forcing.

    Raises:
        BatchError: The longest text might exceed the model's context.
        OutcomeError: An item has no right answer, or the wrong answer that is to be given.
    """
    settings = settings or BudgetForcingSettings()
    times, seed = tuple(sorted(settings.times)), settings.seed
    items = [replace(item, continuation="") for item in to_cue_items(texts, seed=seed)]
    for item in items:
        if not item.answers:
            raise OutcomeError(f"{item.prompt!r} has no right answer: give a CueItem with answers")
    decoder = _GreedyDecoder(model, settings.max_tokens, *_stop_tokens(model))
    stems = (
        _own_answers(decoder, items)
        if settings.given_answer == "own"
        else [item.stem(settings.given_answer) for item in items]
    )
    tokens = tokenize_cues(model.tokenizer, items, stems, cues)
    added = times[-1] * (1 + len(tokens.words[0]) + len(tokens.tail) + settings.max_tokens)
    if (longest := max(map(len, tokens.stems)) + added) > model.shape.context:
        raise BatchError(
            f"{times[-1]} continuations may take {longest} tokens, and {model.name} takes "
            f"{model.shape.context}: shorten the texts, `times` or `max_tokens`"
        )
    arms = [[word] * len(items) for word in tokens.words]
    arms.append(sample_random_words(model.tokenizer, tokens.words, len(items), seed=seed))
    forced = [_force_cue(decoder, tokens, arm, times) for arm in arms]
    correct = [
        [
            [
                settings.parse_answer(text) in item.answers
                for text, item in zip(state.texts, items, strict=True)
            ]
            for state in arm
        ]
        for arm in forced
    ]
    return BudgetForcing(
        model=model.name,
        cues=(*cues, RANDOM),
        times=times,
        given_answer=settings.given_answer,
        correct=np.array(correct),
        tokens=np.array([[state.tokens for state in arm] for arm in forced]),
        truncated=np.array([[state.truncated for state in arm] for arm in forced]),
        texts=tuple(tuple(arm[-1].texts) for arm in forced),
    )


@dataclass(frozen=True, eq=False)
class _GreedyDecoder:
    """Greedy decoding up to a full stop."""

    model: Model
    max_tokens: int
    full_stop: int
    full_stops: frozenset[int]
    end_tokens: frozenset[int]

    def generate(self, rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[bool]]:
        """Continue each row; also whether it was truncated at `max_tokens`."""
        grown, open_rows = [list(row) for row in rows], list(range(len(rows)))
        for _ in range(self.max_tokens):
            closed = set()
            for batch in self._batches(grown, open_rows):
                ids, mask = left_pad(
                    self.model.tokenizer, [grown[n] for n in batch], self.model.device
                )
                logits = self.model.logits(ids, mask, last_token(mask))
                next_tokens = logits[:, 0].argmax(-1).tolist()
                for n, token in zip(batch, next_tokens, strict=True):
                    if token not in self.end_tokens:
                        grown[n].append(token)
                    if token in self.end_tokens | self.full_stops:
                        closed.add(n)
            open_rows = [n for n in open_rows if n not in closed]
        return grown, [n in open_rows for n in range(len(rows))]

    @staticmethod
    def _batches(grown: list[list[int]], open_rows: list[int]) -> Iterator[list[int]]:
        size = max(1, _BATCH_TOKENS // max((len(grown[n]) for n in open_rows), default=1))
        for start in range(0, len(open_rows), size):
            yield open_rows[start : start + size]


@dataclass(frozen=True, slots=True)
class _ForcedState:
    """Texts after the prompt, tokens that the model wrote, and truncation, after some cues."""

    texts: list[str]
    tokens: list[int]
    truncated: list[bool]


def _force_cue(
    decoder: _GreedyDecoder,
    parts: CueTokens,
    words: Sequence[tuple[int, ...]],
    times: tuple[int, ...],
) -> list[_ForcedState]:
    """Append one cue to each text again and again; a state for each of the times."""
    rows, states = [list(stem) for stem in parts.stems], []
    tokens, truncated = [0] * len(rows), [False] * len(rows)
    for step in range(times[-1] + 1):
        if step:
            for row, word in zip(rows, words, strict=True):
                # A text that was truncated or ended without a full stop gets one.
                row += [decoder.full_stop] * (row[-1] not in decoder.full_stops)
                row += [*word, *parts.tail]
            before = [len(row) for row in rows]
            rows, cut = decoder.generate(rows)
            tokens = [t + len(r) - b for t, r, b in zip(tokens, rows, before, strict=True)]
            truncated = [a or b for a, b in zip(truncated, cut, strict=True)]
        if step in times:
            replies = [row[start:] for row, start in zip(rows, parts.prompts, strict=True)]
            decode = decoder.model.tokenizer.decode
            texts = [decode(reply, skip_special_tokens=True) for reply in replies]
            states.append(_ForcedState(texts, tokens, truncated))
    return states


def _own_answers(decoder: _GreedyDecoder, items: Sequence[CueItem]) -> list[str]:
    """Each prompt with the model's answer, up to a full stop."""
    tokenizer = decoder.model.tokenizer
    prompts = [item.prompt for item in items]
    starts = [
        [*special_prefix(tokenizer), *row]
        for row in tokenizer(prompts, add_special_tokens=False)["input_ids"]
    ]
    stems = []
    for prompt, start, row in zip(prompts, starts, decoder.generate(starts)[0], strict=True):
        text = tokenizer.decode(row, skip_special_tokens=True)
        if not text.startswith(prompt):
            text = f"{prompt} {tokenizer.decode(row[len(start) :]).strip()}"
        stems.append(end_sentence(text if len(row) > len(start) else f"{prompt} "))
    return stems


def _stop_tokens(model: Model) -> tuple[int, frozenset[int], frozenset[int]]:
    """The token of a full stop, all tokens that end in one, and the tokens that end a text."""
    if model.tokenizer is None:
        raise TokenizerError(f"{model.name} came without a tokenizer: load it with one")
    names = model.tokenizer.convert_ids_to_tokens(list(range(len(model.tokenizer))))
    if FULL_STOP not in names:
        raise TokenizerError(
            f"{model.name} has no token {FULL_STOP!r}, which ends a continuation: use another model"
        )
    stops = frozenset(n for n, name in enumerate(names) if name.endswith(FULL_STOP))
    config = getattr(model.config, "eos_token_id", None)
    ends = [model.tokenizer.eos_token_id, *(config if isinstance(config, list) else [config])]
    return names.index(FULL_STOP), stops, frozenset(n for n in ends if isinstance(n, int))
