"""Everything that the rules for heads read, measured once for each relative."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.heads.head_sets import (
    HeadSet,
    HeldOutProfiles,
    ModelHeads,
    active_heads,
    explained_by,
    gain_threshold,
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
)
from probes.comparison.heads.role_free import RoleFreeSimilarity, role_free_similarity
from probes.stats.intervals import Estimate, percentile_interval

MIN_GAIN = 0.1
"""What a set must explain more than the best single head."""

_DRAWS = 200


@dataclass(frozen=True, eq=False)
class NullModels:
    """The nets that a relative is held against: their profiles, on the same prompts.

    Attributes:
        untrained: Nets of the relative's shape with fresh weights: the bar.
        strangers: Nets trained on the same words for another end.
        controls: Nets of the relative's shape trained for the same end without the full model.
        twin: Another seed of the full model.
    """

    random_init: Sequence[HeadProfiles]
    negative_controls: Sequence[HeadProfiles] = ()
    same_shape: Sequence[HeadProfiles] = ()
    other_seed: HeadProfiles | None = None


@dataclass(frozen=True, eq=False)
class HeadMeasurements:
    """What was measured of two models: first all prompts alike, then bootstrap samples of them.

    Attributes:
        a, b: Profiles of the full model, and of the relative.
        busy_a, busy_b: Which heads are not idle.
        bar: What alikeness must beat.
        alike: How alike heads are (-1 to 1).
        held: Share profiles on the odd prompts.
        explains, explains_back: How much of each head of `a` each of `b` explains; and of `b`.
        splits, merges: Sets of `b` for heads of `a`, and the other way.
        split_bar, merge_bar: What the gain of a set must beat.
        moves: Alikeness with roles summed over, and that of the other seed, if there is one.
        stranger: How alike the best head is that nets trained for another end offer, if any is.
        controls: For each control, the heads of `a` that it has split, and of its own busy heads
            whether each is merged.
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
    negative_control_similarity: Float[np.ndarray, "draw head"] | None
    same_shape_sets: tuple[tuple[frozenset[int], tuple[bool, ...]], ...]

    def pair_similarity(self, head: int, partner: int) -> Estimate:
        """Return how alike two heads are."""
        return bootstrap_estimate(self.similarity[:, head, partner])

    def shortfall(self, head: int, partner: int) -> Estimate:
        """Return how much more alike a head is to its partner than to itself, across halves."""
        first, second = self.a.split_halves(), self.b.split_halves()
        short = (
            _cross_half_similarity(first, second)[:, head, partner]
            - _cross_half_similarity(first, first)[:, head, head]
        ).mean()
        drawn = self.similarity[:, head, partner] - self.similarity[0, head, partner]
        return bootstrap_estimate(short + drawn)

    def relative_strength(self, head: int, partner: int) -> Estimate:
        """Return how much longer the partner's share profile is, as a share of the head's own."""
        own = np.linalg.norm(self.held_out.targets[:, head], axis=-1)
        return bootstrap_estimate(
            np.linalg.norm(self.held_out.parts[:, partner], axis=-1) / own - 1
        )


def measure_heads(
    full: ModelHeads, other: ModelHeads, null_models: NullModels, *, seed: int
) -> HeadMeasurements:
    """Measure what the rules read."""
    a, b = full.profiles, other.profiles
    where = affected_answers(a, b)
    held = held_out_profiles(a, b, where, seed=seed)
    strangers = [
        _bootstrap_similarity(a, net, seed).max(2) for net in null_models.negative_controls
    ]
    return HeadMeasurements(
        a=a,
        b=b,
        active_a=active_heads(a, where),
        active_b=active_heads(b, where),
        threshold=family_wise_threshold(
            np.stack([pair_heads(a, net).scores for net in null_models.random_init])
        ),
        similarity=_bootstrap_similarity(a, b, seed),
        held_out=held,
        explained=explained_by(held.targets, held.parts),
        explained_back=explained_by(held.parts, held.targets),
        splits=search_sets(full, other, where, seed=seed),
        merges=search_sets(other, full, where, seed=seed),
        split_threshold=max(
            MIN_GAIN, gain_threshold(a, null_models.random_init, where, merge=False)
        ),
        merge_threshold=max(
            MIN_GAIN, gain_threshold(a, null_models.random_init, where, merge=True)
        ),
        role_free=role_free_similarity(a, b, null_models.random_init, where, seed=seed),
        other_seed_role_free=role_free_similarity(a, null_models.other_seed, (), where, seed=seed)
        if null_models.other_seed
        else None,
        negative_control_similarity=np.max(strangers, axis=0) if strangers else None,
        same_shape_sets=tuple(_sets_in_control(a, net, seed) for net in null_models.same_shape),
    )


def bootstrap_estimate(drawn: Float[np.ndarray, " draw"]) -> Estimate:
    """Return the first of the draws with the middle 95 % of the others."""
    return percentile_interval(float(drawn[0]), drawn[1:])


def _bootstrap_similarity(
    a: HeadProfiles, b: HeadProfiles, seed: int
) -> Float[np.ndarray, "draw head_a head_b"]:
    drawn = head_similarity(a.bootstrap(_DRAWS, seed=seed), b.bootstrap(_DRAWS, seed=seed))
    return np.concatenate([head_similarity(a.mean(), b.mean()), drawn])


def _cross_half_similarity(
    a: MeanProfiles, b: MeanProfiles
) -> Float[np.ndarray, "half head_a head_b"]:
    """Hold each half of the prompts against the other half."""
    return head_similarity(a, MeanProfiles(b.effects[::-1], b.attention[::-1]))


def _sets_in_control(
    a: HeadProfiles, control: HeadProfiles, seed: int
) -> tuple[frozenset[int], tuple[bool, ...]]:
    """Run the search for sets in a net that never saw the full model, by sums of profiles."""
    where = affected_answers(a, control)
    splits = search_sets_from_profiles(a, control, where, seed=seed)
    merged = {
        s.target
        for s in search_sets_from_profiles(control, a, where, seed=seed)
        if is_detected(s, MIN_GAIN)
    }
    return (
        frozenset(s.target for s in splits if is_detected(s, MIN_GAIN)),
        tuple(int(head) in merged for head in active_heads(control, where).nonzero()[0]),
    )
