"""What a head map shows: attention of every head of one model, with words on its axes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.errors import FigureError

# Averages of softmax rows may overshoot 1 by rounding, and by no more.
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention from each query to each key, for every head of one model.

    Attributes:
        model: The name of the model.
        weights: Shares from 0 to 1. NaN is no such cell: a masked key, or a head that is not there.
        rows: What each query is called: a token or a role.
        columns: What each key is called.
        error: Standard error of each weight, or None if unknown.
        title: A line above the picture.
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
        self._check_numbers()

    def _check_numbers(self) -> None:
        found = self.weights[~np.isnan(self.weights)]
        if found.size and not (found.min() >= -_TOLERANCE and found.max() <= 1 + _TOLERANCE):
            raise FigureError(
                f"attention is a share from 0 to 1, but weights run from {found.min():.4g} to "
                f"{found.max():.4g}: give attention after the softmax"
            )
        if self.error is None:
            return
        if np.shape(self.error) != np.shape(self.weights):
            raise FigureError(
                f"error has shape {np.shape(self.error)} but weights {np.shape(self.weights)}: "
                "give one standard error for each weight, or None"
            )
        known = self.error[~np.isnan(self.error)]
        if known.size and not (known.min() >= 0 and np.isfinite(known.max())):
            raise FigureError(
                f"standard errors run from {known.min():.4g} to {known.max():.4g}: "
                "give finite numbers that are not negative, or NaN where unknown"
            )

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return self.weights.shape[0]

    @property
    def heads(self) -> int:
        """How many heads a layer has."""
        return self.weights.shape[1]

    def __repr__(self) -> str:
        return (
            f"HeadMaps({self.model!r}, {self.layers} layers x {self.heads} heads, "
            f"{len(self.rows)} queries x {len(self.columns)} keys)"
        )
