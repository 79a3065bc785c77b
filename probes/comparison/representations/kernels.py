"""Kernel matrices over pairs of prompts; their inner products give CKA and RSA.

A permutation of prompts only reorders rows and columns of a centered matrix, so the null is cheap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata
from scipy.stats import t as student

from probes.comparison.representations.moments import Rows, float_rows

# Fractions of the longest state and of the largest distance that single precision cannot resolve.
_CONSTANT_TOLERANCE = 1e-5
_TIE_TOLERANCE = 1e-5
_JACKKNIFE_BLOCKS = 20


def gram_matrices(
    states: Float[np.ndarray, "layer prompt d_model"], classes: Int[np.ndarray, " prompt"]
) -> Float[np.ndarray, "layer prompt prompt"]:
    """Inner products of all pairs of centered states; 0 where states are constant in each class."""
    states = states.astype(np.float64)
    member = _class_indicators(classes)
    within = states - member @ ((member / member.sum(0)).T @ states)
    spread, length = np.square(within).sum((1, 2)), np.square(states).sum((1, 2))
    states -= states.mean(1, keepdims=True)
    states[spread <= _CONSTANT_TOLERANCE**2 * length] = 0
    return states @ states.swapaxes(1, 2)


def rank_matrices(
    states: Float[np.ndarray, "layer prompt d_model"],
) -> Float[np.ndarray, "layer prompt prompt"]:
    """`ranked_distances` of each layer; 0 where its states are constant."""
    return np.nan_to_num(np.stack([ranked_distances(rows) for rows in states]))


def ranked_distances(rows: Rows) -> Float[np.ndarray, "row row"]:
    """Ranks of the Euclidean distances between rows, centered, with Frobenius norm 1.

    The sum of the elementwise product of two such matrices is Spearman's correlation (RSA,
    Kriegeskorte et al. 2008). Distances that differ by less than 1e-5 of the largest are ties. The
    diagonal is 0. All values are NaN where the rows do not differ.
    """
    rows = float_rows(rows, "The site")
    distances = pdist(rows)
    largest = float(distances.max(initial=0))
    if largest <= _TIE_TOLERANCE * float(np.linalg.norm(rows, axis=1).max()):
        return np.full((len(rows), len(rows)), np.nan)
    ranks = rankdata(np.round(distances / (_TIE_TOLERANCE * largest)))
    ranks -= ranks.mean()
    norm = float(np.linalg.norm(ranks))
    # √2, because every pair occurs on both sides of the diagonal.
    return squareform(ranks / (norm * np.sqrt(2)) if norm else np.full_like(ranks, np.nan))


def center_pairs(
    pairs: Float[np.ndarray, "layer prompt prompt"],
) -> Float[np.ndarray, "layer prompt prompt"]:
    """Subtract the mean over all pairs of different prompts; the diagonal becomes 0."""
    n = pairs.shape[1]
    mean = (pairs.sum((1, 2)) - np.trace(pairs, axis1=1, axis2=2)) / (n * (n - 1))
    return (pairs - mean[:, None, None]) * (1 - np.eye(n))


def center_within_classes(
    pairs: Float[np.ndarray, "layer prompt prompt"], classes: Int[np.ndarray, " prompt"]
) -> Float[np.ndarray, "layer prompt prompt"]:
    """Center inner products within classes, so that inner products estimate HSIC without bias.

    The inner product of two such matrices estimates ‖mean over classes of the covariance within a
    class‖²: what two sites share beyond the class. With one class this is the unbiased HSIC of
    Song et al. (2012), with the centering of Székely & Rizzo (2014). The product of the covariances
    of two classes is unbiased without correction, because the classes have no prompt in common. A
    class with itself contributes its unbiased HSIC, or nothing below 4 prompts. A class of one
    prompt contributes nothing.
    """
    # Subtracting class means fitted on other prompts would add the same errors to both sites.
    member = _class_indicators(classes)
    class_size = member @ member.sum(0)
    same_class = classes[:, None] == classes
    weight = 1 / max(1, int((class_size > 1).sum()))
    centered = np.zeros_like(pairs)
    if not same_class.all():
        mean = member / np.maximum(member.sum(0), 1)
        row_means = member @ (mean.T @ pairs)
        centered = (
            pairs - row_means - row_means.swapaxes(1, 2) + (row_means @ mean) @ member.T
        )  # fmt: skip
        scale = np.sqrt(weight * class_size / np.maximum(class_size - 1, 1)) * (class_size > 1)
        centered *= np.where(same_class, 0, scale[:, None] * scale)
    large = class_size > 3
    inside = same_class & ~np.eye(len(classes), dtype=bool) & large[:, None]
    hollow = pairs * inside
    n = np.where(large, class_size, 4)
    rows = hollow.sum(2)
    total = (rows @ member) @ member.T / ((n - 1) * (n - 2))
    rows = rows / (n - 2)
    hollow += total[:, :, None] - rows[:, :, None] - rows[:, None, :]
    hollow *= inside * (weight * n / np.sqrt(n * (n - 3)))[:, None]
    return centered + hollow


def _class_indicators(classes: Int[np.ndarray, " prompt"]) -> Float[np.ndarray, "prompt class"]:
    numbers, index = np.unique(classes, return_inverse=True)
    return np.eye(len(numbers))[index]


def inner_products(
    a: Float[np.ndarray, "layer_a prompt prompt"],
    b: Float[np.ndarray, "layer_b prompt prompt"],
    orders: Sequence[Int[np.ndarray, " prompt"]],
) -> Float[np.ndarray, "order layer_a layer_b"]:
    """Inner products of all pairs of matrices, with the prompts of b in each order."""
    flat = a.reshape(len(a), -1)
    return np.stack([flat @ b[:, order[:, None], order].reshape(len(b), -1).T for order in orders])


def permute_within_classes(
    classes: Int[np.ndarray, " prompt"], keys: Float[np.ndarray, " prompt"]
) -> Int[np.ndarray, " prompt"]:
    """Order of prompts that sorts each class by `keys` and leaves every class in its places."""
    order = np.empty(len(classes), dtype=np.int64)
    order[np.argsort(classes, kind="stable")] = np.lexsort((keys, classes))
    return order


@dataclass(frozen=True, eq=False)
class RoleKernels:
    """Kernel matrices of two models for each role, before centering.

    Attributes:
        kind: "rsa" for ranked distances, anything else for inner products.
        a, b: For each role, "layer prompt prompt" over the prompts that have the role.
        classes: For each role the class of these prompts.
        present: Which prompts have which role, "role prompt".
    """

    kind: str
    a: tuple[np.ndarray, ...]
    b: tuple[np.ndarray, ...]
    classes: tuple[np.ndarray, ...]
    present: np.ndarray

    @classmethod
    def of(
        cls,
        kind: str,
        states: tuple[np.ndarray, np.ndarray],
        classes: Sequence[np.ndarray],
        present: np.ndarray,
    ) -> "RoleKernels":
        """Compute the matrices from the states of both models, "role layer prompt d_model"."""
        a, b = (
            tuple(
                rank_matrices(rows[:, has_role])
                if kind == "rsa"
                else gram_matrices(rows[:, has_role], of_role)
                for rows, has_role, of_role in zip(side, present, classes, strict=True)
            )
            for side in states
        )
        return cls(kind, a, b, tuple(classes), present)

    def similarities(
        self, keys: Float[np.ndarray, "order prompt"]
    ) -> Float[np.ndarray, "_ _ layer_a layer_b"]:
        """Similarity for each role, and for the given order of prompts and each permutation.

        The last role is the mean over the roles at which both layers vary. A ratio of sums would be
        dominated by roles with long states.
        """
        by_role = []
        for has_role, a, b, classes in zip(self.present, self.a, self.b, self.classes, strict=True):
            if self.kind == "rsa":
                a, b = center_pairs(a), center_pairs(b)
            else:
                a, b = center_within_classes(a, classes), center_within_classes(b, classes)
            permuted = [permute_within_classes(classes, key[has_role]) for key in keys]
            products = inner_products(a, b, [np.arange(len(classes)), *permuted])
            norms = np.sqrt(np.outer(np.square(a).sum((1, 2)), np.square(b).sum((1, 2))))
            undefined = np.full_like(products, np.nan)
            by_role.append(np.divide(products, norms, out=undefined, where=norms > 0))
        values = np.stack(by_role)
        defined = ~np.isnan(values)
        mean = np.nansum(values, 0) / np.where(defined.any(0), defined.sum(0), np.nan)
        return np.concatenate([values, mean[None]])

    def jackknife(self, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval from leaving out one block of neighboring prompts at a time."""
        blocks = np.array_split(np.arange(self.present.shape[1]), _JACKKNIFE_BLOCKS)
        blocks = [block for block in blocks if len(block)]
        no_keys = np.empty((0, 0))
        values = np.stack([self._without(block).similarities(no_keys)[:, 0] for block in blocks])
        count = len(blocks)
        error = np.sqrt((count - 1) * values.var(0))
        margin = float(student.ppf(0.975, count - 1)) * error
        return np.maximum(value - margin, -1), np.minimum(value + margin, 1)

    def _without(self, block: np.ndarray) -> "RoleKernels":
        rest = np.ones(self.present.shape[1], dtype=bool)
        rest[block] = False
        kept = [rest[has_role] for has_role in self.present]
        a, b = (
            tuple(pairs[:, keep][:, :, keep] for pairs, keep in zip(side, kept, strict=True))
            for side in (self.a, self.b)
        )
        classes = tuple(c[keep] for c, keep in zip(self.classes, kept, strict=True))
        return replace(self, a=a, b=b, classes=classes, present=self.present[:, rest])
