"""Whole layers of a model, of any kind of decoder: where they are listed, and a model of some."""

import copy
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from probes.errors import ModelError

Decoder = TypeVar("Decoder", bound=nn.Module)


def take_layers(hf_model: Decoder, order: Sequence[int]) -> Decoder:
    """Build a model of some layers of another, in the order given; the rest is as it was.

    Raises:
        ModelError: The layers cannot be found, or do not exist.
    """
    source: dict[str, Tensor] = hf_model.state_dict()
    config: Any = copy.deepcopy(hf_model.config)
    stem = layers_name(hf_model)
    config.num_hidden_layers = len(order)
    if getattr(config, "layer_types", None):  # One word a layer, where layers differ.
        config.layer_types = [config.layer_types[k] for k in order]
    model: Any = type(hf_model)
    taken = model._from_config(config, attn_implementation="eager", dtype=hf_model.dtype)
    state = {}
    for name in taken.state_dict():
        found = re.fullmatch(rf"{re.escape(stem)}\.(\d+)(\..*)", name)
        old = f"{stem}.{order[int(found[1])]}{found[2]}" if found else name
        state[name] = source[old]
    taken.load_state_dict(state)
    return taken.eval()


def layers_name(hf_model: nn.Module) -> str:
    """Return the name of the list of a model's layers, such as "model.layers"."""
    wanted = int(hf_model.config.num_hidden_layers)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    for name, module in hf_model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return name
    raise ModelError(
        f"The layers of a {type(hf_model).__name__} were not found: no list of {wanted} modules. "
        "Use a decoder such as Llama, GPT-2 or GPT-NeoX."
    )
