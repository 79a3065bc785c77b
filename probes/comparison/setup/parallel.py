"""Jobs on several models in parallel threads, with progress bars."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Protocol, TypeVar, runtime_checkable

from tqdm.auto import tqdm

T = TypeVar("T")
U = TypeVar("U")


@runtime_checkable
class RunAll(Protocol):
    """Function that runs a job on each item."""

    def __call__(self, job: Callable[[T], U], items: Sequence[T], label: str) -> list[U]:
        """Run the job on each item, in parallel threads and with a progress bar."""
        ...


def run_in_pool(pool: Executor, *, progress: bool) -> RunAll:
    """Function that runs jobs in the threads of a pool."""

    def run_all(job: Callable[[T], U], items: Sequence[T], label: str) -> list[U]:
        return list(progress_bar(pool.map(job, items), label, progress, len(items)))

    return run_all


def progress_bar(
    items: Iterable[T], label: str, progress: bool, total: int | None = None
) -> Iterable[T]:
    """The items, with a progress bar if wanted."""
    return tqdm(items, desc=label, total=total, leave=False, disable=None if progress else True)
