"""Files of a model's folder: what is loaded, and what would be passed over in silence."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from probes.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin")

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model"),
    *("vocab.json", "vocab.txt"),
)

# Causal masks that old releases of transformers saved with the weights.
MASK_KEY = re.compile(r"(^|\.)(attn|attention)\.(bias|masked_bias|causal_mask)$")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds files of a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def check_folder(folder: Path, *, adapter: Path | None = None) -> None:
    """Refuse a folder whose weights are not safetensors, or not all of what is loaded.

    Args:
        folder: A model's folder.
        adapter: Folder of the adapter that will be merged, which may be the same one.

    Raises:
        ModelError: Weights are missing, pickled, quantized, outside of the folder, present twice,
            or an adapter lies next to them.
    """
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    adapters = [name for name in _ADAPTER_FILES if name in files]
    if adapters and (adapter is None or adapter.resolve() != folder.resolve()):
        raise ModelError(
            f"{str(folder)!r} holds an adapter ({', '.join(adapters)}), which would be ignored: "
            "load it with adapter=folder to merge it, or move these files away."
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ModelError(
            f"The config.json of {str(folder)!r} is not an object: {config!r:.80} found. Fetch or "
            "save the model again."
        )
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "unknown")
        raise ModelError(
            f"{str(folder)!r} is stored quantized ({method}), whose gradients can be wrong: load "
            "it with transformers, call dequantize(), and save it without quantization_config."
        )
    stored = [n for n in files if n.endswith(".safetensors") and n not in adapters]
    if WEIGHTS in files:
        loaded = [WEIGHTS]
    elif INDEX in files:
        loaded = _indexed_files(folder)
    else:
        raise ModelError(
            f"No safetensors weights named {WEIGHTS} in {str(folder)!r}: {', '.join(files)} found. "
            "Load the model with transformers and write it with save_pretrained(folder)."
        )
    ignored = [name for name in (*stored, INDEX) if name in files and name not in loaded]
    if loaded != [WEIGHTS]:
        ignored.remove(INDEX)
    if ignored:
        raise ModelError(
            f"{str(folder)!r} holds two sets of weights: {', '.join(loaded[:3])} would be loaded, "
            f"{', '.join(ignored[:3])} not. Move one set away."
        )
    for name in loaded:
        _check_number_formats(folder / name)


def count_weights(folder: Path) -> int:
    """Number of weights in a folder's safetensors files, by their headers."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("[!.]*.safetensors")):
        if path.name == ADAPTER_WEIGHTS:
            continue
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping: it has no iterator)
                total += math.prod(file.get_slice(key).get_shape())
    return total


def _check_number_formats(path: Path) -> None:
    """Refuse weights that are stored as integers, whose scales are not in the file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (no mapping: it has no iterator)
            if key.endswith((".weight", ".bias")) and not MASK_KEY.search(key):
                kind = file.get_slice(key).get_dtype()
                if kind[0] in "IUB" and kind != "BF16":
                    raise ModelError(
                        f"{str(path)!r} stores {key} as {kind}, which is quantized without its "
                        "scales: save the dequantized model with save_pretrained(folder)."
                    )


def _indexed_files(folder: Path) -> list[str]:
    """Weight files of an index, checked before any is opened."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    names = sorted(set(map(str, index["weight_map"].values())))
    for name in names:
        if PurePosixPath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{INDEX} of {str(folder)!r} points to {name!r}: only safetensors files of the "
                "folder itself are opened. Save the model again with save_pretrained(folder)."
            )
        if not (folder / name).is_file():
            raise ModelError(
                f"{name} of {str(folder)!r} is missing, but {INDEX} lists it: fetch it again."
            )
    return names


def check_loaded_keys(
    source: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]],
) -> None:
    """Refuse weights that the architecture or the files lack, or that have other shapes there.

    Raises:
        ModelError: Names the first key.
    """
    missing, mismatched = sorted(missing), sorted(mismatched)
    unexpected = sorted(key for key in unexpected if not MASK_KEY.search(key))
    if missing:
        raise ModelError(
            f"The weights of {source!r} are incomplete: {missing[0]} is missing and would be "
            f"random ({len(missing)} such found). Save or fetch the model again."
        )
    if unexpected:
        raise ModelError(
            f"The weights of {source!r} do not fit its config.json: {unexpected[0]} would be "
            f"ignored ({len(unexpected)} such found). Correct the number of layers and the "
            "architecture in config.json, or remove these weights."
        )
    if mismatched:
        key, stored, wanted = mismatched[0]
        raise ModelError(
            f"The weights of {source!r} do not fit its config.json: {key} has shape "
            f"{tuple(stored)}, and the config gives {tuple(wanted)} ({len(mismatched)} "
            "such found). Correct the sizes in config.json."
        )
