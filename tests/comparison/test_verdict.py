"""Verdicts are plain values, and report whether two heads are equivalent."""

import json
from dataclasses import asdict

import pytest

from probes.comparison.verdict import (
    SIMILARITY_EQUIVALENCE,
    STRENGTH_EQUIVALENCE,
    Verdict,
    error_rate_line,
)
from probes.stats.evidence import check_above, check_within
from probes.stats.intervals import Estimate

ZERO, WIDE, FAR = Estimate(0.0, -0.01, 0.01), Estimate(0.0, -0.5, 0.5), Estimate(-0.9, -1.0, -0.8)


def head_verdict(similarity, strength):
    tests = (
        check_above("similar", "", similarity, -0.1, id=SIMILARITY_EQUIVALENCE).non_deciding(),
        check_within("strong", "", strength, 0.2, id=STRENGTH_EQUIVALENCE).non_deciding(),
    )
    return Verdict("L0.H1", "head", "kept", "L0.H2", "because", tests)


@pytest.mark.parametrize(
    ("similarity", "strength", "equivalent"),
    [(ZERO, ZERO, True), (ZERO, WIDE, None), (WIDE, FAR, False), (FAR, ZERO, False)],
)
def test_equivalence_needs_both_tests_and_one_failure_excludes_it(similarity, strength, equivalent):
    assert head_verdict(similarity, strength).equivalent is equivalent


def test_equivalence_is_undecided_without_both_tests():
    both = head_verdict(ZERO, ZERO).tests
    assert Verdict("L0.H1", "head", "lost", "", "because").equivalent is None
    assert Verdict("L0.H1", "head", "kept", "L0.H1", "", both[:1]).equivalent is None


def test_a_test_is_found_by_its_id():
    verdict = head_verdict(ZERO, WIDE)
    assert verdict.test(STRENGTH_EQUIVALENCE) is verdict.tests[1]
    assert verdict.test("strong") is None


def test_a_verdict_is_a_value_that_can_be_compared_hashed_and_written():
    verdict = head_verdict(ZERO, ZERO)
    assert verdict == head_verdict(ZERO, ZERO)
    assert len({verdict, head_verdict(ZERO, ZERO)}) == 1
    assert json.loads(json.dumps(asdict(verdict)))["label"] == "kept"


def test_the_error_rate_line_counts_decided_verdicts_and_what_chance_would_decide():
    labels = ["kept"] * 3 + ["cannot tell"] * 36 + ["lost"] + ["no reliable effect"] * 9
    line = error_rate_line([Verdict("L0.H1", "head", label, "", "because") for label in labels])
    assert line.startswith("4 of 40 verdicts are decided")
    assert line.endswith("about 1.0.")
    paths = [Verdict("op → answer", "path", "weaker", "", "because")] * 40
    assert error_rate_line(paths).endswith("about 2.0.")
