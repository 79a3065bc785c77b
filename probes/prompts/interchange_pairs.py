"""Interchange pairs: base and source questions whose variables the answer identifies.

The answer is computed for every set of variables that may take the source's value. All these
numbers differ, so the answer of a patched run identifies the variables that took it.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from transformers import PreTrainedTokenizerBase

from probes.errors import OutcomeError, PatternError
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.interchange_sampler import BASE as BASE
from probes.prompts.interchange_sampler import COPIES, NUMBER_ANSWER, PairSampler
from probes.prompts.interchange_sampler import OBJECT as OBJECT
from probes.prompts.interchange_sampler import OPERATION as OPERATION
from probes.prompts.interchange_sampler import OTHER as OTHER
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair, Question
from probes.prompts.tokens.answer_tokens import require_distinct_outcomes
from probes.prompts.tokens.tokenization import tokenize_questions

_MAX_TRIES = 60
_MAX_MISSES = 5_000  # Draws in a row without a new base, after which there are no more.


@dataclass(frozen=True, slots=True)
class InterchangePairs:
    """Base questions, each with two sources that share only its template.

    Attributes:
        pattern: Name of the pattern of the bases.
        number_labels: Meaning of each number outcome: "base"; then the variables with the
            source's value, joined by " + " (all of them: the source's answer); then copied
            numbers, as "copies x" and "copies source x", where the range of numbers has as many.
        object_labels: The same for the object: "base", "thing" (the source's), then other
            objects of the base.
        same: Bases with sources about the same object.
        other: The same bases with the same sources about another object.
    """

    pattern: str
    number_labels: tuple[str, ...]
    object_labels: tuple[str, ...]
    same: tuple[Pair, ...]
    other: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.same)

    @property
    def source_label(self) -> str:
        """Label of the source's answer, in which all variables take the source's value."""
        return max(self.number_labels, key=lambda label: label.count(" + "))

    @property
    def merged_copies(self) -> tuple[str, ...]:
        """Copied numbers that are no outcomes, as they may equal others in so narrow a range."""
        operands = self.source_label.split(" + ")[1:]
        every = [f"{copied}{operand}" for copied in COPIES for operand in operands]
        return tuple(label for label in every if label not in self.number_labels)

    def target_number(self, index: int, label: str) -> str:
        """Number that a label stands for in one base."""
        if label not in self.number_labels:
            raise PatternError(
                f"Label {label!r} is unknown: known are {', '.join(self.number_labels)}"
            )
        outcomes = dict(self.same[index].clean.outcomes)[NUMBER_ANSWER]
        return outcomes[self.number_labels.index(label)]

    def select(self, indices: Sequence[int]) -> "InterchangePairs":
        """Interchange pairs at some indices."""
        same, other = (tuple(pairs[k] for k in indices) for pairs in (self.same, self.other))
        return replace(self, same=same, other=other)


@dataclass(frozen=True, slots=True)
class BaseFilter:
    """Filter of the bases of interchange pairs.

    Attributes:
        allowed_words: Words of a slot, such as {"thing": …} or {"op": …} (both sides); all words of
            a slot that is not named.
        keep: Whether to keep a base question; all by default.
    """

    allowed_words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    keep: Callable[[Question], bool] = lambda question: True


def sample_interchange_pairs(
    pattern: str | Pattern,
    count: int,
    *,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    seed: int,
    base_filter: BaseFilter = BaseFilter(),
) -> InterchangePairs:
    """Sample interchange pairs with different outcome tokens and equally long roles.

    Args:
        pattern: Pattern with an opposite, whose number is computed from number slots, or its name.
        count: Number of bases.
        tokenizers: Tokenizers in which all outcomes must differ.
        seed: Seed of the sample.
        base_filter: Words and base questions that are allowed; all by default.

    Raises:
        PatternError: The pattern has no opposite or no such answers, two of its outcomes
            always coincide, or fewer than `count` bases are found.
    """
    pattern = find_pattern(pattern)
    sampler = PairSampler(pattern)
    rng, pairs_of_base = random.Random(f"{seed}:{pattern.name}:crossings"), {}
    labels, last = None, 0
    for number, draw in enumerate(
        islice(sampler.sample(rng, tokenizers, base_filter.allowed_words), count * _MAX_TRIES)
    ):
        if len(pairs_of_base) == count or number - last > _MAX_MISSES:
            break
        if draw is None or draw[0].text in pairs_of_base or not base_filter.keep(draw[0]):
            continue
        base, sources = draw
        number_labels, object_labels, same, other = sampler.build_pairs(base, sources)
        if any(len(set(texts)) < len(texts) for _, texts in same.clean.outcomes):
            continue
        try:
            aligned = all(_same_role_lengths(tokenizer, (same, other)) for tokenizer in tokenizers)
        except OutcomeError:
            continue
        if aligned and labels in (None, (number_labels, object_labels)):
            labels = number_labels, object_labels
            pairs_of_base[base.text], last = (same, other), number
    if len(pairs_of_base) < count or labels is None:
        raise PatternError(
            f"Only {len(pairs_of_base)} of {count} bases of {pattern.name!r} have outcomes that "
            "are all different tokens and pass the filter: request fewer, allow more words, keep "
            "more, or take a wider range of numbers; for a tokenizer that reads digits one by one, "
            "numbers of one digit, as the format 'plain@0-9' has"
        )
    same, other = zip(*pairs_of_base.values(), strict=True)
    return InterchangePairs(pattern.name, *labels, same, other)


def _same_role_lengths(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> bool:
    """Whether all sources of one base have its token counts, role by role."""
    base = pairs[0].clean
    # Outcomes are checked once, in the base: here a source needs only its own answers.
    sources = [
        replace(source, outcomes=tuple((name, (text,)) for name, text in source.answers))
        for source in (pair.counterfactual for pair in pairs)
    ]
    (base_prompt,) = tokenize_questions(tokenizer, (base,))
    require_distinct_outcomes(base, base_prompt.outcomes)
    prompts = tokenize_questions(tokenizer, sources, answers_from=[base] * len(sources))
    return all(prompt.roles == base_prompt.roles for prompt in prompts)
