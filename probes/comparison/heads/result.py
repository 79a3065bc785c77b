"""Result of pairing the heads of two models."""

from dataclasses import dataclass
from typing import Literal

from probes.stats.intervals import Estimate

MatchLabel = Literal["matched", "unmatched", "no reliable effect"]


@dataclass(frozen=True, slots=True)
class HeadMatch:
    """One head of the first model and the head of the second that the search gave it.

    Attributes:
        head, partner: The heads; partner is "" where the second model has fewer heads.
        score: Similarity of their profiles (-1 to 1), with its interval over prompts.
        reliability, partner_reliability: How well each repeats itself on other prompts (-1 to 1).
        chance: Mean score that this head gets in untrained nets.
        chance_high: The family-wise 95th percentile of the nets' best matches: the bar.
        ceiling: The score it gets in another seed of its own model, or NaN.
        word: "no reliable effect" where the head does not repeat itself; "matched" where its score beats the
            bar and its partner repeats itself; else "unmatched".
    """

    head: str
    partner: str
    score: Estimate
    reliability: float
    partner_reliability: float
    chance: float
    threshold: float
    other_seed_score: float
    label: MatchLabel
