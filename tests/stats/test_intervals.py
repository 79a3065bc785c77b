"""Intervals of means: their coverage on simulated data, and their limits."""

import numpy as np
import pytest

from probes.stats.evidence import check_below, check_within, skipped_test
from probes.stats.intervals import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    difference,
    percentile_interval,
    pool_draws,
    pool_groups,
)


@pytest.mark.parametrize(("n", "floor"), [(8, 0.93), (16, 0.935), (32, 0.935)])
def test_the_interval_of_a_normal_mean_covers_it(n, floor):
    rng = np.random.default_rng(n)
    covered = [covers(rng.normal(1, 1, n), 1.0) for _ in range(400)]
    assert np.mean(covered) >= floor


@pytest.mark.parametrize(("n", "floor"), [(16, 0.89), (32, 0.90)])
def test_the_interval_of_a_lognormal_mean_covers_it_more_often_than_the_percentile_bootstrap(
    n, floor
):
    rng, mean = np.random.default_rng(n), np.exp(0.5)
    samples = [rng.lognormal(0, 1, n) for _ in range(400)]
    covered = np.mean([covers(values, mean) for values in samples])
    draws = rng.integers(n, size=(500, n))
    percentile = [percentile_interval(v.mean(), v[draws].mean(1)) for v in samples]
    assert covered >= floor
    assert covered > np.mean([one.low <= mean <= one.high for one in percentile]) + 0.02


def test_equal_values_have_an_interval_without_width():
    found = bootstrap_mean(np.full(5, 2.0), seed=0)
    assert (found.value, found.low, found.high) == (2, 2, 2)


def test_equal_values_whose_mean_is_rounded_have_an_interval_without_width():
    values = np.full(20, 2.42796132e-08)
    assert values.std() > 0
    found = bootstrap_mean(values, seed=0)
    assert found.low == found.value == found.high == pytest.approx(values[0])


def test_the_interval_contains_its_value_and_grows_with_the_scale():
    values = np.random.default_rng(0).lognormal(size=12)
    one, ten = bootstrap_mean(values, seed=0), bootstrap_mean(10 * values, seed=0)
    assert one.low < one.value < one.high
    assert (ten.low, ten.high) == (pytest.approx(10 * one.low), pytest.approx(10 * one.high))


def test_the_mean_over_draws_has_the_wider_of_two_intervals():
    equal = [Estimate(0.5, 0.4, 0.7)] * 4
    assert (pool_draws(equal).low, pool_draws(equal).high) == pytest.approx((0.45, 0.6))
    apart = [Estimate(v, v - 0.01, v + 0.01) for v in (0.4, 0.6)]
    # Student's t with 1 degree of freedom: 12.706 · 0.1414 / √2.
    assert pool_draws(apart).high == pytest.approx(0.5 + 1.2706, abs=1e-3)
    assert pool_draws(apart, bounds=(0, 1)).high == 1
    assert pool_draws(equal[:1]) == equal[0]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_over_few_draws_cover_the_mean_of_all(n):
    """Draws differ by 0.1, and each has an interval for its own error of 0.03 only."""
    rng, hits = np.random.default_rng(n), []
    for _ in range(2000):
        centers = rng.normal(0.5, 0.1, n)
        values = centers + rng.normal(0, 0.03, n)
        pooled = pool_draws([Estimate(v, v - 0.06, v + 0.06) for v in values])
        hits.append(pooled.low <= 0.5 <= pooled.high)
    assert np.mean(hits) >= 0.94


def test_groups_of_few_draws_share_one_variance_between_draws():
    few = [Estimate(v, v - 0.01, v + 0.01) for v in (0.94, 0.96)]
    many = [Estimate(v, v - 0.01, v + 0.01) for v in (0.9, 0.92, 0.94, 0.92)]
    one = [Estimate(0.7, 0.69, 0.71)]
    found = pool_groups([few, many, one])
    # Squares 0.0002 and 0.0008 over 4 degrees of freedom; t = 2.776.
    half = 2.776 * (0.001 / 4) ** 0.5
    for estimate, draws in zip(found, (few, many, one), strict=True):
        assert estimate.high - estimate.value == pytest.approx(half / len(draws) ** 0.5, rel=1e-3)
    # Each by itself: Student's t with one degree of freedom is 5 times as wide, and one draw has
    # its own errors only.
    assert pool_draws(few).high - 0.95 > 4 * (found[0].high - 0.95)
    assert pool_groups([one, one]) == [pool_draws(one)] * 2


def test_intervals_of_groups_of_one_or_two_draws_cover_their_means():
    rng, hits = np.random.default_rng(0), []
    for _ in range(1000):
        groups = [rng.normal(mean, 0.05, n) for mean, n in ((0.9, 4), (0.7, 3), (0.8, 2), (0.6, 1))]
        pooled = pool_groups([[Estimate(v, v - 0.01, v + 0.01) for v in g] for g in groups])
        hits += [e.low <= m <= e.high for e, m in zip(pooled, (0.9, 0.7, 0.8, 0.6), strict=True)]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_the_difference_of_two_estimates_adds_errors_in_squares():
    found = difference(Estimate(0.7, 0.67, 0.74), Estimate(0.2, 0.16, 0.23))
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5 - np.hypot(0.03, 0.03))
    assert found.high == pytest.approx(0.5 + np.hypot(0.04, 0.04))


def covers(values, mean):
    found = bootstrap_mean(values, seed=0)
    return found.low <= mean <= found.high


def test_a_ratio_over_a_base_near_zero_is_undefined():
    rng = np.random.default_rng(0)
    near_zero, far = rng.normal(0, 1, 20), rng.normal(5, 1, 20)
    assert np.isnan(bootstrap_ratio(far, near_zero, seed=0).value)
    assert str(bootstrap_ratio(far, near_zero, seed=0)) == "undefined"
    found = bootstrap_ratio(far, 2 * far, seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_rounding_in_samples_of_one_value_does_not_widen_an_interval():
    """One sample in seven has none of the two other values, and its error is rounding alone."""
    for count in (63, 126, 200):
        values = np.full(count, 0.5)
        values[:2] = -0.5
        found = bootstrap_mean(values, seed=0)
        assert 0.3 < found.low < found.value < found.high < 0.6


def test_an_estimate_beside_a_threshold_has_the_digits_that_tell_them_apart():
    estimate = Estimate(-0.06, -0.1019, -0.03)
    assert str(estimate) == estimate.beside(0.2) == "-0.06 [-0.10, -0.03]"
    assert estimate.beside(0.1) == "-0.060 [-0.102, -0.030]"
    assert Estimate(0.05, 0.0, 0.1).beside(0.1) == "0.05 [0.00, 0.10]"


@pytest.mark.parametrize("prompts,stated", [(8, 0.89), (16, 0.92), (32, 0.93), (64, 0.94)])
def test_intervals_of_ratios_cover_as_often_as_they_say(prompts, stated):
    rng, inside = np.random.default_rng(prompts), []
    for sample in range(300):
        whole = rng.normal(3, 1, prompts)
        ratio = bootstrap_ratio(0.6 * whole + rng.normal(0, 0.5, prompts), whole, seed=sample)
        inside.append(ratio.low <= 0.6 <= ratio.high)
    assert np.mean(inside) == pytest.approx(stated, abs=0.04)


def test_a_test_shows_the_digits_that_decide_it():
    near = check_below("shortfall", "less", Estimate(0.05, 0.01, 0.1023), 0.1, id="x")
    assert (near.passed, near.value_text) == (None, "0.050 [0.010, 0.102]")
    clear = check_within("shortfall", "less", Estimate(0.05, 0.01, 0.06), 0.1, id="x")
    assert clear.value_text == "0.05 [0.01, 0.06]"
    assert skipped_test("shortfall", "no pairs", id="x").value_text == "not measured"
