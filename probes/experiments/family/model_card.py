"""Model cards: recipe and held-out accuracy of each shipped model."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from probes.experiments.family.accuracy import AxisAccuracy, all_axis_questions, evaluate_axes
from probes.experiments.family.recipes import Recipe, recipe
from probes.files import write_atomic
from probes.models.model import load

PER_CELL, SEED = 8, 0

NOTES = {
    "base": "Trained on statements only: it never saw a question.",
    "full": "`base`, trained further on questions and answers: the teacher.",
    "full-b": "The recipe of `full` with other seeds of weights and texts: the other-seed model. "
    "It is the second attempt: seeds 11 and 12 had accuracy 0.60 on held-out cells "
    "after 2,000 of 3,000 steps and were stopped, so generalization varies with the "
    "seed.",
    "distilled": "Every second layer of `full`, trained with the soft labels of `full`.",
    "distilled-narrow": "Another width and number of heads, from fresh weights, with the soft labels of "
    "`full`: it shares no basis with `full`.",
    "scratch": "The shape of `distilled`, from fresh weights with hard labels: the control.",
    "copying": "Trained on the same sentences with questions about a number in the text, so that "
    "the operation never matters. A negative control with the same words and no "
    "arithmetic.",
    "permuted": "Trained on the same questions, each with the number of another question's answer. "
    "A negative control with the words and the nouns of the answers, and no arithmetic.",
    "ticket": "A winning ticket of `full`: a quarter of the weights of its layers, from two "
    "rounds of magnitude pruning, reset to their values in `base` and trained again; "
    "the others are exactly zero.",
    "regrown": "`distilled`, grown to the depth of `full` by two blocks that changed no logit, and"
    " trained further with hard labels.",
}
"""First sentences of the cards."""


def write_card(folder: Path) -> list[AxisAccuracy]:
    """Measure a model on every held-out axis, and write its card next to its weights."""
    chosen = recipe(folder.name)
    # The base model never saw a question: it completes statements.
    suffix = "-told" if chosen.statements == 1.0 else ""
    model = load(folder)
    questions = all_axis_questions(model.tokenizer, suffix=suffix, per_cell=PER_CELL, seed=SEED)
    scores = evaluate_axes(model, questions, seed=SEED)
    rows = [
        {
            "pattern": score.pattern,
            "axis": score.axis,
            "answer": score.answer,
            "value": round(score.accuracy.value, 4),
            "low": round(score.accuracy.low, 4),
            "high": round(score.accuracy.high, 4),
            "cells": score.cells,
            "questions": score.questions,
        }
        for score in scores
    ]
    numbers = {"per_cell": PER_CELL, "seed": SEED, "scores": rows}
    write_atomic(folder / "accuracy.json", json.dumps(numbers, indent=1).encode())
    write_atomic(folder / "README.md", _card(chosen, scores).encode())
    return scores


def _card(chosen: Recipe, scores: Sequence[AxisAccuracy]) -> str:
    settings = "\n".join(
        f"| {name} | {value} |" for name, value in asdict(chosen).items() if name != "name"
    )
    rows = "\n".join(
        f"| {s.pattern} | {s.axis} | {s.answer} | {s.accuracy.value:.3f} "
        f"| {s.accuracy.low:.3f} – {s.accuracy.high:.3f} | {s.cells} | {s.questions} |"
        for s in scores
    )
    return f"""---
license: apache-2.0
library_name: transformers
---
# {chosen.name}

{NOTES[chosen.name]}

A Llama-shaped model of {chosen.layers} layers, width {chosen.d_model} and {chosen.heads} heads,
made for interpretability experiments on "have x, take away y". It was trained on nothing else.

## Recipe

Trained on texts of the project's own corpus (frames × verbs × nouns × names × numbers 0–20). Held
out: 15 % of the (x, y) cells of each operation, eight nouns in sentences that take away, and one
verb–frame combination per operation. (The clause of that combination is in texts about two
owners, after a sentence about the other one.) Weights are stored in float16.

| setting | value |
|---|---|
{settings}

## Accuracy

Fraction of whole answers that are correct, on *every* cell ({PER_CELL} questions each); 95 % interval over
cells. Axis: what is held out of training.

| pattern | axis | answer | accuracy | interval | cells | questions |
|---|---|---|---|---|---|---|
{rows}
"""
