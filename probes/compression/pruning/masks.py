"""Masks of kept weights, and the storage cost of a masked model."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from probes.compression.derived_model import dense_storage
from probes.errors import ModelError
from probes.models.files.loading import check_finite
from probes.models.files.provenance import StorageCost, storage_part

Masks = Mapping[str, Bool[Tensor, "..."]]
"""True where a weight is kept, by the parameter names of the layers' matrices."""

SCOPES = ("global", "layer")
"""Whether weights are ranked over all matrices or within each one."""


def layer_matrices(hf_model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the matrices of the layers by name, without embeddings, norms and biases."""
    return {n: w for n, w in hf_model.named_parameters() if storage_part(n, w.ndim) == "weights"}


def nonzero_masks(hf_model: nn.Module) -> dict[str, Bool[Tensor, "..."]]:
    """Return the masks of the nonzero weights."""
    return {name: weight.detach() != 0 for name, weight in layer_matrices(hf_model).items()}


def magnitude_masks(
    hf_model: nn.Module, fraction: float, *, scope: str = "global", within: Masks | None = None
) -> dict[str, Bool[Tensor, "..."]]:
    """Keep the weights of greatest magnitude (Han et al. 2015, arXiv 1506.02626).

    Args:
        hf_model: Hugging Face model; it is not changed.
        fraction: Fraction to prune, 0 to 1; of the weights that `within` keeps, if given (rounds
            of 0.2 keep 0.8, 0.64, 0.51; Frankle & Carbin 2019, arXiv 1803.03635).
        scope: "global" ranks the weights of all matrices together, "layer" those of each matrix.
        within: Earlier masks; their zeros stay zeros.

    Raises:
        ModelError: The fraction or scope is invalid, weights are not finite, or `within` belongs
            to another model.
    """
    from torch.nn.utils import prune

    check_fraction(fraction)
    if scope not in SCOPES:
        raise ModelError(f"Unknown scope {scope!r}: use one of {', '.join(SCOPES)}")
    check_finite(hf_model, "the model to prune")
    # The library modifies the modules that it prunes: these share the weights with the model.
    modules = {name: _PrunableWeight(weight) for name, weight in layer_matrices(hf_model).items()}
    if within is not None:
        _check_masks(within, hf_model)
        for name, mask in within.items():
            prune.custom_from_mask(modules[name], "weight", mask)
    left = {name: module.weight.numel() for name, module in modules.items()}
    left |= {name: int(mask.sum()) for name, mask in (within or {}).items()}
    if scope == "global":
        where = [(module, "weight") for module in modules.values()]
        count = round(fraction * sum(left.values()))
        prune.global_unstructured(where, pruning_method=prune.L1Unstructured, amount=count)
    else:
        for name, module in modules.items():
            prune.l1_unstructured(module, "weight", amount=round(fraction * left[name]))
    return {name: module.get_buffer("weight_mask") != 0 for name, module in modules.items()}


def random_masks_like(masks: Masks, *, seed: int) -> dict[str, Bool[Tensor, "..."]]:
    """Return random masks that keep the same number of weights in each matrix."""
    drawn = {}
    for index, name in enumerate(sorted(masks)):
        mask = masks[name]
        # One random stream per matrix, independent of the matrices before it.
        generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
        order = torch.randperm(mask.numel(), generator=generator)
        flat = torch.zeros(mask.numel(), dtype=torch.bool)
        flat[order[: int(mask.sum())]] = True
        drawn[name] = flat.reshape(mask.shape).to(mask.device)
    return {name: drawn[name] for name in masks}


@torch.no_grad()
def apply_masks(masks: Masks, hf_model: nn.Module) -> None:
    """Set the weights that are not kept to exactly 0, in place.

    Raises:
        ModelError: A mask has the name or shape of no matrix of the model's layers.
    """
    _check_masks(masks, hf_model)
    own = layer_matrices(hf_model)
    for name, mask in masks.items():
        own[name].masked_fill_(~mask.to(own[name].device), 0.0)


def density(masks: Masks) -> float:
    """Return the fraction of weights that masks keep, 0 to 1."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / max(total, 1)


def masked_storage(hf_model: nn.Module, masks: Masks, bits: int = 16) -> StorageCost:
    """Return the storage cost of a model of which only the kept weights are stored.

    The index of each matrix takes the cheapest of three encodings: nothing, where all or none are
    kept; one bit per weight; or ceil(log2(n)) bits per kept weight in a matrix of n weights. The
    choice of encoding is not counted. Matrices without a mask, embeddings, norms and biases are
    stored whole.

    Args:
        hf_model: The model, masked or not.
        masks: The kept weights.
        bits: Bits per weight.
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
    """Return a valid fraction to prune.

    Raises:
        ModelError: It is not a number from 0 to 1.
    """
    if fraction is None or isinstance(fraction, bool) or not 0.0 <= fraction <= 1.0:
        raise ModelError(
            f"The fraction to prune is {fraction!r}: give a number from 0 (none) to 1 (all), "
            "such as 0.5"
        )
    return float(fraction)


def _index_bits(kept: int, total: int) -> int:
    if kept in (0, total):
        return 0
    return min(total, kept * (total - 1).bit_length())  # The bit length is ceil(log2(total)).


def _check_masks(masks: Masks, hf_model: nn.Module) -> None:
    own = layer_matrices(hf_model)
    for name, mask in masks.items():
        if name not in own:
            raise ModelError(
                f"There is a mask for {name!r}, which is no matrix of this model's layers (one is "
                f"{next(iter(own), 'none')!r}). Make the masks from the same model."
            )
        if mask.shape != own[name].shape:
            raise ModelError(
                f"The mask of {name!r} has shape {tuple(mask.shape)}, and the matrix "
                f"{tuple(own[name].shape)}: make the masks from the same model"
            )


class _PrunableWeight(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
