"""Holm correction."""

import pytest

from probes.stats.multiple_testing import holm


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_fewer_and_is_monotone():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
