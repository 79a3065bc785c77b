"""What comparing cue words found: numbers with intervals, as tables and in plain words."""

from dataclasses import dataclass, field
from itertools import combinations
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from probes.errors import OutcomeError
from probes.experiments.cue_words.texts import GivenAnswer
from probes.stats.intervals import Estimate, bootstrap_mean, proportion
from probes.stats.multiple_testing import holm
from probes.stats.paired import PairedTest, mcnemar_test

if TYPE_CHECKING:
    import pandas as pd

RANDOM = "(random word)"
"""What the control is called: each item has a random word of its own in the cue's place."""


@dataclass(frozen=True, eq=False)
class NextTokenDivergence:
    """How far apart the next tokens are that a model expects behind different cues.

    Attributes:
        model: The model's name.
        cues: What was compared.
        said: The answer before the cue: "right" or "wrong".
        bits: Jensen-Shannon divergence between two cues, 0 to 1, in the order of `pairs`.
        swapped: The same between a cue and a random word in its place, mean over the words.
        random: The same between two random words.
        same: Whether the likeliest next token is the same behind both cues.
        seed: Of the random words and the intervals.
    """

    model: str
    cues: tuple[str, ...]
    given_answer: GivenAnswer
    bits: Float[np.ndarray, "pair prompt"] = field(repr=False)
    cue_vs_random: Float[np.ndarray, "cue prompt"] = field(repr=False)
    random_vs_random: Float[np.ndarray, " prompt"] = field(repr=False)
    same_argmax: Bool[np.ndarray, "pair prompt"] = field(repr=False)
    seed: int = 0

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every two cues."""
        return tuple(combinations(self.cues, 2))

    def pair_divergence(self, pair: int) -> tuple[Estimate, Estimate, Estimate]:
        """Bits between two cues, between each and a random word, and the first less the second."""
        control = self._control(pair)
        values = (self.bits[pair], control, self.bits[pair] - control)
        bits, random, excess = (bootstrap_mean(value, seed=self.seed) for value in values)
        return bits, random, excess

    def _control(self, pair: int) -> Float[np.ndarray, " prompt"]:
        return self.cue_vs_random[[self.cues.index(cue) for cue in self.pairs[pair]]].mean(0)

    def table(self) -> "pd.DataFrame":
        """One row for each two cues, in bits; `same_next` is a share of the items."""
        import pandas as pd

        rows = []
        for k, (first, second) in enumerate(self.pairs):
            named = zip(("bits", "random", "excess"), self.pair_divergence(k), strict=True)
            row = {"first": first, "second": second}
            for name, found in (*named, ("same_next", proportion(self.same_argmax[k]))):
                row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def summary(self) -> tuple[str, ...]:
        """Say what was found, one line for each two cues."""
        count = self.bits.shape[1]
        lines = [
            f"{self.model}, {count} items behind a {self.given_answer} answer: bits (0 to 1) between the "
            f"next tokens; two random words are {bootstrap_mean(self.random_vs_random, seed=self.seed).value:.2g} apart"
        ]
        for k, (first, second) in enumerate(self.pairs):
            bits, random, excess = self.pair_divergence(k)
            lines.append(
                f"{first} / {second}: {format_estimate(bits)} bits, a random word instead {format_estimate(random)}: "
                f"{_excess_text(excess)}. The likeliest next token is the same on "
                f"{self.same_argmax[k].mean():.1%} of the items"
            )
        return tuple(lines)


@dataclass(frozen=True, slots=True)
class ForcingContrast:
    """One comparison of two ways to go on.

    Attributes:
        first, second: What is compared, in words; the difference is the second's less the first's.
        found: The comparison, item by item.
        p: Corrected (Holm 1979), cues against none and cues against one another by themselves.
        least: The smallest difference that so many items likely show, at the level that so many
            comparisons leave; answers change as often as they do here.
        matched: The same on the items where both wrote equally many tokens, or None if there is
            none. How much is written is itself an effect of the cue, so this is a check only.
    """

    first: str
    second: str
    comparison: PairedTest
    p: float
    min_detectable_difference: float
    matched: PairedTest | None


@dataclass(frozen=True, eq=False)
class BudgetForcing:
    """How accurate a model is after it was made to go on.

    Attributes:
        model: The model's name.
        cues: The cues, and `RANDOM` last.
        times: How often it was made to go on.
        said: The answer that it started from: "right", "wrong", or "own", what it wrote itself.
        right: Whether the last statement is right.
        tokens: How many tokens it wrote behind the cues.
        cut: Whether a continuation was cut off for its length.
        texts: The longest replies, cue by cue, item by item.
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
        """Return the share of right last statements, with its Wilson interval over items."""
        return proportion(self.correct[self._index(cue, times)])

    def compare(self, first: tuple[str, int], second: tuple[str, int]) -> PairedTest:
        """Compare two ways to go on, each a cue and how often."""
        return mcnemar_test(self.correct[self._index(*first)], self.correct[self._index(*second)])

    def contrasts(self) -> tuple[ForcingContrast, ...]:
        """Compare each cue with none at all, and each two cues, at every number of times."""
        none = [
            ((cue, 0), (cue, n)) for cue in self.cues for n in self.times if n and self._has_no_cue
        ]
        each = [((a, n), (b, n)) for n in self.times if n for a, b in combinations(self.cues, 2)]
        return (*self._corrected_contrasts(none), *self._corrected_contrasts(each))

    def _corrected_contrasts(
        self, arms: list[tuple[tuple[str, int], tuple[str, int]]]
    ) -> list[ForcingContrast]:
        """Make comparisons that answer one question, and correct them for their number."""
        found = [self.compare(*pair) for pair in arms]
        corrected, level = holm([one.p_value for one in found]), 0.05 / max(1, len(found))
        made = []
        for (first, second), one, p in zip(arms, found, corrected, strict=True):
            least, matched = (
                one.minimum_detectable_effect(level),
                self._matched_length(first, second),
            )
            made.append(
                ForcingContrast(_arm_name(*first), _arm_name(*second), one, p, least, matched)
            )
        return made

    def table(self) -> "pd.DataFrame":
        """One row for each cue and number of times: accuracy, tokens written, share cut off."""
        import pandas as pd

        rows = []
        for c, cue in enumerate(self.cues):
            for n, times in enumerate(self.times):
                found = self.accuracy(cue, times)
                row = {"cue": cue, "times": times, "accuracy": found.value}
                row |= {"low": found.low, "high": found.high}
                row |= {"tokens": self.tokens[c, n].mean(), "cut_off": self.truncated[c, n].mean()}
                rows.append(row)
        return pd.DataFrame(rows)

    def comparisons(self) -> "pd.DataFrame":
        """One row for each comparison; `least` is the smallest difference it likely shows."""
        import pandas as pd

        rows = []
        for change in self.contrasts():
            found, matched = change.comparison, change.matched
            row = {"first": change.first, "second": change.second}
            row |= {"difference": found.difference.value, "low": found.difference.low}
            row |= {"high": found.difference.high, "gained": found.gained, "lost": found.lost}
            row |= {
                "p": found.p_value,
                "p_holm": change.p,
                "least": change.min_detectable_difference,
            }
            row |= {"verdict": found.verdict(p_value=change.p)}
            row |= {"matched_items": matched.n_items if matched else 0}
            row |= {"matched_difference": matched.difference.value if matched else np.nan}
            rows.append(row)
        return pd.DataFrame(rows)

    def summary(self, *, margin: float | None = None) -> tuple[str, ...]:
        """Say what was found; "alike" is said only of a difference within a `margin` (0 to 1)."""
        count, most = self.correct.shape[-1], self.times[-1]
        lines = [
            f"{self.model}, {count} items, from its own answer"
            if self.given_answer == "own"
            else f"{self.model}, {count} items, from a {self.given_answer} answer said before"
        ]
        for cue in self.cues:
            steps = ", ".join(
                f"n={n} {100 * self.accuracy(cue, n).value:.1f} %" for n in self.times
            )
            cut = self.truncated[self._index(cue, most)].mean()
            lines.append(f"{cue}: right {steps}; {cut:.1%} of the items cut off for length")
        return (*lines, *(_contrast_text(change, margin) for change in self.contrasts()))

    @property
    def _has_no_cue(self) -> bool:
        return 0 in self.times

    def _index(self, cue: str, times: int) -> tuple[int, int]:
        if cue not in self.cues or times not in self.times:
            raise OutcomeError(
                f"{cue!r} at n={times} was not tried: cues {', '.join(self.cues)}, n {self.times}"
            )
        return self.cues.index(cue), self.times.index(times)

    def _matched_length(self, first: tuple[str, int], second: tuple[str, int]) -> PairedTest | None:
        a, b = self._index(*first), self._index(*second)
        equal = self.tokens[a] == self.tokens[b]
        return mcnemar_test(self.correct[a][equal], self.correct[b][equal]) if equal.any() else None


def format_estimate(estimate: Estimate) -> str:
    """Write an estimate to two digits that count, however small it is."""
    return f"{estimate.value:.2g} [{estimate.low:.2g}, {estimate.high:.2g}]"


def _excess_text(excess: Estimate) -> str:
    if excess.low > 0:
        return "the cues differ by more than a random word does"
    if excess.high < 0:
        return "the cues differ by less than a random word does"
    return "cannot tell whether by more or less than a random word does"


def _arm_name(cue: str, times: int) -> str:
    return f"{cue} n={times}" if times else "none"


def _contrast_text(contrast: ForcingContrast, margin: float | None) -> str:
    found, d = contrast.comparison, contrast.comparison.difference
    verdict = found.verdict(p_value=contrast.p, margin=margin)
    least = f"{found.n_items} items likely show " + (
        f"{100 * contrast.min_detectable_difference:.1f} points or more"
        if isfinite(contrast.min_detectable_difference)
        else "no difference"
    )
    words = {
        "more": f"{contrast.second} is right more often",
        "less": f"{contrast.second} is right less often",
        "alike": f"alike to within {100 * (margin or 0):.3g} points",
        "cannot tell": f"cannot tell: {least}",
    }[verdict]
    return (
        f"{contrast.second} less {contrast.first}: {100 * d.value:+.1f} points "
        f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}], {found.gained} gained, {found.lost} lost, "
        f"p {contrast.p:.2g} (Holm): {words}"
    )
