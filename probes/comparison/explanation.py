"""The interventions behind a word, and the prompts on which two models part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probes.comparison.model_facts import PlotData
from probes.comparison.verdict import Verdict


@dataclass(frozen=True, slots=True)
class FailingPrompt:
    """A prompt on which the relative does otherwise.

    Attributes:
        text: What was asked.
        source: What the state that was put in had read.
        expected, found: What the full model makes of it, and the relative.
    """

    text: str
    source: str
    expected: str
    observed: str


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why something has its word.

    Attributes:
        fate: The word, its reason and the tests that were read.
        interventions: What was put in where, and what it did in either model.
        failing: Prompts on which the two part most.
    """

    verdict: Verdict
    interventions: pd.DataFrame
    failing_prompts: tuple[FailingPrompt, ...]

    def lines(self) -> tuple[str, ...]:
        """Say it in plain sentences."""
        verdict = self.verdict
        name = verdict.subject or verdict.counterpart
        found = [
            f"{name}: "
            f"{verdict.label}{f' ({verdict.counterpart})' if verdict.counterpart else ''} – "
            f"{verdict.reason}."
        ]
        for test in verdict.tests:
            state = {True: "passed", False: "against", None: "open"}[test.passed]
            value = "not measured" if test.value is None else str(test.value)
            beside = "" if test.is_deciding else ", shown beside"
            found.append(f"{test.name}: {value}, wanted {test.threshold}: {state}{beside}")
        for item in self.failing_prompts:
            found.append(
                f"“{item.text}” ← “{item.source}”: {item.expected} expected, {item.observed} found"
            )
        return tuple(found)

    def __repr__(self) -> str:
        return "\n".join((*self.lines(), "", self.interventions.to_string(index=False)))


def strongest_effects(
    plot_data: Sequence[PlotData], verdict: Verdict, roles: Sequence[str], answers: Sequence[str]
) -> pd.DataFrame:
    """Lay out the strongest effects of a head in one model and of its counterparts in the other.

    Returns:
        A table: what was patched, from which contrast, at which role, which answer it moves, and
        by how many logits, with the standard error over prompts.
    """
    rows = []
    for view, names in zip(plot_data, (verdict.subject, verdict.counterpart), strict=True):
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
                        "of": "full" if view is plot_data[0] else "relative",
                        "contrast": contrast,
                        "role": roles[int(role)],
                        "answer": answers[int(answer)],
                        "fall": float(effects[at][role, answer]),
                        "error": float(view.effect_errors[contrast][at][role, answer]),
                    }
                )
    return pd.DataFrame(rows)
