"""Representational similarity on a fixed sample of rows, chosen by what was asked and not by luck.

keys of all rows → the anchors, by a hash of the key → distances between them → rank correlation

Distances need all pairs of rows, so no stream can hold them; as the sample hangs on the keys
alone, every model and every engine measures the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from probes.comparison.representations.row_check import Rows, float_rows
from probes.errors import BatchError

_MAX_ANCHORS = 4096
_MIN_ANCHORS = 4
# As a share of the greatest distance: what single precision cannot tell from nought.
_TIE_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class AnchorSimilarity:
    """How alike two sites order the distances between their anchors.

    Attributes:
        value: Spearman's correlation of the distances, -1 to 1; NaN where one site never varies.
        chance: Its mean where the anchors of one site are permuted.
        chance_high: Its 95th percentile there.
        p: Share of permutations that do as well, this one counted: never below 1 / permutations.
        anchors: How many rows were compared.
    """

    value: float
    chance: float
    chance_high: float
    p: float
    anchors: int


def choose_anchors(keys: Sequence[str], count: int = 256) -> Int[np.ndarray, " anchor"]:
    """Return the numbers of the rows whose keys have the smallest hashes, at most `count`.

    They come in the order of their hashes, so that two lists with the same keys in another order
    give the same anchors in the same order.

    Args:
        keys: What each row is: a prompt's text, with a role or position where it has many rows.
        count: How many, at most 4,096.

    Raises:
        BatchError: Too few keys, too large a count, or two rows with one key.
    """
    if not _MIN_ANCHORS <= count <= _MAX_ANCHORS:
        raise BatchError(f"{count} anchors were asked for: take {_MIN_ANCHORS} to {_MAX_ANCHORS}")
    if len(keys) < _MIN_ANCHORS:
        raise BatchError(f"{len(keys)} rows are too few: give at least {_MIN_ANCHORS}")
    if len(set(keys)) < len(keys):
        double = next(key for n, key in enumerate(keys) if key in keys[:n])
        raise BatchError(
            f"Two rows have the key {double[:80]!r}: give each row a key of its own, such as its "
            "prompt and its position"
        )
    hashes = [blake2b(key.encode(), digest_size=16).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=hashes.__getitem__)[:count])


def anchor_similarity(  # noqa: PLR0913 (what is compared, on how many, and against what)
    x: Rows, y: Rows, keys: Sequence[str], *, count: int = 256, permutations: int = 200, seed: int
) -> AnchorSimilarity:
    """Compare two sites by the distances between their anchors (Kriegeskorte et al. 2008).

    Args:
        x, y: Row i of both is what `keys[i]` says; widths may differ.
        keys: See `choose_anchors`.
        count: How many anchors, at most.
        permutations: How often the anchors of y are permuted for the chance level.
        seed: Of the permutations.

    Raises:
        BatchError: Rows and keys of unequal number, rows that are not finite; see
            `choose_anchors`.
    """
    if not len(x) == len(y) == len(keys):
        raise BatchError(f"{len(x)} and {len(y)} rows with {len(keys)} keys: give one key a row")
    if permutations < 1:
        raise BatchError(f"{permutations} permutations were asked for: take at least 1")
    chosen = choose_anchors(keys, count)
    a, b = (ranked_distances(rows[chosen]) for rows in (x, y))
    rng = np.random.default_rng(seed)
    value, drawn = float((a * b).sum()), np.empty(permutations)
    for n in range(permutations):
        order = rng.permutation(len(chosen))
        drawn[n] = (a * b[np.ix_(order, order)]).sum()
    if np.isnan(value):
        none = float("nan")
        return AnchorSimilarity(none, none, none, none, len(chosen))
    as_good = 1 + int((drawn >= value).sum())
    return AnchorSimilarity(
        value,
        float(drawn.mean()),
        float(np.quantile(drawn, 0.95)),
        as_good / (permutations + 1),
        len(chosen),
    )


def ranked_distances(rows: Rows) -> Float[np.ndarray, "row row"]:
    """Return the ranks of the distances between rows, centered and scaled to length 1.

    The diagonal is 0, and the sum of two such matrices' product is Spearman's correlation.
    Distances are Euclidean, so that rotations change nothing; those are alike that differ by less
    than a hundred-thousandth of the greatest. All is NaN where rows do not differ at all.
    """
    found = float_rows(rows, "of the anchors")
    distances = pdist(found)
    greatest = float(distances.max(initial=0))
    if greatest <= _TIE_TOLERANCE * float(np.linalg.norm(found, axis=1).max()):
        return np.full((len(found), len(found)), np.nan)
    ranks = rankdata(np.round(distances / (_TIE_TOLERANCE * greatest)))
    ranks -= ranks.mean()
    length = float(np.linalg.norm(ranks))
    # Twice, as every pair stands on both sides of the diagonal.
    return squareform(ranks / (length * np.sqrt(2)) if length else np.full_like(ranks, np.nan))
