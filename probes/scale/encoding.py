"""Encoding of measured values as plain JSON and tensors, without pickle.

A value is a tree of numbers, texts, collections, arrays, tensors and dataclasses of this package.
A `Model` becomes a reference, its digest. `decoding.decode` is the inverse of `encode`.
"""

import hashlib
import json
import math
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from probes.errors import StoreError
from probes.models.model import Model
from probes.result import is_saved

PACKAGE = "probes."

Tree = Any
"""A JSON value: null, a boolean, a number, a text, or a list that begins with its kind."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """An encoded value.

    Attributes:
        tree: Its structure.
        tensors: Its tensors and arrays, by the digest of their numbers, kind and shape.
        models: Its models, by digest.
    """

    tree: Tree
    tensors: Mapping[str, Tensor]
    models: Mapping[str, Model]


def encode(value: object, digests: "Digests | None" = None) -> Encoded:
    """Encode a value.

    Args:
        value: What to encode.
        digests: Where the digests of its models are known from.

    Raises:
        StoreError: It holds something that has no plain form.
    """
    encoder = _Encoder(digests or Digests())
    tree = encoder.encode(value)
    return Encoded(tree, encoder.tensors, encoder.models)


@dataclass(eq=False)
class Digests:
    """Digests of values, and of the models and dataclasses in them that were met before.

    Equal values have equal digests, whether they were measured or read from a file. Models and
    dataclasses must not change while the digests are in use.
    """

    models: WeakValueDictionary[str, Model] = field(default_factory=WeakValueDictionary)
    """Models in the values that were met, by digest."""
    _known: dict[int, tuple[Any, str]] = field(default_factory=dict)

    def of(self, value: object) -> str:
        """Digest of a value.

        Raises:
            StoreError: It holds something that has no plain form.
        """
        encoder = _Encoder(self, is_key=True)
        tree = encoder.encode(value)
        self.models.update(encoder.models)
        return hash_tree(tree)

    def of_model(self, model: Model) -> str:
        """Digest of a model."""
        known = self.find(model)
        if known is None:
            known = model_digest(model)
            self.keep(model, known)
        return known

    def find(self, value: object) -> str | None:
        """Digest of a model or dataclass that was met before and still exists."""
        reference, digest = self._known.get(id(value), (None, None))
        return digest if reference is not None and reference() is value else None

    def keep(self, value: object, digest: str) -> None:
        """Keep the digest of a model or dataclass as long as it exists."""
        with suppress(TypeError):  # Some dataclasses with slots cannot be referred to weakly.
            self._known[id(value)] = (weakref.ref(value), digest)


def model_digest(model: Model) -> str:
    """Digest of all that shapes a model's runs and what is said of it.

    Its name, origin and provenance, its configuration, its tokenizer, and every weight.
    """
    total = hashlib.blake2b(digest_size=20)
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    facts = (
        *(model.name, model.origin, str(model.dtype), str(model.device.type)),
        *(repr(model.shape), repr(model.provenance)),
        json.dumps(model.config.to_dict(), sort_keys=True, default=str),
        backend.to_str() if backend else repr(model.tokenizer),
        repr(getattr(model.tokenizer, "chat_template", None)),
    )
    total.update("\0".join(facts).encode())
    for name, weight in model.bridge.original_model.state_dict().items():
        total.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        total.update(tensor_bytes(weight))
    return total.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Bytes of a tensor's numbers, in row-major order."""
    if not tensor.numel():
        return memoryview(b"")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]


def hash_tree(tree: Tree) -> str:
    """Digest of an encoded value."""
    return hashlib.blake2b(_dumps(tree), digest_size=20).hexdigest()


def _dumps(tree: Tree) -> bytes:
    return json.dumps(tree, separators=(",", ":")).encode()


@dataclass(eq=False)
class _Encoder:
    digests: Digests
    is_key: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    seen: dict[int, tuple[object, str]] = field(default_factory=dict)

    def encode(self, value: object) -> Tree:
        """Encode any value."""
        if value is None or type(value) in (bool, str, int):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else ["float", repr(value)]
        if type(value) in (list, tuple):
            return [type(value).__name__, *map(self.encode, value)]  # pyright: ignore[reportArgumentType]
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return self.encode_numbers(value)
        return self.encode_collection(value)

    def encode_numbers(self, value: Tensor | np.ndarray | np.generic) -> Tree:
        """Encode a tensor, an array or a scalar of NumPy."""
        if isinstance(value, Tensor):
            return ["tensor", self.keep(value, value.detach())]
        if value.dtype.kind not in "biuf":
            parts = map(self.encode, value.reshape(-1).tolist())
            return ["texts", value.dtype.str, list(value.shape), *parts]
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return [kind, self.keep(value, torch.from_numpy(np.array(value, order="C")))]

    def encode_collection(self, value: object) -> Tree:
        """Encode a mapping, a set, a path or a function with arguments."""
        match value:
            case Mapping():
                return ["dict", *([self.encode(k), self.encode(v)] for k, v in value.items())]
            case set() | frozenset():
                return ["set", *sorted(map(self.encode, value), key=_dumps)]
            case Path():
                return ["path", str(value)]
            case partial():
                return ["partial", *map(self.encode, (value.func, value.args, value.keywords))]
        return self.encode_object(value)

    def encode_object(self, value: object) -> Tree:
        """Encode a model, or a dataclass, class or function of this package."""
        if isinstance(value, Model):
            digest = self.digests.of_model(value)
            self.models[digest] = value
            return ["model", digest, value.name]
        if isinstance(value, type | FunctionType) and is_own(value):
            return ["name", value.__module__, value.__qualname__]
        if is_dataclass(value) and is_own(type(value)):
            return self.encode_dataclass(value)
        raise StoreError(
            f"A {type(value).__module__}.{type(value).__qualname__} cannot be stored: give plain "
            "values, tensors, or dataclasses of this package"
        )

    def encode_dataclass(self, value: Any) -> Tree:  # noqa: ANN401
        """Encode a dataclass; in a key, as its digest."""
        if self.is_key and (known := self.digests.find(value)):
            return ["digest", known]
        own = value.identity() if self.is_key and hasattr(value, "identity") else value
        if own is not value:
            return ["identity", type(value).__qualname__, self.encode(own)]
        parts = [
            [item.name, self.encode(getattr(value, item.name))]
            for item in fields(value)
            if is_saved(item)
        ]
        tree = ["object", type(value).__module__, type(value).__qualname__, *parts]
        if not self.is_key:
            return tree
        digest = hash_tree(tree)
        self.digests.keep(value, digest)
        return ["digest", digest]

    def keep(self, value: object, tensor: Tensor) -> str:
        """Keep a tensor, and return the digest of it."""
        found = self.seen.get(id(value))
        if found is None:
            head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
            digest = hashlib.blake2b(head, digest_size=20)
            digest.update(tensor_bytes(tensor))
            found = self.seen[id(value)] = (value, digest.hexdigest())  # Keeps the id in use.
            self.tensors[found[1]] = tensor
        return found[1]


def is_own(value: Any) -> bool:  # noqa: ANN401
    """Whether it is a class or function of a module of this package."""
    return value.__module__.startswith(PACKAGE) and "<" not in value.__qualname__
