"""How alike two sites are, from the sums of their rows: CKA, Procrustes and predictivity.

All are 1 for rows that are the same but for a rotation. None says that two models compute alike:
hold each against the same number for permuted rows and for another seed.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.comparison.representations.moments import CrossMoments, Moments, SiteMoments, moments
from probes.comparison.representations.row_check import Rows, float_rows
from probes.errors import BatchError

_MIN_ROWS = 4
_ROWS_PER_DIMENSION = 10
_RIDGE_PENALTIES = np.logspace(-6, 3, 28)


def cka(sums: Moments, *, debiased: bool = True) -> float:
    """Return how alike two sites' linear kernels are, -1 to 1; NaN where one site never varies.

    Linear CKA (Kornblith et al. 2019, 1905.00414). Plain, it is near 1 for unrelated rows as soon
    as they are fewer than dimensions; debiased, its mean is 0 there: HSIC is replaced by its
    unbiased estimate (Song et al. 2012). Rotations and one common scale change nothing. One row
    that is far longer than the others decides the number: see `robust_cka`.

    Raises:
        BatchError: There are fewer than 4 rows.
    """
    _require_rows(sums.count, _MIN_ROWS)
    if not (sums.x.spread and sums.y.spread):
        return float("nan")
    hsic = _hsic_unbiased if debiased else _hsic_biased
    both = hsic(sums.x, sums.y, sums.cross)
    own = [hsic(side, side, side.self_cross()) for side in (sums.x, sums.y)]
    return both / float(np.sqrt(own[0] * own[1])) if min(own) > 0 else float("nan")


def robust_cka(x: Rows, y: Rows, *, most: float = 2.0) -> float:
    """Return debiased CKA after rows far from the middle are pulled in; needs all rows at once.

    Each site is centered on its median, coordinate by coordinate, and a row that is longer than
    `most` times the median length is cut to that. Thus one massive row cannot decide, as it does
    in `cka`; a shift of many rows still can (Davari et al. 2022, 2210.16156).

    Raises:
        BatchError: As in `cka` and `moments`.
    """
    cut = []
    for name, rows in (("x", x), ("y", y)):
        centered = float_rows(rows, name)
        centered -= np.median(centered, axis=0)
        length = np.linalg.norm(centered, axis=1, keepdims=True)
        limit = most * float(np.median(length))
        cut.append(centered * (limit / np.maximum(length, max(limit, 1e-300))))
    return cka(moments(cut[0], cut[1]))


def procrustes(sums: Moments) -> float:
    """Return the share of one site's variance that the other gives, rotated and scaled, 0 to 1.

    It is a similarity: ‖Σxy‖*² / (tr Σxx · tr Σyy), one less the squared Procrustes distance of
    rows of one size (Schönemann 1966); the same in both directions. NaN where a site never
    varies. It is biased upwards where rows are few: compare it with permuted rows only. The
    narrower site stands as if padded by zeros.
    """
    _require_rows(sums.count, 2)
    if not (sums.x.spread and sums.y.spread):
        return float("nan")
    nuclear = np.linalg.svd(_covariance(sums), compute_uv=False).sum()
    return float(nuclear**2 / (sums.x.spread * sums.y.spread))


def predictivity(train: Moments, test: Moments, *, ridge: float | None = None) -> float:
    """Return how much of y's variance a linear map of x explains on rows it was not fitted on.

    1 less the squared error over the squared distance from the judged mean: at most 1, and below
    0 where guessing the mean is better. A ridge map with a constant, from the principal
    components of the fitted x: at most one for every 10 fitted rows, so that a narrow sample
    cannot be fitted by heart. Swap both sums for the other direction (`Moments.swapped`). NaN
    where x does not vary among the fitted rows, or y among the judged.

    Args:
        fit: The rows to fit on. Rows of one prompt must not be in both halves.
        judged: The rows to judge by.
        ridge: Penalty, as a share of the mean variance of the components; chosen on the fitted
            rows by generalized cross-validation (Golub, Heath & Wahba 1979) by default. That
            takes rows for independent: with several of one prompt it is somewhat small.

    Raises:
        BatchError: Fewer than 10 fitted rows, fewer than 2 judged, or unlike widths.
    """
    _require_rows(train.count, _ROWS_PER_DIMENSION)
    _require_rows(test.count, 2)
    if train.cross.product.shape != test.cross.product.shape:
        raise BatchError(
            f"The rows were fitted at {train.cross.product.shape} dimensions and are judged at "
            f"{test.cross.product.shape}: give sums of the same two sites"
        )
    if not (train.x.spread and test.y.spread):
        return float("nan")
    found = _fit_ridge(train, ridge)
    seen = test.recenter(train.x.mean, train.y.mean)
    turned = found.basis.T @ seen.x.product() @ found.basis
    error = (
        seen.y.squared_norm
        - 2 * float(((found.basis.T @ seen.cross.product) * found.map).sum())
        + float((found.map * (turned @ found.map)).sum())
    )
    return 1 - error / test.y.spread


@dataclass(frozen=True, eq=False)
class _RidgeMap:
    basis: Float[np.ndarray, "d_x component"]
    map: Float[np.ndarray, "component d_y"]


def _fit_ridge(train: Moments, ridge: float | None) -> _RidgeMap:
    total, count = train.x.total, train.count
    variance, basis = np.linalg.eigh(train.x.product() - np.outer(total, total) / count)
    most = max(1, min(count // _ROWS_PER_DIMENSION, int((variance > 1e-10 * variance[-1]).sum())))
    variance, basis = variance[::-1][:most], basis[:, ::-1][:, :most]
    target = basis.T @ _covariance(train)
    unit = float(variance.mean())
    chosen = _best_penalty(variance, target, train) if ridge is None else ridge * unit
    return _RidgeMap(basis, target / (variance + chosen)[:, None])


def _best_penalty(variance: np.ndarray, target: np.ndarray, train: Moments) -> float:
    """Return the penalty with the least generalized cross-validation error."""
    power = (target**2).sum(1)
    scores = []
    for strength in (tried := _RIDGE_PENALTIES * float(variance.mean())):
        kept = variance + strength
        error = train.y.spread - float((power * (variance + 2 * strength) / kept**2).sum())
        free = train.count - 1 - float((variance / kept).sum())
        scores.append(error / free**2)
    return float(tried[int(np.argmin(scores))])


def _covariance(sums: Moments) -> Float[np.ndarray, "d_x d_y"]:
    """Return Σ (x - mean) (y - mean)ᵀ."""
    return sums.cross.product - np.outer(sums.x.total, sums.y.total) / sums.count


def _hsic_biased(x: SiteMoments, y: SiteMoments, cross: CrossMoments) -> float:
    centered = cross.product - np.outer(x.total, y.total) / x.count
    return float((centered**2).sum())


def _hsic_unbiased(x: SiteMoments, y: SiteMoments, cross: CrossMoments) -> float:
    """Return HSIC₁ (Song et al. 2012), whose kernels have no diagonal, from sums over rows."""
    n, c = x.count, cross.product
    trace = float((c**2).sum()) - cross.fourth
    ones_x = float(x.total @ x.total) - x.squared_norm
    ones_y = float(y.total @ y.total) - y.squared_norm
    middle = (
        x.total @ c @ y.total
        - x.total @ cross.x_norm_weighted
        - y.total @ cross.y_norm_weighted
        + cross.fourth
    )
    found = trace + ones_x * ones_y / ((n - 1) * (n - 2)) - 2 * float(middle) / (n - 2)
    return found / (n * (n - 3))


def _require_rows(count: int, minimum: int) -> None:
    if count < minimum:
        raise BatchError(f"{count} rows are too few: give at least {minimum}")
