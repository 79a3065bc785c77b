"""Rewrites of the heads of a Llama that preserve its function, with the true map of heads.

Comparisons of two models must find that the rewritten model computes the same, and which heads
correspond. Nothing is trained, and the model given is never changed.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from probes.errors import ModelError
from probes.models.model import Model, Shape
from probes.models.site import head_name, head_names
from probes.testing.llama_weights import (
    EquivalentModel,
    HeadSlot,
    Weights,
    build_equivalent,
    build_model,
    copy_weights,
    equal_heads,
    expand_kv_heads,
    fill_slots,
    heads_by_layer,
    join_heads,
    slot_head_map,
    smallest_head_count,
    split_by_head,
)


def permute_heads(model: Model, seed: int = 0) -> EquivalentModel:
    """Permute the heads of every layer: groups of a grouped-query model, and heads within them."""
    rng, shape, weights = np.random.default_rng(seed), model.shape, copy_weights(model)
    each, head_map = shape.heads // shape.kv_heads, {}
    for layer in range(shape.layers):
        groups = rng.permutation(shape.kv_heads)
        order = [int(each * group + head) for group in groups for head in rng.permutation(each)]
        parts = split_by_head(weights, layer, shape.d_head)
        for key, part in parts.items():
            parts[key] = part[groups if _is_shared(key) else order]
        weights |= join_heads(parts)
        head_map |= _reordered(layer, order)
    return build_equivalent(model, weights, f"heads permuted {seed}", head_map)


def split_heads(model: Model, heads: Sequence[str] | None = None, seed: int = 0) -> EquivalentModel:
    """Split heads into two with the same attention and half of the value directions each.

    The number of heads must divide the width, so layers are filled up with random heads that write
    nothing. Heads are shuffled. A grouped-query model gets keys and values for every head.

    Args:
        model: A Llama.
        heads: Names such as "L0.H1"; all heads by default.
        seed: Seed of the halves, the order and the silent heads.

    Raises:
        ModelError: No head is given, or the width has no suitable divisor.
        SiteError: The model lacks a head.
    """
    rng, shape = np.random.default_rng(seed), model.shape
    names = head_names(shape.layers, shape.heads) if heads is None else heads
    to_split = heads_by_layer(model, names)
    if not any(to_split):
        raise ModelError(f"There is no head of {model.name} to split: name at least one.")
    count = smallest_head_count(model, shape.heads + max(map(len, to_split)))
    slots = []
    for of_layer in to_split:
        filled = []
        for head in range(shape.heads):
            # The half is drawn for every head, split or not.
            half = torch.from_numpy((rng.permutation(shape.d_head) < shape.d_head // 2) * 1.0)
            halves = [HeadSlot(head, half, half), HeadSlot(head, 1 - half, 1 - half)]
            filled += halves if head in of_layer else [HeadSlot(head)]
        slots.append(_pad_and_shuffle(filled, count, rng))
    which = "all" if heads is None else ", ".join(heads)
    return _rebuild(model, copy_weights(model), slots, f"heads split ({which}) {seed}", rng)


def zero_heads(model: Model, heads: Sequence[str]) -> EquivalentModel:
    """Set the output weights of heads to 0; they map to no head.

    Raises:
        SiteError: The model lacks a head.
    """
    shape, weights = model.shape, copy_weights(model)
    for layer, of_layer in enumerate(heads_by_layer(model, heads)):
        parts = split_by_head(weights, layer, shape.d_head)
        parts[f"model.layers.{layer}.self_attn.o_proj.weight"][sorted(of_layer)] = 0.0
        weights |= join_heads(parts)
    names = head_names(shape.layers, shape.heads)
    head_map = {head: () if head in heads else (head,) for head in names}
    return build_equivalent(model, weights, f"without {', '.join(heads) or 'nothing'}", head_map)


def duplicate_heads(model: Model, fraction: float = 0.5, seed: int = 0) -> EquivalentModel:
    """Duplicate each head; one copy writes `fraction` of the output, the other one the rest.

    Args:
        model: A Llama.
        fraction: 0.5 to 1; at 1 the second copy is silent.
        seed: Seed of the order of heads.

    Raises:
        ModelError: The fraction is out of range, or the width has no suitable divisor.
    """
    if not 0.5 <= fraction <= 1:
        raise ModelError(f"The first copy cannot write {fraction} of the output: give 0.5 to 1.")
    rng, shape = np.random.default_rng(seed), model.shape
    count = smallest_head_count(model, 2 * shape.heads)
    ones = torch.ones(shape.d_head, dtype=torch.float64)
    copies = [
        HeadSlot(head, None, part * ones)
        for head in range(shape.heads)
        for part in (fraction, 1 - fraction)
    ]
    slots = [_pad_and_shuffle(copies, count, rng) for _ in range(shape.layers)]
    rewrite = f"heads duplicated {fraction:g} {seed}"
    return _rebuild(model, copy_weights(model), slots, rewrite, rng)


def merge_heads(model: Model, seed: int = 0) -> EquivalentModel:
    """Merge heads with equal queries and keys, and drop silent heads.

    The outputs of merged heads must fit the value directions of one head, as after `split_heads`
    and `duplicate_heads`. Layers are filled up with silent heads until the number divides the
    width. Heads are shuffled. Every head gets its own keys and values.

    Raises:
        ModelError: No two heads have equal queries and keys, or their outputs do not fit one head.
    """
    rng, shape = np.random.default_rng(seed), model.shape
    weights = expand_kv_heads(copy_weights(model), shape)
    clusters = [equal_heads(weights, n, shape, ("q_proj", "k_proj")) for n in range(shape.layers)]
    if all(len(cluster) == 1 for of_layer in clusters for cluster in of_layer):
        raise ModelError(
            f"No two heads of a layer of {model.name} have the same queries and keys. "
            "Merge heads that split_heads or duplicate_heads made."
        )
    clusters = [
        _drop_silent_heads(weights, layer, of_layer, shape)
        for layer, of_layer in enumerate(clusters)
    ]
    for layer, of_layer in enumerate(clusters):
        for cluster in of_layer:
            if len(cluster) > 1:
                weights |= _merge_cluster(weights, layer, cluster, model)
    count = smallest_head_count(model, max(1, *map(len, clusters)))
    slots = [_pad_and_shuffle([HeadSlot(c[0]) for c in row], count, rng) for row in clusters]
    merged = _rebuild(model, weights, slots, f"heads merged {seed}", rng)
    head_map = dict(merged.head_map)
    for layer, of_layer in enumerate(clusters):
        for first, *others in of_layer:
            new = head_map[head_name(layer, first)]
            head_map |= {head_name(layer, head): new for head in others}
    return replace(merged, head_map=head_map)


def swap_direction(equivalent: EquivalentModel, original: Model) -> EquivalentModel:
    """The original as a rewrite of the equivalent model; a split becomes a merge.

    Raises:
        ModelError: The equivalent model was not made of `original`.
    """
    names = head_names(original.shape.layers, original.shape.heads)
    if set(equivalent.head_map) != set(names) or (
        len(equivalent.layer_map) != original.shape.layers
    ):
        raise ModelError(
            f"{equivalent.model.name} is not a rewrite of {original.name}: its map has "
            f"{len(equivalent.head_map)} heads, and that model {len(names)}. Give the model that "
            "was rewritten."
        )
    shape = equivalent.model.shape
    head_map: dict[str, tuple[str, ...]] = dict.fromkeys(head_names(shape.layers, shape.heads), ())
    for old, new in equivalent.head_map.items():
        for head in new:
            head_map[head] += (old,)
    layer_map: list[int | None] = [None] * shape.layers
    for old, new in enumerate(equivalent.layer_map):
        if new is not None:
            layer_map[new] = old
    rewrite = f"inverse of {equivalent.rewrite}"
    return EquivalentModel(original, rewrite, head_map, tuple(layer_map))


def group_heads(model: Model) -> EquivalentModel:
    """Let heads with equal keys and values share them, in groups of one size.

    Raises:
        ModelError: A layer has a head that shares its keys and values with no other.
    """
    shape = model.shape
    weights = expand_kv_heads(copy_weights(model), shape)
    clusters = [equal_heads(weights, n, shape, ("k_proj", "v_proj")) for n in range(shape.layers)]
    each = math.gcd(*(len(cluster) for of_layer in clusters for cluster in of_layer))
    if each == 1:
        raise ModelError(
            f"The heads of {model.name} cannot be grouped: in some layer a head shares its keys "
            "and values with no other. Give a model such as ungroup_heads makes."
        )
    head_map = {}
    for layer, of_layer in enumerate(clusters):
        order = [head for cluster in of_layer for head in cluster]
        parts = split_by_head(weights, layer, shape.d_head)
        for key, part in parts.items():
            parts[key] = part[order[::each] if _is_shared(key) else order]
        weights |= join_heads(parts)
        head_map |= _reordered(layer, order)
    changes = {"num_key_value_heads": shape.heads // each}
    return build_equivalent(model, weights, f"grouped by {each}", head_map, **changes)


def ungroup_heads(model: Model) -> Model:
    """Grouped-query Llama with separate keys and values for every head."""
    weights = expand_kv_heads(copy_weights(model), model.shape)
    return build_model(model, weights, "ungrouped", num_key_value_heads=model.shape.heads)


def _rebuild(
    model: Model,
    weights: Weights,
    slots: Sequence[Sequence[HeadSlot]],
    rewrite: str,
    rng: np.random.Generator,
) -> EquivalentModel:
    changes = {"num_attention_heads": len(slots[0]), "num_key_value_heads": len(slots[0])}
    if model.shape.kv_heads != model.shape.heads:
        weights = expand_kv_heads(weights, model.shape)
    filled = fill_slots(weights, model.shape, slots, rng)
    return build_equivalent(model, filled, rewrite, slot_head_map(slots, model.shape), **changes)


def _is_shared(key: str) -> bool:
    """Whether the heads of a group share this weight."""
    return ".k_proj." in key or ".v_proj." in key


def _reordered(layer: int, order: Sequence[int]) -> dict[str, tuple[str, ...]]:
    return {head_name(layer, old): (head_name(layer, new),) for new, old in enumerate(order)}


def _pad_and_shuffle(
    slots: Sequence[HeadSlot], count: int, rng: np.random.Generator
) -> list[HeadSlot]:
    padded = [*slots, *(HeadSlot(None) for _ in range(count - len(slots)))]
    return [padded[index] for index in rng.permutation(count)]


def _drop_silent_heads(
    weights: Weights, layer: int, clusters: list[list[int]], shape: Shape
) -> list[list[int]]:
    parts = split_by_head(weights, layer, shape.d_head)
    output = parts[f"model.layers.{layer}.self_attn.o_proj.weight"]
    active = [[head for head in cluster if bool(output[head].any())] for cluster in clusters]
    return [cluster for cluster in active if cluster]


def _merge_cluster(weights: Weights, layer: int, cluster: list[int], model: Model) -> Weights:
    """Give the first head of a cluster the sum of all outputs, by its singular directions."""
    d_head, width = model.shape.d_head, model.shape.d_model
    start = f"model.layers.{layer}.self_attn."
    parts = split_by_head(weights, layer, d_head)
    output, value = parts[f"{start}o_proj.weight"], parts[f"{start}v_proj.weight"]
    bias = parts.get(f"{start}v_proj.bias")
    if bias is not None:  # a weight whose input is always 1
        value = torch.cat([value, bias[..., None]], dim=-1)
    total: Float[Tensor, "d_model into"] = einsum(
        output[cluster], value[cluster], "head d_head d_model, head d_head into -> d_model into"
    )
    left, size, right = torch.linalg.svd(total, full_matrices=False)
    if bool((size[d_head:] > 1e-5 * size[0]).any()):
        raise ModelError(
            f"Heads {', '.join(map(str, cluster))} of layer {layer} of {model.name} have the same "
            f"queries and keys, but write more than the {d_head} directions of one head. "
            "Merge heads that split_heads or duplicate_heads made."
        )
    root = size[:d_head].sqrt()
    output[cluster[0]] = rearrange(left[:, :d_head] * root, "d_model d_head -> d_head d_model")
    merged = right[:d_head] * root[:, None]
    parts[f"{start}v_proj.weight"][cluster[0]] = merged[:, :width]
    if bias is not None:
        bias[cluster[0]] = merged[:, width]
    return join_heads(parts)
