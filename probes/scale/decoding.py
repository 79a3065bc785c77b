"""Decoding of stored values.

It builds dataclasses of this package only, through their constructors, and runs no code of a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from probes.errors import StoreError
from probes.models.model import Model
from probes.scale.encoding import PACKAGE, Tree


def decode(tree: Tree, tensors: Mapping[str, Tensor], models: Mapping[str, Model]) -> Any:  # noqa: ANN401
    """Return the value that `encode` encoded; its models are found by their digests.

    Raises:
        StoreError: A part is unknown, or a model is missing.
    """
    return _Decoder(tensors, models).decode(tree)


@dataclass(eq=False)
class _Decoder:
    tensors: Mapping[str, Tensor]
    models: Mapping[str, Model]

    def decode(self, tree: Tree) -> Any:  # noqa: ANN401
        """Decode any value."""
        if not isinstance(tree, list):
            return tree
        kind, *rest = tree
        if kind not in _KINDS:
            raise StoreError(f"A stored value has a part of kind {kind!r}: measure it again")
        return _KINDS[kind](self, *rest)

    def decode_model(self, digest: str, name: str) -> Model:
        """Find a model."""
        if digest not in self.models:
            raise StoreError(f"A stored value refers to {name!r}, which is not loaded: load it")
        return self.models[digest]

    def decode_object(self, module: str, name: str, *parts: Tree) -> object:
        """Build a dataclass."""
        own = _find(module, name)
        if not (isinstance(own, type) and is_dataclass(own)):
            raise StoreError(f"A stored value has a {module}.{name}, which is no dataclass")
        return own(**{field_name: self.decode(part) for field_name, part in parts})

    def decode_partial(self, *parts: Tree) -> Any:  # noqa: ANN401
        """Build a function with arguments."""
        function, arguments, keywords = map(self.decode, parts)
        return partial(function, *arguments, **keywords)


_KINDS: dict[str, Any] = {
    "float": lambda _, text: float(text),
    "list": lambda own, *parts: [own.decode(part) for part in parts],
    "tuple": lambda own, *parts: tuple(own.decode(part) for part in parts),
    "set": lambda own, *parts: frozenset(own.decode(part) for part in parts),
    "dict": lambda own, *pairs: {own.decode(key): own.decode(part) for key, part in pairs},
    "tensor": lambda own, number: own.tensors[number],
    "array": lambda own, number: own.tensors[number].numpy(),
    "scalar": lambda own, number: own.tensors[number].numpy()[()],
    "texts": lambda own, kind, shape, *parts: np.array(list(map(own.decode, parts)), kind).reshape(
        shape
    ),
    "path": lambda _, text: Path(text),
    "partial": _Decoder.decode_partial,
    "model": _Decoder.decode_model,
    "name": lambda _, module, name: _find(module, name),
    "object": _Decoder.decode_object,
}


def _find(module: str, name: str) -> Any:  # noqa: ANN401
    if not module.startswith(PACKAGE):
        raise StoreError(f"A stored value names {module}.{name}, which is not of this package")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
