"""Model growth: more layers or wider MLPs, in most cases with unchanged logits."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probes.compression.block_layout import BlockLayout, axis_sizes, block_layout
from probes.compression.derived_model import (
    DerivedModel,
    dense_storage,
    load_parent,
    refuse_quantized,
)
from probes.errors import ModelError
from probes.models.files.loading import check_finite
from probes.models.files.provenance import JsonValue, Provenance
from probes.models.model import Model
from probes.models.process_state import seeded_init

GROW_METHODS = ("identity", "fresh", "stack", "wider")
"""The methods of `grow`."""

# Smallest unnormalized output fraction of a copied neuron; the largest is 1.
_MIN_FRACTION = 0.5


def grow(
    source: str | Path | Model | DerivedModel,
    method: str = "identity",
    size: int | None = None,
    *,
    insert_after: Sequence[int] | None = None,
    seed: int = 0,
) -> DerivedModel:
    """Add layers to a model, or neurons to its MLPs, without training.

    "identity" and "fresh" leave the logits equal, "wider" equal within rounding; "stack" changes
    them. New weights can all learn: the zero output layers of an identity block have gradients,
    and its other layers have them after the first step. The provenance has "new_layers" (their
    indices) and "from_layer" (for each layer the one that it copies, None for a fresh one).

    Args:
        source: Name or folder of a model, or a derived model; it is not changed.
        method: "identity" inserts copies of blocks with zero output layers (Wu et al. 2024, LLaMA
            Pro, arXiv 2401.02415), "fresh" random blocks with zero output layers. "stack" puts
            the last layers on top of the first, so that the middle ones occur twice (depth
            up-scaling, Kim et al. 2023, arXiv 2312.15166). "wider" copies neurons and divides
            their output weights among the copies in random, uneven fractions, because equal
            copies would stay equal (Net2Wider, Chen et al. 2016, arXiv 1511.05641).
        size: Number of layers afterwards, new ones spread evenly, at most twice as many for
            "stack"; for "wider" the number of neurons of each MLP.
        insert_after: In place of `size` for "identity" and "fresh": the layers after which a new
            one goes, once or more each.
        seed: Seed of fresh weights, and of the copied neurons.

    Raises:
        ModelError: The method is unknown, the sizes do not fit, the architecture is not supported,
            weights are not finite, or the model is quantized.
    """
    _check_sizes(method, size, insert_after)
    origin = load_parent(source)
    check_finite(origin.hf_model, origin.name)
    refuse_quantized(origin, "grow")
    layout, old = block_layout(origin.hf_model, origin.name), axis_sizes(origin.hf_model)
    if method == "wider":
        width = _check_larger(size, old["neuron"], "neurons per layer", origin.name)
        result = _build_wider(origin.hf_model, layout, width, seed)
        order, new = list(range(old["layer"])), []
        found: dict[str, JsonValue] = {"width": width, "old_width": old["neuron"]}
    else:
        order, new = _layer_order(origin, method, size, insert_after)
        fresh = new if method == "fresh" else []
        result = _build_deeper(origin.hf_model, layout, order, fresh, seed)
        if method != "stack":
            _zero_writers(result, layout, new)
        found = {"layers": len(order), "old_layers": old["layer"]}
    sources: list[JsonValue] = [
        None if method == "fresh" and layer in new else source for layer, source in enumerate(order)
    ]
    found |= {"how": method, "seed": seed, "new_layers": list[JsonValue](new)}
    found |= {"from_layer": sources}
    held_out = origin.provenance.held_out
    made = Provenance(
        "grown", origin.name, dense_storage(result, bits=16), found, held_out=held_out
    )
    size = size if method == "wider" else len(order)
    return DerivedModel(f"{origin.name}-{method}-{size}", result, origin.tokenizer, made)


def _layer_order(
    origin: DerivedModel, method: str, layers: int | None, insert_after: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """Source of each layer, and the indices of the new layers."""
    if getattr(origin.hf_model.config, "scale_attn_by_inverse_layer_idx", False):
        raise ModelError(
            f"{origin.name} scales its attention by the layer index, so layers cannot be moved: "
            "use 'wider', or a model without scale_attn_by_inverse_layer_idx"
        )
    count = axis_sizes(origin.hf_model)["layer"]
    if insert_after is None:
        layers = _check_larger(layers, count, "layers", origin.name)
        if method == "stack":
            return stack_layers(count, layers)
        more = layers - count
        insert_after = [-(-(index + 1) * count // more) - 1 for index in range(more)]
    return interleave_layers(count, insert_after)


def interleave_layers(count: int, insert_after: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the source of each layer and the indices of new layers, for inserted copies.

    Raises:
        ModelError: A layer does not exist, or none is given.
    """
    odd = [layer for layer in insert_after if not 0 <= layer < count]
    if odd or not insert_after:
        raise ModelError(
            f"Layers cannot be inserted after {odd or 'no layer'}: give indices of the old layers, "
            f"0 to {count - 1}"
        )
    order, new = [], []
    for layer in range(count):
        order.append(layer)
        for _ in range(list(insert_after).count(layer)):
            new.append(len(order))
            order.append(layer)
    return order, new


def stack_layers(count: int, layers: int) -> tuple[list[int], list[int]]:
    """Return the source of each layer and the indices of new layers, for depth up-scaling.

    Raises:
        ModelError: There are more than twice as many layers.
    """
    if layers > 2 * count:
        raise ModelError(
            f"A stack of {count} layers has at most {2 * count}, and {layers} were asked for: "
            "grow the result again"
        )
    first = (layers + 1) // 2
    order = [*range(first), *range(count - (layers - first), count)]
    return order, list(range(first, first + layers - count))


def _random_resized(hf_model: Any, seed: int, **changes: int) -> Any:  # noqa: ANN401 (untyped library)
    """Random-init model of another size."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(hf_model.config)
    for key, value in changes.items():
        setattr(config, key, value)
    with seeded_init(seed):
        result = AutoModelForCausalLM.from_config(
            config, dtype=hf_model.dtype, attn_implementation=config._attn_implementation
        )
    result.generation_config = copy.deepcopy(hf_model.generation_config)
    return result.to(hf_model.device).eval()


def _build_deeper(
    hf_model: Any,  # noqa: ANN401
    layout: BlockLayout,
    order: Sequence[int],
    fresh: Sequence[int],
    seed: int,
) -> nn.Module:
    """Model whose layers are copies of the layers in `order`, except for the fresh ones."""
    result = _random_resized(hf_model, seed, num_hidden_layers=len(order))
    weights, random_weights = hf_model.state_dict(), result.state_dict()
    state = {key: w for key, w in weights.items() if not key.startswith(f"{layout.layers_path}.")}
    for layer, old in enumerate(order):
        target = f"{layout.layers_path}.{layer}."
        source = target if layer in fresh else f"{layout.layers_path}.{old}."
        for key, weight in (random_weights if layer in fresh else weights).items():
            if key.startswith(source):
                state[target + key.removeprefix(source)] = weight
    result.load_state_dict(state)
    return result


@torch.no_grad()
def _zero_writers(hf_model: nn.Module, layout: BlockLayout, layers: Sequence[int]) -> None:
    """Set the output layers of some blocks to zero, with their biases."""
    for layer in layers:
        for writer in layout.writers:
            module = hf_model.get_submodule(f"{layout.layers_path}.{layer}.{writer}")
            for weight in module.parameters():
                weight.zero_()


def _build_wider(hf_model: Any, layout: BlockLayout, width: int, seed: int) -> nn.Module:  # noqa: ANN401
    """Model with copied neurons, whose output weights are divided among the copies."""
    sizes, generator = axis_sizes(hf_model), torch.Generator().manual_seed(seed)
    result = _random_resized(hf_model, seed, **{layout.width_key: width})
    state = dict(hf_model.state_dict())
    for layer in range(sizes["layer"]):
        copied, fractions = _sample_copies(sizes["neuron"], width, generator)
        for part, axes in layout.mlp.items():
            path, axis = f"{layout.layers_path}.{layer}.{part}", axes.split().index("neuron")
            old = state[f"{path}.weight"]
            weight = old.index_select(axis, copied.to(old.device))
            if part in layout.writers:
                # Broadcast along the axis of d_model.
                scale = fractions if axis == 1 else fractions[:, None]
                weight = (weight.cpu().double() * scale).to(old)
            elif f"{path}.bias" in state:
                bias = state[f"{path}.bias"]
                state[f"{path}.bias"] = bias.index_select(0, copied.to(bias.device))
            state[f"{path}.weight"] = weight
    result.load_state_dict(state)
    return result


def _sample_copies(
    count: int, width: int, generator: torch.Generator
) -> tuple[Int[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """Source of each neuron of a wider layer, and its fraction of the output weights."""
    rounds = [torch.randperm(count, generator=generator) for _ in range(-(-width // count) - 1)]
    copied = torch.cat([torch.arange(count), *rounds])[:width]
    drawn = (
        torch.rand(width, generator=generator, dtype=torch.float64) * (1 - _MIN_FRACTION)
        + _MIN_FRACTION
    )
    total = torch.zeros(count, dtype=torch.float64).index_add(0, copied, drawn)
    return copied, drawn / total[copied]


def _check_larger(size: int | None, count: int, unit: str, name: str) -> int:
    if size is None or size <= count:
        raise ModelError(f"{name} has {count} {unit}, and size is {size}: give more than {count}")
    return size


def _check_sizes(method: str, size: int | None, insert_after: Sequence[int] | None) -> None:
    if method not in GROW_METHODS:
        raise ModelError(f"Unknown method {method!r}: use one of {', '.join(GROW_METHODS)}")
    if insert_after is not None and method in ("stack", "wider"):
        raise ModelError(f"{method!r} does not use insert_after: give size")
    if (size is None) == (insert_after is None):
        given = "neither was" if size is None else "both were"
        raise ModelError(f"{method!r} needs either size or insert_after, and {given} given")
