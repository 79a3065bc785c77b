"""What breaks first, the mechanism or the accuracy, and is it more than plain noise would break?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.rate_distortion.mechanism import Turned
from probes.stats.intervals import Estimate, draws, interval, share
from probes.stats.paired import paired

Word = Literal["mechanism first", "accuracy first", "together", "neither", "cannot tell"]
NoiseWord = Literal["worse than noise", "better than noise", "like noise", "cannot tell"]

MARGIN = 0.05
"""How far two shares may differ and still count as the same."""

FEWEST = 20
"""So many items must be solved by both models, or nothing is said of their mechanism."""

_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Order:
    """What a relative lost of its parent's mechanism, beside what it lost of its accuracy.

    Attributes:
        items: On how many items the mechanism is judged: parent and relative answer base and
            source rightly when nothing is put in. Else a crossing would fail with the answer.
        mechanism: The parent's share of crossings that turn as foretold less the relative's, on
            these items, as a mean over the variables.
        accuracy: The parent's share of bases with all answers right less the relative's, on all.
        lead: `mechanism` less `accuracy`, both drawn from the same items anew.
        word: "neither" where both losses surely stay below 0.05; else "together" where the lead
            surely lies within 0.05 of 0; else which is surely the greater, or "cannot tell". Of
            fewer than 73 items the first two are never said.
    """

    items: int
    mechanism: Estimate
    accuracy: Estimate
    lead: Estimate
    word: Word


def order_of(parent: Turned, relative: Turned, *, seed: int) -> Order | None:
    """Say what broke first; None where too few items are solved by both."""
    both = parent.solved & relative.solved
    if both.sum() < FEWEST:
        return None
    weights = draws(len(both), _DRAWS, seed=seed)
    lost = _over(parent.each - relative.each, both, weights)
    missed = parent.right.astype(float) - relative.right
    wrong = _over(missed, np.ones_like(both), weights)
    mechanism, items = _estimate(lost), int(both.sum())
    accuracy = paired(relative.right, parent.right).difference
    lead = interval(float(lost[0] - wrong[0]), lost[1:] - wrong[1:])
    word: Word = "cannot tell"
    if _enough(items) and max(mechanism.high, accuracy.high) < MARGIN:
        word = "neither"
    elif _within(lead, items):
        word = "together"
    elif lead.low > 0:
        word = "mechanism first"
    elif lead.high < 0:
        word = "accuracy first"
    return Order(items, mechanism, accuracy, lead, word)


@dataclass(frozen=True, slots=True)
class Noise:
    """A relative beside copies of its parent with plain noise, as far from the parent in KL.

    Attributes:
        scales: The noise of each copy, in standard deviations of each matrix.
        kl: Its KL (bits per read-out).
        right: Its share of bases with all answers right.
        mechanism: Its share of crossings that turn as foretold, on the items that the parent and
            the copy solve, as a mean over the variables; NaN where these are too few.
        circuit: What its parent's circuit keeps of the lead in it; NaN if unknown.
        difference: The relative's mechanism less the copies', on items that parent, relative and
            copy solve; items and copies are drawn anew together.
        accuracy: The relative's share of bases with all answers right less the copies'.
        word: "worse than noise", "better than noise", "like noise" (the difference surely lies
            within 0.05 of 0) or "cannot tell".
    """

    scales: tuple[float, ...]
    kl: tuple[float, ...]
    right: tuple[float, ...]
    mechanism: tuple[float, ...]
    circuit: tuple[float, ...]
    difference: Estimate
    accuracy: Estimate
    word: NoiseWord


@dataclass(frozen=True, eq=False)
class Copy:
    """A copy with noise, and what was measured of it."""

    scale: float
    kl: float
    turned: Turned
    circuit: float = float("nan")


def beside_noise(
    parent: Turned, relative: Turned, copies: Sequence[Copy], *, seed: int
) -> Noise | None:
    """Compare a relative with copies of its parent that are as far away; None without any."""
    if not copies:
        return None
    weights = draws(len(parent.right), _DRAWS, seed=seed)
    shared = [parent.solved & relative.solved & one.turned.solved for one in copies]
    enough = [n for n, items in enumerate(shared) if items.sum() >= FEWEST]
    gaps = [_over(relative.each - copies[n].turned.each, shared[n], weights) for n in enough]
    every = np.ones_like(parent.right)
    wrong = [_over(relative.right * 1.0 - one.turned.right, every, weights) for one in copies]
    difference = _pooled(gaps, seed)
    least = min((int(shared[n].sum()) for n in enough), default=0)
    return Noise(
        scales=tuple(one.scale for one in copies),
        kl=tuple(one.kl for one in copies),
        right=tuple(float(one.turned.right.mean()) for one in copies),
        mechanism=tuple(_kept(parent, one.turned) for one in copies),
        circuit=tuple(one.circuit for one in copies),
        difference=difference,
        accuracy=_pooled(wrong, seed),
        word=_noise_word(difference, least),
    )


def kept(parent: Turned, relative: Turned, *, seed: int) -> Estimate:
    """Return the share of crossings that turn as foretold, on items that both solve."""
    both = parent.solved & relative.solved
    if both.sum() < FEWEST:
        return UNKNOWN
    return _estimate(_over(relative.each, both, draws(len(both), _DRAWS, seed=seed)))


UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))
"""What could not be measured."""


def _kept(parent: Turned, copy: Turned) -> float:
    both = parent.solved & copy.solved
    return float(copy.each[both].mean()) if both.sum() >= FEWEST else float("nan")


def _over(
    values: Float[np.ndarray, " prompt"],
    items: Bool[np.ndarray, " prompt"],
    weights: Float[np.ndarray, "draw prompt"],
) -> Float[np.ndarray, " _"]:
    """Return the mean over some items, and after it that of each draw."""
    found = (weights @ (values * items)) / np.maximum(weights @ items.astype(float), 1)
    return np.concatenate([[values[items].mean()], found])


def _estimate(found: Float[np.ndarray, " _"]) -> Estimate:
    return interval(float(found[0]), found[1:])


def _pooled(found: Sequence[Float[np.ndarray, " _"]], seed: int) -> Estimate:
    """Return the mean over copies; a draw takes copies anew as well as items."""
    if not found:
        return UNKNOWN
    table = np.stack(found, 1)
    picks = draws(table.shape[1], len(table) - 1, seed=seed + 1) / table.shape[1]
    return interval(float(table[0].mean()), (table[1:] * picks).sum(1))


def _enough(items: int) -> bool:
    """Say whether so many items without a change rule out a change as large as the margin."""
    return share(np.zeros(items, bool)).high < MARGIN


def _within(found: Estimate, items: int) -> bool:
    return _enough(items) and found.low > -MARGIN and found.high < MARGIN


def _noise_word(found: Estimate, items: int) -> NoiseWord:
    if _within(found, items):
        return "like noise"
    if found.high < 0:
        return "worse than noise"
    return "better than noise" if found.low > 0 else "cannot tell"
