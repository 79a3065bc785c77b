"""Per-edge sign-flip permutation test of score differences between two models.

Both models are scored on the same prompts. If an edge had the same score in both, each prompt's
difference would be as likely to have the other sign.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import false_discovery_control

from probes.circuits.graph import ComputationGraph
from probes.stats.intervals import BOOTSTRAP_DRAWS, Estimate, bootstrap_weights, percentile_interval

FDR_LEVEL = 0.05
"""Expected fraction of false discoveries among the edges that are reported as changed."""

MAX_SIGN_FLIPS = 4096
"""Sign patterns of the permutation test; all of them for up to 12 prompts."""

_BLOCK = 4_000_000  # Floats of flipped sums held at once.


@dataclass(frozen=True, slots=True)
class EdgeChange:
    """An edge whose score differs between two models.

    Attributes:
        edge: Its name.
        a, b: Its score in each model (logits), mean over prompts.
        difference: `a` minus `b`, with its interval over prompts.
        p: Two-sided p-value of the sign-flip test (Fisher 1935).
        q: p corrected for the number of edges (Benjamini & Hochberg 1995).
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
    """Two-sided p-value of each edge's mean difference under random signs.

    Exact where there are at most `MAX_SIGN_FLIPS` sign patterns.
    """
    observed = np.abs(differences.sum(0))
    # Rounding must not separate a pattern from its mirror image.
    threshold = observed - 1e-9 * np.abs(differences).sum(0)
    signs = _sign_patterns(len(differences), seed)
    reached = np.zeros(len(observed))
    for start in range(0, len(observed), _BLOCK // len(signs)):
        part = slice(start, start + _BLOCK // len(signs))
        reached[part] = (np.abs(signs @ differences[:, part]) >= threshold[part]).sum(0)
    return reached / len(signs)


def _sign_patterns(count: int, seed: int) -> Float[np.ndarray, "flip prompt"]:
    """All or random sign patterns; the first is the observed one."""
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
    """Edges whose scores differ significantly, the greatest difference first.

    A difference of the means up to `min_difference` (logits) counts as 0.
    """
    differences = np.where(np.abs((a - b).mean(0)) <= min_difference, 0.0, a - b)
    p = sign_flip_test(differences, seed=seed)
    q = false_discovery_control(p)
    weights = bootstrap_weights(len(a), BOOTSTRAP_DRAWS, seed=seed) / len(a)
    mean_a, mean_b = a.mean(0), b.mean(0)
    changed = np.flatnonzero(q < FDR_LEVEL)
    changed = changed[np.argsort(-np.abs(differences[:, changed].mean(0)), kind="stable")]
    return tuple(
        EdgeChange(
            edge=str(graph.edge(index)),
            a=float(mean_a[index]),
            b=float(mean_b[index]),
            difference=percentile_interval(
                float(differences[:, index].mean()), weights @ differences[:, index]
            ),
            p=float(p[index]),
            q=float(q[index]),
        )
        for index in changed.tolist()
    )


def min_detectable_edges(prompts: int, edges: int) -> int:
    """Number of edges that must change together before any can be significant.

    The number of sign patterns limits how small a p-value can be.
    """
    floor = 2 / 2**prompts if 2**prompts <= MAX_SIGN_FLIPS else 1 / MAX_SIGN_FLIPS
    return int(np.ceil(edges * floor / FDR_LEVEL))
