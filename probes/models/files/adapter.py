"""LoRA adapters, merged into the weights (Hu et al. 2021, 2106.09685)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probes.errors import ModelError
from probes.models.files.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_PREFIX = "base_model.model."
_FIX = "Merge it with peft (merge_and_unload) and save the whole model."


def merge_adapter(hf_model: Any, folder: Path) -> None:  # noqa: ANN401
    """Add a LoRA adapter of peft to the weights of its model, in place.

    A matrix gains B A, scaled by alpha / rank, or by alpha / sqrt(rank) with rsLoRA.

    Raises:
        ModelError: The adapter is of another kind, or does not fit the model.
    """
    from safetensors.torch import load_file

    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(
                f"{str(folder)!r} holds no adapter: {name} is missing. Give the adapter's folder."
            )
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    _check_kind(config, folder)
    weights = load_file(folder / ADAPTER_WEIGHTS)
    modules = sorted({key.rpartition(".lora_")[0] for key in weights if ".lora_" in key})
    known = {f"{name}.lora_{part}.weight" for name in modules for part in "AB"}
    if not modules or (wrong := known ^ set(weights)):
        found = min(wrong) if modules else "no LoRA matrix"
        raise ModelError(f"The adapter {str(folder)!r} cannot be merged: {found} found. {_FIX}")
    for name in modules:
        module = dict(hf_model.named_modules()).get(name.removeprefix(_PREFIX))
        update = _update(weights, name, config)
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and not isinstance(module, nn.Linear):
            update = update.T  # GPT-2 stores its matrices transposed.
        if weight is None or weight.shape != update.shape:
            sizes = "none" if weight is None else tuple(weight.shape)
            raise ModelError(
                f"The adapter {str(folder)!r} does not fit the model: {name} is "
                f"{tuple(update.shape)} there, {sizes} found. Load it on its own base model, "
                f"{config.get('base_model_name_or_path')!r}."
            )
        with torch.no_grad():
            weight.add_(update.to(weight))


def _check_kind(config: Mapping[str, Any], folder: Path) -> None:
    unsupported = [
        name
        for name in ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices")
        if config.get(name)
    ]
    if config.get("bias", "none") != "none":
        unsupported.append("bias")
    if config.get("peft_type") != "LORA" or unsupported:
        raise ModelError(
            f"The adapter {str(folder)!r} is {config.get('peft_type')} with "
            f"{', '.join(unsupported) or 'no other setting'}: only plain LoRA is merged. {_FIX}"
        )


def _update(weights: Mapping[str, Tensor], name: str, config: Mapping[str, Any]) -> Tensor:
    a, b = (weights[f"{name}.lora_{part}.weight"].double() for part in "AB")
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if name.endswith(pattern):
            alpha = float(value)
    rank = len(a)
    return b @ a * (alpha / (rank**0.5 if config.get("use_rslora") else rank))
