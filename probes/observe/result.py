"""Results of observing a model: its gate, and its distance from another model's behavior."""

from dataclasses import dataclass
from typing import Literal

from probes.stats.intervals import Estimate

GateState = Literal["open", "partial", "closed"]


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
            of the accuracy is above `gate.OPEN_ACCURACY`, and "partial" where it is not.
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
        """Whether some gate is closed."""
        return any(gate.state == "closed" for gate in self.gates)
