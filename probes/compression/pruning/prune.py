"""Prune a model: set single weights, whole heads or whole neurons to zero."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probes.compression.block_layout import block_layout, silent_units, unit_masks
from probes.compression.derived_model import DerivedModel, dense_storage, load_parent, zero_fraction
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
from probes.models.loading import check_finite
from probes.models.provenance import JsonValue, Provenance, StorageCost
from probes.models.site import head_name

METHOD_SCOPES = {
    "magnitude": ("global", "layer"),
    "wanda": ("row", "layer"),
    "heads": ("layer", "global"),
    "neurons": ("global", "layer"),
    "random": ("layer",),
}
"""The methods, and within what each may rank; the first is taken where none is given."""

_UNITS = {"heads": "head", "neurons": "neuron"}


def prune(  # noqa: PLR0913 (a method has so many dials)
    source: str | Path | DerivedModel,
    fraction: float | None = None,
    *,
    method: str = "magnitude",
    scope: str | None = None,
    calibration: Calibration | None = None,
    like: str | Path | DerivedModel | Masks | None = None,
    seed: int = 0,
) -> DerivedModel:
    """Set a share of the weights in the matrices of a model's layers to exactly 0.

    The model keeps its shape; embeddings, norms and biases are left alone. What is zero already
    goes first, save with "random", so that a share is one of the whole matrices.

    `made.storage` counts kept weights at 16 bits, and the cheaper of two ways to say which they
    are: by weight, as `masked_storage` does, or, where whole heads or neurons write nothing, by
    leaving out their rows and columns, for one bit a head or neuron of that kind.
    `made.dials["zeros"]` is the share of weights that are zero afterwards, 0 to 1, and "dropped"
    lists the heads that went, or how many neurons of each layer.

    Args:
        source: A model by name, its folder, or a relative; it is not changed.
        share: Share to set to zero, 0 to 1: of the weights, or of the heads or the neurons for
            the methods of these names. Not for "random" with `like`.
        method: "magnitude" (Han et al. 2015, arXiv 1506.02626) drops the smallest weights;
            "wanda" (Sun et al. 2023, arXiv 2306.11695) the smallest |weight| times the norm of
            what it reads; "heads" and "neurons" those whose writing into the residual stream is
            shortest (root mean square over tokens); "random" is the control of the others.
        scope: Within what to rank: "global", "layer" (each matrix, or the heads or neurons of
            each layer) or, for Wanda alone, "row" (each output's weights, as published). None
            takes the first that `SCOPES` lists: later layers write more, so that heads are
            ranked within theirs.
        calibration: What to score on, for "wanda", "heads" and "neurons": a pattern (64 of its
            questions), texts, or tokens.
        like: For "random": a pruned relative or masks, of which each matrix keeps the number.
        seed: Draws the questions, or the random masks.

    Raises:
        ModelError: The share, method or scope does not exist, weights are no numbers, texts or
            torchao are missing, masks do not fit, or the model was quantized before.
    """
    origin = load_parent(source)
    scope = _check_scope(origin, method, scope)
    settings: dict[str, JsonValue] = {"method": method, "scope": scope, "seed": seed}
    if method == "random":
        masks = random_masks_like(_target_masks(origin, fraction, like), seed=seed)
        settings |= {"share": 1 - density(masks), "like": _source_name(like)}
    else:
        if like is not None:
            raise ModelError(f"Only 'random' follows other masks: leave out like for {method!r}")
        masks, found = _method_masks(
            origin, check_fraction(fraction), method, scope, (calibration, seed)
        )
        settings |= {"share": fraction, **found}
    result = copy.deepcopy(origin.hf_model).eval()
    apply_masks(masks, result)
    made = Provenance(
        "pruned",
        origin.name,
        _cheapest_storage(result),
        settings | {"zeros": zero_fraction(result)},
    )
    fraction = float(f"{settings['share']:.4g}")
    within = "" if scope == METHOD_SCOPES[method][0] else f"-{scope}"
    return DerivedModel(
        f"{origin.name}-{method}{within}-{fraction:g}", result, origin.tokenizer, made
    )


def _method_masks(
    origin: DerivedModel,
    fraction: float,
    method: str,
    scope: str,
    calibration_and_seed: tuple[Calibration | None, int],
) -> tuple[Masks, dict[str, JsonValue]]:
    """The masks of a method, and what is to be told of them."""
    if method == "magnitude":
        return magnitude_masks(origin.hf_model, fraction, scope=scope), {}
    calibration, seed = calibration_and_seed
    rows = tokenize_calibration(origin, calibration, seed=seed)
    found: dict[str, JsonValue] = {
        "texts": sum(len(ids) for ids in rows),
        "tokens": sum(ids.numel() for ids in rows),
    }
    if method == "wanda":
        return wanda_masks(origin, fraction, scope, rows), found
    unit, blocks = _UNITS[method], block_layout(origin.hf_model, origin.name)
    kept = keep_largest(output_norms(origin, blocks, unit, rows), fraction, scope)
    if unit == "head":
        lost = (~kept).nonzero().tolist()
        found["dropped"] = [head_name(layer, head) for layer, head in lost]
    else:
        found["dropped"] = [int((~row).sum()) for row in kept]
    return unit_masks(origin.hf_model, blocks, unit, kept), found


def keep_largest(
    norms: Float[Tensor, "layer unit"], fraction: float, scope: str
) -> Bool[Tensor, "layer unit"]:
    """Mark the heads or neurons to keep: all but the given share with the shortest writing."""
    ranked = norms if scope == "layer" else norms.reshape(1, -1)
    order = ranked.argsort(dim=1, stable=True)[:, : round(fraction * ranked.shape[1])]
    kept = torch.ones_like(ranked, dtype=torch.bool).scatter_(1, order, value=False)
    return kept.reshape(norms.shape)


def _target_masks(
    origin: DerivedModel, fraction: float | None, like: str | Path | DerivedModel | Masks | None
) -> Masks:
    """Masks that keep as many weights of each matrix as the random ones are to keep."""
    if (fraction is None) == (like is None):
        raise ModelError(
            "Random masks need either a share or what they are to be like: give one of the two"
        )
    if like is None:
        return magnitude_masks(origin.hf_model, check_fraction(fraction), scope="layer")
    masks = like if isinstance(like, Mapping) else nonzero_masks(load_parent(like).hf_model)
    own = layer_matrices(origin.hf_model)
    if set(masks) != set(own):
        odd = min(set(masks) ^ set(own))
        raise ModelError(
            f"Random masks need the matrices of {origin.name}, and {odd!r} is only in one of the "
            "two: give masks or a relative with the same layers"
        )
    return masks


def _cheapest_storage(hf_model: nn.Module) -> StorageCost:
    by_weight = masked_storage(hf_model, nonzero_masks(hf_model))
    by_unit = _unit_storage(hf_model)
    return by_weight if by_unit is None else min(by_weight, by_unit, key=lambda s: s.total)


def _unit_storage(hf_model: nn.Module) -> StorageCost | None:
    """What is stored where the rows and columns of idle heads and neurons are left out."""
    try:
        blocks = block_layout(hf_model, "")
    except ModelError:
        return None
    whole, own = dense_storage(hf_model, bits=16), layer_matrices(hf_model)
    missing = index = 0
    for unit in _UNITS.values():
        idle = silent_units(hf_model, blocks, unit)
        masks = unit_masks(hf_model, blocks, unit, ~idle)
        # What reads is left out only where it was set to zero as well.
        if any(bool((own[name][~mask] != 0).any()) for name, mask in masks.items()):
            return None
        missing += sum(int((~mask).sum()) for mask in masks.values())
        index += idle.numel() if bool(idle.any()) else 0
    return replace(whole, weights=whole.weights - 16 * missing, mask_index=float(index))


def _check_scope(origin: DerivedModel, method: str, scope: str | None) -> str:
    check_finite(origin.hf_model, origin.name)
    if method not in METHOD_SCOPES:
        raise ModelError(f"Unknown method {method!r}: use one of {', '.join(METHOD_SCOPES)}")
    if scope is not None and scope not in METHOD_SCOPES[method]:
        raise ModelError(
            f"{method!r} does not rank by {scope!r}: use one of {', '.join(METHOD_SCOPES[method])}"
        )
    if origin.provenance.kind == "quantized":
        raise ModelError(
            f"{origin.name} was quantized, and its weights would be counted as unrounded: prune "
            f"{origin.provenance.parent or 'the model'} first, and quantize what comes of it"
        )
    return scope or METHOD_SCOPES[method][0]


def _source_name(like: str | Path | DerivedModel | Masks | None) -> str | None:
    if like is None or isinstance(like, Mapping):
        return None if like is None else "masks"
    return like.name if isinstance(like, DerivedModel) else Path(like).name
