"""Names beside marks: each where nothing else stands, with a line to its mark where that is far."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from probes.viz.drawing import Part, Pixels, Point, Shape, Words, fitted, wide

Box = tuple[Pixels, Pixels, Pixels, Pixels]
"""Left, top, width and height, in pixels."""

_SIZE, _LINE = 10.5, 13.0
_LONGEST = 180.0
_ROUNDS = 4
"""At most: it ends where nothing moves any more."""


def named(
    names: Sequence[str], marks: Sequence[Point], room: Box, taken: Sequence[Box]
) -> list[Part]:
    """Write each name as near to its mark as can be, and place each again once all stand.

    Args:
        names: What to write; what is too long is cut.
        marks: Where the marks are.
        room: Where names may stand.
        taken: What they must not stand on; a mark's own box is centred on it.
    """
    texts = [fitted(name, _LONGEST, _SIZE) for name in names]
    boxes: dict[int, Box] = {}
    for _ in range(_ROUNDS):
        before = dict(boxes)
        for n, (text, mark) in enumerate(zip(texts, marks, strict=True)):
            boxes.pop(n, None)
            size = wide(text, _SIZE)
            others = _Taken(taken, boxes, marks, mark)
            places = ((*at, size, _LINE) for at in _around(*mark, size))
            boxes[n] = min(places, key=lambda place: _cost(place, mark, room, others))
        if boxes == before:
            break
    parts: list[Part] = []
    for n, (text, mark) in enumerate(zip(texts, marks, strict=True)):
        best = boxes[n]
        if _leader(best, mark):
            parts.append(Shape((_near(best, mark), mark), edge="soft", thick=0.7))
        parts.append(Words(best[0], best[1] + 10, text, _SIZE))
    return parts


class _Taken:
    """What stands where one more name is to be written, and how bad it is to cover it."""

    def __init__(
        self, given: Sequence[Box], names: Mapping[int, Box], marks: Sequence[Point], mark: Point
    ) -> None:
        written = list(names.values())
        lines = [dot for n, box in names.items() for dot in _leader(box, marks[n])]
        strange = [box for box in given if not _centred(box, mark)]
        # A line through a name is worse than one through a mark or another line.
        self.by_name = _weighed((given, 1.0), (written, 1.0), (lines, 50.0))
        self.by_line = _weighed((written, 50.0), (strange, 5.0), (lines, 5.0))


def _weighed(*kinds: tuple[Sequence[Box], float]) -> tuple[np.ndarray, np.ndarray]:
    """Stack boxes of several kinds, each with the weight of its kind."""
    boxes = np.reshape([box for some, _ in kinds for box in some], (1, -1, 4))
    return boxes, np.repeat([weight for _, weight in kinds], [len(some) for some, _ in kinds])


def _around(x: Pixels, y: Pixels, size: Pixels) -> Iterator[Point]:
    for away in (10, 22, 36, 52, 70, 90, 112, 136):
        for turn in range(16):
            angle = math.pi * turn / 8
            dx, dy = away * math.cos(angle), away * math.sin(angle)
            left = x + dx if dx > 1 else x + dx - size if dx < -1 else x - size / 2
            yield left, y + dy - _LINE / 2


def _cost(one: Box, mark: Point, room: Box, taken: _Taken) -> Pixels:
    """Say how bad a place for a name is: over other things, outside, or far away."""
    left, top, size, high = one
    inside = left >= room[0] + 2 and left + size <= room[0] + room[2] - 2
    inside &= top >= room[1] + 1 and top + high <= room[1] + room[3] - 1
    over = _shared([one], taken.by_name) + _shared(_leader(one, mark), taken.by_line)
    return (0 if inside else 1e6) + 50 * over + math.dist(_near(one, mark), mark)


def _centred(one: Box, mark: Point) -> bool:
    return math.dist((one[0] + one[2] / 2, one[1] + one[3] / 2), mark) < 1e-6


def _near(one: Box, mark: Point) -> Point:
    """Return the place of a name that is nearest to its mark."""
    left, top, size, high = one
    return min(max(mark[0], left), left + size), min(max(mark[1], top + 2), top + high - 2)


def _leader(one: Box, mark: Point) -> list[Box]:
    """Return the line from a name to its mark as dots, up to the mark; none where it is near."""
    start = _near(one, mark)
    away = math.dist(start, mark)
    if away <= 16:
        return []
    steps = [5 * n / away for n in range(1, int((away - 8) / 5) + 1)]
    return [
        (start[0] + t * (mark[0] - start[0]), start[1] + t * (mark[1] - start[1]), 0.5, 0.5)
        for t in steps
    ]


def _shared(ones: Sequence[Box], others: tuple[np.ndarray, np.ndarray]) -> float:
    """Weigh how many square pixels boxes share with others, with a little room around."""
    (b, weight), a = others, np.reshape(ones, (-1, 1, 4))
    low, high = np.maximum(a, b), np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    across = (high[..., 0] - low[..., 0] + 3).clip(0)
    down = (high[..., 1] - low[..., 1] + 1).clip(0)
    return float((across * down @ weight).sum())
