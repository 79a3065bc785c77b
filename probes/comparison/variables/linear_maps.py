"""Linear maps from one model's states to another's, fitted on activations alone.

Nonlinear maps are left out: a map that is strong enough makes any network implement any algorithm
(Sutter et al. 2025, arXiv 2507.08802).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import BatchError

MapKind = Literal["identity", "orthogonal", "ridge"]

MAP_KINDS: tuple[MapKind, ...] = ("identity", "orthogonal", "ridge")
"""In order of the freedom of the map."""

PROMPTS_PER_DIMENSION = 10
"""Prompts for each fitted dimension; with fewer, the map overfits."""

_RIDGE_PENALTIES = 10.0 ** torch.arange(-6, 1.1, 0.5, dtype=torch.float64)
_RANK_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class LinearMap:
    """Affine map x → x @ matrix + bias.

    Attributes:
        kind: Restriction on the matrix.
        matrix, bias: The parameters.
        rank: Number of directions of x that the map reads.
    """

    kind: MapKind
    matrix: Float[Tensor, "d_from d_to"]
    bias: Float[Tensor, " d_to"]
    rank: int

    def __call__(self, states: Float[Tensor, "row d_from"]) -> Float[Tensor, "row d_to"]:
        """Map each row."""
        return (states.double() @ self.matrix + self.bias).to(states.dtype)


def fit_map(
    kind: MapKind,
    x: Float[Tensor, "row d_from"],
    y: Float[Tensor, "row d_to"],
    *,
    prompts: int | None = None,
) -> LinearMap:
    """Fit a map from the rows of `x` to the rows of `y`.

    Args:
        kind: "identity" fits nothing. "orthogonal" is a rotation with one scale and a shift; the
            wider space loses dimensions. "ridge" is a linear map of the leading principal
            directions of `x`, at most a tenth of the prompts, with the penalty from generalized
            cross-validation (Golub et al. 1979).
        x, y: Corresponding states.
        prompts: Number of prompts that the rows come from; by default the number of rows.

    Raises:
        BatchError: The widths differ for "identity", there are fewer than 10 prompts, or a state
            is not finite.
    """
    rows, d_from = x.shape
    d_to = y.shape[1]
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise BatchError("Some states are NaN or infinite: load the model with a wider dtype")
    if kind == "identity":
        if d_from != d_to:
            raise BatchError(
                f"The identity cannot map {d_from} dimensions to {d_to}: fit 'orthogonal' or "
                "'ridge' between models of different widths"
            )
        return LinearMap(kind, torch.eye(d_from).double(), torch.zeros(d_to).double(), d_from)
    count = rows if prompts is None else prompts
    if count < PROMPTS_PER_DIMENSION:
        raise BatchError(
            f"{count} prompts found: a map needs {PROMPTS_PER_DIMENSION} for each direction it "
            "reads"
        )
    x, y = x.double(), y.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    fit = _procrustes if kind == "orthogonal" else _ridge
    matrix, rank = fit(x - x_mean, y - y_mean, max(count // PROMPTS_PER_DIMENSION, 1))
    return LinearMap(kind, matrix, y_mean - x_mean @ matrix, rank)


def _procrustes(x: Tensor, y: Tensor, max_rank: int) -> tuple[Tensor, int]:
    """Orthogonal Procrustes (Schönemann 1966) with one scale."""
    del max_rank  # A rotation cannot overfit, so it may use all directions.
    left, singular, right = torch.linalg.svd(x.T @ y, full_matrices=False)
    rotation = left @ right
    # If x is wider, the rotation keeps only a part of its variance.
    scale = singular.sum() / (x @ rotation).square().sum().clamp(min=1e-30)
    return scale * rotation, len(singular)


def _ridge(x: Tensor, y: Tensor, max_rank: int) -> tuple[Tensor, int]:
    values, vectors = torch.linalg.eigh(x.T @ x)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = min(max_rank, int((values > _RANK_TOLERANCE * values[0].clamp(min=1e-30)).sum()))
    if rank == 0:  # All states are equal, so the map is constant.
        return torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype), 0
    values, vectors = values[:rank], vectors[:, :rank]
    # In the eigenbasis, ridge regression shrinks each direction separately.
    cross = vectors.T @ (x.T @ y)
    explained = cross.square().sum(1) / values
    penalties = _RIDGE_PENALTIES.to(x) * values[0]
    shrinkage = values / (values + penalties[:, None])
    residual = y.square().sum() - ((2 * shrinkage - shrinkage**2) * explained).sum(1)
    degrees = (len(x) - 1 - shrinkage.sum(1)).clamp(min=1)
    best = int((residual / degrees.square()).argmin())
    return vectors @ (cross / (values + penalties[best])[:, None]), rank
