"""Linear maps from one model's states to another's, fitted on activations alone.

Nothing stronger is offered: a map that is powerful enough makes any network implement any algorithm
(Sutter et al. 2025, 2507.08802).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import BatchError

MapKind = Literal["identity", "orthogonal", "ridge"]

MAP_KINDS: tuple[MapKind, ...] = ("identity", "orthogonal", "ridge")
"""From the least to the most that a map may do."""

PROMPTS_PER_DIMENSION = 10
"""Rows that a fitted dimension needs: with fewer, a map fits what it must not know."""

_RIDGE_PENALTIES = 10.0 ** torch.arange(-6, 1.1, 0.5, dtype=torch.float64)
_RANK_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class LinearMap:
    """h → W h + c.

    Attributes:
        kind: What W may be.
        matrix, shift: W (transposed) and c.
        rank: In how many directions W looks at h.
    """

    kind: MapKind
    matrix: Float[Tensor, "d_from d_to"]
    bias: Float[Tensor, " d_to"]
    rank: int

    def __call__(self, states: Float[Tensor, "row d_from"]) -> Float[Tensor, "row d_to"]:
        """Map states, row by row."""
        return (states.double() @ self.matrix + self.bias).to(states.dtype)


def fit_map(
    kind: MapKind,
    x: Float[Tensor, "row d_from"],
    y: Float[Tensor, "row d_to"],
    *,
    prompts: int | None = None,
) -> LinearMap:
    """Fit a map that takes each row of `x` to its row of `y`.

    "identity" fits nothing. "orthogonal" turns (and scales as a whole, and shifts); where widths
    differ, what one has no room for is left out. "ridge" is any linear map, penalised as strongly
    as generalized cross-validation finds best (Golub et al. 1979). It looks at the widest
    directions of `x` only, a tenth of the prompts at most.

    Args:
        kind: Which.
        x, y: Corresponding states.
        prompts: From how many prompts the rows are, where some are from the same; by default as
            many as there are rows.

    Raises:
        BatchError: Widths differ under "identity", there are fewer than 10 prompts, or a state is
            not finite.
    """
    rows, d_from = x.shape
    d_to = y.shape[1]
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise BatchError("Some states are NaN or infinite: load the model with a wider dtype")
    if kind == "identity":
        if d_from != d_to:
            raise BatchError(
                f"The identity cannot take {d_from} dimensions to {d_to}: fit 'orthogonal' or "
                "'ridge' between models of different widths"
            )
        return LinearMap(kind, torch.eye(d_from).double(), torch.zeros(d_to).double(), d_from)
    count = rows if prompts is None else prompts
    if count < PROMPTS_PER_DIMENSION:
        raise BatchError(
            f"{count} prompts found: a map needs {PROMPTS_PER_DIMENSION} for each direction it reads"
        )
    x, y = x.double(), y.double()
    center, aim = x.mean(0), y.mean(0)
    fit = _procrustes if kind == "orthogonal" else _ridge
    matrix, rank = fit(x - center, y - aim, max(count // PROMPTS_PER_DIMENSION, 1))
    return LinearMap(kind, matrix, aim - center @ matrix, rank)


def _procrustes(x: Tensor, y: Tensor, max_rank: int) -> tuple[Tensor, int]:
    """Orthogonal Procrustes (Schönemann 1966), with one scale."""
    del max_rank  # Turning has no strength to overfit with: all directions may be used.
    left, size, right = torch.linalg.svd(x.T @ y, full_matrices=False)
    turn = left @ right
    # Where the donor is wider, what turning leaves of it is less than all of it.
    scale = size.sum() / (x @ turn).square().sum().clamp(min=1e-30)
    return scale * turn, len(size)


def _ridge(x: Tensor, y: Tensor, max_rank: int) -> tuple[Tensor, int]:
    values, vectors = torch.linalg.eigh(x.T @ x)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = min(max_rank, int((values > _RANK_TOLERANCE * values[0].clamp(min=1e-30)).sum()))
    if rank == 0:  # All states are one: nothing but the mean can be said.
        return torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype), 0
    values, vectors = values[:rank], vectors[:, :rank]
    # In these directions the fit is one number each: Vᵀxᵀy, divided by its square and a penalty.
    cross = vectors.T @ (x.T @ y)
    explained = cross.square().sum(1) / values
    strengths = _RIDGE_PENALTIES.to(x) * values[0]
    keep = values / (values + strengths[:, None])
    left = y.square().sum() - ((2 * keep - keep**2) * explained).sum(1)
    best = int((left / (len(x) - 1 - keep.sum(1)).clamp(min=1).square()).argmin())
    return vectors @ (cross / (values + strengths[best])[:, None]), rank
