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
from probes.testing.equivalent_layers import permuted_neurons, rotated, rounded, with_idle_layer
from probes.testing.llama_weights import (
    Slot,
    Twin,
    Weights,
    arranged,
    build,
    by_head,
    chosen,
    dressed,
    fitting,
    joined,
    names,
    plain,
    same,
    spread,
    work,
)

__all__ = [
    "Twin",
    "dead_heads",
    "doubled_heads",
    "grouped",
    "merged_heads",
    "permuted_heads",
    "permuted_neurons",
    "rotated",
    "rounded",
    "split_heads",
    "turned",
    "ungrouped",
    "with_idle_layer",
]


def permuted_heads(model: Model, seed: int = 0) -> Twin:
    """Shuffle the heads of every layer; groups stay together and are shuffled among themselves."""
    rng, shape, weights = np.random.default_rng(seed), model.shape, plain(model)
    each, heads = shape.heads // shape.kv_heads, {}
    for layer in range(shape.layers):
        groups = rng.permutation(shape.kv_heads)
        order = [int(each * group + head) for group in groups for head in rng.permutation(each)]
        parts = by_head(weights, layer, shape.d_head)
        for key, part in parts.items():
            parts[key] = part[groups if ".k_proj." in key or ".v_proj." in key else order]
        weights |= joined(parts)
        heads |= {f"L{layer}.H{old}": (f"L{layer}.H{new}",) for new, old in enumerate(order)}
    return dressed(model, weights, f"heads permuted {seed}", heads)


def split_heads(model: Model, heads: Sequence[str] | None = None, seed: int = 0) -> Twin:
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
    cut = chosen(model, names(shape) if heads is None else heads)
    if not any(cut):
        raise ModelError(f"No head of {model.name} to split: name at least one.")
    count = fitting(model, shape.heads + max(len(found) for found in cut))
    slots = []
    for layer in range(shape.layers):
        made = []
        for head in range(shape.heads):
            first = _half(shape.d_head, rng)
            halves = [Slot(head, first, first), Slot(head, 1 - first, 1 - first)]
            made += halves if head in cut[layer] else [Slot(head)]
        slots.append(_shuffled(made, count, rng))
    which = "all" if heads is None else ", ".join(heads)
    return _arranged(model, plain(model), slots, f"heads split ({which}) {seed}", rng)


def dead_heads(model: Model, heads: Sequence[str]) -> Twin:
    """Silence the heads named: their columns of the output are zero, all else stays."""
    shape, weights = model.shape, plain(model)
    lost = chosen(model, heads)
    for layer in range(shape.layers):
        parts = by_head(weights, layer, shape.d_head)
        parts[f"model.layers.{layer}.self_attn.o_proj.weight"][sorted(lost[layer])] = 0.0
        weights |= joined(parts)
    left = {head: () if head in heads else (head,) for head in names(shape)}
    return dressed(model, weights, f"without {', '.join(heads) or 'nothing'}", left)


def doubled_heads(model: Model, share: float = 0.5, seed: int = 0) -> Twin:
    """Make two copies of each head, which write the same thing: one `share` of it, one the rest.

    Args:
        model: A Llama whose number of heads, doubled, divides its width.
        share: What the first copy writes of the whole, 0.5 to 1; at 1 the other is dead.
        seed: Draws the order.
    """
    if not 0.5 <= share <= 1:
        raise ModelError(f"The first copy cannot write {share} of the whole: give 0.5 to 1.")
    rng, shape = np.random.default_rng(seed), model.shape
    count = fitting(model, 2 * shape.heads)
    one = torch.ones(shape.d_head, dtype=torch.float64)
    copies = [
        Slot(head, None, part * one) for head in range(shape.heads) for part in (share, 1 - share)
    ]
    slots = [_shuffled(copies, count, rng) for _ in range(shape.layers)]
    return _arranged(model, plain(model), slots, f"heads doubled {share:g} {seed}", rng)


def merged_heads(model: Model, seed: int = 0) -> Twin:
    """Make one head of those that have the same queries and keys; dead heads are dropped.

    What they write together must fit into the value directions of one head, as after
    `split_heads` and `doubled_heads`. Where the number of heads left does not divide the width,
    dead heads fill it up. Heads are shuffled. The twin has keys and values for every head.

    Raises:
        ModelError: Where no two heads are alike, or where they write too much for one.
    """
    rng, shape = np.random.default_rng(seed), model.shape
    weights = spread(plain(model), shape)
    alike = [
        _clusters(weights, layer, shape, ("q_proj", "k_proj")) for layer in range(shape.layers)
    ]
    if all(len(found) == 1 for layer in alike for found in layer):
        raise ModelError(
            f"No two heads of a layer of {model.name} have the same queries and keys. "
            "Merge heads that split_heads or doubled_heads made."
        )
    alike = [_living(weights, layer, clusters, shape) for layer, clusters in enumerate(alike)]
    for layer, clusters in enumerate(alike):
        for cluster in clusters:
            if len(cluster) > 1:
                weights |= _pooled(weights, layer, cluster, model)
    count = fitting(model, max(1, *(len(clusters) for clusters in alike)))
    slots = [_shuffled([Slot(c[0]) for c in clusters], count, rng) for clusters in alike]
    twin = _arranged(model, weights, slots, f"heads merged {seed}", rng)
    heads = dict(twin.heads)
    for layer, clusters in enumerate(alike):
        for first, *others in clusters:
            heads |= {f"L{layer}.H{head}": heads[f"L{layer}.H{first}"] for head in others}
    return Twin(twin.model, twin.surgery, heads, twin.layers)


def turned(twin: Twin, original: Model) -> Twin:
    """Swap the roles: the original becomes the twin of its twin, so that a split is a merge."""
    if set(twin.heads) != set(names(original.shape)) or len(twin.layers) != original.shape.layers:
        raise ModelError(
            f"{twin.model.name} is not a twin of {original.name}: its map names "
            f"{len(twin.heads)} heads, not the {len(names(original.shape))} of that model. "
            "Give the model that the twin was made of."
        )
    heads: dict[str, tuple[str, ...]] = dict.fromkeys(names(twin.model.shape), ())
    for old, new in twin.heads.items():
        for head in new:
            heads[head] += (old,)
    layers: list[int | None] = [None] * twin.model.shape.layers
    for old, new in enumerate(twin.layers):
        if new is not None:
            layers[new] = old
    return Twin(original, f"turned round: {twin.surgery}", heads, tuple(layers))


def grouped(model: Model) -> Twin:
    """Let heads that have the same keys and values share them, in groups of the same size.

    Raises:
        ModelError: Where the heads of some layer cannot be put into groups of two or more.
    """
    shape = model.shape
    weights = spread(plain(model), shape)
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
        parts = by_head(weights, layer, shape.d_head)
        for key, part in parts.items():
            shared = ".k_proj." in key or ".v_proj." in key
            parts[key] = part[order[::each] if shared else order]
        weights |= joined(parts)
        heads |= {f"L{layer}.H{old}": (f"L{layer}.H{new}",) for new, old in enumerate(order)}
    changes = {"num_key_value_heads": shape.heads // each}
    return dressed(model, weights, f"grouped by {each}", heads, **changes)


def ungrouped(model: Model) -> Model:
    """Make the twin of a grouped-query Llama in which every head has keys and values of its own."""
    weights = spread(plain(model), model.shape)
    return build(model, weights, "ungrouped", num_key_value_heads=model.shape.heads)


def _arranged(
    model: Model,
    weights: Weights,
    slots: Sequence[Sequence[Slot]],
    surgery: str,
    rng: np.random.Generator,
) -> Twin:
    own = {"num_attention_heads": len(slots[0]), "num_key_value_heads": len(slots[0])}
    if model.shape.kv_heads != model.shape.heads:
        weights = spread(weights, model.shape)
    new = arranged(weights, model.shape, slots, rng)
    return dressed(model, new, surgery, work(slots, model.shape), **own)


def _half(d_head: int, rng: np.random.Generator) -> Float[Tensor, " d_head"]:
    return torch.from_numpy((rng.permutation(d_head) < d_head // 2).astype(float))


def _shuffled(made: Sequence[Slot], count: int, rng: np.random.Generator) -> list[Slot]:
    full = [*made, *(Slot(None) for _ in range(count - len(made)))]
    return [full[index] for index in rng.permutation(count)]


def _clusters(
    weights: Weights, layer: int, shape: Shape, projections: tuple[str, ...]
) -> list[list[int]]:
    """Put heads together whose projections are the same, in order of their first."""
    parts = by_head(weights, layer, shape.d_head)
    held = [part for key, part in parts.items() if key.split(".")[-2] in projections]
    found: list[list[int]] = []
    for head in range(shape.heads):
        for cluster in found:
            if all(same(part, cluster[0], head) for part in held):
                cluster.append(head)
                break
        else:
            found.append([head])
    return found


def _living(
    weights: Weights, layer: int, clusters: list[list[int]], shape: Shape
) -> list[list[int]]:
    out = by_head(weights, layer, shape.d_head)[f"model.layers.{layer}.self_attn.o_proj.weight"]
    kept = [[head for head in cluster if bool(out[head].any())] for cluster in clusters]
    return [cluster for cluster in kept if cluster]


def _pooled(weights: Weights, layer: int, cluster: list[int], model: Model) -> Weights:
    """Give the first head of a cluster what all of them write, by the singular directions of it."""
    d_head, start = model.shape.d_head, f"model.layers.{layer}.self_attn."
    parts = by_head(weights, layer, d_head)
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
    return joined(parts)
