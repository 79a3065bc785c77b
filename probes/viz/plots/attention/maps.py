"""Attention of all heads of one model, with labels of queries and keys."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.errors import FigureError

Head = tuple[int, int]
"""Layer and number."""

_TOLERANCE = 1e-3  # Rounding can lift averages of softmax rows above 1.


@dataclass(frozen=True, eq=False)
class LongText:
    """Tokens of a text whose maps are pooled in blocks, and the heads that are not.

    Attributes:
        tokens: Its tokens.
        block: Tokens of a block.
        first_key: Attention of each block of queries to the first token.
        exact: Maps of some heads, token by token.
    """

    tokens: tuple[str, ...]
    block: int
    first_key: Float[np.ndarray, "layer head row"]
    exact: Mapping[Head, Float[np.ndarray, "query key"]]


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention of all heads of one model.

    Attributes:
        model: Name of the model.
        weights: Attention in [0, 1]; NaN for masked keys and missing heads.
        rows: Label of each query: a token or a role.
        columns: Label of each key.
        error: Standard error of each weight, or None.
        title: Line above the picture.
        kv_heads: Number of heads for keys and values, shared by groups of heads; 0 if unknown.
        names: Names of the heads; empty for those of a whole model.
        long_text: What blocks of tokens stand for, where rows and columns are blocks.
    """

    model: str
    weights: Float[np.ndarray, "layer head query key"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    error: Float[np.ndarray, "layer head query key"] | None = None
    title: str = ""
    kv_heads: int = 0
    names: tuple[str, ...] = ()
    long_text: LongText | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.weights)
        if len(shape) != 4 or 0 in shape:
            raise FigureError(
                f"weights must be layer x head x query x key, none of them 0, but are {shape}: "
                "average over prompts first, and keep the layer axis"
            )
        if shape[2:] != (len(self.rows), len(self.columns)):
            raise FigureError(
                f"weights have {shape[2]} queries and {shape[3]} keys, but there are "
                f"{len(self.rows)} row and {len(self.columns)} column labels: name each one"
            )
        known = self.weights[~np.isnan(self.weights)]
        if known.size and not (known.min() >= -_TOLERANCE and known.max() <= 1 + _TOLERANCE):
            raise FigureError(
                f"attention is in [0, 1], but weights run from {known.min():.4g} to "
                f"{known.max():.4g}: give attention after the softmax"
            )
        if self.error is not None:
            self._check_error(self.error)
        if self.kv_heads < 0 or (self.kv_heads and shape[1] % self.kv_heads):
            raise FigureError(
                f"kv_heads is {self.kv_heads} for {shape[1]} heads: give a divisor, or 0 if unknown"
            )

    def _check_error(self, error: Float[np.ndarray, "layer head query key"]) -> None:
        if np.shape(error) != np.shape(self.weights):
            raise FigureError(
                f"error has shape {np.shape(error)} but weights {np.shape(self.weights)}: "
                "give one standard error for each weight, or None"
            )
        known = error[~np.isnan(error)]
        if known.size and not (known.min() >= 0 and np.isfinite(known.max())):
            raise FigureError(
                f"standard errors run from {known.min():.4g} to {known.max():.4g}: "
                "give finite numbers that are not negative, or NaN where unknown"
            )

    def check_head(self, layer: int, head: int) -> None:
        """Raise FigureError if there is no such head."""
        if not (0 <= layer < self.layers and 0 <= head < self.heads):
            raise FigureError(
                f"{self.model!r} has no head L{layer}.H{head}: choose a layer from 0 to "
                f"{self.layers - 1} and a head from 0 to {self.heads - 1}"
            )

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.weights.shape[0]

    @property
    def heads(self) -> int:
        """Number of heads in a layer."""
        return self.weights.shape[1]

    @property
    def axes(self) -> tuple[tuple[str, ...], ...]:
        """Labels of both axes, and the tokens behind them: cells of equal axes compare."""
        tokens = self.long_text.tokens if self.long_text else ()
        return self.rows, self.columns, tokens

    def sharers(self, head: int) -> tuple[int, ...]:
        """Other heads of a layer that share the keys and values of a head."""
        size = self.heads // self.kv_heads if self.kv_heads else 1
        first = head // size * size
        return tuple(other for other in range(first, first + size) if other != head)

    def __repr__(self) -> str:
        return (
            f"AttentionMaps({self.model!r}, {self.layers} layers x {self.heads} heads, "
            f"{len(self.rows)} queries x {len(self.columns)} keys)"
        )
