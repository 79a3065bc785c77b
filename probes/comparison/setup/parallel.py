"""Jobs on several models in parallel threads, with progress."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from probes.progress import Progress

T = TypeVar("T")
U = TypeVar("U")


@runtime_checkable
class RunAll(Protocol):
    """Function that runs a job on each item."""

    def __call__(
        self,
        job: Callable[[T], U],
        items: Sequence[T],
        label: str,
        part: tuple[int, int] = (0, 1),
        *,
        is_unit: bool = True,
    ) -> list[U]:
        """Run the job on each item of a part of a stage, in parallel threads and with progress.

        Each is a unit, unless the job runs its own parts as units; see `scale.engine`.
        """
        ...


def run_in_pool(
    pool: Executor, progress: Progress, run_unit: Callable[..., Any] | None = None
) -> RunAll:
    """Function that runs jobs in the threads of a pool; `run_unit` is as `unit_runner` makes it."""

    def run_all(
        job: Callable[[T], U],
        items: Sequence[T],
        label: str,
        part: tuple[int, int] = (0, 1),
        *,
        is_unit: bool = True,
    ) -> list[U]:
        own = partial(run_unit, label, job) if run_unit and is_unit else job
        contexts = [copy_context() for _ in items]  # Of `tokenize_once`.
        done = pool.map(lambda context, item: context.run(own, item), contexts, items)
        return list(progress.track(done, label, len(items), part))

    return run_all
