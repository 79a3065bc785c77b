"""Matrices over pairs of prompts whose inner products say how alike two sites are.

states → products of all pairs → centered without bias → inner products, permuted for chance

As long as prompts are few, this does what `streaming` does for many rows, and permutations cost
next to nothing: the rows and columns of a centered matrix are exchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student

from probes.comparison.representations.anchors import ranked_distances

# As a share of a state's length: what single precision cannot tell from nought.
_CONSTANT_TOLERANCE = 1e-5
_JACKKNIFE_BLOCKS = 20


def gram_matrices(
    states: Float[np.ndarray, "layer prompt d_model"], classes: Int[np.ndarray, " prompt"]
) -> Float[np.ndarray, "layer prompt prompt"]:
    """Return the inner products of all pairs of states; 0 where they are alike in every class."""
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
    """Return the ranks of the distances between states, centered; 0 where they are alike."""
    return np.nan_to_num(np.stack([ranked_distances(rows) for rows in states]))


def center_pairs(
    pairs: Float[np.ndarray, "layer prompt prompt"], classes: Int[np.ndarray, " prompt"]
) -> Float[np.ndarray, "layer prompt prompt"]:
    """Take the mean over all pairs of different prompts off; `classes` are not heeded."""
    n = pairs.shape[1]
    mean = (pairs.sum((1, 2)) - np.trace(pairs, axis1=1, axis2=2)) / (n * (n - 1))
    return (pairs - mean[:, None, None]) * (1 - np.eye(n))


def center_within_classes(
    pairs: Float[np.ndarray, "layer prompt prompt"], classes: Int[np.ndarray, " prompt"]
) -> Float[np.ndarray, "layer prompt prompt"]:
    """Center products within classes, so that inner products estimate HSIC without bias.

    The inner product of two such matrices estimates ‖mean over classes of the covariance within
    a class‖²: what two sites share that their class does not tell. With one class it is HSIC₁ of
    Song et al. (2012), by the centering of Székely & Rizzo (2014). Products of two classes'
    covariances are unbiased as they stand, as different prompts stand in them; a class's product
    with itself is HSIC₁ of its prompts, and left out where they are fewer than 4. A prompt that is
    alone in its class tells nothing.
    """
    # Taking off class means that were fitted on other prompts would not do: both sites would keep
    # their errors, which are functions of one and the same class, and so resemble each other.
    member = _class_indicators(classes)
    count = member @ member.sum(0)
    same = classes[:, None] == classes
    share = 1 / max(1, int((count > 1).sum()))
    found = np.zeros_like(pairs)
    if not same.all():
        mean = member / np.maximum(member.sum(0), 1)
        middle = member @ (mean.T @ pairs)
        found = pairs - middle - middle.swapaxes(1, 2) + (middle @ mean) @ member.T
        scale = np.sqrt(share * count / np.maximum(count - 1, 1)) * (count > 1)
        found *= np.where(same, 0, scale[:, None] * scale)
    large = count > 3
    inside = same & ~np.eye(len(classes), dtype=bool) & large[:, None]
    hollow = pairs * inside
    n = np.where(large, count, 4)
    rows = hollow.sum(2)
    total = (rows @ member) @ member.T / ((n - 1) * (n - 2))
    rows = rows / (n - 2)
    hollow += total[:, :, None] - rows[:, :, None] - rows[:, None, :]
    hollow *= inside * (share * n / np.sqrt(n * (n - 3)))[:, None]
    return found + hollow


def _class_indicators(classes: Int[np.ndarray, " prompt"]) -> Float[np.ndarray, "prompt class"]:
    numbers, place = np.unique(classes, return_inverse=True)
    return np.eye(len(numbers))[place]


def inner_products(
    a: Float[np.ndarray, "layer_a prompt prompt"],
    b: Float[np.ndarray, "layer_b prompt prompt"],
    orders: Sequence[Int[np.ndarray, " prompt"]],
) -> Float[np.ndarray, "order layer_a layer_b"]:
    """Return the inner products of all pairs of matrices, b's prompts reordered in each way."""
    flat = a.reshape(len(a), -1)
    found = [flat @ b[:, order[:, None], order].reshape(len(b), -1).T for order in orders]
    return np.stack(found)


def permute_within_classes(
    classes: Int[np.ndarray, " prompt"], keys: Float[np.ndarray, " prompt"]
) -> Int[np.ndarray, " prompt"]:
    """Return an order of prompts in which each stands in for one of its class, by drawn keys."""
    order = np.empty(len(classes), dtype=np.int64)
    # Sorted by class, once in the given order and once in the drawn one: the same places.
    order[np.argsort(classes, kind="stable")] = np.lexsort((keys, classes))
    return order


@dataclass(frozen=True, eq=False)
class RoleKernels:
    """Matrices over pairs of prompts of two models, role by role, not yet centered."""

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
        """Read the states of both models, "role layer prompt d_model"."""
        found: list[list[np.ndarray]] = [[], []]
        for side, own_states in zip(found, states, strict=True):
            for rows, own, number in zip(own_states, present, classes, strict=True):
                some = rows[:, own]
                side.append(rank_matrices(some) if kind == "rsa" else gram_matrices(some, number))
        return cls(kind, tuple(found[0]), tuple(found[1]), tuple(classes), present)

    def similarities(
        self, keys: Float[np.ndarray, "order prompt"]
    ) -> Float[np.ndarray, "_ _ layer_a layer_b"]:
        """Return how alike layers are, as the prompts are and by each way of permuting them.

        Last comes the mean over the roles at which both layers vary: the states of some roles are
        far longer than those of others, and would decide a ratio of sums alone.
        """
        level = center_pairs if self.kind == "rsa" else center_within_classes
        done = []
        for own, one, other, classes in zip(
            self.present, self.a, self.b, self.classes, strict=True
        ):
            a, b = level(one, classes), level(other, classes)
            as_is = np.arange(len(classes))
            both = inner_products(
                a, b, [as_is, *(permute_within_classes(classes, key[own]) for key in keys)]
            )
            sizes = [np.square(side).sum((1, 2)) for side in (a, b)]
            under = np.sqrt(np.outer(*sizes))
            nought = np.full_like(both, np.nan)
            done.append(np.divide(both, under, out=nought, where=under > 0))
        each = np.stack(done)
        known = ~np.isnan(each)
        mean = np.nansum(each, 0) / np.where(known.any(0), known.sum(0), np.nan)
        return np.concatenate([each, mean[None]])

    def jackknife(self, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a 95 % interval from leaving out one block of neighboring prompts at a time."""
        blocks = np.array_split(np.arange(self.present.shape[1]), _JACKKNIFE_BLOCKS)
        blocks = [block for block in blocks if len(block)]
        drawn = np.stack(
            [self._without(block).similarities(np.empty((0, 0)))[:, 0] for block in blocks]
        )
        count = len(blocks)
        error = np.sqrt((count - 1) * drawn.var(0))
        reach = float(student.ppf(0.975, count - 1)) * error
        return np.maximum(value - reach, -1), np.minimum(value + reach, 1)

    def _without(self, block: np.ndarray) -> "RoleKernels":
        rest = np.ones(self.present.shape[1], dtype=bool)
        rest[block] = False
        kept = [rest[own] for own in self.present]
        cut = [
            tuple(pairs[:, keep][:, :, keep] for pairs, keep in zip(side, kept, strict=True))
            for side in (self.a, self.b)
        ]
        # Classes are numbered as before; some may be empty now.
        classes = tuple(c[keep] for c, keep in zip(self.classes, kept, strict=True))
        return replace(self, a=cut[0], b=cut[1], classes=classes, present=self.present[:, rest])
