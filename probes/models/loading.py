"""Loading of models and tokenizers: from the family, a folder, derived models or the hub."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probes.errors import ModelError, ProbeError
from probes.files import data_folder, derived_folder, list_derived_models, list_models
from probes.models.acceptance import LOGIT_TOLERANCE
from probes.models.folder import check_folder, check_loaded_keys, has_tokenizer
from probes.models.process_state import suppress_library_warnings
from probes.prompts.special_tokens import set_bos

BARE_HUB_IDS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")
"""Decoders whose hub id has no owner."""

_HUB_FILES = ("*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors")


def parse_dtype(name: str) -> torch.dtype:
    """Number format by its name."""
    known = {str(d).removeprefix("torch."): d for d in LOGIT_TOLERANCE}
    if name not in known:
        raise ModelError(f"Unknown dtype: {name!r} found. Use one of {', '.join(sorted(known))}.")
    return known[name]


def find_model(name: str | Path) -> tuple[str, str]:
    """Folder or hub id of a name, and a description of it.

    Raises:
        ModelError: There is no such model.
    """
    text = str(name)
    if text in list_models():
        return str(data_folder() / "models" / text), f"family member {text}"
    folder = Path(name)
    if (folder / "config.json").is_file():
        if folder.resolve().name.startswith("."):
            raise ModelError(
                f"{text!r} is a hidden folder, which may be an unfinished draft: give a folder "
                "whose name does not begin with a dot"
            )
        return str(folder), f"folder {folder.resolve()}"
    is_hub_id = re.fullmatch(r"\w[\w.-]*/[\w.-]+", text) or text in BARE_HUB_IDS
    if is_hub_id and not folder.exists():
        return text, f"hub {text}"
    if text in (derived := list_derived_models()):
        return str(derived_folder() / text), f"made in {derived_folder()}"
    known = (*list_models(), *derived)
    near = difflib.get_close_matches(text, known, n=1)
    raise ModelError(
        f"No model {text!r}: not a family name ({', '.join(known) or 'none here'}), a folder "
        "with config.json, a hub id such as owner/name, or a random-init model such as "
        f"random-init:full:3. {f'Did you mean {near[0]!r}?' if near else 'Check the name.'}"
    )


def load_hf_model(
    source: str, dtype: torch.dtype, *, add_bos: bool | None = None
) -> tuple[nn.Module, object]:
    """Hugging Face model and its tokenizer, or None where it has none.

    Raises:
        ModelError: It cannot be loaded, or its files hold more or less than is loaded.
    """
    fix = "Check the name, the files and the connection."
    with model_errors(f"Could not load {source!r}", fix), suppress_library_warnings():
        # transformers imports torchao, which warns.
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = _local_folder(source)
        check_folder(folder)
        how = {"dtype": dtype, "attn_implementation": "eager", "use_safetensors": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), **how, trust_remote_code=False, output_loading_info=True
        )
        hf_model, keys = loaded
        check_loaded_keys(
            source, keys["missing_keys"], keys["unexpected_keys"], keys["mismatched_keys"]
        )
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
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{lines[0][:300].rstrip('.')} ({kind})" if lines else kind
        raise ModelError(f"{problem}: {reason}. {fix}") from error
