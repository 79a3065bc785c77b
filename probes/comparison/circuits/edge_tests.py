"""Edges that are not worth the same in two models: each held against signs dealt by lot.

Both models are scored on the same prompts. Were an edge worth the same in both, each prompt's
difference would be as likely to have the other sign.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import false_discovery_control

from probes.circuits.graph import ComputationGraph
from probes.stats.intervals import BOOTSTRAP_DRAWS, Estimate, bootstrap_weights, percentile_interval

FDR_LEVEL = 0.05
"""Share of false discoveries among the edges that are said to have changed."""

MAX_SIGN_FLIPS = 4096
"""Patterns of signs that a difference is held against; all there are, for up to 12 prompts."""

_BLOCK = 4_000_000  # Floats of flipped sums held at once.


@dataclass(frozen=True, slots=True)
class EdgeChange:
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


def sign_flip_test(
    differences: Float[np.ndarray, "prompt edge"], *, seed: int = 0
) -> Float[np.ndarray, " edge"]:
    """Return each edge's p-value: how often its mean is as far from 0 with signs dealt by lot.

    Two-sided, and exact where all patterns of signs are no more than `FLIPS`.
    """
    observed = np.abs(differences.sum(0))
    # What rounding does to a sum must not part a pattern from its mirror image.
    bar = observed - 1e-9 * np.abs(differences).sum(0)
    signs = _sign_patterns(len(differences), seed)
    reached = np.zeros(len(observed))
    for start in range(0, len(observed), _BLOCK // len(signs)):
        part = slice(start, start + _BLOCK // len(signs))
        reached[part] = (np.abs(signs @ differences[:, part]) >= bar[part]).sum(0)
    return reached / len(signs)


def _sign_patterns(count: int, seed: int) -> Float[np.ndarray, "flip prompt"]:
    """List patterns of signs, first the one that was observed."""
    if 2**count <= MAX_SIGN_FLIPS:
        numbers = np.arange(2**count)[:, None]
        return 1.0 - 2.0 * (numbers >> np.arange(count) & 1)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(MAX_SIGN_FLIPS, count))
    signs[0] = 1
    return signs


def edge_changes(
    graph: ComputationGraph,
    a: Float[np.ndarray, "prompt edge"],
    b: Float[np.ndarray, "prompt edge"],
    *,
    min_difference: float = 0.0,
    seed: int = 0,
) -> tuple[EdgeChange, ...]:
    """List the edges whose scores differ, the greatest difference first.

    A difference of the means below `least` (logits) counts as none.
    """
    apart = np.where(np.abs((a - b).mean(0)) <= min_difference, 0.0, a - b)
    p = sign_flip_test(apart, seed=seed)
    q = false_discovery_control(p)
    weights = bootstrap_weights(len(a), BOOTSTRAP_DRAWS, seed=seed) / len(a)
    means = (a.mean(0), b.mean(0))
    found = np.flatnonzero(q < FDR_LEVEL)
    found = found[np.argsort(-np.abs(apart[:, found].mean(0)), kind="stable")]
    return tuple(
        EdgeChange(
            edge=str(graph.edge(number)),
            a=float(means[0][number]),
            b=float(means[1][number]),
            difference=percentile_interval(
                float(apart[:, number].mean()), weights @ apart[:, number]
            ),
            p=float(p[number]),
            q=float(q[number]),
        )
        for number in found.tolist()
    )


def min_detectable_edges(prompts: int, edges: int) -> int:
    """Say how many edges must change together before any can be found.

    As many patterns of signs as are tried give no p-value that one edge of many could pass with.
    """
    floor = 2 / 2**prompts if 2**prompts <= MAX_SIGN_FLIPS else 1 / MAX_SIGN_FLIPS
    return int(np.ceil(edges * floor / FDR_LEVEL))
