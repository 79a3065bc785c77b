"""Holm correction, and thresholds of a null."""

import numpy as np
import pytest

from probes.errors import ProbeError
from probes.stats.multiple_testing import holm
from probes.stats.null_threshold import conformal_threshold, exceedance_rate


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_fewer_and_is_monotone():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (5, 5), (19, 19), (20, 20), (39, 38), (100, 96)])
def test_the_threshold_is_an_order_statistic_of_the_null(n, rank):
    null = np.random.default_rng(n).permutation(n) + 1.0
    assert float(conformal_threshold(null)) == rank
    assert exceedance_rate(n) == pytest.approx((n + 1 - rank) / (n + 1))


@pytest.mark.parametrize("null", [[], np.empty((0, 3))])
def test_a_null_without_draws_has_no_threshold(null):
    with pytest.raises(ProbeError, match="A null of 0 draws"):
        conformal_threshold(null)


@pytest.mark.parametrize("n", [5, 20, 40])
def test_a_further_draw_exceeds_the_threshold_at_the_stated_rate(n):
    draws = np.random.default_rng(0).normal(size=(n + 1, 20_000))
    exceeded = (draws[-1] > conformal_threshold(draws[:-1])).mean()
    assert exceeded == pytest.approx(exceedance_rate(n), abs=0.01)


def test_from_19_draws_on_the_rate_is_at_most_5_percent():
    assert all(exceedance_rate(n) <= 0.05 + 1e-12 for n in range(19, 300))
    assert exceedance_rate(18) > 0.05
