"""Progress of a planned command: a bar that counts estimated work, or a line a minute."""

import sys
import threading
from collections.abc import Iterable, Iterator
from shutil import get_terminal_size
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from probes.plan import Plan, format_duration

T = TypeVar("T")

_LINE_SECONDS = 60.0
_COLUMNS = 80  # Of a terminal that does not tell its size.


class Progress:
    """Progress through the stages of a plan, in estimated seconds.

    In a terminal it is a bar; elsewhere it is a line a minute on stderr. Without a plan, nothing
    is shown.
    """

    def __init__(self, plan: Plan | None, *, every: float = _LINE_SECONDS) -> None:
        stages = plan.stages if plan else ()
        self._command = plan.command if plan else ""
        self._shares = {stage.name: stage.seconds for stage in stages}
        self._total, self._stage = sum(self._shares.values()), ""
        self._before, self._fraction = 0.0, 0.0  # Work of the stages before, and part of this one.
        self._every, self._ended, self._bar = every, threading.Event(), None
        if plan and sys.stderr.isatty():
            columns = get_terminal_size((_COLUMNS, 0)).columns or _COLUMNS
            shape = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            self._bar = tqdm(total=self._total, leave=False, ncols=columns, bar_format=shape)
        elif plan:
            threading.Thread(target=self._write_lines, daemon=True).start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.close()

    def track(
        self, items: Iterable[T], stage: str, count: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[T]:
        """Yield `count` items, each an equal share of a stage, or of part k of n parts of it."""
        self.begin(stage)
        for number, item in enumerate(items, 1):
            yield item
            self.reach((part[0] + number / count) / part[1])

    def begin(self, stage: str) -> None:
        """Begin a stage, or go on with it; another one before has ended."""
        if stage != self._stage:
            self._before += self._shares.pop(self._stage, 0.0)
            self._stage, self._fraction = stage, 0.0
        if self._bar is not None:
            self._bar.set_description(f"{self._command}, {stage}", refresh=False)
        self.reach(self._fraction)

    def reach(self, fraction: float) -> None:
        """Note that a fraction of the stage is done."""
        self._fraction = min(max(fraction, self._fraction), 1.0)
        if self._bar is not None:
            self._bar.n = self.done
            self._bar.refresh()

    @property
    def done(self) -> float:
        """Estimated seconds of the work that is done."""
        return self._before + self._fraction * self._shares.get(self._stage, 0.0)

    def line(self) -> str:
        """What is done, in words."""
        share = self.done / self._total if self._total else 1.0
        total = format_duration(self._total)
        return f"{self._command}: {share:.0%} of about {total} is done; now {self._stage}"

    def _write_lines(self) -> None:
        while not self._ended.wait(self._every):
            sys.stderr.write(f"{self.line()}\n")
            sys.stderr.flush()
