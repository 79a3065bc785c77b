"""Masks: which weights of a model's matrices are kept, and what it costs to say so."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from probes.compression.derived_model import dense_storage
from probes.errors import ModelError
from probes.models.loading import check_finite
from probes.models.provenance import StorageCost, storage_part

Masks = Mapping[str, Bool[Tensor, "..."]]
"""True where a weight is kept, for matrices of the layers by the names of their parameters."""

SCOPES = ("global", "layer")
"""Where weights are ranked: among those of all matrices, or within each matrix."""


def layer_matrices(hf_model: nn.Module) -> dict[str, nn.Parameter]:
    """List the matrices of the layers; embeddings, norms and biases are not among them."""
    return {n: w for n, w in hf_model.named_parameters() if storage_part(n, w.ndim) == "weights"}


def nonzero_masks(hf_model: nn.Module) -> dict[str, Bool[Tensor, "..."]]:
    """Say for every matrix of the layers which of its weights are not zero."""
    return {name: weight.detach() != 0 for name, weight in layer_matrices(hf_model).items()}


def magnitude_masks(
    hf_model: nn.Module, fraction: float, *, scope: str = "global", within: Masks | None = None
) -> dict[str, Bool[Tensor, "..."]]:
    """Keep the weights of the greatest magnitude (Han et al. 2015, arXiv 1506.02626).

    Args:
        hf_model: A Hugging Face model; it is not changed.
        share: Share of the weights to leave out, 0 to 1; of those that `within` keeps, where it
            is given, so that rounds of 0.2 keep 0.8, 0.64, 0.51 (Frankle & Carbin 2019,
            arXiv 1803.03635).
        scope: "global" ranks the weights of all matrices together, "layer" those of each matrix.
        within: Masks whose zeros stay zeros; the new masks lie within them.

    Raises:
        ModelError: The share or the scope is none, weights are no numbers, or masks do not fit.
    """
    from torch.nn.utils import prune

    check_fraction(fraction)
    if scope not in SCOPES:
        raise ModelError(f"Unknown scope {scope!r}: use one of {', '.join(SCOPES)}")
    check_finite(hf_model, "the model to prune")
    # The library marks what it prunes: it is given stand-ins that share the weights.
    stands = {name: _PrunableWeight(weight) for name, weight in layer_matrices(hf_model).items()}
    if within is not None:
        _check_masks(within, hf_model)
        for name, mask in within.items():
            prune.custom_from_mask(stands[name], "weight", mask)
    sizes = {name: stand.weight.numel() for name, stand in stands.items()}
    left = sizes | {name: int(mask.sum()) for name, mask in (within or {}).items()}
    if scope == "global":
        where = [(stand, "weight") for stand in stands.values()]
        count = round(fraction * sum(left.values()))
        prune.global_unstructured(where, pruning_method=prune.L1Unstructured, amount=count)
    else:
        for name, stand in stands.items():
            prune.l1_unstructured(stand, "weight", amount=round(fraction * left[name]))
    return {name: stand.get_buffer("weight_mask") != 0 for name, stand in stands.items()}


def random_masks_like(masks: Masks, *, seed: int) -> dict[str, Bool[Tensor, "..."]]:
    """Draw masks that keep as many weights of every matrix as the ones given, anywhere in it."""
    drawn = {}
    for place, name in enumerate(sorted(masks)):
        mask = masks[name]
        generator = torch.Generator().manual_seed(_matrix_seed(seed, place))
        order = torch.randperm(mask.numel(), generator=generator)
        flat = torch.zeros(mask.numel(), dtype=torch.bool)
        flat[order[: int(mask.sum())]] = True
        drawn[name] = flat.reshape(mask.shape).to(mask.device)
    return {name: drawn[name] for name in masks}


@torch.no_grad()
def apply_masks(masks: Masks, hf_model: nn.Module) -> None:
    """Set the weights that are not kept to exactly 0, in place.

    Raises:
        ModelError: A mask names no matrix of the model's layers, or has another shape.
    """
    _check_masks(masks, hf_model)
    own = layer_matrices(hf_model)
    for name, mask in masks.items():
        own[name].masked_fill_(~mask.to(own[name].device), 0.0)


def density(masks: Masks) -> float:
    """Return the share of weights that masks keep, 0 to 1, over all of their matrices."""
    return sum(int(m.sum()) for m in masks.values()) / max(
        sum(m.numel() for m in masks.values()), 1
    )


def masked_storage(hf_model: nn.Module, masks: Masks, bits: int = 16) -> StorageCost:
    """Count the bits of a model of which only the kept weights are stored.

    The index tells which they are. Each matrix takes the cheapest of three: nothing, where all
    are kept; one bit for every weight; or the place of every kept one, ceil(log2(n)) bits each
    in a matrix of n weights. Which of the three it took is not counted, and a matrix of which
    nothing is kept takes nothing. Embeddings, norms and biases are stored whole, and so is a
    matrix without a mask.

    Args:
        hf_model: The model, whether the masks were put on it or not.
        masks: What is kept.
        bits: Bits of one weight.
    """
    _check_masks(masks, hf_model)
    whole = dense_storage(hf_model, bits=bits)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    missing = sum(mask.numel() - kept[name] for name, mask in masks.items())
    index = sum(_index_bits(kept[name], mask.numel()) for name, mask in masks.items())
    return StorageCost(
        weights=whole.weights - missing * bits,
        embeddings=whole.embeddings,
        other=whole.other,
        mask_index=float(index),
    )


def check_fraction(fraction: float | None) -> float:
    """Return a share to prune; refuse what is none."""
    if fraction is None or isinstance(fraction, bool) or not 0.0 <= fraction <= 1.0:
        raise ModelError(
            f"The share of weights to prune is {fraction!r}: give a number from 0 (none) to 1 (all), "
            "such as 0.5"
        )
    return float(fraction)


def _index_bits(kept: int, total: int) -> int:
    if kept in (0, total):
        return 0
    return min(total, kept * (total - 1).bit_length())  # ceil(log2(total)) of an integer.


def _check_masks(masks: Masks, hf_model: nn.Module) -> None:
    own = layer_matrices(hf_model)
    for name, mask in masks.items():
        if name not in own:
            raise ModelError(
                f"A mask is for {name!r}, which is no matrix of this model's layers: they are "
                f"such as {next(iter(own), 'none')!r}. Make the masks of the same model."
            )
        if mask.shape != own[name].shape:
            raise ModelError(
                f"The mask of {name!r} is {tuple(mask.shape)}, and the matrix "
                f"{tuple(own[name].shape)}: make the masks of the same model"
            )


def _matrix_seed(seed: int, index: int) -> int:
    # One stream a matrix, so that a mask does not depend on what stands before it.
    return (seed * 1_000_003 + index) % 2**63


class _PrunableWeight(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
