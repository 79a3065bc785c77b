"""Twins of a Llama: the same function in other clothes, with the truth about what became of it.

Whatever compares two models has to find that a twin does the same, and which of its heads do the
work of which. Nothing here is trained, and the model given is never changed.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from probes.errors import ModelError
from probes.models.model import Model, Shape
from probes.testing.equivalent_layers import (
    insert_silent_layer,
    permute_neurons,
    rotate_residual,
    round_weights,
)
from probes.testing.llama_weights import (
    EquivalentModel,
    HeadSlot,
    Weights,
    build_equivalent,
    build_model,
    copy_weights,
    expand_kv_heads,
    fill_slots,
    head_map_of,
    head_names,
    heads_by_layer,
    join_heads,
    same_weights,
    smallest_head_count,
    split_by_head,
)

__all__ = [
    "EquivalentModel",
    "duplicate_heads",
    "group_heads",
    "insert_silent_layer",
    "merge_heads",
    "permute_heads",
    "permute_neurons",
    "rotate_residual",
    "round_weights",
    "split_heads",
    "swap_direction",
    "ungroup_heads",
    "zero_heads",
]


def permute_heads(model: Model, seed: int = 0) -> EquivalentModel:
    """Shuffle the heads of every layer; groups stay together and are shuffled among themselves."""
    rng, shape, weights = np.random.default_rng(seed), model.shape, copy_weights(model)
    each, heads = shape.heads // shape.kv_heads, {}
    for layer in range(shape.layers):
        groups = rng.permutation(shape.kv_heads)
        order = [int(each * group + head) for group in groups for head in rng.permutation(each)]
        parts = split_by_head(weights, layer, shape.d_head)
        for key, part in parts.items():
            parts[key] = part[groups if ".k_proj." in key or ".v_proj." in key else order]
        weights |= join_heads(parts)
        heads |= {f"L{layer}.H{old}": (f"L{layer}.H{new}",) for new, old in enumerate(order)}
    return build_equivalent(model, weights, f"heads permuted {seed}", heads)


def split_heads(model: Model, heads: Sequence[str] | None = None, seed: int = 0) -> EquivalentModel:
    """Make two heads of each one named: the same pattern, each with half of the value directions.

    All layers have the same number of heads, and it must divide the width: what is left over are
    dead heads, random but for an output of zero. Heads are shuffled. The twin of a grouped-query
    model has keys and values for every head.

    Args:
        model: A Llama.
        heads: Names such as "L0.H1"; every head by default.
        seed: Draws the halves, the order and the dead heads.

    Raises:
        ModelError: Where the width has no divisor that leaves room for the new heads.
        SiteError: Where the model lacks a head.
    """
    rng, shape = np.random.default_rng(seed), model.shape
    cut = heads_by_layer(model, head_names(shape) if heads is None else heads)
    if not any(cut):
        raise ModelError(f"No head of {model.name} to split: name at least one.")
    count = smallest_head_count(model, shape.heads + max(len(found) for found in cut))
    slots = []
    for layer in range(shape.layers):
        made = []
        for head in range(shape.heads):
            first = _random_half(shape.d_head, rng)
            halves = [HeadSlot(head, first, first), HeadSlot(head, 1 - first, 1 - first)]
            made += halves if head in cut[layer] else [HeadSlot(head)]
        slots.append(_pad_and_shuffle(made, count, rng))
    which = "all" if heads is None else ", ".join(heads)
    return _rebuild(model, copy_weights(model), slots, f"heads split ({which}) {seed}", rng)


def zero_heads(model: Model, heads: Sequence[str]) -> EquivalentModel:
    """Silence the heads named: their columns of the output are zero, all else stays."""
    shape, weights = model.shape, copy_weights(model)
    lost = heads_by_layer(model, heads)
    for layer in range(shape.layers):
        parts = split_by_head(weights, layer, shape.d_head)
        parts[f"model.layers.{layer}.self_attn.o_proj.weight"][sorted(lost[layer])] = 0.0
        weights |= join_heads(parts)
    left = {head: () if head in heads else (head,) for head in head_names(shape)}
    return build_equivalent(model, weights, f"without {', '.join(heads) or 'nothing'}", left)


def duplicate_heads(model: Model, fraction: float = 0.5, seed: int = 0) -> EquivalentModel:
    """Make two copies of each head, which write the same thing: one `share` of it, one the rest.

    Args:
        model: A Llama whose number of heads, doubled, divides its width.
        share: What the first copy writes of the whole, 0.5 to 1; at 1 the other is dead.
        seed: Draws the order.
    """
    if not 0.5 <= fraction <= 1:
        raise ModelError(f"The first copy cannot write {fraction} of the whole: give 0.5 to 1.")
    rng, shape = np.random.default_rng(seed), model.shape
    count = smallest_head_count(model, 2 * shape.heads)
    one = torch.ones(shape.d_head, dtype=torch.float64)
    copies = [
        HeadSlot(head, None, part * one)
        for head in range(shape.heads)
        for part in (fraction, 1 - fraction)
    ]
    slots = [_pad_and_shuffle(copies, count, rng) for _ in range(shape.layers)]
    return _rebuild(model, copy_weights(model), slots, f"heads doubled {fraction:g} {seed}", rng)


def merge_heads(model: Model, seed: int = 0) -> EquivalentModel:
    """Make one head of those that have the same queries and keys; dead heads are dropped.

    What they write together must fit into the value directions of one head, as after
    `split_heads` and `doubled_heads`. Where the number of heads left does not divide the width,
    dead heads fill it up. Heads are shuffled. The twin has keys and values for every head.

    Raises:
        ModelError: Where no two heads are alike, or where they write too much for one.
    """
    rng, shape = np.random.default_rng(seed), model.shape
    weights = expand_kv_heads(copy_weights(model), shape)
    alike = [
        _clusters(weights, layer, shape, ("q_proj", "k_proj")) for layer in range(shape.layers)
    ]
    if all(len(found) == 1 for layer in alike for found in layer):
        raise ModelError(
            f"No two heads of a layer of {model.name} have the same queries and keys. "
            "Merge heads that split_heads or doubled_heads made."
        )
    alike = [
        _drop_silent_heads(weights, layer, clusters, shape) for layer, clusters in enumerate(alike)
    ]
    for layer, clusters in enumerate(alike):
        for cluster in clusters:
            if len(cluster) > 1:
                weights |= _merge_cluster(weights, layer, cluster, model)
    count = smallest_head_count(model, max(1, *(len(clusters) for clusters in alike)))
    slots = [_pad_and_shuffle([HeadSlot(c[0]) for c in clusters], count, rng) for clusters in alike]
    twin = _rebuild(model, weights, slots, f"heads merged {seed}", rng)
    heads = dict(twin.head_map)
    for layer, clusters in enumerate(alike):
        for first, *others in clusters:
            heads |= {f"L{layer}.H{head}": heads[f"L{layer}.H{first}"] for head in others}
    return EquivalentModel(twin.model, twin.rewrite, heads, twin.layer_map)


def swap_direction(equivalent: EquivalentModel, original: Model) -> EquivalentModel:
    """Swap the roles: the original becomes the twin of its twin, so that a split is a merge."""
    if (
        set(equivalent.head_map) != set(head_names(original.shape))
        or len(equivalent.layer_map) != original.shape.layers
    ):
        raise ModelError(
            f"{equivalent.model.name} is not a twin of {original.name}: its map names "
            f"{len(equivalent.head_map)} heads, not the {len(head_names(original.shape))} of that model. "
            "Give the model that the twin was made of."
        )
    heads: dict[str, tuple[str, ...]] = dict.fromkeys(head_names(equivalent.model.shape), ())
    for old, new in equivalent.head_map.items():
        for head in new:
            heads[head] += (old,)
    layers: list[int | None] = [None] * equivalent.model.shape.layers
    for old, new in enumerate(equivalent.layer_map):
        if new is not None:
            layers[new] = old
    return EquivalentModel(original, f"turned round: {equivalent.rewrite}", heads, tuple(layers))


def group_heads(model: Model) -> EquivalentModel:
    """Let heads that have the same keys and values share them, in groups of the same size.

    Raises:
        ModelError: Where the heads of some layer cannot be put into groups of two or more.
    """
    shape = model.shape
    weights = expand_kv_heads(copy_weights(model), shape)
    alike = [
        _clusters(weights, layer, shape, ("k_proj", "v_proj")) for layer in range(shape.layers)
    ]
    each = math.gcd(*(len(cluster) for clusters in alike for cluster in clusters))
    if each == 1:
        raise ModelError(
            f"The heads of {model.name} cannot be grouped: in some layer a head shares its keys "
            "and values with no other. Give a model such as ungrouped() makes."
        )
    heads = {}
    for layer, clusters in enumerate(alike):
        order = [head for cluster in clusters for head in cluster]
        parts = split_by_head(weights, layer, shape.d_head)
        for key, part in parts.items():
            shared = ".k_proj." in key or ".v_proj." in key
            parts[key] = part[order[::each] if shared else order]
        weights |= join_heads(parts)
        heads |= {f"L{layer}.H{old}": (f"L{layer}.H{new}",) for new, old in enumerate(order)}
    changes = {"num_key_value_heads": shape.heads // each}
    return build_equivalent(model, weights, f"grouped by {each}", heads, **changes)


def ungroup_heads(model: Model) -> Model:
    """Make the twin of a grouped-query Llama in which every head has keys and values of its own."""
    weights = expand_kv_heads(copy_weights(model), model.shape)
    return build_model(model, weights, "ungrouped", num_key_value_heads=model.shape.heads)


def _rebuild(
    model: Model,
    weights: Weights,
    slots: Sequence[Sequence[HeadSlot]],
    rewrite: str,
    rng: np.random.Generator,
) -> EquivalentModel:
    own = {"num_attention_heads": len(slots[0]), "num_key_value_heads": len(slots[0])}
    if model.shape.kv_heads != model.shape.heads:
        weights = expand_kv_heads(weights, model.shape)
    new = fill_slots(weights, model.shape, slots, rng)
    return build_equivalent(model, new, rewrite, head_map_of(slots, model.shape), **own)


def _random_half(d_head: int, rng: np.random.Generator) -> Float[Tensor, " d_head"]:
    return torch.from_numpy((rng.permutation(d_head) < d_head // 2).astype(float))


def _pad_and_shuffle(
    slots: Sequence[HeadSlot], count: int, rng: np.random.Generator
) -> list[HeadSlot]:
    full = [*slots, *(HeadSlot(None) for _ in range(count - len(slots)))]
    return [full[index] for index in rng.permutation(count)]


def _clusters(
    weights: Weights, layer: int, shape: Shape, projections: tuple[str, ...]
) -> list[list[int]]:
    """Put heads together whose projections are the same, in order of their first."""
    parts = split_by_head(weights, layer, shape.d_head)
    held = [part for key, part in parts.items() if key.split(".")[-2] in projections]
    found: list[list[int]] = []
    for head in range(shape.heads):
        for cluster in found:
            if all(same_weights(part, cluster[0], head) for part in held):
                cluster.append(head)
                break
        else:
            found.append([head])
    return found


def _drop_silent_heads(
    weights: Weights, layer: int, clusters: list[list[int]], shape: Shape
) -> list[list[int]]:
    out = split_by_head(weights, layer, shape.d_head)[
        f"model.layers.{layer}.self_attn.o_proj.weight"
    ]
    kept = [[head for head in cluster if bool(out[head].any())] for cluster in clusters]
    return [cluster for cluster in kept if cluster]


def _merge_cluster(weights: Weights, layer: int, cluster: list[int], model: Model) -> Weights:
    """Give the first head of a cluster what all of them write, by the singular directions of it."""
    d_head, start = model.shape.d_head, f"model.layers.{layer}.self_attn."
    parts = split_by_head(weights, layer, d_head)
    out, read = parts[f"{start}o_proj.weight"], parts[f"{start}v_proj.weight"]
    bias = parts.get(f"{start}v_proj.bias")
    if bias is not None:  # A bias is a weight whose input is always one.
        read = torch.cat([read, bias[..., None]], dim=-1)
    whole = einsum(
        out[cluster], read[cluster], "head d_head d_model, head d_head into -> d_model into"
    )
    left, size, right = torch.linalg.svd(whole, full_matrices=False)
    if bool((size[d_head:] > 1e-5 * size[0]).any()):
        raise ModelError(
            f"Heads {', '.join(map(str, cluster))} of layer {layer} of {model.name} have the same "
            f"queries and keys, but write more than the {d_head} directions of one head. "
            "Merge heads that split_heads or doubled_heads made."
        )
    root = size[:d_head].sqrt()
    out[cluster[0]] = rearrange(left[:, :d_head] * root, "d_model d_head -> d_head d_model")
    pooled = rearrange(
        rearrange(right[:d_head], "d_head into -> into d_head") * root, "into d_head -> d_head into"
    )
    width = model.shape.d_model
    parts[f"{start}v_proj.weight"][cluster[0]] = pooled[:, :width]
    if bias is not None:
        bias[cluster[0]] = pooled[:, width]
    return join_heads(parts)
