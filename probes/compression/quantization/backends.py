"""What the libraries do to a linear layer, and the plain weights that their numbers stand for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.compression.quantization.rounding import round_to_nearest
from probes.compression.quantization.schemes import Backend, Scheme
from probes.errors import ModelError
from probes.models.loading import suppress_library_warnings

# LLM.int8 leaves activations beyond this in half precision (Dettmers et al. 2022,
# arXiv 2208.07339), as Hugging Face sets it.
OUTLIER_THRESHOLD = 6.0


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """What a matrix became.

    Attributes:
        weight: What its numbers stand for, as plain floats, one output a row.
        scales, zeros: Bits of its scales and of its zero points, as they are kept.
        fused: Whether the library multiplies it without turning it back first.
    """

    weight: Float[Tensor, "row column"]
    scale_bits: float
    zero_point_bits: float = 0.0
    fused: bool = False


def library_version(backend: Backend) -> str:
    """Return which version of a library quantizes; the kit's own has none.

    Raises:
        ModelError: It is not here.
    """
    if backend == "rounding":
        return ""
    try:
        with suppress_library_warnings():
            __import__(backend)
        return version(backend)
    except ImportError as error:
        raise ModelError(
            f"{backend} is missing ({error}): pip install 'probes[compress]', or take an 'rtn-N' "
            "scheme, which needs no library"
        ) from error


def quantize_layers(
    hf_model: nn.Module, names: list[str], scheme: Scheme
) -> dict[str, QuantizedWeight]:
    """Have a library quantize the named linear layers in place, and read what they became.

    They are read before the first pass: bitsandbytes packs them anew at that time.

    Raises:
        ModelError: The library is missing, or left a layer as it was.
    """
    library_version(scheme.backend)
    do: Mapping[Backend, Callable[..., dict[str, QuantizedWeight]]] = {
        "torchao": _quantize_torchao,
        "bitsandbytes": _quantize_bitsandbytes,
        "rounding": _quantize_rounding,
    }
    # Layers are born with random weights, which are replaced at once.
    with suppress_library_warnings(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        return do[scheme.backend](hf_model, names, scheme)


def round_weight(weight: Float[Tensor, "row column"], scheme: Scheme) -> QuantizedWeight:
    """Round one matrix by the kit's own reference."""
    found = round_to_nearest(
        weight, bits=scheme.bits, group=scheme.group, symmetric=scheme.symmetric
    )
    zeros = 0 if found.zero_points is None else found.zero_points.numel() * scheme.bits
    return QuantizedWeight(found.dequantize(), _count_bits(found.scales), float(zeros))


def _quantize_rounding(
    hf_model: nn.Module, names: list[str], scheme: Scheme
) -> dict[str, QuantizedWeight]:
    return {name: round_weight(_weight(hf_model, name), scheme) for name in names}


def _quantize_torchao(
    hf_model: nn.Module, names: list[str], scheme: Scheme
) -> dict[str, QuantizedWeight]:
    from torchao.quantization import quantize_
    from torchao.utils import TorchAOBaseTensor

    wanted = set(names)
    quantize_(hf_model, _torchao_config(scheme), filter_fn=lambda _, name: name in wanted)
    weights = {name: _weight(hf_model, name) for name in names}
    _refuse_skipped([n for n, w in weights.items() if not isinstance(w, TorchAOBaseTensor)], scheme)
    return {name: _read_torchao(weight, scheme) for name, weight in weights.items()}


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
        # Otherwise it turns knobs of torch's compiler, for good.
        return Int8WeightOnlyConfig(granularity=rows, set_inductor_config=False)
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, scheme.name),
        granularity=PerGroup(scheme.group) if scheme.group else PerAxis(0),
        mapping_type=MappingType.SYMMETRIC if scheme.symmetric else MappingType.ASYMMETRIC,
    )


def _read_torchao(weight: Any, scheme: Scheme) -> QuantizedWeight:  # noqa: ANN401 (a tensor of the library's)
    # Symmetric ones carry zero points as well, all of them 0.
    zeros = 0 if scheme.symmetric else weight.zero_point.numel() * scheme.bits
    # Groups are turned back first, and so is all that has fewer than 8 bits.
    fused = scheme.name == "int8" and scheme.group is None
    return QuantizedWeight(
        weight.dequantize().float(), _count_bits(weight.scale), float(zeros), fused
    )


def _quantize_bitsandbytes(
    hf_model: nn.Module, names: list[str], scheme: Scheme
) -> dict[str, QuantizedWeight]:
    build = _nf4_layer if scheme.name == "nf4" else _int8_layer
    found, left = {}, []
    for name in names:
        old: Any = hf_model.get_submodule(name)
        new = build(old, scheme)
        new.bias = old.bias
        hf_model.set_submodule(name, new.to(old.weight.device).eval())
        read = _read_nf4 if scheme.name == "nf4" else _read_int8
        if (packed := read(new)) is None:
            left.append(name)
        else:
            found[name] = packed
    _refuse_skipped(left, scheme)
    return found


def _int8_layer(old: nn.Linear, _: Scheme) -> Any:  # noqa: ANN401 (the library's own type)
    from bitsandbytes.nn.modules import Int8Params, Linear8bitLt

    new = Linear8bitLt(
        old.in_features,
        old.out_features,
        bias=False,
        has_fp16_weights=False,
        threshold=OUTLIER_THRESHOLD,
    )
    # It rounds them on the way from the processor to where they are wanted.
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

    # Its types tell a reader of types nothing.
    library: Any = modules

    new = library.LinearNF4(old.in_features, old.out_features, bias=False)
    new.weight = library.Params4bit(
        old.weight.detach().cpu().clone(),
        blocksize=scheme.group,
        compress_statistics=False,  # As Hugging Face sets it; a scale takes 32 bits.
        quant_type="nf4",
        module=new,
    )
    # Its kernel for processors stops at other shapes than these; without it, it turns them back.
    fits = old.out_features % 32 == 0 and old.in_features % (scheme.group or 1) == 0
    new.support_avx512bf16_for_cpu = new.support_avx512bf16_for_cpu and fits
    return new


def _read_nf4(new: Any) -> QuantizedWeight | None:  # noqa: ANN401 (the library's own type)
    from bitsandbytes import functional

    library: Any = functional
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
            f"{scheme.backend} left {len(skipped)} linear layers as they were, {skipped[0]} first: "
            f"take 'rtn-{scheme.bits}', or another version of {scheme.backend}"
        )
