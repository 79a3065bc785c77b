"""Page of a comparison over tokens: CKA of pairs of layers, beside chance and another seed."""

import numpy as np

from probes.comparison.representations.token_result import TokenSimilarity
from probes.viz.blocks import CellValue, Matrix, Note, Table
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.registry import report

_INTRO = (
    "Debiased linear CKA over all tokens: 1 for states that are equal up to rotation and scale, 0 "
    "for unrelated ones. Layer n is the input of block n, so 0 is the output of the embedding; the "
    "last layer is the output of the last block. Models that read the same tokens share what the "
    "token alone gives, so untrained models are above 0, too."
)
_NUMBERS_INTRO = (
    "Intervals are 95 %, from a jackknife over {blocks} blocks of texts. Chance pairs each text "
    "with another one, token by token ({permutations} permutations): the mean and the threshold. "
    "Other seed: {a} with its other-seed model, same layer."
)
_MOST_UNMEASURED = 0.5  # Fraction of the pairs of layers of a matrix.
_COLUMNS = ("layers", "CKA", "chance", "threshold", "other seed")


@report.register
def token_similarity_page(result: TokenSimilarity) -> Picture:
    """Page of one comparison."""
    matrix = result.matrix
    rows, columns = ([f"L{n}" for n in range(size)] for size in matrix.shape)
    cells: list[list[CellValue]] = [
        [
            pair.name,
            pair.cka,
            *(_rounded(n) for n in (pair.chance, pair.chance_high)),
            pair.other_seed,
        ]
        for pair in result.pairs
    ]
    numbers = _NUMBERS_INTRO.format(
        blocks=result.blocks, permutations=result.permutations, a=result.a
    )
    sections: list[Section] = [
        (
            "Pairs of layers",
            _INTRO,
            [_few_pairs(result)]
            if np.isnan(matrix).mean() > _MOST_UNMEASURED
            else [Matrix(matrix, rows, columns, vmax=1.0, corner=(result.a, result.b))],
        ),
        ("Numbers", numbers, [Table(_COLUMNS, cells)]),
    ]
    lead = [Note(line) for line in result.summary()]
    return page(f"{result.a} and {result.b} over tokens", sections, lead, "Residual streams")


def _few_pairs(result: TokenSimilarity) -> IntervalPlot:
    """Pairs of layers one below another, where a matrix would be mostly empty."""
    rows = [
        Interval.of(
            pair.name,
            pair.cka,
            chance=(pair.chance, pair.chance_high) if pair.chance == pair.chance else float("nan"),
            upper_reference=pair.other_seed,
        )
        for pair in result.pairs
        if pair.cka.value == pair.cka.value
    ]
    return IntervalPlot(
        rows,
        axis=f"CKA of layers of {result.a} and {result.b}",
        chance_label="chance, from its mean to the threshold",
        reference_label=result.other_seed,
    )


def _rounded(value: float) -> str | None:
    """Four decimals, because chance is close to 0."""
    return None if value != value else f"{value + 0.0:.4f}"
