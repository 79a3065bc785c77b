"""Sets of heads that do together what one head of the other model does: splits and merges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.heads.profiles import HeadProfiles, effect_fractions
from probes.interventions.joint_patching import candidate_sets, explained_fraction, joint_effects
from probes.models.model import Model
from probes.prompts.pair_batch import PairBatch, tokenize_pairs
from probes.stats.intervals import Estimate, bootstrap_weights, percentile_interval

PARTIAL_EXPLAINED = 0.5
"""A head or set that explains less of a share profile has no more than a part in it."""

MIN_EXPLAINED = 0.7
"""One that stands for a head explains surely more than this: two parts of three are not all."""

MIN_EFFECT = 0.01
"""A head that nowhere moves this share of an answer is idle."""

_DRAWS = 200
_QUANTILE = 0.95

ContrastAnswers = Sequence[tuple[str, int]]


@dataclass(frozen=True, eq=False)
class ModelHeads:
    """A model with what was measured of its heads; the batches are those of its profiles."""

    model: Model
    batches: Mapping[str, PairBatch]
    profiles: HeadProfiles
    lock: Any = field(default_factory=Lock, repr=False)
    """Held while the model runs: several comparisons may need it at once."""


@dataclass(frozen=True, slots=True)
class HeadSet:
    """Heads of one model that were held, patched together, against one head of the other.

    Attributes:
        target: The head, by number.
        members: The heads of the set, by number.
        explains: Share of the target's profile that the set explains, at most 1.
        gain: That, less what the best single head explains.
        claimed: Whether a member is by itself the counterpart of another head.
    """

    target: int
    members: tuple[int, ...]
    explained: Estimate
    gain: Estimate
    member_matched: bool


@dataclass(frozen=True, eq=False)
class HeldOutProfiles:
    """Share profiles of two models on the prompts that no set was chosen on.

    Attributes:
        targets, parts: All prompts alike in the first row, then bootstrap samples.
    """

    targets: Float[np.ndarray, "draw head share"]
    parts: Float[np.ndarray, "draw part share"]


def active_heads(
    profiles: HeadProfiles, contrast_answers: ContrastAnswers
) -> Bool[np.ndarray, " head"]:
    """Say which heads repeat themselves and move a share of an answer; the others are idle."""
    every = {contrast: np.ones((1, len(t))) for contrast, t in profiles.total_effects.items()}
    found = effect_fractions(profiles.effects, profiles.total_effects, contrast_answers, every)[0]
    return profiles.reliable & (np.abs(found).max(-1, initial=0.0) >= MIN_EFFECT)


def held_out_profiles(
    targets: HeadProfiles, parts: HeadProfiles, contrast_answers: ContrastAnswers, *, seed: int
) -> HeldOutProfiles:
    """Take the share profiles of the odd prompts; equal seeds draw equal prompts."""
    weights = _odd_prompt_weights(targets, seed)
    return HeldOutProfiles(
        effect_fractions(targets.effects, targets.total_effects, contrast_answers, weights),
        effect_fractions(parts.effects, parts.total_effects, contrast_answers, weights),
    )


def search_sets(
    targets: ModelHeads, parts: ModelHeads, contrast_answers: ContrastAnswers, *, seed: int
) -> tuple[HeadSet, ...]:
    """Find the pair and the triple that come nearest to each head, and patch them together.

    Sets are chosen on the even prompts and measured on the odd. Idle heads are not
    sought, and take no part.
    """
    a, b = targets.profiles, parts.profiles
    found = propose_sets(a, b, contrast_answers)
    names = [tuple(b.heads[k] for k in members) for _, members in found]
    sets = list(dict.fromkeys(names))
    if not sets:
        return ()
    odd = {
        contrast: tokenize_pairs(parts.model.tokenizer, parts.batches[contrast].pairs[1::2])
        for contrast in dict.fromkeys(contrast for contrast, _ in contrast_answers)
    }
    with parts.lock:
        effects = joint_effects(parts.model, odd, sets, b.roles)
    weights = _odd_prompt_weights(b, seed)
    joint = effect_fractions(
        effects,
        {contrast: b.total_effects[contrast][1::2] for contrast in odd},
        contrast_answers,
        {contrast: weights[contrast][:, 1::2] for contrast in odd},
    )
    return evaluate_sets(
        found,
        joint[:, [sets.index(name) for name in names]],
        held_out_profiles(a, b, contrast_answers, seed=seed),
    )


def propose_sets(
    targets: HeadProfiles, parts: HeadProfiles, contrast_answers: ContrastAnswers
) -> list[tuple[int, tuple[int, ...]]]:
    """Choose sets of parts for each target on the even prompts, by sums of their profiles."""
    even = {
        c: (np.arange(len(t))[None] % 2 == 0).astype(float)
        for c, t in targets.total_effects.items()
    }
    aim = effect_fractions(targets.effects, targets.total_effects, contrast_answers, even)[0]
    offer = effect_fractions(parts.effects, parts.total_effects, contrast_answers, even)[0]
    usable = active_heads(parts, contrast_answers).nonzero()[0]
    return [
        (int(target), tuple(int(usable[k]) for k in members))
        for target in active_heads(targets, contrast_answers).nonzero()[0]
        for members in candidate_sets(aim[target], offer[usable])
    ]


def evaluate_sets(
    proposals: Sequence[tuple[int, tuple[int, ...]]],
    joint: Float[np.ndarray, "draw set share"],
    held_out: HeldOutProfiles,
) -> tuple[HeadSet, ...]:
    """Hold what sets explain against what the best single head does, draw by draw."""
    single = explained_by(held_out.targets, held_out.parts).max(2)
    # What each target by itself explains of each part.
    alone = explained_by(held_out.parts[:1], held_out.targets[:1])[0]
    sets = []
    for number, (target, members) in enumerate(proposals):
        whole = explained_fraction(held_out.targets[:, target], joint[:, number : number + 1])[:, 0]
        gain = whole - single[:, target]
        others = np.delete(alone[list(members)], target, axis=1)
        sets.append(
            HeadSet(
                target,
                members,
                percentile_interval(float(whole[0]), whole[1:]),
                percentile_interval(float(gain[0]), gain[1:]),
                bool((others >= PARTIAL_EXPLAINED).any()),
            )
        )
    return tuple(sets)


def explained_by(
    targets: Float[np.ndarray, "draw head share"], parts: Float[np.ndarray, "draw part share"]
) -> Float[np.ndarray, "draw head part"]:
    """Return how much of each target each part explains, draw by draw."""
    return np.stack([explained_fraction(t, parts) for t in targets.swapaxes(0, 1)], 1)


def search_sets_from_profiles(
    targets: HeadProfiles, parts: HeadProfiles, contrast_answers: ContrastAnswers, *, seed: int
) -> tuple[HeadSet, ...]:
    """Run the search where only profiles are at hand: sums stand for joint patches."""
    found = propose_sets(targets, parts, contrast_answers)
    if not found:
        return ()
    held = held_out_profiles(targets, parts, contrast_answers, seed=seed)
    joint = np.stack([held.parts[:, list(members)].sum(1) for _, members in found], 1)
    return evaluate_sets(found, joint, held)


def is_detected(head_set: HeadSet, threshold: float) -> bool:
    """Say whether a set surely explains enough, surely gains more than a bar, and is not taken."""
    return (
        not head_set.member_matched
        and head_set.explained.low > MIN_EXPLAINED
        and head_set.gain.low > threshold
    )


def best_gain(sets: Sequence[HeadSet]) -> float:
    """Return the largest gain of a set that explains enough, or 0."""
    good = [
        s.gain.value for s in sets if s.explained.value >= MIN_EXPLAINED and not s.member_matched
    ]
    return max(good, default=0.0)


def gain_threshold(
    full: HeadProfiles,
    nulls: Sequence[HeadProfiles],
    contrast_answers: ContrastAnswers,
    *,
    merge: bool,
) -> float:
    """Return the 95th percentile of the best gain that the same search has in untrained nets.

    What such a net moves is tiny, and no share of anything: it is scaled up until its strongest
    head is as strong as the strongest of `full`. Its sums stand for joint patches: small effects
    add up.
    """
    best = []
    for net in nulls:
        strong = rescale_null(net, full, contrast_answers)
        pair = (strong, full) if merge else (full, strong)
        best.append(best_gain(search_sets_from_profiles(*pair, contrast_answers, seed=0)))
    return float(np.quantile(best, _QUANTILE)) if best else 0.0


def rescale_null(
    null: HeadProfiles, like: HeadProfiles, contrast_answers: ContrastAnswers
) -> HeadProfiles:
    """Make an untrained net's strongest head as strong as the strongest of a trained one."""
    every = {contrast: np.ones((1, len(t))) for contrast, t in like.total_effects.items()}
    plain = {contrast: np.ones_like(t) for contrast, t in like.total_effects.items()}
    wanted = np.linalg.norm(
        effect_fractions(like.effects, like.total_effects, contrast_answers, every)[0], axis=1
    ).max()
    there = np.linalg.norm(
        effect_fractions(null.effects, plain, contrast_answers, every)[0], axis=1
    ).max()
    factor = there / wanted if there > 0 else 1.0
    return replace(
        null, total_effects={contrast: factor * ones for contrast, ones in plain.items()}
    )


def _odd_prompt_weights(
    profiles: HeadProfiles, seed: int
) -> dict[str, Float[np.ndarray, "draw _"]]:
    """Weigh the odd prompts: alike in the first row, then as bootstrap samples draw them."""
    weights = {}
    for number, (contrast, totals) in enumerate(profiles.total_effects.items()):
        count = len(totals) // 2
        weights[contrast] = np.zeros((1 + _DRAWS, len(totals)))
        weights[contrast][0, 1::2] = 1
        weights[contrast][1:, 1::2] = bootstrap_weights(count, _DRAWS, seed=seed + number)
    return weights
