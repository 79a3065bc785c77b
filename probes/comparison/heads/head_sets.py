"""Sets of heads that do together what one head of the other model does: splits and merges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.heads.profiles import Profiles, shares
from probes.interventions.joint_patching import candidates, explained, joint_effects
from probes.models.model import Model
from probes.prompts.pair_batch import PairBatch, encode_pairs
from probes.stats.intervals import Estimate, draws, interval

EXPLAINS = 0.5
"""A head or set that explains less of a share profile has no more than a part in it."""

STANDS_FOR = 0.7
"""One that stands for a head explains surely more than this: two parts of three are not all."""

LEAST = 0.01
"""A head that nowhere moves this share of an answer is idle."""

_TIMES = 200
_QUANTILE = 0.95

Where = Sequence[tuple[str, int]]


@dataclass(frozen=True, eq=False)
class HeadView:
    """A model with what was measured of its heads; the batches are those of its profiles."""

    model: Model
    batches: Mapping[str, PairBatch]
    profiles: Profiles
    turn: Any = field(default_factory=Lock, repr=False)
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
    explains: Estimate
    gain: Estimate
    claimed: bool


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Share profiles of two models on the prompts that no set was chosen on.

    Attributes:
        targets, parts: All prompts alike in the first row, then bootstrap samples.
    """

    targets: Float[np.ndarray, "draw head share"]
    parts: Float[np.ndarray, "draw part share"]


def busy(profiles: Profiles, where: Where) -> Bool[np.ndarray, " head"]:
    """Say which heads repeat themselves and move a share of an answer; the others are idle."""
    every = {contrast: np.ones((1, len(t))) for contrast, t in profiles.totals.items()}
    found = shares(profiles.effects, profiles.totals, where, every)[0]
    return profiles.reliable & (np.abs(found).max(-1, initial=0.0) >= LEAST)


def held_out(targets: Profiles, parts: Profiles, where: Where, *, seed: int) -> HeldOut:
    """Take the share profiles of the odd prompts; equal seeds draw equal prompts."""
    weights = _odd(targets, seed)
    return HeldOut(
        shares(targets.effects, targets.totals, where, weights),
        shares(parts.effects, parts.totals, where, weights),
    )


def search(targets: HeadView, parts: HeadView, where: Where, *, seed: int) -> tuple[HeadSet, ...]:
    """Find the pair and the triple that come nearest to each head, and patch them together.

    Sets are chosen on the even prompts and measured on the odd. Idle heads are not
    sought, and take no part.
    """
    a, b = targets.profiles, parts.profiles
    found = proposed(a, b, where)
    names = [tuple(b.heads[k] for k in members) for _, members in found]
    sets = list(dict.fromkeys(names))
    if not sets:
        return ()
    odd = {
        contrast: encode_pairs(parts.model.tokenizer, parts.batches[contrast].pairs[1::2])
        for contrast in dict.fromkeys(contrast for contrast, _ in where)
    }
    with parts.turn:
        effects = joint_effects(parts.model, odd, sets, b.roles)
    weights = _odd(b, seed)
    joint = shares(
        effects,
        {contrast: b.totals[contrast][1::2] for contrast in odd},
        where,
        {contrast: weights[contrast][:, 1::2] for contrast in odd},
    )
    return judged(
        found, joint[:, [sets.index(name) for name in names]], held_out(a, b, where, seed=seed)
    )


def proposed(targets: Profiles, parts: Profiles, where: Where) -> list[tuple[int, tuple[int, ...]]]:
    """Choose sets of parts for each target on the even prompts, by sums of their profiles."""
    even = {c: (np.arange(len(t))[None] % 2 == 0).astype(float) for c, t in targets.totals.items()}
    aim = shares(targets.effects, targets.totals, where, even)[0]
    offer = shares(parts.effects, parts.totals, where, even)[0]
    usable = busy(parts, where).nonzero()[0]
    return [
        (int(target), tuple(int(usable[k]) for k in members))
        for target in busy(targets, where).nonzero()[0]
        for members in candidates(aim[target], offer[usable])
    ]


def judged(
    found: Sequence[tuple[int, tuple[int, ...]]],
    joint: Float[np.ndarray, "draw set share"],
    held: HeldOut,
) -> tuple[HeadSet, ...]:
    """Hold what sets explain against what the best single head does, draw by draw."""
    single = explained_by(held.targets, held.parts).max(2)
    # What each target by itself explains of each part.
    alone = explained_by(held.parts[:1], held.targets[:1])[0]
    sets = []
    for number, (target, members) in enumerate(found):
        whole = explained(held.targets[:, target], joint[:, number : number + 1])[:, 0]
        gain = whole - single[:, target]
        others = np.delete(alone[list(members)], target, axis=1)
        sets.append(
            HeadSet(
                target,
                members,
                interval(float(whole[0]), whole[1:]),
                interval(float(gain[0]), gain[1:]),
                bool((others >= EXPLAINS).any()),
            )
        )
    return tuple(sets)


def explained_by(
    targets: Float[np.ndarray, "draw head share"], parts: Float[np.ndarray, "draw part share"]
) -> Float[np.ndarray, "draw head part"]:
    """Return how much of each target each part explains, draw by draw."""
    return np.stack([explained(t, parts) for t in targets.swapaxes(0, 1)], 1)


def gains(targets: Profiles, parts: Profiles, where: Where, *, seed: int) -> tuple[HeadSet, ...]:
    """Run the search where only profiles are at hand: sums stand for joint patches."""
    found = proposed(targets, parts, where)
    if not found:
        return ()
    held = held_out(targets, parts, where, seed=seed)
    joint = np.stack([held.parts[:, list(members)].sum(1) for _, members in found], 1)
    return judged(found, joint, held)


def is_found(found: HeadSet, bar: float) -> bool:
    """Say whether a set surely explains enough, surely gains more than a bar, and is not taken."""
    return not found.claimed and found.explains.low > STANDS_FOR and found.gain.low > bar


def best_gain(sets: Sequence[HeadSet]) -> float:
    """Return the largest gain of a set that explains enough, or 0."""
    good = [s.gain.value for s in sets if s.explains.value >= STANDS_FOR and not s.claimed]
    return max(good, default=0.0)


def gain_bar(full: Profiles, nets: Sequence[Profiles], where: Where, *, merge: bool) -> float:
    """Return the 95th percentile of the best gain that the same search has in untrained nets.

    What such a net moves is tiny, and no share of anything: it is scaled up until its strongest
    head is as strong as the strongest of `full`. Its sums stand for joint patches: small effects
    add up.
    """
    best = []
    for net in nets:
        strong = scaled(net, full, where)
        pair = (strong, full) if merge else (full, strong)
        best.append(best_gain(gains(*pair, where, seed=0)))
    return float(np.quantile(best, _QUANTILE)) if best else 0.0


def scaled(net: Profiles, like: Profiles, where: Where) -> Profiles:
    """Make an untrained net's strongest head as strong as the strongest of a trained one."""
    every = {contrast: np.ones((1, len(t))) for contrast, t in like.totals.items()}
    plain = {contrast: np.ones_like(t) for contrast, t in like.totals.items()}
    wanted = np.linalg.norm(shares(like.effects, like.totals, where, every)[0], axis=1).max()
    there = np.linalg.norm(shares(net.effects, plain, where, every)[0], axis=1).max()
    factor = there / wanted if there > 0 else 1.0
    return replace(net, totals={contrast: factor * ones for contrast, ones in plain.items()})


def _odd(profiles: Profiles, seed: int) -> dict[str, Float[np.ndarray, "draw _"]]:
    """Weigh the odd prompts: alike in the first row, then as bootstrap samples draw them."""
    weights = {}
    for number, (contrast, totals) in enumerate(profiles.totals.items()):
        count = len(totals) // 2
        weights[contrast] = np.zeros((1 + _TIMES, len(totals)))
        weights[contrast][0, 1::2] = 1
        weights[contrast][1:, 1::2] = draws(count, _TIMES, seed=seed + number)
    return weights
