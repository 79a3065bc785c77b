"""Sampler behind `sample_interchange_pairs`: numbers, words and outcomes of base and sources."""

import ast
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations, product
from typing import Any

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from probes.errors import PatternError
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair, Question, evaluate_expression
from probes.prompts.template import Template

COPIES = ("copies ", "copies source ")
"""Beginnings of the labels of copied numbers: of the base, and of the source."""

BASE, OPERATION, OBJECT, OTHER = "base", "operation", "thing", "other"
"""Labels of outcomes: the base's value, the operation's, the object's, and any other answer."""

NUMBER_ANSWER, OBJECT_ANSWER = "number", "noun"
_DRAWS = 100_000
_FEWEST_NUMBERS = 8  # Numbers of base and source; with fewer, copies are no outcomes.


@dataclass(frozen=True)
class PairSampler:
    """Sampler of a pattern's interchange pairs."""

    pattern: Pattern

    def __post_init__(self) -> None:
        name, answers = self.pattern.name, dict(self.pattern.answers)
        if self.pattern.user_pairs or self.pattern.opposite is None:
            raise PatternError(
                f"{name!r} has no opposite operation: interchange pairs need a pattern with "
                "templates and an opposite"
            )
        if tuple(answers) != (NUMBER_ANSWER, OBJECT_ANSWER) or answers[
            OBJECT_ANSWER
        ] not in self._slots_of_kind("noun"):
            raise PatternError(
                f"{name!r} answers {answers}: interchange pairs need a number, then a noun slot"
            )
        if not self.operands:
            raise PatternError(
                f"{name!r} computes its number from no slot: interchange pairs need operands"
            )
        if not len(self.valid_numbers):
            raise PatternError(
                f"The outcomes of {name!r} collide: no numbers from "
                f"{self.pattern.lexicon.number_range} make {answers[NUMBER_ANSWER]!r} and "
                f"{dict(self.flipped.answers)[NUMBER_ANSWER]!r} differ for base and source and "
                "each operand"
            )

    def _slots_of_kind(self, kind: str) -> set[str]:
        frames, lexicon = self.pattern.templates, self.pattern.lexicon
        return {s for frame in frames for s in frame.slots if lexicon.kind_of(s) == kind}

    @cached_property
    def flipped(self) -> Pattern:
        """Pattern of the sources."""
        return self.pattern.flipped()

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Number slots that the answers are computed from."""
        names = dict.fromkeys(
            node.id
            for side in (self.pattern, self.flipped)
            for node in ast.walk(ast.parse(dict(side.answers)[NUMBER_ANSWER], mode="eval"))
            if isinstance(node, ast.Name)
        )
        return tuple(names)

    @cached_property
    def object_slot(self) -> str:
        """Slot of the object in the answer."""
        return dict(self.pattern.answers)[OBJECT_ANSWER]

    def _number_answer(self, slots: Mapping[str, int | str], operation: bool) -> int:
        side = self.flipped if operation else self.pattern
        return int(evaluate_expression(dict(side.answers)[NUMBER_ANSWER], slots))

    @cached_property
    def copies(self) -> tuple[str, ...]:
        """The `COPIES` that are outcomes: in a narrow range, copied numbers equal other outcomes.

        Tokenizers that read digits one by one have ten numbers, and all outcomes are twelve.
        """
        kept = [copies for count in (2, 1) if self._has_enough(copies := COPIES[:count])]
        return kept[0] if kept else ()

    def _has_enough(self, copies: tuple[str, ...]) -> bool:
        return len(self._numbers_beside(copies)) >= _FEWEST_NUMBERS

    @cached_property
    def valid_numbers(self) -> Int[np.ndarray, "cell side operand"]:
        """Numbers of base and source with which all outcomes differ."""
        return self._numbers_beside(self.copies)

    def _numbers_beside(self, copies: tuple[str, ...]) -> Int[np.ndarray, "cell side operand"]:
        rules = tuple(dict(side.answers)[NUMBER_ANSWER] for side in (self.pattern, self.flipped))
        counted = tuple(map(self._is_counted, self.operands))
        span = self.pattern.lexicon.number_range
        return _valid_numbers(self.operands, rules, span, copies, counted)

    def _is_counted(self, operand: str) -> bool:
        """Whether a noun follows an operand somewhere."""
        nouns = self._slots_of_kind("noun")
        return any(
            one.slot == operand and between.text == " " and other.slot in nouns
            for template in self.pattern.templates
            for one, between, other in zip(
                template.parts, template.parts[1:], template.parts[2:], strict=False
            )
        )

    def sample(
        self,
        rng: random.Random,
        tokenizers: Sequence[PreTrainedTokenizerBase],
        allowed_words: Mapping[str, Sequence[str]],
    ) -> Iterator[tuple[Question, tuple[Question, Question]] | None]:
        """Yield bases with their two sources, or None for a rejected draw."""
        slots = {s for frame in self.pattern.templates for s in frame.slots}
        word_slots = slots - self._slots_of_kind("number")
        if unknown := set(allowed_words) - word_slots:
            raise PatternError(
                f"{sorted(unknown)} take no words in {self.pattern.name!r}: its slots for words "
                f"are {sorted(word_slots)}"
            )
        token_counts = _TokenCounts(tokenizers)
        while True:
            frame, numerals = (
                rng.choice(self.pattern.templates),
                rng.choice(self.pattern.lexicon.numerals),
            )
            numbers = self.valid_numbers[rng.randrange(len(self.valid_numbers))].tolist()
            base, source = (dict(zip(self.operands, side, strict=True)) for side in numbers)
            filled = self._fill_slots(frame, base, source, rng, (allowed_words, token_counts))
            if (
                not filled
                or self.object_slot not in base
                or base[self.object_slot] == source[self.object_slot]
            ):
                yield None
                continue
            base = {s: base[s] for s in frame.slots}
            question = self.pattern.make_question(frame, base, numerals)
            same, other = (
                self.flipped.make_question(frame, {**source, self.object_slot: noun}, numerals)
                for noun in (base[self.object_slot], source[self.object_slot])
            )
            yield (question, (same, other)) if question and same and other else None

    def _fill_slots(
        self, template: Template, base: dict[str, Any], source: dict[str, Any], rng: random.Random,
        allowed: tuple[Mapping[str, Sequence[str]], "_TokenCounts"],
    ) -> bool:  # fmt: skip
        """Fill the other slots; the source's words have the token counts of the base's.

        Returns:
            Whether there is another word of that length wherever the two must differ.
        """
        lexicon, (words, token_counts) = self.pattern.lexicon, allowed
        for slot in template.slots:
            kind = lexicon.kind_of(slot)
            if slot in base:
                continue
            if kind == "number":  # Not an operand: equal in both, so that it is one outcome.
                low, high = lexicon.number_range
                base[slot] = source[slot] = rng.randint(max(low, 2), high)  # One has no plural.
                continue
            if kind == "verb":
                known = [lexicon.verbs_of(side.operation) for side in (self.pattern, self.flipped)]
            else:
                known = [lexicon.words(kind)] * 2
            kept = [[w for w in side if w in words.get(slot, side)] for side in known]
            if not all(kept):
                raise PatternError(
                    f"No words are left for {slot!r} of {self.pattern.name!r}: "
                    f"{list(words.get(slot, ()))} are allowed, and {known} exist"
                )
            used = {*base.values(), *source.values()}
            base[slot] = rng.choice([w for w in kept[0] if w not in used] or kept[0])
            same_word = kind == "noun" and slot != self.object_slot
            fitting = [w for w in kept[1] if token_counts(w) == token_counts(base[slot])]
            fitting = [w for w in fitting if w not in used and w != base[slot]]
            if kind == "filler":  # It may be equal in both.
                fitting = fitting or [base[slot]]
            if not same_word and not fitting:
                return False
            source[slot] = base[slot] if same_word else rng.choice(fitting)
        return True

    def build_pairs(
        self, base: Question, sources: tuple[Question, Question]
    ) -> tuple[tuple[str, ...], tuple[str, ...], Pair, Pair]:
        """Labels of number and object outcomes, and the two pairs with these outcomes."""
        base_slots, source_slots = dict(base.slots), dict(sources[1].slots)
        number: dict[str, str] = {}
        for subset in _variable_subsets(self.operands):
            slots = {s: (source_slots if s in subset else base_slots)[s] for s in self.operands}
            label = " + ".join(subset) or BASE
            number[label] = str(self._number_answer(slots, OPERATION in subset))
        for copied, slots in zip(self.copies, (base_slots, source_slots), strict=False):
            number |= {f"{copied}{s}": str(slots[s]) for s in self.operands}
        noun = {
            s: str(d[self.object_slot]) for s, d in ((BASE, base_slots), (OBJECT, source_slots))
        }
        for slot, value in base.slots:
            if slot not in self.operands and isinstance(value, int):
                number[f"copies {slot}"] = str(value)
            elif slot != self.object_slot and self.pattern.lexicon.kind_of(slot) == "noun":
                noun[slot] = str(value)
        outcomes = (
            (NUMBER_ANSWER, tuple(number.values())),
            (OBJECT_ANSWER, tuple(noun.values())),
        )
        clean = replace(base, outcomes=outcomes)
        pairs = [Pair("crossing", clean, _own_answer_first(s, dict(outcomes))) for s in sources]
        return tuple(number), tuple(noun), pairs[0], pairs[1]


def _variable_subsets(operands: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """All sets of variables, from none to all."""
    variables = (OPERATION, *operands)
    return tuple(s for n in range(len(variables) + 1) for s in combinations(variables, n))


@cache
def _valid_numbers(
    operands: tuple[str, ...],
    rules: tuple[str, ...],
    numbers: tuple[int, int],
    copies: tuple[str, ...],
    counted: tuple[bool, ...],
) -> Int[np.ndarray, "cell side operand"]:
    """Random (base, source) number pairs, kept where all outcomes are in range and differ."""
    (low, high), subsets = numbers, _variable_subsets(operands)
    span = high - low + 1
    table = np.full((len(rules), *[span] * len(operands)), -1)
    for values in product(range(span), repeat=len(operands)):
        slots = {s: v + low for s, v in zip(operands, values, strict=True)}
        for op, rule in enumerate(rules):
            table[(op, *values)] = int(evaluate_expression(rule, slots))
    rng = np.random.default_rng(0)
    drawn = np.unique(rng.integers(low, high + 1, (_DRAWS, 2, len(operands))), axis=0)
    results = []
    for subset in subsets:
        mixed = [drawn[:, int(s in subset), k] - low for k, s in enumerate(operands)]
        results.append(table[(int(OPERATION in subset), *mixed)])
    operand_values = drawn.reshape(len(drawn), -1)
    copied = operand_values[:, : len(copies) * len(operands)]
    outcomes = np.concatenate([np.stack(results, 1), copied], 1)
    inside = ((outcomes >= max(low, 0)) & (outcomes <= high)).all(1)
    # 0 leaves a number as it is, and 1 has no plural.
    countable = (operand_values > 0).all(1) & (outcomes != 1).all(1)
    countable &= (drawn[:, :, list(counted)] != 1).all((1, 2))
    distinct = (np.diff(np.sort(outcomes, 1), axis=1) > 0).all(1)
    return rng.permutation(drawn[inside & countable & distinct])


def _own_answer_first(source: Question, outcomes: Mapping[str, tuple[str, ...]]) -> Question:
    ordered = {name: (text, *outcomes.get(name, ())) for name, text in source.answers}
    return replace(source, outcomes=tuple((n, tuple(dict.fromkeys(t))) for n, t in ordered.items()))


class _TokenCounts:
    """Token counts of a word, one for each tokenizer."""

    def __init__(self, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
        self.tokenizers, self.cache = tokenizers, dict[str, tuple[int, ...]]()

    def __call__(self, word: str) -> tuple[int, ...]:
        if word not in self.cache:
            self.cache[word] = tuple(len(t.tokenize(f" {word}")) for t in self.tokenizers)
        return self.cache[word]
