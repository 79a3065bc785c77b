"""Results of observing a model: its gate, and its distance from another model's behavior."""

from dataclasses import dataclass
from typing import Literal

from probes.stats.intervals import Estimate

GateCriterion = Literal["accuracy", "choice", "logit-diff", "none"]
"""What a gate asks of an answer.

"accuracy": the whole answer is the most likely continuation. "choice": the answer is more likely
than each of its foils. "logit-diff": the answer's logit is above the mean of its foils on average.
"none": nothing; the behavior is not established.
"""
GATE_CRITERIA: tuple[GateCriterion, ...] = ("accuracy", "choice", "logit-diff", "none")

GateState = Literal["open", "partial", "not established", "too few to tell", "closed"]
GATE_STATES: tuple[GateState, ...] = (
    *("open", "partial", "not established", "too few to tell", "closed"),
)
"""States from best to worst."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether a model gives one answer, against the best simple heuristic on the same questions.

    Attributes:
        model: Name of the model.
        pattern: Name of the pattern.
        answer: Name of the answer.
        n_questions: Number of questions.
        accuracy: Fraction of whole answers that are correct.
        heuristic: Best heuristic: copy one slot, always give the most common answer, or guess: any
            outcome that the prompt names, or any outcome at all where the gate asks for a choice.
        heuristic_accuracy: Its accuracy.
        margin: Score minus the heuristic's accuracy, paired by question.
        logit_diff: The answer's logit minus the mean logit of its foils.
        state: "closed" where the interval of the margin (for "logit-diff", of the logit difference)
            reaches 0; else "open" where the interval of the score is above `gate.OPEN_ACCURACY` (or
            the criterion is "logit-diff"), and "partial" where it is not. "too few to tell" in
            place of "closed" where correct answers only would be closed, too, and for the questions
            of one or two pairs. "not established" where the criterion is "none".
        criterion: What the gate asks.
        choice: Fraction of questions in which the answer beats each of its foils; None without
            foils.
        chance: Fraction that a guess among the outcomes gets right.
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
    criterion: GateCriterion = "accuracy"
    choice: Estimate | None = None
    chance: float = 0.0

    @property
    def has_behavior(self) -> bool:
        """Whether the gate is open or partial."""
        return self.state in ("open", "partial")

    @property
    def is_passed(self) -> bool:
        """Whether the mechanism is measured, as the gate is open or partial, or asks nothing."""
        return self.has_behavior or self.state == "not established"

    @property
    def score(self) -> Estimate:
        """Fraction of questions that the gate counts as right, 0 to 1."""
        asks_choice = self.criterion == "choice" and self.choice is not None
        return self.choice if asks_choice and self.choice else self.accuracy

    @property
    def score_name(self) -> str:
        """Words for the score, "accuracy" or that the answer is above its foils."""
        return "answer above its foils" if self.criterion == "choice" else "accuracy"

    @property
    def counted(self) -> str:
        """Words for what `Behavior.counted` counts, paired between models."""
        return "accuracy" if self.criterion in ("accuracy", "none") else "accuracy among foils"

    @property
    def sentence(self) -> str:
        """What was asked, the score beside the best heuristic, and the state."""
        score = (
            f"{self.model}, {self.answer}: {self.score_name} {self.score.value:.0%} "
            f"[{self.score.low:.0%}, {self.score.high:.0%}], best heuristic ({self.heuristic}) "
            f"{self.heuristic_accuracy:.0%}"
        )
        if self.criterion == "choice":
            score += f", chance {self.chance:.0%}, whole answers right {self.accuracy.value:.0%}"
        if self.criterion == "logit-diff":
            score += f", logit difference {self.logit_diff}"
        return f"{score}: gate {self.state}."

    @property
    def notice(self) -> str:
        """Sentence for pages and summaries where the behavior is not established; else ""."""
        if self.state != "not established":
            return ""
        return (
            f"Behavior not established: {self.model} was not asked whether it has {self.answer} of "
            f"{self.pattern!r} (gate none; accuracy {self.accuracy}). What follows may be the "
            "mechanism of another behavior."
        )

    @property
    def closed_reason(self) -> str:
        """Sentence for a closed gate."""
        return (
            f"{self.model} does not have the behavior: {self.answer} of {self.pattern!r} has "
            f"{self.score_name} {self.score}, the heuristic {self.heuristic!r} "
            f"{self.heuristic_accuracy:.2f}."
        )

    @property
    def too_few_reason(self) -> str:
        """Sentence for a gate with too few questions."""
        return (
            f"{self.n_questions} questions are too few to tell whether {self.model} has the "
            f"behavior: {self.answer} of {self.pattern!r} has {self.score_name} {self.score}. Give "
            "more pairs."
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
        return not all(gate.is_passed for gate in self.gates)
