"""Weights and activations of a decoder, head by head.

Edge patching gives every head, and each of its q, k and v, its own input. The model's modules do
not allow that, so blocks are rebuilt from their weights. Rebuilt logits are checked against the
model's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import ModelError
from probes.models.files.memory import is_out_of_memory
from probes.models.layers.decoder_layer import DecoderLayer, read_layer
from probes.models.layers.norm import Norm, read_norm
from probes.models.model import Model

# Largest difference of a rebuilt logit, as a fraction of the largest logit.
_LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}


@dataclass(frozen=True, eq=False)
class DecoderWeights:
    """Weights of a decoder.

    Attributes:
        unembed: Logits of all tokens from the normalized residual stream.
        token_logits: The same for some tokens of each prompt: from "*circuit prompt d_model" and
            "prompt token" to "*circuit prompt token".
    """

    layers: tuple[DecoderLayer, ...]
    final_norm: Norm
    unembed: Callable[[Tensor], Tensor]
    token_logits: Callable[[Tensor, Tensor], Tensor]
    parallel: bool


@dataclass(frozen=True, eq=False)
class DecoderActivations:
    """Activations of one run; tuples have one entry a layer.

    Attributes:
        embed: Output of the token embedding.
        resid_pre, resid_mid: Residual stream before attention, and before the MLP.
        resid_final: Residual stream after the last block.
        q, k: Queries and keys after rotary embedding.
        v: Values.
        z: Attention-weighted values of each head.
        mlp_out: Output of each MLP.
    """

    embed: Float[Tensor, "prompt position d_model"]
    resid_pre: tuple[Tensor, ...]
    resid_mid: tuple[Tensor, ...]
    resid_final: Float[Tensor, "prompt position d_model"]
    q: tuple[Tensor, ...]
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    z: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class DecoderInputs:
    """Inputs of the first block, and what all blocks share.

    Attributes:
        embed: Output of the token embedding.
        position_embed: Learned position embedding; zero with rotary embedding.
        rotary: Cosines and sines of each layer's rotary embedding, or None.
        attention_mask: True for keys that a query may attend to; padding attends to itself.
        logits: The model's logits at the readout.
    """

    embed: Float[Tensor, "prompt position d_model"]
    position_embed: Float[Tensor, "prompt position d_model"]
    rotary: tuple[tuple[Tensor, Tensor] | None, ...]
    attention_mask: Bool[Tensor, "prompt query key"]
    logits: Float[Tensor, "prompt vocab"]


def decompose(model: Model) -> DecoderWeights:
    """Weights of a model's blocks, sharing memory with the model.

    Raises:
        ModelError: The architecture is not supported.
    """
    try:
        return _decompose(model)
    except (AttributeError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"The blocks of {model.name} ({model.shape.architecture}) cannot be "
            f"decomposed: {error}. Use a decoder such as Llama, GPT-2 or GPT-NeoX."
        ) from error


def _decompose(model: Model) -> DecoderWeights:
    bridge = model.bridge
    layers = [read_layer(model, block) for block in bridge.blocks]

    def unembed(resid: Tensor) -> Tensor:
        return bridge.adapter.apply_output_logits_transform(bridge.unembed(resid))

    weight, bias = bridge.unembed.W_U.detach().mT, bridge.unembed.b_U.detach()
    transform = bridge.adapter.apply_output_logits_transform

    def token_logits(resid: Tensor, tokens: Tensor) -> Tensor:
        logits = einsum(resid, weight[tokens], "... b d, b n d -> ... b n")
        return transform(logits + bias[tokens])

    final_norm = read_norm(bridge.ln_final)
    return DecoderWeights(
        tuple(layers), final_norm, unembed, token_logits, parallel=model.shape.parallel
    )


@torch.no_grad()
def capture_decoder(
    model: Model,
    weights: DecoderWeights,
    ids: Int[Tensor, "prompt position"],
    mask: Bool[Tensor, "prompt position"],
    readout: Int[Tensor, " prompt"],
) -> tuple[DecoderInputs, DecoderActivations]:
    """Inputs and activations of one run; the weights are checked on the longest prompt.

    Raises:
        ModelError: Rebuilt logits differ from the model's, or those are not finite.
    """
    layers = range(model.shape.layers)
    hooks = {name: f"attn.hook_{name}" for name in ("q", "k", "v", "z")}
    hooks |= {"resid_pre": "hook_resid_pre", "mlp_out": "hook_mlp_out"}
    hooks["resid_mid"] = "hook_resid_pre" if weights.parallel else "hook_resid_mid"
    names = {key: [f"blocks.{n}.{hook}" for n in layers] for key, hook in hooks.items()}
    points = model.bridge.hook_dict
    angle_hooks = [[f"blocks.{n}.attn.hook_{name}" for name in ("cos", "sin")] for n in layers]
    last = f"blocks.{layers[-1]}.hook_resid_post"
    known = {hook for hook in chain(*angle_hooks) if hook in points}
    with model.recording({*chain(*names.values()), *known, last, "hook_embed"}) as kept:
        logits = model.logits(ids, mask, readout[:, None])[:, 0]
    # Layers may differ: local and global angles (Gemma-3), or none (SmolLM3).
    rotary = tuple(
        (kept[cos].expand(len(ids), -1, -1), kept[sin].expand(len(ids), -1, -1))
        if cos in kept
        else None
        for cos, sin in angle_hooks
    )
    parts = {key: tuple(kept[hook] for hook in group) for key, group in names.items()}
    parts |= {
        port: tuple(
            apply_rotary(layer.normalize(port, value), angles)
            for layer, value, angles in zip(weights.layers, parts[port], rotary, strict=True)
        )
        for port in "qk"
    }
    embed = kept["hook_embed"]
    position_embed = kept[names["resid_pre"][0]] - embed
    inputs = DecoderInputs(embed, position_embed, rotary, _causal_mask(mask), logits)
    activations = DecoderActivations(embed=embed, resid_final=kept[last], **parts)
    _check_rebuilt_logits(model, weights, inputs, readout)
    return inputs, activations


def _causal_mask(mask: Bool[Tensor, "prompt position"]) -> Bool[Tensor, "prompt query key"]:
    position = torch.arange(mask.shape[1], device=mask.device)
    causal = position[:, None] >= position
    return (causal & mask[:, None]) | (position[:, None] == position)


@torch.no_grad()
def rebuild_residual(
    weights: DecoderWeights, inputs: DecoderInputs
) -> Float[Tensor, "prompt position d_model"]:
    """Residual stream after the last block, rebuilt from the weights."""
    x = inputs.embed + inputs.position_embed
    for layer, rotary in zip(weights.layers, inputs.rotary, strict=True):
        y = layer.attn_norm(x)
        q, k = (apply_rotary(layer.project(port, y), rotary) for port in "qk")
        allowed = layer.visible_keys(inputs.attention_mask)
        z = layer.attend(q, k, layer.project("v", y), allowed)
        mid = x + layer.attn_post_norm(layer.sum_heads(z))
        x = mid + layer.mlp(layer.mlp_norm(x if weights.parallel else mid))
    return x


def _check_rebuilt_logits(
    model: Model, weights: DecoderWeights, inputs: DecoderInputs, readout: Tensor
) -> None:
    """Check rebuilt logits of the longest prompt against the model's."""
    if not bool(inputs.logits.isfinite().all()):
        raise ModelError(
            f"{model.name} gives NaN or infinite logits on these prompts. Load it with a wider "
            "dtype, or check the weights."
        )
    longest = int(inputs.attention_mask.sum((1, 2)).argmax())
    row = slice(longest, longest + 1)
    one = DecoderInputs(
        inputs.embed[row],
        inputs.position_embed[row],
        tuple(angles and (angles[0][row], angles[1][row]) for angles in inputs.rotary),
        inputs.attention_mask[row],
        inputs.logits[row],
    )
    try:
        final = weights.final_norm(rebuild_residual(weights, one)[:, readout[longest]])
        logits = weights.unembed(final)
        some = one.logits.topk(4).indices
        logits = logits.scatter(1, some, weights.token_logits(final, some))
        gap = float((logits - one.logits).abs().max() / one.logits.abs().max().clamp(min=1e-2))
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        # The shapes, or the arguments of an MLP, do not fit.
        gap = float("inf")
    if not gap <= _LOGIT_TOLERANCE[model.dtype]:
        raise ModelError(
            f"The blocks of {model.name} ({model.shape.architecture}) are not the plain sum of "
            f"heads and MLP that circuits are cut from: rebuilt logits differ by {gap:.1e} of the "
            "largest. Use a decoder such as Llama, GPT-2 or GPT-NeoX."
        )


def apply_rotary(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Rotate queries or keys "... prompt position head d_head" (Su et al. 2021, 2104.09864)."""
    if rotary is None:
        return x
    cos, sin = (angle.unsqueeze(-2) for angle in rotary)
    rotated, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    half = rotated.shape[-1] // 2
    swapped = torch.cat([-rotated[..., half:], rotated[..., :half]], -1)
    return torch.cat([rotated * cos + swapped * sin, rest], -1)
