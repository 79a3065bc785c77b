"""Intervals of means: their coverage on simulated data, and their limits."""

import numpy as np
import pytest

from probes.stats.intervals import bootstrap_mean, bootstrap_ratio


@pytest.mark.parametrize(("n", "floor"), [(8, 0.93), (16, 0.935), (32, 0.935)])
def test_the_interval_of_a_normal_mean_covers_it(n, floor):
    rng = np.random.default_rng(n)
    covered = [covers(rng.normal(1, 1, n), 1.0) for _ in range(400)]
    assert np.mean(covered) >= floor


@pytest.mark.parametrize(("n", "floor"), [(16, 0.89), (32, 0.90)])
def test_the_interval_of_a_lognormal_mean_covers_it_more_often_than_the_percentile_bootstrap(
    n, floor
):
    rng = np.random.default_rng(n)
    covered = [covers(rng.lognormal(0, 1, n), np.exp(0.5)) for _ in range(400)]
    assert np.mean(covered) >= floor


def test_equal_values_have_an_interval_without_width():
    found = bootstrap_mean(np.full(5, 2.0), seed=0)
    assert (found.value, found.low, found.high) == (2, 2, 2)


def test_the_interval_contains_its_value_and_grows_with_the_scale():
    values = np.random.default_rng(0).lognormal(size=12)
    one, ten = bootstrap_mean(values, seed=0), bootstrap_mean(10 * values, seed=0)
    assert one.low < one.value < one.high
    assert (ten.low, ten.high) == (pytest.approx(10 * one.low), pytest.approx(10 * one.high))


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
