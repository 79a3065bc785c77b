"""Engine on Ray: each worker is an actor, a process of its own on any machine of a cluster.

Models and the dataclasses that units share travel once, through Ray's object store.
"""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from probes.errors import EngineError
from probes.scale.messages import Message
from probes.scale.versions import versions
from probes.scale.worker import Outcome, Worker
from probes.scale.worker_pool import WorkerEnded, WorkerPool

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

    def run(self, unit: Message, references: dict[str, Any]) -> Outcome:
        """Run a unit."""
        self._references |= references
        return self._worker.run(unit)


@dataclass(frozen=True, eq=False)
class _RayWorker:
    """Worker in an actor of Ray."""

    actor: Any

    def run(self, unit: Message, places: dict[str, Any]) -> Outcome:
        """Outcome of a unit; `places` are references of Ray's object store."""
        import ray
        from ray.exceptions import RayActorError

        try:
            return ray.get(self.actor.run.remote(unit, places))
        except RayActorError:
            raise WorkerEnded from None

    def end(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self.actor)


def _start(options: dict[str, Any]) -> _RayWorker:
    """Start a worker with these resources.

    Raises:
        EngineError: It has other versions.
    """
    import ray
    from ray.exceptions import RayActorError

    actor = ray.remote(_Actor).options(**options).remote(versions())
    try:
        other = ray.get(actor.check.remote())
    except RayActorError:
        raise WorkerEnded from None
    if other:
        raise EngineError(
            f"A worker has other versions ({', '.join(other)}): install the same package and "
            "libraries on every machine"
        )
    return _RayWorker(actor)


@contextmanager
def open_ray(address: str = "", *, workers: int = 1, device: str = "") -> Iterator[WorkerPool]:
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
        engine = WorkerPool(workers, partial(_start, options), ray.put)
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
