"""A model's linear layers: found, made plain for the libraries, and written back."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.errors import ModelError
from probes.models.provenance import storage_part


def linear_layers(hf_model: nn.Module, name: str) -> list[str]:
    """List the linear layers of a model's blocks by name; the unembedding is not among them.

    Raises:
        ModelError: There are none, one holds no plain floats, or there are matrices that belong
            to no linear layer, which would stay as they are unnoticed.
    """
    head = getattr(hf_model, "get_output_embeddings", lambda: None)()
    found, left = [], []
    for place, module in hf_model.named_modules():
        if module is head or isinstance(module, nn.Embedding):
            continue
        # A mask or a parametrization has moved the parameter elsewhere.
        plain = type(weight := getattr(module, "weight", None)) is nn.Parameter
        if not isinstance(module, nn.Linear | _conv1d_class()):
            own = module.named_parameters(recurse=False)
            left += [f"{place}.{key}" for key, w in own if w.ndim > 1]
        elif storage_part(f"{place}.weight", 2) == "weights":
            if not plain or not weight.is_floating_point():
                raise ModelError(
                    f"{place} of {name} holds no plain floats ({type(weight).__name__} found): "
                    "give the model as it was before it was packed or masked, or make the masks "
                    "permanent (torch.nn.utils.prune.remove)."
                )
            found.append(place)
    if left:
        raise ModelError(
            f"{left[0]} of {name} belongs to no linear layer, so that it would stay as it is: "
            f"{len(left)} such found. Give a decoder such as Llama, GPT-2 or GPT-NeoX."
        )
    if not found:
        raise ModelError(
            f"{name} has no linear layer to quantize: give a decoder such as Llama or GPT-2."
        )
    return found


def weight_matrix(module: Any) -> Float[Tensor, "row column"]:  # noqa: ANN401 (Linear or Conv1D)
    """Return a linear layer's weights, one output a row."""
    return (
        module.weight.detach().T if isinstance(module, _conv1d_class()) else module.weight.detach()
    )


@torch.no_grad()
def conv1d_to_linear(hf_model: nn.Module, names: list[str]) -> nn.Module:
    """Replace GPT-2's transposed layers by linear ones, in place: libraries pass them over."""
    for name in names:
        old: Any = hf_model.get_submodule(name)
        if isinstance(old, _conv1d_class()):
            weight = weight_matrix(old)
            new = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            new.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            new.bias = old.bias
            hf_model.set_submodule(name, new.eval())
    return hf_model


@torch.no_grad()
def set_weight(hf_model: nn.Module, name: str, weight: Float[Tensor, "row column"]) -> None:
    """Give a linear layer other weights, whichever way round it keeps them."""
    module: Any = hf_model.get_submodule(name)
    module.weight.copy_(weight.T if isinstance(module, _conv1d_class()) else weight)


def _conv1d_class() -> type:
    from transformers.pytorch_utils import Conv1D

    return Conv1D
