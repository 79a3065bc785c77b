"""Thresholds of the gain of sets of heads, from random-init models."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from probes.comparison.heads.head_sets import MIN_EXPLAINED, HeadSet, search_sets_from_profiles
from probes.comparison.heads.profiles import ContrastAnswers, HeadProfiles
from probes.stats.null_threshold import conformal_threshold


def best_gain(sets: Sequence[HeadSet]) -> float:
    """Largest gain of a set that explains enough, or 0."""
    gains = [
        s.gain.value for s in sets if s.explained.value >= MIN_EXPLAINED and not s.member_matched
    ]
    return max(gains, default=0.0)


def gain_threshold(
    full: HeadProfiles,
    nulls: Sequence[HeadProfiles],
    contrast_answers: ContrastAnswers,
    *,
    merge: bool,
) -> float:
    """Threshold of the best gain that the same search finds in a random-init model.

    Effects of random-init models are small, so they add up: sums replace joint patching.
    """
    gains = []
    for null in nulls:
        rescaled = rescale_null(null, full, contrast_answers)
        models = (rescaled, full) if merge else (full, rescaled)
        # The gain of all odd prompts is read alone, so one bootstrap sample is enough.
        found = search_sets_from_profiles(*models, contrast_answers, seed=0, draws=1)
        gains.append(best_gain(found))
    return float(conformal_threshold(gains)) if gains else 0.0


def rescale_null(
    null: HeadProfiles, like: HeadProfiles, contrast_answers: ContrastAnswers
) -> HeadProfiles:
    """Scale a random-init model so that its strongest head equals that of a trained model.

    Its own total effects are near 0, so that fractions of them are undefined.
    """
    ones = {contrast: np.ones_like(t) for contrast, t in like.total_effects.items()}
    unscaled = replace(null, total_effects=ones)
    strongest_null, strongest = (
        np.linalg.norm(profiles.effect_fractions(contrast_answers)[0], axis=1).max()
        for profiles in (unscaled, like)
    )
    factor = strongest_null / strongest if strongest_null > 0 else 1.0
    return replace(null, total_effects={contrast: factor * one for contrast, one in ones.items()})
