"""Engine on Ray: each worker is an actor, a process of its own on any machine of a cluster.

A unit whose worker ends is given to a new one, and named after three. Models and the dataclasses
that units share travel once, through Ray's object store; all else travels as JSON and tensors.
"""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ParamSpec, TypeVar

import torch

from probes.errors import EngineError
from probes.scale.versions import versions
from probes.scale.worker import Packer, Worker, value_of

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 3
"""Workers that a unit may end before it is given up."""

# Read by Ray when it starts: more patience than its own 15 to 30 seconds, which are
# too few on a busy machine; workers of the priority that units have in this process, because at
# Ray's own (nice 15) they starve there; and no count of users that is sent anywhere.
_ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class _Actor:
    """Process that runs units; Ray gives it the references of models."""

    def __init__(self, versions_here: tuple[str, ...]) -> None:
        self._references: dict[str, Any] = {}
        self._worker, self._here = Worker(self._fetch), versions_here

    def _fetch(self, digest: str) -> Any:  # noqa: ANN401
        import ray

        return ray.get(self._references[digest])

    def check(self) -> tuple[str, ...]:
        """Versions that are not those of the driver."""
        return tuple(sorted(set(versions()) - set(self._here)))

    def run(self, unit: Any, references: dict[str, Any]) -> Any:  # noqa: ANN401
        """Run a unit."""
        self._references |= references
        return self._worker.run(unit)


@dataclass(eq=False)
class _Slot:
    """Place of a worker; one unit at a time."""

    actor: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(eq=False)
class RayEngine:
    """Engine on Ray; made by `open_ray`.

    Attributes:
        workers: Number of workers.
        options: Resources of a worker.
        restarts: Workers that ended and were started again.
    """

    workers: int
    options: dict[str, Any]
    restarts: int = 0
    _is_closed: bool = field(default=False, init=False)
    _slots: list[_Slot] = field(default_factory=list, init=False)
    _packer: Packer = field(init=False)
    _guard: Any = field(default_factory=threading.RLock, init=False)
    _own: Any = field(default_factory=threading.local, init=False)
    _next: Any = field(default_factory=count, init=False)

    def __post_init__(self) -> None:
        import ray

        self._slots.extend(_Slot() for _ in range(self.workers))
        self._packer = Packer(ray.put)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Result of a function, which a worker runs.

        Raises:
            ProbeError: The function's own error.
            EngineError: Three workers ended over it, or it failed in another way.
        """
        with self._guard:  # The packer is shared by threads.
            unit, references = self._packer.pack(function, args, kwargs)
        slot = self._slot()
        with slot.lock:
            outcome = self._run(slot, unit, references, _name(function))
        return value_of(outcome, self._packer.models)

    def _slot(self) -> _Slot:
        """Slot of this thread: units of one thread share what their worker keeps."""
        if not hasattr(self._own, "slot"):
            self._own.slot = self._slots[next(self._next) % self.workers]
        return self._own.slot

    def _run(self, slot: _Slot, unit: object, references: dict[str, Any], name: str) -> Any:  # noqa: ANN401
        import ray
        from ray.exceptions import RayActorError

        for _ in range(ATTEMPTS):
            try:
                if slot.actor is None:
                    slot.actor = self._start()
                return ray.get(slot.actor.run.remote(unit, references))
            except RayActorError:
                if self._is_closed:  # Nothing starts again behind an error or Ctrl-C.
                    raise EngineError(f"{name} ended with its engine") from None
                slot.actor, self.restarts = None, self.restarts + 1
        raise EngineError(
            f"{name} ended its worker {ATTEMPTS} times, most likely for want of memory: give "
            "fewer workers, or use --engine inprocess; what is finished is kept"
        )

    def _start(self) -> Any:  # noqa: ANN401
        import ray

        actor = ray.remote(_Actor).options(**self.options).remote(versions())
        other = ray.get(actor.check.remote())
        if other:
            raise EngineError(
                f"A worker has other versions ({', '.join(other)}): install the same package and "
                "libraries on every machine"
            )
        return actor

    def close(self) -> None:
        """End the workers."""
        import ray

        self._is_closed = True
        for slot in self._slots:
            if slot.actor is not None:
                ray.kill(slot.actor)
                slot.actor = None


def _name(function: Any) -> str:  # noqa: ANN401
    own = getattr(function, "func", function)
    return f"{own.__module__}.{own.__qualname__}"


@contextmanager
def open_ray(address: str = "", *, workers: int = 1, device: str = "") -> Iterator[RayEngine]:
    """Start workers on a cluster that exists, or on a new one of this machine.

    Args:
        address: Address of a cluster; empty for RAY_ADDRESS, and without it a cluster that ends
            with the `with`, has no dashboard and listens to this machine alone.
        workers: Number of workers; each has a core, and a GPU unless `device` is the CPU.
        device: Device of the models.

    Raises:
        EngineError: Ray is not installed, does not start, or has too few cores or GPUs.
    """
    ray = _import_ray()
    address = address or os.environ.get("RAY_ADDRESS", "")
    options = {"num_cpus": 1, "num_gpus": int(_is_accelerator(device))}
    was_open = ray.is_initialized()
    try:
        if not was_open:
            _begin(ray, address, workers)
        _require(ray.cluster_resources(), workers, options)
        engine = RayEngine(workers, options)
        try:
            yield engine
        finally:
            engine.close()
    finally:
        if not was_open:
            ray.shutdown()


def _is_accelerator(device: str) -> bool:
    return bool(device) and torch.device(device).type != "cpu"


def _import_ray() -> Any:  # noqa: ANN401
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise EngineError(
            "The engine 'ray' needs Ray, which is not installed: pip install 'ray>=2.52', or use "
            "--engine inprocess"
        ) from error
    return ray


def _begin(ray: Any, address: str, workers: int) -> None:  # noqa: ANN401
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    own = {"num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        with warnings.catch_warnings(), _same_handler(signal.SIGTERM):
            warnings.simplefilter("ignore")
            ray.init(address=address or "local", **quiet, **({} if address else own))
    except Exception as error:  # Ray raises plain Exceptions where it does not start.
        where = f"the cluster at {address!r}" if address else "a cluster of this machine"
        text = " ".join(str(error).split())
        raise EngineError(
            f"Ray did not reach {where} ({text[:200]}): check the address, or use --engine "
            "inprocess"
        ) from error


@contextmanager
def _same_handler(number: int) -> Iterator[None]:
    """Keep the handler of a signal, which Ray replaces by one that ends the process at once."""
    before = signal.getsignal(number)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, before)


def _require(found: dict[str, float], workers: int, options: dict[str, Any]) -> None:
    """Refuse what would wait forever."""
    for resource, option in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        wanted, there = workers * options[option], found.get(resource, 0)
        if wanted > there:
            raise EngineError(
                f"{workers} workers need {wanted} {resource}s, and the cluster has {there:g}: give "
                "fewer --workers"
            )
