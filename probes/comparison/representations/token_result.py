"""Result of a comparison over tokens: debiased CKA of pairs of layers, without torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from probes.errors import SiteError
from probes.result import Result
from probes.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd

_NAMED = 6  # Most pairs of layers that a sentence names.
_HIGH_CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class LayerSimilarity:
    """Debiased linear CKA of a layer of a and a layer of b; NaN where a layer is constant.

    Attributes:
        layer_a, layer_b: Their numbers. Layer n is the input of block n, so 0 is the output of the
            embedding; the last layer is the output of the last block.
        cka: CKA over all tokens, with its 95 % interval over texts (jackknife over blocks).
        chance: Mean CKA over the permutations of the texts of b; NaN where no text had a partner.
        chance_high: Threshold of these (`probes.stats.null_threshold`); the largest below 20.
        other_seed: CKA of this layer of a with the same layer of its other-seed model; NaN without.
    """

    layer_a: int
    layer_b: int
    cka: Estimate
    chance: float
    chance_high: float
    other_seed: float

    @property
    def name(self) -> str:
        """The layers, such as "L3–L2"."""
        return f"L{self.layer_a}–L{self.layer_b}"

    @property
    def is_above_chance(self) -> bool:
        """Whether the whole interval is above the threshold; False where one of them is unknown."""
        return self.cka.low > self.chance_high


@dataclass(frozen=True, slots=True, repr=False)
class TokenSimilarity(Result):
    """Similarity of the residual streams of two models over the tokens of many texts.

    Attributes:
        a, b, other_seed: Names of the models; `other_seed` is "" without one.
        texts, tokens: Numbers of texts and of their tokens, special tokens before a text left out.
        null_tokens: Tokens of a that the first permutation pairs with a token of another text.
        blocks: Blocks of texts of the jackknife.
        permutations: Permutations of the null.
        seed: Seed of the permutations.
        pairs: The measured pairs of layers.
    """

    a: str
    b: str
    other_seed: str
    texts: int
    tokens: int
    null_tokens: int
    blocks: int
    permutations: int
    seed: int
    pairs: tuple[LayerSimilarity, ...]

    @property
    def matrix(self) -> Float[np.ndarray, "layer_a layer_b"]:
        """CKA of each pair of layers; NaN where it was not measured."""
        size = (1 + max(p.layer_a for p in self.pairs), 1 + max(p.layer_b for p in self.pairs))
        matrix = np.full(size, np.nan)
        for pair in self.pairs:
            matrix[pair.layer_a, pair.layer_b] = pair.cka.value
        return matrix

    def pair(self, layer_a: int, layer_b: int) -> LayerSimilarity:
        """Similarity of one pair of layers.

        Raises:
            SiteError: The pair was not measured.
        """
        for pair in self.pairs:
            if (pair.layer_a, pair.layer_b) == (layer_a, layer_b):
                return pair
        raise SiteError(
            f"Layers {layer_a} and {layer_b} were not compared: the pairs are "
            f"{[(p.layer_a, p.layer_b) for p in self.pairs][:40]}"
        )

    def summary(self) -> tuple[str, ...]:
        """Similarity of first and last layers, beside its null and another seed."""
        first, last = self.pairs[0], self.pairs[-1]
        lines = [
            f"{self.a} and {self.b}: debiased CKA of residual streams over {self.tokens:,} tokens "
            f"of {self.texts:,} texts, {len(self.pairs)} pairs of layers.",
            f"{_name(first)}: {first.cka}{_other_seed(first)}. "
            f"{_name(last)}: {last.cka}{_other_seed(last)}.",
        ]
        if best := self._most_similar():
            lines.append(f"Most similar to each layer of {self.a}: {best}.")
        return (*lines, *self._chance_lines())

    def _chance_lines(self) -> list[str]:
        """Null of the pairs, and which of them are not above their own."""
        known = [pair for pair in self.pairs if not np.isnan(pair.chance)]
        if not known:
            return ["No null: no text could be paired with another one."]
        highest = max(pair.chance_high for pair in known)
        drawn = "once" if self.permutations == 1 else f"{self.permutations} times"
        lines = [
            f"Chance: with the texts of {self.b} permuted ({drawn}, {self.null_tokens:,} tokens), "
            f"no pair of layers is above {highest + 0.0:.4f}."
        ]
        others = [pair.name for pair in known if not pair.is_above_chance]
        named = ", ".join(others[:_NAMED])
        more = f" and {len(others) - _NAMED} others" if len(others) > _NAMED else ""
        lines.append(
            f"{len(known) - len(others)} of {len(known)} pairs of layers are above their own "
            "threshold with the whole interval" + (f"; not {named}{more}." if others else ".")
        )
        if highest > _HIGH_CHANCE:
            lines.append(
                "A threshold above 0.5 says that the same place has nearly the same state in every "
                "text, as the massive activation of a first token: CKA is of little use there."
            )
        return lines

    def _most_similar(self) -> str:
        """For each layer of a the layer of b with the highest CKA, where there is a choice."""
        matrix = self.matrix
        measured = ~np.isnan(matrix)
        if measured.sum(1).max() < 2:
            return ""
        rows = [n for n in range(len(matrix)) if measured[n].any()]
        best = [int(np.nanargmax(matrix[n])) for n in rows]
        return ", ".join(f"L{n}–L{m} {matrix[n, m]:.2f}" for n, m in zip(rows, best, strict=True))

    def table(self) -> "pd.DataFrame":
        """One row per pair of layers."""
        import pandas as pd

        rows = [
            (
                *(pair.layer_a, pair.layer_b, pair.cka.value, pair.cka.low, pair.cka.high),
                *(pair.chance, pair.chance_high, pair.other_seed),
            )
            for pair in self.pairs
        ]
        columns = ["layer_a", "layer_b", "cka", "low", "high", "chance", "chance_high"]
        return pd.DataFrame(rows, columns=pd.Index([*columns, "other_seed"]))

    def __repr__(self) -> str:
        return f"<{' '.join(self.summary()[:2])}>"


def _name(pair: LayerSimilarity) -> str:
    return f"Layers {pair.layer_a} and {pair.layer_b}"


def _other_seed(pair: LayerSimilarity) -> str:
    return "" if np.isnan(pair.other_seed) else f" (other seed {pair.other_seed:.2f})"
