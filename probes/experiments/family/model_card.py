"""Model cards: what each member is, how it was made, and what it was measured to do."""

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
    "base": "Trained on statements only, before it ever saw a question.",
    "full": "`base` tuned on questions and answers: the teacher.",
    "full-b": "The same recipe as `full` from other seeds, weights and texts: the ceiling of what "
    '"the same" can mean. It is the second draw: seeds 11 and 12 stood at 0.60 on held-out cells '
    "after 2,000 of 3,000 steps and were stopped, so what a seed generalizes to varies.",
    "distilled": "Every second layer of `full`, trained on with the soft labels of `full`.",
    "distilled-narrow": "Another width and head count, from fresh weights, with the soft labels of "
    "`full`: no basis is shared.",
    "scratch": "The shape of `distilled` from fresh weights with hard labels: the control.",
    "copying": "Trained on the same sentences, and asked only for numbers that stand in them: the "
    "operation never matters. A stranger, as like the family as a net can be that cannot count.",
    "permuted": "Trained on the same questions, each with the number of another question's answer. "
    "A stranger: it has learned the words and the nouns of the answers, and no counting.",
    "ticket": "A winning ticket of `full`: a quarter of the weights of its layers, found in two "
    "rounds of magnitude pruning, set back to what they were in `base` and trained again; the "
    "others are exactly zero.",
    "regrown": "`distilled`, grown back to the depth of `full` by two blocks that changed no "
    "logit, and trained on with hard labels.",
}


def write_card(folder: Path) -> list[AxisAccuracy]:
    """Measure a member on everything it never saw, and write its card beside its weights."""
    chosen = recipe(folder.name)
    # The base never saw a question: it is read by completing statements.
    suffix = "-told" if chosen.statements == 1.0 else ""
    model = load(folder)
    asked = all_axis_questions(model.tokenizer, suffix=suffix, per_cell=PER_CELL, seed=SEED)
    scores = evaluate_axes(model, asked, seed=SEED)
    written = [
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
    numbers = {"per_cell": PER_CELL, "seed": SEED, "scores": written}
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
made for interpretability experiments on "have x, take away y". It knows nothing else.

## Recipe

Trained on texts of the project's own corpus (frames × verbs × nouns × names × numbers 0–20). Held
out: 15 % of the (x, y) cells of each operation, eight nouns in sentences that take away, and one
verb–frame combination per operation. (The clause of that combination does stand in texts about two
owners, behind a sentence about the other one.) Weights are stored in float16.

| dial | value |
|---|---|
{settings}

## Accuracy

Share of whole answers right, on *every* cell ({PER_CELL} questions each); 95 % interval over cells.
Axis: what of the question was never seen in training.

| pattern | axis | answer | accuracy | interval | cells | questions |
|---|---|---|---|---|---|---|
{rows}
"""
