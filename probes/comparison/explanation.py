"""The interventions behind a verdict, and prompts on which two models differ most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probes.comparison.model_facts import PlotData
from probes.comparison.verdict import Verdict


@dataclass(frozen=True, slots=True)
class FailingPrompt:
    """A prompt on which two models differ.

    Attributes:
        text: Base prompt.
        source: Source prompt of the interchanged or patched state.
        expected, observed: Result in the full model and in the relative.
    """

    text: str
    source: str
    expected: str
    observed: str


@dataclass(frozen=True, eq=False)
class Explanation:
    """Evidence behind a verdict.

    Attributes:
        verdict: The verdict, with its reason and its tests.
        interventions: Interventions and their effects in both models.
        failing_prompts: Prompts on which the two differ most.
    """

    verdict: Verdict
    interventions: pd.DataFrame
    failing_prompts: tuple[FailingPrompt, ...]

    def lines(self) -> tuple[str, ...]:
        """The verdict, its tests and the failing prompts, one line each."""
        verdict = self.verdict
        site = f" ({verdict.counterpart})" if verdict.counterpart else ""
        name = verdict.subject or verdict.counterpart
        lines = [f"{name}: {verdict.label}{site} – {verdict.reason}."]
        for test in verdict.tests:
            state = {True: "passed", False: "failed", None: "undecided"}[test.passed]
            note = "" if test.is_deciding else ", not deciding"
            lines.append(
                f"{test.name}: {test.value_text}, required {test.threshold}: {state}{note}"
            )
        for prompt in self.failing_prompts:
            lines.append(
                f"“{prompt.text}” ← “{prompt.source}”: {prompt.expected} expected, "
                f"{prompt.observed} found"
            )
        return tuple(lines)

    def __repr__(self) -> str:
        return "\n".join((*self.lines(), "", self.interventions.to_string(index=False)))


def strongest_effects(
    plot_data: Sequence[PlotData], verdict: Verdict, roles: Sequence[str], answers: Sequence[str]
) -> pd.DataFrame:
    """Strongest patching effects of a head in one model and of its counterparts in the other.

    Returns:
        A table: head, model, contrast, role, answer, fall of the logit difference, and its
        standard error over prompts.
    """
    rows = []
    for data, names in zip(plot_data, (verdict.subject, verdict.counterpart), strict=True):
        for name in filter(None, names.split(" + ")):
            if name not in data.components:
                continue
            at = data.components.index(name)
            for contrast, effects in data.effects.items():
                sizes = np.abs(np.nan_to_num(effects[at]))
                role, answer = np.unravel_index(int(sizes.argmax()), sizes.shape)
                rows.append(
                    {
                        "head": name,
                        "of": "full" if data is plot_data[0] else "relative",
                        "contrast": contrast,
                        "role": roles[int(role)],
                        "answer": answers[int(answer)],
                        "fall": float(effects[at][role, answer]),
                        "error": float(data.effect_errors[contrast][at][role, answer]),
                    }
                )
    return pd.DataFrame(rows)
