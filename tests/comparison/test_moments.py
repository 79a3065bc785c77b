"""Sums of chunks give what the whole matrices give, and the numbers are the known ones."""

import tracemalloc
from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from probes.comparison.representations.measures import cka, predictivity, procrustes, robust_cka
from probes.comparison.representations.moments import grid_moments, moments, stream
from probes.errors import BatchError


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def related(rows=300, *, wide=24, narrow=16, seed=0):
    """Two sites that share some of their dimensions, far from the origin."""
    shared = drawn(rows, 6, seed=seed)
    maps = drawn(6, wide, seed=91), drawn(6, narrow, seed=92)
    x = shared @ maps[0] + drawn(rows, wide, seed=seed + 1) + 3
    y = shared @ maps[1] + drawn(rows, narrow, seed=seed + 2) - 2
    return x, y


def turned(width, *, seed=5):
    return np.linalg.qr(drawn(width, width, seed=seed))[0]


def hsic_by_matrices(x, y):
    """Song et al. 2012, from n × n matrices."""
    n = len(x)
    k, kernel = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(kernel, 0)
    one = np.ones(n)
    found = np.trace(k @ kernel) + (one @ k @ one) * (one @ kernel @ one) / ((n - 1) * (n - 2))
    return (found - 2 / (n - 2) * (one @ k @ kernel @ one)) / (n * (n - 3))


def cka_by_matrices(x, y):
    return hsic_by_matrices(x, y) / np.sqrt(hsic_by_matrices(x, x) * hsic_by_matrices(y, y))


@pytest.mark.parametrize("rows", [4, 5, 40, 300])
def test_debiased_cka_is_that_of_the_kernel_matrices(rows):
    x, y = related(rows)
    assert cka(moments(x, y)) == pytest.approx(cka_by_matrices(x, y), abs=1e-9)


def test_plain_cka_is_that_of_the_centered_matrices():
    x, y = related()
    a, b = x - x.mean(0), y - y.mean(0)
    wanted = np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert cka(moments(x, y), debiased=False) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("sizes", [(300,), (1, 2, 3, 294), (150, 150), (7,) * 42 + (6,)])
def test_chunks_of_any_size_and_order_give_the_same_numbers(sizes):
    x, y = related()
    whole = moments(x, y)
    ends = np.cumsum((0, *sizes))
    parts = [(x[a:b], y[a:b]) for a, b in pairwise(ends)]
    for chunks in (parts, parts[::-1]):
        for total in (stream(chunks), reduce(add, (moments(*chunk) for chunk in chunks))):
            assert total.count == 300
            assert cka(total) == pytest.approx(cka(whole), abs=1e-9)
            assert procrustes(total) == pytest.approx(procrustes(whole), abs=1e-9)


def test_sums_about_unlike_shifts_add_up_exactly():
    x, y = related()
    far = (drawn(24, seed=7) * 5, drawn(16, seed=8) * 5)
    wanted = moments(x, y, shift=far)
    moved = moments(x, y).recenter(*far)
    pieces = moments(x[:90], y[:90], shift=far) + moments(x[90:], y[90:])
    for found in (moved, pieces):
        for side in ("x", "y"):
            mine, theirs = getattr(found, side), getattr(wanted, side)
            for name in (
                "count",
                "shift",
                "total",
                "triangle",
                "squared_norm",
                "norm_weighted",
                "fourth",
            ):
                np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-9)
        for name in ("product", "x_norm_weighted", "y_norm_weighted", "fourth"):
            mine, theirs = getattr(found.cross, name), getattr(wanted.cross, name)
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-7)


def test_massive_dimensions_cost_no_precision():
    x, y = related()
    x[:, 0] += 3000
    x[:, 1] -= 1500
    half = [(x[:10].astype(np.float32), y[:10]), (x[10:].astype(np.float32), y[10:])]
    exact = cka_by_matrices(x - x.mean(0), y - y.mean(0))
    assert cka(stream(half)) == pytest.approx(exact, abs=1e-4)
    assert cka(moments(x, y)) == pytest.approx(exact, abs=1e-12)


def test_numbers_of_half_precision_and_of_torch_are_summed_in_double():
    x, y = related()
    x *= 300  # squares of these overflow half precision
    bits = torch.tensor(x, dtype=torch.bfloat16), torch.tensor(y, dtype=torch.float16)
    wanted = cka(moments(bits[0].double().numpy(), bits[1].double().numpy()))
    assert cka(moments(*bits)) == wanted
    assert wanted == pytest.approx(cka(moments(x, y)), abs=0.01)


def test_a_grid_keeps_each_site_once_and_gives_what_pairs_give():
    x, y = related()
    xs, ys = [x, x[:, :9] ** 2, x @ turned(24)], [y, y[:, :5]]
    found = grid_moments(xs, ys)
    halves = [
        grid_moments([s[part] for s in xs], [s[part] for s in ys])
        for part in (slice(0, 120), slice(120, 300))
    ]
    merged = halves[0] + halves[1]
    for a, one in enumerate(xs):
        for b, other in enumerate(ys):
            alone = cka(moments(one, other))
            assert cka(found[a, b]) == pytest.approx(alone, abs=1e-12)
            assert cka(merged[a, b]) == pytest.approx(alone, abs=1e-9)
    assert found[2, 1].x is found[2, 0].x
    assert found.bytes < sum(moments(one, other).bytes for one in xs for other in ys)


def test_two_sites_of_768_dimensions_take_less_than_ten_megabytes():
    found = moments(drawn(8, 768), drawn(8, 768, seed=1))
    assert 9_000_000 < found.bytes < 10_000_000


def test_memory_does_not_grow_with_the_rows():
    def peak(chunks):
        tracemalloc.start()
        total = stream(
            (drawn(256, 64, seed=n), drawn(256, 48, seed=-1 - n + 10**6)) for n in range(chunks)
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return total, found

    _, few = peak(4)
    total, many = peak(80)
    assert total.count == 80 * 256
    assert many < 1.2 * few
    assert abs(cka(total)) < 0.01


@pytest.mark.parametrize(("rows", "biased"), [(20, 0.97), (50, 0.94), (100, 0.89), (300, 0.72)])
def test_unrelated_rows_look_alike_unless_cka_is_debiased(rows, biased):
    """The published figures for 768 dimensions."""
    found = moments(drawn(rows, 768), drawn(rows, 768, seed=1))
    assert cka(found, debiased=False) == pytest.approx(biased, abs=0.015)
    assert abs(cka(found)) < 0.04


def test_the_mean_of_debiased_cka_over_unrelated_rows_is_nought():
    found = [cka(moments(drawn(16, 8, seed=n), drawn(16, 8, seed=n + 5000))) for n in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20


def test_one_massive_row_decides_cka_but_not_robust_cka():
    x, y = drawn(100, 64), drawn(100, 64, seed=1)
    moved = x.copy()
    moved[0] += 25 * drawn(64, seed=2)
    assert cka(moments(x, moved)) < 0.75
    assert robust_cka(x, moved) > 0.94
    x[0], y[0] = 1000, 1000
    assert cka(moments(x, y), debiased=False) > 0.98
    assert abs(cka(moments(x, y))) < 0.1
    assert abs(robust_cka(x, y)) < 0.1


def test_robust_cka_of_rows_without_outliers_is_nearly_cka():
    x, y = related()
    assert robust_cka(x, y) == pytest.approx(cka(moments(x, y)), abs=0.03)


def test_a_rotated_scaled_and_shifted_twin_is_the_same():
    x, _ = related(400)
    found = moments(x, 3 * x @ turned(24) + 7)
    assert cka(found) == pytest.approx(1)
    assert procrustes(found) == pytest.approx(1)
    assert robust_cka(x, 3 * x @ turned(24)) == pytest.approx(1, abs=0.02)


def test_procrustes_is_that_of_scipy_and_of_a_padded_narrower_site():
    x, y = related()
    a, b = x - x.mean(0), np.pad(y - y.mean(0), ((0, 0), (0, 8)))
    _, scale = orthogonal_procrustes(a, b)
    wanted = scale**2 / (np.linalg.norm(a) * np.linalg.norm(b)) ** 2
    found = moments(x, y)
    assert procrustes(found) == pytest.approx(wanted)
    assert procrustes(found.swapped) == pytest.approx(wanted)


def ridge_by_hand(x, y, judged_x, judged_y, *, components, ridge):
    a, b = x - x.mean(0), y - y.mean(0)
    _, size, right = np.linalg.svd(a, full_matrices=False)
    basis = right[:components].T
    penalty = ridge * (size[:components] ** 2).mean()
    scores = a @ basis
    map_ = np.linalg.solve(scores.T @ scores + penalty * np.eye(components), scores.T @ b)
    guess = (judged_x - x.mean(0)) @ basis @ map_ + y.mean(0)
    return 1 - ((judged_y - guess) ** 2).sum() / ((judged_y - judged_y.mean(0)) ** 2).sum()


@pytest.mark.parametrize(("rows", "components"), [(120, 12), (400, 24)])
def test_predictivity_is_that_of_the_map_written_out(rows, components):
    x, y = related(rows)
    other = related(200, seed=50)
    wanted = ridge_by_hand(x, y, *other, components=components, ridge=0.1)
    found = predictivity(moments(x, y), moments(*other), ridge=0.1)
    assert found == pytest.approx(wanted, abs=1e-9)


def test_predictivity_is_high_from_more_to_less_and_not_back():
    x = drawn(600, 24)
    y = x[:, :6] @ drawn(6, 10, seed=4)
    fit, judged = moments(x[:400], y[:400]), moments(x[400:], y[400:])
    assert predictivity(fit, judged) > 0.99
    assert predictivity(fit.swapped, judged.swapped) == pytest.approx(0.25, abs=0.05)


def test_predictivity_of_unrelated_rows_is_about_nought():
    x, y = drawn(600, 24), drawn(600, 24, seed=1)
    found = predictivity(moments(x[:300], y[:300]), moments(x[300:], y[300:]))
    assert -0.02 < found < 0.02


def test_the_chosen_penalty_is_about_as_good_as_the_best():
    x, y = related(260)
    y = y + 6 * drawn(*y.shape, seed=77)
    fit, judged = moments(x[:240], y[:240]), moments(*related(3000, seed=60))
    tried = [predictivity(fit, judged, ridge=ridge) for ridge in np.logspace(-6, 3, 19)]
    assert predictivity(fit, judged) > max(tried) - 0.02
    assert min(tried) < max(tried) - 0.05


def test_a_site_that_never_varies_has_no_likeness():
    x, _ = related()
    still = np.broadcast_to(drawn(16) * 100, (300, 16)).copy()
    found = moments(still, x, shift=(np.zeros(16), np.zeros(24)))
    assert np.isnan([cka(found), cka(found, debiased=False), procrustes(found)]).all()
    assert np.isnan(cka(found.swapped))
    assert np.isnan([predictivity(found, found), predictivity(found.swapped, found.swapped)]).all()


def test_rows_that_are_not_finite_are_refused_by_place():
    x, y = related()
    y[7, 3] = np.inf
    with pytest.raises(BatchError, match="Site y 0 is not finite: inf found in row 7, dimension 3"):
        moments(x, y)
    with pytest.raises(BatchError, match="Site y is not finite"):
        robust_cka(x, y)


def test_too_few_rows_are_refused():
    x, y = related()
    with pytest.raises(BatchError, match="3 rows are too few: give at least 4"):
        cka(moments(x[:3], y[:3]))
    with pytest.raises(BatchError, match="9 rows are too few: give at least 10"):
        predictivity(moments(x[:9], y[:9]), moments(x, y))
    with pytest.raises(BatchError, match="0 rows of 24"):
        moments(x[:0], y[:0])
    with pytest.raises(BatchError, match="no chunk"):
        stream([])


def test_sites_that_do_not_fit_are_refused():
    x, y = related()
    with pytest.raises(BatchError, match=r"\[299, 300\] rows"):
        moments(x, y[1:])
    with pytest.raises(BatchError, match="Sums of unlike sites"):
        moments(x, y) + moments(x[:, 1:], y)
    with pytest.raises(BatchError, match="fitted at"):
        predictivity(moments(x, y), moments(x, y[:, 1:]))
    with pytest.raises(BatchError, match="unlike"):
        moments(x, y, shift=(np.zeros(3), np.zeros(16)))
