"""Attention of all heads of one model, with labels of queries and keys."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.errors import FigureError

_TOLERANCE = 1e-3  # Rounding can lift averages of softmax rows above 1.


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
    """

    model: str
    weights: Float[np.ndarray, "layer head query key"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    error: Float[np.ndarray, "layer head query key"] | None = None
    title: str = ""

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

    def __repr__(self) -> str:
        return (
            f"AttentionMaps({self.model!r}, {self.layers} layers x {self.heads} heads, "
            f"{len(self.rows)} queries x {len(self.columns)} keys)"
        )
