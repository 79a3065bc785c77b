"""Prune a model: set single weights, whole heads or whole neurons to zero."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probes.compression.block_layout import block_layout, silent_units, unit_masks
from probes.compression.derived_model import (
    DerivedModel,
    dense_storage,
    load_parent,
    refuse_quantized,
    zero_fraction,
)
from probes.compression.pruning.importance import (
    Calibration,
    output_norms,
    tokenize_calibration,
    wanda_masks,
)
from probes.compression.pruning.masks import (
    Masks,
    apply_masks,
    check_fraction,
    density,
    layer_matrices,
    magnitude_masks,
    masked_storage,
    nonzero_masks,
    random_masks_like,
)
from probes.errors import ModelError
from probes.models.files.loading import check_finite
from probes.models.files.provenance import JsonValue, Provenance, StorageCost
from probes.models.model import Model
from probes.models.site import head_name

METHOD_SCOPES = {
    "magnitude": ("global", "layer"),
    "wanda": ("row", "layer"),
    "heads": ("layer", "global"),
    "neurons": ("global", "layer"),
    "random": ("layer",),
}
"""The methods and their scopes; the first scope is the default."""

_UNITS = {"heads": "head", "neurons": "neuron"}


@dataclass(frozen=True, eq=False)
class PruningSettings:
    """Settings of `prune`.

    Attributes:
        scope: Where to rank: "global", "layer" (each matrix, or the heads or neurons of each
            layer) or "row" (each output's weights, Wanda only). None takes the default of
            METHOD_SCOPES; heads are ranked within their layer, because later layers write more.
        like: For "random" in place of a fraction: a pruned model or masks, whose number of kept
            weights in each matrix is matched.
        seed: Seed of the calibration questions and of random masks.
    """

    scope: str | None = None
    like: str | Path | DerivedModel | Masks | None = None
    seed: int = 0


def prune(
    source: str | Path | Model | DerivedModel,
    fraction: float | None = None,
    *,
    method: str = "magnitude",
    calibration: Calibration | None = None,
    settings: PruningSettings | None = None,
) -> DerivedModel:
    """Set a fraction of the weights in the matrices of a model's layers to exactly 0.

    The model keeps its shape, embeddings, norms and biases. Weights that are zero already count as
    pruned, except for "random". The provenance has the storage cost (kept weights at 16 bits with
    the cheaper of two indices: `masked_storage`, or one bit per head or neuron where whole ones
    are zero), "zeros" (fraction of zero weights afterwards) and "dropped" (the pruned heads, or
    the number of pruned neurons of each layer).

    Args:
        source: Name or folder of a model, or a derived model; it is not changed.
        fraction: Fraction of the weights, heads or neurons to prune, 0 to 1.
        method: "magnitude" (Han et al. 2015, arXiv 1506.02626) prunes the smallest weights;
            "wanda" (Sun et al. 2023, arXiv 2306.11695) the smallest |weight| times input norm;
            "heads" and "neurons" those with the smallest output (root mean square norm over
            tokens); "random" is the baseline of the others.
        calibration: Texts for "wanda", "heads" and "neurons": a pattern (64 of its questions),
            texts, or tokens.
        settings: Scope, matched masks and seed.

    Raises:
        ModelError: The fraction, method or scope is invalid, weights are not finite, texts or
            torchao are missing, masks do not fit, or the model is quantized.
    """
    settings = settings or PruningSettings()
    origin = load_parent(source)
    scope = check_scope(origin, method, settings.scope)
    if settings.like is not None and method != "random":
        raise ModelError(f"Only 'random' matches other masks: leave out like for {method!r}")
    record: dict[str, JsonValue] = {"method": method, "scope": scope, "seed": settings.seed}
    if method == "random":
        targets = _target_masks(origin, fraction, settings.like)
        masks = random_masks_like(targets, seed=settings.seed)
        share = 1 - density(masks)
        record |= {"share": share, "like": _source_name(settings.like)}
    else:
        share = check_fraction(fraction)
        record["share"] = fraction
        if method == "magnitude":
            masks = magnitude_masks(origin.hf_model, share, scope=scope)
        else:
            batches = tokenize_calibration(origin, calibration, seed=settings.seed)
            masks, found = _calibrated_masks(origin, share, method, scope, batches)
            record |= found
    result = copy.deepcopy(origin.hf_model).eval()
    apply_masks(masks, result)
    record["zeros"] = zero_fraction(result)
    held_out = origin.provenance.held_out
    made = Provenance("pruned", origin.name, _cheapest_storage(result), record, held_out=held_out)
    suffix = "" if scope == METHOD_SCOPES[method][0] else f"-{scope}"
    name = f"{origin.name}-{method}{suffix}-{float(f'{share:.4g}'):g}"
    return DerivedModel(name, result, origin.tokenizer, made)


def _calibrated_masks(
    origin: DerivedModel,
    fraction: float,
    method: str,
    scope: str,
    batches: list[Int[Tensor, "_ _"]],
) -> tuple[Masks, dict[str, JsonValue]]:
    """Masks of a method that scores on texts, and its entries of the provenance."""
    found: dict[str, JsonValue] = {
        "texts": sum(len(ids) for ids in batches),
        "tokens": sum(ids.numel() for ids in batches),
    }
    if method == "wanda":
        return wanda_masks(origin, fraction, scope, batches), found
    unit, layout = _UNITS[method], block_layout(origin.hf_model, origin.name)
    kept = _keep_largest(output_norms(origin, layout, unit, batches), fraction, scope)
    if unit == "head":
        pruned = (~kept).nonzero().tolist()
        found["dropped"] = [head_name(layer, head) for layer, head in pruned]
    else:
        found["dropped"] = [int((~row).sum()) for row in kept]
    return unit_masks(origin.hf_model, layout, unit, kept), found


def _keep_largest(
    norms: Float[Tensor, "layer unit"], fraction: float, scope: str
) -> Bool[Tensor, "layer unit"]:
    """Mark the heads or neurons to keep: all but the given fraction with the smallest norms."""
    ranked = norms if scope == "layer" else norms.reshape(1, -1)
    order = ranked.argsort(dim=1, stable=True)[:, : round(fraction * ranked.shape[1])]
    kept = torch.ones_like(ranked, dtype=torch.bool).scatter_(1, order, value=False)
    return kept.reshape(norms.shape)


def _target_masks(
    origin: DerivedModel, fraction: float | None, like: str | Path | DerivedModel | Masks | None
) -> Masks:
    """Masks whose number of kept weights in each matrix the random masks match."""
    if (fraction is None) == (like is None):
        raise ModelError("Random masks need either a fraction or like: give one of the two")
    if like is None:
        return magnitude_masks(origin.hf_model, check_fraction(fraction), scope="layer")
    masks = like if isinstance(like, Mapping) else nonzero_masks(load_parent(like).hf_model)
    own = layer_matrices(origin.hf_model)
    if set(masks) != set(own):
        odd = min(set(masks) ^ set(own))
        raise ModelError(
            f"Random masks need the matrices of {origin.name}, and {odd!r} is only in one of the "
            "two: give masks or a model with the same layers"
        )
    return masks


def _source_name(like: str | Path | DerivedModel | Masks | None) -> str | None:
    if like is None or isinstance(like, Mapping):
        return None if like is None else "masks"
    return like.name if isinstance(like, DerivedModel) else Path(like).name


def _cheapest_storage(hf_model: nn.Module) -> StorageCost:
    by_weight = masked_storage(hf_model, nonzero_masks(hf_model))
    by_unit = _unit_storage(hf_model)
    return by_weight if by_unit is None else min(by_weight, by_unit, key=lambda s: s.total)


def _unit_storage(hf_model: nn.Module) -> StorageCost | None:
    """Storage without the rows and columns of zero heads and neurons; None if it does not apply."""
    try:
        layout = block_layout(hf_model, "")
    except ModelError:
        return None
    whole, own = dense_storage(hf_model, bits=16), layer_matrices(hf_model)
    missing = index = 0
    for unit in _UNITS.values():
        silent = silent_units(hf_model, layout, unit)
        masks = unit_masks(hf_model, layout, unit, ~silent)
        # Input weights must be zero as well, or the stored model would differ.
        if any(bool((own[name][~mask] != 0).any()) for name, mask in masks.items()):
            return None
        missing += sum(int((~mask).sum()) for mask in masks.values())
        index += silent.numel() if bool(silent.any()) else 0
    return replace(whole, weights=whole.weights - 16 * missing, mask_index=float(index))


def check_scope(origin: DerivedModel, method: str, scope: str | None) -> str:
    """Scope of a method: the given one, or its default.

    Raises:
        ModelError: Weights are not finite, the method or scope is unknown, or the model is
            quantized.
    """
    check_finite(origin.hf_model, origin.name)
    if method not in METHOD_SCOPES:
        raise ModelError(f"Unknown method {method!r}: use one of {', '.join(METHOD_SCOPES)}")
    if scope is not None and scope not in METHOD_SCOPES[method]:
        raise ModelError(
            f"{method!r} does not rank by {scope!r}: use one of {', '.join(METHOD_SCOPES[method])}"
        )
    refuse_quantized(origin, "prune")
    return scope or METHOD_SCOPES[method][0]
