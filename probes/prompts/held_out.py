"""What the embedded family never sees in training, so that generalising can be measured."""

import random
from dataclasses import dataclass
from functools import cache

from probes.prompts.catalog import all_patterns, held_out
from probes.prompts.question import Question

AXES = ("cell", "noun", "combination")


@dataclass(frozen=True, slots=True)
class Split:
    """What is held out.

    Attributes:
        cells: (operation, x, y), a share of the valid number pairs of each operation.
        nouns: Nouns that never stand in a sentence that takes away.
        combinations: (operation, verb, frame): both are seen, never together.
    """

    cells: frozenset[tuple[str, int, int]]
    nouns: frozenset[str]
    combinations: frozenset[tuple[str, str, str]]

    def axes(self, question: Question) -> frozenset[str]:
        """Return in which ways a question is held out: none, some or all of AXES."""
        operation = all_patterns()[question.pattern].operation
        slots = dict(question.slots)
        found = set()
        if (operation, slots["x"], slots["y"]) in self.cells:
            found.add("cell")
        nouns = {slots.get("thing"), slots.get("other_thing")} & self.nouns
        if operation == "minus" and nouns:
            found.add("noun")
        if (operation, slots["op"], question.frame) in self.combinations:
            found.add("combination")
        return frozenset(found)

    def seen(self, question: Question) -> bool:
        """Say whether training may show a question."""
        return not self.axes(question)


def valid_cells(operation: str, low: int, high: int) -> list[tuple[int, int]]:
    """List the (x, y) of an operation whose result is in range."""
    numbers = range(low, high + 1)
    sign = 1 if operation == "plus" else -1
    return [(x, y) for x in numbers for y in numbers if low <= x + sign * y <= high]


@cache
def family_split() -> Split:
    """Return the split of the embedded family, as `data/patterns.toml` states it."""
    table = held_out()
    low, high = next(iter(all_patterns().values())).lexicon.numbers
    cells = set()
    for operation in ("minus", "plus"):
        every = valid_cells(operation, low, high)
        rng = random.Random(f"{table['cells']['seed']}:{operation}")
        for x, y in rng.sample(every, round(table["cells"]["share"] * len(every))):
            cells.add((operation, x, y))
    combinations = {(side, *pair) for side, pair in table["combinations"].items()}
    return Split(frozenset(cells), frozenset(table["nouns"]), frozenset(combinations))
