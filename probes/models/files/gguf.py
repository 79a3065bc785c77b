"""GGUF files of llama.cpp: dequantized through transformers, with what they store counted."""

import io
import math
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probes.errors import ModelError
from probes.models.files.folder import check_loaded_keys
from probes.models.files.gguf_header import GGUFHeader, import_gguf, read_gguf_header
from probes.models.files.gguf_tokenizer import load_gguf_tokenizer
from probes.models.files.memory import require_memory
from probes.models.files.provenance import Provenance, StorageCost

_FLOATS = ("F64", "F32", "F16", "BF16")
_ROPE_FACTORS = "rope_freqs.weight"
_ROPE_SCALED = ("llama", "mistral", "qwen2", "qwen3")
# The 27B models of Gemma divide attention scores by another width, which the file does not tell.
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[nn.Module, object]:
    """Model of a GGUF file in plain floats, and its tokenizer or None.

    Each weight is the value that its block stands for, in float32, rounded once more if `dtype` is
    narrower. llama.cpp also rounds activations in its own kernels, which no plain weights show.

    Raises:
        ModelError: The file is not whole, too big, or not read in full by transformers.
    """
    header = read_gguf_header(path)
    require_memory(str(path), header.entries, dtype)
    config = _read_config(header)
    from transformers import AutoModelForCausalLM

    with redirect_stderr(io.StringIO()):  # A bar that no setting of transformers turns off.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,  # `check_loaded_keys` refuses them by name.
            trust_remote_code=False,
            output_loading_info=True,
        )
    hf_model, keys = loaded
    check_loaded_keys(
        str(path), keys["missing_keys"], keys["unexpected_keys"], keys["mismatched_keys"]
    )
    _check_all_read(header, hf_model)
    _mark_as_plain(hf_model)
    return hf_model, load_gguf_tokenizer(header)


def gguf_provenance(path: Path, dtype: torch.dtype) -> Provenance:
    """Provenance of a GGUF file: its bits as they are stored, and what loading rounds."""
    header = read_gguf_header(path)
    data = header.metadata
    quantized = any(kind not in _FLOATS for kind in header.types)
    settings = {
        "format": "GGUF",
        "types": ", ".join(f"{kind} {count}" for kind, count in header.types.items()),
        "bits_per_weight": round(header.bits_per_weight, 4),
        "dtype": str(dtype).removeprefix("torch."),
        # Largest relative difference of a weight from the value that its block stands for.
        "rounding": 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2,
    }
    parent = next(
        (
            str(data[key])
            for key in ("general.source.huggingface.repository", "general.source.repo_url",
                        "general.name")
            if data.get(key)
        ),
        "",
    )  # fmt: skip
    return Provenance(
        "quantized" if quantized else "trained", parent, _storage(header), settings=settings
    )


def describe_gguf(provenance: Provenance) -> str:
    """Number formats, bits and rounding of a GGUF file in a few words."""
    own = provenance.settings
    rounding = f", rounded by up to {own['rounding']:.1e}" if own["rounding"] else ""
    return f"{own['types']}; {own['bits_per_weight']:.2f} bits a weight; {own['dtype']}{rounding}"


def _storage(header: GGUFHeader) -> StorageCost:
    bits = dict.fromkeys(("weights", "embeddings", "other", "scales", "zero_points"), 0.0)
    for tensor in header.tensors:
        total = 8.0 * tensor.size
        if tensor.name.split(".")[0] in ("token_embd", "output", "position_embd"):
            bits["embeddings"] += total
        elif len(tensor.shape) < 2:
            bits["other"] += total
        else:
            codes = min(tensor.code_bits * tensor.entries, total)
            minima = (total - codes) / 2 if tensor.has_minima else 0.0
            bits["weights"] += codes
            bits["zero_points"] += minima
            bits["scales"] += total - codes - minima
    return StorageCost(**bits)


def _read_config(header: GGUFHeader) -> Any:  # noqa: ANN401
    import transformers

    path = header.path
    try:
        config: Any = transformers.AutoConfig.from_pretrained(
            str(path.parent), gguf_file=path.name, trust_remote_code=False
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"{str(path)!r} is a model of the architecture {header.architecture!r}, which "
            f"transformers {transformers.__version__} does not read from GGUF: load the model's "
            "original folder instead"
        ) from error
    if header.setting("expert_count", 0):
        raise ModelError(
            f"{str(path)!r} is a mixture of {header.setting('expert_count')} experts, which is not "
            "supported: give a dense model"
        )
    _set_attention(header, config)
    if rope := _rope_scaling(header):
        config.rope_parameters = dict(config.rope_parameters or {}) | rope
    return config


def _set_attention(header: GGUFHeader, config: Any) -> None:  # noqa: ANN401
    """Set what transformers leaves at the defaults of another model of the architecture."""
    given = {
        "head_dim": header.setting("attention.key_length"),
        "sliding_window": header.setting("attention.sliding_window"),
        "attn_logit_softcapping": header.setting("attn_logit_softcapping"),
        "final_logit_softcapping": header.setting("final_logit_softcapping"),
    }
    layers, width = header.setting("block_count"), header.setting("embedding_length")
    if layers and _GEMMA_27B_LAYERS.get(header.architecture) == layers:
        given["query_pre_attn_scalar"] = width // header.setting("attention.head_count")
    for name, value in given.items():
        if value is not None and hasattr(config, name):
            setattr(config, name, value)


def _rope_scaling(header: GGUFHeader) -> dict[str, Any]:
    """Scaling of rotary positions, which transformers does not read from most GGUF files.

    Raises:
        ModelError: It is of a kind that is not supported.
    """
    kind = header.setting("rope.scaling.type", "none")
    factor = header.setting("rope.scaling.factor", header.setting("rope.scale_linear", 1.0))
    if kind == "none" and factor not in (None, 0.0, 1.0):
        kind = "linear"
    if any(tensor.name == _ROPE_FACTORS for tensor in header.tensors):
        return _llama3_scaling(header)
    if kind == "none":
        return {}
    if header.architecture in _ROPE_SCALED and kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if header.architecture in _ROPE_SCALED and kind == "yarn":
        context = header.setting("rope.scaling.original_context_length")
        return {
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": context
        }  # fmt: skip
    raise ModelError(
        f"{str(header.path)!r} scales rotary positions by {kind!r} in {header.architecture!r}, "
        "which is not read from GGUF: load the model's original folder instead"
    )


def _llama3_scaling(header: GGUFHeader) -> dict[str, Any]:
    """Scaling of Llama 3.1 from the factor of each frequency, which a tensor of the file holds."""
    gguf = import_gguf(header.path)
    tensor = next(t for t in gguf.GGUFReader(header.path).tensors if t.name == _ROPE_FACTORS)
    stored = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).flatten()
    found = {
        "rope_type": "llama3",
        "factor": float(stored.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = llama3_factors(len(stored), header.setting("rope.freq_base", 10_000.0), found)
    if not torch.allclose(stored.double(), expected, rtol=1e-4):
        raise ModelError(
            f"{str(header.path)!r} scales rotary positions by its own factor for each frequency "
            f"({_ROPE_FACTORS}), not as Llama 3.1 does: load the model's original folder instead"
        )
    return found


def llama3_factors(pairs: int, base: float, scaling: dict[str, Any]) -> Tensor:
    """Divisor of each rotary frequency in Llama 3.1, "pair" (Grattafiori et al. 2024, 2407.21783).

    Args:
        pairs: Number of frequencies, half of the head's width.
        base: Base of the frequencies.
        scaling: Parameters by transformers' names.
    """
    frequency = base ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)


def _check_all_read(header: GGUFHeader, hf_model: nn.Module) -> None:
    """Refuse a file that holds more weights than the model has."""
    own = sum(weight.numel() for weight in hf_model.parameters())
    stored = sum(tensor.entries for tensor in header.tensors if tensor.name != _ROPE_FACTORS)
    if own != stored:
        raise ModelError(
            f"{str(header.path)!r} would not be read in full: it holds {stored:,} weights, and "
            f"{type(hf_model).__name__} has {own:,}. Load the model's original folder instead"
        )


def _mark_as_plain(hf_model: Any) -> None:  # noqa: ANN401
    """Remove the marks of quantization: the weights are plain floats, and are saved as such."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(hf_model.config, name):
            delattr(hf_model.config, name)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if name in vars(hf_model):
            delattr(hf_model, name)
