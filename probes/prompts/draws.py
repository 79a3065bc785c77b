"""Random draws until enough are found."""

from collections.abc import Iterator, Sized

from probes.errors import PatternError

_TRIES = 400  # For each one that is drawn.
_MAX_IN_VAIN = 20_000  # Draws without a new one: there are no more.


def check_count(count: int) -> None:
    """Raise PatternError for a negative number of questions or pairs."""
    if count < 0:
        raise PatternError(f"{count} questions or pairs were requested: request 0 or more")


def tries(count: int, found: Sized) -> Iterator[None]:
    """Yield for each draw, until `count` are found or no more are to be expected."""
    in_vain, size = 0, 0
    for _ in range(max(count, 1) * _TRIES):
        if len(found) == count or in_vain > _MAX_IN_VAIN:
            return
        yield
        in_vain = in_vain + 1 if len(found) == size else 0
        size = len(found)
