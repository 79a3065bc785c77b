"""Engine: where the units of a command run: in this process, in others, or in workers of Ray.

A unit is a function of this package on values that `scale.encoding` encodes, so that any engine
gives the same result.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

from probes.errors import EngineError
from probes.scale.store import Store

P = ParamSpec("P")
T = TypeVar("T")

IN_PROCESS, PROCESSES, RAY = "inprocess", "processes", "ray"


@runtime_checkable
class Engine(Protocol):
    """Runs units."""

    @property
    def workers(self) -> int:
        """Units that it runs at once; more threads would wait."""
        ...

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Result of a function; threads may call at once."""
        ...


@dataclass(frozen=True)
class InProcess:
    """Engine that calls the function in the thread that asks."""

    workers: int = 1

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Result of a function."""
        return function(*args, **kwargs)


HERE = InProcess()
"""Engine of who names none."""


@contextmanager
def open_engine(name: str | Engine, *, workers: int = 1, device: str = "") -> Iterator[Engine]:
    """Open an engine; its workers end with the `with`.

    Args:
        name: "inprocess", "processes" of this machine, "ray" (a cluster that RAY_ADDRESS names,
            else one of this machine), "ray:ADDRESS" for a cluster that exists, or an engine, which
            stays open.
        workers: Units at once.
        device: Device of the models; a worker of Ray gets a GPU unless it is the CPU.

    Raises:
        EngineError: There is no such engine, Ray is not installed, or the cluster is too small.
    """
    if not isinstance(name, str):
        yield name
        return
    kind, _, address = name.partition(":")
    if kind not in (IN_PROCESS, PROCESSES, RAY) or (kind != RAY and address):
        raise EngineError(
            f"No engine {name!r}: choose {IN_PROCESS}, {PROCESSES}, {RAY} or {RAY}:ADDRESS"
        )
    if kind == IN_PROCESS:
        yield InProcess(workers)
        return
    if kind == PROCESSES:
        from probes.scale.process_engine import open_processes

        with open_processes(workers=workers) as engine:
            yield engine
        return
    from probes.scale.ray_engine import open_ray

    with open_ray(address, workers=workers, device=device) as engine:
        yield engine


class Started(Protocol):
    """Unit that was started."""

    def result(self) -> Any:  # noqa: ANN401
        """Its result; waits for it, and raises its error."""
        ...


@dataclass(frozen=True)
class _Here:
    """Unit that begins when its result is asked for, in the thread that asks."""

    unit: Callable[[], Any]

    def result(self) -> Any:  # noqa: ANN401
        """Its result."""
        return self.unit()


@contextmanager
def starting(engine: Engine) -> Iterator[Callable[..., Started]]:
    """Function (function, *arguments) that starts a unit beside others.

    In this process a unit begins when its result is asked for, because models that units share
    cannot run twice at once. Units that have not begun at the end of the `with` never do.
    """
    if isinstance(engine, InProcess):
        yield lambda function, *args, **kwargs: _Here(partial(function, *args, **kwargs))
        return
    pool = ThreadPoolExecutor(engine.workers)
    try:
        yield partial(pool.submit, engine.call)
    finally:  # An error does not wait for units that run: they end with their workers.
        pool.shutdown(wait=False, cancel_futures=True)


def unit_runner(store: Store | None, engine: Engine) -> Callable[..., Any]:
    """Function (label, function, *arguments) that runs a unit, or reads it from the store."""
    if store is None:
        return lambda _, function, *args, **kwargs: engine.call(function, *args, **kwargs)
    return partial(store.remember_by, engine.call)
