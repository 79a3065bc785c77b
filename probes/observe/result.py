"""Results of observing a model: its gate, and its distance from another model's behavior."""

from dataclasses import dataclass
from typing import Literal

from probes.stats.intervals import Estimate

GateState = Literal["open", "partial", "too few to tell", "closed"]
GATE_STATES: tuple[GateState, ...] = ("open", "partial", "too few to tell", "closed")
"""States from best to worst."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Accuracy of one answer, against the best simple heuristic on the same questions.

    Attributes:
        model: Name of the model.
        pattern: Name of the pattern.
        answer: Name of the answer.
        n_questions: Number of questions.
        accuracy: Fraction of whole answers that are correct.
        heuristic: Best heuristic: copy one slot, or always give the most common answer.
        heuristic_accuracy: Its accuracy.
        margin: Accuracy minus the heuristic's, paired by question.
        logit_diff: The answer's logit minus the mean logit of its foils.
        state: "closed" where the interval of the margin reaches 0; else "open" where the interval
            of the accuracy is above `gate.OPEN_ACCURACY`, and "partial" where it is not. "too few
            to tell" in place of "closed" where correct answers only would be closed, too, and
            for the questions of one or two pairs.
    """

    model: str
    pattern: str
    answer: str
    n_questions: int
    accuracy: Estimate
    heuristic: str
    heuristic_accuracy: float
    margin: Estimate
    logit_diff: Estimate
    state: GateState

    @property
    def has_behavior(self) -> bool:
        """Whether the gate is open or partial."""
        return self.state in ("open", "partial")

    @property
    def too_few_reason(self) -> str:
        """Sentence for a gate with too few questions."""
        return (
            f"{self.n_questions} questions are too few to tell whether {self.model} has the "
            f"behavior: {self.answer} of {self.pattern!r} has accuracy {self.accuracy}. Give more "
            "pairs."
        )


@dataclass(frozen=True, slots=True)
class BehavioralDistance:
    """Distance of a relative's behavior from its parent's.

    Attributes:
        readout_kl: KL(parent || relative) in bits per readout; at least 0.
        text_kl: The same in bits per token of the texts with their answers.
        accuracy: Fraction of correct questions, by answer.
        all_correct: Fraction of questions with all answers correct.
        agreement: Fraction of questions whose most likely readout tokens are the parent's.
        gates: Gate of each answer.
    """

    readout_kl: Estimate
    text_kl: Estimate
    accuracy: dict[str, Estimate]
    all_correct: Estimate
    agreement: Estimate
    gates: tuple[Gate, ...]

    @property
    def behavior_absent(self) -> bool:
        """Whether the model lacks the behavior, or too few questions show it."""
        return not all(gate.has_behavior for gate in self.gates)
