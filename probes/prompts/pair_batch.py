"""Pairs as a model sees them: which token of the counterfactual stands for which clean one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probes.errors import BatchError, OutcomeError
from probes.prompts.batch import Batch, pad_rows, padding, widest
from probes.prompts.pattern import Keep, Pattern
from probes.prompts.question import Pair, Question
from probes.prompts.tokenization import REST, Row, encode_rows

_CANDIDATES = 60


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Clean prompts and their counterfactuals, aligned role by role.

    Attributes:
        contrast: What the pairs differ in; several joined by " + ".
        pairs: The pairs themselves.
        clean, counterfactual: Both sides, padded to one width. The counterfactual is read behind
            the clean answers, so that the second answer is read on equal terms.
        source: For every clean position the counterfactual position that stands for it.
        exchanged: True where there is one. Where a pair has unequal token counts in some role,
            only the last token of each shared role is exchanged.
        exact: For every pair, whether all its tokens have a counterpart.
    """

    contrast: str
    pairs: tuple[Pair, ...]
    clean: Batch
    counterfactual: Batch
    source: Int[Tensor, "prompt position"]
    exchanged: Bool[Tensor, "prompt position"]
    exact: Bool[Tensor, " prompt"]

    def __len__(self) -> int:
        return len(self.pairs)

    def where(self, role: str) -> Bool[Tensor, "prompt position"]:
        """Mark the clean tokens of a role that can be exchanged."""
        return self.clean.where(role) & self.exchanged


def fits(*tokenizers: PreTrainedTokenizerBase) -> Keep:
    """Return a test that keeps the questions whose outcomes all tokenizers can tell apart."""

    def keep(question: Question) -> bool:
        try:
            for tokenizer in tokenizers:
                encode_rows(tokenizer, (question,))
        except OutcomeError:
            return False
        return True

    return keep


def draw_pairs(
    pattern: Pattern,
    contrast: str,
    count: int,
    *,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    seed: int,
) -> tuple[Pair, ...]:
    """Draw pairs that all tokenizers can read, with equal token counts per role where possible.

    Raises:
        PatternError: The pattern cannot form the contrast, or not so often.
        BatchError: Too few pairs can be told apart by this tokenizer.
    """
    if pattern.given:
        return pattern.pairs(contrast, count, seed=seed)
    found: list[Pair] = []
    drawn = pattern.pairs(contrast, 2 * count, seed=seed, keep=fits(*tokenizers))
    for index, pair in enumerate(drawn):
        if len(found) == count:
            break
        best = _best(pattern, pair, tokenizers, seed + index)
        if best is not None:
            found.append(best)
    if len(found) < count:
        raise BatchError(
            f"Only {len(found)} of {count} {contrast!r} pairs of {pattern.name!r} can be told "
            "apart by the tokenizer: ask for fewer, or choose other words"
        )
    return tuple(found)


def _best(
    pattern: Pattern, pair: Pair, tokenizers: Sequence[PreTrainedTokenizerBase], seed: int
) -> Pair | None:
    """Return the first counterfactual with equal token counts, or else the first readable one."""
    second = None
    others = pattern.counterfactuals(pair.clean, pair.contrast, seed=seed)
    for other in islice(others, _CANDIDATES):
        candidate = pattern.pair_up(pair.contrast, pair.clean, other)
        try:
            encoded = [_rows(tokenizer, (candidate,)) for tokenizer in tokenizers]
        except OutcomeError:
            continue
        if all(clean[0].roles == other[0].roles for clean, other in encoded):
            return candidate
        second = second or candidate
    return second


def _rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    clean = [pair.clean for pair in pairs]
    other = [pair.counterfactual for pair in pairs]
    return encode_rows(tokenizer, clean), encode_rows(tokenizer, other, forced=clean)


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], *, limit: int | None = None
) -> PairBatch:
    """Encode pairs and align their tokens; errors as in `encode`."""
    if not pairs:
        raise BatchError("A batch needs at least one pair: none was given")
    clean_rows, other_rows = _rows(tokenizer, pairs)
    width = widest((*clean_rows, *other_rows), limit)
    pad = padding(tokenizer)
    clean = pad_rows(tuple(pair.clean for pair in pairs), clean_rows, width, pad)
    other = pad_rows(tuple(pair.counterfactual for pair in pairs), other_rows, width, pad)
    source = torch.arange(width).repeat(len(pairs), 1)
    exchanged = torch.zeros((len(pairs), width), dtype=torch.bool)
    exact = torch.zeros(len(pairs), dtype=torch.bool)
    for index, (a, b) in enumerate(zip(clean_rows, other_rows, strict=True)):
        exact[index] = a.roles == b.roles
        if exact[index]:
            exchanged[index] = clean.mask[index]
            continue
        for role in dict.fromkeys(a.roles):
            if role in b.roles and role != REST:
                here = width - 1 - a.roles[::-1].index(role)
                source[index, here] = width - 1 - b.roles[::-1].index(role)
                exchanged[index, here] = True
    contrast = " + ".join(dict.fromkeys(pair.contrast for pair in pairs))
    return PairBatch(contrast, tuple(pairs), clean, other, source, exchanged, exact)
