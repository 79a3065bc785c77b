"""AUROC of related models over negative controls."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from probes.errors import OutcomeError
from probes.stats.auroc import group_auroc


def groups(m, n, *, shift=0.0, ties=False, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=m) + shift, rng.normal(size=n)
    return (np.round(a), np.round(b)) if ties else (a, b)


def auroc_by_counting(a, b):
    """AUROC by counting all pairs; ties count half."""
    return np.mean([(x > y) + (x == y) / 2 for x in a for y in b])


def enumerated(a, b):
    """Exact permutation p-value by enumerating all labelings."""
    scores, m = np.concatenate([a, b]), len(a)
    away = []
    for chosen in combinations(range(len(scores)), m):
        rest = np.delete(scores, chosen)
        away.append(abs(auroc_by_counting(scores[list(chosen)], rest) - 0.5))
    return np.mean(np.array(away) >= abs(auroc_by_counting(a, b) - 0.5) - 1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_value_and_p_value_equal_full_enumeration(seed, ties):
    a, b = groups(3, 5, shift=0.8, ties=ties, seed=seed)
    found = group_auroc(a, b)
    assert found.value.value == pytest.approx(auroc_by_counting(a, b))
    assert found.p_value == pytest.approx(enumerated(a, b))


def test_the_p_value_is_scipys_exact_one_without_ties():
    a, b = groups(11, 14, shift=0.7)
    assert group_auroc(a, b).p_value == pytest.approx(mannwhitneyu(a, b, method="exact").pvalue)


def test_a_perfect_order_of_enough_models_is_above_with_a_wide_interval():
    found = group_auroc(np.arange(5.0) + 100, np.arange(20.0))
    assert found.value.value == found.value.high == 1
    assert 0.5 < found.value.low < 0.9
    assert found.p_value == pytest.approx(found.min_p_value)
    assert found.label == "above"
    assert "score higher" in found.summary()[1]


def test_a_reversed_order_is_below():
    found = group_auroc(np.arange(5.0), np.arange(20.0) + 100)
    assert found.value.value == found.value.low == 0
    assert found.label == "below"
    assert "LOWER than negative controls" in found.summary()[1]


def test_swapping_the_groups_mirrors_value_and_interval():
    a, b = groups(6, 9, shift=0.5, ties=True)
    there, back = group_auroc(a, b), group_auroc(b, a)
    assert there.value.value == pytest.approx(1 - back.value.value)
    assert there.value.low == pytest.approx(1 - back.value.high)
    assert there.p_value == pytest.approx(back.p_value)


def test_three_models_in_each_group_are_too_few():
    found = group_auroc(np.arange(3.0) + 100, np.arange(3.0))
    assert found.min_p_value == pytest.approx(0.1)
    assert found.label == "too few models"
    assert "a perfect order has p = 0.1" in found.summary()[1]


def test_four_models_in_each_group_need_a_perfect_order():
    perfect, nearly = np.arange(4.0) + 10, np.array([2.5, 11.0, 12.0, 13.0])
    assert group_auroc(perfect, np.arange(4.0)).label == "above"
    assert group_auroc(nearly, np.arange(4.0)).label == "cannot tell"


def test_equal_scores_cannot_tell():
    found = group_auroc(np.ones(8), np.ones(20))
    assert found.value.value == 0.5
    assert found.p_value == 1
    assert found.label == "cannot tell"
    assert "does not separate" in found.summary()[1]


def test_false_positives_are_rare_under_the_null():
    labels = [group_auroc(*groups(5, 12, seed=seed)).label for seed in range(300)]
    assert labels.count("cannot tell") >= 0.93 * 300


def test_the_interval_covers_the_true_value_at_its_level():
    hits = 0
    for seed in range(300):
        # Normal scores 1.19 apart: the first is above in 0.8 of all pairs.
        value = group_auroc(*groups(6, 15, shift=1.19, seed=seed)).value
        hits += value.low <= 0.8 <= value.high
    assert hits / 300 > 0.92


def test_empty_groups_and_nan_scores_are_refused():
    with pytest.raises(OutcomeError, match="0 related models and 3 negative controls"):
        group_auroc(np.array([]), np.arange(3.0))
    with pytest.raises(OutcomeError, match="1 of 4 scores are NaN"):
        group_auroc(np.array([np.nan]), np.arange(3.0))
