"""Statistical tests as table rows and as text, for the pages on claims and comparisons."""

from probes.stats.evidence import StatisticalTest
from probes.viz.blocks import CellValue, TableCell
from probes.viz.html_text import nonbreaking

EVIDENCE_COLUMNS = ("test", "estimate", "threshold", "passed?", "meaning if it fails")
BRACKETS_NOTE = "Tests in brackets do not decide the verdict."

_MAX_UNBROKEN = 20
_PASSED = {
    True: TableCell("yes", "good"),
    False: TableCell("no", "bad"),
    None: TableCell("undecided", "muted"),
}


def evidence_row(test: StatisticalTest) -> list[CellValue]:
    """Cells of one test, for `EVIDENCE_COLUMNS`."""
    name = test.name if test.is_deciding else f"({test.name})"
    if test.value is None and test.passed is None:
        reason = f"not tested: {test.meaning_if_failed}"
        return [name, None, None, TableCell("untested", "muted"), reason]
    is_short = len(test.threshold) < _MAX_UNBROKEN
    threshold = nonbreaking(test.threshold) if is_short else test.threshold
    value = test.value
    if value is not None and test.value_text != str(value):
        value = nonbreaking(test.value_text)
    return [name, value, threshold, _PASSED[test.passed], test.meaning_if_failed]


def evidence_text(test: StatisticalTest) -> str:
    """One test in a line, with its estimate and threshold."""
    result = f"{test.value_text}, required {test.threshold}" if test.value else test.threshold
    if test.value is None and test.passed is None:
        result = f"not tested, {test.meaning_if_failed}"
    return f"“{test.name}”: {result}"


def passed_text(test: StatisticalTest) -> str:
    """Result of a test in a word or two."""
    return _PASSED[test.passed].text if test.is_deciding else "not deciding"
