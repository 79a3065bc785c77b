"""Factorial pairs: a base and a source that differ in everything, and what each mix would answer.

The answer of a base question is worked out anew for every set of variables that a source might
hand over. All these numbers differ, so the number that a patched run says tells which of the
source's variables it took up.
"""

import ast
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations, islice, product
from typing import Any

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from probes.errors import OutcomeError, PatternError
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair, Question, evaluate_expression
from probes.prompts.template import Template
from probes.prompts.tokenization import tokenize_questions

BASE, OPERATION, OBJECT, OTHER = "base", "operation", "thing", "other"
"""Words of outcomes: nothing taken up, the operation, the object; and none of those foreseen."""

_NUMBER_ANSWER, _OBJECT_ANSWER = "number", "noun"
_DRAWS, _MAX_TRIES = 100_000, 60


@dataclass(frozen=True, slots=True)
class InterchangePairs:
    """Base questions, each with two sources that differ from it in all but the frame.

    Attributes:
        pattern: What the bases ask.
        number: What a said number may mean, in the order of each base's number outcomes: "base";
            then the variables taken up from the source, joined by " + " (all of them: the source's
            own answer); then numbers copied, as "copies x" and "copies source x".
        noun: The same for the noun: "base", "thing" (the source's), then others that were spoken
            of.
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
        """The label of the source's own answer: everything taken up, or its result copied."""
        return max(self.number_labels, key=lambda label: label.count(" + "))

    def target_number(self, index: int, label: str) -> str:
        """Return the number that a base answers under a label."""
        if label not in self.number_labels:
            raise PatternError(
                f"No number means {label!r}: there are {', '.join(self.number_labels)}"
            )
        outcomes = dict(self.same[index].clean.outcomes)[_NUMBER_ANSWER]
        return outcomes[self.number_labels.index(label)]

    def select(self, indices: Sequence[int]) -> "InterchangePairs":
        """Return some of the crossings."""
        same, other = ([pairs[row] for row in indices] for pairs in (self.same, self.other))
        return replace(self, same=tuple(same), other=tuple(other))


def sample_interchange_pairs(  # noqa: PLR0913 (what is drawn, how often, and for whom)
    pattern: Pattern,
    count: int,
    *,
    tokenizers: Sequence[PreTrainedTokenizerBase],
    seed: int,
    keep: Callable[[Question], bool] | None = None,
    allowed_words: Mapping[str, Sequence[str]] | None = None,
) -> InterchangePairs:
    """Draw crossings whose outcomes are all different tokens, role by role equally long.

    Args:
        pattern: A pattern with an opposite, whose number is worked out from number slots.
        count: How many bases.
        tokenizers: Those that must tell the outcomes apart.
        seed: Of the draw.
        keep: Which base questions to take; all by default.
        words: The words that a slot may hold, such as {"thing": …} or {"op": …} (both sides);
            all by default.

    Raises:
        PatternError: The pattern has no opposite or no such answers, two of its outcomes are
            always the same, or fewer than `count` bases are found.
    """
    plan = _PairSampler(pattern)
    rng, found = random.Random(f"{seed}:{pattern.name}:crossings"), {}
    labels = None
    for draw in islice(plan.sample(rng, tokenizers, allowed_words or {}), count * _MAX_TRIES):
        if len(found) == count:
            break
        if draw is None or draw[0].text in found or (keep is not None and not keep(draw[0])):
            continue
        base, sources = draw
        made = plan.build_pairs(base, sources)
        if any(len(set(texts)) < len(texts) for _, texts in made[2].clean.outcomes):
            continue
        try:
            exact = all(_same_role_lengths(tokenizer, made[2:]) for tokenizer in tokenizers)
        except OutcomeError:
            continue
        if exact and labels in (None, made[:2]):
            labels = made[:2]
            found[base.text] = made[2:]
    if len(found) < count or labels is None:
        raise PatternError(
            f"Only {len(found)} of {count} bases of {pattern.name!r} have outcomes that are all "
            "different tokens and pass `keep`: ask for fewer, allow more words, keep more, or "
            "take a wider range of numbers"
        )
    same, other = zip(*found.values(), strict=True)
    return InterchangePairs(pattern.name, *labels, same, other)


def _same_role_lengths(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> bool:
    """Say whether all sources of one base are as long as it is, role by role."""
    base = pairs[0].clean
    # Outcomes are told apart once, in the base: here a source needs no more than its own answers.
    sources = [
        replace(source, outcomes=tuple((name, (text,)) for name, text in source.answers))
        for source in (pair.counterfactual for pair in pairs)
    ]
    (here,) = tokenize_questions(tokenizer, (base,))
    there = tokenize_questions(tokenizer, sources, answers_from=[base] * len(sources))
    return all(row.roles == here.roles for row in there)


@dataclass(frozen=True)
class _PairSampler:
    """How to draw a pattern's crossings."""

    pattern: Pattern

    def __post_init__(self) -> None:
        name, answers = self.pattern.name, dict(self.pattern.answers)
        if self.pattern.user_pairs or self.pattern.opposite is None:
            raise PatternError(
                f"{name!r} has no operation that turns around: crossings need a pattern with "
                "frames and an opposite"
            )
        if tuple(answers) != (_NUMBER_ANSWER, _OBJECT_ANSWER) or answers[
            _OBJECT_ANSWER
        ] not in self._slots_of_kind("noun"):
            raise PatternError(
                f"{name!r} answers {answers}: crossings need a number, then a noun that is a slot"
            )
        if not self.operands:
            raise PatternError(
                f"{name!r} works its number out from no slot: there is nothing to mix"
            )
        if not len(self.valid_numbers):
            raise PatternError(
                f"The outcomes of {name!r} collide: no numbers from {self.pattern.lexicon.number_range} "
                f"make {answers[_NUMBER_ANSWER]!r} and {dict(self.flipped.answers)[_NUMBER_ANSWER]!r} differ for "
                "base and source, each operand and each number copied"
            )

    def _slots_of_kind(self, kind: str) -> set[str]:
        frames, lexicon = self.pattern.templates, self.pattern.lexicon
        return {s for frame in frames for s in frame.slots if lexicon.kind_of(s) == kind}

    @cached_property
    def flipped(self) -> Pattern:
        """The pattern of the sources."""
        return self.pattern.flipped()

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """The number slots that the answers are worked out from."""
        names = dict.fromkeys(
            node.id
            for side in (self.pattern, self.flipped)
            for node in ast.walk(ast.parse(dict(side.answers)[_NUMBER_ANSWER], mode="eval"))
            if isinstance(node, ast.Name)
        )
        return tuple(names)

    @cached_property
    def object_slot(self) -> str:
        """The slot of the object that is asked for."""
        return dict(self.pattern.answers)[_OBJECT_ANSWER]

    def _number_answer(self, slots: Mapping[str, int | str], operation: bool) -> int:
        side = self.flipped if operation else self.pattern
        return int(evaluate_expression(dict(side.answers)[_NUMBER_ANSWER], slots))

    @cached_property
    def valid_numbers(self) -> Int[np.ndarray, "cell side operand"]:
        """Numbers of base and source that make all outcomes differ."""
        rules = tuple(dict(side.answers)[_NUMBER_ANSWER] for side in (self.pattern, self.flipped))
        return _valid_numbers(self.operands, rules, self.pattern.lexicon.number_range)

    def sample(
        self,
        rng: random.Random,
        tokenizers: Sequence[PreTrainedTokenizerBase],
        allowed_words: Mapping[str, Sequence[str]],
    ) -> Iterator[tuple[Question, tuple[Question, Question]] | None]:
        """Yield bases with their two sources, or None for a draw that came to nothing."""
        takes = {s for frame in self.pattern.templates for s in frame.slots} - self._slots_of_kind(
            "number"
        )
        if strange := set(allowed_words) - takes:
            raise PatternError(
                f"{sorted(strange)} take no words in {self.pattern.name!r}: its slots for words "
                f"are {sorted(takes)}"
            )
        sizes = _TokenCounts(tokenizers)
        while True:
            frame, numerals = rng.choice(self.pattern.templates), rng.choice(("digits", "words"))
            numbers = self.valid_numbers[rng.randrange(len(self.valid_numbers))].tolist()
            base, there = (dict(zip(self.operands, side, strict=True)) for side in numbers)
            filled = self._fill_slots(frame, base, there, rng, (allowed_words, sizes))
            if (
                not filled
                or self.object_slot not in base
                or base[self.object_slot] == there[self.object_slot]
            ):
                yield None
                continue
            base = {s: base[s] for s in frame.slots}
            asked = self.pattern.make_question(frame, base, numerals)
            sources = [
                self.flipped.make_question(frame, {**there, self.object_slot: noun}, numerals)
                for noun in (base[self.object_slot], there[self.object_slot])
            ]
            one, two = sources
            yield None if None in (asked, one, two) else (asked, (one, two))  # type: ignore[misc]

    def _fill_slots(
        self, template: Template, base: dict[str, Any], source: dict[str, Any], rng: random.Random,
        allowed: tuple[Mapping[str, Sequence[str]], "_TokenCounts"],
    ) -> bool:  # fmt: skip
        """Fill the slots that are no operands; a source's words are as long as the base's.

        Returns:
            Whether there was another word of that length wherever the two must differ.
        """
        lexicon, (words, sizes) = self.pattern.lexicon, allowed
        for slot in template.slots:
            kind = lexicon.kind_of(slot)
            if slot in base:
                continue
            if kind == "number":  # A bystander's: the same in both, so that it is one outcome.
                low, high = lexicon.number_range
                base[slot] = source[slot] = rng.randint(max(low, 2), high)  # One has no plural.
                continue
            if kind == "verb":
                every = [lexicon.verbs_of(side.operation) for side in (self.pattern, self.flipped)]
            else:
                every = [lexicon.words(kind)] * 2
            kept = [[w for w in side if w in words.get(slot, side)] for side in every]
            if not all(kept):
                raise PatternError(
                    f"No words are left for {slot!r} of {self.pattern.name!r}: "
                    f"{list(words.get(slot, ()))} were allowed, and {every} there are"
                )
            used = {*base.values(), *source.values()}
            base[slot] = rng.choice([w for w in kept[0] if w not in used] or kept[0])
            stays = kind == "noun" and slot != self.object_slot
            fit = [w for w in kept[1] if sizes(w) == sizes(base[slot])]
            fit = [w for w in fit if w not in used and w != base[slot]]
            if kind == "filler":  # It may stay: nothing hangs on it.
                fit = fit or [base[slot]]
            if not stays and not fit:
                return False
            source[slot] = base[slot] if stays else rng.choice(fit)
        return True

    def build_pairs(
        self, base: Question, sources: tuple[Question, Question]
    ) -> tuple[tuple[str, ...], tuple[str, ...], Pair, Pair]:
        """Return the labels of number and noun, and the two pairs with all outcomes named."""
        here, there = dict(base.slots), dict(sources[1].slots)
        number: dict[str, str] = {}
        for mix in _variable_subsets(self.operands):
            slots = {s: (there if s in mix else here)[s] for s in self.operands}
            label = " + ".join(mix) or BASE
            number[label] = str(self._number_answer(slots, OPERATION in mix))
        number |= {f"copies {s}": str(here[s]) for s in self.operands}
        number |= {f"copies source {s}": str(there[s]) for s in self.operands}
        noun = {BASE: str(here[self.object_slot]), OBJECT: str(there[self.object_slot])}
        for slot, value in base.slots:
            if slot not in self.operands and isinstance(value, int):
                number[f"copies {slot}"] = str(value)
            elif slot != self.object_slot and self.pattern.lexicon.kind_of(slot) == "noun":
                noun[slot] = str(value)
        outcomes = (
            (_NUMBER_ANSWER, tuple(number.values())),
            (_OBJECT_ANSWER, tuple(noun.values())),
        )
        clean = replace(base, outcomes=outcomes)
        pairs = [Pair("crossing", clean, _own_answer_first(s, dict(outcomes))) for s in sources]
        return tuple(number), tuple(noun), pairs[0], pairs[1]


def _variable_subsets(operands: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """List all sets of variables, from none to all."""
    varied = (OPERATION, *operands)
    return tuple(m for n in range(len(varied) + 1) for m in combinations(varied, n))


@cache
def _valid_numbers(
    operands: tuple[str, ...], rules: tuple[str, ...], numbers: tuple[int, int]
) -> Int[np.ndarray, "cell side operand"]:
    (low, high), mixes = numbers, _variable_subsets(operands)
    span = high - low + 1
    table = np.full((len(rules), *[span] * len(operands)), -1)
    for values in product(range(span), repeat=len(operands)):
        slots = {s: v + low for s, v in zip(operands, values, strict=True)}
        for op, rule in enumerate(rules):
            table[(op, *values)] = int(evaluate_expression(rule, slots))
    rng = np.random.default_rng(0)
    drawn = np.unique(rng.integers(low, high + 1, (_DRAWS, 2, len(operands))), axis=0)
    found = []
    for mix in mixes:
        mixed = [drawn[:, int(s in mix), k] - low for k, s in enumerate(operands)]
        found.append(table[(int(OPERATION in mix), *mixed)])
    outcomes = np.stack([*found, *drawn.reshape(len(drawn), -1).T], 1)
    inside = ((outcomes >= max(low, 0)) & (outcomes <= high)).all(1)
    # Nothing moves by nought, and of 1 there is no plural.
    plain = (outcomes[:, len(mixes) :] > 0).all(1) & (outcomes != 1).all(1)
    apart = (np.diff(np.sort(outcomes, 1), axis=1) > 0).all(1)
    return rng.permutation(drawn[inside & plain & apart])


def _own_answer_first(source: Question, outcomes: Mapping[str, tuple[str, ...]]) -> Question:
    mine = {name: (text, *outcomes.get(name, ())) for name, text in source.answers}
    return replace(source, outcomes=tuple((n, tuple(dict.fromkeys(t))) for n, t in mine.items()))


class _TokenCounts:
    """How many tokens a word has, for every tokenizer."""

    def __init__(self, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
        self.tokenizers, self.cache = tokenizers, dict[str, tuple[int, ...]]()

    def __call__(self, word: str) -> tuple[int, ...]:
        if word not in self.cache:
            self.cache[word] = tuple(len(t.tokenize(f" {word}")) for t in self.tokenizers)
        return self.cache[word]
