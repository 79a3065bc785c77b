"""Tokenized pairs: clean and counterfactual prompts with aligned tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probes.errors import BatchError, OutcomeError
from probes.prompts.pattern import Pattern, QuestionFilter
from probes.prompts.question import Pair, Question
from probes.prompts.tokens.batch import Batch, longest_length, pad_prompts, pad_token_id
from probes.prompts.tokens.tokenization import REST, TokenizedPrompt, tokenize_questions

_MAX_CANDIDATES = 60


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Clean prompts and their counterfactuals, aligned role by role.

    Attributes:
        contrast: Contrast of the pairs; several are joined by " + ".
        pairs: The tokenized pairs.
        clean, counterfactual: Both prompts of each pair, padded to one width. The counterfactual
            is followed by the clean answers, so that a second answer has the same context.
        source_positions: Counterfactual position of every clean position.
        has_counterpart: True where there is one. Where the token counts of a role differ, only
            the last tokens of shared roles correspond.
        fully_aligned: True for pairs whose tokens all have a counterpart.
    """

    contrast: str
    pairs: tuple[Pair, ...]
    clean: Batch
    counterfactual: Batch
    source_positions: Int[Tensor, "prompt position"]
    has_counterpart: Bool[Tensor, "prompt position"]
    fully_aligned: Bool[Tensor, " prompt"]

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        aligned = int(self.fully_aligned.sum())
        return (
            f"PairBatch({len(self)} pairs of {self.contrast[:200]!r}, {aligned} fully aligned; "
            f"clean {self.clean!r})"
        )

    def role_mask(self, role: str) -> Bool[Tensor, "prompt position"]:
        """Mask of the clean tokens of a role that have a counterpart."""
        return self.clean.role_mask(role) & self.has_counterpart


def tokenizable_by(*tokenizers: PreTrainedTokenizerBase) -> QuestionFilter:
    """Filter of questions whose outcomes differ in all tokenizers."""

    def keep(question: Question) -> bool:
        try:
            for tokenizer in tokenizers:
                tokenize_questions(tokenizer, (question,))
        except OutcomeError:
            return False
        return True

    return keep


def sample_pairs(
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
        BatchError: Too few pairs have distinct tokens in this tokenizer.
    """
    if pattern.user_pairs:
        return pattern.sample_pairs(contrast, count, seed=seed)
    found: list[Pair] = []
    drawn = pattern.sample_pairs(contrast, 2 * count, seed=seed, keep=tokenizable_by(*tokenizers))
    for index, pair in enumerate(drawn):
        if len(found) == count:
            break
        best = _best_counterfactual(pattern, pair, tokenizers, seed + index)
        if best is not None:
            found.append(best)
    if len(found) < count:
        raise BatchError(
            f"Only {len(found)} of {count} {contrast!r} pairs of {pattern.name!r} have "
            "distinct tokens: request fewer, or choose other words"
        )
    return tuple(found)


def _best_counterfactual(
    pattern: Pattern, pair: Pair, tokenizers: Sequence[PreTrainedTokenizerBase], seed: int
) -> Pair | None:
    """First counterfactual with equal token counts, or else the first with distinct outcomes."""
    second = None
    others = pattern.counterfactuals(pair.clean, pair.contrast, seed=seed)
    for other in islice(others, _MAX_CANDIDATES):
        candidate = pattern.make_pair(pair.contrast, pair.clean, other)
        try:
            encoded = [_tokenize_both(tokenizer, (candidate,)) for tokenizer in tokenizers]
        except OutcomeError:
            continue
        if all(clean[0].roles == other[0].roles for clean, other in encoded):
            return candidate
        second = second or candidate
    return second


def _tokenize_both(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]
) -> tuple[tuple[TokenizedPrompt, ...], tuple[TokenizedPrompt, ...]]:
    clean = [pair.clean for pair in pairs]
    other = [pair.counterfactual for pair in pairs]
    return tokenize_questions(tokenizer, clean), tokenize_questions(
        tokenizer, other, answers_from=clean
    )


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], *, max_length: int | None = None
) -> PairBatch:
    """Tokenize pairs and align their tokens; errors as in `tokenize`."""
    if not pairs:
        raise BatchError("A batch needs at least one pair: none was given")
    clean_rows, other_rows = _tokenize_both(tokenizer, pairs)
    width = longest_length((*clean_rows, *other_rows), max_length)
    pad = pad_token_id(tokenizer)
    clean = pad_prompts(tuple(pair.clean for pair in pairs), clean_rows, width, pad)
    other = pad_prompts(tuple(pair.counterfactual for pair in pairs), other_rows, width, pad)
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
