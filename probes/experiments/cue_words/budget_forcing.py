"""Forcing a model to go on: n times a cue behind its answer, and what it states at the end.

The method is the budget forcing of s1 (Muennighoff et al. 2025, 2501.19393) by greedy writing.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from probes.errors import BatchError, OutcomeError, TokenizerError
from probes.experiments.cue_words.results import RANDOM, BudgetForcing
from probes.experiments.cue_words.texts import (
    FULL_STOP,
    CueItem,
    CueText,
    CueTokens,
    GivenAnswer,
    end_sentence,
    left_pad,
    sample_random_words,
    to_cue_items,
    tokenize_cues,
)
from probes.models.model import Model
from probes.prompts.special_tokens import special_prefix

_BATCH_TOKENS = 2048


def last_number(text: str) -> str | None:
    """Read the last number of a text: digits, with a sign or decimals; thousands lose commas."""
    found = re.findall(r"(?<!\d)-?\d+(?:,\d{3})*(?:\.\d+)?", text)
    return found[-1].replace(",", "") if found else None


@torch.no_grad()
def budget_forcing(  # noqa: PLR0913 (a public entry point: how it goes on are options)
    model: Model,
    texts: Sequence[CueText],
    cues: Sequence[str],
    *,
    times: Sequence[int] = (0, 1, 2, 4),
    given_answer: GivenAnswer | Literal["own"] = "own",
    parse_answer: Callable[[str], str | None] = last_number,
    max_tokens: int = 16,
    seed: int = 0,
) -> BudgetForcing:
    """Make a model go on n times behind its answer, and read what it states last.

    Each time a cue and a comma are written, and the model writes greedily up to its next full
    stop, its end token or `cap` tokens, whichever is first; a full stop within a number counts.

    Args:
        model: Any decoder with a tokenizer.
        texts: Questions, or `Item`s with the answers that count as right.
        cues: Words of equally many tokens; a random word for each item is tried beside them.
        times: How often to go on; 0 reads the answer before any cue.
        said: The answer that stands first; "own" is the model's, up to a full stop.
        read: Finds the answer in what stands behind the prompt, to be held against `answers`.
        cap: The most tokens of one continuation, the same for every cue.
        seed: Of the random words and of the wrong answers.

    Raises:
        BatchError: The longest text might not fit the model's context.
        OutcomeError: An item has no right answer, or `times` or `cap` are no such numbers.
    """
    _check(times, max_tokens)
    items = [replace(item, continuation="") for item in to_cue_items(texts, seed=seed)]
    for item in items:
        if not item.answers:
            raise OutcomeError(f"{item.prompt!r} has no right answer: give an Item with `answers`")
    writer = _GreedyWriter(model, max_tokens, *_stop_tokens(model))
    stems = (
        _own_answers(writer, items)
        if given_answer == "own"
        else [item.stem(given_answer) for item in items]
    )
    parts = tokenize_cues(model.tokenizer, items, stems, cues)
    steps = max(times) * (1 + len(parts.words[0]) + len(parts.tail) + max_tokens)
    if (longest := max(map(len, parts.stems)) + steps) > model.shape.context:
        raise BatchError(
            f"Going on {max(times)} times may take {longest} tokens, and {model.name} takes "
            f"{model.shape.context}: shorten the texts, `times` or `cap`"
        )
    arms = [[word] * len(items) for word in parts.words]
    arms.append(sample_random_words(model.tokenizer, parts.words, len(items), seed=seed))
    every = [_force_cue(writer, parts, arm, tuple(sorted(times))) for arm in arms]
    right = [
        [
            [parse_answer(text) in item.answers for text, item in zip(texts, items, strict=True)]
            for texts, _, _ in arm
        ]
        for arm in every
    ]
    return BudgetForcing(
        model=model.name,
        cues=(*cues, RANDOM),
        times=tuple(sorted(times)),
        given_answer=given_answer,
        correct=np.array(right),
        tokens=np.array([[tokens for _, tokens, _ in arm] for arm in every]),
        truncated=np.array([[cut for *_, cut in arm] for arm in every]),
        texts=tuple(tuple(arm[-1][0]) for arm in every),
    )


@dataclass(frozen=True, eq=False)
class _GreedyWriter:
    """Greedy writing up to a full stop."""

    model: Model
    max_tokens: int
    full_stop: int
    full_stops: frozenset[int]
    end_tokens: frozenset[int]

    def generate(self, rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[bool]]:
        """Go on with each row; say for each whether it was cut off for its length."""
        grown, going = [list(row) for row in rows], list(range(len(rows)))
        for _ in range(self.max_tokens):
            closed_now = set()
            for some in self._batches(grown, going):
                ids, mask = left_pad(
                    self.model.tokenizer, [grown[n] for n in some], self.model.device
                )
                nexts = self.model.logits(ids, mask)[:, -1].argmax(-1).tolist()
                for n, token in zip(some, nexts, strict=True):
                    if token not in self.end_tokens:
                        grown[n].append(token)
                    if token in self.end_tokens | self.full_stops:
                        closed_now.add(n)
            going = [n for n in going if n not in closed_now]
        return grown, [n in going for n in range(len(rows))]

    @staticmethod
    def _batches(grown: list[list[int]], going: list[int]) -> Iterator[list[int]]:
        size = max(1, _BATCH_TOKENS // max((len(grown[n]) for n in going), default=1))
        for start in range(0, len(going), size):
            yield going[start : start + size]


def _force_cue(
    writer: _GreedyWriter,
    parts: CueTokens,
    words: Sequence[tuple[int, ...]],
    times: tuple[int, ...],
) -> list[tuple[list[str], list[int], list[bool]]]:
    """Force one cue behind each text; replies, tokens and cuts for each of the times."""
    rows, found = [list(stem) for stem in parts.stems], []
    tokens, cut = [0] * len(rows), [False] * len(rows)
    for step in range(times[-1] + 1):
        if step:
            for row, word in zip(rows, words, strict=True):
                # Cut off or ended without a full stop, it gets one as any answer does.
                row += [writer.full_stop] * (row[-1] not in writer.full_stops) + [
                    *word,
                    *parts.tail,
                ]
            before = [len(row) for row in rows]
            rows, now = writer.generate(rows)
            tokens = [t + len(r) - b for t, r, b in zip(tokens, rows, before, strict=True)]
            cut = [a or b for a, b in zip(cut, now, strict=True)]
        if step in times:
            replies = [row[start:] for row, start in zip(rows, parts.prompts, strict=True)]
            decode = writer.model.tokenizer.decode
            texts = [decode(reply, skip_special_tokens=True) for reply in replies]
            found.append((texts, tokens, cut))
    return found


def _own_answers(writer: _GreedyWriter, items: Sequence[CueItem]) -> list[str]:
    """Each prompt with what the model answers by itself, up to a full stop."""
    tokenizer = writer.model.tokenizer
    prompts = [item.prompt for item in items]
    starts = [
        [*special_prefix(tokenizer), *row]
        for row in tokenizer(prompts, add_special_tokens=False)["input_ids"]
    ]
    stems = []
    for prompt, start, row in zip(prompts, starts, writer.generate(starts)[0], strict=True):
        text = tokenizer.decode(row, skip_special_tokens=True)
        if not text.startswith(prompt):
            text = f"{prompt} {tokenizer.decode(row[len(start) :]).strip()}"
        stems.append(end_sentence(text if len(row) > len(start) else f"{prompt} "))
    return stems


def _stop_tokens(model: Model) -> tuple[int, frozenset[int], frozenset[int]]:
    """The full stop's token, all that end in one, and the tokens that end a text."""
    if model.tokenizer is None:
        raise TokenizerError(f"{model.name} came without a tokenizer: load it with one")
    names = model.tokenizer.convert_ids_to_tokens(list(range(len(model.tokenizer))))
    if FULL_STOP not in names:
        raise TokenizerError(
            f"{model.name} has no token {FULL_STOP!r}, which continuations end with"
        )
    stops = frozenset(n for n, name in enumerate(names) if name.endswith(FULL_STOP))
    config = getattr(model.config, "eos_token_id", None)
    given = [model.tokenizer.eos_token_id, *(config if isinstance(config, list) else [config])]
    return names.index(FULL_STOP), stops, frozenset(n for n in given if isinstance(n, int))


def _check(times: Sequence[int], max_tokens: int) -> None:
    if (
        not times
        or min(times) < 0
        or max(times) < 1
        or len(set(times)) < len(times)
        or max_tokens < 1
    ):
        raise OutcomeError(
            f"times {tuple(times)} and cap {max_tokens} were given: give different numbers from 0, at "
            "least one above it, and room for a token"
        )
