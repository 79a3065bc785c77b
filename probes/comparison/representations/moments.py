"""Two sites compared over any number of rows in one pass, exactly, in a memory that does not grow.

All sums are of products of at most four coordinates, so chunks may come in any order and size,
from any machine, and sums about different shifts still add up exactly.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from itertools import chain
from operator import add

import numpy as np
from jaxtyping import Float

from probes.comparison.representations.row_check import Rows, float_rows
from probes.errors import BatchError


@dataclass(frozen=True, eq=False)
class SiteMoments:
    """The sums of one site; x stands for a row less the shift.

    Attributes:
        count: How many rows were summed.
        shift: What was taken off every row.
        total: Σ x.
        triangle: The upper triangle of Σ x xᵀ, row by row.
        square: Σ ‖x‖².
        tilt: Σ x ‖x‖².
        fourth: Σ ‖x‖⁴.
    """

    count: int
    shift: Float[np.ndarray, " d_x"]
    total: Float[np.ndarray, " d_x"]
    triangle: Float[np.ndarray, " pair"]
    squared_norm: float
    norm_weighted: Float[np.ndarray, " d_x"]
    fourth: float

    @property
    def mean(self) -> Float[np.ndarray, " d_x"]:
        """The mean row, the shift included."""
        return self.shift + self.total / self.count

    @property
    def spread(self) -> float:
        """Σ ‖row - mean‖²; 0 where rows differ by no more than rounding."""
        found = self.squared_norm - float(self.total @ self.total) / self.count
        rounding = 1e-13 * self.squared_norm + 1e-24 * self.count * float(self.mean @ self.mean)
        return found if found > rounding else 0.0

    def product(self) -> Float[np.ndarray, "d_x d_x"]:
        """Return Σ x xᵀ in full."""
        full, upper = np.empty((size := len(self.total), size)), np.triu_indices(size)
        full[upper] = full.T[upper] = self.triangle
        return full

    def self_cross(self) -> "CrossMoments":
        """Return the sums that a site gives with itself."""
        return CrossMoments(self.product(), self.norm_weighted, self.norm_weighted, self.fourth)

    def __add__(self, other: "SiteMoments") -> "SiteMoments":
        _require_same_width(len(self.total), len(other.total))
        other = _recenter_site(other, self.shift)
        return SiteMoments(
            self.count + other.count,
            self.shift,
            self.total + other.total,
            self.triangle + other.triangle,
            self.squared_norm + other.squared_norm,
            self.norm_weighted + other.norm_weighted,
            self.fourth + other.fourth,
        )


@dataclass(frozen=True, eq=False)
class CrossMoments:
    """The sums that need both sites.

    Attributes:
        product: Σ x yᵀ.
        x_tilt, y_tilt: Σ x ‖y‖² and Σ y ‖x‖².
        fourth: Σ ‖x‖² ‖y‖².
    """

    product: Float[np.ndarray, "d_x d_y"]
    x_norm_weighted: Float[np.ndarray, " d_x"]
    y_norm_weighted: Float[np.ndarray, " d_y"]
    fourth: float

    def __add__(self, other: "CrossMoments") -> "CrossMoments":
        return CrossMoments(
            self.product + other.product,
            self.x_norm_weighted + other.x_norm_weighted,
            self.y_norm_weighted + other.y_norm_weighted,
            self.fourth + other.fourth,
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """All that comparisons of two sites need of the rows; add those of several chunks."""

    x: SiteMoments
    y: SiteMoments
    cross: CrossMoments

    @property
    def count(self) -> int:
        """How many rows were summed."""
        return self.x.count

    @property
    def bytes(self) -> int:
        """How much memory the sums take: 9.5 MB for two sites of 768 dimensions."""
        return sum(map(_bytes, (self.x, self.y, self.cross)))

    @property
    def swapped(self) -> "Moments":
        """The same rows, x for y."""
        c = self.cross
        return Moments(
            self.y,
            self.x,
            CrossMoments(c.product.T, c.y_norm_weighted, c.x_norm_weighted, c.fourth),
        )

    def recenter(
        self, x_shift: Float[np.ndarray, " d_x"], y_shift: Float[np.ndarray, " d_y"]
    ) -> "Moments":
        """Return the sums that the same rows give about other shifts."""
        return Moments(
            _recenter_site(self.x, x_shift),
            _recenter_site(self.y, y_shift),
            _recenter_cross(self.cross, self.x, self.y, (x_shift, y_shift)),
        )

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.x + other.x, self.y + other.y, self._add_cross(other))

    def _add_cross(self, other: "Moments") -> CrossMoments:
        _require_same_width(self.cross.product.shape, other.cross.product.shape)
        shifts = (self.x.shift, self.y.shift)
        return self.cross + _recenter_cross(other.cross, other.x, other.y, shifts)


@dataclass(frozen=True, eq=False)
class MomentsGrid:
    """The sums of many sites against many; those of a site alone are kept once, not per pair."""

    x: tuple[SiteMoments, ...]
    y: tuple[SiteMoments, ...]
    cross: tuple[tuple[CrossMoments, ...], ...]

    @property
    def bytes(self) -> int:
        """How much memory the sums take."""
        return sum(map(_bytes, (*self.x, *self.y, *chain(*self.cross))))

    def __getitem__(self, pair: tuple[int, int]) -> Moments:
        a, b = pair
        return Moments(self.x[a], self.y[b], self.cross[a][b])

    def __add__(self, other: "MomentsGrid") -> "MomentsGrid":
        _require_same_width((len(self.x), len(self.y)), (len(other.x), len(other.y)))
        cross = [
            tuple(self[a, b]._add_cross(other[a, b]) for b in range(len(self.y)))
            for a in range(len(self.x))
        ]
        x, y = (tuple(map(add, *sides)) for sides in ((self.x, other.x), (self.y, other.y)))
        return MomentsGrid(x, y, tuple(cross))


def moments(
    x: Rows,
    y: Rows,
    *,
    shift: tuple[Float[np.ndarray, " d_x"], Float[np.ndarray, " d_y"]] | None = None,
) -> Moments:
    """Sum the rows of two sites.

    Args:
        x, y: Row i of both is the same token or prompt; widths may differ.
        shift: What to take off the rows of x and of y so that large means cost no precision; the
            means of these rows by default. Give all chunks those of the first: then nothing need
            be moved when they are added. The result is the same.

    Raises:
        BatchError: No row, unequal numbers of rows, or a value that is not finite.
    """
    shifts = ([shift[0]], [shift[1]]) if shift else None
    return grid_moments([x], [y], shifts=shifts)[0, 0]


def grid_moments(
    xs: Sequence[Rows],
    ys: Sequence[Rows],
    *,
    shifts: tuple[Sequence[np.ndarray | None], Sequence[np.ndarray | None]] | None = None,
) -> MomentsGrid:
    """Sum the rows of all pairs of sites; arguments and errors as in `moments`, site by site."""
    a_shifts, b_shifts = shifts or ([None] * len(xs), [None] * len(ys))
    a, b = _center_rows(xs, a_shifts, "x"), _center_rows(ys, b_shifts, "y")
    counts = {len(rows) for rows, _ in (*a, *b)}
    if len(counts) != 1:
        found = f"The sites have {sorted(counts)} rows"
        raise BatchError(f"{found}: give every site the same tokens or prompts, one row each")
    own = [tuple(_site_moments(*site) for site in side) for side in (a, b)]
    return MomentsGrid(
        own[0], own[1], tuple(tuple(_cross_moments(x, y) for y, _ in b) for x, _ in a)
    )


def stream(chunks: Iterable[tuple[Rows, Rows]]) -> Moments:
    """Sum the rows of two sites chunk by chunk, about the means of the first chunk.

    Raises:
        BatchError: There is no chunk; else as in `moments`.
    """
    every = iter(chunks)
    if (first := next(every, None)) is None:
        raise BatchError("There is no chunk to sum: give at least one pair of arrays of rows")
    start = moments(*first)
    shift = (start.x.shift, start.y.shift)
    return reduce(add, (moments(*chunk, shift=shift) for chunk in every), start)


def _site_moments(rows: np.ndarray, shift: np.ndarray) -> SiteMoments:
    cross = _cross_moments(rows, rows)
    upper, square = cross.product[np.triu_indices(rows.shape[1])], float(_squares(rows).sum())
    return SiteMoments(
        len(rows), shift, rows.sum(0), upper, square, cross.x_norm_weighted, cross.fourth
    )


def _cross_moments(x: np.ndarray, y: np.ndarray) -> CrossMoments:
    p, q = _squares(x), _squares(y)
    return CrossMoments(x.T @ y, x.T @ q, y.T @ p, float(p @ q))


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.einsum("rd,rd->r", rows, rows)


def _bytes(part: SiteMoments | CrossMoments) -> int:
    return sum(np.asarray(getattr(part, field.name)).nbytes for field in fields(part))


def _center_rows(
    sites: Sequence[Rows], shifts: Sequence[np.ndarray | None], side: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return rows in double precision less their shift, and the shift."""
    done = []
    for n, (given, shift) in enumerate(zip(sites, shifts, strict=True)):
        rows = float_rows(given, f"{side} {n}")
        shift = rows.mean(0) if shift is None else np.asarray(shift, dtype=np.float64)
        _require_same_width(rows.shape[1:], shift.shape)
        done.append((rows - shift, shift))
    return done


def _recenter_site(own: SiteMoments, shift: np.ndarray) -> SiteMoments:
    if np.array_equal(own.shift, shift):
        return own
    moved = _recenter_cross(own.self_cross(), own, own, (shift, shift))
    gap = own.shift - shift
    return replace(
        own,
        shift=shift,
        total=own.total + own.count * gap,
        triangle=moved.product[np.triu_indices(len(gap))],
        squared_norm=_recenter_square(own, gap),
        norm_weighted=moved.x_norm_weighted,
        fourth=moved.fourth,
    )


def _recenter_square(own: SiteMoments, gap: np.ndarray) -> float:
    return float(own.squared_norm + 2 * own.total @ gap + own.count * gap @ gap)


def _recenter_cross(
    cross: CrossMoments, x: SiteMoments, y: SiteMoments, shifts: tuple[np.ndarray, np.ndarray]
) -> CrossMoments:
    """Write out Σ (x + p) (y + q)ᵀ and its like, where the sums of x and y are known."""
    p, q = x.shift - shifts[0], y.shift - shifts[1]
    if not (p.any() or q.any()):
        return cross
    c, n, pp, qq = cross.product, x.count, float(p @ p), float(q @ q)
    x_square, y_square = _recenter_square(x, p), _recenter_square(y, q)
    return CrossMoments(
        product=c + np.outer(x.total + n * p, q) + np.outer(p, y.total),
        x_norm_weighted=cross.x_norm_weighted + 2 * c @ q + x.total * qq + p * y_square,
        y_norm_weighted=cross.y_norm_weighted + 2 * c.T @ p + y.total * pp + q * x_square,
        fourth=float(
            cross.fourth
            + 2 * cross.y_norm_weighted @ q
            + 2 * cross.x_norm_weighted @ p
            + 4 * p @ c @ q
            + qq * (x.squared_norm + 2 * x.total @ p)
            + pp * y_square
        ),
    )


def _require_same_width(a: object, b: object) -> None:
    if a != b:
        raise BatchError(f"Sums of unlike sites: {a} and {b} found. Give every chunk equal widths.")
