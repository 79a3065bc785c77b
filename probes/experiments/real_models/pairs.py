"""Interchange pairs with one-digit numbers.

All twelve outcomes of `sample_interchange_pairs` differ only with larger numbers, which tokenizers
of real models split into digits. Here four outcomes differ: the base's answer, that of the source's
operation on the base's numbers, that of the base's operation on the source's numbers, and the
source's own answer. No number of either prompt equals that of the source's operation, so that a
copy is not taken for it.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from probes.errors import PatternError
from probes.prompts.interchange_pairs import BASE, OBJECT, OPERATION, InterchangePairs
from probes.prompts.pattern import Pattern
from probes.prompts.question import Pair, Question

_OPERANDS = ("x", "y")
_LABELS = (BASE, OPERATION, " + ".join(_OPERANDS), " + ".join((OPERATION, *_OPERANDS)))
_NOUN_SLOT = "thing"


def one_digit_pairs(
    pattern: Pattern, count: int, *, verbs: Sequence[str], nouns: Sequence[str], seed: int
) -> InterchangePairs:
    """Sample interchange pairs of a pattern with `x`, `y`, `thing` and an opposite.

    Args:
        pattern: Pattern whose words are single tokens, so that roles have equal lengths.
        count: Number of bases.
        verbs: Verbs of both operations that occur.
        nouns: Objects that occur.
        seed: Seed of the sample.

    Raises:
        PatternError: Words are missing, or there are fewer bases.
    """
    rng, flipped = random.Random(f"{seed}:{pattern.name}:one-digit"), pattern.flipped()
    own, other = (
        [verb for verb in side.lexicon.verbs_of(side.operation) if verb in verbs]
        for side in (pattern, flipped)
    )
    if not own or not other or len(nouns) < 2:
        raise PatternError(
            f"{pattern.name!r} has the verbs {own} and {other} and the objects {[*nouns]}: give a "
            "verb of each operation and two objects"
        )
    slots = {*_OPERANDS, "op", _NOUN_SLOT}
    templates = [each for each in pattern.templates if {*each.slots} == slots]
    if not templates:
        raise PatternError(f"{pattern.name!r} has no template with the slots {sorted(slots)}")
    found: dict[str, tuple[Pair, Pair]] = {}
    numbers = _numbers(pattern)
    for _ in range(100 * count):
        if len(found) == count:
            break
        base_numbers, source_numbers = rng.choice(numbers)
        template, (first, second) = rng.choice(templates), rng.sample([*nouns], 2)
        base_slots = {**base_numbers, "op": rng.choice(own), _NOUN_SLOT: first}
        base = pattern.make_question(template, base_slots, "digits")
        verb = rng.choice(other)
        sources = [
            flipped.make_question(
                template, {**source_numbers, "op": verb, _NOUN_SLOT: noun}, "digits"
            )
            for noun in (first, second)
        ]
        if base is None or None in sources or base.text in found:
            continue
        same, about_other = (_pair(base, source, second) for source in sources if source)
        found[base.text] = same, about_other
    if len(found) < count:
        raise PatternError(
            f"Only {len(found)} of {count} bases of {pattern.name!r} were found: request fewer"
        )
    same, about_other = zip(*found.values(), strict=True)
    return InterchangePairs(pattern.name, _LABELS, (BASE, OBJECT), same, about_other)


def _numbers(pattern: Pattern) -> list[tuple[dict[str, int], dict[str, int]]]:
    """Numbers of base and source, from 2 on: 1 has no plural."""
    low, high = max(pattern.lexicon.number_range[0], 2), pattern.lexicon.number_range[1]
    cells = [(x, y) for x, y in product(range(low, high + 1), repeat=2) if x > y and x + y <= high]
    minus = pattern.operation == "minus"
    kept = []
    for base, source in product(cells, cells):
        outcomes = [
            x - y if side else x + y for x, y in (base, source) for side in (minus, not minus)
        ]
        if len({*outcomes}) == len(outcomes) and outcomes[1] not in (*base, *source):
            kept.append(tuple(dict(zip(_OPERANDS, cell, strict=True)) for cell in (base, source)))
    return kept


def _pair(base: Question, source: Question, other_noun: str) -> Pair:
    """Pair whose base has all outcomes and whose source has its own answer first."""
    slots, source_slots = dict(base.slots), dict(source.slots)
    minus = dict(base.answers)["number"] == str(int(slots["x"]) - int(slots["y"]))
    cells = [(int(each["x"]), int(each["y"])) for each in (slots, source_slots)]
    numbers = [str(x - y if side else x + y) for x, y in cells for side in (minus, not minus)]
    clean = replace(
        base,
        outcomes=(
            ("number", tuple(numbers)),
            ("noun", (str(slots[_NOUN_SLOT]), other_noun)),
        ),
    )
    nouns = dict.fromkeys((str(source_slots[_NOUN_SLOT]), *dict(clean.outcomes)["noun"]))
    outcomes = (("number", (numbers[3], *numbers[:3])), ("noun", tuple(nouns)))
    return Pair("crossing", clean, replace(source, outcomes=outcomes))
