"""The cloud of states at one site: its dimension, its edge, its variance and what it tells."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from probes.errors import BatchError
from probes.interventions.result import DecodingResult, IntrinsicDimension
from probes.interventions.subspace import random_subspace

NULL_QUANTILE = 0.95
_FOLDS, _SHUFFLES = 5, 40
_SCALE_TOLERANCE = 1e-6
# TwoNN leaves out the tenth of points with the largest ratios, as the paper does.
_KEPT_FRACTION, _MIN_STATES = 0.9, 10
# Halvings of the power that matches variances; at -8 the directions are the least varied, at 8 the
# most.
_HALVINGS, _POWER = 60, 8.0
# Variance that an empty direction is taken to have, as a share of the greatest.
_EMPTY = 1e-9


def off_manifold_distance(
    natural: Float[Tensor, "row d_model"],
    patched: Float[Tensor, "patched d_model"],
    *,
    n_neighbors: int = 5,
) -> Float[Tensor, " patched"]:
    """Say how far patched states lie from natural ones: 1 as natural states do, more if farther.

    It is a state's mean distance to its nearest natural states, over the median of that among
    the natural states, each left out of its own neighbors. The natural states should come from
    other prompts than the patched ones: a state that was moved a little has the state it was
    moved from as its neighbor, and looks closer than it is.

    Raises:
        BatchError: There are no more natural states than neighbors, or they coincide.
    """
    if not 1 <= n_neighbors < len(natural):
        raise BatchError(
            f"{n_neighbors} neighbors cannot be found among {len(natural)} natural states: give "
            "more states, or ask for 1 neighbor or more, fewer than there are states"
        )
    among = _distances(natural, natural).fill_diagonal_(torch.inf)
    usual = _mean_nearest_distance(among, n_neighbors).quantile(0.5)
    if not float(usual) > 0:
        raise BatchError(
            f"Half of the {len(natural)} natural states coincide with {n_neighbors} others: there "
            "is no distance to compare with. Choose a later layer, or drop states that are alike."
        )
    return (_mean_nearest_distance(_distances(patched, natural), n_neighbors) / usual).to(
        patched.dtype
    )


def intrinsic_dimension(states: Float[Tensor, "row d_model"]) -> IntrinsicDimension:
    """Estimate how many dimensions states fill; some hundred states are needed for a sound number.

    TwoNN (Facco et al. 2017, 1803.06992): where points are evenly dense up to their second
    neighbors, the ratio of the two distances has the distribution 1 - ratio^-d, to which d is
    fitted. It falls short above some ten dimensions, as the points are too few. States that are
    alike count once.

    Raises:
        BatchError: Fewer than 10 states are different.
    """
    different = states.double().unique(dim=0)
    if len(different) < _MIN_STATES:
        raise BatchError(
            f"A dimension cannot be estimated from {len(different)} different states among "
            f"{len(states)}: give {_MIN_STATES} or more."
        )
    variance = torch.linalg.svdvals(states.double() - states.double().mean(0)).square()
    participation = variance.sum().square() / variance.square().sum()
    apart = _distances(different, different).fill_diagonal_(torch.inf)
    first, second = apart.topk(2, largest=False).values.unbind(-1)
    ratio = (second / first).sort().values
    kept = int(_KEPT_FRACTION * len(ratio))
    share = torch.arange(1, kept + 1, device=ratio.device).double() / len(ratio)
    x, y = ratio[:kept].log(), -(1 - share).log()
    slope = (x @ y) / (x @ x) if float(x @ x) > 0 else torch.tensor(torch.inf)
    return IntrinsicDimension(float(participation), float(slope), len(different))


def decode_labels(
    states: Float[Tensor, "row d_model"], labels: Int[Tensor, " row"], *, seed: int
) -> DecodingResult:
    """Read a label from states that were not trained on, and again with shuffled labels.

    The reader is a linear discriminant with equal priors and the covariance within classes
    shrunk to a ball (Ledoit and Wolf 2004), in five folds that share out each class. Give one
    row a prompt: rows of one prompt are alike, and one would be trained on for the other.

    Raises:
        BatchError: There is one class, or a class has one row.
    """
    classes, place, count = labels.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2 or int(count.min()) < 2:
        raise BatchError(
            f"{len(classes)} classes of {int(count.min()) if len(count) else 0} rows or more "
            "cannot be read: give two classes or more, each of two rows or more"
        )
    draw = torch.Generator().manual_seed(seed)
    states, place = states.double().cpu(), place.cpu()
    accuracy = _cross_validated_recall(states, place, draw)
    shuffled = [
        _cross_validated_recall(states, place[torch.randperm(len(place), generator=draw)], draw)
        for _ in range(_SHUFFLES)
    ]
    chance = torch.tensor(shuffled).quantile(NULL_QUANTILE)
    return DecodingResult(accuracy, float(chance), len(classes))


def equal_variance(
    basis: Float[Tensor, "dimension d_model"],
    states: Float[Tensor, "row d_model"],
    *,
    seed: int,
    tolerance: float = 0.05,
) -> Float[Tensor, "dimension d_model"]:
    """Draw random directions that hold as much of the states' variance as given ones do.

    Random directions are stretched along the states' principal components, by the components'
    standard deviations to a power, and made orthonormal. The power is found by bisection, so that
    the variance in the span agrees within the share `within`: at 0 all directions are equally
    likely, above it those of much variance. The given directions are not excluded. Where they
    hold much variance, the drawn ones must be partly the same, and do part of what they do: look
    at the `overlap` before taking them for a control.

    Raises:
        BatchError: The states do not vary in the given directions, or no draw matches them.
    """
    centered = states.double() - states.double().mean(0)
    covariance = centered.T @ centered / len(states)
    variance, components = torch.linalg.eigh(covariance)
    scale = variance.clamp(min=_EMPTY * float(variance[-1])).sqrt()
    scale = scale / scale.log().mean().exp()
    wanted = _projected_variance(basis.double(), covariance)
    if not wanted > _EMPTY * float(variance[-1]):
        raise BatchError(
            f"{len(states)} states do not vary in the {len(basis)} given directions: there is no "
            "variance to match. Give other states, or draw with random_subspace."
        )
    draw = random_subspace(*basis.shape, seed=seed).to(centered)
    low, high = -_POWER, _POWER
    for _ in range(_HALVINGS):
        power = (low + high) / 2
        found = torch.linalg.qr(components @ (draw * scale**power).T).Q.T
        held = _projected_variance(found, covariance)
        if abs(held - wanted) <= tolerance * wanted:
            return found.float()
        low, high = (power, high) if held < wanted else (low, power)
    raise BatchError(
        f"No {len(basis)} random directions hold the {wanted:.2e} of variance that the given ones "
        f"hold to within {tolerance:.0%}. Draw with another seed, or match more loosely."
    )


def subspace_overlap(
    basis: Float[Tensor, "dimension d_model"], other: Float[Tensor, "other d_model"]
) -> float:
    """Return the share of the smaller span that lies in the other, 0 to 1.

    It is the mean squared cosine of the principal angles; of random ones, about the larger
    number of directions over d_model.
    """
    shared = (basis.double() @ other.double().T).square().sum()
    return float(shared) / min(len(basis), len(other))


def _cross_validated_recall(
    states: Tensor, class_index: Tensor, generator: torch.Generator
) -> float:
    fold = _assign_folds(class_index, generator)
    right = torch.zeros(len(class_index), dtype=torch.double)
    for number in fold.unique().tolist():
        held = fold == number
        said = _predict_lda(states[~held], class_index[~held], states[held])
        right[held] = (said == class_index[held]).double()
    recall = _class_means(right[:, None], class_index)
    return float(recall.mean())


def _assign_folds(class_index: Tensor, generator: torch.Generator) -> Tensor:
    """Deal the rows of each class to the folds in turn, in a drawn order."""
    order = torch.randperm(len(class_index), generator=generator)
    order = order[class_index[order].argsort(stable=True)]
    fold = torch.empty_like(class_index)
    fold[order] = torch.arange(len(class_index)) % _FOLDS
    return fold


def _predict_lda(states: Tensor, class_index: Tensor, test_states: Tensor) -> Tensor:
    center, spread = states.mean(0), states.std(0)
    # A massive dimension that hardly varies must not be blown up: less than this is rounding.
    scale = spread.clamp(min=max(_SCALE_TOLERANCE * float(spread.max()), 1e-12))
    states, test_states = (states - center) / scale, (test_states - center) / scale
    means = _class_means(states, class_index)
    weights = torch.linalg.solve(_shrunk_covariance(states - means[class_index]), means.T)
    offset = rearrange(means, "label feature -> feature label") * weights
    return (test_states @ weights - offset.sum(0) / 2).argmax(-1)


def _shrunk_covariance(residuals: Tensor) -> Tensor:
    """Return the covariance drawn towards a ball by the share that Ledoit and Wolf prove best."""
    count, width = residuals.shape
    covariance = residuals.T @ residuals / count
    size = covariance.trace() / width
    ball = size * torch.eye(width, dtype=residuals.dtype)
    spread = (covariance - ball).square().sum()
    noise = residuals.square().sum(1).square().mean() - covariance.square().sum()
    share = (noise / count / spread).clamp(0, 1) if float(spread) > 0 else spread + 1
    # Where classes are single points there is no covariance at all: any ball will do.
    floor = 1e-9 + 1e-9 * size
    return share * ball + (1 - share) * covariance + floor * torch.eye(width, dtype=residuals.dtype)


def _class_means(states: Tensor, class_index: Tensor) -> Tensor:
    total = states.new_zeros(int(class_index.max()) + 1, states.shape[1]).index_add(
        0, class_index, states
    )
    return total / class_index.bincount()[:, None]


def _projected_variance(basis: Tensor, covariance: Tensor) -> float:
    return float(((basis @ covariance) * basis).sum())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Not by matrix products: they round small distances away.
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _mean_nearest_distance(distances: Tensor, n_neighbors: int) -> Tensor:
    return distances.topk(n_neighbors, largest=False).values.mean(-1)
