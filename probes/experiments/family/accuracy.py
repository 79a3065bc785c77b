"""Accuracy of a model on each held-out axis: number pairs, nouns, and verb–frame combinations."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from probes.models.model import Model
from probes.observe.behavior import evaluate_behavior
from probes.prompts.catalog import pattern
from probes.prompts.held_out import family_split, valid_number_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import Batch, tokenize
from probes.stats.intervals import BOOTSTRAP_DRAWS, Estimate, bootstrap_weights, percentile_interval

AXES = ("seen", "cells", "nouns", "combinations", "jointly")
"""What is held out: nothing, number pairs (cells), nouns, combinations, or all together."""

PATTERNS = ("take-away", "get-more")
BOTH_PATTERNS = "both"
"""Name for the cells of both patterns together."""

NumberCells = list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class AxisAccuracy:
    """Accuracy of one answer on one axis, with its interval over cells."""

    pattern: str
    axis: str
    answer: str
    accuracy: Estimate
    cells: int
    questions: int


def axis_questions(
    pattern: Pattern, axis: str, *, per_cell: int, seed: int
) -> Iterator[tuple[tuple[int, int], Question]]:
    """Questions for every cell of an axis, held out along that axis alone."""
    split, rng = family_split(), random.Random(f"{seed}:{pattern.name}:{axis}")
    low, high = pattern.lexicon.number_range
    for cell in valid_number_pairs(pattern.operation, low, high):
        is_held_out = (pattern.operation, *cell) in split.number_pairs
        if is_held_out != (axis in ("cells", "jointly")):
            continue
        done = 0
        while done < per_cell:
            question = _sample_question(pattern, axis, cell, rng)
            if split.held_out_axes(question) == _expected_axes(pattern, axis):
                done += 1
                yield cell, question


def _expected_axes(pattern: Pattern, axis: str) -> frozenset[str]:
    if axis == "jointly":
        # Nouns are held out of subtraction only.
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
    """Tokenized questions of one pattern, held out along one axis."""

    pattern: str
    axis: str
    cells: NumberCells
    batch: Batch


def all_axis_questions(
    tokenizer: PreTrainedTokenizerBase, *, suffix: str = "", per_cell: int = 4, seed: int = 0
) -> list[AxisQuestions]:
    """Questions of all axes, for any model with this tokenizer.

    The suffix "-told" gives statements to complete.
    """
    questions = []
    for axis in AXES:
        for name in PATTERNS:
            own = pattern(name + suffix)
            if axis == "nouns" and own.operation != "minus":
                continue
            sampled = list(axis_questions(own, axis, per_cell=per_cell, seed=seed))
            batch = tokenize(tokenizer, [question for _, question in sampled])
            cells = [(name, *cell) for cell, _ in sampled]
            questions.append(AxisQuestions(own.name, axis, cells, batch))
    return questions


def evaluate_axes(
    model: Model, questions: Sequence[AxisQuestions], *, seed: int = 0
) -> list[AxisAccuracy]:
    """Accuracy on every axis, for each pattern and for both together."""
    scores = []
    for axis in AXES:
        by_answer: dict[str, list[tuple[str, NumberCells, np.ndarray]]] = {}
        for part in questions:
            if part.axis == axis:
                behavior = evaluate_behavior(model, part.batch)
                for k, answer in enumerate(behavior.answers):
                    correct = behavior.correct[:, k].numpy().astype(float)
                    by_answer.setdefault(answer, []).append((part.pattern, part.cells, correct))
        for answer, parts in by_answer.items():
            if len(parts) > 1:
                all_cells = [cell for _, cells, _ in parts for cell in cells]
                all_correct = np.concatenate([correct for *_, correct in parts])
                parts = [*parts, (BOTH_PATTERNS, all_cells, all_correct)]
            for name, cells, correct in parts:
                accuracy = bootstrap_over_cells(correct, cells, seed=seed)
                scores.append(
                    AxisAccuracy(name, axis, answer, accuracy, len(set(cells)), len(correct))
                )
    return scores


def bootstrap_over_cells(correct: np.ndarray, cells: NumberCells, *, seed: int) -> Estimate:
    """Mean over cells, with a bootstrap interval over cells."""
    order = {cell: k for k, cell in enumerate(sorted(set(cells)))}
    index = np.array([order[cell] for cell in cells])
    per_cell = np.bincount(index, correct) / np.bincount(index)
    weights = bootstrap_weights(len(per_cell), BOOTSTRAP_DRAWS, seed=seed)
    return percentile_interval(float(per_cell.mean()), weights @ per_cell / len(per_cell))
