"""Provenance of a model: how it was made, what it takes to store, what to compare it with."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from probes.errors import ModelError
from probes.files import write_atomic
from probes.models.files.folder import ADAPTER_WEIGHTS, MASK_KEY

PROVENANCE_FILE = "relative.json"
"""Name of the provenance file in a model's folder."""

ModelNames = str | Sequence[str]

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]


@dataclass(frozen=True, slots=True)
class StorageCost:
    """Bits that a model takes to store.

    Attributes:
        weights: Kept entries of the matrices of the layers.
        embeddings: Embedding and unembedding, once where they are tied.
        other: Norms, biases and the rest.
        scales, zero_points: Quantization parameters.
        mask_index: Index of the kept weights of a pruned model.
    """

    weights: float
    embeddings: float
    other: float
    scales: float = 0.0
    zero_points: float = 0.0
    mask_index: float = 0.0

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a model was made, what it takes to store, and which models to compare it with.

    Attributes:
        kind: "quantized", "distilled", "pruned", "ticket", "grown", "tuned", "merged", or
            "trained" where no more is known.
        parent: The model that it was made from.
        storage: Bits that it takes to store.
        settings: Settings of the method, and what was measured during it.
        kernel_gap: Greatest absolute difference of a logit between the real kernel and the
            analyzed weights; None where there is no other kernel.
        base_model: Name of the model that it was tuned from; "" if it was not tuned.
        held_out: Axes of `prompts.held_out.family_split` that training left out: "cell", "noun",
            "combination"; empty for other training texts.
        method: What "distilled" means: "logits matched", "fine-tuned on the teacher's text", ….
        teacher: The model whose logits or text it was trained on.
        other_seed, control, negative_control: Name or names of its other-seed models, same-shape
            controls and negative controls.
        states_storage: Whether the storage was recorded; else each weight counts 16 bits.
    """

    kind: str
    parent: str
    storage: StorageCost
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    kernel_gap: float | None = None
    base_model: str = ""
    held_out: Sequence[str] = ()
    method: str = ""
    teacher: str = ""
    other_seed: ModelNames = ()
    control: ModelNames = ()
    negative_control: ModelNames = ()
    states_storage: bool = True

    @property
    def is_unknown(self) -> bool:
        """Whether nothing says how the model was made."""
        return self.kind == "trained" and not (self.parent or self.settings)

    @property
    def other_seeds(self) -> tuple[str, ...]:
        """Names of the same model trained from other seeds."""
        return _names(self.other_seed)

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the same-shape controls."""
        return _names(self.control)

    @property
    def negative_controls(self) -> tuple[str, ...]:
        """Names of the models trained on another task."""
        return _names(self.negative_control)


_HASHED_FILES = (
    *(
        "[!.]*.safetensors",
        "[!.]*.safetensors.index.json",
        "config.json",
        "tokenizer*",
        "[!.]*.model",
    ),
    *("vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
)


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of weights, of the config and of the tokenizer."""
    return {name: _hash_file(folder / name) for name in _hashed_names(folder)}


def _hashed_names(folder: Path) -> list[str]:
    paths = (path for pattern in _HASHED_FILES for path in folder.glob(pattern))
    return sorted({path.name for path in paths if path.is_file()})


def recorded_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of files as the provenance file records them; none where it does not.

    Raises:
        ModelError: The file is malformed.
    """
    hashes = _read_content(folder).get("sha256", {})
    if not isinstance(hashes, dict) or not all(Path(name).name == name for name in hashes):
        raise _malformed(folder, f"sha256 is {hashes!r:.60}, not a hash for each file")
    return hashes


def changed_files(folder: Path) -> tuple[str, ...] | None:
    """Files that were changed, removed or added after the provenance file recorded their SHA-256.

    None where it records no SHA-256, so that nothing can be compared.
    """
    if not (recorded := recorded_hashes(folder)):
        return None
    names = dict.fromkeys((*recorded, *_hashed_names(folder)))
    return tuple(
        name
        for name in names
        if not (folder / name).is_file() or _hash_file(folder / name) != recorded.get(name)
    )


def check_files(folder: Path) -> None:
    """Raise ModelError for a folder whose files were changed after its provenance was written."""
    if changed := changed_files(folder):
        raise ModelError(
            f"{str(folder)!r} was changed or damaged: {', '.join(changed)} does not have the "
            f"SHA-256 in {PROVENANCE_FILE}. Install the package again, or load a copy of the "
            "folder to use the changed files."
        )


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_provenance(provenance: Provenance, folder: Path) -> None:
    """Write the provenance file of a complete folder, with the SHA-256 of its files.

    Empty names and lists of comparison and training are left out.
    """
    content = asdict(provenance) | {"sha256": hash_files(folder)}
    optional = ("method", "teacher", "other_seed", "control", "negative_control")
    for name in ("base_model", "held_out", *optional):
        if not content[name]:
            del content[name]
    if content["states_storage"]:
        del content["states_storage"]
    write_atomic(folder / PROVENANCE_FILE, (json.dumps(content, indent=1) + "\n").encode())


def read_provenance(folder: Path) -> Provenance | None:
    """Read the provenance file of a model's folder; None where there is none.

    Raises:
        ModelError: The file is malformed.
    """
    if not (folder / PROVENANCE_FILE).is_file():
        return None
    content = _read_content(folder)
    content.pop("sha256", None)
    try:
        values: dict[str, Any] = content | {"storage": StorageCost(**content["storage"])}
        result = Provenance(**values)
        compared = (result.base_model, result.other_seed, result.control, result.negative_control)
        for names in (*compared, result.held_out, result.method, result.teacher):
            if not all(isinstance(name, str) for name in _names(names)):
                raise TypeError(f"{names!r} is not a name or a list of them")
    except (ValueError, TypeError, KeyError) as error:
        raise _malformed(folder, error) from error
    return result


def _read_content(folder: Path) -> dict[str, Any]:
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _malformed(folder, error) from error
    if not isinstance(content, dict):
        raise _malformed(folder, f"{content!r:.60} found, not an object")
    return content


def _malformed(folder: Path, reason: object) -> ModelError:
    return ModelError(
        f"{str(folder / PROVENANCE_FILE)!r} is not a provenance file ({reason}): make the model "
        "again, or delete the file to load the weights without it"
    )


def _names(names: ModelNames) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def folder_storage(folder: Path) -> tuple[StorageCost, bool]:
    """Bits of the weights in a folder's safetensors files, and whether some have fewer than 16.

    Plain floats count 16 bits in whatever width they were saved, as in all models of this kit:
    the files would say how a model was saved, not what it takes. Tied weights count once.

    Raises:
        ModelError: A number format is unknown.
    """
    from safetensors import safe_open

    bits, is_packed = {"weights": 0.0, "embeddings": 0.0, "other": 0.0}, False
    for path in sorted(folder.glob("[!.]*.safetensors")):
        if path.name == ADAPTER_WEIGHTS:  # Merged into the others.
            continue
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping: it has no iterator)
                if MASK_KEY.search(name):  # A causal mask, which is not loaded.
                    continue
                piece = file.get_slice(name)
                shape, kind = piece.get_shape(), piece.get_dtype()
                if kind not in _DTYPE_BITS:
                    raise ModelError(
                        f"{str(path)!r} stores {name} as {kind}, whose bits are not known here: "
                        "save the model in float16 or float32"
                    )
                bits[storage_part(name, len(shape))] += math.prod(shape) * _DTYPE_BITS[kind]
                is_packed |= _DTYPE_BITS[kind] < 16
    return StorageCost(**bits), is_packed


_DTYPE_BITS = {
    **dict.fromkeys(("F64", "F32", "F16", "BF16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 8),
    **{"I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64},
}

_EMBEDDING_NAMES = (
    *("embed_tokens", "embed_positions", "word_embeddings"),
    *("embed_in", "embed_out", "lm_head", "wte", "wpe"),
)


def storage_part(name: str, dimensions: int) -> str:
    """Field of `StorageCost` that a weight counts in, by its name and number of axes."""
    if any(word in name.split(".") for word in _EMBEDDING_NAMES):
        return "embeddings"
    return "weights" if dimensions == 2 else "other"


@dataclass(frozen=True, slots=True)
class Rate:
    """Storage of a model.

    Attributes:
        storage: Bits, by part.
        density: Fraction of the weights in the layers' matrices that are not exactly 0.
        parameters: Number of weights; tied ones count once.
        is_recorded: Whether the provenance records the storage; else each weight counts 16 bits.
    """

    storage: StorageCost
    density: float
    parameters: int
    is_recorded: bool

    @property
    def bits(self) -> float:
        """Bits of all parts."""
        return self.storage.total
