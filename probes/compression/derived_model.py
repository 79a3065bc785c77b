"""A relative in the making: a plain Hugging Face model beside the slip that says what it is."""

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probes.errors import FigureError, ModelError
from probes.models.loading import check_finite, find_model, load_hf_model, parse_dtype
from probes.models.model import Model, wrap
from probes.models.provenance import (
    Provenance,
    StorageCost,
    folder_storage,
    read_provenance,
    storage_part,
    write_provenance,
)


@dataclass(frozen=True, eq=False)
class DerivedModel:
    """A Hugging Face causal model with its name, its tokenizer and how it was made."""

    name: str
    hf_model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    provenance: Provenance

    def to_model(self) -> Model:
        """Return a copy that every probe takes."""
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
        """Write it as a folder that `load` takes; all of it, or nothing."""
        folder = Path(folder)

        def fill(draft: Path) -> None:
            self.hf_model.save_pretrained(draft)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(draft)
            write_provenance(self.provenance, draft)

        write_folder_atomic(folder, fill)
        return folder


def load_parent(name: str | Path | DerivedModel, *, dtype: str = "float32") -> DerivedModel:
    """Read the plain model that a relative is to be made from; a Relative is given back.

    Raises:
        ModelError: The name is unknown, or its weights are missing, broken or no numbers.
    """
    if isinstance(name, DerivedModel):
        return name
    source, _ = find_model(name)
    hf_model, tokenizer = load_hf_model(source, parse_dtype(dtype))
    check_finite(hf_model, str(name))
    folder = Path(source)
    made = read_provenance(folder) if folder.is_dir() else None
    bits = folder_storage(folder) if folder.is_dir() else dense_storage(hf_model, bits=16)
    return DerivedModel(
        folder.name, hf_model.eval(), tokenizer, made or Provenance("trained", "", bits)
    )


def dense_storage(hf_model: nn.Module, *, bits: int) -> StorageCost:
    """Count the bits of a model all of whose weights are kept with so many bits each."""
    found = {"weights": 0.0, "embeddings": 0.0, "other": 0.0}
    for name, weight in hf_model.named_parameters():  # Tied weights are named once.
        found[storage_part(name, weight.ndim)] += weight.numel() * bits
    return StorageCost(**found)


def write_folder_atomic(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `fill` write a folder beside the place, and put it there when it is whole.

    What stood there before stays until then, and stays for good where `fill` fails.

    Raises:
        ModelError: Something that is no model's folder stands in the place.
        FigureError: It could not be written.
    """
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise ModelError(
            f"{str(folder)!r} holds something else than a model: give another place for it"
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
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise FigureError(
            f"cannot write {str(folder)!r} ({error.strerror or error}): choose another place"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@torch.no_grad()
def zero_fraction(hf_model: nn.Module) -> float:
    """Return the share of weights in the layers' matrices that are exactly zero, 0 to 1."""
    rows = [w for n, w in hf_model.named_parameters() if storage_part(n, w.ndim) == "weights"]
    return sum(float((w == 0).sum()) for w in rows) / max(sum(w.numel() for w in rows), 1)
