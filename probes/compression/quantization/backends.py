"""Quantization of linear layers by torchao, bitsandbytes or the kit's own rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.compression.quantization.schemes import Backend, Scheme, round_to_nearest
from probes.errors import ModelError
from probes.models.files.provenance import storage_part
from probes.models.process_state import suppress_library_warnings

# LLM.int8 keeps activations above this in half precision (Dettmers et al. 2022,
# arXiv 2208.07339); the default of Hugging Face.
OUTLIER_THRESHOLD = 6.0


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A quantized matrix as floats, with the storage of its parameters.

    Attributes:
        weight: Dequantized values, one row per output.
        scale_bits, zero_point_bits: Bits of all scales and of all zero points.
        fused: Whether the library's kernel multiplies without dequantizing first.
    """

    weight: Float[Tensor, "row column"]
    scale_bits: float
    zero_point_bits: float = 0.0
    fused: bool = False


def linear_layers(hf_model: nn.Module, name: str) -> list[str]:
    """Return the names of the linear layers of a model's blocks, without the unembedding.

    Raises:
        ModelError: There are none, one is packed or masked, or a matrix belongs to no linear
            layer and would silently stay as it is.
    """
    head = getattr(hf_model, "get_output_embeddings", lambda: None)()
    found, left = [], []
    for path, module in hf_model.named_modules():
        if module is head or isinstance(module, nn.Embedding):
            continue
        # A mask or a parametrization has moved the parameter elsewhere.
        plain = type(weight := getattr(module, "weight", None)) is nn.Parameter
        if not isinstance(module, nn.Linear | _conv1d_class()):
            own = module.named_parameters(recurse=False)
            left += [f"{path}.{key}" for key, w in own if w.ndim > 1]
        elif storage_part(f"{path}.weight", 2) == "weights":
            if not plain or not weight.is_floating_point():
                raise ModelError(
                    f"{path} of {name} does not hold plain floats ({type(weight).__name__} found): "
                    "give the model before it was packed or masked, or make the masks permanent "
                    "(torch.nn.utils.prune.remove)."
                )
            found.append(path)
    if left:
        raise ModelError(
            f"{left[0]} of {name} belongs to no linear layer and would not be quantized: "
            f"{len(left)} such found. Give a decoder such as Llama, GPT-2 or GPT-NeoX."
        )
    if not found:
        raise ModelError(
            f"{name} has no linear layer to quantize: give a decoder such as Llama or GPT-2."
        )
    return found


def weight_matrix(module: Any) -> Float[Tensor, "row column"]:  # noqa: ANN401 (Linear or Conv1D)
    """Return the weights of a linear layer, one row per output."""
    weight = module.weight.detach()
    return weight.T if isinstance(module, _conv1d_class()) else weight


@torch.no_grad()
def set_weight(hf_model: nn.Module, name: str, weight: Float[Tensor, "row column"]) -> None:
    """Overwrite the weights of a linear layer, given one row per output."""
    module: Any = hf_model.get_submodule(name)
    module.weight.copy_(weight.T if isinstance(module, _conv1d_class()) else weight)


@torch.no_grad()
def conv1d_to_linear(hf_model: nn.Module, names: list[str]) -> nn.Module:
    """Replace GPT-2's transposed Conv1D layers by Linear ones in place; libraries skip Conv1D."""
    for name in names:
        old: Any = hf_model.get_submodule(name)
        if isinstance(old, _conv1d_class()):
            weight = weight_matrix(old)
            new = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            new.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            new.bias = old.bias
            hf_model.set_submodule(name, new.eval())
    return hf_model


def _conv1d_class() -> type:
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def library_version(backend: Backend) -> str:
    """Return the version of a library; "" for the kit's own rounding.

    Raises:
        ModelError: The library is not installed.
    """
    if backend == "rounding":
        return ""
    try:
        with suppress_library_warnings():
            __import__(backend)
        return version(backend)
    except ImportError as error:
        raise ModelError(
            f"{backend} is missing ({error}): pip install 'circuit-relatives[compress]', or use an "
            "'rtn-N' scheme, which needs no library"
        ) from error


def quantize_layers(
    hf_model: nn.Module,
    names: list[str],
    scheme: Scheme,
    take: Callable[[str, QuantizedWeight], None],
) -> None:
    """Quantize the named linear layers, and hand their dequantized weights on, one at a time.

    Libraries quantize in place; the kit's own rounding leaves the layers as they are. Weights are
    read before the first forward pass, because bitsandbytes repacks them then.

    Args:
        hf_model: Model with linear layers; with the kit's own rounding also Conv1D ones.
        names: Names of the layers.
        scheme: The scheme.
        take: Called with the name and the weight of each layer.

    Raises:
        ModelError: The library is missing, or skipped a layer.
    """
    library_version(scheme.backend)
    # Also restores the random state: new layers have random weights until they are replaced.
    with suppress_library_warnings(), torch.no_grad():
        match scheme.backend:
            case "torchao":
                _quantize_torchao(hf_model, names, scheme, take)
            case "bitsandbytes":
                _quantize_bitsandbytes(hf_model, names, scheme, take)
            case _:
                for name in names:
                    take(name, round_weight(weight_matrix(hf_model.get_submodule(name)), scheme))


def round_weight(weight: Float[Tensor, "row column"], scheme: Scheme) -> QuantizedWeight:
    """Round one matrix to nearest."""
    found = round_to_nearest(
        weight, bits=scheme.bits, group=scheme.group, symmetric=scheme.symmetric
    )
    zeros = 0 if found.zero_points is None else found.zero_points.numel() * scheme.bits
    return QuantizedWeight(found.dequantize(), _count_bits(found.scales), float(zeros))


def _quantize_torchao(
    hf_model: nn.Module,
    names: list[str],
    scheme: Scheme,
    take: Callable[[str, QuantizedWeight], None],
) -> None:
    from torchao.quantization import quantize_
    from torchao.utils import TorchAOBaseTensor

    wanted = set(names)
    quantize_(hf_model, _torchao_config(scheme), filter_fn=lambda _, name: name in wanted)
    weights = {name: _weight(hf_model, name) for name in names}
    _refuse_skipped([n for n, w in weights.items() if not isinstance(w, TorchAOBaseTensor)], scheme)
    # The kernel dequantizes groups, and everything below 8 bits, before it multiplies.
    fused = scheme.name == "int8" and scheme.group is None
    for name, weight in weights.items():
        # Symmetric schemes carry zero points as well, all 0.
        zeros = 0 if scheme.symmetric else weight.zero_point.numel() * scheme.bits
        values = weight.dequantize().float()
        take(name, QuantizedWeight(values, _count_bits(weight.scale), float(zeros), fused))


def _torchao_config(scheme: Scheme) -> Any:  # noqa: ANN401 (the library's own type)
    from torchao.quantization import (
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        MappingType,
        PerAxis,
        PerGroup,
        PerRow,
    )

    if scheme.name == "int8":
        rows = PerGroup(scheme.group) if scheme.group else PerRow()
        # True would change settings of torch's compiler for the whole process.
        return Int8WeightOnlyConfig(granularity=rows, set_inductor_config=False)
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, scheme.name),
        granularity=PerGroup(scheme.group) if scheme.group else PerAxis(0),
        mapping_type=MappingType.SYMMETRIC if scheme.symmetric else MappingType.ASYMMETRIC,
    )


def _quantize_bitsandbytes(
    hf_model: nn.Module,
    names: list[str],
    scheme: Scheme,
    take: Callable[[str, QuantizedWeight], None],
) -> None:
    build, read = (_nf4_layer, _read_nf4) if scheme.name == "nf4" else (_int8_layer, _read_int8)
    left = []
    for name in names:
        old: Any = hf_model.get_submodule(name)
        new = build(old, scheme)
        new.bias = old.bias
        hf_model.set_submodule(name, new.to(old.weight.device).eval())
        if (packed := read(new)) is None:
            left.append(name)
        else:
            take(name, packed)
    _refuse_skipped(left, scheme)


def _int8_layer(old: nn.Linear, _: Scheme) -> Any:  # noqa: ANN401 (the library's own type)
    from bitsandbytes.nn.modules import Int8Params, Linear8bitLt

    new = Linear8bitLt(
        old.in_features,
        old.out_features,
        bias=False,
        has_fp16_weights=False,
        threshold=OUTLIER_THRESHOLD,
    )
    # The library rounds weights when they move from the CPU to their device.
    new.weight = Int8Params(old.weight.detach().cpu().clone(), requires_grad=False)
    return new


def _read_int8(new: Any) -> QuantizedWeight | None:  # noqa: ANN401 (the library's own type)
    scales = getattr(new.weight, "SCB", None)
    if new.weight.dtype != torch.int8 or scales is None:
        return None
    return QuantizedWeight(
        new.weight.data.float() * (scales[:, None] / 127), _count_bits(scales), fused=True
    )


def _nf4_layer(old: nn.Linear, scheme: Scheme) -> Any:  # noqa: ANN401 (the library's own type)
    from bitsandbytes.nn import modules

    library: Any = modules  # Its annotations are incomplete.
    new = library.LinearNF4(old.in_features, old.out_features, bias=False)
    new.weight = library.Params4bit(
        old.weight.detach().cpu().clone(),
        blocksize=scheme.group,
        compress_statistics=False,  # The default of Hugging Face; a scale takes 32 bits.
        quant_type="nf4",
        module=new,
    )
    # The CPU kernel fails on other shapes; without it, the library dequantizes first.
    fits = old.out_features % 32 == 0 and old.in_features % (scheme.group or 1) == 0
    new.support_avx512bf16_for_cpu = new.support_avx512bf16_for_cpu and fits
    return new


def _read_nf4(new: Any) -> QuantizedWeight | None:  # noqa: ANN401 (the library's own type)
    from bitsandbytes import functional

    library: Any = functional  # Its annotations are incomplete.
    state = new.weight.quant_state
    if state is None:
        return None
    fused = new.weight.device.type != "cpu" or bool(new.support_avx512bf16_for_cpu)
    weight = library.dequantize_4bit(new.weight.data, state).float()
    return QuantizedWeight(weight, _count_bits(state.absmax), fused=fused)


def _weight(hf_model: nn.Module, name: str) -> Any:  # noqa: ANN401 (a tensor, or the library's)
    module: Any = hf_model.get_submodule(name)
    return module.weight.detach()


def _count_bits(scales: Tensor) -> float:
    return float(scales.numel() * scales.element_size() * 8)


def _refuse_skipped(skipped: list[str], scheme: Scheme) -> None:
    if skipped:
        raise ModelError(
            f"{scheme.backend} skipped {len(skipped)} linear layers, the first is {skipped[0]}: "
            f"use 'rtn-{scheme.bits}', or another version of {scheme.backend}"
        )
