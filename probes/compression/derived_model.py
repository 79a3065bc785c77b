"""Derived models: a Hugging Face model with its tokenizer and provenance."""

import glob
import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from probes.errors import FigureError, ModelError
from probes.files import derived_folder, list_models
from probes.models.files.loading import (
    check_finite,
    check_saved,
    load_hf_model,
    parse_dtype,
    source_provenance,
)
from probes.models.files.names import BARE_HUB_IDS, find_model, split_name, stored_source
from probes.models.files.provenance import (
    Provenance,
    StorageCost,
    storage_part,
    write_provenance,
)
from probes.models.model import Model, wrap


@dataclass(frozen=True, eq=False)
class DerivedModel:
    """A Hugging Face causal model with its name, tokenizer and provenance.

    Attributes:
        name: Its name.
        hf_model: The model of transformers, in plain floats.
        tokenizer: Its fast tokenizer, or None.
        provenance: How it was made, from what, and what it takes to store.
    """

    name: str
    hf_model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    provenance: Provenance

    def to_model(self) -> Model:
        """Return a copy as a `Model`."""
        origin = (
            f"{self.provenance.kind} from {self.provenance.parent}"
            if self.provenance.parent
            else "in memory"
        )
        return wrap(
            self.hf_model,
            name=self.name,
            tokenizer=self.tokenizer,
            origin=origin,
            provenance=self.provenance,
        )

    def save(self, folder: str | Path) -> Path:
        """Write a folder for `load`, atomically.

        Raises:
            ModelError: The folder holds something other than a model, or the saved model gives
                other logits.
            FigureError: The folder cannot be written.
        """
        folder = Path(folder)

        def write(draft: Path) -> None:
            self.hf_model.save_pretrained(draft)
            check_saved(draft, self.hf_model, self.name)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(draft)
            write_provenance(self.provenance, draft)

        write_folder_atomic(folder, write)
        return folder


def load_parent(name: str | Path | Model | DerivedModel, *, dtype: str = "float32") -> DerivedModel:
    """Load the model to derive from; a `DerivedModel` is returned unchanged.

    A `Model` is read again from the files that it was loaded from.

    Raises:
        ModelError: The name is unknown, weights are missing or not finite, or a `Model` was not
            loaded from files alone.
    """
    if isinstance(name, DerivedModel):
        return name
    if isinstance(name, Model):
        return replace(load_parent(_files_of(name), dtype=dtype), name=name.name)
    source, _ = find_model(name)
    number_format = parse_dtype(dtype)
    hf_model, tokenizer = load_hf_model(source, number_format)
    check_finite(hf_model, str(name))
    provenance = source_provenance(source, number_format) or Provenance(
        "trained", "", dense_storage(hf_model, bits=16), states_storage=False
    )
    return DerivedModel(split_name(name)[0], hf_model.eval(), tokenizer, provenance)


def refuse_quantized(origin: DerivedModel, verb: str) -> None:
    """Raise ModelError for a quantized model, whose storage a change of its weights would lose."""
    if origin.provenance.kind == "quantized":
        raise ModelError(
            f"{origin.name} is quantized, and its weights would count as unrounded: {verb} "
            f"{origin.provenance.parent or 'the model'} first, and quantize the result"
        )


def _files_of(model: Model) -> str:
    if source := stored_source(model.origin):
        return source
    raise ModelError(
        f"{model.name} comes from {model.origin!r}, and a model is derived from files: give its "
        "name or folder"
    )


def new_model_folder(name: str, *, force: bool = False) -> Path:
    """Return the folder of a new derived model, by which `load` finds it.

    Raises:
        ModelError: The name is no plain file name, means another model, or is in use and `force`
            is not set.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ModelError(
            f"The name {name!r} is not allowed: use up to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    if name in (*list_models(), *BARE_HUB_IDS) or name.startswith("random-init"):
        raise ModelError(
            f"The name {name!r} means another model when it is loaded: choose another name"
        )
    folder = derived_folder() / name
    if folder.exists() and not force:
        raise ModelError(f"{str(folder)!r} exists: choose another name, or replace it with --force")
    return folder


def dense_storage(hf_model: nn.Module, *, bits: int) -> StorageCost:
    """Return the storage cost of a model whose weights all have the same number of bits."""
    parts = {"weights": 0.0, "embeddings": 0.0, "other": 0.0}
    for name, weight in hf_model.named_parameters():  # Lists tied weights once.
        parts[storage_part(name, weight.ndim)] += weight.numel() * bits
    return StorageCost(**parts)


def write_folder_atomic(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a model folder to a temporary place and move it when complete.

    An existing model is replaced then, and kept if anything fails; one whose replacement was cut
    off in between gets its name back first.

    Raises:
        ModelError: The folder holds something other than a model.
        FigureError: The folder cannot be written.
    """
    _restore_replaced(folder)
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise ModelError(
            f"{str(folder)!r} holds something other than a model: choose another folder"
        )
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        draft.mkdir(parents=True)
        write(draft)
        for path in draft.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FigureError(
            f"cannot write {str(folder)!r} ({reason}): choose another place"
        ) from error
    finally:
        _restore_replaced(folder)
        shutil.rmtree(draft, ignore_errors=True)


def _restore_replaced(folder: Path) -> None:
    """Move a model back whose replacement did not come, and remove those that were replaced."""
    for old in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):
                old.rename(folder)


@torch.no_grad()
def zero_fraction(hf_model: nn.Module) -> float:
    """Return the fraction of weights in the layers' matrices that are exactly 0."""
    matrices = [w for n, w in hf_model.named_parameters() if storage_part(n, w.ndim) == "weights"]
    total = sum(weight.numel() for weight in matrices)
    return sum(float((weight == 0).sum()) for weight in matrices) / max(total, 1)
