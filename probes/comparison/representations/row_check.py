"""Rows of numbers as comparisons take them: of numpy or torch, of any float format."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from probes.errors import BatchError

Rows = Float[np.ndarray, "_ _"] | Float[Tensor, "_ _"]
"""One row a token or prompt."""


def float_rows(rows: Rows, name: str) -> Float[np.ndarray, "row _"]:
    """Return rows in double precision; refuse none at all, and values that are not finite."""
    if isinstance(rows, Tensor):
        rows = rows.detach().cpu().double().numpy()
    found = rows.astype(np.float64)
    if found.size == 0:
        raise BatchError(f"Site {name} has {found.shape[0]} rows of {found.shape[1]}: give some")
    if not np.isfinite(found).all():
        row, column = np.argwhere(~np.isfinite(found))[0]
        raise BatchError(
            f"Site {name} is not finite: {found[row, column]} found in row {row}, dimension "
            f"{column}. Run the model with a wider dtype, or leave the row out of all sites."
        )
    return found
