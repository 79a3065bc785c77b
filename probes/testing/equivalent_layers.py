"""Twins that leave the heads in their places: the stream, the neurons, the layers, the rounding."""

import numpy as np
import torch
from scipy.stats import ortho_group
from torch import Tensor

from probes.errors import ModelError
from probes.models.model import Model
from probes.testing.llama_weights import (
    EquivalentModel,
    Weights,
    build_equivalent,
    build_model,
    copy_weights,
    head_names,
    sample_like,
)

_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def rotate_residual(model: Model, seed: int = 0) -> EquivalentModel:
    """Turn the residual stream by a random orthogonal matrix (Haar measure).

    An RMS norm whose weights stand in what reads it takes no notice of a turn (Ashkboos et al.
    2024, arXiv 2401.15024), so they are folded first; the unembedding is untied for that.
    """
    weights, width = copy_weights(model), model.shape.d_model
    turn = torch.from_numpy(ortho_group.rvs(width, random_state=np.random.default_rng(seed)))
    # The embedding turns alone: what reads the last of the stream takes the final norm in, too.
    weights["lm_head.weight"] = weights["lm_head.weight"] * weights["model.norm.weight"] @ turn
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] @ turn
    weights["model.norm.weight"] = torch.ones(width)
    for layer in range(model.shape.layers):
        start = f"model.layers.{layer}."
        for norm, readers in _READERS.items():
            for reader in readers:
                key = f"{start}{reader}.weight"
                weights[key] = weights[key] * weights[f"{start}{norm}.weight"] @ turn
            weights[f"{start}{norm}.weight"] = torch.ones(width)
        for writer in _WRITERS:
            weights[f"{start}{writer}.weight"] = turn.T @ weights[f"{start}{writer}.weight"]
            if (bias := f"{start}{writer}.bias") in weights:
                weights[bias] = weights[bias] @ turn
    heads = {head: (head,) for head in head_names(model.shape)}
    return build_equivalent(model, weights, f"rotated {seed}", heads, tie_word_embeddings=False)


def permute_neurons(model: Model, seed: int = 0) -> EquivalentModel:
    """Shuffle the neurons of every MLP."""
    rng, weights = np.random.default_rng(seed), copy_weights(model)
    for layer in range(model.shape.layers):
        start = f"model.layers.{layer}.mlp."
        order = rng.permutation(weights[f"{start}down_proj.weight"].shape[1])
        for key in [key for key in weights if key.startswith(start)]:
            if key.endswith("down_proj.weight"):
                weights[key] = weights[key][:, order]
            elif "down_proj" not in key:
                weights[key] = weights[key][order]
    heads = {head: (head,) for head in head_names(model.shape)}
    return build_equivalent(model, weights, f"neurons permuted {seed}", heads)


def insert_silent_layer(model: Model, at: int, seed: int = 0) -> EquivalentModel:
    """Insert a layer that attends and computes, by random weights, but writes nothing.

    Args:
        model: A Llama.
        at: Number of the new layer, from 0 to the number of layers: those from there on move up.
        seed: Draws its weights, as spread as those of the layer beside it.
    """
    shape, weights = model.shape, copy_weights(model)
    if not 0 <= at <= shape.layers:
        raise ModelError(
            f"No layer can be inserted at {at}: {model.name} has {shape.layers} layers. "
            f"Give 0 to {shape.layers}."
        )
    layers = tuple(layer + (layer >= at) for layer in range(shape.layers))
    moved: Weights = {k: v for k, v in weights.items() if not k.startswith("model.layers.")}
    for old, new in enumerate(layers):
        moved |= _renumber_layer(weights, old, new)
    rng = np.random.default_rng(seed)
    for key, weight in _renumber_layer(weights, min(at, shape.layers - 1), at).items():
        moved[key] = _silent_weight(key, weight, rng)
    heads = {
        f"L{layer}.H{head}": (f"L{layers[layer]}.H{head}",)
        for layer in range(shape.layers)
        for head in range(shape.heads)
    }
    surgery = f"idle layer at {at}"
    return EquivalentModel(
        build_model(model, moved, surgery, num_hidden_layers=shape.layers + 1),
        surgery,
        heads,
        layers,
    )


def round_weights(model: Model, bits: int) -> Model:
    """Round the weight matrices of the layers to the nearest of 2 ** bits - 1 even steps.

    Steps are symmetric about zero, and the greatest weight of each output row is the last of
    them. Embeddings, norms and biases stay as they are, and all weights stay floats: a relative
    on the same graph, not a twin.

    Args:
        model: A Llama.
        bits: Bits for each weight, 2 or more.
    """
    if bits < 2:
        raise ModelError(f"{bits} bits hold no step on either side of zero: give 2 or more.")
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
