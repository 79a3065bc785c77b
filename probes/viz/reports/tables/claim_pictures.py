"""One picture for each claim: its deciding tests, each with the range in which it passes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from probes.claims.result import ClaimsReport
from probes.stats.evidence import ClaimVerdict, StatisticalTest
from probes.viz.blocks import Block, Note, Tone, caption_html
from probes.viz.html_text import escape
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.reports.tables.claims import verdict_reason

_PASSED: dict[bool | None, Tone] = {True: "good", False: "bad", None: "muted"}
_LABELS: dict[str, Tone] = {"holds": "good", "fails": "bad"}


@dataclass(frozen=True, repr=False)
class ClaimPictures(Block):
    """Verdict and picture of each claim, side by side where there is room.

    Of one model, all deciding tests are drawn; of several, the one of each that is nearest to
    failure.

    Attributes:
        reports: One for each model.
    """

    reports: Sequence[ClaimsReport]

    @property
    def body(self) -> str:
        """One card for each claim."""
        claims = [verdict.claim for verdict in self.reports[0].verdicts]
        return f'<div class="pv-cards">{"".join(map(self._card, claims))}</div>'

    def _card(self, claim: str) -> str:
        verdicts = [report.verdict(claim) for report in self.reports]
        first, is_single = verdicts[0], len(verdicts) == 1
        if is_single:
            text = f"{claim}: {first.title}. {first.label.capitalize()}: {verdict_reason(first)}."
            head = Note(text, verdict_tone(first)).body
            tests = [(test.name, test) for test in first.tests if _is_drawn(test)]
        else:
            head = caption_html(f"{claim}: {first.title}")
            tests = [
                (f"{report.model}: {test.name}", test)
                for report, verdict in zip(self.reports, verdicts, strict=True)
                for test in sorted(filter(_is_drawn, verdict.tests), key=_margin)[:1]
            ]
            without = [
                f"{report.model}: {verdict.label}"
                for report, verdict in zip(self.reports, verdicts, strict=True)
                if not any(map(_is_drawn, verdict.tests))
            ]
            head += f'<p class="pv-soft">{"; ".join(map(escape, without))}</p>' if without else ""
        rows = [_row(name, test) for name, test in tests]
        plot = IntervalPlot(rows, chance_label="passes inside", axis="").body if rows else ""
        return f'<section class="pv-card">{head}{plot}</section>'


def verdict_tone(verdict: ClaimVerdict) -> Tone:
    """Tone of a verdict."""
    return _LABELS.get(verdict.label, "muted")


def _is_drawn(test: StatisticalTest) -> bool:
    value = test.value
    has_range = test.above is not None or test.below is not None
    return (
        test.is_deciding and has_range and value is not None
        and all(map(math.isfinite, (value.value, value.low, value.high)))
    )  # fmt: skip


def _margin(test: StatisticalTest) -> float:
    """Distance of the interval from the end of its range: below 0 where a part lies outside."""
    assert test.value is not None
    above = test.value.low - test.above if test.above is not None else math.inf
    below = test.below - test.value.high if test.below is not None else math.inf
    return min(above, below)


def _row(name: str, test: StatisticalTest) -> Interval:
    assert test.value is not None
    low = min(0.0, test.value.low) if test.above is None else test.above
    high = max(1.0, test.value.high) if test.below is None else test.below
    return Interval.of(name, test.value, chance=(low, high), tone=_PASSED[test.passed])
