"""Parts of a study's table: rows that are known, and rows that units measure on an engine.

A unit trains what is missing in the folders of its study, and measures it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from probes.errors import ProbeError
from probes.scale.engine import Engine, starting


@dataclass(frozen=True, eq=False)
class Part:
    """Rows that are measured at once.

    Attributes:
        name: What they are of, such as a model.
        measure: Unit that measures them; None for known rows.
        known: Known rows.
    """

    name: str
    measure: Callable[[], Sequence[Any]] | None = None
    known: Sequence[Any] = ()


def run_parts(parts: Iterable[Part], engine: Engine) -> Iterator[Any]:
    """Rows of parts in their order; a part that fails does not end the others.

    Raises:
        ProbeError: Some parts failed, after the rows of all others; of the kind of the first error.
    """
    failed: list[tuple[str, ProbeError]] = []
    with starting(engine) as start:
        started = [(part, start(part.measure) if part.measure else None) for part in parts]
        for part, unit in started:
            try:
                rows = unit.result() if unit else part.known
            except ProbeError as error:
                failed.append((part.name, error))
                continue
            yield from rows
    if failed:
        raise _failure(failed) from failed[0][1]


def _failure(failed: Sequence[tuple[str, ProbeError]]) -> ProbeError:
    """Error of the kind of the first one, which names all parts that failed."""
    (name, error), *others = failed
    too = f"; {', '.join(other for other, _ in others)} failed, too" if others else ""
    text = f"{name} is not measured: {error}{too}. All other rows are: give the command again"
    return type(error)(text)
