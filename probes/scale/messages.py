"""Messages: values as bytes between a command and its own workers, which trust each other.

Models stay behind, and so do dataclasses that units share: references stand in their place. A file
that outlives its process is written by `encoding` instead, which reads back without running code.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from probes.errors import EngineError
from probes.result import is_saved
from probes.scale.encoding import is_own

_UNPACKABLE = (pickle.PicklingError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, eq=False)
class Message:
    """A value as bytes.

    Attributes:
        data: The value, with references in the place of what stays behind.
        references: Keys of all these, also those within others.
    """

    data: bytes
    references: tuple[str, ...]


def is_own_dataclass(value: object) -> bool:
    """Whether it is a dataclass instance of this package."""
    return is_dataclass(type(value)) and is_own(type(value))


def keeps_measurements(value: object) -> bool:
    """Whether it is a dataclass of this package that measures at first use and keeps the result."""
    return is_own_dataclass(value) and _keeps(type(value))


@cache
def _keeps(kind: Any) -> bool:  # noqa: ANN401
    return any(item.name.startswith("_") and not item.init for item in fields(kind))


def pack(value: object, refer: Callable[[Any], str | None]) -> bytes:
    """Bytes of a value.

    Args:
        value: What to pack. Fields that are not saved are left out.
        refer: Reference to what stays behind; None for what is packed.

    Raises:
        EngineError: A part has no bytes, such as a function within another.
    """
    stream = io.BytesIO()
    try:
        _Pickler(stream, refer).dump(value)
    except _UNPACKABLE as error:
        text = " ".join(str(error).split())
        raise EngineError(
            f"A unit cannot go to a worker ({text[:200]}): give plain values, tensors or "
            "dataclasses and functions of a module, or use --engine inprocess"
        ) from error
    return stream.getvalue()


def unpack(data: bytes, find: Callable[[str], Any]) -> Any:  # noqa: ANN401
    """Value from its bytes; `find` gives what a reference stands for."""
    return _Unpickler(io.BytesIO(data), find).load()


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, refer: Callable[[Any], str | None]) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self._refer = refer

    def persistent_id(self, obj: Any) -> str | None:  # noqa: ANN401
        return self._refer(obj) if is_own_dataclass(obj) else None

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401
        if isinstance(obj, Tensor):
            flat = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            return _build_tensor, (flat.numpy(), obj.dtype, tuple(obj.shape))
        if isinstance(obj, MappingProxyType):
            return dict, (dict(obj),)
        if is_own_dataclass(obj):
            names = [item.name for item in fields(obj) if is_saved(item)]
            return _build, (type(obj), names, [getattr(obj, name) for name in names])
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, find: Callable[[str], Any]) -> None:
        super().__init__(stream)
        self._find = find

    def persistent_load(self, pid: str) -> Any:  # noqa: ANN401
        return self._find(pid)


def _build(kind: Callable[..., Any], names: list[str], values: list[Any]) -> Any:  # noqa: ANN401
    return kind(**dict(zip(names, values, strict=True)))


def _build_tensor(flat: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:  # noqa: ANN401
    return torch.from_numpy(flat).view(dtype).reshape(shape)
