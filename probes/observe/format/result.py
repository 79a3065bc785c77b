"""Results of fitting a prompt format, without torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.observe.result import GATE_STATES, Gate, GateState
from probes.result import Result

if TYPE_CHECKING:
    import pandas as pd


def _weakest(gates: Iterable[Gate]) -> Gate | None:
    return max(
        gates,
        key=lambda gate: (GATE_STATES.index(gate.state), -gate.score.value),
        default=None,
    )


@dataclass(frozen=True, slots=True)
class FormatScore:
    """One model on one format.

    Attributes:
        model, format: Their names.
        gates: Gate of each answer, for the pattern and its opposite.
        reason: Why the format was not tried; else "".
    """

    model: str
    format: str
    gates: tuple[Gate, ...] = ()
    reason: str = ""

    @property
    def weakest(self) -> Gate | None:
        """Gate in the worst state, of these the least accurate; None if none was measured."""
        return _weakest(self.gates)

    @property
    def state(self) -> GateState:
        """State of the weakest gate; "closed" if none was measured."""
        return self.weakest.state if self.weakest else "closed"

    def describe(self) -> str:
        """Weakest gate in words."""
        gate = self.weakest
        if gate is None:
            return f"{self.model}, {self.format}: {self.reason}"
        return (
            f"{self.model}, {self.format}: {gate.state}. Weakest is {gate.answer} of "
            f"{gate.pattern!r}: {gate.score_name} {gate.score} on {gate.n_questions} prompts, "
            f"{gate.heuristic!r} {gate.heuristic_accuracy:.2f}"
        )


@dataclass(frozen=True, slots=True, repr=False)
class FormatFit(Result):
    """Prompt formats that were tried for a pattern, and the selected one on other prompts.

    Attributes:
        models: Models for which one format was sought.
        pattern: Name of the pattern.
        prompts: Most prompts of each operation in each half.
        seed: Seed of the prompts.
        selection: Each format and model on the half that selects.
        held_out: The selected format on the other half, for each model.
    """

    models: tuple[str, ...]
    pattern: str
    prompts: int
    seed: int
    selection: tuple[FormatScore, ...]
    held_out: tuple[FormatScore, ...]

    @property
    def selected(self) -> str:
        """Name of the selected format."""
        return self.held_out[0].format

    @property
    def found(self) -> bool:
        """Whether all models have the behavior in the selected format, on held-out prompts."""
        return all(score.state in ("open", "partial") for score in self.held_out)

    @property
    def weakest(self) -> Gate | None:
        """Weakest gate of all models on held-out prompts."""
        return _weakest(gate for score in self.held_out for gate in score.gates)

    @property
    def state(self) -> GateState:
        """Worst state of the selected format on held-out prompts."""
        return GATE_STATES[max(GATE_STATES.index(score.state) for score in self.held_out)]

    def summary(self) -> tuple[str, ...]:
        """Selected format with its accuracy on held-out prompts, or that there is none."""
        models = " and ".join(self.models)
        tried = len({one.format for one in self.selection if not one.reason})
        head = f"{self.selected}: selected for {models} on {self.pattern!r} from {tried} formats."
        if not self.found:
            head = (
                f"No format opens the gate of {self.pattern!r} in {models}; {tried} were tried, "
                f"and {self.selected} is nearest."
            )
        lines = [f"On held-out prompts, {score.describe()}." for score in self.held_out]
        refused: dict[str, dict[str, None]] = {}
        for one in self.selection:
            if one.reason:
                refused.setdefault(one.reason, {})[one.format] = None
        lines += [f"Not tried: {', '.join(names)}. {why}" for why, names in refused.items()]
        return (head, *lines)

    def table(self) -> "pd.DataFrame":
        """One row for each half, format and model: the weakest gate."""
        import pandas as pd

        rows = []
        for half, scores in (("selection", self.selection), ("held out", self.held_out)):
            for score in scores:
                gate = score.weakest
                if gate is None:
                    continue
                rows.append(
                    {
                        "half": half,
                        "model": score.model,
                        "format": score.format,
                        "weakest": f"{gate.answer} of {gate.pattern}",
                        "prompts": gate.n_questions,
                        "asked": gate.score_name,
                        "score": gate.score.value,
                        "low": gate.score.low,
                        "high": gate.score.high,
                        "heuristic": gate.heuristic,
                        "heuristic accuracy": gate.heuristic_accuracy,
                        "gate": gate.state,
                    }
                )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"<{self.summary()[0]}>"
