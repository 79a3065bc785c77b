"""How well a member does on what it never saw: every held-out cell, noun and combination."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from probes.models.model import Model
from probes.observe.behavior import evaluate_behavior
from probes.prompts.batch import Batch, tokenize
from probes.prompts.catalog import pattern
from probes.prompts.held_out import family_split, valid_number_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.stats.intervals import BOOTSTRAP_DRAWS, Estimate, bootstrap_weights, percentile_interval

AXES = ("seen", "cells", "nouns", "combinations", "jointly")
"""What is held out of the questions: nothing, one thing, or all that can be at once."""

PATTERNS = ("take-away", "get-more")
BOTH_PATTERNS = "both"
"""What the cells of both patterns together are called."""

NumberCells = list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class AxisAccuracy:
    """Accuracy of one read-out on one axis, with its interval over cells."""

    pattern: str
    axis: str
    answer: str
    accuracy: Estimate
    cells: int
    questions: int


def axis_questions(
    pattern: Pattern, axis: str, *, per_cell: int, seed: int
) -> Iterator[tuple[tuple[int, int], Question]]:
    """Write questions for every cell of an axis, held out in that way and in no other."""
    split, rng = family_split(), random.Random(f"{seed}:{pattern.name}:{axis}")
    low, high = pattern.lexicon.number_range
    for cell in valid_number_pairs(pattern.operation, low, high):
        held = (pattern.operation, *cell) in split.number_pairs
        if held != (axis in ("cells", "jointly")):
            continue
        done = 0
        while done < per_cell:
            question = _sample_question(pattern, axis, cell, rng)
            if split.held_out_axes(question) == _expected_axes(pattern, axis):
                done += 1
                yield cell, question


def _expected_axes(pattern: Pattern, axis: str) -> frozenset[str]:
    if axis == "jointly":
        # Nouns are held out of sentences that take away, and of no others.
        nouns = {"noun"} if pattern.operation == "minus" else set()
        return frozenset({"cell", "combination"} | nouns)
    return frozenset() if axis == "seen" else frozenset({axis.removesuffix("s")})


def _sample_question(
    pattern: Pattern, axis: str, cell: tuple[int, int], rng: random.Random
) -> Question:
    split, frames = family_split(), pattern.templates
    fixed: dict[str, int | str] = {"x": cell[0], "y": cell[1]}
    if axis in ("nouns", "jointly") and pattern.operation == "minus":
        fixed["thing"] = rng.choice(sorted(split.nouns))
    if axis in ("combinations", "jointly"):
        _, verb, name = rng.choice(
            sorted(c for c in split.combinations if c[0] == pattern.operation)
        )
        fixed["op"], frames = verb, tuple(f for f in pattern.templates if f.name == name)
    question = pattern.sample_question(rng, frames, fixed)
    assert question is not None, "a valid cell has an answer in range"
    return question


@dataclass(frozen=True, eq=False, slots=True)
class AxisQuestions:
    """Questions of one pattern, held out along one axis, as a model reads them."""

    pattern: str
    axis: str
    cells: NumberCells
    batch: Batch


def all_axis_questions(
    tokenizer: PreTrainedTokenizerBase, *, suffix: str = "", per_cell: int = 4, seed: int = 0
) -> list[AxisQuestions]:
    """Write the questions of all axes, for any model with this tokenizer.

    `suffix` "-told" writes statements, to be read by completion.
    """
    found = []
    for axis in AXES:
        for name in PATTERNS:
            asked = pattern(name + suffix)
            if axis == "nouns" and asked.operation != "minus":
                continue
            drawn = list(axis_questions(asked, axis, per_cell=per_cell, seed=seed))
            batch = tokenize(tokenizer, [question for _, question in drawn])
            found.append(
                AxisQuestions(asked.name, axis, [(name, *cell) for cell, _ in drawn], batch)
            )
    return found


def evaluate_axes(
    model: Model, questions: Sequence[AxisQuestions], *, seed: int = 0
) -> list[AxisAccuracy]:
    """Ask a member about every cell of every axis."""
    scores = []
    for axis in AXES:
        together: dict[str, list[tuple[str, NumberCells, np.ndarray]]] = {}
        for part in questions:
            if part.axis == axis:
                seen = evaluate_behavior(model, part.batch)
                for k, answer in enumerate(seen.answers):
                    right = seen.correct[:, k].numpy().astype(float)
                    together.setdefault(answer, []).append((part.pattern, part.cells, right))
        for answer, parts in together.items():
            if len(parts) > 1:
                every = [cell for _, cells, _ in parts for cell in cells]
                parts = [
                    *parts,
                    (BOTH_PATTERNS, every, np.concatenate([right for *_, right in parts])),
                ]
            for name, cells, right in parts:
                accuracy = bootstrap_over_cells(right, cells, seed=seed)
                scores.append(
                    AxisAccuracy(name, axis, answer, accuracy, len(set(cells)), len(right))
                )
    return scores


def bootstrap_over_cells(correct: np.ndarray, cells: NumberCells, *, seed: int) -> Estimate:
    """Average over cells, with the interval from drawing whole cells."""
    order = {cell: k for k, cell in enumerate(sorted(set(cells)))}
    index = np.array([order[cell] for cell in cells])
    each = np.bincount(index, correct) / np.bincount(index)
    drawn = bootstrap_weights(len(each), BOOTSTRAP_DRAWS, seed=seed) @ each / len(each)
    return percentile_interval(float(each.mean()), drawn)
