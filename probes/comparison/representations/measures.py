"""Procrustes similarity and ridge predictivity of two sites, from the sums of their rows.

Both are 1 for rows that are equal up to a rotation. Compare each with permuted rows and with
another seed.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.comparison.representations.moments import Moments
from probes.errors import BatchError

_ROWS_PER_DIMENSION = 10
_RIDGE_PENALTIES = np.logspace(-6, 3, 28)


def procrustes(sums: Moments) -> float:
    """Procrustes similarity ‖Σxy‖*² / (tr Σxx · tr Σyy), 0 to 1 (Schönemann 1966).

    Fraction of one site's variance that the other reproduces after rotation and scaling, equal in
    both directions. The narrower site counts as padded with zeros. NaN where a site is constant.
    Few rows bias it upward: compare it with permuted rows only.

    Raises:
        BatchError: There are fewer than 2 rows.
    """
    _require_rows(sums.count, 2)
    if not (sums.x.spread and sums.y.spread):
        return float("nan")
    nuclear = np.linalg.svd(sums.covariance, compute_uv=False).sum()
    return float(nuclear**2 / (sums.x.spread * sums.y.spread))


def predictivity(train: Moments, test: Moments, *, ridge: float | None = None) -> float:
    """Fraction of the test variance of y that a ridge map of x explains (R², at most 1).

    Below 0 where the mean is a better guess. The map has an intercept and reads the principal
    components of the training x, at most one per 10 training rows, which prevents overfitting.
    Use `Moments.swapped` for the other direction. NaN where the training x or the test y is
    constant.

    Args:
        train: Rows to fit on. Rows of one prompt must not be in both halves.
        test: Rows to evaluate on.
        ridge: Penalty as a fraction of the mean variance of the components. By default generalized
            cross-validation on the training rows chooses it (Golub, Heath & Wahba 1979). This
            assumes independent rows: with several rows per prompt the penalty is a little small.

    Raises:
        BatchError: Fewer than 10 training rows, fewer than 2 test rows, or different widths.
    """
    _require_rows(train.count, _ROWS_PER_DIMENSION)
    _require_rows(test.count, 2)
    if train.product.shape != test.product.shape:
        raise BatchError(
            f"The training rows have widths {train.product.shape} and the test rows "
            f"{test.product.shape}: give sums of the same two sites"
        )
    if not (train.x.spread and test.y.spread):
        return float("nan")
    ridge_map = _fit_ridge(train, ridge)
    basis, weights = ridge_map.basis, ridge_map.weights
    centered = test.recenter(train.x.mean, train.y.mean)
    error = (
        centered.y.squared_norm
        - 2 * float(((basis.T @ centered.product) * weights).sum())
        + float((weights * (basis.T @ centered.x.product @ basis @ weights)).sum())
    )
    return 1 - error / test.y.spread


@dataclass(frozen=True, eq=False)
class _RidgeMap:
    basis: Float[np.ndarray, "d_x component"]
    weights: Float[np.ndarray, "component d_y"]


def _fit_ridge(train: Moments, ridge: float | None) -> _RidgeMap:
    total, count = train.x.total, train.count
    variance, basis = np.linalg.eigh(train.x.product - np.outer(total, total) / count)
    rank = max(1, min(count // _ROWS_PER_DIMENSION, int((variance > 1e-10 * variance[-1]).sum())))
    variance, basis = variance[::-1][:rank], basis[:, ::-1][:, :rank]
    target = basis.T @ train.covariance
    unit = float(variance.mean())
    penalty = _best_penalty(variance, target, train) if ridge is None else ridge * unit
    return _RidgeMap(basis, target / (variance + penalty)[:, None])


def _best_penalty(variance: np.ndarray, target: np.ndarray, train: Moments) -> float:
    """Penalty with the smallest generalized cross-validation error."""
    power = (target**2).sum(1)
    penalties = _RIDGE_PENALTIES * float(variance.mean())
    scores = []
    for penalty in penalties:
        shrunk = variance + penalty
        error = train.y.spread - float((power * (variance + 2 * penalty) / shrunk**2).sum())
        free = train.count - 1 - float((variance / shrunk).sum())
        scores.append(error / free**2)
    return float(penalties[int(np.argmin(scores))])


def _require_rows(count: int, minimum: int) -> None:
    if count < minimum:
        raise BatchError(f"{count} rows are too few: give at least {minimum}")
