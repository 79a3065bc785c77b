"""Measurements of two models that the rules for heads read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.heads.head_sets import (
    HeadSet,
    HeldOutProfiles,
    ModelHeads,
    active_heads,
    explained_by,
    held_out_profiles,
    is_detected,
    search_sets,
    search_sets_from_profiles,
)
from probes.comparison.heads.matching import family_wise_threshold, pair_heads
from probes.comparison.heads.profiles import (
    HeadProfiles,
    MeanProfiles,
    affected_answers,
    head_similarity,
    similarity_draws,
)
from probes.comparison.heads.role_free import RoleFreeSimilarity, role_free_similarity
from probes.comparison.heads.set_thresholds import gain_threshold
from probes.stats.intervals import Estimate, bootstrap_estimate

MIN_GAIN = 0.1
"""Smallest gain of a set over the best single head."""


@dataclass(frozen=True, eq=False)
class NullModels:
    """Head profiles of the reference models, on the same prompts.

    Attributes:
        random_init: Models of the relative's shape with fresh weights; they give the thresholds.
        negative_controls: Models trained on the same words for another task.
        same_shape: Models of the relative's shape trained for the same task without the full model.
        other_seed: The full model's recipe with another seed.
        is_permuted: Whether `random_init` are permuted profiles, whose sums over roles are those of
            the relative itself: no null for heads that have moved.
    """

    random_init: Sequence[HeadProfiles]
    negative_controls: Sequence[HeadProfiles] = ()
    same_shape: Sequence[HeadProfiles] = ()
    other_seed: HeadProfiles | None = None
    is_permuted: bool = False


@dataclass(frozen=True, eq=False)
class Counterparts:
    """What a model has in place of the heads of the full model; as in `HeadMeasurements`.

    Attributes:
        similarity: Similarity of heads.
        explained, explained_back: Fraction of each head that each head of the model explains, and
            the reverse.
        active: Heads of the model with a reliable effect.
        sets: Sets of the model's heads.
    """

    similarity: Float[np.ndarray, "draw head head_b"]
    explained: Float[np.ndarray, "sample head head_b"]
    explained_back: Float[np.ndarray, "sample head_b head"]
    active: Bool[np.ndarray, " head_b"]
    sets: tuple[HeadSet, ...]


@dataclass(frozen=True, eq=False)
class HeadMeasurements:
    """Measurements of two models; draws are all prompts first, then bootstrap samples.

    Attributes:
        a, b: Profiles of the full model and of the relative.
        active_a, active_b: Heads with a reliable effect.
        threshold: Threshold of `similarity`.
        similarity: Similarity of heads (-1 to 1).
        held_out: Effect fractions on the odd prompts.
        explained, explained_back: Fraction of each head of `a` that each head of `b` explains, and
            the reverse.
        splits, merges: Sets of `b` for heads of `a`, and the reverse.
        split_threshold, merge_threshold: Thresholds of their gains.
        role_free: Similarity with roles summed out.
        other_seed_role_free: The same with the other-seed model.
        other_seed: Counterparts in the other-seed model; None without one.
        negative_control_similarity: Similarity of the best head of the negative controls.
        same_shape_sets: For each same-shape control: the heads of `a` that are split in it, and
            for each of its active heads whether it is merged.
    """

    a: HeadProfiles
    b: HeadProfiles
    active_a: Bool[np.ndarray, " head"]
    active_b: Bool[np.ndarray, " head_b"]
    threshold: float
    similarity: Float[np.ndarray, "draw head head_b"]
    held_out: HeldOutProfiles
    explained: Float[np.ndarray, "sample head head_b"]
    explained_back: Float[np.ndarray, "sample head_b head"]
    splits: tuple[HeadSet, ...]
    merges: tuple[HeadSet, ...]
    split_threshold: float
    merge_threshold: float
    role_free: RoleFreeSimilarity
    other_seed_role_free: RoleFreeSimilarity | None
    other_seed: Counterparts | None
    negative_control_similarity: Float[np.ndarray, "draw head"] | None
    same_shape_sets: tuple[tuple[frozenset[int], tuple[bool, ...]], ...]

    def shortfall(self, head: int, partner: int) -> Estimate:
        """Similarity to the partner minus similarity to itself, across halves of the prompts."""
        to_partners, to_itself = self._across_halves
        difference = to_partners[head, partner] - to_itself[head, head]
        deviations = self.similarity[:, head, partner] - self.similarity[0, head, partner]
        return bootstrap_estimate(difference + deviations)

    @cached_property
    def _across_halves(self) -> tuple[Float[np.ndarray, "head _"], Float[np.ndarray, "head head"]]:
        """Similarity across halves of the prompts: to the heads of `b`, and to those of `a`."""
        a, b = self.a.split_halves(), self.b.split_halves()
        return _cross_half_similarity(a, b).mean(0), _cross_half_similarity(a, a).mean(0)

    def relative_strength(self, head: int, partner: int) -> Estimate:
        """Norm of the partner's effect fractions relative to the head's, minus 1."""
        own = np.linalg.norm(self.held_out.targets[:, head], axis=-1)
        partners = np.linalg.norm(self.held_out.parts[:, partner], axis=-1)
        return bootstrap_estimate(partners / own - 1)


def measure_heads(
    full: ModelHeads, other: ModelHeads, null_models: NullModels, *, seed: int
) -> HeadMeasurements:
    """Measure what the rules read."""
    a, b, nulls = full.profiles, other.profiles, null_models.random_init
    answers = affected_answers(a, b)
    held_out = held_out_profiles(a, b, answers, seed=seed)
    best_controls = [
        similarity_draws(a, control, seed=seed).max(2) for control in null_models.negative_controls
    ]
    other_seed = null_models.other_seed
    role_free_nulls = () if null_models.is_permuted else nulls
    return HeadMeasurements(
        a=a,
        b=b,
        active_a=active_heads(a, answers),
        active_b=active_heads(b, answers),
        threshold=family_wise_threshold(np.stack([pair_heads(a, null).scores for null in nulls])),
        similarity=similarity_draws(a, b, seed=seed),
        held_out=held_out,
        explained=explained_by(held_out.targets, held_out.parts),
        explained_back=explained_by(held_out.parts, held_out.targets),
        splits=search_sets(full, other, answers, seed=seed),
        merges=search_sets(other, full, answers, seed=seed),
        split_threshold=max(MIN_GAIN, gain_threshold(a, nulls, answers, merge=False)),
        merge_threshold=max(MIN_GAIN, gain_threshold(a, nulls, answers, merge=True)),
        role_free=role_free_similarity(a, b, role_free_nulls, answers, seed=seed),
        other_seed_role_free=role_free_similarity(a, other_seed, (), answers, seed=seed)
        if other_seed
        else None,
        other_seed=_counterparts(a, other_seed, seed) if other_seed else None,
        negative_control_similarity=np.max(best_controls, axis=0) if best_controls else None,
        same_shape_sets=tuple(_sets_in_control(a, model, seed) for model in null_models.same_shape),
    )


def _counterparts(a: HeadProfiles, other: HeadProfiles, seed: int) -> Counterparts:
    """Search another model for the heads of `a`; sums of effects replace joint patching."""
    answers = affected_answers(a, other)
    held_out = held_out_profiles(a, other, answers, seed=seed)
    return Counterparts(
        similarity=similarity_draws(a, other, seed=seed),
        explained=explained_by(held_out.targets, held_out.parts),
        explained_back=explained_by(held_out.parts, held_out.targets),
        active=active_heads(other, answers),
        sets=search_sets_from_profiles(a, other, answers, seed=seed),
    )


def _cross_half_similarity(
    a: MeanProfiles, b: MeanProfiles
) -> Float[np.ndarray, "half head_a head_b"]:
    """Similarity of each half of the prompts in `a` with the other half in `b`."""
    return head_similarity(a, MeanProfiles(b.effects[::-1], b.attention[::-1]))


def _sets_in_control(
    a: HeadProfiles, control: HeadProfiles, seed: int
) -> tuple[frozenset[int], tuple[bool, ...]]:
    """Search for sets in a control, by sums of effect fractions."""
    answers = affected_answers(a, control)
    split, merged = (
        frozenset(
            found.target
            for found in search_sets_from_profiles(*models, answers, seed=seed)
            if is_detected(found, MIN_GAIN)
        )
        for models in ((a, control), (control, a))
    )
    active = active_heads(control, answers).nonzero()[0]
    return split, tuple(int(head) in merged for head in active)
