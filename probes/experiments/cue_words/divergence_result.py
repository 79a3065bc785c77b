"""Results about next tokens after cue words."""

from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from probes.experiments.cue_words.texts import GivenAnswer
from probes.stats.intervals import Estimate, bootstrap_mean, bootstrap_ratio, proportion

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class NextTokenDivergence:
    """Divergence of the next token after different cues.

    Attributes:
        model: Name of the model.
        cues: Cue words.
        given_answer: Answer before the cue: "right" or "wrong".
        bits: Jensen-Shannon divergence of two cues, 0 to 1, in the order of `pairs`.
        cue_vs_random: The same of a cue and a random word in its place, mean over the words.
        random_vs_random: The same of two random words.
        same_argmax: Whether the most likely next token is the same after both cues.
        seed: Seed of the random words and the intervals.
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
        """Pairs of cues."""
        return tuple(combinations(self.cues, 2))

    def pair_divergence(self, pair: int) -> tuple[Estimate, Estimate, Estimate]:
        """Bits between two cues, bits between each and a random word, and their difference."""
        rows = [self.cues.index(cue) for cue in self.pairs[pair]]
        control = self.cue_vs_random[rows].mean(0)
        values = (self.bits[pair], control, self.bits[pair] - control)
        bits, random, excess = (bootstrap_mean(value, seed=self.seed) for value in values)
        return bits, random, excess

    def table(self) -> "pd.DataFrame":
        """A row for each pair of cues, in bits; `same_next` is a fraction of the items."""
        import pandas as pd

        rows = []
        for k, (first, second) in enumerate(self.pairs):
            named = zip(("bits", "random", "excess"), self.pair_divergence(k), strict=True)
            row = {"first": first, "second": second}
            for name, value in (*named, ("same_next", proportion(self.same_argmax[k]))):
                row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def summary(self) -> tuple[str, ...]:
        """One sentence for each pair of cues."""
        random = bootstrap_mean(self.random_vs_random, seed=self.seed)
        lines = [
            f"{self.model}, {self.bits.shape[1]} items after a {self.given_answer} answer: bits (0 "
            f"to 1) between next tokens; two random words differ by {random.value:.2g}"
        ]
        for k, (first, second) in enumerate(self.pairs):
            bits, random, excess = self.pair_divergence(k)
            lines.append(
                f"{first} / {second}: {format_estimate(bits)} bits, with a random word "
                f"{format_estimate(random)}: {_excess_text(excess)}. The most likely next token is "
                f"the same on {self.same_argmax[k].mean():.1%} of the items"
            )
        return tuple(lines)


@dataclass(frozen=True, eq=False)
class CueLocalization:
    """Sites that carry the difference between two cues.

    Attributes:
        model: Name of the model.
        first, second: Cue of the patched run, and cue of the run that it is patched from.
        given_answer: Answer before the cue.
        positions: "cue"; "after", the tokens after it; "last", the readout if it is another token;
            "all" of these.
        remaining: Bits between the patched run and the second cue's; rows are the residual stream
            before each block, and after the last.
        total: Bits between the two runs without a patch.
        seed: Seed of the intervals.
    """

    model: str
    first: str
    second: str
    given_answer: GivenAnswer
    positions: tuple[str, ...]
    remaining: Float[np.ndarray, "row place prompt"] = field(repr=False)
    total: Float[np.ndarray, " prompt"] = field(repr=False)
    seed: int = 0

    def recovered_fraction(self, layer: int, position: str) -> Estimate:
        """Fraction of the divergence that a patch removes.

        At 1 the patched run equals the second cue's run; at 0 the patch has no effect.
        """
        left = self.remaining[layer, self.positions.index(position)]
        ratio = bootstrap_ratio(left, self.total, seed=self.seed)
        return Estimate(1 - ratio.value, 1 - ratio.high, 1 - ratio.low)

    def table(self) -> "pd.DataFrame":
        """A row for each layer and position."""
        import pandas as pd

        rows = []
        for layer in range(len(self.remaining)):
            for position in self.positions:
                e = self.recovered_fraction(layer, position)
                row = {"layer": layer, "place": position}
                rows.append(row | {"share": e.value, "low": e.low, "high": e.high})
        return pd.DataFrame(rows)

    def summary(self) -> tuple[str, ...]:
        """Divergence, and the layers at which each position carries more than half of it."""
        total, last = bootstrap_mean(self.total, seed=self.seed), len(self.remaining) - 1
        lines = [
            f"{self.model}: {self.first} and {self.second} differ by {format_estimate(total)} bits "
            f"after a {self.given_answer} answer, mean over {len(self.total)} items"
        ]
        for position in self.positions[:-1]:
            layers = [n for n in range(last + 1) if self.recovered_fraction(n, position).low > 0.5]
            names = ", ".join("output" if n == last else f"{n}" for n in layers)
            where = f"at the input of layers {names}" if layers else "at no layer"
            lines.append(f"{position}: more than half of it {where} (95 % interval)")
        return tuple(lines)


def format_estimate(estimate: Estimate) -> str:
    """Estimate with two significant digits."""
    return f"{estimate.value:.2g} [{estimate.low:.2g}, {estimate.high:.2g}]"


def _excess_text(excess: Estimate) -> str:
    if excess.low > 0:
        return "the cues differ more than random words"
    if excess.high < 0:
        return "the cues differ less than random words"
    return "cannot tell whether they differ more or less than random words"
