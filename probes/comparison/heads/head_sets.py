"""Sets of heads that together do the work of one head of the other model: splits and merges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.heads.profiles import (
    N_DRAWS,
    ContrastAnswers,
    HeadProfiles,
    effect_fractions,
)
from probes.interventions.joint_patching import candidate_sets, explained_fraction, joint_effects
from probes.models.model import Model
from probes.prompts.tokens.pair_batch import PairBatch, tokenize_pairs
from probes.stats.intervals import Estimate, bootstrap_estimate, bootstrap_weights

PARTIAL_EXPLAINED = 0.5
"""Explained fraction below which a head or set has at most a part of the work."""

MIN_EXPLAINED = 0.7
"""Explained fraction that a counterpart must exceed: more than two parts of three."""

MIN_EFFECT = 0.01
"""Smallest effect fraction of a head with an effect."""

_MAX_PATCHED_SETS = 6  # Sets that are patched jointly in a screened model.


@dataclass(frozen=True, eq=False)
class ModelHeads:
    """A model with its head profiles and the batches that they were measured on."""

    model: Model
    batches: Mapping[str, PairBatch]
    profiles: HeadProfiles
    is_screened: bool = False
    """Whether the model is too large to patch every set."""


@dataclass(frozen=True, slots=True)
class HeadSet:
    """Heads of one model patched together, compared with one head of the other model.

    Attributes:
        target: Number of the head.
        members: Numbers of the heads of the set.
        explained: Fraction of the target's effect fractions that the set explains (-1 to 1).
        gain: Explained fraction minus that of the best single head.
        member_matched: Whether one member alone explains another head.
    """

    target: int
    members: tuple[int, ...]
    explained: Estimate
    gain: Estimate
    member_matched: bool


@dataclass(frozen=True, eq=False)
class HeldOutProfiles:
    """Effect fractions of two models on the odd prompts, on which no set was chosen.

    The first draw uses all odd prompts, the others are bootstrap samples.
    """

    targets: Float[np.ndarray, "draw head fraction"]
    parts: Float[np.ndarray, "draw part fraction"]


def active_heads(
    profiles: HeadProfiles, contrast_answers: ContrastAnswers
) -> Bool[np.ndarray, " head"]:
    """Heads with a reliable effect of at least `MIN_EFFECT`."""
    fractions = profiles.effect_fractions(contrast_answers)[0]
    return profiles.reliable & (np.abs(fractions).max(-1, initial=0.0) >= MIN_EFFECT)


def held_out_profiles(
    targets: HeadProfiles,
    parts: HeadProfiles,
    contrast_answers: ContrastAnswers,
    *,
    seed: int,
    draws: int = N_DRAWS,
) -> HeldOutProfiles:
    """Effect fractions on the odd prompts; both models get the same bootstrap samples."""
    weights = _odd_prompt_weights(targets, seed, draws)
    return HeldOutProfiles(
        targets.effect_fractions(contrast_answers, weights),
        parts.effect_fractions(contrast_answers, weights),
    )


def search_sets(
    targets: ModelHeads, parts: ModelHeads, contrast_answers: ContrastAnswers, *, seed: int
) -> tuple[HeadSet, ...]:
    """Choose a pair and a triple for each active head and patch them together.

    Sets are chosen on the even prompts and measured on the odd prompts. In a screened model sums of
    effects replace joint patching, but for the most promising sets at the roles where two of their
    heads act.
    """
    a, b = targets.profiles, parts.profiles
    proposals, summed = propose_sets(a, b, contrast_answers), ()
    if parts.is_screened:
        proposals, summed = _most_promising(a, b, contrast_answers, seed=seed)
    names = [tuple(b.heads[k] for k in members) for _, members in proposals]
    sets = list(dict.fromkeys(names))
    if not sets:
        return summed
    odd_batches = {
        contrast: tokenize_pairs(parts.model.tokenizer, parts.batches[contrast].pairs[1::2])
        for contrast in dict.fromkeys(contrast for contrast, _ in contrast_answers)
    }
    with parts.model.turn:
        effects = _patch_jointly(parts, odd_batches, sets, contrast_answers)
    weights = _odd_prompt_weights(b, seed)
    joint = effect_fractions(
        effects,
        {contrast: b.total_effects[contrast][1::2] for contrast in odd_batches},
        contrast_answers,
        {contrast: weights[contrast][:, 1::2] for contrast in odd_batches},
    )
    patched = evaluate_sets(
        proposals,
        joint[:, [sets.index(name) for name in names]],
        held_out_profiles(a, b, contrast_answers, seed=seed),
    )
    return (*patched, *summed)


def _patch_jointly(
    parts: ModelHeads,
    odd_batches: Mapping[str, PairBatch],
    sets: Sequence[tuple[str, ...]],
    contrast_answers: ContrastAnswers,
) -> dict[str, Float[np.ndarray, "_ set effect"]]:
    """Effects of sets on the odd prompts, by contrast.

    In a screened model, effects of single heads are added at roles where fewer than two heads of
    the set act on the even prompts.
    """
    b = parts.profiles
    if not parts.is_screened:
        return joint_effects(parts.model, odd_batches, sets, b.roles)
    members = [[b.heads.index(name) for name in names] for names in sets]
    fractions = b.effect_fractions(contrast_answers, _even_weights(b))[0]
    acts = np.abs(fractions).reshape(len(b.heads), len(contrast_answers), -1) >= MIN_EFFECT
    at = {}
    for contrast in odd_batches:
        answers = [own == contrast for own, _ in contrast_answers]
        heads = acts[:, answers].any(1)
        at[contrast] = np.stack([heads[own].sum(0) >= 2 for own in members])
    joint = joint_effects(parts.model, odd_batches, sets, b.roles, at=at)
    effects = {}
    for contrast, patched in joint.items():
        summed = np.stack([b.effects[contrast][1::2][:, own].sum(1) for own in members], 1)
        answers = b.total_effects[contrast].shape[1]
        effects[contrast] = np.where(np.repeat(at[contrast], answers, 1), patched, summed)
    return effects


def _most_promising(
    a: HeadProfiles, b: HeadProfiles, contrast_answers: ContrastAnswers, *, seed: int
) -> tuple[list[tuple[int, tuple[int, ...]]], tuple[HeadSet, ...]]:
    """Sets to patch jointly, those that a split or merge may rest on, and the other sets."""
    summed = search_sets_from_profiles(a, b, contrast_answers, seed=seed)
    promising = [s for s in summed if s.explained.value > PARTIAL_EXPLAINED and s.gain.value > 0]
    chosen = sorted(promising, key=lambda s: -s.gain.value)[:_MAX_PATCHED_SETS]
    others = tuple(s for s in summed if s not in chosen)
    return [(s.target, s.members) for s in chosen], others


def search_sets_from_profiles(
    targets: HeadProfiles,
    parts: HeadProfiles,
    contrast_answers: ContrastAnswers,
    *,
    seed: int,
    draws: int = N_DRAWS,
) -> tuple[HeadSet, ...]:
    """The same search without a model: sums of effects replace joint patching."""
    proposals = propose_sets(targets, parts, contrast_answers)
    if not proposals:
        return ()
    held_out = held_out_profiles(targets, parts, contrast_answers, seed=seed, draws=draws)
    joint = np.stack([held_out.parts[:, list(members)].sum(1) for _, members in proposals], 1)
    return evaluate_sets(proposals, joint, held_out)


def propose_sets(
    targets: HeadProfiles, parts: HeadProfiles, contrast_answers: ContrastAnswers
) -> list[tuple[int, tuple[int, ...]]]:
    """Targets with candidate sets, chosen on the even prompts by sums of effect fractions."""
    even = _even_weights(targets)
    target_fractions = targets.effect_fractions(contrast_answers, even)[0]
    part_fractions = parts.effect_fractions(contrast_answers, even)[0]
    usable = active_heads(parts, contrast_answers).nonzero()[0]
    return [
        (int(target), tuple(int(usable[k]) for k in members))
        for target in active_heads(targets, contrast_answers).nonzero()[0]
        for members in candidate_sets(target_fractions[target], part_fractions[usable])
    ]


def evaluate_sets(
    proposals: Sequence[tuple[int, tuple[int, ...]]],
    joint: Float[np.ndarray, "draw set fraction"],
    held_out: HeldOutProfiles,
) -> tuple[HeadSet, ...]:
    """Compare what each set explains with what the best single head explains, in each draw."""
    best_single = explained_by(held_out.targets, held_out.parts).max(2)
    member_explains = explained_by(held_out.parts[:1], held_out.targets[:1])[0]
    sets = []
    for number, (target, members) in enumerate(proposals):
        alone = joint[:, number : number + 1]
        explained = _bounded_fraction(held_out.targets[:, target], alone)[:, 0]
        other_targets = np.delete(member_explains[list(members)], target, axis=1)
        sets.append(
            HeadSet(
                target,
                members,
                bootstrap_estimate(explained),
                bootstrap_estimate(explained - best_single[:, target]),
                bool((other_targets >= PARTIAL_EXPLAINED).any()),
            )
        )
    return tuple(sets)


def explained_by(
    targets: Float[np.ndarray, "draw head fraction"], parts: Float[np.ndarray, "draw part fraction"]
) -> Float[np.ndarray, "draw head part"]:
    """Fraction of each target that each part explains, in each draw (-1 to 1)."""
    # In single precision: the pairs of two large models are many.
    explained = np.empty((*targets.shape[:2], parts.shape[1]), dtype=np.float32)
    for number in range(targets.shape[1]):
        explained[:, number] = _bounded_fraction(targets[:, number], parts)
    return explained


def _bounded_fraction(
    target: Float[np.ndarray, "draw effect"], parts: Float[np.ndarray, "draw part effect"]
) -> Float[np.ndarray, "draw part"]:
    """Fraction that is explained, at least -1: for a weak target it falls without bound."""
    return np.maximum(explained_fraction(target, parts), -1)


def is_detected(head_set: HeadSet, threshold: float) -> bool:
    """Whether a set explains and gains enough, and no member is matched alone."""
    return (
        not head_set.member_matched
        and head_set.explained.low > MIN_EXPLAINED
        and head_set.gain.low > threshold
    )


def _even_weights(profiles: HeadProfiles) -> dict[str, Float[np.ndarray, "1 _"]]:
    """Weights of the prompts of each contrast: 1 if even, else 0."""
    return {
        contrast: (np.arange(len(totals))[None] % 2 == 0).astype(float)
        for contrast, totals in profiles.total_effects.items()
    }


def _odd_prompt_weights(
    profiles: HeadProfiles, seed: int, draws: int = N_DRAWS
) -> dict[str, Float[np.ndarray, "draw _"]]:
    """Weights of the prompts: 0 if even; odd prompts all 1 first, then bootstrap counts."""
    weights = {}
    for number, (contrast, totals) in enumerate(profiles.total_effects.items()):
        count = len(totals) // 2
        weights[contrast] = np.zeros((1 + draws, len(totals)))
        weights[contrast][0, 1::2] = 1
        weights[contrast][1:, 1::2] = bootstrap_weights(count, draws, seed=seed + number)
    return weights
