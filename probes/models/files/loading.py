"""Loading of models and tokenizers: from the family, a folder, derived models or the hub."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from probes.errors import ModelError, ProbeError
from probes.files import data_folder, derived_folder, list_derived_models, list_models
from probes.models.acceptance import LOGIT_TOLERANCE, reference_logits
from probes.models.files.adapter import merge_adapter
from probes.models.files.folder import check_folder, check_loaded_keys, has_tokenizer
from probes.models.files.provenance import Provenance, check_files, folder_storage, read_provenance
from probes.models.process_state import suppress_library_warnings
from probes.prompts.tokens.special_tokens import set_bos

BARE_HUB_IDS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")
"""Decoders whose hub id has no owner."""

_MAX_SEED_DIGITS = 18

_HUB_FILES = ("*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors")


def parse_dtype(name: str) -> torch.dtype:
    """Number format by its name."""
    known = {str(d).removeprefix("torch."): d for d in LOGIT_TOLERANCE}
    if name not in known:
        raise ModelError(f"Unknown dtype: {name!r} found. Use one of {', '.join(sorted(known))}.")
    return known[name]


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


def parse_random_init(name: object) -> tuple[str, int] | None:
    """Model and seed of a name such as "random-init:full:3"; None for other names."""
    kind, _, rest = str(name).partition(":")
    if kind != "random-init" or not rest:
        return None
    like, _, seed = rest.partition(":")
    if not (seed or "0").isdecimal() or len(seed) > _MAX_SEED_DIGITS:
        raise ModelError(
            f"The seed of {str(name)[:80]!r} is {seed[:40]!r}: write a number of up to "
            f"{_MAX_SEED_DIGITS} digits, as in 'random-init:full:3'"
        )
    return like, int(seed or 0)


def find_model(name: str | Path) -> tuple[str, str]:
    """Folder or hub id of a name, and a description of it.

    Raises:
        ModelError: There is no such model.
    """
    text = str(name)
    if text in list_models():
        return str(data_folder() / "models" / text), f"family member {text}"
    folder = Path(name)
    if _exists(folder / "config.json"):
        if folder.resolve().name.startswith("."):
            raise ModelError(
                f"{text!r} is a hidden folder, which may be an unfinished draft: give a folder "
                "whose name does not begin with a dot"
            )
        return str(folder), f"folder {folder.resolve()}"
    is_hub_id = re.fullmatch(r"\w[\w.-]{0,95}/[\w.-]{1,96}", text) or text in BARE_HUB_IDS
    if is_hub_id and not _exists(folder):
        return text, f"hub {text}"
    if text in (derived := list_derived_models()):
        return str(derived_folder() / text), f"made in {derived_folder()}"
    known = (*list_models(), *derived)
    near = difflib.get_close_matches(text, known, n=1)
    raise ModelError(
        f"No model {text[:200]!r}: not a family name ({', '.join(known) or 'none here'}), a folder "
        "with config.json, a hub id such as owner/name, or a random-init model such as "
        f"random-init:full:3. {f'Did you mean {near[0]!r}?' if near else 'Check the name.'}"
    )


def _exists(path: Path) -> bool:
    """Whether there is a path; not where its name is too long, or no name at all."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


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

        folder = _local_folder(source)
        merged = None if adapter is None else Path(adapter)
        check_folder(folder, adapter=merged)
        if folder.resolve().parent == (data_folder() / "models").resolve():
            check_files(folder)
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
    if add_bos is not None and tokenizer is not None:
        set_bos(tokenizer, add_bos)
    return hf_model, tokenizer


def _local_folder(source: str) -> Path:
    """Folder of a model; a hub id is fetched first, without pickled or second weights."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=[*_HUB_FILES], ignore_patterns=["*/*"]))


def folder_provenance(source: str) -> Provenance | None:
    """Provenance of a model's folder; None for a hub id."""
    folder = Path(source)
    if not folder.is_dir():
        return None
    return read_provenance(folder) or Provenance("trained", "", folder_storage(folder))


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
