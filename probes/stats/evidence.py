"""Verdicts on claims, and the tests that decide them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from probes.stats.intervals import Estimate

ClaimLabel = Literal["holds", "fails", "cannot tell", "behavior absent"]


@dataclass(frozen=True, slots=True)
class StatisticalTest:
    """Test of an estimate against a threshold.

    Attributes:
        name: Subject of the test, in a few words.
        meaning_if_failed: Meaning of a failed test.
        value: Estimate; None where it was not measured.
        threshold: Threshold, in words and numbers.
        passed: True where the whole interval is on the claim's side of the threshold, False where
            it is on the other side, None where it includes the threshold or there is no value. A
            null that is not rejected gives None, too, unless the value is within its bulk.
        is_deciding: Whether the verdict depends on it.
        id: Stable identifier, such as "similarity"; code finds a test by it, not by its name.
        above, below: Ends of the range in which the whole interval must lie to pass, as numbers;
            None where the range is open, or the threshold is no number.
    """

    name: str
    meaning_if_failed: str
    value: Estimate | None
    threshold: str
    passed: bool | None
    is_deciding: bool = True
    id: str = field(kw_only=True)
    above: float | None = field(default=None, kw_only=True)
    below: float | None = field(default=None, kw_only=True)

    @property
    def value_text(self) -> str:
        """The estimate with as many digits as tell its bounds from the threshold."""
        if self.value is None:
            return "not measured"
        ends = [abs(end) for end in (self.above, self.below) if end is not None]
        texts = [self.value.beside(end) for end in ends]
        return max(texts, key=len, default=str(self.value))

    def non_deciding(self) -> "StatisticalTest":
        """The same test, reported but without influence on the verdict."""
        return replace(self, is_deciding=False)


@dataclass(frozen=True, slots=True)
class ClaimVerdict:
    """Verdict on one claim about one model.

    Attributes:
        claim: "H1a", "H1b", or "H2" to "H5".
        title: The claim in a few words.
        label: "holds" where every deciding test passed, "fails" where one failed, "cannot tell"
            otherwise; "behavior absent" where the model does not do the task.
        reason: One sentence.
        tests: All tests, deciding or not.
    """

    claim: str
    title: str
    label: ClaimLabel
    reason: str
    tests: tuple[StatisticalTest, ...]


def check_above(
    name: str, meaning_if_failed: str, value: Estimate, threshold: float, *, id: str
) -> StatisticalTest:
    """Test whether the 95 % interval lies above a threshold."""
    passed = _decide(value.low > threshold, value.high <= threshold)
    text = f"above {value.threshold_text(threshold)}"
    return StatisticalTest(name, meaning_if_failed, value, text, passed, id=id, above=threshold)


def check_below(
    name: str, meaning_if_failed: str, value: Estimate, threshold: float, *, id: str
) -> StatisticalTest:
    """Test whether the 95 % interval lies below a threshold."""
    passed = _decide(value.high < threshold, value.low >= threshold)
    text = f"below {value.threshold_text(threshold)}"
    return StatisticalTest(name, meaning_if_failed, value, text, passed, id=id, below=threshold)


def check_within(
    name: str, meaning_if_failed: str | tuple[str, str], value: Estimate, margin: float, *, id: str
) -> StatisticalTest:
    """Equivalence test: whether the 95 % interval lies within ±margin.

    Two meanings are those of an interval below -margin and of one above margin.
    """
    inside = value.low >= -margin and value.high <= margin
    below, above = value.high < -margin, value.low > margin
    if isinstance(meaning_if_failed, str):
        meaning = meaning_if_failed
    elif below or above:
        meaning = meaning_if_failed[int(above)]
    else:
        meaning = "below: {}; above: {}".format(*meaning_if_failed)
    passed = _decide(inside, below or above)
    text = f"within ±{margin:.2f}"
    return StatisticalTest(name, meaning, value, text, passed, id=id, above=-margin, below=margin)


def skipped_test(name: str, reason: str, *, id: str, is_deciding: bool = True) -> StatisticalTest:
    """Test without a value, with the reason in place of a meaning."""
    return StatisticalTest(name, reason, None, "–", None, is_deciding, id=id)


def _decide(succeeded: bool, failed: bool) -> bool | None:
    if succeeded:
        return True
    return False if failed else None


def claim_verdict(claim: str, title: str, tests: Sequence[StatisticalTest]) -> ClaimVerdict:
    """Verdict on a claim by its deciding tests."""
    deciding = [test for test in tests if test.is_deciding]
    failed = [test for test in deciding if test.passed is False]
    undecided = [test for test in deciding if test.passed is None]
    if failed:
        reason = "; ".join(f"{test.name}: {test.meaning_if_failed}" for test in failed)
        return ClaimVerdict(claim, title, "fails", reason, tuple(tests))
    if undecided or not deciding:
        names = "; ".join(map(_undecided_text, undecided)) or "nothing could be tested"
        return ClaimVerdict(claim, title, "cannot tell", f"undecided: {names}", tuple(tests))
    passed = f"all {len(deciding)} tests" if len(deciding) > 1 else "its one test"
    return ClaimVerdict(claim, title, "holds", f"{passed} passed", tuple(tests))


def _undecided_text(test: StatisticalTest) -> str:
    """Name of an undecided test, with its value, or with the reason if there is none."""
    return f"{test.name} ({test.meaning_if_failed if test.value is None else test.value})"


def behavior_absent(claim: str, title: str, reason: str) -> ClaimVerdict:
    """Verdict for a model that does not have the behavior."""
    return ClaimVerdict(claim, title, "behavior absent", reason, ())
