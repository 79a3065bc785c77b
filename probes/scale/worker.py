"""Worker: runs units that arrive as bytes.

It knows nothing of the engine that started it. Models and dataclasses among the arguments arrive as
references, are fetched once and kept, so that what they measure at first use is measured once.
"""

import traceback
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

from torch import set_num_threads

from probes import errors
from probes.errors import EngineError, ProbeError
from probes.models.model import Model
from probes.prompts.tokens.once import tokenizing_once
from probes.scale.encoding import Digests
from probes.scale.messages import Message, is_own_dataclass, keeps_measurements, pack, unpack
from probes.scale.packed_model import PackedModel, pack_model, read_tokenizer, unpack_model

_UNITS_KEPT = 16
"""Units after which a worker forgets a dataclass that none of them had: it may hold a model."""


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
    """Packs units, and each of their models and shared dataclasses once.

    Shared are dataclasses that are arguments, and those that keep what they measure.

    Args:
        put: Takes a packed model or dataclass to where workers find it.
    """

    def __init__(self, put: Callable[[PackedModel | Message], Any]) -> None:
        self._put, self._digests = put, Digests()
        self._models = WeakValueDictionary[str, Model]()
        self._numbers = count()
        self._places: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._keys: dict[int, tuple[Any, str]] = {}

    @property
    def models(self) -> Mapping[str, Model]:
        """Models in the units, by key, as long as they exist."""
        return self._models

    def pack(self, function: Callable, args: tuple, kwargs: dict) -> tuple[Message, dict[str, Any]]:
        """Pack a unit; returns also what `put` gave for each of its models and dataclasses."""
        unit = (function, args, kwargs)
        return self._message(unit, {id(one) for one in _arguments(unit)})

    def _message(self, value: Any, shared: set[int]) -> tuple[Message, dict[str, Any]]:  # noqa: ANN401
        """Message of a value, and places of what it refers to."""
        used: dict[str, Any] = {}

        def refer(part: Any) -> str | None:  # noqa: ANN401
            if isinstance(part, Model):
                key = self._model_key(part)
            elif part is not value and (id(part) in shared or keeps_measurements(part)):
                key = self._key(part)
            else:
                return None
            if key is None:
                return None
            place, inner = self._places[key]
            used.update(inner | {key: place})
            return key

        data = pack(value, refer)
        return Message(data, tuple(used)), used

    def _model_key(self, model: Model) -> str:
        key = self._digests.of_model(model)
        if key not in self._places:
            self._places[key] = (self._put(pack_model(model, key)), {})
        self._models[key] = model
        return key

    def _key(self, value: Any) -> str | None:  # noqa: ANN401
        """Key of a shared dataclass, which is put at its first; None for one without weak ones."""
        reference, key = self._keys.get(id(value), (None, ""))
        if reference is not None and reference() is value:
            return key
        try:
            reference = weakref.ref(value)
        except TypeError:
            return None
        key = str(next(self._numbers))
        message, used = self._message(value, set())
        self._places[key] = (self._put(message), used)
        self._keys[id(value)] = (reference, key)
        return key


def _arguments(value: Any) -> list[Any]:  # noqa: ANN401
    """Outermost dataclasses of the arguments of a unit."""
    match value:
        case partial():
            return _arguments((value.args, value.keywords))
        case tuple() | list():
            return [one for part in value for one in _arguments(part)]
        case dict():
            return _arguments([*value.values()])
    return [value] if is_own_dataclass(value) and not isinstance(value, Model) else []


class Worker:
    """Runs units one after another.

    Args:
        fetch: Gives the packed model or dataclass of a key.
    """

    def __init__(self, fetch: Callable[[str], Any]) -> None:
        set_num_threads(1)  # Two threads on a busy core are many times slower than one.
        self._fetch, self._digests = fetch, Digests()
        self._models, self._kept, self._unit = dict[str, Model](), dict[str, tuple[Any, int]](), 0
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
        self._unit += 1
        for key in unit.references:
            if key in self._kept:
                self._kept[key] = (self._kept[key][0], self._unit)
        oldest = self._unit - _UNITS_KEPT
        self._kept = {key: kept for key, kept in self._kept.items() if kept[1] > oldest}
        function, args, kwargs = unpack(unit.data, self._find)
        result = function(*args, **kwargs)
        models: dict[str, None] = {}

        def refer(part: Any) -> str | None:  # noqa: ANN401
            if not isinstance(part, Model):
                return None
            models[key := self._digests.of_model(part)] = None
            return key

        data = pack(result, refer)
        return Message(data, tuple(models))

    def _find(self, key: str) -> Any:  # noqa: ANN401
        """Model or dataclass of a key."""
        if key in self._models:
            return self._models[key]
        if key not in self._kept:
            packed = self._fetch(key)
            if isinstance(packed, PackedModel):
                model = unpack_model(packed, self._tokenizer(packed))
                self._models[key] = model
                self._digests.keep(model, key)
                return model
            self._kept[key] = (unpack(packed.data, self._find), self._unit)
        return self._kept[key][0]

    def _tokenizer(self, packed: PackedModel) -> Any:  # noqa: ANN401
        """Tokenizer of a packed model, which models of equal files share."""
        files = tuple(sorted(packed.tokenizer.items()))
        if files not in self._tokenizers:
            self._tokenizers[files] = read_tokenizer(packed.tokenizer)
        return self._tokenizers[files]


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

    def find(key: str) -> Model:
        if key not in models:
            raise EngineError("A unit gave back a model that is not loaded here: run it again")
        return models[key]

    return unpack(outcome.value.data, find)
