"""The interventions behind a word, and the prompts on which two models part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probes.comparison.model_facts import View
from probes.comparison.verdict import Fate


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt on which the relative does otherwise.

    Attributes:
        text: What was asked.
        source: What the state that was put in had read.
        expected, found: What the full model makes of it, and the relative.
    """

    text: str
    source: str
    expected: str
    found: str


@dataclass(frozen=True, eq=False)
class Why:
    """Why something has its word.

    Attributes:
        fate: The word, its reason and the tests that were read.
        interventions: What was put in where, and what it did in either model.
        failing: Prompts on which the two part most.
    """

    fate: Fate
    interventions: pd.DataFrame
    failing: tuple[Item, ...]

    def lines(self) -> tuple[str, ...]:
        """Say it in plain sentences."""
        fate = self.fate
        name = fate.subject or fate.there
        found = [f"{name}: {fate.word}{f' ({fate.there})' if fate.there else ''} – {fate.reason}."]
        for test in fate.evidence:
            state = {True: "passed", False: "against", None: "open"}[test.passed]
            value = "not measured" if test.value is None else str(test.value)
            beside = "" if test.decides else ", shown beside"
            found.append(f"{test.name}: {value}, wanted {test.bar}: {state}{beside}")
        for item in self.failing:
            found.append(
                f"“{item.text}” ← “{item.source}”: {item.expected} expected, {item.found} found"
            )
        return tuple(found)

    def __repr__(self) -> str:
        return "\n".join((*self.lines(), "", self.interventions.to_string(index=False)))


def interventions(
    views: Sequence[View], fate: Fate, roles: Sequence[str], answers: Sequence[str]
) -> pd.DataFrame:
    """Lay out the strongest effects of a head in one model and of its counterparts in the other.

    Returns:
        A table: what was patched, from which contrast, at which role, which answer it moves, and
        by how many logits, with the standard error over prompts.
    """
    rows = []
    for view, names in zip(views, (fate.subject, fate.there), strict=True):
        for name in filter(None, names.split(" + ")):
            if name not in view.components:
                continue
            at = view.components.index(name)
            for contrast, effects in view.effects.items():
                found = np.abs(np.nan_to_num(effects[at]))
                role, answer = np.unravel_index(int(found.argmax()), found.shape)
                rows.append(
                    {
                        "head": name,
                        "of": "full" if view is views[0] else "relative",
                        "contrast": contrast,
                        "role": roles[int(role)],
                        "answer": answers[int(answer)],
                        "fall": float(effects[at][role, answer]),
                        "error": float(view.effect_errors[contrast][at][role, answer]),
                    }
                )
    return pd.DataFrame(rows)
