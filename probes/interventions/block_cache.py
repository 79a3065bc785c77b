"""Key/value caches of single blocks, for runs that restart inside a prompt."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from jaxtyping import Int
from torch import Tensor

from probes.models.model import Model


class BlockCache:
    """Cache of one block: keeps keys and values before `first_position`, replaces the others."""

    def __init__(self, *keys_values: Tensor, first_position: int = 0) -> None:
        self.keys, self.values = keys_values or (None, None)
        self.first_position, self._stop_when_ready = first_position, False

    def update(
        self, keys: Tensor, values: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values that the block attends to, given its new ones."""
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
        elif self.first_position < self.keys.shape[2]:
            self.keys[:, :, self.first_position :] = keys
            self.values[:, :, self.first_position :] = values
        if self._stop_when_ready:
            raise _KeysReady
        return self.keys, self.values

    def fill(self, model: Model, layer: int, resid: Tensor, arguments: Mapping[str, Any]) -> None:
        """Compute keys and values from `first_position` on, without the rest of the block."""
        self._stop_when_ready = True
        with suppress(_KeysReady):
            model.run_block(layer, resid, arguments, self)
        self._stop_when_ready = False
        self.first_position = self.keys.shape[2] if self.keys is not None else 0


class _KeysReady(Exception):
    """Ends a block's forward pass inside `BlockCache.update`."""


def slice_argument(
    value: Any,  # noqa: ANN401
    prompt: Int[Tensor, " row"],
    positions: Int[Tensor, "row position"],
) -> Any:  # noqa: ANN401
    """Rows and positions of a block's argument (mask or rotary angles); others are unchanged."""
    if isinstance(value, tuple):
        return tuple(slice_argument(v, prompt, positions) for v in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    row = (prompt if len(value) > 1 else 0 * prompt)[:, None]
    return value[row, 0, positions][:, None] if value.ndim == 4 else value[row, positions]
