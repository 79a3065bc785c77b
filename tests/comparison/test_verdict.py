"""A fate is a plain value, and says whether two heads are surely the same."""

import json
from dataclasses import asdict

import pytest

from probes.comparison.verdict import SIMILARITY_EQUIVALENCE, STRENGTH_EQUIVALENCE, Verdict
from probes.stats.evidence import check_above, check_within
from probes.stats.intervals import Estimate

SURE, WIDE, FAR = Estimate(0.0, -0.01, 0.01), Estimate(0.0, -0.5, 0.5), Estimate(-0.9, -1.0, -0.8)


def verdict(alike, strong):
    tests = (
        check_above("alike", "", alike, -0.1, id=SIMILARITY_EQUIVALENCE).non_deciding(),
        check_within("strong", "", strong, 0.2, id=STRENGTH_EQUIVALENCE).non_deciding(),
    )
    return Verdict("L0.H1", "head", "kept", "L0.H2", "because", tests)


@pytest.mark.parametrize(
    ("alike", "strong", "wanted"),
    [(SURE, SURE, True), (SURE, WIDE, None), (WIDE, FAR, False), (FAR, SURE, False)],
)
def test_equivalence_asks_both_tests_and_one_can_deny_it(alike, strong, wanted):
    assert verdict(alike, strong).equivalent is wanted


def test_without_both_tests_equivalence_is_open():
    assert Verdict("L0.H1", "head", "lost", "", "because").equivalent is None
    assert (
        Verdict("L0.H1", "head", "kept", "L0.H1", "", verdict(SURE, SURE).tests[:1]).equivalent
        is None
    )


def test_a_fate_is_a_value_that_can_be_compared_and_written():
    one = verdict(SURE, SURE)
    assert one == verdict(SURE, SURE)
    assert len({one, verdict(SURE, SURE)}) == 1
    assert json.loads(json.dumps(asdict(one)))["label"] == "kept"
