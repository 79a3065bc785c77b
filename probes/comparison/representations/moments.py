"""Sums over the rows of two sites, which Procrustes similarity and ridge predictivity need."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.errors import BatchError

Rows = Float[np.ndarray, "_ _"]
"""One row per token or prompt."""


@dataclass(frozen=True, eq=False)
class SiteMoments:
    """Sums over the rows x of one site, each row minus `shift`.

    Attributes:
        count: Number of rows.
        shift: Vector subtracted from every row, so that a large mean costs no precision.
        total: Σ x.
        product: Σ x xᵀ.
        squared_norm: Σ ‖x‖².
    """

    count: int
    shift: Float[np.ndarray, " d_x"]
    total: Float[np.ndarray, " d_x"]
    product: Float[np.ndarray, "d_x d_x"]
    squared_norm: float

    @property
    def mean(self) -> Float[np.ndarray, " d_x"]:
        """Mean row, `shift` included."""
        return self.shift + self.total / self.count

    @property
    def spread(self) -> float:
        """Σ ‖row - mean‖²; 0 where rows differ by no more than rounding."""
        spread = self.squared_norm - float(self.total @ self.total) / self.count
        rounding = 1e-13 * self.squared_norm + 1e-24 * self.count * float(self.mean @ self.mean)
        return spread if spread > rounding else 0.0

    def recenter(self, shift: Float[np.ndarray, " d_x"]) -> "SiteMoments":
        """Sums of the same rows about another shift."""
        if np.array_equal(self.shift, shift):
            return self
        gap = self.shift - shift
        upper = np.triu(_recenter_product(self.product, self, self, (shift, shift)))
        return SiteMoments(
            self.count,
            shift,
            self.total + self.count * gap,
            upper + np.triu(upper, 1).T,
            float(self.squared_norm + 2 * self.total @ gap + self.count * gap @ gap),
        )

    def __add__(self, other: "SiteMoments") -> "SiteMoments":
        other = other.recenter(self.shift)
        return SiteMoments(
            self.count + other.count,
            self.shift,
            self.total + other.total,
            self.product + other.product,
            self.squared_norm + other.squared_norm,
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the rows of two sites; `product` is Σ x yᵀ about the shifts of both."""

    x: SiteMoments
    y: SiteMoments
    product: Float[np.ndarray, "d_x d_y"]

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.x.count

    @property
    def covariance(self) -> Float[np.ndarray, "d_x d_y"]:
        """Σ (x - mean) (y - mean)ᵀ."""
        return self.product - np.outer(self.x.total, self.y.total) / self.count

    @property
    def swapped(self) -> "Moments":
        """The same rows with x and y exchanged."""
        return Moments(self.y, self.x, self.product.T)

    def recenter(
        self, x_shift: Float[np.ndarray, " d_x"], y_shift: Float[np.ndarray, " d_y"]
    ) -> "Moments":
        """Sums of the same rows about other shifts."""
        return Moments(
            self.x.recenter(x_shift),
            self.y.recenter(y_shift),
            _recenter_product(self.product, self.x, self.y, (x_shift, y_shift)),
        )

    def __add__(self, other: "Moments") -> "Moments":
        if self.product.shape != other.product.shape:
            raise BatchError(
                f"The two sums have widths {self.product.shape} and {other.product.shape}: add "
                "sums of the same two sites"
            )
        other = other.recenter(self.x.shift, self.y.shift)
        return Moments(self.x + other.x, self.y + other.y, self.product + other.product)


@dataclass(frozen=True, eq=False)
class MomentsGrid:
    """Sums of every site x with every site y; the sums of a single site are stored once."""

    x: tuple[SiteMoments, ...]
    y: tuple[SiteMoments, ...]
    products: tuple[tuple[Float[np.ndarray, "_ _"], ...], ...]

    def __getitem__(self, pair: tuple[int, int]) -> Moments:
        a, b = pair
        return Moments(self.x[a], self.y[b], self.products[a][b])


def grid_moments(xs: Sequence[Rows], ys: Sequence[Rows]) -> MomentsGrid:
    """Sum the rows of all pairs of sites, about the means of each site.

    Args:
        xs, ys: Sites. Row i of each is the same token or prompt; widths may differ.

    Raises:
        BatchError: No row, different numbers of rows, or a value that is not finite.
    """
    x_rows = [float_rows(rows, f"Site x {n}") for n, rows in enumerate(xs)]
    y_rows = [float_rows(rows, f"Site y {n}") for n, rows in enumerate(ys)]
    counts = {len(rows) for rows in (*x_rows, *y_rows)}
    if len(counts) != 1:
        raise BatchError(
            f"The sites have {sorted(counts)} rows: give every site the same tokens or prompts, "
            "one row each"
        )
    x_shifts, y_shifts = ([rows.mean(0) for rows in side] for side in (x_rows, y_rows))
    x_rows = [rows - shift for rows, shift in zip(x_rows, x_shifts, strict=True)]
    y_rows = [rows - shift for rows, shift in zip(y_rows, y_shifts, strict=True)]
    return MomentsGrid(
        tuple(map(_site_moments, x_rows, x_shifts)),
        tuple(map(_site_moments, y_rows, y_shifts)),
        tuple(tuple(x.T @ y for y in y_rows) for x in x_rows),
    )


def float_rows(rows: Rows, site: str) -> Rows:
    """Copy of the rows in double precision; `site` starts the error message.

    Raises:
        BatchError: There is no row, or a value is not finite.
    """
    rows = rows.astype(np.float64)
    if rows.size == 0:
        raise BatchError(f"{site} has {rows.shape[0]} rows of {rows.shape[1]}: give at least one")
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise BatchError(
            f"{site} is not finite: {rows[row, column]} found in row {row}, dimension {column}. "
            "Run the model with a wider dtype, or leave the row out of all sites."
        )
    return rows


def _site_moments(rows: Rows, shift: np.ndarray) -> SiteMoments:
    squares = np.einsum("rd,rd->r", rows, rows)
    return SiteMoments(len(rows), shift, rows.sum(0), rows.T @ rows, float(squares.sum()))


def _recenter_product(
    product: np.ndarray, x: SiteMoments, y: SiteMoments, shifts: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Σ (x + p) (y + q)ᵀ, where p and q are the changes of the shifts."""
    p, q = x.shift - shifts[0], y.shift - shifts[1]
    if not (p.any() or q.any()):
        return product
    return product + np.outer(x.total + x.count * p, q) + np.outer(p, y.total)
