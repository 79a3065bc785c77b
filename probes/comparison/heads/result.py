"""Result of pairing the heads of two models."""

from dataclasses import dataclass

from probes.stats.intervals import Estimate

MIN_RELIABILITY = 0.5
"""Smallest split-half cosine of a head with reliable effects."""

MAX_THRESHOLD = 0.95
"""Above this threshold a pairing score has no meaning: models of the null nearly reach 1."""


@dataclass(frozen=True, slots=True)
class HeadMatch:
    """One head of the first model with its partner in the second.

    Attributes:
        head, partner: The heads; partner is "" where the second model has fewer heads.
        score: Similarity of their profiles (-1 to 1).
        reliability, partner_reliability: Split-half cosine of their effects (-1 to 1).
        chance: Mean score of the head over random-init models.
        threshold: Score that the best head of a further random-init model exceeds with probability
            0.05 or less, from 19 models on.
        other_seed_score: Score of the head in the other-seed model, or NaN.
    """

    head: str
    partner: str
    score: Estimate
    reliability: float
    partner_reliability: float
    chance: float
    threshold: float
    other_seed_score: float

    @property
    def reliable(self) -> bool:
        """Whether the head has reliable effects."""
        return self.reliability >= MIN_RELIABILITY

    @property
    def above_threshold(self) -> bool:
        """Whether the head is reliable and its score exceeds the threshold."""
        return self.reliable and self.score.value > self.threshold


@dataclass(frozen=True, slots=True)
class MeanPairScore:
    """Mean pairing score of all heads.

    Attributes:
        score: Mean over the pairs, with its interval over prompts.
        chance, chance_high: Mean and threshold of the same over random-init models.
        other_seed: The same with the other-seed model (n = 1), as many of its best pairs; NaN
            without one.
    """

    score: Estimate
    chance: float
    chance_high: float
    other_seed: float

    def line(self, null: str, threshold: float, other_seed: str) -> str:
        """Sentence with the score and its null, or why it has no meaning.

        Args:
            null: Number and name of the draws of the null.
            threshold: Threshold of the best pair of such a draw.
            other_seed: Name of the other-seed model, or "".
        """
        if threshold > MAX_THRESHOLD:
            models = null.split(maxsplit=1)[1].capitalize()
            return (
                f"{models} reach pairing scores of {threshold:.2f}: these prompts have too few "
                "roles and contrasts to tell heads apart. Add roles or contrasts."
            )
        line = f"Mean pairing score {self.score}; {null} {self.chance:.2f} "
        line += f"(threshold {self.chance_high:.2f})"
        return line + (f"; {other_seed} {self.other_seed:.2f}." if other_seed else ".")
