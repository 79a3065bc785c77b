"""Held-out split of the shipped family, to measure generalization."""

import random
from dataclasses import dataclass
from functools import cache

from probes.prompts.catalog import held_out_table, list_patterns
from probes.prompts.question import Question

HELD_OUT_AXES = ("cell", "noun", "combination")


@dataclass(frozen=True, slots=True)
class HeldOutSplit:
    """What training leaves out.

    Attributes:
        number_pairs: (operation, x, y), a fraction of the valid number pairs of each operation.
        nouns: Objects that never occur in a subtraction.
        combinations: (operation, verb, template), each seen, but not together.
    """

    number_pairs: frozenset[tuple[str, int, int]]
    nouns: frozenset[str]
    combinations: frozenset[tuple[str, str, str]]

    def held_out_axes(self, question: Question) -> frozenset[str]:
        """Axes on which a question is held out, of `HELD_OUT_AXES`."""
        operation = list_patterns()[question.pattern].operation
        slots = dict(question.slots)
        axes = set()
        if (operation, slots["x"], slots["y"]) in self.number_pairs:
            axes.add("cell")
        nouns = {slots.get("thing"), slots.get("other_thing")} & self.nouns
        if operation == "minus" and nouns:
            axes.add("noun")
        if (operation, slots["op"], question.template) in self.combinations:
            axes.add("combination")
        return frozenset(axes)

    def in_training(self, question: Question) -> bool:
        """Whether the question may occur in training."""
        return not self.held_out_axes(question)


def valid_number_pairs(operation: str, low: int, high: int) -> list[tuple[int, int]]:
    """Number pairs (x, y) of an operation whose result is in range."""
    numbers = range(low, high + 1)
    sign = 1 if operation == "plus" else -1
    return [(x, y) for x in numbers for y in numbers if low <= x + sign * y <= high]


@cache
def family_split() -> HeldOutSplit:
    """Split of the shipped family, from `data/patterns.toml`."""
    table = held_out_table()
    low, high = next(iter(list_patterns().values())).lexicon.number_range
    cells = set()
    for operation in ("minus", "plus"):
        number_pairs = valid_number_pairs(operation, low, high)
        rng = random.Random(f"{table['cells']['seed']}:{operation}")
        for x, y in rng.sample(number_pairs, round(table["cells"]["share"] * len(number_pairs))):
            cells.add((operation, x, y))
    combinations = {(side, *pair) for side, pair in table["combinations"].items()}
    return HeldOutSplit(frozenset(cells), frozenset(table["nouns"]), frozenset(combinations))
