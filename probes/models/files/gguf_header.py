"""Header of a GGUF file: its metadata and table of tensors, checked before any weight is read.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from probes.errors import ModelError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_MAX_DIMENSIONS = 8

# Bits of a weight's own code; the rest of a block holds scales and, where marked, minima.
_CODE_BITS = {
    **{"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q8_1": 8},
    **{"Q2_K": 2, "Q3_K": 3, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6, "Q8_K": 8},
}
_WITH_MINIMA = ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of a GGUF file.

    Attributes:
        name: Name in the file, such as "blk.0.attn_q.weight".
        shape: Lengths of its axes, as torch writes them.
        type: Name of its number format, such as "Q4_K".
        size: Bytes.
        code_bits: Bits of a weight's own code; all bits of a weight where a block holds no scales,
            or where codes and scales cannot be told apart.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    size: int
    code_bits: float

    @property
    def entries(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def has_minima(self) -> bool:
        """Whether a block stores its smallest value next to its scale."""
        return self.type in _WITH_MINIMA


@dataclass(frozen=True, slots=True, eq=False)
class GGUFHeader:
    """Metadata and tensors of a GGUF file."""

    path: Path
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: tuple[GGUFTensor, ...] = field(repr=False)

    @property
    def architecture(self) -> str:
        """Architecture by llama.cpp's name."""
        return str(self.metadata.get("general.architecture", ""))

    def setting(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """Setting of the architecture, such as "rope.scaling.type"."""
        return self.metadata.get(f"{self.architecture}.{name}", default)

    @property
    def types(self) -> Mapping[str, int]:
        """Number of tensors by number format, most frequent first."""
        return dict(Counter(tensor.type for tensor in self.tensors).most_common())

    @property
    def entries(self) -> int:
        """Number of weights."""
        return sum(tensor.entries for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits that a weight takes in the file, scales and minima included."""
        return 8 * sum(tensor.size for tensor in self.tensors) / max(self.entries, 1)


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read the header of a GGUF file, and check that the file holds all of its tensors.

    Raises:
        ModelError: It is no whole GGUF file, one part of several, or of a format not known here.
    """
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _Reader(path, data).header()
    except OSError as error:
        raise ModelError(
            f"Could not read {str(path)!r} ({error.strerror or error}): check the path"
        ) from error
    except ValueError as error:  # An empty file cannot be mapped.
        raise ModelError(f"{str(path)!r} is empty: fetch the file again") from error


class _Reader:
    """Position in a mapped file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def header(self) -> GGUFHeader:
        if self.data[:4] != _MAGIC:
            raise ModelError(
                f"{str(self.path)!r} is no GGUF file: it begins with {self.data[:4]!r}. Give a "
                "GGUF file, or a folder with config.json"
            )
        self.at = 4
        version = self.number("I")
        if version not in _VERSIONS:
            raise ModelError(
                f"{str(self.path)!r} is GGUF version {version}: versions 2 and 3 in little-endian "
                "order are read. Convert it with llama.cpp"
            )
        tensors, entries = self.number("Q"), self.number("Q")
        if max(tensors, entries) > len(self.data):
            self.truncated()
        metadata = {}
        for _ in range(entries):
            key = self.string()
            metadata[key] = self.value(self.number("I"))
        _refuse_parts(self.path, metadata)
        table = [self.tensor_row() for _ in range(tensors)]
        alignment = int(metadata.get("general.alignment", 32)) or 32
        start = -(-self.at // alignment) * alignment
        found = tuple(tensor for tensor, _ in table)
        end = max((start + offset + tensor.size for tensor, offset in table), default=start)
        if end > len(self.data):
            self.truncated(f"its tensors end at byte {end:,}")
        return GGUFHeader(self.path, metadata, found)

    def truncated(self, expected: str = "its header goes on") -> NoReturn:
        raise ModelError(
            f"{str(self.path)!r} is not whole: {len(self.data):,} bytes found, {expected}. Fetch "
            "the file again"
        )

    def take(self, size: int) -> bytes:
        self.at += size
        if size < 0 or self.at > len(self.data):
            self.truncated()
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:  # noqa: ANN401
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:  # noqa: ANN401
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ModelError(
                f"{str(self.path)!r} holds metadata of type {kind}, which GGUF does not have: "
                "fetch the file again"
            )
        kind, count = self.number("I"), self.number("Q")
        if count > len(self.data):
            self.truncated()
        if kind in _NUMBERS:
            size = struct.calcsize(_NUMBERS[kind])
            return [*struct.unpack(f"<{count}{_NUMBERS[kind]}", self.take(count * size))]
        if kind == _STRING:
            return self.strings(count)
        return [self.value(kind) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """An array of texts, such as a vocabulary: in one loop, as there are many."""
        data, at, end, length = self.data, self.at, len(self.data), struct.Struct("<Q")
        found = []
        for _ in range(count):
            first = at + 8
            at = first + (length.unpack_from(data, at)[0] if first <= end else end)
            if at > end:
                self.truncated()
            found.append(data[first:at].decode("utf-8", errors="replace"))
        self.at = at
        return found

    def tensor_row(self) -> tuple[GGUFTensor, int]:
        """A tensor, and where its data begin behind the header."""
        name, dimensions = self.string(), self.number("I")
        if dimensions > _MAX_DIMENSIONS:
            self.truncated()
        # The file names the axis that varies fastest first.
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        kind, block, size = _number_format(self.path, name, self.number("I"))
        entries = math.prod(shape)
        code = float(_CODE_BITS.get(kind, 8 * size / block))
        return GGUFTensor(name, shape, kind, entries // block * size, code), self.number("Q")


def _number_format(path: Path, name: str, number: int) -> tuple[str, int, int]:
    """Name of a number format, and the weights and bytes of one of its blocks."""
    gguf = import_gguf(path)
    try:
        kind = gguf.GGMLQuantizationType(number)
        return kind.name, *gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ModelError(
            f"{str(path)!r} stores {name} in number format {number}, which the installed gguf "
            "package does not know: upgrade it (pip install -U gguf), or quantize the model again"
        ) from None


def import_gguf(path: Path) -> Any:  # noqa: ANN401
    """Return the gguf package.

    Raises:
        ModelError: It is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise ModelError(
            f"{str(path)!r} needs the gguf package, which is not installed: "
            "pip install 'circuit-relatives[gguf]'"
        ) from None
    return gguf


def _refuse_parts(path: Path, metadata: Mapping[str, Any]) -> None:
    parts = metadata.get("split.count", 1)
    if parts > 1:
        part = int(metadata.get("split.no", 0)) + 1
        raise ModelError(
            f"{str(path)!r} is part {part} of {parts} of a split GGUF file: join them with "
            "llama-gguf-split --merge FIRST-PART WHOLE.gguf, and load the whole file"
        )
