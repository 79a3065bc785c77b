"""Loading of models and tokenizers: from the family, a folder, derived models or the hub."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from probes.errors import ModelError, ProbeError
from probes.files import data_folder
from probes.models.acceptance import LOGIT_TOLERANCE, reference_logits
from probes.models.files.adapter import merge_adapter
from probes.models.files.folder import (
    check_folder,
    check_loaded_keys,
    count_weights,
    has_tokenizer,
)
from probes.models.files.gguf import describe_gguf, gguf_provenance, load_gguf
from probes.models.files.lineage import card_provenance, published_provenance
from probes.models.files.memory import require_memory
from probes.models.files.names import find_model, split_name
from probes.models.files.provenance import Provenance, check_files, read_provenance
from probes.models.process_state import seeded_init, suppress_library_warnings
from probes.prompts.tokens.special_tokens import set_bos

_HUB_FILES = (
    *("*.json", "*.txt", "*.model", "README.md"),
    *("model.safetensors", "model-*.safetensors"),
)


def parse_dtype(name: str) -> torch.dtype:
    """Number format by its name."""
    known = {str(d).removeprefix("torch."): d for d in LOGIT_TOLERANCE}
    if name not in known:
        raise ModelError(f"Unknown dtype: {name!r} found. Use one of {', '.join(sorted(known))}.")
    return known[name]


def find_device(name: str | torch.device | None) -> torch.device:
    """Device by its name; PyTorch's default device if that is empty.

    Raises:
        ModelError: There is no such device.
    """
    if not name:
        return torch.get_default_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The device {str(name)!r} cannot be used ({str(error).splitlines()[0]:.80}): "
            "give one that this computer has, such as 'cpu' or 'cuda'"
        ) from error


@runtime_checkable
class HasModel(Protocol):
    """A model in memory that can be built as a `Model`, such as what `quantize` returns."""

    def to_model(self) -> Any:  # noqa: ANN401 (a Model)
        """Return it as a `Model`."""


def build_model(value: object) -> Any:  # noqa: ANN401 (a Model)
    """Model of a value in memory.

    Raises:
        ModelError: The value is none that has a model.
    """
    if not isinstance(value, HasModel):
        text = " ".join(repr(value).split())
        raise ModelError(
            f"{text[:80]!r} of type {type(value).__name__} is no model: give a name, a folder or a "
            "hub id, or wrap a Hugging Face model with probes.wrap"
        )
    return value.to_model()


def load_hf_model(
    source: str,
    dtype: torch.dtype,
    *,
    add_bos: bool | None = None,
    adapter: str | Path | None = None,
) -> tuple[nn.Module, object]:
    """Hugging Face model and its tokenizer, or None where it has none; arguments as in `load`.

    Raises:
        ModelError: It cannot be loaded, or its files hold more or less than is loaded.
    """
    fix = "Check the name, the files and the connection."
    with model_errors(f"Could not load {source!r}", fix), suppress_library_warnings():
        # transformers imports torchao, which warns.
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        folder = local_files(source)
        merged = None if adapter is None else Path(adapter)
        if folder.is_file():
            hf_model, tokenizer = load_gguf(folder, dtype)
            if merged is not None:
                merge_adapter(hf_model, merged)
            return _with_bos(hf_model, tokenizer, add_bos)
        check_folder(folder, adapter=merged)
        if folder.resolve().parent == (data_folder() / "models").resolve():
            check_files(folder)
        require_memory(source, count_weights(folder), dtype)
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        text_config = config.get_text_config()
        if (getattr(text_config, "pad_token_id", None) or 0) >= text_config.vocab_size:
            text_config.pad_token_id = None  # Padding is masked.
        how = {
            "config": config,
            "dtype": dtype,
            "attn_implementation": "eager",
            "use_safetensors": True,
            "ignore_mismatched_sizes": True,  # `check_loaded_keys` refuses them by name.
        }
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), **how, trust_remote_code=False, output_loading_info=True
        )
        hf_model, keys = loaded
        check_loaded_keys(
            source, keys["missing_keys"], keys["unexpected_keys"], keys["mismatched_keys"]
        )
        if merged is not None:
            merge_adapter(hf_model, merged)
        tokenizer = None
        if has_tokenizer(folder):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    return _with_bos(hf_model, tokenizer, add_bos)


def random_hf_model(config: Any, dtype: torch.dtype, seed: int) -> nn.Module:  # noqa: ANN401
    """Hugging Face model of a config with initial weights, which depend on `seed` alone.

    Raises:
        ModelError: The seed is out of range.
    """
    from transformers import AutoModelForCausalLM

    with seeded_init(seed):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a model is read from its files.

    Attributes:
        name, revision, dtype, device, add_bos, adapter: As in `load`.
    """

    name: str = ""
    revision: str = ""
    dtype: str = "float32"
    device: str | torch.device | None = None
    add_bos: bool | None = None
    adapter: str | Path | None = None


def load_source(
    source: str | Path, options: SourceOptions
) -> tuple[nn.Module, tuple[str, str], object, Provenance | None]:
    """Hugging Face model, its name and origin, its tokenizer and its provenance.

    Raises:
        ModelError: There is no such model, or it cannot be loaded.
    """
    device = find_device(options.device)  # A wrong one ends before the files are read.
    own_name, place = split_name(source)
    found, origin = find_model(f"{place}@{options.revision}" if options.revision else place)
    dtype, adapter = parse_dtype(options.dtype), options.adapter
    hf_model, tokenizer = load_hf_model(found, dtype, add_bos=options.add_bos, adapter=adapter)
    with model_errors(f"Could not load {found!r}", "Check its files and the device."):
        hf_model = hf_model.to(device)
        provenance = source_provenance(found, dtype)
    origin = describe_origin(origin, provenance)
    if adapter is not None:
        own_name = f"{own_name}+{Path(adapter).name}"
        origin = f"{origin} with {Path(adapter).resolve()}"
    return hf_model, (options.name or own_name, origin), tokenizer, provenance


def _with_bos(
    hf_model: nn.Module, tokenizer: object, add_bos: bool | None
) -> tuple[nn.Module, object]:
    if add_bos is not None and tokenizer is not None:
        set_bos(tokenizer, add_bos)
    return hf_model, tokenizer


def local_files(source: str) -> Path:
    """Folder or GGUF file of a model; a hub id is fetched first, without pickled weights."""
    if Path(source).exists():
        return Path(source)
    import huggingface_hub as hub

    hub_id, _, revision = source.partition("@")
    owner, _, rest = hub_id.partition("/")
    repository, _, file = rest.partition("/")
    at = revision or None
    if file:
        return Path(hub.hf_hub_download(f"{owner}/{repository}", file, revision=at))
    kept, left = [*_HUB_FILES], ["*/*"]
    return Path(
        hub.snapshot_download(hub_id, revision=at, allow_patterns=kept, ignore_patterns=left)
    )


def source_provenance(source: str, dtype: torch.dtype) -> Provenance | None:
    """Provenance of a model's folder or GGUF file, or of a hub id whose making is published."""
    path = local_files(source)
    if path.is_file():
        return gguf_provenance(path, dtype)
    if not Path(source).is_dir():
        return published_provenance(source, path)
    return read_provenance(path) or card_provenance(path)


def describe_origin(origin: str, provenance: Provenance | None) -> str:
    """Origin of a model, with the number formats and the rounding of a GGUF file."""
    if provenance is None or provenance.settings.get("format") != "GGUF":
        return origin
    return f"{origin} ({describe_gguf(provenance)})"


def check_saved(folder: Path, hf_model: nn.Module, name: str) -> None:
    """Compare the logits of a saved model, loaded again, with those of the one in memory.

    Raises:
        ModelError: They differ: a config does not describe its model, or weights are not saved.
    """
    weight = next(hf_model.parameters())
    loaded, _ = load_hf_model(str(folder), weight.dtype)
    modes = [(module, module.training) for module in hf_model.modules()]
    expected = reference_logits(hf_model.eval()).logits
    for module, training in modes:
        module.training = training
    gap = float((reference_logits(loaded.to(weight.device)).logits - expected).abs().max())
    allowed = LOGIT_TOLERANCE[weight.dtype] * max(1.0, float(expected.abs().max()))
    if not gap <= allowed:
        raise ModelError(
            f"{name} was not saved: loaded again, its logits differ by {gap:.1e}, {allowed:.1e} "
            "allowed. Its config does not describe its layers, or its embeddings are tied again. "
            "Correct hf_model.config (layer settings, tie_word_embeddings)."
        )


def require_one_device(hf_model: nn.Module, name: str) -> None:
    """Raise ModelError for weights on several devices, or offloaded by accelerate."""
    devices = sorted({str(weight.device) for weight in hf_model.parameters()})
    if len(devices) > 1 or "meta" in devices:
        places = ", ".join("offloaded (meta)" if each == "meta" else each for each in devices)
        raise ModelError(
            f"The weights of {name} are split: {places}. A model runs on one device, because "
            "patched runs restart at any block and gradients need all weights in place: load it "
            "without device_map or offloading, on a device that it fits on"
        )


def check_finite(hf_model: nn.Module, name: str) -> None:
    """Raise ModelError for weights that are NaN or infinite."""
    for key, tensor in hf_model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(
                f"The weights of {name} are broken: {key} holds NaN or infinite values. "
                "Fetch or train the model again, or load it with a wider dtype."
            )


@contextmanager
def model_errors(problem: str, fix: str) -> Iterator[None]:
    """Turn any error of files, tokenizers and configs into one `ModelError` line with its cause."""
    try:
        yield
    except ProbeError:
        raise
    except BaseException as error:
        kind = type(error).__name__
        # Panics of Rust code do not derive from Exception.
        if not isinstance(error, Exception) and kind != "PanicException":
            raise
        text = " ".join(str(error).split())[:300].rstrip(".")
        reason = f"{text} ({kind})" if text else kind
        raise ModelError(f"{problem}: {reason}. {fix}") from error
