"""The cloud of states at one site: its dimension, its edge, its variance and what it tells."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from probes.errors import BatchError
from probes.interventions.subspace import random_subspace

LEVEL = 0.95
_FOLDS, _SHUFFLES = 5, 40
_ROUNDING = 1e-6
# TwoNN leaves out the tenth of points with the largest ratios, as the paper does.
_KEPT, _FEWEST = 0.9, 10
# Halvings of the power that matches variances; at -8 the directions are the least varied, at 8 the
# most.
_HALVINGS, _POWER = 60, 8.0
# Variance that an empty direction is taken to have, as a share of the greatest.
_EMPTY = 1e-9


@dataclass(frozen=True, slots=True)
class Dimension:
    """How many dimensions a cloud of states fills, by two measures.

    Attributes:
        participation: The participation ratio of the variances along the principal components,
            1 for a line up to d_model for a ball; linear.
        two_nn: The dimension of the sheet on which neighbours lie, which may be curved.
        count: The states that are different from each other.
    """

    participation: float
    two_nn: float
    count: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """How well a label can be read from states, beside chance.

    Attributes:
        accuracy: Mean over classes of the share of unseen rows that were read right, 0 to 1.
        chance: The 95th percentile of the same under shuffled labels.
        classes: How many labels there are.
    """

    accuracy: float
    chance: float
    classes: int

    @property
    def decodable(self) -> bool:
        """Whether the accuracy is above chance."""
        return self.accuracy > self.chance


def off_manifold(
    natural: Float[Tensor, "row d_model"],
    patched: Float[Tensor, "patched d_model"],
    *,
    neighbours: int = 5,
) -> Float[Tensor, " patched"]:
    """Say how far patched states lie from natural ones: 1 as natural states do, more if farther.

    It is a state's mean distance to its nearest natural states, over the median of that among
    the natural states, each left out of its own neighbours. The natural states should come from
    other prompts than the patched ones: a state that was moved a little has the state it was
    moved from as its neighbour, and looks closer than it is.

    Raises:
        BatchError: There are no more natural states than neighbours, or they coincide.
    """
    if not 1 <= neighbours < len(natural):
        raise BatchError(
            f"{neighbours} neighbours cannot be found among {len(natural)} natural states: give "
            "more states, or ask for 1 neighbour or more, fewer than there are states"
        )
    among = _distances(natural, natural).fill_diagonal_(torch.inf)
    usual = _nearest(among, neighbours).quantile(0.5)
    if not float(usual) > 0:
        raise BatchError(
            f"Half of the {len(natural)} natural states coincide with {neighbours} others: there "
            "is no distance to compare with. Choose a later layer, or drop states that are alike."
        )
    return (_nearest(_distances(patched, natural), neighbours) / usual).to(patched.dtype)


def dimension(states: Float[Tensor, "row d_model"]) -> Dimension:
    """Estimate how many dimensions states fill; some hundred states are needed for a sound number.

    TwoNN (Facco et al. 2017, 1803.06992): where points are evenly dense up to their second
    neighbours, the ratio of the two distances has the distribution 1 - ratio^-d, to which d is
    fitted. It falls short above some ten dimensions, as the points are too few. States that are
    alike count once.

    Raises:
        BatchError: Fewer than 10 states are different.
    """
    different = states.double().unique(dim=0)
    if len(different) < _FEWEST:
        raise BatchError(
            f"A dimension cannot be estimated from {len(different)} different states among "
            f"{len(states)}: give {_FEWEST} or more."
        )
    variance = torch.linalg.svdvals(states.double() - states.double().mean(0)).square()
    participation = variance.sum().square() / variance.square().sum()
    apart = _distances(different, different).fill_diagonal_(torch.inf)
    first, second = apart.topk(2, largest=False).values.unbind(-1)
    ratio = (second / first).sort().values
    kept = int(_KEPT * len(ratio))
    share = torch.arange(1, kept + 1, device=ratio.device).double() / len(ratio)
    x, y = ratio[:kept].log(), -(1 - share).log()
    slope = (x @ y) / (x @ x) if float(x @ x) > 0 else torch.tensor(torch.inf)
    return Dimension(float(participation), float(slope), len(different))


def decodable(
    states: Float[Tensor, "row d_model"], labels: Int[Tensor, " row"], *, seed: int
) -> Decoded:
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
    accuracy = _accuracy(states, place, draw)
    shuffled = [
        _accuracy(states, place[torch.randperm(len(place), generator=draw)], draw)
        for _ in range(_SHUFFLES)
    ]
    chance = torch.tensor(shuffled).quantile(LEVEL)
    return Decoded(accuracy, float(chance), len(classes))


def equal_variance(
    basis: Float[Tensor, "dimension d_model"],
    states: Float[Tensor, "row d_model"],
    *,
    seed: int,
    within: float = 0.05,
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
    centred = states.double() - states.double().mean(0)
    covariance = centred.T @ centred / len(states)
    variance, components = torch.linalg.eigh(covariance)
    scale = variance.clamp(min=_EMPTY * float(variance[-1])).sqrt()
    scale = scale / scale.log().mean().exp()
    wanted = _held(basis.double(), covariance)
    if not wanted > _EMPTY * float(variance[-1]):
        raise BatchError(
            f"{len(states)} states do not vary in the {len(basis)} given directions: there is no "
            "variance to match. Give other states, or draw with random_subspace."
        )
    draw = random_subspace(*basis.shape, seed=seed).to(centred)
    low, high = -_POWER, _POWER
    for _ in range(_HALVINGS):
        power = (low + high) / 2
        found = torch.linalg.qr(components @ (draw * scale**power).T).Q.T
        held = _held(found, covariance)
        if abs(held - wanted) <= within * wanted:
            return found.float()
        low, high = (power, high) if held < wanted else (low, power)
    raise BatchError(
        f"No {len(basis)} random directions hold the {wanted:.2e} of variance that the given ones "
        f"hold to within {within:.0%}. Draw with another seed, or match more loosely."
    )


def overlap(
    basis: Float[Tensor, "dimension d_model"], other: Float[Tensor, "other d_model"]
) -> float:
    """Return the share of the smaller span that lies in the other, 0 to 1.

    It is the mean squared cosine of the principal angles; of random ones, about the larger
    number of directions over d_model.
    """
    shared = (basis.double() @ other.double().T).square().sum()
    return float(shared) / min(len(basis), len(other))


def _accuracy(states: Tensor, place: Tensor, draw: torch.Generator) -> float:
    fold = _folds(place, draw)
    right = torch.zeros(len(place), dtype=torch.double)
    for number in fold.unique().tolist():
        held = fold == number
        said = _read(states[~held], place[~held], states[held])
        right[held] = (said == place[held]).double()
    recall = _class_means(right[:, None], place)
    return float(recall.mean())


def _folds(place: Tensor, draw: torch.Generator) -> Tensor:
    """Deal the rows of each class to the folds in turn, in a drawn order."""
    order = torch.randperm(len(place), generator=draw)
    order = order[place[order].argsort(stable=True)]
    fold = torch.empty_like(place)
    fold[order] = torch.arange(len(place)) % _FOLDS
    return fold


def _read(states: Tensor, place: Tensor, unseen: Tensor) -> Tensor:
    centre, spread = states.mean(0), states.std(0)
    # A massive dimension that hardly varies must not be blown up: less than this is rounding.
    scale = spread.clamp(min=max(_ROUNDING * float(spread.max()), 1e-12))
    states, unseen = (states - centre) / scale, (unseen - centre) / scale
    means = _class_means(states, place)
    weights = torch.linalg.solve(_shrunk(states - means[place]), means.T)
    offset = rearrange(means, "label feature -> feature label") * weights
    return (unseen @ weights - offset.sum(0) / 2).argmax(-1)


def _shrunk(within: Tensor) -> Tensor:
    """Return the covariance drawn towards a ball by the share that Ledoit and Wolf prove best."""
    count, width = within.shape
    covariance = within.T @ within / count
    size = covariance.trace() / width
    ball = size * torch.eye(width, dtype=within.dtype)
    spread = (covariance - ball).square().sum()
    noise = within.square().sum(1).square().mean() - covariance.square().sum()
    share = (noise / count / spread).clamp(0, 1) if float(spread) > 0 else spread + 1
    # Where classes are single points there is no covariance at all: any ball will do.
    floor = 1e-9 + 1e-9 * size
    return share * ball + (1 - share) * covariance + floor * torch.eye(width, dtype=within.dtype)


def _class_means(states: Tensor, place: Tensor) -> Tensor:
    total = states.new_zeros(int(place.max()) + 1, states.shape[1]).index_add(0, place, states)
    return total / place.bincount()[:, None]


def _held(basis: Tensor, covariance: Tensor) -> float:
    return float(((basis @ covariance) * basis).sum())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Not by matrix products: they round small distances away.
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _nearest(distances: Tensor, neighbours: int) -> Tensor:
    return distances.topk(neighbours, largest=False).values.mean(-1)
