"""Heads of two models paired one-to-one, against what the same search finds by chance."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from probes.comparison.heads.profiles import MIN_RELIABILITY, HeadProfiles, head_similarity
from probes.comparison.heads.result import HeadMatch, MatchLabel
from probes.stats.intervals import Estimate, percentile_interval

_DRAWS = 200
_QUANTILE = 0.95


@dataclass(frozen=True, eq=False)
class HeadPairing:
    """The best one-to-one pairing of two sets of heads (Kuhn 1955): partner -1 is none."""

    partners: tuple[int, ...]
    scores: Float[np.ndarray, " head"]

    @property
    def max_score(self) -> float:
        """The highest score of the pairing."""
        return float(np.nanmax(self.scores))

    @property
    def mean_score(self) -> float:
        """The mean score of the heads that found a partner."""
        return float(np.nanmean(self.scores))


def pair_heads(a: HeadProfiles, b: HeadProfiles) -> HeadPairing:
    """Pair heads so that the sum of their similarities is greatest."""
    found = head_similarity(a.mean(), b.mean())[0]
    rows, columns = linear_sum_assignment(found, maximize=True)
    partner = np.full(len(a.heads), -1)
    partner[rows] = columns
    score = np.where(partner >= 0, found[np.arange(len(partner)), partner], np.nan)
    return HeadPairing(tuple(int(index) for index in partner), score)


def match_heads(
    a: HeadProfiles,
    b: HeadProfiles,
    *,
    null_scores: Float[np.ndarray, "model head"],
    other_seed: HeadPairing | None,
    seed: int,
) -> tuple[HeadMatch, ...]:
    """Pair two models' heads and hold every score against chance and ceiling.

    `nulls` are the scores of the same search, rerun with each untrained net in place of `b`.
    """
    found = pair_heads(a, b)
    bar = family_wise_threshold(null_scores)
    drawn = head_similarity(a.bootstrap(_DRAWS, seed=seed), b.bootstrap(_DRAWS, seed=seed))
    own, other = a.split_halves().reliability(), b.split_halves().reliability()
    matches = []
    for index, (head, partner) in enumerate(zip(a.heads, found.partners, strict=True)):
        paired = partner >= 0
        score = Estimate(np.nan, np.nan, np.nan)
        if paired:
            score = percentile_interval(float(found.scores[index]), drawn[:, index, partner])
        repeats = float(other[partner]) if paired else np.nan
        word: MatchLabel = "no reliable effect"
        if own[index] >= MIN_RELIABILITY:
            word = "matched" if score.value > bar and repeats >= MIN_RELIABILITY else "unmatched"
        chance = null_scores[:, index]
        matches.append(
            HeadMatch(
                head=head,
                partner=b.heads[partner] if paired else "",
                score=score,
                reliability=float(own[index]),
                partner_reliability=repeats,
                chance=float(np.nanmean(chance)) if (~np.isnan(chance)).any() else np.nan,
                threshold=bar,
                other_seed_score=float(other_seed.scores[index]) if other_seed else np.nan,
                label=word,
            )
        )
    return tuple(matches)


def family_wise_threshold(null_scores: Float[np.ndarray, "model head"]) -> float:
    """Return the 95th percentile, over null models, of each one's best match."""
    return float(np.quantile(np.nanmax(null_scores, axis=1), _QUANTILE))
