"""Pool of workers: each thread has one, and a unit whose worker ended goes to a new one."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

from probes.errors import EngineError
from probes.scale.messages import Message
from probes.scale.packed_model import PackedModel
from probes.scale.worker import Outcome, Packer, value_of

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 3
"""Workers that a unit may end before it is given up."""


class WorkerEnded(Exception):
    """The worker ended before its unit did."""


@runtime_checkable
class StartedWorker(Protocol):
    """A worker that was started somewhere."""

    def run(self, unit: Message, places: dict[str, Any]) -> Outcome:
        """Outcome of a unit; `places` are what `put` gave for its models and dataclasses.

        Raises:
            WorkerEnded: The worker ended before the unit did.
        """
        ...

    def end(self) -> None:
        """End the worker; it may have ended before."""
        ...


@dataclass(eq=False)
class _Slot:
    """Place of a worker; one unit at a time."""

    worker: StartedWorker | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(eq=False)
class WorkerPool:
    """Engine whose units run in workers.

    Attributes:
        workers: Number of workers.
        start: Starts a worker.
        put: Takes a packed model or dataclass to where workers find it.
        restarts: Workers that ended and were started again.
    """

    workers: int
    start: Callable[[], StartedWorker]
    put: Callable[[PackedModel | Message], Any]
    restarts: int = 0
    _is_closed: bool = field(default=False, init=False)
    _slots: list[_Slot] = field(default_factory=list, init=False)
    _packer: Packer = field(init=False)
    _guard: Any = field(default_factory=threading.RLock, init=False)
    _own: Any = field(default_factory=threading.local, init=False)
    _next: Any = field(default_factory=count, init=False)

    def __post_init__(self) -> None:
        self._slots.extend(_Slot() for _ in range(self.workers))
        self._packer = Packer(self.put)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Result of a function, which a worker runs.

        Raises:
            ProbeError: The function's own error.
            EngineError: Three workers ended over it, or it failed in another way.
        """
        with self._guard:  # The packer is shared by threads.
            unit, places = self._packer.pack(function, args, kwargs)
        slot = self._slot()
        with slot.lock:
            outcome = self._run(slot, unit, places, _name(function))
        return value_of(outcome, self._packer.models)

    def start_all(self) -> None:
        """Start every worker now, where starting does not wait."""
        for slot in self._slots:
            slot.worker = slot.worker or self.start()

    def close(self) -> None:
        """End the workers."""
        self._is_closed = True
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.end()
                slot.worker = None

    def _slot(self) -> _Slot:
        """Slot of this thread: units of one thread share what their worker keeps."""
        if not hasattr(self._own, "slot"):
            self._own.slot = self._slots[next(self._next) % self.workers]
        return self._own.slot

    def _run(self, slot: _Slot, unit: Message, places: dict[str, Any], name: str) -> Outcome:
        for _ in range(ATTEMPTS):
            if self._is_closed:  # Nothing starts again behind an error or Ctrl-C.
                raise EngineError(f"{name} ended with its engine")
            try:
                slot.worker = slot.worker or self.start()
                return slot.worker.run(unit, places)
            except WorkerEnded:
                slot.worker, self.restarts = None, self.restarts + 1
        raise EngineError(
            f"{name} ended its worker {ATTEMPTS} times, most likely for want of memory: give "
            "fewer workers, or use --engine inprocess; what is finished is kept"
        )


def _name(function: Any) -> str:  # noqa: ANN401
    own = getattr(function, "func", function)
    return f"{own.__module__}.{own.__qualname__}"
