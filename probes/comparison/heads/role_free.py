"""Heads that move the same answers, whatever the role at which they do it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Float, Int

from probes.comparison.heads.head_sets import HeldOut, Where, held_out, scaled
from probes.comparison.heads.profiles import Profiles

_QUANTILE = 0.95


@dataclass(frozen=True, eq=False)
class Moves:
    """Share profiles summed over roles, and where each head does most.

    Attributes:
        alike: Cosine of the sums (-1 to 1); the first row is all prompts, then bootstrap samples.
        bar: The 95th percentile of the best pair that untrained nets offer.
        at, at_b: The role, by number, of each head's strongest effects in each draw.
    """

    alike: Float[np.ndarray, "draw head head_b"]
    bar: float
    at: Int[np.ndarray, "draw head"]
    at_b: Int[np.ndarray, "draw head_b"]


def moves(a: Profiles, b: Profiles, nets: Sequence[Profiles], where: Where, *, seed: int) -> Moves:
    """Hold two models' heads against each other with roles summed over.

    Few features are left, so that untrained nets offer much: the bar is often out of reach.
    """
    held = held_out(a, b, where, seed=seed)
    best = [
        float(_cosines(held_out(a, scaled(net, a, where), where, seed=seed), where)[0].max())
        for net in nets
    ]
    return Moves(
        _cosines(held, where),
        float(np.quantile(best, _QUANTILE)) if best else 1.0,
        _strongest(held.targets, where),
        _strongest(held.parts, where),
    )


def _cosines(held: HeldOut, where: Where) -> Float[np.ndarray, "draw head head_b"]:
    first, second = (_unit(_summed(shares, where)) for shares in (held.targets, held.parts))
    return np.einsum("dis,djs->dij", first, second)


def _summed(
    shares: Float[np.ndarray, "draw head share"], where: Where
) -> Float[np.ndarray, "draw head moved"]:
    return reduce(shares, "draw head (moved role) -> draw head moved", "sum", moved=len(where))


def _strongest(
    shares: Float[np.ndarray, "draw head share"], where: Where
) -> Int[np.ndarray, "draw head"]:
    split = rearrange(shares, "draw head (moved role) -> draw head moved role", moved=len(where))
    return np.square(split).sum(2).argmax(-1)


def _unit(sums: Float[np.ndarray, "draw head moved"]) -> Float[np.ndarray, "draw head moved"]:
    length = np.linalg.norm(sums, axis=-1, keepdims=True)
    return np.divide(sums, length, out=np.zeros_like(sums), where=length > 1e-9)
