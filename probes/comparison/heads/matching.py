"""Heads of two models paired one-to-one, against what the same search finds by chance."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from probes.comparison.heads.profiles import RELIABLE_FROM, Profiles, similarity
from probes.stats.intervals import Estimate, interval

Word = Literal["matched", "unmatched", "idle"]

_DRAWS = 200
_QUANTILE = 0.95


@dataclass(frozen=True, slots=True)
class Match:
    """One head of the first model and the head of the second that the search gave it.

    Attributes:
        head, partner: The heads; partner is "" where the second model has fewer heads.
        score: Similarity of their profiles (-1 to 1), with its interval over prompts.
        reliability, partner_reliability: How well each repeats itself on other prompts (-1 to 1).
        chance: Mean score that this head gets in untrained nets.
        chance_high: The family-wise 95th percentile of the nets' best matches: the bar.
        ceiling: The score it gets in another seed of its own model, or NaN.
        word: "idle" where the head does not repeat itself; "matched" where its score beats the
            bar and its partner repeats itself; else "unmatched".
    """

    head: str
    partner: str
    score: Estimate
    reliability: float
    partner_reliability: float
    chance: float
    chance_high: float
    ceiling: float
    word: Word


@dataclass(frozen=True, eq=False)
class Pairing:
    """The best one-to-one pairing of two sets of heads (Kuhn 1955): partner -1 is none."""

    partner: tuple[int, ...]
    score: Float[np.ndarray, " head"]

    @property
    def best(self) -> float:
        """The highest score of the pairing."""
        return float(np.nanmax(self.score))

    @property
    def mean(self) -> float:
        """The mean score of the heads that found a partner."""
        return float(np.nanmean(self.score))


def pair_heads(a: Profiles, b: Profiles) -> Pairing:
    """Pair heads so that the sum of their similarities is greatest."""
    found = similarity(a.even(), b.even())[0]
    rows, columns = linear_sum_assignment(found, maximize=True)
    partner = np.full(len(a.heads), -1)
    partner[rows] = columns
    score = np.where(partner >= 0, found[np.arange(len(partner)), partner], np.nan)
    return Pairing(tuple(int(index) for index in partner), score)


def match_heads(
    a: Profiles,
    b: Profiles,
    *,
    nulls: Float[np.ndarray, "model head"],
    ceiling: Pairing | None,
    seed: int,
) -> tuple[Match, ...]:
    """Pair two models' heads and hold every score against chance and ceiling.

    `nulls` are the scores of the same search, rerun with each untrained net in place of `b`.
    """
    found = pair_heads(a, b)
    bar = family_wise(nulls)
    drawn = similarity(a.drawn(_DRAWS, seed=seed), b.drawn(_DRAWS, seed=seed))
    own, other = a.halves().reliability(), b.halves().reliability()
    matches = []
    for index, (head, partner) in enumerate(zip(a.heads, found.partner, strict=True)):
        paired = partner >= 0
        score = Estimate(np.nan, np.nan, np.nan)
        if paired:
            score = interval(float(found.score[index]), drawn[:, index, partner])
        repeats = float(other[partner]) if paired else np.nan
        word: Word = "idle"
        if own[index] >= RELIABLE_FROM:
            word = "matched" if score.value > bar and repeats >= RELIABLE_FROM else "unmatched"
        chance = nulls[:, index]
        matches.append(
            Match(
                head=head,
                partner=b.heads[partner] if paired else "",
                score=score,
                reliability=float(own[index]),
                partner_reliability=repeats,
                chance=float(np.nanmean(chance)) if (~np.isnan(chance)).any() else np.nan,
                chance_high=bar,
                ceiling=float(ceiling.score[index]) if ceiling else np.nan,
                word=word,
            )
        )
    return tuple(matches)


def family_wise(nulls: Float[np.ndarray, "model head"]) -> float:
    """Return the 95th percentile, over null models, of each one's best match."""
    return float(np.quantile(np.nanmax(nulls, axis=1), _QUANTILE))
