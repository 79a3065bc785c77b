"""Loading of models and tokenizers: from the family, a folder, derived models or the hub."""

import difflib
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probes.errors import ModelError
from probes.files import data_folder, derived_folder, list_derived_models, list_models
from probes.models.process_state import suppress_library_warnings

# Greatest absolute difference of a logit from the plain Hugging Face model in eager attention,
# for logits up to 4; only GPT-2 differs at all, as the bridge redoes its fused attention.
LOGIT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}

BARE_HUB_IDS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")
"""Decoders whose hub id has no owner."""


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
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"No safetensors weights in {text}: {', '.join(p.name for p in folder.iterdir())} "
                "found. Load it once with transformers and write it with save_pretrained(folder)."
            )
        return str(folder), f"folder {folder.resolve()}"
    is_hub_id = re.fullmatch(r"\w[\w.-]*/[\w.-]+", text) or text in BARE_HUB_IDS
    if is_hub_id and not folder.exists():
        return text, f"hub {text}"
    if (made := derived_folder() / text).is_dir() and (made / "config.json").is_file():
        return str(made), f"made in {derived_folder()}"
    known = (*list_models(), *list_derived_models())
    near = difflib.get_close_matches(text, known, n=1)
    raise ModelError(
        f"No model {text!r}: not a family name ({', '.join(known) or 'none here'}), a folder "
        "with config.json, a hub id such as owner/name, or a random-init model such as random-init:full:3. "
        f"{f'Did you mean {near[0]!r}?' if near else 'Check the name.'}"
    )


def load_hf_model(source: str, dtype: torch.dtype) -> tuple[nn.Module, object]:
    """Hugging Face model and its tokenizer, or None where it has none.

    Raises:
        ModelError: It cannot be loaded, or weights are missing.
    """
    from safetensors import SafetensorError

    with suppress_library_warnings():  # transformers imports torchao, which warns.
        from transformers import AutoModelForCausalLM, AutoTokenizer

    how = {"dtype": dtype, "attn_implementation": "eager", "use_safetensors": True}
    bare = Path(source).is_dir() and not any(Path(source).glob("tokenizer*"))
    try:
        with suppress_library_warnings():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, **how, trust_remote_code=False, output_loading_info=True
            )
        tokenizer = None if bare else AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        fix = "Check the name and the connection, or give a local folder."
        raise ModelError(f"Could not load {source!r}: {reason} {fix}") from error
    hf_model, found = loaded
    if found["missing_keys"]:
        raise ModelError(
            f"The weights of {source!r} are incomplete: {min(found['missing_keys'])} is missing "
            "and would be random. Save or fetch the model again."
        )
    return hf_model, tokenizer


def check_finite(hf_model: nn.Module, name: str) -> None:
    """Raise ModelError for weights that are NaN or infinite."""
    for key, tensor in hf_model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(
                f"The weights of {name} are broken: {key} holds NaN or infinite values. "
                "Fetch or train the model again, or load it with a wider dtype."
            )
