"""Weights of a Llama by name: copied, split into heads, and built into an equivalent model."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from probes.errors import ModelError, SiteError
from probes.models.model import Model, Shape, wrap
from probes.models.process_state import seeded_init
from probes.models.site import head_name, head_names

Weights = dict[str, Tensor]

# The bridge lists each weight under several names; these are the names of the model itself.
_WEIGHT_NAME = re.compile(
    r"lm_head\.weight|model\.(embed_tokens|norm)\.weight|model\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|\w+_layernorm)\.(weight|bias)"
)


@dataclass(frozen=True, eq=False)
class HeadSlot:
    """Content of one head of a rewritten layer.

    Attributes:
        head: Head of the original layer; None for a random head that writes nothing.
        value_scale: Factor of each value direction; None for 1.
        output_scale: Factor of the output column of each direction; None for 1.
    """

    head: int | None
    value_scale: Float[Tensor, " d_head"] | None = None
    output_scale: Float[Tensor, " d_head"] | None = None

    @property
    def is_silent(self) -> bool:
        """Whether the head writes nothing."""
        return self.head is None or (
            self.output_scale is not None and not bool(self.output_scale.any())
        )


@dataclass(frozen=True, eq=False)
class EquivalentModel:
    """A rewritten model, with the true map of heads and layers.

    Attributes:
        model: The rewritten model.
        rewrite: Description of the rewrite.
        head_map: For each head of the original, such as "L0.H1", the heads that do its work: none
            if it was removed, several if it was split.
        layer_map: For each layer of the original its new number; None if it was removed.
    """

    model: Model
    rewrite: str
    head_map: Mapping[str, tuple[str, ...]]
    layer_map: tuple[int | None, ...]


def copy_weights(model: Model) -> Weights:
    """Weights of a Llama under Hugging Face's names, in float64 on the CPU.

    Raises:
        ModelError: The model is not a Llama.
    """
    if model.shape.architecture != "LlamaForCausalLM":
        raise ModelError(
            f"{model.name} is a {model.shape.architecture}: equivalent models are made of Llama "
            "models, such as the embedded models"
        )
    weights = {
        key.replace("._original_component", ""): value
        for key, value in model.bridge.original_model.state_dict().items()
    }
    return {
        key: value.detach().to("cpu", torch.float64, copy=True)
        for key, value in weights.items()
        if _WEIGHT_NAME.fullmatch(key)
    }


def build_model(model: Model, weights: Weights, rewrite: str, **changes: object) -> Model:
    """Model with new weights; `changes` overwrite its config."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    config.head_dim = model.shape.d_head
    for key, value in changes.items():
        setattr(config, key, value)
    with seeded_init(0):  # The weights are overwritten below.
        hf_model = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    hf_model.load_state_dict(weights)
    return wrap(
        hf_model.to(model.device),
        name=f"{model.name} {rewrite}",
        origin=f"{model.origin}, {rewrite}",
        tokenizer=model.tokenizer,
    )


def build_equivalent(
    model: Model,
    weights: Weights,
    rewrite: str,
    heads: Mapping[str, tuple[str, ...]] | None = None,
    **changes: object,
) -> EquivalentModel:
    """Equivalent model with the layers of the original; `heads` is the identity by default."""
    names = head_names(model.shape.layers, model.shape.heads)
    head_map = {head: heads[head] if heads else (head,) for head in names}
    layer_map = tuple(range(model.shape.layers))
    return EquivalentModel(
        build_model(model, weights, rewrite, **changes), rewrite, head_map, layer_map
    )


def split_by_head(weights: Weights, layer: int, d_head: int) -> Weights:
    """Attention weights of one layer as "head d_head ..."; without the output bias."""
    start = f"model.layers.{layer}.self_attn."
    return {
        key: rearrange(weight, "d_model (head d_head) -> head d_head d_model", d_head=d_head)
        if "o_proj" in key
        else rearrange(weight, "(head d_head) ... -> head d_head ...", d_head=d_head)
        for key, weight in weights.items()
        if key.startswith(start) and not key.endswith("o_proj.bias")
    }


def join_heads(parts: Mapping[str, Tensor]) -> Weights:
    """Inverse of `split_by_head`."""
    return {
        key: rearrange(part, "head d_head d_model -> d_model (head d_head)")
        if "o_proj" in key
        else rearrange(part, "head d_head ... -> (head d_head) ...")
        for key, part in parts.items()
    }


def expand_kv_heads(weights: Weights, shape: Shape) -> Weights:
    """Give each query head its own copy of the keys and values of its group."""
    each, expanded = shape.heads // shape.kv_heads, dict(weights)
    for layer in range(shape.layers):
        parts = split_by_head(weights, layer, shape.d_head)
        for key, part in parts.items():
            if ".k_proj." in key or ".v_proj." in key:
                parts[key] = repeat(part, "kv_head ... -> (kv_head each) ...", each=each)
        expanded |= join_heads(parts)
    return expanded


def fill_slots(
    weights: Weights, shape: Shape, slots: Sequence[Sequence[HeadSlot]], rng: np.random.Generator
) -> Weights:
    """Fill the slots of each layer; `weights` need keys and values for every head."""
    filled = dict(weights)
    for layer, of_layer in enumerate(slots):
        parts = split_by_head(weights, layer, shape.d_head)
        filled |= join_heads(
            {
                key: torch.stack([_fill_slot(key, part, slot, rng) for slot in of_layer])
                for key, part in parts.items()
            }
        )
    return filled


def _fill_slot(key: str, part: Tensor, slot: HeadSlot, rng: np.random.Generator) -> Tensor:
    if slot.head is None:
        is_output = "o_proj" in key
        return torch.zeros_like(part[0]) if is_output else sample_like(part, part.shape[1:], rng)
    scale = slot.output_scale if "o_proj" in key else slot.value_scale if "v_proj" in key else None
    weight = part[slot.head]
    return weight if scale is None else einsum(weight, scale, "d_head ..., d_head -> d_head ...")


def slot_head_map(slots: Sequence[Sequence[HeadSlot]], shape: Shape) -> dict[str, tuple[str, ...]]:
    """For each head of the original the slots that do its work."""
    names = head_names(shape.layers, shape.heads)
    head_map: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    for layer, of_layer in enumerate(slots):
        for index, slot in enumerate(of_layer):
            if slot.head is not None and not slot.is_silent:
                head_map[head_name(layer, slot.head)] += (head_name(layer, index),)
    return head_map


def heads_by_layer(model: Model, heads: Sequence[str]) -> tuple[set[int], ...]:
    """Numbers of heads such as "L0.H1" for each layer.

    Raises:
        SiteError: The model lacks a head, or `heads` is a string.
    """
    known = head_names(model.shape.layers, model.shape.heads)
    unknown = [head for head in heads if head not in known]
    if unknown or isinstance(heads, str):
        raise SiteError(
            f"{model.name} has no heads {', '.join(unknown)}: give a list of heads from "
            f"{known[0]!r} to {known[-1]!r}."
        )
    numbers = range(model.shape.heads)
    return tuple(
        {number for number in numbers if head_name(layer, number) in heads}
        for layer in range(model.shape.layers)
    )


def smallest_head_count(model: Model, minimum: int) -> int:
    """Smallest number of heads, `minimum` or more, that divides the width."""
    width = model.shape.d_model
    for count in range(minimum, width + 1):
        if width % count == 0:
            return count
    raise ModelError(
        f"{model.name} has width {width} and cannot have {minimum} heads: their number must divide "
        "the width. Split fewer heads."
    )


def equal_heads(
    weights: Weights, layer: int, shape: Shape, projections: tuple[str, ...]
) -> list[list[int]]:
    """Clusters of heads whose projections are equal up to float32 rounding."""
    parts = split_by_head(weights, layer, shape.d_head)
    compared = [part for key, part in parts.items() if key.split(".")[-2] in projections]
    clusters: list[list[int]] = []
    for head in range(shape.heads):
        for cluster in clusters:
            if all(_is_close(part[cluster[0]], part[head], part) for part in compared):
                cluster.append(head)
                break
        else:
            clusters.append([head])
    return clusters


def _is_close(first: Tensor, second: Tensor, whole: Tensor) -> bool:
    return bool((first - second).abs().max() <= 1e-5 * whole.abs().max())


def sample_like(weight: Tensor, shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Normal samples with the root mean square of a weight."""
    samples = torch.from_numpy(rng.standard_normal(tuple(shape)))
    return samples * weight.square().mean().sqrt()
