"""Geometry of the states at one site: dimension, distances, decodability, variance of factors."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from probes.errors import BatchError
from probes.interventions.interchange import InterchangeRuns
from probes.interventions.result import DecodingResult, IntrinsicDimension
from probes.models.double_precision import to_double
from probes.models.site import Site
from probes.prompts.interchange_pairs import OPERATION
from probes.prompts.question import Question
from probes.stats.null_threshold import conformal_threshold

FACTORS = ("operation", "x", "y", "thing", "name", "verb", "template")
"""Factors of a prompt."""

_FOLDS, _SHUFFLES = 5, 40
_SCALE_TOLERANCE = 1e-6
# TwoNN omits the tenth of points with the largest ratios, as in the paper.
_KEPT_FRACTION, _MIN_STATES = 0.9, 10


def off_manifold_distance(
    natural: Float[Tensor, "row d_model"],
    patched: Float[Tensor, "patched d_model"],
    *,
    n_neighbors: int = 5,
) -> Float[Tensor, " patched"]:
    """Distance of patched states from natural ones, relative to that among natural states.

    The distance of a state is its mean distance to its nearest natural states; the unit is the
    median of that among natural states (leave-one-out). Take natural states from other prompts
    than the patched ones: a slightly moved state would have its origin as a neighbor.

    Raises:
        BatchError: There are no more natural states than neighbors, or half of them coincide.
    """
    if not 1 <= n_neighbors < len(natural):
        raise BatchError(
            f"{len(natural)} natural states cannot give {n_neighbors} neighbors: give more states, "
            "or ask for 1 or more neighbors, fewer than there are states"
        )
    among = _distances(natural, natural).fill_diagonal_(torch.inf)
    unit = _mean_nearest_distance(among, n_neighbors).quantile(0.5)
    if not float(unit) > 0:
        raise BatchError(
            f"Half of the {len(natural)} natural states coincide with {n_neighbors} others, so "
            "their distances are 0: choose a later layer, or drop repeated states"
        )
    distances = _mean_nearest_distance(_distances(patched, natural), n_neighbors)
    return (distances / unit).to(patched)


def intrinsic_dimension(states: Float[Tensor, "row d_model"]) -> IntrinsicDimension:
    """Estimate the dimension of states; give some hundred of them.

    TwoNN (Facco et al. 2017, arXiv:1803.06992): where density is uniform up to the second
    neighbor, the ratio of the two distances has the distribution 1 - ratio^-d, to which d is
    fitted. Above some ten dimensions it is too low. Equal states count once.

    Raises:
        BatchError: Fewer than 10 states are distinct.
    """
    states = to_double(states)
    distinct = states.unique(dim=0)
    if len(distinct) < _MIN_STATES:
        raise BatchError(
            f"{len(distinct)} distinct states of {len(states)} are too few to estimate a "
            f"dimension: give {_MIN_STATES} or more"
        )
    variance = torch.linalg.svdvals(states - states.mean(0)).square()
    participation = variance.sum().square() / variance.square().sum()
    distances = _distances(distinct, distinct).fill_diagonal_(torch.inf)
    first, second = distances.topk(2, largest=False).values.unbind(-1)
    ratio = (second / first).sort().values
    kept = int(_KEPT_FRACTION * len(ratio))
    cumulative = torch.arange(1, kept + 1, device=ratio.device).double() / len(ratio)
    x, y = ratio[:kept].log(), -(1 - cumulative).log()
    slope = (x @ y) / (x @ x) if float(x @ x) > 0 else torch.tensor(torch.inf)
    return IntrinsicDimension(float(participation), float(slope), len(distinct))


def decode_labels(
    states: Float[Tensor, "row d_model"], labels: Int[Tensor, " row"], *, seed: int
) -> DecodingResult:
    """Predict labels of held-out states by a linear classifier, and again with shuffled labels.

    Linear discriminant analysis with equal priors and Ledoit–Wolf (2004) covariance, in five
    stratified folds. Give one row per prompt: rows of one prompt are similar, and would be in
    training and test data.

    Raises:
        BatchError: There is one class, or a class has one row.
    """
    classes, index, count = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2 or int(count.min()) < 2:
        raise BatchError(
            f"{len(classes)} classes of {int(count.min()) if len(count) else 0} rows or more "
            "cannot be decoded: give two or more classes with two or more rows each"
        )
    generator = torch.Generator().manual_seed(seed)
    states, index = states.cpu().double(), index.cpu()
    accuracy = _cross_validated_recall(states, index, generator)
    shuffled = [
        _cross_validated_recall(
            states, index[torch.randperm(len(index), generator=generator)], generator
        )
        for _ in range(_SHUFFLES)
    ]
    threshold = conformal_threshold(shuffled)
    return DecodingResult(accuracy, float(threshold), len(classes))


def _cross_validated_recall(
    states: Tensor, class_index: Tensor, generator: torch.Generator
) -> float:
    fold = _assign_folds(class_index, generator)
    correct = torch.zeros(len(class_index), dtype=torch.double)
    for number in fold.unique().tolist():
        test = fold == number
        predicted = _predict_lda(states[~test], class_index[~test], states[test])
        correct[test] = (predicted == class_index[test]).double()
    return float(_class_means(correct[:, None], class_index).mean())


def _assign_folds(class_index: Tensor, generator: torch.Generator) -> Tensor:
    """Folds of the rows, each class spread evenly in random order."""
    order = torch.randperm(len(class_index), generator=generator)
    order = order[class_index[order].argsort(stable=True)]
    fold = torch.empty_like(class_index)
    fold[order] = torch.arange(len(class_index)) % _FOLDS
    return fold


def _predict_lda(states: Tensor, class_index: Tensor, test_states: Tensor) -> Tensor:
    center, spread = states.mean(0), states.std(0)
    # A floor, so that a dimension of rounding errors is not scaled up.
    scale = spread.clamp(min=max(_SCALE_TOLERANCE * float(spread.max()), 1e-12))
    states, test_states = (states - center) / scale, (test_states - center) / scale
    means = _class_means(states, class_index)
    weights = torch.linalg.solve(_shrunk_covariance(states - means[class_index]), means.T)
    offset = rearrange(means, "label feature -> feature label") * weights
    return (test_states @ weights - offset.sum(0) / 2).argmax(-1)


def _shrunk_covariance(residuals: Tensor) -> Tensor:
    """Ledoit–Wolf (2004) shrinkage of the covariance to a multiple of the identity."""
    count, width = residuals.shape
    covariance = residuals.T @ residuals / count
    size = covariance.trace() / width
    target = size * torch.eye(width, dtype=residuals.dtype)
    spread = (covariance - target).square().sum()
    noise = residuals.square().sum(1).square().mean() - covariance.square().sum()
    weight = (noise / count / spread).clamp(0, 1) if float(spread) > 0 else spread + 1
    # Classes of identical rows have a covariance of 0, which must stay invertible.
    floor = 1e-9 + 1e-9 * size
    identity = torch.eye(width, dtype=residuals.dtype)
    return weight * target + (1 - weight) * covariance + floor * identity


def _class_means(states: Tensor, class_index: Tensor) -> Tensor:
    total = states.new_zeros(int(class_index.max()) + 1, states.shape[1]).index_add(
        0, class_index, states
    )
    return total / class_index.bincount()[:, None]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Matrix products would round small distances to 0.
    return torch.cdist(to_double(a), to_double(b), compute_mode="donot_use_mm_for_euclid_dist")


def _mean_nearest_distance(distances: Tensor, n_neighbors: int) -> Tensor:
    return distances.topk(n_neighbors, largest=False).values.mean(-1)


def variance_fractions(
    runs: InterchangeRuns, sites: Sequence[Site]
) -> dict[str, Float[np.ndarray, " site"]]:
    """Fraction of the states' variance that each of `FACTORS` explains, for bases and sources.

    Omega squared (Hays 1963) summed over dimensions: about 0 for a factor without effect. NaN
    where a base lacks the role. Factors overlap.
    """
    pairs = runs.interchange_pairs.other
    questions = [pair.clean for pair in pairs] + [pair.counterfactual for pair in pairs]
    levels = {factor: _factor_levels(questions, factor) for factor in FACTORS}
    fractions = {factor: np.full(len(sites), np.nan) for factor in FACTORS}
    for n, site in enumerate(sites):
        if not bool(runs.role_masks[site.role].any(-1).all()):
            continue
        states = to_double(torch.cat([runs.states(site), runs.states(site, "other")]))
        for factor, level in levels.items():
            fractions[factor][n] = omega_squared(states, level)
    return fractions


def omega_squared(
    states: Float[Tensor, "row d_model"], levels: Shaped[np.ndarray, " row"]
) -> float:
    """Fraction of variance that a factor explains, corrected for its number of levels (Hays 1963).

    NaN where the factor has one level, or as many as rows.
    """
    names, index = np.unique(levels, return_inverse=True)
    n_rows, n_levels = len(levels), len(names)
    if not 1 < n_levels < n_rows:
        return float("nan")
    centered = states - states.mean(0)
    index = torch.from_numpy(index).to(states.device)
    counts = torch.bincount(index, minlength=n_levels)[:, None]
    sums = torch.zeros(n_levels, states.shape[1], dtype=states.dtype, device=states.device)
    sums.index_add_(0, index, centered)
    total, between = float(centered.square().sum()), float((sums.square() / counts).sum())
    noise = (total - between) / (n_rows - n_levels)
    return (between - (n_levels - 1) * noise) / (total + noise) if total > 0 else 0.0


def _factor_levels(questions: Sequence[Question], factor: str) -> Shaped[np.ndarray, " row"]:
    def level(question: Question) -> str:
        if factor == OPERATION:
            return question.pattern
        if factor == "template":
            return question.template
        slot = "op" if factor == "verb" else factor
        return str(dict(question.slots).get(slot, ""))

    return np.array([level(question) for question in questions])
