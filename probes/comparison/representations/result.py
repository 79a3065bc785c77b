"""Result of a comparison of representations: one table for each similarity measure."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from probes.errors import SiteError

ALL = "all"
"""Name of all roles together on the role axis."""


@dataclass(frozen=True, eq=False)
class SimilarityMeasure:
    """One similarity measure for every pair of layers; NaN where a site is constant.

    Attributes:
        measure: "cka" (debiased), "cka given token" (within classes of one token), "rsa",
            "procrustes", "predictivity a → b" or "predictivity b → a".
        roles: The roles, then "all"; only "all" for measures that pool the roles.
        value: The estimate.
        low, high: 95 % interval over prompts (jackknife over 20 blocks); NaN for pooled measures.
        chance, chance_high: Mean and threshold over permutations of the prompts of b.
        other_seed: Similarity of each layer of a with that layer of its other-seed model; NaN
            without one.
    """

    measure: str
    roles: tuple[str, ...]
    value: Float[np.ndarray, "role layer_a layer_b"]
    low: Float[np.ndarray, "role layer_a layer_b"]
    high: Float[np.ndarray, "role layer_a layer_b"]
    chance: Float[np.ndarray, "role layer_a layer_b"]
    chance_high: Float[np.ndarray, "role layer_a layer_b"]
    other_seed: Float[np.ndarray, "role layer_a"]


@dataclass(frozen=True, eq=False)
class RepresentationSimilarity:
    """Similarity of the residual streams of two models, each value with its null.

    Layer n is the input of block n; the last layer is the output of the last block.

    Attributes:
        a, b, other_seed: Names of the models; `other_seed` is "" without one.
        pattern: Name of the pattern.
        prompts: Number of questions.
        counts: For each role the number of prompts that have it.
        token_counts: For each role the number of these prompts whose token occurs more than once;
            only these enter "cka given token".
        measures: The measures by name.
    """

    a: str
    b: str
    other_seed: str
    pattern: str
    prompts: int
    counts: Mapping[str, int]
    token_counts: Mapping[str, int]
    measures: Mapping[str, SimilarityMeasure]

    def __getitem__(self, measure: str) -> SimilarityMeasure:
        if measure not in self.measures:
            raise SiteError(f"There is no measure {measure!r}: choose from {list(self.measures)}")
        return self.measures[measure]

    def table(self) -> pd.DataFrame:
        """One row per measure, role and pair of layers."""
        names = ("value", "low", "high", "chance", "chance_high")
        rows = [
            (
                *(measure.measure, role, layer_a, layer_b),
                *(float(getattr(measure, name)[r, layer_a, layer_b]) for name in names),
                float(measure.other_seed[r, layer_a]),
            )
            for measure in self.measures.values()
            for r, role in enumerate(measure.roles)
            for layer_a, layer_b in np.ndindex(*measure.value.shape[1:])
        ]
        columns = ["measure", "role", "layer_a", "layer_b", *names, "other_seed"]
        return pd.DataFrame(rows, columns=pd.Index(columns))
