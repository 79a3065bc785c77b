"""Worker: runs units that arrive as bytes.

It knows nothing of the engine that started it. Models and dataclasses among the arguments arrive as
references, are fetched once and kept, so that what they measure at first use is measured once.
"""

import json
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any

from safetensors.torch import load, save
from torch import set_num_threads

from probes import errors
from probes.errors import EngineError, ProbeError
from probes.models.model import Model
from probes.prompts.tokens.once import tokenizing_once
from probes.scale.decoding import decode
from probes.scale.encoding import Digests, encode
from probes.scale.packed_model import PackedModel, pack_model, read_tokenizer, unpack_model

_KEPT = 32  # Dataclasses that a worker keeps; a random-init model can be one.


@dataclass(frozen=True, eq=False)
class Message:
    """A value as bytes.

    Attributes:
        tree: Its structure, as JSON.
        tensors: Its tensors, as a safetensors file.
        models: Digests of its models.
    """

    tree: bytes
    tensors: bytes
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """Place of a dataclass in the arguments of a unit."""

    digest: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a unit.

    Attributes:
        value: Its result; None if it failed.
        error: Kind, message and traceback of the error; None if there was none.
        notices: Messages of warnings.
    """

    value: Message | None
    error: tuple[str, str, str] | None
    notices: tuple[str, ...]


class Packer:
    """Packs units, and each of their models and dataclasses once.

    Args:
        put: Takes a packed model or dataclass to where workers find it.
    """

    def __init__(self, put: Callable[[PackedModel | Message], Any]) -> None:
        self._put, self._digests = put, Digests()
        self._places: dict[str, Any] = {}
        self.models: Mapping[str, Model] = self._digests.models

    def pack(self, function: Callable, args: tuple, kwargs: dict) -> tuple[Message, dict[str, Any]]:
        """Pack a unit; returns also what `put` gave for each of its models and dataclasses."""
        used: dict[str, Any] = {}
        unit = self._message(self._refer((function, args, kwargs), used), used)
        return unit, used

    def _refer(self, value: Any, used: dict[str, Any]) -> Any:  # noqa: ANN401
        """The value with references in the place of its outermost dataclasses."""
        match value:
            case partial():
                parts = self._refer((value.args, value.keywords), used)
                return partial(value.func, *parts[0], **parts[1])
            case tuple() | list():
                return type(value)(self._refer(part, used) for part in value)
            case dict():
                return {key: self._refer(part, used) for key, part in value.items()}
        if not is_dataclass(value) or isinstance(value, type | Model):
            return value
        digest = self._digests.of(value)
        if digest not in self._places:
            inner: dict[str, Any] = {}
            self._places[digest] = (self._put(self._message(value, inner)), inner)
        place, inner = self._places[digest]
        used |= inner | {digest: place}
        return Reference(digest)

    def _message(self, value: object, used: dict[str, Any]) -> Message:
        encoded = encode(value, self._digests)
        for digest, model in encoded.models.items():
            if digest not in self._places:
                self._digests.models[digest] = model
                self._places[digest] = self._put(pack_model(model, digest))
            used[digest] = self._places[digest]
        return _as_message(encoded)


def _as_message(encoded: Any) -> Message:  # noqa: ANN401
    tensors = {name: tensor.cpu().clone() for name, tensor in encoded.tensors.items()}
    tree = json.dumps(encoded.tree, separators=(",", ":")).encode()
    return Message(tree, save(tensors), tuple(encoded.models))


class Worker:
    """Runs units one after another.

    Args:
        fetch: Gives the packed model or dataclass of a digest.
    """

    def __init__(self, fetch: Callable[[str], Any]) -> None:
        set_num_threads(1)  # Two threads on a busy core are many times slower than one.
        self._fetch, self._digests = fetch, Digests()
        self._models, self._kept = dict[str, Model](), OrderedDict[str, Any]()
        self._tokenizers, self._context = dict[object, Any](), tokenizing_once()

    def run(self, unit: Message) -> Outcome:
        """Run a unit: a function, its arguments and its keyword arguments."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                value, error = self._context.run(self._value, unit), None
            except ProbeError as failed:
                value, error = None, (type(failed).__name__, str(failed), "")
            except Exception as failed:
                value, error = None, (type(failed).__name__, str(failed), traceback.format_exc())
        notices = (str(one.message) for one in caught if issubclass(one.category, UserWarning))
        return Outcome(value, error, tuple(dict.fromkeys(notices)))

    def _value(self, unit: Message) -> Message:
        function, args, kwargs = self._find(self._read(unit))
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return _as_message(encode(function(*args, **kwargs), self._digests))

    def _read(self, message: Message) -> Any:  # noqa: ANN401
        for digest in message.models:
            if digest not in self._models:
                packed = self._fetch(digest)
                model = unpack_model(packed, self._tokenizer(packed))
                self._models[digest] = model
                self._digests.keep(model, digest)
        return decode(json.loads(message.tree), load(message.tensors), self._models)

    def _tokenizer(self, packed: PackedModel) -> Any:  # noqa: ANN401
        """Tokenizer of a packed model, which models of equal files share."""
        files = tuple(sorted(packed.tokenizer.items()))
        if files not in self._tokenizers:
            self._tokenizers[files] = read_tokenizer(packed.tokenizer)
        return self._tokenizers[files]

    def _find(self, value: Any) -> Any:  # noqa: ANN401
        """The value with dataclasses in the place of references."""
        match value:
            case partial():
                args, keywords = self._find((value.args, value.keywords))
                return partial(value.func, *args, **keywords)
            case tuple() | list():
                return type(value)(map(self._find, value))
            case dict():
                return {key: self._find(part) for key, part in value.items()}
            case Reference():
                if value.digest not in self._kept:
                    self._kept[value.digest] = self._read(self._fetch(value.digest))
                self._kept.move_to_end(value.digest)
                return self._kept[value.digest]
        return value


def value_of(outcome: Outcome, models: Mapping[str, Model]) -> Any:  # noqa: ANN401
    """Result of a unit; its warnings are given again.

    Raises:
        ProbeError: The error of the unit, of its own kind.
        EngineError: It failed in another way; the traceback is a note of the error.
    """
    for notice in outcome.notices:
        warnings.warn(notice, stacklevel=2)
    if outcome.error is not None:
        kind, text, trace = outcome.error
        own = getattr(errors, kind, None)
        if isinstance(own, type) and issubclass(own, ProbeError):
            raise own(text)
        failed = EngineError(f"A unit failed in a worker ({kind}: {text}): see the traceback")
        failed.add_note(trace)
        raise failed
    if outcome.value is None:
        raise EngineError("A unit came back without a result: run it again")
    value = outcome.value
    return decode(json.loads(value.tree), load(value.tensors), models)
