"""The items of a pattern that a model solves: sentence templates and pairs of verbs.

A model whose gate is partial answers some items and guesses at others. Where both are mixed, the
ceiling of every interchange is low, and a claim would be tested on guesses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from probes.errors import PatternError
from probes.models.model import Model
from probes.observe.gate import GATE_QUESTIONS, OPEN_ACCURACY, answer_questions, gate_behavior
from probes.observe.result import Gate
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.pair_batch import tokenizable_by

_ASKED = 150  # Questions of each operation that items are chosen on.
_WANTED = (1 + OPEN_ACCURACY) / 2  # Above the gate's threshold, as the best of several is chosen.
_FEWEST = 12  # Questions of each operation that are left of those.


@dataclass(frozen=True)
class SolvedItems:
    """Part of a pattern whose gates are open.

    Attributes:
        pattern: The pattern with fewer templates or verbs.
        gates: Its gates, on questions that it was not chosen on.
        text: What is left, in words.
    """

    pattern: Pattern
    gates: tuple[Gate, ...]
    text: str


def solved_items(model: Model, pattern: Pattern, *, seed: int) -> SolvedItems | None:
    """Templates and verbs with which a model answers both operations; None if there are none.

    Items are left out one at a time, each time the one without which the accuracy of the worse
    operation is highest, until it is above the threshold of the gate. Questions of the choice and
    of the gate differ.
    """
    sides = (pattern, pattern.flipped())
    readable = tokenizable_by(model.tokenizer)
    asked = [
        side.sample_questions(_ASKED, seed=seed + 50 + n, keep=readable)
        for n, side in enumerate(sides)
    ]
    right = [answer_questions(model, each).correct.all(1).numpy() for each in asked]
    kept = _choose(pattern, asked, right)
    if kept is None:
        return None
    templates, verbs = kept
    part = replace(
        pattern,
        templates=tuple(pattern.templates[n] for n in templates),
        lexicon=replace(pattern.lexicon, verbs=tuple(pattern.lexicon.verbs[n] for n in verbs)),
    )
    known = {question.text for questions in asked for question in questions}
    try:
        fresh = part.sample_questions(
            GATE_QUESTIONS, seed=seed, keep=lambda one: readable(one) and one.text not in known
        )
    except PatternError:  # So few items that no other questions are left.
        return None
    gates = gate_behavior(answer_questions(model, fresh), fresh, seed=seed)
    if any(gate.state != "open" for gate in gates):
        return None
    text = (
        f"{len(templates)} of {len(pattern.templates)} sentence templates and {len(verbs)} of "
        f"{len(pattern.lexicon.verbs)} pairs of verbs, which the model solves"
    )
    return SolvedItems(part, gates, text)


def _choose(
    pattern: Pattern, asked: Sequence[Sequence[Question]], right: Sequence[np.ndarray]
) -> tuple[list[int], list[int]] | None:
    """Numbers of the templates and of the pairs of verbs that are kept."""
    names = [template.name for template in pattern.templates]
    pair_of = {
        dict(forms)["base"]: n for n, pair in enumerate(pattern.lexicon.verbs) for _, forms in pair
    }
    items = [
        np.array([(names.index(one.template), pair_of[str(one["op"])]) for one in questions])
        for questions in asked
    ]
    kept = (list(range(len(names))), list(range(len(pattern.lexicon.verbs))))

    def accuracy(left: tuple[list[int], list[int]]) -> float:
        scores = []
        for each, correct in zip(items, right, strict=True):
            inside = np.isin(each[:, 0], left[0]) & np.isin(each[:, 1], left[1])
            scores.append(correct[inside].mean() if inside.sum() >= _FEWEST else 0.0)
        return float(min(scores))

    while accuracy(kept) < _WANTED:
        smaller = [
            (
                [n for n in kept[0] if axis or n != item],
                [n for n in kept[1] if not axis or n != item],
            )
            for axis in (0, 1)
            for item in kept[axis]
            if len(kept[axis]) > 1
        ]
        smaller = [left for left in smaller if accuracy(left)]
        if not smaller:
            return None
        kept = max(smaller, key=accuracy)
    return kept
