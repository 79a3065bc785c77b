"""Means over prompts, of which some lack a feature."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

BLOCK = 4_000_000
"""Floats that are averaged or compared at once: all of a large model's take gigabytes."""


def weighted_mean(
    weights: Float[np.ndarray, "draw prompt"], values: Sequence[Float[np.ndarray, "_ head feature"]]
) -> Float[np.ndarray, "draw head feature"]:
    """Mean over the prompts that have a feature; 0 where none has it.

    The prompts are those of all arrays. Some heads are averaged at a time, in double precision.
    """
    _, heads, features = values[0].shape
    mean = np.zeros((len(weights), heads, features))
    step = max(1, BLOCK // max(1, weights.shape[1] * features))
    for start in range(0, heads, step):
        own = slice(start, start + step)
        part = np.concatenate([value[:, own] for value in values]).astype(np.float64)
        present = ~np.isnan(part)
        total = np.einsum("dp,phf->dhf", weights, np.where(present, part, 0.0), optimize=True)
        weight = np.einsum("dp,phf->dhf", weights, present.astype(np.float64), optimize=True)
        np.divide(total, weight, out=mean[:, own], where=weight > 0)
    return mean


def half_weights(count: int) -> Float[np.ndarray, "2 prompt"]:
    """Weights of the even prompts, and of the odd ones."""
    even = (np.arange(count) % 2 == 0).astype(np.float64)
    return np.stack([even, 1 - even])
