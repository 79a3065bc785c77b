"""Edges that are not worth the same in two models: each held against signs dealt by lot.

Both models are scored on the same prompts. Were an edge worth the same in both, each prompt's
difference would be as likely to have the other sign.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import false_discovery_control

from probes.circuits.graph import Wiring
from probes.stats.intervals import Estimate, draws, interval

LEVEL = 0.05
"""Share of false discoveries among the edges that are said to have changed."""

FLIPS = 4096
"""Patterns of signs that a difference is held against; all there are, for up to 12 prompts."""

_BLOCK = 4_000_000  # Floats of flipped sums held at once.
_INTERVAL = 2000


@dataclass(frozen=True, slots=True)
class Change:
    """An edge that is not worth the same in two models.

    Attributes:
        edge: Its name.
        a, b: Its score in each (logits), mean over prompts.
        difference: `a` less `b`, with its interval over prompts.
        p: Two-sided, by changing the signs of the prompts' differences (Fisher 1935).
        q: The same, corrected for the number of edges (Benjamini & Hochberg 1995).
    """

    edge: str
    a: float
    b: float
    difference: Estimate
    p: float
    q: float


def sign_flips(
    differences: Float[np.ndarray, "prompt edge"], *, seed: int = 0
) -> Float[np.ndarray, " edge"]:
    """Return each edge's p-value: how often its mean is as far from 0 with signs dealt by lot.

    Two-sided, and exact where all patterns of signs are no more than `FLIPS`.
    """
    observed = np.abs(differences.sum(0))
    # What rounding does to a sum must not part a pattern from its mirror image.
    bar = observed - 1e-9 * np.abs(differences).sum(0)
    signs = _signs(len(differences), seed)
    reached = np.zeros(len(observed))
    for start in range(0, len(observed), _BLOCK // len(signs)):
        part = slice(start, start + _BLOCK // len(signs))
        reached[part] = (np.abs(signs @ differences[:, part]) >= bar[part]).sum(0)
    return reached / len(signs)


def _signs(count: int, seed: int) -> Float[np.ndarray, "flip prompt"]:
    """List patterns of signs, first the one that was observed."""
    if 2**count <= FLIPS:
        numbers = np.arange(2**count)[:, None]
        return 1.0 - 2.0 * (numbers >> np.arange(count) & 1)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(FLIPS, count))
    signs[0] = 1
    return signs


def changes(
    wiring: Wiring,
    a: Float[np.ndarray, "prompt edge"],
    b: Float[np.ndarray, "prompt edge"],
    *,
    least: float = 0.0,
    seed: int = 0,
) -> tuple[Change, ...]:
    """List the edges whose scores differ, the greatest difference first.

    A difference of the means below `least` (logits) counts as none.
    """
    apart = np.where(np.abs((a - b).mean(0)) <= least, 0.0, a - b)
    p = sign_flips(apart, seed=seed)
    q = false_discovery_control(p)
    weights = draws(len(a), _INTERVAL, seed=seed) / len(a)
    means = (a.mean(0), b.mean(0))
    found = np.flatnonzero(q < LEVEL)
    found = found[np.argsort(-np.abs(apart[:, found].mean(0)), kind="stable")]
    return tuple(
        Change(
            edge=str(wiring.edge(number)),
            a=float(means[0][number]),
            b=float(means[1][number]),
            difference=interval(float(apart[:, number].mean()), weights @ apart[:, number]),
            p=float(p[number]),
            q=float(q[number]),
        )
        for number in found.tolist()
    )


def fewest(prompts: int, edges: int) -> int:
    """Say how many edges must change together before any can be found.

    As many patterns of signs as are tried give no p-value that one edge of many could pass with.
    """
    floor = 2 / 2**prompts if 2**prompts <= FLIPS else 1 / FLIPS
    return int(np.ceil(edges * floor / LEVEL))
