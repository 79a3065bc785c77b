"""Heads that move the same answers, whatever the role at which they do it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Float, Int

from probes.comparison.heads.head_sets import (
    ContrastAnswers,
    HeldOutProfiles,
    held_out_profiles,
    rescale_null,
)
from probes.comparison.heads.profiles import HeadProfiles

_QUANTILE = 0.95


@dataclass(frozen=True, eq=False)
class RoleFreeSimilarity:
    """Share profiles summed over roles, and where each head does most.

    Attributes:
        alike: Cosine of the sums (-1 to 1); the first row is all prompts, then bootstrap samples.
        bar: The 95th percentile of the best pair that untrained nets offer.
        at, at_b: The role, by number, of each head's strongest effects in each draw.
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
    """Hold two models' heads against each other with roles summed over.

    Few features are left, so that untrained nets offer much: the bar is often out of reach.
    """
    held = held_out_profiles(a, b, contrast_answers, seed=seed)
    best = [
        float(
            _cosines(
                held_out_profiles(
                    a, rescale_null(net, a, contrast_answers), contrast_answers, seed=seed
                ),
                contrast_answers,
            )[0].max()
        )
        for net in nulls
    ]
    return RoleFreeSimilarity(
        _cosines(held, contrast_answers),
        float(np.quantile(best, _QUANTILE)) if best else 1.0,
        _strongest_role(held.targets, contrast_answers),
        _strongest_role(held.parts, contrast_answers),
    )


def _cosines(
    profiles: HeldOutProfiles, contrast_answers: ContrastAnswers
) -> Float[np.ndarray, "draw head head_b"]:
    first, second = (
        _normalize(_sum_over_roles(shares, contrast_answers))
        for shares in (profiles.targets, profiles.parts)
    )
    return np.einsum("dis,djs->dij", first, second)


def _sum_over_roles(
    fractions: Float[np.ndarray, "draw head share"], contrast_answers: ContrastAnswers
) -> Float[np.ndarray, "draw head moved"]:
    return reduce(
        fractions, "draw head (moved role) -> draw head moved", "sum", moved=len(contrast_answers)
    )


def _strongest_role(
    fractions: Float[np.ndarray, "draw head share"], contrast_answers: ContrastAnswers
) -> Int[np.ndarray, "draw head"]:
    split = rearrange(
        fractions, "draw head (moved role) -> draw head moved role", moved=len(contrast_answers)
    )
    return np.square(split).sum(2).argmax(-1)


def _normalize(sums: Float[np.ndarray, "draw head moved"]) -> Float[np.ndarray, "draw head moved"]:
    length = np.linalg.norm(sums, axis=-1, keepdims=True)
    return np.divide(sums, length, out=np.zeros_like(sums), where=length > 1e-9)
