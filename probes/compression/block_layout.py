"""Matrices of heads and neurons in the blocks of Llama, GPT-2 and GPT-NeoX."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool
from torch import Tensor, nn

from probes.compression.pruning.masks import layer_matrices
from probes.errors import ModelError


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Layout of the blocks of one architecture.

    Attributes:
        layers_path: Path of the list of blocks.
        attention, mlp: Axes of each matrix of a block, by its path.
        writers: Layers of a block that write into the residual stream.
        width_key: Name of the MLP width in the config.
    """

    layers_path: str
    attention: Mapping[str, str]
    mlp: Mapping[str, str]
    writers: tuple[str, str]
    width_key: str

    def unit_matrices(self, unit: str) -> Mapping[str, str]:
        """Return the axes of the matrices that hold the units ("head" or "neuron")."""
        return self.attention if unit == "head" else self.mlp

    def writer_weight(self, unit: str, layer: int) -> str:
        """Return the name of the output weights of the units of a layer."""
        return f"{self.layers_path}.{layer}.{self.writers[unit == 'neuron']}.weight"


_LAYOUTS = {
    "llama": BlockLayout(
        "model.layers",
        {
            "self_attn.q_proj": "(head d_head) d_model",
            "self_attn.k_proj": "(kv_head d_head) d_model",
            "self_attn.v_proj": "(kv_head d_head) d_model",
            "self_attn.o_proj": "d_model (head d_head)",
        },
        {
            "mlp.gate_proj": "neuron d_model",
            "mlp.up_proj": "neuron d_model",
            "mlp.down_proj": "d_model neuron",
        },
        ("self_attn.o_proj", "mlp.down_proj"),
        "intermediate_size",
    ),
    "gpt2": BlockLayout(
        "transformer.h",
        {
            "attn.c_attn": "d_model (three head d_head)",
            "attn.c_proj": "(head d_head) d_model",
        },
        {"mlp.c_fc": "d_model neuron", "mlp.c_proj": "neuron d_model"},
        ("attn.c_proj", "mlp.c_proj"),
        "n_inner",
    ),
    "gpt_neox": BlockLayout(
        "gpt_neox.layers",
        {
            "attention.query_key_value": "(head three d_head) d_model",
            "attention.dense": "d_model (head d_head)",
        },
        {"mlp.dense_h_to_4h": "neuron d_model", "mlp.dense_4h_to_h": "d_model neuron"},
        ("attention.dense", "mlp.dense_4h_to_h"),
        "intermediate_size",
    ),
}


def block_layout(hf_model: nn.Module, name: str) -> BlockLayout:
    """Return the layout of a model's blocks.

    Raises:
        ModelError: The architecture is not supported.
    """
    kind = _config(hf_model).model_type
    if kind not in _LAYOUTS:
        raise ModelError(
            f"{name} is a {kind!r} model: heads, neurons and layers are supported for "
            f"{', '.join(_LAYOUTS)}. Give one of these."
        )
    return _LAYOUTS[kind]


def axis_sizes(hf_model: nn.Module) -> dict[str, int]:
    """Return the length of each axis by name, and the number of layers as "layer"."""
    config = _config(hf_model)
    heads = config.num_attention_heads
    return {
        "layer": config.num_hidden_layers,
        "head": heads,
        "kv_head": getattr(config, "num_key_value_heads", None) or heads,
        "d_head": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "d_model": config.hidden_size,
        "neuron": _mlp_width(hf_model),
        "three": 3,
    }


def unit_masks(
    hf_model: nn.Module, layout: BlockLayout, unit: str, kept: Bool[Tensor, "layer unit"]
) -> dict[str, Bool[Tensor, "_ _"]]:
    """Return masks of the matrices of heads or neurons from the kept units.

    A key and value head is pruned if all of its query heads are.
    """
    sizes = axis_sizes(hf_model)
    masks = {}
    for layer, row in enumerate(kept):
        for part, axes in layout.unit_matrices(unit).items():
            own = row
            if "kv_head" in axes:
                own = rearrange(row, "(kv_head each) -> kv_head each", kv_head=sizes["kv_head"])
                own = own.any(dim=1)
            words = axes.replace("(", "").replace(")", "").split()
            first = "kv_head" if "kv_head" in axes else unit
            lengths = {word: sizes[word] for word in words}
            name = f"{layout.layers_path}.{layer}.{part}.weight"
            masks[name] = repeat(own, f"{first} -> {axes}", **lengths)
    return masks


def silent_units(hf_model: nn.Module, layout: BlockLayout, unit: str) -> Bool[Tensor, "layer unit"]:
    """Return which heads or neurons have output weights that are all 0."""
    own, sizes = layer_matrices(hf_model), axis_sizes(hf_model)
    last = "head d_head d_model" if unit == "head" else "neuron d_model"
    axes = layout.unit_matrices(unit)[layout.writers[unit == "neuron"]]
    lengths = {"head": sizes["head"]} if unit == "head" else {}
    found = []
    for layer in range(sizes["layer"]):
        weight = own[layout.writer_weight(unit, layer)].detach()
        parts = rearrange(weight, f"{axes} -> {last}", **lengths)
        found.append((parts == 0).flatten(1).all(dim=1))
    return torch.stack(found)


def _mlp_width(hf_model: nn.Module) -> int:
    config = _config(hf_model)
    # GPT-2 leaves it unset for the default of four times the residual width.
    return getattr(config, _LAYOUTS[config.model_type].width_key) or 4 * config.hidden_size


def _config(hf_model: Any) -> Any:  # noqa: ANN401 (a Hugging Face config is untyped)
    return hf_model.config
