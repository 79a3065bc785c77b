"""How alike two sites are, from the sums of their rows: CKA, Procrustes and predictivity.

All are 1 for rows that are the same but for a rotation. None says that two models compute alike:
hold each against the same number for permuted rows and for another seed.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.comparison.representations.moments import Cross, Moments, Own, moments
from probes.comparison.representations.row_check import Rows, float_rows
from probes.errors import BatchError

_FEWEST = 4
_PER_DIMENSION = 10
_STRENGTHS = np.logspace(-6, 3, 28)


def cka(sums: Moments, *, debiased: bool = True) -> float:
    """Return how alike two sites' linear kernels are, -1 to 1; NaN where one site never varies.

    Linear CKA (Kornblith et al. 2019, 1905.00414). Plain, it is near 1 for unrelated rows as soon
    as they are fewer than dimensions; debiased, its mean is 0 there: HSIC is replaced by its
    unbiased estimate (Song et al. 2012). Rotations and one common scale change nothing. One row
    that is far longer than the others decides the number: see `robust_cka`.

    Raises:
        BatchError: There are fewer than 4 rows.
    """
    _refuse_few(sums.count, _FEWEST)
    if not (sums.x.spread and sums.y.spread):
        return float("nan")
    hsic = _unbiased if debiased else _biased
    both = hsic(sums.x, sums.y, sums.cross)
    own = [hsic(side, side, side.beside_itself()) for side in (sums.x, sums.y)]
    return both / float(np.sqrt(own[0] * own[1])) if min(own) > 0 else float("nan")


def robust_cka(x: Rows, y: Rows, *, most: float = 2.0) -> float:
    """Return debiased CKA after rows far from the middle are pulled in; needs all rows at once.

    Each site is centred on its median, coordinate by coordinate, and a row that is longer than
    `most` times the median length is cut to that. Thus one massive row cannot decide, as it does
    in `cka`; a shift of many rows still can (Davari et al. 2022, 2210.16156).

    Raises:
        BatchError: As in `cka` and `moments`.
    """
    cut = []
    for name, rows in (("x", x), ("y", y)):
        centred = float_rows(rows, name)
        centred -= np.median(centred, axis=0)
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        limit = most * float(np.median(length))
        cut.append(centred * (limit / np.maximum(length, max(limit, 1e-300))))
    return cka(moments(cut[0], cut[1]))


def procrustes(sums: Moments) -> float:
    """Return the share of one site's variance that the other gives, rotated and scaled, 0 to 1.

    It is a similarity: ‖Σxy‖*² / (tr Σxx · tr Σyy), one less the squared Procrustes distance of
    rows of one size (Schönemann 1966); the same in both directions. NaN where a site never
    varies. It is biased upwards where rows are few: compare it with permuted rows only. The
    narrower site stands as if padded by zeros.
    """
    _refuse_few(sums.count, 2)
    if not (sums.x.spread and sums.y.spread):
        return float("nan")
    nuclear = np.linalg.svd(_covariance(sums), compute_uv=False).sum()
    return float(nuclear**2 / (sums.x.spread * sums.y.spread))


def predictivity(fit: Moments, judged: Moments, *, ridge: float | None = None) -> float:
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
            rows by generalised cross-validation (Golub, Heath & Wahba 1979) by default. That
            takes rows for independent: with several of one prompt it is somewhat small.

    Raises:
        BatchError: Fewer than 10 fitted rows, fewer than 2 judged, or unlike widths.
    """
    _refuse_few(fit.count, _PER_DIMENSION)
    _refuse_few(judged.count, 2)
    if fit.cross.product.shape != judged.cross.product.shape:
        raise BatchError(
            f"The rows were fitted at {fit.cross.product.shape} dimensions and are judged at "
            f"{judged.cross.product.shape}: give sums of the same two sites"
        )
    if not (fit.x.spread and judged.y.spread):
        return float("nan")
    found = _fitted(fit, ridge)
    seen = judged.about(fit.x.mean, fit.y.mean)
    turned = found.basis.T @ seen.x.product() @ found.basis
    error = (
        seen.y.square
        - 2 * float(((found.basis.T @ seen.cross.product) * found.map).sum())
        + float((found.map * (turned @ found.map)).sum())
    )
    return 1 - error / judged.y.spread


@dataclass(frozen=True, eq=False)
class _Map:
    basis: Float[np.ndarray, "d_x component"]
    map: Float[np.ndarray, "component d_y"]


def _fitted(fit: Moments, ridge: float | None) -> _Map:
    total, count = fit.x.total, fit.count
    variance, basis = np.linalg.eigh(fit.x.product() - np.outer(total, total) / count)
    most = max(1, min(count // _PER_DIMENSION, int((variance > 1e-10 * variance[-1]).sum())))
    variance, basis = variance[::-1][:most], basis[:, ::-1][:, :most]
    target = basis.T @ _covariance(fit)
    unit = float(variance.mean())
    chosen = _strength(variance, target, fit) if ridge is None else ridge * unit
    return _Map(basis, target / (variance + chosen)[:, None])


def _strength(variance: np.ndarray, target: np.ndarray, fit: Moments) -> float:
    """Return the penalty with the least generalised cross-validation error."""
    power = (target**2).sum(1)
    scores = []
    for strength in (tried := _STRENGTHS * float(variance.mean())):
        kept = variance + strength
        error = fit.y.spread - float((power * (variance + 2 * strength) / kept**2).sum())
        free = fit.count - 1 - float((variance / kept).sum())
        scores.append(error / free**2)
    return float(tried[int(np.argmin(scores))])


def _covariance(sums: Moments) -> Float[np.ndarray, "d_x d_y"]:
    """Return Σ (x - mean) (y - mean)ᵀ."""
    return sums.cross.product - np.outer(sums.x.total, sums.y.total) / sums.count


def _biased(x: Own, y: Own, cross: Cross) -> float:
    centred = cross.product - np.outer(x.total, y.total) / x.count
    return float((centred**2).sum())


def _unbiased(x: Own, y: Own, cross: Cross) -> float:
    """Return HSIC₁ (Song et al. 2012), whose kernels have no diagonal, from sums over rows."""
    n, c = x.count, cross.product
    trace = float((c**2).sum()) - cross.fourth
    ones_x = float(x.total @ x.total) - x.square
    ones_y = float(y.total @ y.total) - y.square
    middle = x.total @ c @ y.total - x.total @ cross.x_tilt - y.total @ cross.y_tilt + cross.fourth
    found = trace + ones_x * ones_y / ((n - 1) * (n - 2)) - 2 * float(middle) / (n - 2)
    return found / (n * (n - 3))


def _refuse_few(count: int, fewest: int) -> None:
    if count < fewest:
        raise BatchError(f"{count} rows are too few: give at least {fewest}")
