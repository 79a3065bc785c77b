"""A fate is a plain value, and says whether two heads are surely the same."""

import json
from dataclasses import asdict

import pytest

from probes.comparison.verdict import AS_ALIKE, AS_STRONG, Fate
from probes.stats.evidence import above, within
from probes.stats.intervals import Estimate

SURE, WIDE, FAR = Estimate(0.0, -0.01, 0.01), Estimate(0.0, -0.5, 0.5), Estimate(-0.9, -1.0, -0.8)


def fate(alike, strong):
    tests = (
        above(AS_ALIKE, "", alike, -0.1, decides=False),
        within(AS_STRONG, "", strong, 0.2, decides=False),
    )
    return Fate("L0.H1", "head", "kept", "L0.H2", "because", tests)


@pytest.mark.parametrize(
    ("alike", "strong", "wanted"),
    [(SURE, SURE, True), (SURE, WIDE, None), (WIDE, FAR, False), (FAR, SURE, False)],
)
def test_equivalence_asks_both_tests_and_one_can_deny_it(alike, strong, wanted):
    assert fate(alike, strong).equivalent is wanted


def test_without_both_tests_equivalence_is_open():
    assert Fate("L0.H1", "head", "lost", "", "because").equivalent is None
    assert (
        Fate("L0.H1", "head", "kept", "L0.H1", "", fate(SURE, SURE).evidence[:1]).equivalent is None
    )


def test_a_fate_is_a_value_that_can_be_compared_and_written():
    one = fate(SURE, SURE)
    assert one == fate(SURE, SURE)
    assert len({one, fate(SURE, SURE)}) == 1
    assert json.loads(json.dumps(asdict(one)))["word"] == "kept"
