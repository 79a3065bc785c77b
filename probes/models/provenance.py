"""How a relative was made and what it takes to store: the slip that goes with its files."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from probes.errors import ModelError
from probes.files import write_atomic

PROVENANCE_FILE = "relative.json"
"""The file beside the weights that says how they came about."""

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]


@dataclass(frozen=True, slots=True)
class StorageCost:
    """What a model takes to store, in bits; every part counts.

    Attributes:
        weights: Of the matrices of the layers, those that are kept.
        scales, zeros: Of what turns rounded weights back, the zero points among it.
        index: Of what tells which weights were kept.
        embeddings: Of the embedding and the unembedding, once where they are tied.
        other: Of norms, biases and the rest.
    """

    weights: float
    embeddings: float
    other: float
    scales: float = 0.0
    zero_points: float = 0.0
    mask_index: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a relative was made.

    Attributes:
        kind: "quantized", "distilled", "pruned", "ticket", "grown", or "trained" where no more
            is known.
        parent: The model that it was made from.
        dials: Everything that was turned to make it, and what was measured meanwhile.
        storage: What it takes to store.
        gap: Greatest absolute difference of a logit between the real kernel and what is analyzed;
            None where there is no other kernel.
    """

    kind: str
    parent: str
    storage: StorageCost
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    kernel_gap: float | None = None


def write_provenance(provenance: Provenance, folder: Path) -> None:
    """Write the slip into a model's folder."""
    write_atomic(
        folder / PROVENANCE_FILE, (json.dumps(asdict(provenance), indent=1) + "\n").encode()
    )


def read_provenance(folder: Path) -> Provenance | None:
    """Read the slip of a model's folder; None where there is none.

    Raises:
        ModelError: The slip is broken.
    """
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Provenance(**found | {"storage": StorageCost(**found["storage"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{str(path)!r} does not say how the model was made ({error}): make it again, or "
            "delete the file to load the weights as they are"
        ) from error


def folder_storage(folder: Path) -> StorageCost:
    """Count the bits of the weights in a folder as their files hold them, tied ones once."""
    from safetensors import safe_open

    bits = {"weights": 0.0, "embeddings": 0.0, "other": 0.0}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping: it has no iterator)
                piece = file.get_slice(name)
                size, wide = 1, len(piece.get_shape())
                for extent in piece.get_shape():
                    size *= extent
                width = _DTYPE_BITS.get(piece.get_dtype(), 32)
                bits[storage_part(name, wide)] += size * width
    return StorageCost(**bits)


_DTYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I8": 8, "U8": 8, "BOOL": 8}

_EMBEDDING_NAMES = (
    *("embed_tokens", "embed_positions", "word_embeddings"),
    *("embed_in", "embed_out", "lm_head", "wte", "wpe"),
)


def storage_part(name: str, dimensions: int) -> str:
    """Say which part of the storage a weight belongs to, by its name and how many axes it has."""
    if any(word in name.split(".") for word in _EMBEDDING_NAMES):
        return "embeddings"
    return "weights" if dimensions == 2 else "other"
