"""Result of budget forcing: accuracies, and paired comparisons of cues."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from probes.errors import OutcomeError
from probes.stats.intervals import Estimate, proportion
from probes.stats.multiple_testing import holm
from probes.stats.paired import PairedTest, mcnemar_test

if TYPE_CHECKING:
    import pandas as pd

RANDOM = "(random word)"
"""Name of the control: each item has a random word of its own in place of the cue."""

Arm = tuple[str, int]
"""A cue, and how often it is appended."""


@dataclass(frozen=True, slots=True)
class ForcingContrast:
    """Comparison of two arms of budget forcing.

    Attributes:
        first, second: Names of the arms; the difference is that of the second minus the first.
        comparison: Paired comparison by item.
        p: Corrected p-value (Holm 1979); cues against none and cues against cues are two families.
        min_detectable_difference: Smallest difference that this number of items likely shows, at
            the level of one of these comparisons and with as many changed answers.
        matched: The same comparison on items with equal numbers of written tokens, or None. Length
            is itself an effect of the cue, so it is a check only.
    """

    first: str
    second: str
    comparison: PairedTest
    p: float
    min_detectable_difference: float
    matched: PairedTest | None


@dataclass(frozen=True, eq=False)
class BudgetForcing:
    """Accuracy of a model after forced continuations.

    Attributes:
        model: Name of the model.
        cues: Cue words, and `RANDOM` last.
        times: Numbers of continuations.
        given_answer: Answer before the first cue: "right", "wrong" or "own".
        correct: Whether the last answer is correct.
        tokens: Number of tokens that the model wrote after the cues.
        truncated: Whether a continuation was truncated.
        texts: Longest replies, by cue and item.
    """

    model: str
    cues: tuple[str, ...]
    times: tuple[int, ...]
    given_answer: str
    correct: Bool[np.ndarray, "cue time prompt"] = field(repr=False)
    tokens: Int[np.ndarray, "cue time prompt"] = field(repr=False)
    truncated: Bool[np.ndarray, "cue time prompt"] = field(repr=False)
    texts: tuple[tuple[str, ...], ...] = field(repr=False)

    def accuracy(self, cue: str, times: int) -> Estimate:
        """Accuracy of the last answer, with its Wilson interval over items."""
        return proportion(self.correct[self._index(cue, times)])

    def compare(self, first: Arm, second: Arm) -> PairedTest:
        """Paired comparison of two arms."""
        return mcnemar_test(self.correct[self._index(*first)], self.correct[self._index(*second)])

    def contrasts(self) -> tuple[ForcingContrast, ...]:
        """Comparisons of each cue with no cue, and of each two cues, at every number of times."""
        forced = [n for n in self.times if n]
        with_none = [((cue, 0), (cue, n)) for cue in self.cues for n in forced if 0 in self.times]
        pairs = [((a, n), (b, n)) for n in forced for a, b in combinations(self.cues, 2)]
        return (*self._corrected_contrasts(with_none), *self._corrected_contrasts(pairs))

    def _corrected_contrasts(self, arms: Sequence[tuple[Arm, Arm]]) -> list[ForcingContrast]:
        """Comparisons of one family, corrected for their number."""
        tests = [self.compare(*pair) for pair in arms]
        corrected, level = holm([test.p_value for test in tests]), 0.05 / max(1, len(tests))
        return [
            ForcingContrast(
                first=_arm_name(*first),
                second=_arm_name(*second),
                comparison=test,
                p=p,
                min_detectable_difference=test.minimum_detectable_effect(level),
                matched=self._matched_length(first, second),
            )
            for (first, second), test, p in zip(arms, tests, corrected, strict=True)
        ]

    def table(self) -> "pd.DataFrame":
        """A row for each cue and number of times."""
        import pandas as pd

        rows = []
        for c, cue in enumerate(self.cues):
            for n, times in enumerate(self.times):
                accuracy = self.accuracy(cue, times)
                row = {"cue": cue, "times": times, "accuracy": accuracy.value}
                row |= {"low": accuracy.low, "high": accuracy.high}
                row |= {"tokens": self.tokens[c, n].mean(), "cut_off": self.truncated[c, n].mean()}
                rows.append(row)
        return pd.DataFrame(rows)

    def comparisons(self) -> "pd.DataFrame":
        """A row for each contrast; `least` is the minimum detectable difference."""
        import pandas as pd

        rows = []
        for c in self.contrasts():
            test, matched = c.comparison, c.matched
            rows.append({
                "first": c.first, "second": c.second, "difference": test.difference.value,
                "low": test.difference.low, "high": test.difference.high,
                "gained": test.gained, "lost": test.lost, "p": test.p_value, "p_holm": c.p,
                "least": c.min_detectable_difference, "verdict": test.verdict(p_value=c.p),
                "matched_items": matched.n_items if matched else 0,
                "matched_difference": matched.difference.value if matched else np.nan,
            })  # fmt: skip
        return pd.DataFrame(rows)

    def summary(self, *, margin: float | None = None) -> tuple[str, ...]:
        """Accuracies and contrasts; "alike" needs a difference within `margin` (0 to 1)."""
        given = "its own" if self.given_answer == "own" else f"a given {self.given_answer}"
        lines = [f"{self.model}, {self.correct.shape[-1]} items, from {given} answer"]
        for cue in self.cues:
            steps = ", ".join(
                f"n={n} {100 * self.accuracy(cue, n).value:.1f} %" for n in self.times
            )
            cut = self.truncated[self._index(cue, self.times[-1])].mean()
            lines.append(f"{cue}: correct {steps}; {cut:.1%} of the items truncated")
        return (*lines, *(_contrast_text(contrast, margin) for contrast in self.contrasts()))

    def _index(self, cue: str, times: int) -> tuple[int, int]:
        if cue not in self.cues or times not in self.times:
            raise OutcomeError(
                f"{cue!r} at n={times} was not tried: the cues are {', '.join(self.cues)}, n "
                f"{self.times}"
            )
        return self.cues.index(cue), self.times.index(times)

    def _matched_length(self, first: Arm, second: Arm) -> PairedTest | None:
        a, b = self._index(*first), self._index(*second)
        equal = self.tokens[a] == self.tokens[b]
        return mcnemar_test(self.correct[a][equal], self.correct[b][equal]) if equal.any() else None


def _arm_name(cue: str, times: int) -> str:
    return f"{cue} n={times}" if times else "none"


def _contrast_text(contrast: ForcingContrast, margin: float | None) -> str:
    test, d = contrast.comparison, contrast.comparison.difference
    least = f"{test.n_items} items likely show " + (
        f"{100 * contrast.min_detectable_difference:.1f} points or more"
        if isfinite(contrast.min_detectable_difference)
        else "no difference"
    )
    verdicts = {
        "more": f"{contrast.second} is correct more often",
        "less": f"{contrast.second} is correct less often",
        "alike": f"alike within {100 * (margin or 0):.3g} points",
        "cannot tell": f"cannot tell: {least}",
    }
    return (
        f"{contrast.second} minus {contrast.first}: {100 * d.value:+.1f} points "
        f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}], {test.gained} gained, {test.lost} lost, "
        f"p {contrast.p:.2g} (Holm): {verdicts[test.verdict(p_value=contrast.p, margin=margin)]}"
    )
