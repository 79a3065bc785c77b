"""Verdicts in plain words, and the tests that each of them reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from probes.stats.intervals import Estimate

ClaimLabel = Literal["holds", "fails", "cannot tell", "behavior absent"]


@dataclass(frozen=True, slots=True)
class StatisticalTest:
    """One test of a claim.

    Attributes:
        name: What was tested, in a few words.
        says: What it would mean if the test went against the claim.
        value: What was measured; None where it could not be.
        bar: What it was held against, in words and numbers.
        passed: True where the whole interval speaks for the claim, False where it speaks against
            it, None where it includes the bar or nothing could be measured.
        decides: Whether the verdict reads it; else it is shown beside.
    """

    name: str
    meaning_if_failed: str
    value: Estimate | None
    threshold: str
    passed: bool | None
    is_deciding: bool = True


@dataclass(frozen=True, slots=True)
class ClaimVerdict:
    """What became of one claim about one model.

    Attributes:
        claim: "H1" to "H5".
        title: The claim in a few words.
        word: "holds" where every deciding test passed, "fails" where one speaks against it,
            "cannot tell" otherwise; "behavior absent" where the model does not do the task.
        reason: Why, in one sentence.
        evidence: The tests.
    """

    claim: str
    title: str
    label: ClaimLabel
    reason: str
    tests: tuple[StatisticalTest, ...]


def check_above(
    name: str,
    meaning_if_failed: str,
    value: Estimate,
    threshold: float,
    *,
    is_deciding: bool = True,
) -> StatisticalTest:
    """Test whether a number is surely above a bar."""
    passed = True if value.low > threshold else False if value.high <= threshold else None
    return StatisticalTest(
        name, meaning_if_failed, value, f"above {threshold:.2f}", passed, is_deciding
    )


def check_below(
    name: str,
    meaning_if_failed: str,
    value: Estimate,
    threshold: float,
    *,
    is_deciding: bool = True,
) -> StatisticalTest:
    """Test whether a number is surely below a bar."""
    passed = True if value.high < threshold else False if value.low >= threshold else None
    return StatisticalTest(
        name, meaning_if_failed, value, f"below {threshold:.2f}", passed, is_deciding
    )


def check_within(
    name: str, meaning_if_failed: str, value: Estimate, margin: float, *, is_deciding: bool = True
) -> StatisticalTest:
    """Test whether a difference is surely within a margin: no effect, and not just none seen."""
    inside = value.low >= -margin and value.high <= margin
    outside = value.low > margin or value.high < -margin
    passed = True if inside else False if outside else None
    return StatisticalTest(
        name, meaning_if_failed, value, f"within ±{margin:.2f}", passed, is_deciding
    )


def skipped_test(name: str, reason: str, *, is_deciding: bool = True) -> StatisticalTest:
    """Put down a test that could not be made, and why."""
    return StatisticalTest(name, reason, None, "–", None, is_deciding)


def claim_verdict(claim: str, title: str, tests: Sequence[StatisticalTest]) -> ClaimVerdict:
    """Read the deciding tests of a claim."""
    deciding = [test for test in tests if test.is_deciding]
    against = [test for test in deciding if test.passed is False]
    open_ = [test for test in deciding if test.passed is None]
    if against:
        reason = "; ".join(f"{test.name}: {test.meaning_if_failed}" for test in against)
        return ClaimVerdict(claim, title, "fails", reason, tuple(tests))
    if open_ or not deciding:
        names = ", ".join(test.name for test in open_) or "nothing could be tested"
        return ClaimVerdict(claim, title, "cannot tell", f"undecided: {names}", tuple(tests))
    passed = f"all {len(deciding)} tests" if len(deciding) > 1 else "its one test"
    return ClaimVerdict(claim, title, "holds", f"{passed} passed", tuple(tests))


def behavior_absent(claim: str, title: str, reason: str) -> ClaimVerdict:
    """Say that a model does not do what the claim is about."""
    return ClaimVerdict(claim, title, "behavior absent", reason, ())
