"""Jobs on several models in parallel threads, with progress."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

from probes.progress import Progress
from probes.scale.store import Store

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
        is_kept: bool = True,
    ) -> list[U]:
        """Run the job on each item of a part of a stage, in parallel threads and with progress.

        With a store the results are kept there, unless the job keeps its own parts.
        """
        ...


def run_in_pool(pool: Executor, progress: Progress, store: Store | None = None) -> RunAll:
    """Function that runs jobs in the threads of a pool; with a store, those that are not there."""

    def run_all(
        job: Callable[[T], U],
        items: Sequence[T],
        label: str,
        part: tuple[int, int] = (0, 1),
        *,
        is_kept: bool = True,
    ) -> list[U]:
        own = partial(store.remember, label, job) if store and is_kept else job
        return list(progress.track(pool.map(own, items), label, len(items), part))

    return run_all
