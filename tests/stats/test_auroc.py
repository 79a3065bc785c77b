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


def counted(a, b):
    """The share of pairs in which the first is above, ties half: by counting them."""
    return np.mean([(x > y) + (x == y) / 2 for x in a for y in b])


def enumerated(a, b):
    """The exact permutation p, by labeling the models in every way."""
    scores, m = np.concatenate([a, b]), len(a)
    away = []
    for chosen in combinations(range(len(scores)), m):
        rest = np.delete(scores, chosen)
        away.append(abs(counted(scores[list(chosen)], rest) - 0.5))
    return np.mean(np.array(away) >= abs(counted(a, b) - 0.5) - 1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_value_and_p_are_those_of_counting_everything(seed, ties):
    a, b = groups(3, 5, shift=0.8, ties=ties, seed=seed)
    found = group_auroc(a, b)
    assert found.value.value == pytest.approx(counted(a, b))
    assert found.p_value == pytest.approx(enumerated(a, b))


def test_p_is_scipys_exact_one_where_there_are_no_ties():
    a, b = groups(11, 14, shift=0.7)
    assert group_auroc(a, b).p_value == pytest.approx(mannwhitneyu(a, b, method="exact").pvalue)


def test_a_perfect_order_of_enough_models_is_above_and_its_interval_is_no_point():
    found = group_auroc(np.arange(5.0) + 100, np.arange(20.0))
    assert found.value.value == found.value.high == 1
    assert 0.5 < found.value.low < 0.9
    assert found.p_value == pytest.approx(found.min_p_value)
    assert found.label == "above"
    assert "score higher" in found.summary()[1]


def test_the_wrong_way_round_is_said_to_be_so():
    found = group_auroc(np.arange(5.0), np.arange(20.0) + 100)
    assert found.value.value == found.value.low == 0
    assert found.label == "below"
    assert "LOWER than negative controls" in found.summary()[1]


def test_swapping_the_groups_mirrors_everything():
    a, b = groups(6, 9, shift=0.5, ties=True)
    there, back = group_auroc(a, b), group_auroc(b, a)
    assert there.value.value == pytest.approx(1 - back.value.value)
    assert there.value.low == pytest.approx(1 - back.value.high)
    assert there.p_value == pytest.approx(back.p_value)


def test_three_of_each_are_too_few_however_they_are_ordered():
    found = group_auroc(np.arange(3.0) + 100, np.arange(3.0))
    assert found.min_p_value == pytest.approx(0.1)
    assert found.label == "too few models"
    assert "a perfect order has p = 0.1" in found.summary()[1]


def test_four_of_each_can_be_told_apart_by_a_perfect_order_alone():
    perfect, nearly = np.arange(4.0) + 10, np.array([2.5, 11.0, 12.0, 13.0])
    assert group_auroc(perfect, np.arange(4.0)).label == "above"
    assert group_auroc(nearly, np.arange(4.0)).label == "cannot tell"


def test_models_that_score_alike_cannot_be_told_apart():
    found = group_auroc(np.ones(8), np.ones(20))
    assert found.value.value == 0.5
    assert found.p_value == 1
    assert found.label == "cannot tell"
    assert "does not separate" in found.summary()[1]


def test_words_are_rarely_given_where_there_is_nothing():
    words = [group_auroc(*groups(5, 12, seed=seed)).label for seed in range(300)]
    assert words.count("cannot tell") >= 0.93 * 300


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(300):
        # Normal scores 1.19 apart: the first is above in 0.8 of all pairs.
        value = group_auroc(*groups(6, 15, shift=1.19, seed=seed)).value
        hits += value.low <= 0.8 <= value.high
    assert hits / 300 > 0.92


def test_what_cannot_be_ordered_is_refused():
    with pytest.raises(OutcomeError, match="0 related models and 3 negative controls"):
        group_auroc(np.array([]), np.arange(3.0))
    with pytest.raises(OutcomeError, match="1 of 4 scores are NaN"):
        group_auroc(np.array([np.nan]), np.arange(3.0))
