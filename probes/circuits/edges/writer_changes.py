"""Changes of writers' outputs in patched passes, and a memory of those that passes share."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from torch import Tensor

# Floats that are remembered: some hundred changes of a model of 100 million weights.
_MAX_FLOATS = 1 << 26


class WriterChanges:
    """Changes of writers' outputs against the starting run, in ascending order of writers.

    `values` is "circuit writer prompt position d_model", filled writer by writer.
    """

    def __init__(self, values: Tensor, writers: Sequence[int] = ()) -> None:
        self.values, self.writers = values, list(writers)
        self.keys: list[bytes] = []

    def add(self, writer: int, change: Tensor, key: bytes = b"") -> None:
        """Add the change of the next writer; equal keys mean equal changes."""
        self.values[:, len(self.writers)] = change
        self.writers.append(writer)
        self.keys.append(key)

    def upstream(self, count: int) -> tuple[list[int], Tensor]:
        """The changed writers below `count`, and their changes."""
        end = bisect_left(self.writers, count)
        return self.writers[:end], self.values[:, :end]


class KnownChanges:
    """The changes used last, by keys that name all that they depend on.

    A circuit that differs in one edge from the one before has equal changes, but behind that edge.
    """

    def __init__(self) -> None:
        self._changes: OrderedDict[bytes, Tensor] = OrderedDict()
        self._size = 0

    def get(self, key: bytes) -> Tensor | None:
        """The change of a key, if it is remembered."""
        if key in self._changes:
            self._changes.move_to_end(key)
        return self._changes.get(key)

    def put(self, key: bytes, change: Tensor) -> Tensor:
        """Remember a change; those not used for long are forgotten."""
        self._changes[key] = change
        self._size += change.numel()
        while self._size > _MAX_FLOATS:
            self._size -= self._changes.popitem(last=False)[1].numel()
        return change


def change_key(*parts: bytes | int) -> bytes:
    """Key of a change: a digest of what it depends on."""
    whole = blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else part.to_bytes(8, "big", signed=True)
        whole.update(len(data).to_bytes(4, "big") + data)
    return whole.digest()
