"""Permuted null of head profiles: what heads without a counterpart look like, without a model."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from probes.comparison.heads.profiles import HeadProfiles


def permute_roles(profiles: HeadProfiles, *, seed: int) -> HeadProfiles:
    """Profiles whose heads act and attend at random roles, each head by permutations of its own.

    Effects are permuted among the roles of a contrast at which any head has an effect, attention
    among the keys of each query role. Strength, reliability and spread of every head stay, as do
    roles that the contrast cannot reach; only where the head acts is lost. Sums over roles stay,
    too: whether a head has moved cannot be tested against this null. Real heads attend more sharply
    than those of random-init models, so that this null is the stricter one.
    """
    rng, roles = np.random.default_rng(seed), len(profiles.roles)
    effects = {c: _permute_effects(e, roles, rng) for c, e in profiles.effects.items()}
    if profiles.mean_attention is None:
        attention = _permute_attention(profiles.attention, roles, rng)
        return replace(profiles, effects=effects, attention=attention)
    # All prompts have the same permutations, so that the mean can be permuted in their place.
    mean = _permute_attention({"mean": profiles.mean_attention[None]}, roles, rng)["mean"][0]
    return replace(profiles, effects=effects, mean_attention=mean)


def _permute_effects(
    effects: Float[np.ndarray, "prompt head effect"], roles: int, rng: np.random.Generator
) -> Float[np.ndarray, "prompt head effect"]:
    by_role = effects.reshape(*effects.shape[:2], roles, -1)
    live = np.flatnonzero(np.abs(np.nan_to_num(by_role)).max((0, 1, 3), initial=0.0) > 0)
    permuted = by_role.copy()
    for head in range(effects.shape[1]):
        permuted[:, head, live] = by_role[:, head, rng.permutation(live)]
    return permuted.reshape(effects.shape)


def _permute_attention(
    attention: Mapping[str, Float[np.ndarray, "_ head attended"]],
    roles: int,
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, "_ head attended"]]:
    """The same permutation for all contrasts, so that heads keep one pattern of attention."""
    by_key = {c: a.reshape(*a.shape[:2], roles, roles) for c, a in attention.items()}
    permuted = {c: a.copy() for c, a in by_key.items()}
    # A query can attend to a role if any head of any prompt does.
    attended = np.any([(np.nan_to_num(a) != 0).any((0, 1)) for a in by_key.values()], axis=0)
    for head in range(next(iter(by_key.values())).shape[1]):
        for query in range(roles):
            keys = np.flatnonzero(attended[query])
            order = rng.permutation(keys)
            for contrast, own in by_key.items():
                permuted[contrast][:, head, query, keys] = own[:, head, query, order]
    return {c: a.reshape(attention[c].shape) for c, a in permuted.items()}
