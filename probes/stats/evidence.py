"""Verdicts in plain words, and the tests that each of them reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from probes.stats.intervals import Estimate

Word = Literal["holds", "fails", "cannot tell", "behaviour absent"]


@dataclass(frozen=True, slots=True)
class Evidence:
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
    says: str
    value: Estimate | None
    bar: str
    passed: bool | None
    decides: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one claim about one model.

    Attributes:
        claim: "H1" to "H5".
        title: The claim in a few words.
        word: "holds" where every deciding test passed, "fails" where one speaks against it,
            "cannot tell" otherwise; "behaviour absent" where the model does not do the task.
        reason: Why, in one sentence.
        evidence: The tests.
    """

    claim: str
    title: str
    word: Word
    reason: str
    evidence: tuple[Evidence, ...]


def above(name: str, says: str, value: Estimate, bar: float, *, decides: bool = True) -> Evidence:
    """Test whether a number is surely above a bar."""
    passed = True if value.low > bar else False if value.high <= bar else None
    return Evidence(name, says, value, f"above {bar:.2f}", passed, decides)


def below(name: str, says: str, value: Estimate, bar: float, *, decides: bool = True) -> Evidence:
    """Test whether a number is surely below a bar."""
    passed = True if value.high < bar else False if value.low >= bar else None
    return Evidence(name, says, value, f"below {bar:.2f}", passed, decides)


def within(
    name: str, says: str, value: Estimate, margin: float, *, decides: bool = True
) -> Evidence:
    """Test whether a difference is surely within a margin: no effect, and not just none seen."""
    inside = value.low >= -margin and value.high <= margin
    outside = value.low > margin or value.high < -margin
    passed = True if inside else False if outside else None
    return Evidence(name, says, value, f"within ±{margin:.2f}", passed, decides)


def untested(name: str, why: str, *, decides: bool = True) -> Evidence:
    """Put down a test that could not be made, and why."""
    return Evidence(name, why, None, "–", None, decides)


def judged(claim: str, title: str, evidence: Sequence[Evidence]) -> Verdict:
    """Read the deciding tests of a claim."""
    deciding = [test for test in evidence if test.decides]
    against = [test for test in deciding if test.passed is False]
    open_ = [test for test in deciding if test.passed is None]
    if against:
        reason = "; ".join(f"{test.name}: {test.says}" for test in against)
        return Verdict(claim, title, "fails", reason, tuple(evidence))
    if open_ or not deciding:
        names = ", ".join(test.name for test in open_) or "nothing could be tested"
        return Verdict(claim, title, "cannot tell", f"undecided: {names}", tuple(evidence))
    passed = f"all {len(deciding)} tests" if len(deciding) > 1 else "its one test"
    return Verdict(claim, title, "holds", f"{passed} passed", tuple(evidence))


def absent(claim: str, title: str, why: str) -> Verdict:
    """Say that a model does not do what the claim is about."""
    return Verdict(claim, title, "behaviour absent", why, ())
