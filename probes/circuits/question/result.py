"""Result of asking one question: the answer, its foils, attention and the circuit's use."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.circuits.circuit import Circuit
from probes.result import Result
from probes.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd


_ENDS_AT_ONCE = "It writes nothing: the most likely token ends the text."


@dataclass(frozen=True, slots=True)
class AnswerReading:
    """What a model gives as one answer.

    Attributes:
        name: Name of the answer.
        outcomes: Possible texts, the correct one first.
        probabilities: Of the whole text of each, behind the prompt; 0 to 1. A number that a digit
            follows is another number.
        logit_diff: The answer's logit minus the mean logit of its foils, at the readout.
        predicted: Most likely token of the vocabulary at the readout, behind `forced`.
        predicted_probability: Its probability there.
        forced: Text that the answers share before the readout, where they differ first.
    """

    name: str
    outcomes: tuple[str, ...]
    probabilities: tuple[float, ...]
    logit_diff: float
    predicted: str
    predicted_probability: float
    forced: str = ""

    @property
    def is_correct(self) -> bool:
        """Whether the correct text is more likely than each foil."""
        return self.probabilities[0] > max(self.probabilities[1:], default=0.0)

    @property
    def prediction(self) -> str:
        """The most likely token, in words."""
        where = f" behind {self.forced!r}" if self.forced else ""
        return f"Most likely token{where}: {self.predicted!r} ({self.predicted_probability:.2f})."


@dataclass(frozen=True, slots=True)
class HeadAttention:
    """Attention of one head from the readout to each role; sums to 1.

    Attributes:
        head: Its name.
        in_circuit: Whether an edge of the circuit begins at it.
        shares: Attention to each role.
    """

    head: str
    in_circuit: bool
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ContrastUse:
    """Faithfulness of the pattern's circuit on one question and its counterfactuals.

    Attributes:
        contrast: What the counterfactuals change.
        pairs: Number of counterfactuals.
        logit_diff: Mean logit difference of the question to them (logits).
        faithfulness: f of the circuit over the counterfactuals.
        complement: f of all other edges.
        random: Median f of random circuits of as many edges.
    """

    contrast: str
    pairs: int
    logit_diff: float
    faithfulness: Estimate
    complement: Estimate
    random: float


@dataclass(frozen=True, slots=True)
class CircuitUse:
    """How far one question runs through the circuit of its pattern.

    Attributes:
        circuit: Edges of the circuit, with their scores on the question.
        task: Pattern, contrasts and answer that the circuit was found on.
        pattern_faithfulness: f of the circuit on held-out prompts of the pattern.
        contrasts: The question's own faithfulness, by contrast.
        inside_share: Fraction of the absolute scores of all edges that the circuit has, on the
            question.
        pattern_scores: Scores of the circuit's edges on the pattern, in their order (logits).
        outside: Strongest edges on the question that the circuit lacks, with their scores.
    """

    circuit: Circuit
    task: str
    pattern_faithfulness: Estimate
    contrasts: tuple[ContrastUse, ...]
    inside_share: float
    pattern_scores: tuple[float, ...]
    outside: Circuit

    @property
    def driven(self) -> int:
        """Edges that carry at least half of their pattern's score on the question."""
        return sum(
            score * before > 0 and abs(score) >= abs(before) / 2
            for score, before in zip(self.circuit.scores, self.pattern_scores, strict=True)
        )


@dataclass(frozen=True, slots=True, repr=False)
class QuestionReport(Result):
    """One question in one model.

    Attributes:
        model: Name of the model.
        text: The prompt, as the model reads it.
        pattern: Name of the pattern that the text matches.
        template: Name of the template, or "free text".
        roles: Role and words, in the order of the text.
        continuation: What the model writes behind the prompt, greedily.
        answers: Answers with their foils.
        attention_roles: Roles of the columns of `attention`.
        attention: Attention of all heads from the readout of the first answer.
        circuit: Use of the pattern's circuit; None where there is none.
        circuit_reason: Why there is none; else "".
    """

    model: str
    text: str
    pattern: str
    template: str
    roles: tuple[tuple[str, str], ...]
    continuation: str
    answers: tuple[AnswerReading, ...]
    attention_roles: tuple[str, ...]
    attention: tuple[HeadAttention, ...]
    circuit: CircuitUse | None
    circuit_reason: str

    def summary(self) -> tuple[str, ...]:
        """The findings, one sentence each."""
        roles = ", ".join(f"{role}: {words!r}" for role, words in self.roles)
        lines = [f"{self.pattern} ({self.template}); {roles}."]
        for answer in self.answers:
            foils = ", ".join(
                f"{text} {probability:.2f}"
                for text, probability in zip(
                    answer.outcomes[1:], answer.probabilities[1:], strict=True
                )
            )
            word = "prefers" if answer.is_correct else "does not prefer"
            lines.append(
                f"{self.model} {word} the {answer.name} {answer.outcomes[0]!r}: "
                f"probability {answer.probabilities[0]:.2f} (foils: {foils or 'none'}), logit "
                f"difference {answer.logit_diff:.2f}. {answer.prediction}"
            )
        wrote = f"It writes {self.continuation!r}." if self.continuation else _ENDS_AT_ONCE
        lines.append(wrote)
        return (*lines, *self._attention_summary(), *self._circuit_summary())

    def table(self) -> "pd.DataFrame":
        """One row for each outcome of each answer."""
        import pandas as pd

        rows = [
            (answer.name, text, n == 0, probability)
            for answer in self.answers
            for n, (text, probability) in enumerate(
                zip(answer.outcomes, answer.probabilities, strict=True)
            )
        ]
        return pd.DataFrame(rows, columns=["answer", "text", "correct", "probability"])

    def _attention_summary(self) -> tuple[str, ...]:
        strongest = []
        for role in ("x", "op", "y"):
            if role in self.attention_roles:
                column = self.attention_roles.index(role)
                head = max(self.attention, key=lambda head: head.shares[column])
                strongest.append(f"{role} {head.shares[column]:.2f} ({head.head})")
        if not strongest:
            return ()
        return (f"Strongest attention from the readout: {', '.join(strongest)}.",)

    def _circuit_summary(self) -> tuple[str, ...]:
        use = self.circuit
        if use is None:
            return (f"No circuit: {self.circuit_reason}",)
        found_in = f", found in {use.circuit.model}" if use.circuit.model != self.model else ""
        lines = [
            f"The circuit of {use.task}{found_in} ({len(use.circuit)} of "
            f"{len(use.circuit.graph)} edges) keeps {use.pattern_faithfulness} of the logit "
            "difference on the pattern's held-out prompts."
        ]
        for each in use.contrasts:
            many = each.pairs > 1
            head = (
                f"On this question against {each.pairs} counterfactual{'s' * many} of "
                f"{each.contrast} "
            )
            if math.isnan(each.faithfulness.value):
                lines.append(
                    f"{head}the logit difference does not change reliably: f is undefined."
                )
                continue
            kept, rest = (
                str(value) if many else f"{value.value:.2f}"
                for value in (each.faithfulness, each.complement)
            )
            lines.append(
                f"{head}it keeps {kept}; all other edges keep {rest}, random circuits "
                f"{each.random:.2f} (median)."
            )
        strongest = sorted(
            zip(use.outside.edges, use.outside.scores, strict=True), key=lambda edge: -abs(edge[1])
        )
        outside = ", ".join(f"{edge} ({score:+.2f})" for edge, score in strongest[:3])
        return (
            *lines,
            f"{use.driven} of {len(use.circuit)} edges carry at least half of their pattern's "
            f"score here. The circuit has {use.inside_share:.0%} of the absolute scores of all "
            f"edges; the strongest edges outside of it: {outside or 'none'}.",
        )

    def __repr__(self) -> str:
        return f"<QuestionReport of {self.model}: {self.text[:80]!r}>"
