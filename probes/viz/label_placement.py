"""Names beside marks: each where nothing else stands, with a line to its mark where that is far."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from probes.viz.drawing import (
    DrawingShape,
    Part,
    Pixels,
    Point,
    TextLabel,
    text_width,
    truncate_text,
)

Box = tuple[Pixels, Pixels, Pixels, Pixels]
"""Left, top, width and height, in pixels."""

_FONT_SIZE, _LINE_HEIGHT = 10.5, 13.0
_MAX_LABEL_WIDTH = 180.0
_MAX_ROUNDS = 4
"""At most: it ends where nothing moves any more."""


def place_labels(
    labels: Sequence[str], points: Sequence[Point], bounds: Box, obstacles: Sequence[Box]
) -> list[Part]:
    """Write each name as near to its mark as can be, and place each again once all stand.

    Args:
        names: What to write; what is too long is cut.
        marks: Where the marks are.
        room: Where names may stand.
        taken: What they must not stand on; a mark's own box is centered on it.
    """
    texts = [truncate_text(name, _MAX_LABEL_WIDTH, _FONT_SIZE) for name in labels]
    boxes: dict[int, Box] = {}
    for _ in range(_MAX_ROUNDS):
        before = dict(boxes)
        for n, (text, mark) in enumerate(zip(texts, points, strict=True)):
            boxes.pop(n, None)
            size = text_width(text, _FONT_SIZE)
            others = _Obstacles(obstacles, boxes, points, mark)
            places = ((*at, size, _LINE_HEIGHT) for at in _candidate_positions(*mark, size))
            boxes[n] = min(places, key=lambda place: _cost(place, mark, bounds, others))
        if boxes == before:
            break
    parts: list[Part] = []
    for n, (text, mark) in enumerate(zip(texts, points, strict=True)):
        best = boxes[n]
        if _leader_line(best, mark):
            parts.append(
                DrawingShape((_nearest_point(best, mark), mark), stroke="soft", stroke_width=0.7)
            )
        parts.append(TextLabel(best[0], best[1] + 10, text, _FONT_SIZE))
    return parts


class _Obstacles:
    """What stands where one more name is to be written, and how bad it is to cover it."""

    def __init__(
        self,
        obstacles: Sequence[Box],
        labels: Mapping[int, Box],
        points: Sequence[Point],
        point: Point,
    ) -> None:
        written = list(labels.values())
        lines = [dot for n, box in labels.items() for dot in _leader_line(box, points[n])]
        strange = [box for box in obstacles if not _is_centered(box, point)]
        # A line through a name is worse than one through a mark or another line.
        self.by_name = _weighted_boxes((obstacles, 1.0), (written, 1.0), (lines, 50.0))
        self.by_line = _weighted_boxes((written, 50.0), (strange, 5.0), (lines, 5.0))


def _weighted_boxes(*kinds: tuple[Sequence[Box], float]) -> tuple[np.ndarray, np.ndarray]:
    """Stack boxes of several kinds, each with the weight of its kind."""
    boxes = np.reshape([box for some, _ in kinds for box in some], (1, -1, 4))
    return boxes, np.repeat([weight for _, weight in kinds], [len(some) for some, _ in kinds])


def _candidate_positions(x: Pixels, y: Pixels, size: Pixels) -> Iterator[Point]:
    for away in (10, 22, 36, 52, 70, 90, 112, 136):
        for turn in range(16):
            angle = math.pi * turn / 8
            dx, dy = away * math.cos(angle), away * math.sin(angle)
            left = x + dx if dx > 1 else x + dx - size if dx < -1 else x - size / 2
            yield left, y + dy - _LINE_HEIGHT / 2


def _cost(label: Box, point: Point, bounds: Box, obstacles: _Obstacles) -> Pixels:
    """Say how bad a place for a name is: over other things, outside, or far away."""
    left, top, size, high = label
    inside = left >= bounds[0] + 2 and left + size <= bounds[0] + bounds[2] - 2
    inside &= top >= bounds[1] + 1 and top + high <= bounds[1] + bounds[3] - 1
    over = _weighted_overlap([label], obstacles.by_name) + _weighted_overlap(
        _leader_line(label, point), obstacles.by_line
    )
    return (0 if inside else 1e6) + 50 * over + math.dist(_nearest_point(label, point), point)


def _is_centered(label: Box, point: Point) -> bool:
    return math.dist((label[0] + label[2] / 2, label[1] + label[3] / 2), point) < 1e-6


def _nearest_point(label: Box, point: Point) -> Point:
    """Return the place of a name that is nearest to its mark."""
    left, top, size, high = label
    return min(max(point[0], left), left + size), min(max(point[1], top + 2), top + high - 2)


def _leader_line(label: Box, point: Point) -> list[Box]:
    """Return the line from a name to its mark as dots, up to the mark; none where it is near."""
    start = _nearest_point(label, point)
    away = math.dist(start, point)
    if away <= 16:
        return []
    steps = [5 * n / away for n in range(1, int((away - 8) / 5) + 1)]
    return [
        (start[0] + t * (point[0] - start[0]), start[1] + t * (point[1] - start[1]), 0.5, 0.5)
        for t in steps
    ]


def _weighted_overlap(boxes: Sequence[Box], others: tuple[np.ndarray, np.ndarray]) -> float:
    """Weigh how many square pixels boxes share with others, with a little room around."""
    (b, weight), a = others, np.reshape(boxes, (-1, 1, 4))
    low, high = np.maximum(a, b), np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    across = (high[..., 0] - low[..., 0] + 3).clip(0)
    down = (high[..., 1] - low[..., 1] + 1).clip(0)
    return float((across * down @ weight).sum())
