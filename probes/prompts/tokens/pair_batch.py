"""Tokenized pairs: clean and counterfactual prompts with aligned tokens."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probes.errors import BatchError, OutcomeError
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern, QuestionFilter
from probes.prompts.question import Pair, Question
from probes.prompts.tokens.batch import (
    Batch,
    TextModel,
    longest_length,
    pad_prompts,
    pad_token_id,
    tokenizer_of,
)
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

    def first(self, count: int) -> "PairBatch":
        """Batch of the first pairs, as wide and with the same roles."""
        return PairBatch(
            self.contrast,
            self.pairs[:count],
            self.clean.first(count),
            self.counterfactual.first(count),
            self.source_positions[:count],
            self.has_counterpart[:count],
            self.fully_aligned[:count],
        )

    def role_mask(self, role: str) -> Bool[Tensor, "prompt position"]:
        """Mask of the clean tokens of a role that have a counterpart."""
        return self.clean.role_mask(role) & self.has_counterpart


class UnreadableTextsWarning(UserWarning):
    """Questions or pairs whose answers a tokenizer does not tell apart were left out."""


def tokenizable_by(*tokenizers: PreTrainedTokenizerBase) -> QuestionFilter:
    """Filter of questions whose answer all tokenizers tell apart from its foils."""
    return lambda question: _unreadable_reason(tokenizers, question) is None


def _unreadable_reason(
    tokenizers: Sequence[PreTrainedTokenizerBase], question: Question
) -> str | None:
    try:
        for tokenizer in tokenizers:
            tokenize_questions(tokenizer, (question,))
    except OutcomeError as error:
        return str(error)
    return None


def sample_readable_questions(
    pattern: Pattern, count: int, *, tokenizers: Sequence[PreTrainedTokenizerBase], seed: int
) -> tuple[Question, ...]:
    """Sample questions that all tokenizers can read; a warning says how many they cannot.

    Raises:
        PatternError: The pattern has fewer such questions.
        OutcomeError: None of the given pairs has such a question.
    """
    with _count_unreadable(pattern, tokenizers, "questions") as keep:
        questions = pattern.sample_questions(count, seed=seed, keep=keep)
    if count and not questions:
        raise OutcomeError(_unreadable_reason(tokenizers, pattern.user_pairs[0].clean) or "")
    return questions


@contextmanager
def _count_unreadable(
    pattern: Pattern, tokenizers: Sequence[PreTrainedTokenizerBase], kind: str
) -> Iterator[QuestionFilter]:
    """Filter of readable questions, with a warning about the others at the end."""
    reasons: dict[Question, str | None] = {}

    def keep(question: Question) -> bool:
        if question not in reasons:
            reasons[question] = _unreadable_reason(tokenizers, question)
        return reasons[question] is None

    yield keep
    _warn_unreadable(pattern, kind, list(reasons.values()))


def _warn_unreadable(pattern: Pattern, kind: str, reasons: Sequence[str | None]) -> None:
    unreadable = [reason for reason in reasons if reason is not None]
    if unreadable:
        warnings.warn(
            f"{pattern.name}: {len(unreadable)} of {len(reasons)} {kind} are left out, as their "
            f"answers are not told apart in this tokenizer: {unreadable[0]}",
            UnreadableTextsWarning,
            stacklevel=4,
        )


def sample_pairs(
    pattern: str | Pattern,
    contrast: str,
    count: int,
    *,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    seed: int,
) -> tuple[Pair, ...]:
    """Draw pairs that all tokenizers can read, with equal token counts per role where possible.

    Of a pattern's given pairs there may be fewer than `count` that they can read. A warning says
    how many they cannot.

    Args:
        pattern: Pattern to draw from, its name, or a .jsonl file.
        contrast: The one thing in which a pair differs, of `pattern.contrasts`.
        count: Number of pairs.
        tokenizers: Fast tokenizers of all models that are to read the pairs.
        seed: Seed of the draw.

    Raises:
        PatternError: The pattern cannot form the contrast, or not so often.
        BatchError: Too few pairs have distinct tokens in this tokenizer.
        OutcomeError: No given pair has.
    """
    pattern = find_pattern(pattern)
    if pattern.user_pairs:
        return _readable_given_pairs(pattern, contrast, count, tokenizers, seed)
    found: list[Pair] = []
    with _count_unreadable(pattern, tokenizers, f"questions for {contrast!r} pairs") as keep:
        drawn = pattern.sample_pairs(contrast, 2 * count, seed=seed, keep=keep)
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


def _readable_given_pairs(
    pattern: Pattern,
    contrast: str,
    count: int,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    seed: int,
) -> tuple[Pair, ...]:
    available = sum(pair.contrast == contrast for pair in pattern.user_pairs)
    pairs = pattern.sample_pairs(contrast, max(count, available), seed=seed)
    reasons: list[str | None] = []
    for pair in pairs:
        try:
            for tokenizer in tokenizers:
                _tokenize_both(tokenizer, (pair,))
            reasons.append(None)
        except OutcomeError as error:
            reasons.append(str(error))
    readable = [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]
    if count and not readable:
        raise OutcomeError(reasons[0] or "")
    _warn_unreadable(pattern, f"{contrast!r} pairs", reasons)
    return tuple(readable[:count])


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
    return tokenize_questions(tokenizer, clean, rivals=other), tokenize_questions(
        tokenizer, other, answers_from=clean, rivals=clean
    )


def tokenize_pairs(
    source: PreTrainedTokenizerBase | TextModel,
    pairs: Pair | Sequence[Pair],
    *,
    max_length: int | None = None,
) -> PairBatch:
    """Tokenize pairs and align their tokens role by role; errors as in `tokenize`.

    Args:
        source: A model, or any fast tokenizer.
        pairs: Pairs of one or several contrasts.
        max_length: Most tokens of a prompt; a model's context length by default.
    """
    tokenizer, max_length = tokenizer_of(source, max_length)
    pairs = (pairs,) if isinstance(pairs, Pair) else pairs
    if not isinstance(pairs, Sequence) or not all(isinstance(pair, Pair) for pair in pairs):
        raise BatchError(
            f"{type(pairs).__name__!r} found: give pairs, such as those of `sample_pairs`"
        )
    if not pairs:
        raise BatchError("A batch needs at least one pair: none was given")
    clean_rows, other_rows = _tokenize_both(tokenizer, pairs)
    width = longest_length((*clean_rows, *other_rows), max_length)
    pad = pad_token_id(tokenizer)
    clean = pad_prompts(tuple(pair.clean for pair in pairs), clean_rows, width, pad)
    other = pad_prompts(tuple(pair.counterfactual for pair in pairs), other_rows, width, pad)
    counterpart = torch.arange(width).repeat(len(pairs), 1)
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
                counterpart[index, here] = width - 1 - b.roles[::-1].index(role)
                exchanged[index, here] = True
    contrast = " + ".join(dict.fromkeys(pair.contrast for pair in pairs))
    return PairBatch(contrast, tuple(pairs), clean, other, counterpart, exchanged, exact)
