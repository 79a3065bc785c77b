"""Attention of long texts in blocks of tokens, so that one page holds all heads."""

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Float

from probes.viz.plots.attention.maps import AttentionMaps, Head, LongText

MAX_CELLS = 1_200_000
"""Cells of all heads on a page; longer texts are pooled."""

_MAX_SIDE = 256
_MAX_EXACT_CELLS = 4_400_000  # Of the heads that are shown token by token.


def pool_blocks(
    weights: Float[np.ndarray, "*head query key"], block: int
) -> Float[np.ndarray, "*head row column"]:
    """Attention between blocks of tokens: summed over keys, averaged over queries.

    A row still sums to 1. NaN where a block has no cell.
    """
    if block == 1:
        return weights
    padding = [(0, 0)] * (weights.ndim - 2) + [(0, -size % block) for size in weights.shape[-2:]]
    padded = np.pad(weights, padding, constant_values=np.nan)
    pattern = "... (row a) (column b) -> ... row column a b"
    blocks = rearrange(padded, pattern, a=block, b=block)
    known = ~np.isnan(blocks)
    total, queries = np.where(known, blocks, 0).sum((-1, -2)), known.any(-1).sum(-1)
    return np.where(queries > 0, total / np.maximum(queries, 1), np.nan)


def pool_rows(values: Float[np.ndarray, "*head query"], block: int) -> np.ndarray:
    """Mean over each block of queries."""
    padding = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % block)]
    padded = np.pad(values, padding, constant_values=np.nan)
    known = ~np.isnan(padded)
    total = reduce(np.where(known, padded, 0), "... (row a) -> ... row", "sum", a=block)
    return total / np.maximum(reduce(known, "... (row a) -> ... row", "sum", a=block), 1)


def block_size(tokens: int, heads: int) -> int:
    """Tokens of a block at which `heads` maps of a text fit a page; 1 for a short text."""
    side = min(_MAX_SIDE, isqrt(MAX_CELLS // heads))
    return 1 if heads * tokens**2 <= MAX_CELLS else -(-tokens // side)


def n_exact(tokens: int, models: int) -> int:
    """Number of heads of each model that are shown token by token; at least one."""
    return max(1, _MAX_EXACT_CELLS // (models * tokens**2))


def pool_text(maps: AttentionMaps, exact: Sequence[Head], block: int) -> AttentionMaps:
    """Maps of a long text in blocks, but for some heads; errors are left out."""
    return replace(
        maps,
        weights=pool_blocks(maps.weights, block),
        rows=block_labels(len(maps.rows), block),
        columns=block_labels(len(maps.columns), block),
        error=None,
        long_text=LongText(
            maps.columns,
            block,
            pool_rows(maps.weights[..., 0], block),
            {head: maps.weights[head] for head in exact},
        ),
    )


def block_labels(tokens: int, block: int) -> tuple[str, ...]:
    """Numbers of the first and last token of each block."""
    starts = range(0, tokens, block)
    return tuple(f"{start}–{min(start + block, tokens) - 1}" for start in starts)
