"""Procrustes and predictivity from sums equal their textbook formulas on whole matrices."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from probes.comparison.representations.measures import predictivity, procrustes
from probes.comparison.representations.moments import grid_moments
from probes.errors import BatchError


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def moments(x, y):
    return grid_moments([x], [y])[0, 0]


def related(rows=300, *, wide=24, narrow=16, seed=0):
    """Two sites that share some of their dimensions, far from the origin."""
    shared = normal(rows, 6, seed=seed)
    maps = normal(6, wide, seed=91), normal(6, narrow, seed=92)
    x = shared @ maps[0] + normal(rows, wide, seed=seed + 1) + 3
    y = shared @ maps[1] + normal(rows, narrow, seed=seed + 2) - 2
    return x, y


def rotation(width, *, seed=5):
    return np.linalg.qr(normal(width, width, seed=seed))[0]


def assert_equal_sums(found, wanted):
    for side in ("x", "y"):
        for name in ("count", "shift", "total", "product", "squared_norm"):
            a, b = getattr(getattr(found, side), name), getattr(getattr(wanted, side), name)
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(found.product, wanted.product, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("split", [1, 90, 299])
def test_sums_of_two_parts_about_different_shifts_add_up_to_those_of_the_whole(split):
    x, y = related()
    x[:, 0] += 3000
    total = moments(x[:split], y[:split]) + moments(x[split:], y[split:])
    whole = moments(x, y).recenter(total.x.shift, total.y.shift)
    assert_equal_sums(total, whole)
    assert procrustes(total) == pytest.approx(procrustes(moments(x, y)), abs=1e-9)
    np.testing.assert_array_equal(total.x.product, total.x.product.T)


def test_sums_about_a_shift_are_those_of_the_shifted_rows():
    x, y = related()
    shifts = normal(24, seed=7) * 5, normal(16, seed=8) * 5
    sums = moments(x, y).recenter(*shifts)
    a, b = x - shifts[0], y - shifts[1]
    np.testing.assert_allclose(sums.product, a.T @ b, rtol=1e-9)
    np.testing.assert_allclose(sums.x.product, a.T @ a, rtol=1e-9)
    np.testing.assert_allclose(sums.y.total, b.sum(0), rtol=1e-9)
    assert sums.x.squared_norm == pytest.approx((a**2).sum())


def test_a_grid_stores_each_site_once_and_equals_the_sums_of_pairs():
    x, y = related()
    xs, ys = [x, x[:, :9] ** 2, x @ rotation(24)], [y, y[:, :5]]
    grid = grid_moments(xs, ys)
    for a, rows_a in enumerate(xs):
        for b, rows_b in enumerate(ys):
            assert_equal_sums(grid[a, b], moments(rows_a, rows_b))
    assert grid[2, 1].x is grid[2, 0].x


def test_single_precision_rows_are_summed_in_double_precision():
    x, y = (rows.astype(np.float32) for rows in related())
    assert_equal_sums(moments(x, y), moments(x.astype(float), y.astype(float)))


def test_procrustes_is_1_for_a_rotated_scaled_and_shifted_site():
    x, _ = related(400)
    assert procrustes(moments(x, 3 * x @ rotation(24) + 7)) == pytest.approx(1)


def test_procrustes_equals_scipy_with_the_narrower_site_padded():
    x, y = related()
    a, b = x - x.mean(0), np.pad(y - y.mean(0), ((0, 0), (0, 8)))
    _, scale = orthogonal_procrustes(a, b)
    wanted = scale**2 / (np.linalg.norm(a) * np.linalg.norm(b)) ** 2
    sums = moments(x, y)
    assert procrustes(sums) == pytest.approx(wanted)
    assert procrustes(sums.swapped) == pytest.approx(wanted)


def ridge_by_hand(x, y, test_x, test_y, *, components, ridge):
    a, b = x - x.mean(0), y - y.mean(0)
    _, size, right = np.linalg.svd(a, full_matrices=False)
    basis = right[:components].T
    penalty = ridge * (size[:components] ** 2).mean()
    scores = a @ basis
    map_ = np.linalg.solve(scores.T @ scores + penalty * np.eye(components), scores.T @ b)
    guess = (test_x - x.mean(0)) @ basis @ map_ + y.mean(0)
    return 1 - ((test_y - guess) ** 2).sum() / ((test_y - test_y.mean(0)) ** 2).sum()


@pytest.mark.parametrize(("rows", "components"), [(120, 12), (400, 24)])
def test_predictivity_equals_a_ridge_regression_on_the_rows(rows, components):
    x, y = related(rows)
    test = related(200, seed=50)
    wanted = ridge_by_hand(x, y, *test, components=components, ridge=0.1)
    assert predictivity(moments(x, y), moments(*test), ridge=0.1) == pytest.approx(wanted, abs=1e-9)


def test_predictivity_is_high_from_the_larger_site_to_the_smaller_and_low_back():
    x = normal(600, 24)
    y = x[:, :6] @ normal(6, 10, seed=4)
    train, test = moments(x[:400], y[:400]), moments(x[400:], y[400:])
    assert predictivity(train, test) > 0.99
    assert predictivity(train.swapped, test.swapped) == pytest.approx(0.25, abs=0.05)


def test_predictivity_of_unrelated_rows_is_about_0():
    x, y = normal(600, 24), normal(600, 24, seed=1)
    value = predictivity(moments(x[:300], y[:300]), moments(x[300:], y[300:]))
    assert -0.02 < value < 0.02


def test_the_chosen_penalty_is_about_as_good_as_the_best():
    x, y = related(260)
    y = y + 6 * normal(*y.shape, seed=77)
    train, test = moments(x[:240], y[:240]), moments(*related(3000, seed=60))
    values = [predictivity(train, test, ridge=ridge) for ridge in np.logspace(-6, 3, 19)]
    assert predictivity(train, test) > max(values) - 0.02
    assert min(values) < max(values) - 0.05


def test_a_constant_site_has_no_similarity():
    x, _ = related()
    constant = np.broadcast_to(normal(16) * 100, (300, 16)).copy()
    sums = moments(constant, x).recenter(np.zeros(16), np.zeros(24))
    assert np.isnan(procrustes(sums))
    assert np.isnan([predictivity(sums, sums), predictivity(sums.swapped, sums.swapped)]).all()


def test_rows_that_are_not_finite_are_refused_with_their_place():
    x, y = related()
    y[7, 3] = np.inf
    with pytest.raises(BatchError, match="Site y 0 is not finite: inf found in row 7, dimension 3"):
        moments(x, y)


def test_too_few_rows_are_refused():
    x, y = related()
    with pytest.raises(BatchError, match="1 rows are too few: give at least 2"):
        procrustes(moments(x[:1], y[:1]))
    with pytest.raises(BatchError, match="9 rows are too few: give at least 10"):
        predictivity(moments(x[:9], y[:9]), moments(x, y))
    with pytest.raises(BatchError, match="0 rows of 24"):
        moments(x[:0], y[:0])


def test_sums_of_different_sites_are_refused():
    x, y = related()
    with pytest.raises(BatchError, match=r"\[299, 300\] rows"):
        moments(x, y[1:])
    with pytest.raises(BatchError, match=r"widths \(24, 16\) and \(23, 16\): add sums"):
        moments(x, y) + moments(x[:, 1:], y)
    with pytest.raises(BatchError, match=r"training rows have widths \(24, 16\)"):
        predictivity(moments(x, y), moments(x, y[:, 1:]))
