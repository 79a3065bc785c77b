"""Sums over tokens from which debiased linear CKA follows exactly, without a matrix of all tokens.

A row x, minus a fixed shift, counts as its features (1, x, ‖x‖²). The sum of φ(x) φ(y)ᵀ over all
rows holds everything that the unbiased HSIC of Song et al. (2012) needs: the number of rows, Σ x,
Σ x yᵀ, and their sums weighted by ‖x‖² and ‖y‖². Another shift is a linear map of the features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from probes.errors import BatchError
from probes.models.files.memory import available_memory

LayerPairs = tuple[tuple[int, int], ...]
"""Layers x and y of each pair."""

# Fraction of the longest state that single precision cannot resolve, as in `kernels`.
_CONSTANT_TOLERANCE = 1e-5
_EXTRA = 2  # Features besides the row itself: 1 and ‖x‖².


def row_features(
    rows: Float[np.ndarray, "layer row d_model"], shift: Float[np.ndarray, "layer d_model"]
) -> Float[np.ndarray, "layer row _"]:
    """Features (1, x, ‖x‖²) of each row minus the shift of its layer, in double precision."""
    layers, count, width = rows.shape
    features = np.empty((layers, count, width + _EXTRA))
    features[..., 0] = 1
    centered = features[..., 1:-1]
    np.subtract(rows, shift[:, None], out=centered)
    features[..., -1] = np.einsum("lrd,lrd->lr", centered, centered)
    return features


@dataclass(frozen=True, eq=False)
class CrossSums:
    """Sums of φ(x) φ(y)ᵀ over the rows of pairs of layers.

    Attributes:
        pairs: Layers x and y of each pair, at least one pair.
        x_shift, y_shift: Vector subtracted from every row of a layer, so that a large mean costs no
            precision.
        products: Σ φ(x) φ(y)ᵀ of each pair, with two more rows and columns than dimensions.
    """

    pairs: LayerPairs
    x_shift: Float[np.ndarray, "layer_x d_x"]
    y_shift: Float[np.ndarray, "layer_y d_y"]
    products: Float[np.ndarray, "pair _ _"]

    @classmethod
    def zeros(cls, pairs: LayerPairs, x_shift: np.ndarray, y_shift: np.ndarray) -> "CrossSums":
        """Sums of no row."""
        size = (len(pairs), x_shift.shape[1] + _EXTRA, y_shift.shape[1] + _EXTRA)
        return cls(pairs, x_shift, y_shift, np.zeros(size))

    @property
    def count(self) -> int:
        """Number of rows."""
        return round(float(self.products[0, 0, 0]))

    def add_rows(
        self, x: Float[np.ndarray, "layer_x row _"], y: Float[np.ndarray, "layer_y row _"]
    ) -> None:
        """Add the features of further rows in place: sums can be too large to copy each time."""
        for at, (layer_x, layer_y) in enumerate(self.pairs):
            self.products[at] += x[layer_x].T @ y[layer_y]

    def recenter(
        self, x_shift: Float[np.ndarray, "layer_x d_x"], y_shift: Float[np.ndarray, "layer_y d_y"]
    ) -> "CrossSums":
        """Sums of the same rows about other shifts."""
        x_gap, y_gap = self.x_shift - x_shift, self.y_shift - y_shift
        if not (x_gap.any() or y_gap.any()):
            return self
        products = np.stack(
            [
                _shift_features(x_gap[i]) @ product @ _shift_features(y_gap[j]).T
                for (i, j), product in zip(self.pairs, self.products, strict=True)
            ]
        )
        return CrossSums(self.pairs, x_shift, y_shift, products)

    def __add__(self, other: "CrossSums") -> "CrossSums":
        if self.pairs != other.pairs or self.products.shape != other.products.shape:
            raise BatchError(
                f"The two sums have {len(self.pairs)} and {len(other.pairs)} pairs of layers, with "
                f"products of shapes {self.products.shape[1:]} and {other.products.shape[1:]}: add "
                "sums of the same pairs of layers"
            )
        other = other.recenter(self.x_shift, self.y_shift)
        products = self.products + other.products
        return CrossSums(self.pairs, self.x_shift, self.y_shift, products)

    def hsic(self, without: "CrossSums | None" = None) -> Float[np.ndarray, " pair"]:
        """Unbiased HSIC of each pair with linear kernels, of all rows or without some of them.

        Equal to the form with Gram matrices of all rows (Song et al. 2012, JMLR 13:1393, eq. 5).
        NaN below 4 rows.

        Args:
            without: Sums of rows to leave out, about the same shifts.
        """
        if without is None:
            return np.array([_hsic(product) for product in self.products])
        # Pair by pair: the difference of all products can be too large for another copy.
        products = zip(self.products, without.products, strict=True)
        return np.array([_hsic(whole - part) for whole, part in products])

    def varies(self) -> Bool[np.ndarray, " pair"]:
        """Whether the rows of x differ by more than rounding; for sums of layers with themselves.

        Single precision rounds each state to a fraction of its length, shift included.
        """
        found = []
        for (layer, _), product in zip(self.pairs, self.products, strict=True):
            total, squares, shift = product[1:-1, 0], product[-1, 0], self.x_shift[layer]
            spread = squares - total @ total / max(self.count, 1)
            length = squares + 2 * total @ shift + self.count * (shift @ shift)
            found.append(spread > _CONSTANT_TOLERANCE**2 * length)
        return np.array(found, dtype=bool)


@dataclass(frozen=True, eq=False)
class TokenSums:
    """Sums of two models over the same tokens: each layer with itself, and pairs of layers.

    Sums of parts add up to those of the whole, in any order and about any shifts.

    Attributes:
        a, b: Each layer of a model with itself.
        ab: Pairs of a layer of a and one of b.
    """

    a: CrossSums
    b: CrossSums
    ab: CrossSums

    @classmethod
    def zeros(cls, pairs: LayerPairs, a_shift: np.ndarray, b_shift: np.ndarray) -> "TokenSums":
        """Sums of no token."""
        return cls(
            CrossSums.zeros(same_layers(len(a_shift)), a_shift, a_shift),
            CrossSums.zeros(same_layers(len(b_shift)), b_shift, b_shift),
            CrossSums.zeros(pairs, a_shift, b_shift),
        )

    @property
    def count(self) -> int:
        """Number of tokens."""
        return self.ab.count

    def add_rows(
        self, a: Float[np.ndarray, "layer_a row _"], b: Float[np.ndarray, "layer_b row _"]
    ) -> None:
        """Add the features of further tokens in place."""
        self.a.add_rows(a, a)
        self.b.add_rows(b, b)
        self.ab.add_rows(a, b)

    def __add__(self, other: "TokenSums") -> "TokenSums":
        return TokenSums(self.a + other.a, self.b + other.b, self.ab + other.ab)

    def cka(
        self, *, without: "TokenSums | None" = None, ab: CrossSums | None = None
    ) -> Float[np.ndarray, " pair"]:
        """Debiased linear CKA of each pair, at most about 1; NaN where a layer is constant.

        HSIC(a, b) / √(HSIC(a, a) · HSIC(b, b)) with the unbiased HSIC (Kornblith et al. 2019,
        arXiv:1905.00414; Song et al. 2012).

        Args:
            without: Sums of tokens to leave out, about the same shifts.
            ab: Other sums of the same pairs of layers, such as those of tokens paired at random.
        """
        own = [
            np.where(side.varies(), side.hsic(part), np.nan)
            for side, part in ((self.a, without and without.a), (self.b, without and without.b))
        ]
        cross = (self.ab if ab is None else ab).hsic(without and without.ab)
        first, second = np.array(self.ab.pairs).T
        norms = own[0][first], own[1][second]
        defined = (norms[0] > 0) & (norms[1] > 0)
        scale = np.sqrt(np.where(defined, norms[0] * norms[1], np.nan))
        return cross / scale


def same_layers(count: int) -> LayerPairs:
    """Pairs of each layer with the layer of the same number."""
    return tuple((layer, layer) for layer in range(count))


def sums_bytes(
    pairs: LayerPairs, shapes: Sequence[tuple[int, int]], *, blocks: int, permutations: int
) -> int:
    """Bytes of the sums of two models, of which each has a number of layers and a width."""
    (layers_a, width_a), (layers_b, width_b) = ((n, width + _EXTRA) for n, width in shapes)
    own = layers_a * width_a**2 + layers_b * width_b**2
    return 8 * (blocks * own + (blocks + permutations) * len(pairs) * width_a * width_b)


def require_room(names: tuple[str, str], pairs: int, size: int) -> None:
    """Refuse sums of so many bytes that do not fit into memory, before a text is read.

    Raises:
        BatchError: They do not fit.
    """
    if size > (free := available_memory()):
        raise BatchError(
            f"The sums of {pairs} pairs of layers of {names[0]} and {names[1]} take "
            f"{size / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free: name fewer pairs of "
            "layers, or set fewer blocks and permutations"
        )


def _shift_features(gap: Float[np.ndarray, " d"]) -> Float[np.ndarray, "_ _"]:
    """Matrix that takes the features of x to those of x + gap."""
    matrix = np.eye(len(gap) + _EXTRA)
    matrix[1:-1, 0] = gap
    matrix[-1, 0] = gap @ gap
    matrix[-1, 1:-1] = 2 * gap
    return matrix


def _hsic(product: Float[np.ndarray, "_ _"]) -> float:
    n = float(product[0, 0])
    if n < 4:
        return float("nan")
    x, y, cross = product[1:-1, 0], product[0, 1:-1], product[1:-1, 1:-1]
    both = product[-1, -1]
    # With K and L the Gram matrices, their diagonals set to 0: tr KL, 1ᵀK1, 1ᵀL1 and 1ᵀKL1.
    trace = np.vdot(cross, cross) - both
    k_total, l_total = x @ x - product[-1, 0], y @ y - product[0, -1]
    mixed = x @ cross @ y - x @ product[1:-1, -1] - y @ product[-1, 1:-1] + both
    bias = k_total * l_total / ((n - 1) * (n - 2)) - 2 * mixed / (n - 2)
    return float((trace + bias) / (n * (n - 3)))
