"""One rotation, or one linear map, from the states of a model at all its roles to another's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.representations.kernels import permute_within_classes
from probes.comparison.representations.measures import predictivity, procrustes
from probes.comparison.representations.moments import MomentsGrid, grid_moments

A_TO_B, B_TO_A = "predictivity a → b", "predictivity b → a"
MEASURES = ("procrustes", A_TO_B, B_TO_A)


@dataclass(frozen=True, eq=False)
class PooledMeasure:
    """A measure of all roles together, its chance level and floor; the role axis has one place."""

    value: Float[np.ndarray, "1 layer_a layer_b"]
    chance: Float[np.ndarray, "1 layer_a layer_b"]
    chance_high: Float[np.ndarray, "1 layer_a layer_b"]
    other_seed: Float[np.ndarray, "1 layer_a"]


def pooled_measures(
    states: Sequence[Float[np.ndarray, "role _ prompt _"]],
    present: Bool[np.ndarray, "role prompt"],
    keys: Float[np.ndarray, "order prompt"],
) -> dict[str, PooledMeasure]:
    """Measure Procrustes and predictivity for two models, with the floor if a third is given.

    Args:
        states: Those of a, b and, if there is one, of another seed of a.
        there: Which prompts have which role; others are left out.
        keys: One row of numbers for each permutation: prompts are sorted by them, within halves.
    """
    half = np.arange(present.shape[1]) * 2 >= present.shape[1]
    shape = (states[0].shape[1], states[1].shape[1])
    drawn = [_scores(_half_moments(states[:2], present, half, key), shape) for key in (None, *keys)]
    floors = dict.fromkeys(MEASURES, np.full(shape[0], np.nan))
    if len(states) > 2:
        twins = _half_moments((states[0], states[2]), present, half, None)
        found = _scores(twins, (shape[0], states[2].shape[1]), diagonal=True)
        floors = {name: np.diagonal(found[name]).copy() for name in MEASURES}
    done = {}
    for name in MEASURES:
        values = np.stack([scores[name] for scores in drawn])
        high = np.quantile(values[1:], 0.95, axis=0)
        done[name] = PooledMeasure(
            values[:1], values[1:].mean(0)[None], high[None], floors[name][None]
        )
    return done


def _scores(
    halves: tuple[MomentsGrid, MomentsGrid], shape: tuple[int, int], *, diagonal: bool = False
) -> dict[str, np.ndarray]:
    fit, judged = halves
    whole = fit + judged
    found = {name: np.full(shape, np.nan) for name in MEASURES}
    for pair in np.ndindex(*shape):
        if diagonal and pair[0] != pair[1]:
            continue
        found["procrustes"][pair] = procrustes(whole[pair])
        found[A_TO_B][pair] = predictivity(fit[pair], judged[pair])
        found[B_TO_A][pair] = predictivity(fit[pair].swapped, judged[pair].swapped)
    return found


def _half_moments(
    states: Sequence[np.ndarray], present: np.ndarray, half: np.ndarray, key: np.ndarray | None
) -> tuple[MomentsGrid, MomentsGrid]:
    """Sum the rows of both halves, the role means of the first taken off both."""
    rows = [
        [np.concatenate(part, 1) for part in zip(*_role_halves(x, present, half, k), strict=True)]
        for x, k in zip(states, (None, key), strict=True)
    ]
    first, second = (grid_moments(list(rows[0][n]), list(rows[1][n])) for n in range(2))
    return first, second


def _role_halves(
    states: np.ndarray, present: np.ndarray, half: np.ndarray, key: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each role's rows, "layer prompt d_model", of both halves."""
    for role, own in enumerate(present):
        side = half[own].astype(np.int64)
        if not 0 < side.sum() < len(side):
            continue
        rows = states[role][:, own].astype(np.float64)
        if key is not None:
            rows = rows[:, permute_within_classes(side, key[own])]
        mean = rows[:, side == 0].mean(1, keepdims=True)
        yield rows[:, side == 0] - mean, rows[:, side == 1] - mean
