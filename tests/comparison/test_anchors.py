"""Anchors are the same rows whoever chooses them, and distances are compared as scipy does."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from probes.comparison.representations.anchors import (
    anchor_similarity,
    choose_anchors,
    ranked_distances,
)
from probes.errors import BatchError

KEYS = [f"prompt {n}" for n in range(400)]


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def compared(x, y, **more):
    return anchor_similarity(x, y, KEYS[: len(x)], **{"count": 64, "seed": 0, **more})


def test_the_same_keys_in_another_order_give_the_same_anchors():
    order = np.random.default_rng(0).permutation(len(KEYS))
    mixed = [KEYS[n] for n in order]
    first = [KEYS[n] for n in choose_anchors(KEYS, 50)]
    assert [mixed[n] for n in choose_anchors(mixed, 50)] == first
    assert len(set(first)) == 50
    assert first != KEYS[:50]


def test_anchors_stay_the_same_when_others_join():
    few, many = (list(choose_anchors(KEYS, count)) for count in (20, 100))
    assert many[:20] == few


def test_the_choice_never_changes_from_run_to_run():
    """Python's own hash would: it is salted."""
    assert choose_anchors(KEYS, 4).tolist() == [136, 228, 205, 242]


def test_the_value_is_spearmans_correlation_of_the_distances():
    x, y = drawn(60, 5), drawn(60, 7, seed=1)
    y[:, :5] += x
    wanted = spearmanr(pdist(x), pdist(y)).statistic
    found = compared(x, y)
    assert found.anchors == 60
    assert found.value == pytest.approx(wanted, abs=1e-4)
    assert found.p == pytest.approx(1 / 201)
    assert found.value > found.chance_high


def test_ties_count_as_scipy_counts_them():
    x = np.repeat(drawn(12, 3), 5, axis=0)
    y = drawn(60, 3, seed=1) + x
    noisy = x + 1e-9 * drawn(60, 3, seed=2)
    wanted = spearmanr(pdist(x), pdist(y)).statistic
    assert compared(x, y).value == pytest.approx(wanted, abs=1e-3)
    assert compared(noisy, y).value == pytest.approx(compared(x, y).value, abs=1e-12)


def test_a_rotated_and_scaled_twin_is_the_same():
    x = drawn(300, 8)
    turned = np.linalg.qr(drawn(8, 8, seed=1))[0]
    assert compared(x, 3 * x @ turned + 1).value == pytest.approx(1, abs=1e-4)


def test_unrelated_rows_are_within_chance():
    found = [compared(drawn(40, 6, seed=n), drawn(40, 6, seed=n + 90)) for n in range(40)]
    assert abs(np.mean([one.value for one in found])) < 0.03
    assert abs(np.mean([one.chance for one in found])) < 0.01
    assert sum(one.p <= 0.05 for one in found) <= 6


def test_rows_that_do_not_differ_have_no_likeness():
    still = np.ones((50, 4), dtype=np.float32) + 1e-7 * drawn(50, 4).astype(np.float32)
    assert np.isnan(ranked_distances(still)).all()
    found = compared(still, drawn(50, 4))
    assert np.isnan([found.value, found.chance, found.p]).all()


def test_what_cannot_be_chosen_from_is_refused():
    with pytest.raises(BatchError, match="5000 anchors were asked for: take 4 to 4096"):
        choose_anchors(KEYS, 5000)
    with pytest.raises(BatchError, match="3 rows are too few"):
        choose_anchors(KEYS[:3])
    with pytest.raises(BatchError, match="Two rows have the key 'prompt 0'"):
        choose_anchors([*KEYS, "prompt 0"])
    with pytest.raises(BatchError, match="40 and 39 rows with 40 keys"):
        anchor_similarity(drawn(40, 2), drawn(39, 2), KEYS[:40], seed=0)
    with pytest.raises(BatchError, match="0 permutations"):
        compared(drawn(40, 2), drawn(40, 2), permutations=0)
    broken = drawn(40, 2)
    broken[3, 1] = np.nan
    with pytest.raises(BatchError, match="not finite: nan found"):
        compared(broken, drawn(40, 2))
