"""One-to-one pairing of the heads of two models, with scores of random-init models as the null."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from probes.comparison.heads.profiles import HeadProfiles, head_similarity, similarity_draws
from probes.comparison.heads.result import HeadMatch
from probes.stats.intervals import Estimate, bootstrap_estimate
from probes.stats.null_threshold import conformal_threshold


@dataclass(frozen=True, eq=False)
class HeadPairing:
    """One-to-one pairing with the largest sum of similarities (Kuhn 1955).

    Attributes:
        partners: Number of each head's partner; -1 is none.
        scores: Similarity of each pair; NaN without a partner.
    """

    partners: tuple[int, ...]
    scores: Float[np.ndarray, " head"]

    @property
    def mean_score(self) -> float:
        """Mean score of the paired heads."""
        return float(np.nanmean(self.scores))


def pair_heads(a: HeadProfiles, b: HeadProfiles) -> HeadPairing:
    """Pair the heads of two models."""
    return _pair_by_similarity(head_similarity(a.mean(), b.mean())[0])


def match_heads(
    a: HeadProfiles,
    b: HeadProfiles,
    *,
    null_scores: Float[np.ndarray, "model head"],
    other_seed: HeadPairing | None,
    seed: int,
) -> tuple[HeadMatch, ...]:
    """Pair the heads of two models and give each pair its interval and null.

    Args:
        a, b: Profiles on the same prompts.
        null_scores: Scores of the same pairing with each random-init model in place of `b`.
        other_seed: Pairing of `a` with its other-seed model.
        seed: Seed of the bootstrap.
    """
    draws = similarity_draws(a, b, seed=seed)
    pairing = _pair_by_similarity(draws[0])
    threshold = family_wise_threshold(null_scores)
    reliability, partner_reliability = a.reliability, b.reliability
    matches = []
    for index, (head, partner) in enumerate(zip(a.heads, pairing.partners, strict=True)):
        paired = partner >= 0
        nulls = null_scores[:, index]
        matches.append(
            HeadMatch(
                head=head,
                partner=b.heads[partner] if paired else "",
                score=bootstrap_estimate(draws[:, index, partner])
                if paired
                else Estimate(np.nan, np.nan, np.nan),
                reliability=float(reliability[index]),
                partner_reliability=float(partner_reliability[partner]) if paired else np.nan,
                chance=float(np.nanmean(nulls)) if (~np.isnan(nulls)).any() else np.nan,
                threshold=threshold,
                other_seed_score=float(other_seed.scores[index]) if other_seed else np.nan,
            )
        )
    return tuple(matches)


def family_wise_threshold(null_scores: Float[np.ndarray, "model head"]) -> float:
    """Threshold of the best score of any head in a random-init model."""
    return float(conformal_threshold(np.nanmax(null_scores, axis=1)))


def _pair_by_similarity(similarity: Float[np.ndarray, "head_a head_b"]) -> HeadPairing:
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    partner = np.full(len(similarity), -1)
    partner[rows] = columns
    scores = np.where(partner >= 0, similarity[np.arange(len(partner)), partner], np.nan)
    return HeadPairing(tuple(int(index) for index in partner), scores)
