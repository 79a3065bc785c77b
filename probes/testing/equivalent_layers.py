"""Rewrites of a Llama that leave its heads in place: residual stream, neurons, layers, rounding.

The model given is never changed.
"""

import numpy as np
import torch
from scipy.stats import ortho_group
from torch import Tensor

from probes.errors import ModelError
from probes.models.model import Model
from probes.models.site import head_name
from probes.testing.llama_weights import (
    EquivalentModel,
    Weights,
    build_equivalent,
    build_model,
    copy_weights,
    sample_like,
)

_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def rotate_residual(model: Model, seed: int = 0) -> EquivalentModel:
    """Rotate the residual stream by a random orthogonal matrix (Haar measure).

    An RMS norm with unit weights commutes with rotations (Ashkboos et al. 2024, arXiv:2401.15024),
    so the weights of the norms are folded into their readers. This unties the unembedding.
    """
    weights, width = copy_weights(model), model.shape.d_model
    rotation = torch.from_numpy(ortho_group.rvs(width, random_state=np.random.default_rng(seed)))
    final_norm = weights["model.norm.weight"]
    weights["lm_head.weight"] = weights["lm_head.weight"] * final_norm @ rotation
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] @ rotation
    weights["model.norm.weight"] = torch.ones(width)
    for layer in range(model.shape.layers):
        start = f"model.layers.{layer}."
        for norm, readers in _READERS.items():
            for reader in readers:
                key = f"{start}{reader}.weight"
                weights[key] = weights[key] * weights[f"{start}{norm}.weight"] @ rotation
            weights[f"{start}{norm}.weight"] = torch.ones(width)
        for writer in _WRITERS:
            weights[f"{start}{writer}.weight"] = rotation.T @ weights[f"{start}{writer}.weight"]
            if (bias := f"{start}{writer}.bias") in weights:
                weights[bias] = weights[bias] @ rotation
    return build_equivalent(model, weights, f"rotated {seed}", tie_word_embeddings=False)


def permute_neurons(model: Model, seed: int = 0) -> EquivalentModel:
    """Permute the neurons of every MLP."""
    rng, weights = np.random.default_rng(seed), copy_weights(model)
    for layer in range(model.shape.layers):
        start = f"model.layers.{layer}.mlp."
        order = rng.permutation(weights[f"{start}down_proj.weight"].shape[1])
        for key in [key for key in weights if key.startswith(start)]:
            if key.endswith("down_proj.weight"):
                weights[key] = weights[key][:, order]
            elif "down_proj" not in key:
                weights[key] = weights[key][order]
    return build_equivalent(model, weights, f"neurons permuted {seed}")


def insert_silent_layer(model: Model, at: int, seed: int = 0) -> EquivalentModel:
    """Insert a layer with random weights that writes nothing.

    Args:
        model: A Llama.
        at: Number of the new layer, from 0 to the number of layers.
        seed: Seed of its weights, which have the spread of a neighboring layer's.

    Raises:
        ModelError: `at` is out of range.
    """
    shape, weights = model.shape, copy_weights(model)
    if not 0 <= at <= shape.layers:
        raise ModelError(
            f"A layer cannot be inserted at {at}: {model.name} has {shape.layers} layers. "
            f"Give 0 to {shape.layers}."
        )
    layer_map = tuple(layer + (layer >= at) for layer in range(shape.layers))
    new: Weights = {k: v for k, v in weights.items() if not k.startswith("model.layers.")}
    for old_layer, new_layer in enumerate(layer_map):
        new |= _renumber_layer(weights, old_layer, new_layer)
    rng = np.random.default_rng(seed)
    for key, weight in _renumber_layer(weights, min(at, shape.layers - 1), at).items():
        new[key] = _silent_weight(key, weight, rng)
    head_map = {
        head_name(layer, head): (head_name(layer_map[layer], head),)
        for layer in range(shape.layers)
        for head in range(shape.heads)
    }
    rewrite = f"silent layer at {at}"
    rewritten = build_model(model, new, rewrite, num_hidden_layers=shape.layers + 1)
    return EquivalentModel(rewritten, rewrite, head_map, layer_map)


def round_weights(model: Model, bits: int) -> Model:
    """Round the weight matrices of the layers to 2 ** bits - 1 evenly spaced values.

    The values are symmetric about 0, up to the largest weight of each output row. Embeddings, norms
    and biases are kept. The result is a compressed model, not an equivalent one.

    Args:
        model: A Llama.
        bits: Bits per weight, at least 2.

    Raises:
        ModelError: There are fewer than 2 bits.
    """
    if bits < 2:
        raise ModelError(f"{bits} bits are too few for steps on both sides of 0: give at least 2")
    weights = copy_weights(model)
    for key, weight in weights.items():
        if key.startswith("model.layers.") and weight.ndim == 2:
            step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            weights[key] = (weight / step.clamp(min=torch.finfo(step.dtype).tiny)).round() * step
    return build_model(model, weights, f"rounded to {bits} bits")


def _renumber_layer(weights: Weights, old: int, new: int) -> Weights:
    start = f"model.layers.{old}."
    return {
        f"model.layers.{new}.{key.removeprefix(start)}": weight
        for key, weight in weights.items()
        if key.startswith(start)
    }


def _silent_weight(key: str, weight: Tensor, rng: np.random.Generator) -> Tensor:
    if any(f".{writer}." in key for writer in _WRITERS):
        return torch.zeros_like(weight)
    return weight if "layernorm" in key else sample_like(weight, weight.shape, rng)
