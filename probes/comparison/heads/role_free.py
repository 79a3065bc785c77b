"""Similarity of heads by the answers that they affect, with roles summed out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Float, Int

from probes.comparison.heads.head_sets import HeldOutProfiles, held_out_profiles
from probes.comparison.heads.profiles import ContrastAnswers, HeadProfiles, cosines
from probes.comparison.heads.set_thresholds import rescale_null
from probes.stats.null_threshold import conformal_threshold


@dataclass(frozen=True, eq=False)
class RoleFreeSimilarity:
    """Cosines of effect fractions summed over roles, and the role of the largest effects.

    The first draw uses all held-out prompts, the others are bootstrap samples.

    Attributes:
        similarity: Cosine of the sums (-1 to 1).
        threshold: Threshold of the best pair of a random-init model.
        strongest_role_a, strongest_role_b: Number of the role of each head's largest effects.
    """

    similarity: Float[np.ndarray, "draw head head_b"]
    threshold: float
    strongest_role_a: Int[np.ndarray, "draw head"]
    strongest_role_b: Int[np.ndarray, "draw head_b"]


def role_free_similarity(
    a: HeadProfiles,
    b: HeadProfiles,
    nulls: Sequence[HeadProfiles],
    contrast_answers: ContrastAnswers,
    *,
    seed: int,
) -> RoleFreeSimilarity:
    """Compare heads with roles summed out.

    Few features remain, so the threshold is high; without nulls it is 1.
    """
    best_null_scores = []
    for null in nulls:
        rescaled = rescale_null(null, a, contrast_answers)
        held_out = held_out_profiles(a, rescaled, contrast_answers, seed=seed, draws=1)
        best_null_scores.append(float(_role_free_cosines(held_out, contrast_answers)[0].max()))
    held_out = held_out_profiles(a, b, contrast_answers, seed=seed)
    return RoleFreeSimilarity(
        _role_free_cosines(held_out, contrast_answers),
        float(conformal_threshold(best_null_scores)) if best_null_scores else 1.0,
        _strongest_role(held_out.targets, contrast_answers),
        _strongest_role(held_out.parts, contrast_answers),
    )


def _role_free_cosines(
    held_out: HeldOutProfiles, contrast_answers: ContrastAnswers
) -> Float[np.ndarray, "draw head head_b"]:
    sums = (
        reduce(
            f, "draw head (answer role) -> draw head answer", "sum", answer=len(contrast_answers)
        )
        for f in (held_out.targets, held_out.parts)
    )
    return cosines(*sums).astype(np.float32)


def _strongest_role(
    fractions: Float[np.ndarray, "draw head fraction"], contrast_answers: ContrastAnswers
) -> Int[np.ndarray, "draw head"]:
    by_role = rearrange(
        fractions, "draw head (answer role) -> draw head answer role", answer=len(contrast_answers)
    )
    return np.square(by_role).sum(2).argmax(-1)
