"""Everything that the rules for heads read, measured once for each relative."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.heads.head_sets import (
    HeadSet,
    HeadView,
    HeldOut,
    busy,
    explained_by,
    gain_bar,
    gains,
    held_out,
    is_found,
    search,
)
from probes.comparison.heads.matching import family_wise, pair_heads
from probes.comparison.heads.profiles import Profiles, Vectors, live, similarity
from probes.comparison.heads.role_free import Moves, moves
from probes.stats.intervals import Estimate, interval

GAIN = 0.1
"""What a set must explain more than the best single head."""

_DRAWS = 200


@dataclass(frozen=True, eq=False)
class Chance:
    """The nets that a relative is held against: their profiles, on the same prompts.

    Attributes:
        untrained: Nets of the relative's shape with fresh weights: the bar.
        strangers: Nets trained on the same words for another end.
        controls: Nets of the relative's shape trained for the same end without the full model.
        twin: Another seed of the full model.
    """

    untrained: Sequence[Profiles]
    strangers: Sequence[Profiles] = ()
    controls: Sequence[Profiles] = ()
    twin: Profiles | None = None


@dataclass(frozen=True, eq=False)
class Look:
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

    a: Profiles
    b: Profiles
    busy_a: Bool[np.ndarray, " head"]
    busy_b: Bool[np.ndarray, " head_b"]
    bar: float
    alike: Float[np.ndarray, "draw head head_b"]
    held: HeldOut
    explains: Float[np.ndarray, "sample head head_b"]
    explains_back: Float[np.ndarray, "sample head_b head"]
    splits: tuple[HeadSet, ...]
    merges: tuple[HeadSet, ...]
    split_bar: float
    merge_bar: float
    moves: Moves
    twin_moves: Moves | None
    stranger: Float[np.ndarray, "draw head"] | None
    controls: tuple[tuple[frozenset[int], tuple[bool, ...]], ...]

    def score(self, head: int, partner: int) -> Estimate:
        """Return how alike two heads are."""
        return estimate(self.alike[:, head, partner])

    def shortfall(self, head: int, partner: int) -> Estimate:
        """Return how much more alike a head is to its partner than to itself, across halves."""
        first, second = self.a.halves(), self.b.halves()
        short = (
            _crossed(first, second)[:, head, partner] - _crossed(first, first)[:, head, head]
        ).mean()
        drawn = self.alike[:, head, partner] - self.alike[0, head, partner]
        return estimate(short + drawn)

    def strength(self, head: int, partner: int) -> Estimate:
        """Return how much longer the partner's share profile is, as a share of the head's own."""
        own = np.linalg.norm(self.held.targets[:, head], axis=-1)
        return estimate(np.linalg.norm(self.held.parts[:, partner], axis=-1) / own - 1)


def look(full: HeadView, other: HeadView, chance: Chance, *, seed: int) -> Look:
    """Measure what the rules read."""
    a, b = full.profiles, other.profiles
    where = live(a, b)
    held = held_out(a, b, where, seed=seed)
    strangers = [_alike(a, net, seed).max(2) for net in chance.strangers]
    return Look(
        a=a,
        b=b,
        busy_a=busy(a, where),
        busy_b=busy(b, where),
        bar=family_wise(np.stack([pair_heads(a, net).score for net in chance.untrained])),
        alike=_alike(a, b, seed),
        held=held,
        explains=explained_by(held.targets, held.parts),
        explains_back=explained_by(held.parts, held.targets),
        splits=search(full, other, where, seed=seed),
        merges=search(other, full, where, seed=seed),
        split_bar=max(GAIN, gain_bar(a, chance.untrained, where, merge=False)),
        merge_bar=max(GAIN, gain_bar(a, chance.untrained, where, merge=True)),
        moves=moves(a, b, chance.untrained, where, seed=seed),
        twin_moves=moves(a, chance.twin, (), where, seed=seed) if chance.twin else None,
        stranger=np.max(strangers, axis=0) if strangers else None,
        controls=tuple(_without(a, net, seed) for net in chance.controls),
    )


def estimate(drawn: Float[np.ndarray, " draw"]) -> Estimate:
    """Return the first of the draws with the middle 95 % of the others."""
    return interval(float(drawn[0]), drawn[1:])


def _alike(a: Profiles, b: Profiles, seed: int) -> Float[np.ndarray, "draw head_a head_b"]:
    drawn = similarity(a.drawn(_DRAWS, seed=seed), b.drawn(_DRAWS, seed=seed))
    return np.concatenate([similarity(a.even(), b.even()), drawn])


def _crossed(a: Vectors, b: Vectors) -> Float[np.ndarray, "half head_a head_b"]:
    """Hold each half of the prompts against the other half."""
    return similarity(a, Vectors(b.effects[::-1], b.attention[::-1]))


def _without(a: Profiles, net: Profiles, seed: int) -> tuple[frozenset[int], tuple[bool, ...]]:
    """Run the search for sets in a net that never saw the full model, by sums of profiles."""
    where = live(a, net)
    splits = gains(a, net, where, seed=seed)
    merged = {s.target for s in gains(net, a, where, seed=seed) if is_found(s, GAIN)}
    return (
        frozenset(s.target for s in splits if is_found(s, GAIN)),
        tuple(int(head) in merged for head in busy(net, where).nonzero()[0]),
    )
