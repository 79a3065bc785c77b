"""A Llama's weights by plain name, cut into heads and put together into another model."""

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

Weights = dict[str, Tensor]

# The bridge lists every weight under several names: these are the ones of the model itself.
_WEIGHT_NAME = re.compile(
    r"lm_head\.weight|model\.(embed_tokens|norm)\.weight|model\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|\w+_layernorm)\.(weight|bias)"
)


@dataclass(frozen=True, eq=False)
class HeadSlot:
    """What a head of a twin holds: a head of the original or a part of it, or nothing that acts.

    Attributes:
        head: Number of the head in the original's layer; None for a random head that writes
            nothing.
        value: What each value direction is multiplied by; None leaves them as they are.
        out: What the column of the output that reads each direction is multiplied by.
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
    """A model made of another one, and where the parts of the original went.

    Attributes:
        model: The twin.
        surgery: What was done, in words.
        heads: For every head of the original, such as "L0.H1", the heads of the twin that do
            its work: none where nothing does it, several where it was split.
        layers: For every layer of the original, its number in the twin; None where it has none.
    """

    model: Model
    rewrite: str
    head_map: Mapping[str, tuple[str, ...]]
    layer_map: tuple[int | None, ...]


def copy_weights(model: Model) -> Weights:
    """Copy the weights of a Llama under Hugging Face's names, in float64 on the processor."""
    if model.shape.architecture != "LlamaForCausalLM":
        raise ModelError(
            f"Twins are made of Llama models: {model.name} is a {model.shape.architecture}. "
            "Give a Llama, such as a member of the family."
        )
    found = {
        key.replace("._original_component", ""): value
        for key, value in model.bridge.original_model.state_dict().items()
    }
    return {
        key: value.detach().to("cpu", torch.float64, copy=True)
        for key, value in found.items()
        if _WEIGHT_NAME.fullmatch(key)
    }


def build_model(model: Model, weights: Weights, rewrite: str, **changes: object) -> Model:
    """Put weights into a new model like the one given, save for `changes` of its config."""
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


def split_by_head(weights: Weights, layer: int, d_head: int) -> Weights:
    """Cut one layer's attention into heads, which come first: [head, d_head, ...].

    The bias of the output belongs to no head and is left out.
    """
    start = f"model.layers.{layer}.self_attn."
    return {
        key: rearrange(weight, "d_model (head d_head) -> head d_head d_model", d_head=d_head)
        if "o_proj" in key
        else rearrange(weight, "(head d_head) ... -> head d_head ...", d_head=d_head)
        for key, weight in weights.items()
        if key.startswith(start) and not key.endswith("o_proj.bias")
    }


def join_heads(parts: Mapping[str, Tensor]) -> Weights:
    """Put back together what `by_head` cut."""
    return {
        key: rearrange(part, "head d_head d_model -> d_model (head d_head)")
        if "o_proj" in key
        else rearrange(part, "head d_head ... -> (head d_head) ...")
        for key, part in parts.items()
    }


def expand_kv_heads(weights: Weights, shape: Shape) -> Weights:
    """Give every head keys and values of its own, as copies of its group's."""
    each, new = shape.heads // shape.kv_heads, dict(weights)
    for layer in range(shape.layers):
        parts = split_by_head(weights, layer, shape.d_head)
        for key, part in parts.items():
            if ".k_proj." in key or ".v_proj." in key:
                parts[key] = repeat(part, "kv_head ... -> (kv_head each) ...", each=each)
        new |= join_heads(parts)
    return new


def fill_slots(
    weights: Weights,
    shape: Shape,
    slots: Sequence[Sequence[HeadSlot]],
    rng: np.random.Generator,
) -> Weights:
    """Fill the slots of each layer from heads that have keys and values of their own."""
    new = dict(weights)
    for layer, wanted in enumerate(slots):
        parts = split_by_head(weights, layer, shape.d_head)
        new |= join_heads({key: _fill_part(key, part, wanted, rng) for key, part in parts.items()})
    return new


def head_map_of(slots: Sequence[Sequence[HeadSlot]], shape: Shape) -> dict[str, tuple[str, ...]]:
    """Say for every head of the original which slots do its work."""
    found: dict[str, tuple[str, ...]] = dict.fromkeys(head_names(shape), ())
    for layer, wanted in enumerate(slots):
        for index, slot in enumerate(wanted):
            if not slot.is_silent:
                found[f"L{layer}.H{slot.head}"] += (f"L{layer}.H{index}",)
    return found


def head_names(shape: Shape) -> tuple[str, ...]:
    """List the heads of a model, layer by layer."""
    return tuple(f"L{layer}.H{h}" for layer in range(shape.layers) for h in range(shape.heads))


def heads_by_layer(model: Model, heads: Sequence[str]) -> tuple[set[int], ...]:
    """Sort heads such as "L0.H1" by layer; refuse those that the model does not have."""
    known = head_names(model.shape)
    unknown = [head for head in heads if head not in known]
    if unknown or isinstance(heads, str):
        raise SiteError(
            f"{model.name} has no heads {', '.join(unknown)}: give a list of heads from "
            f"{known[0]!r} to {known[-1]!r}."
        )
    every = range(model.shape.heads)
    return tuple(
        {head for head in every if f"L{layer}.H{head}" in heads}
        for layer in range(model.shape.layers)
    )


def smallest_head_count(model: Model, minimum: int) -> int:
    """Find the smallest number of heads, `least` or more, that divides the width."""
    width = model.shape.d_model
    for count in range(minimum, width + 1):
        if width % count == 0:
            return count
    raise ModelError(
        f"{model.name} is {width} wide and cannot have {minimum} heads: their number must divide "
        "the width. Split fewer heads."
    )


def same_weights(weight: Float[Tensor, "head ..."], one: int, other: int) -> bool:
    """Whether two heads hold the same weights, up to float32 rounding."""
    gap = (weight[one] - weight[other]).abs().max()
    return bool(gap <= 1e-5 * weight.abs().max())


def sample_like(weight: Tensor, shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Draw numbers as spread as those of a weight."""
    drawn = torch.from_numpy(rng.standard_normal(tuple(shape)))
    return drawn * weight.square().mean().sqrt()


def _fill_part(
    key: str, part: Tensor, slots: Sequence[HeadSlot], rng: np.random.Generator
) -> Tensor:
    made = []
    for slot in slots:
        if slot.head is None:
            empty = torch.zeros_like(part[0])
            made.append(empty if "o_proj" in key else sample_like(part, part.shape[1:], rng))
            continue
        by = slot.output_scale if "o_proj" in key else slot.value_scale if "v_proj" in key else None
        own = part[slot.head]
        made.append(own if by is None else einsum(own, by, "d_head ..., d_head -> d_head ..."))
    return torch.stack(made)


def build_equivalent(
    model: Model,
    weights: Weights,
    rewrite: str,
    heads: Mapping[str, tuple[str, ...]],
    **changes: object,
) -> EquivalentModel:
    """Build the twin whose layers are those of the original, in their order."""
    layers = tuple(range(model.shape.layers))
    ordered = {head: heads[head] for head in head_names(model.shape)}
    return EquivalentModel(
        build_model(model, weights, rewrite, **changes), rewrite, ordered, layers
    )
