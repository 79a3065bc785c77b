"""Dimension, distances, decoding and variance fractions of known point clouds."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from probes.errors import BatchError
from probes.interventions.subspaces.das import random_subspace
from probes.interventions.subspaces.geometry import (
    decode_labels,
    intrinsic_dimension,
    off_manifold_distance,
    omega_squared,
)

WIDTH = 32


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distances_are_in_units_of_the_distance_among_natural_states():
    natural = torch.tensor([[0.0, 0], [1, 0], [2, 0], [3, 0], [4, 0]])
    patched = torch.tensor([[2.0, 0], [2, 3], [6, 0]])
    found = off_manifold_distance(natural, patched, n_neighbors=1)
    assert torch.allclose(found, torch.tensor([0.0, 3, 2]))
    # With two neighbors, natural states have distances of 1.5, 1, 1, 1 and 1.5.
    found = off_manifold_distance(natural, patched, n_neighbors=2)
    assert torch.allclose(found, torch.tensor([0.5, (3 + 10**0.5) / 2, 2.5]))


def test_coinciding_or_too_few_natural_states_are_an_error():
    with pytest.raises(BatchError, match="coincide"):
        off_manifold_distance(torch.ones(9, 2), torch.ones(1, 2))
    with pytest.raises(BatchError, match="cannot give 5 neighbors"):
        off_manifold_distance(torch.eye(5), torch.eye(5), n_neighbors=5)


def test_dimensions_of_known_clouds_are_recovered():
    rotation = random_subspace(WIDTH, WIDTH, seed=0)
    plane = torch.rand(600, 2, generator=torch.Generator().manual_seed(0)) @ rotation[:2]
    sphere = normalize(normal(600, 3), dim=-1) @ rotation[:3]
    ball = normal(600, 5) @ rotation[:5]
    found = [intrinsic_dimension(cloud) for cloud in (plane, sphere, ball)]
    assert [d.participation_ratio for d in found] == pytest.approx([2, 3, 5], rel=0.05)
    assert [d.two_nn for d in found] == pytest.approx([2, 2, 5], rel=0.12)


def test_equal_states_count_once():
    cloud = normal(50, 3)
    assert intrinsic_dimension(cloud.repeat(2, 1)).two_nn == intrinsic_dimension(cloud).two_nn
    assert intrinsic_dimension(cloud.repeat(2, 1)).n_distinct == 50
    with pytest.raises(BatchError, match="9 distinct states"):
        intrinsic_dimension(normal(9, 3).repeat(4, 1))


def test_labels_that_shift_states_are_decodable_and_noise_is_not():
    labels = torch.arange(192) % 16
    noise, means = normal(192, 128), normal(16, 128, seed=1)
    before = torch.get_rng_state()
    shifted = decode_labels(noise + 2 * means[labels], labels, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert shifted.accuracy > 0.95
    assert shifted.is_decodable
    unrelated = decode_labels(noise, labels, seed=0)
    assert unrelated.accuracy < 0.2
    assert 1 / 16 < unrelated.threshold < 0.2
    assert shifted == decode_labels(noise + 2 * means[labels], labels, seed=0)


def test_noise_is_decodable_about_as_often_as_the_significance_level():
    labels = torch.arange(30) % 2
    passed = [
        decode_labels(normal(30, 4, seed=seed), labels, seed=seed).is_decodable
        for seed in range(15)
    ]
    assert sum(passed) <= 3


def test_a_frequent_class_does_not_raise_the_accuracy():
    labels = (torch.arange(100) < 10).long()
    assert decode_labels(torch.zeros(100, 3), labels, seed=0).accuracy == 0.5


def test_too_few_classes_or_rows_are_an_error():
    with pytest.raises(BatchError, match="two or more classes"):
        decode_labels(normal(6, 3), torch.zeros(6, dtype=torch.long), seed=0)
    with pytest.raises(BatchError, match="two or more rows each"):
        decode_labels(normal(6, 3), torch.tensor([0, 0, 0, 0, 0, 1]), seed=0)


# Variance fractions.


def test_omega_squared_is_one_for_a_pure_factor_and_zero_for_constant_states():
    levels = np.array(list("abcabcabcabc"))
    means = {"a": [1.0, 0, 2], "b": [0.0, 3, 2], "c": [-1.0, 1, 2]}
    states = torch.tensor([means[level] for level in levels], dtype=torch.float64)
    assert omega_squared(states, levels) == pytest.approx(1, abs=1e-12)
    assert omega_squared(torch.ones(12, 3, dtype=torch.float64), levels) == 0


def test_omega_squared_equals_a_computation_by_hand():
    """Two groups, 0 2 and 4 6: 16 between, 4 within over 2; (16 - 2) / (20 + 2)."""
    states = torch.tensor([[0.0], [2.0], [4.0], [6.0]], dtype=torch.float64)
    assert omega_squared(states, np.array(list("aabb"))) == pytest.approx(14 / 22)
    # A second dimension adds to both sums: 16 + 0 between, 4 + 4 within.
    both = torch.cat([states, torch.tensor([[1.0], [-1], [1], [-1]], dtype=torch.float64)], 1)
    assert omega_squared(both, np.array(list("aabb"))) == pytest.approx((16 - 4) / (24 + 4))


def test_omega_squared_of_random_labels_is_zero_on_average():
    rng = np.random.default_rng(0)
    states = torch.from_numpy(rng.normal(size=(60, 5)))
    levels = np.repeat(np.arange(12), 5)
    found = [omega_squared(states, rng.permutation(levels)) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20
    assert min(found) < 0 < max(found)


def test_omega_squared_recovers_a_known_fraction_in_any_basis():
    rng = np.random.default_rng(1)
    levels = np.repeat(np.arange(2), 2000)
    states = rng.normal(size=(4000, 6))
    states[:, 0] += np.where(levels, 2.0, -2.0)  # 4 of 10.
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    one, other = (torch.from_numpy(s) for s in (states, 3 * states @ rotation + 7))
    assert omega_squared(one, levels) == pytest.approx(0.4, abs=0.02)
    assert omega_squared(other, levels) == pytest.approx(omega_squared(one, levels))


@pytest.mark.parametrize("levels", [["a"] * 4, list("abcd")])
def test_a_factor_with_one_level_or_one_per_row_gives_nan(levels):
    assert np.isnan(omega_squared(torch.eye(4), np.array(levels)))
