"""Labels next to marks without overlap, with a leader line where a label is far from its mark."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from probes.viz.drawing import (
    Box,
    DrawingShape,
    Part,
    Pixels,
    Point,
    TextLabel,
    text_width,
    truncate_text,
)

_FONT_SIZE, _LINE_HEIGHT = 10.5, 13.0
_MAX_LABEL_WIDTH = 180.0
_MAX_ROUNDS = 4


def place_labels(
    labels: Sequence[str], points: Sequence[Point], bounds: Box, obstacles: Sequence[Box]
) -> list[Part]:
    """Place each label near its mark, in rounds until nothing moves.

    Args:
        labels: Texts; long ones are cut off.
        points: Centers of the marks.
        bounds: Where labels may be.
        obstacles: Boxes to avoid; the box of a mark is centered on it.
    """
    texts = [truncate_text(label, _MAX_LABEL_WIDTH, _FONT_SIZE) for label in labels]
    boxes: dict[int, Box] = {}
    for _ in range(_MAX_ROUNDS):
        before = dict(boxes)
        for n, (text, point) in enumerate(zip(texts, points, strict=True)):
            boxes.pop(n, None)
            width = text_width(text, _FONT_SIZE)
            others = _Obstacles(obstacles, boxes, points, point)
            candidates = (
                (*corner, width, _LINE_HEIGHT) for corner in _candidate_corners(*point, width)
            )
            boxes[n] = min(candidates, key=lambda box: _cost(box, point, bounds, others))
        if boxes == before:
            break
    parts: list[Part] = []
    for n, (text, point) in enumerate(zip(texts, points, strict=True)):
        box = boxes[n]
        if _leader_line(box, point):
            ends = (_nearest_point(box, point), point)
            parts.append(DrawingShape(ends, stroke="soft", stroke_width=0.7))
        parts.append(TextLabel(box[0], box[1] + 10, text, _FONT_SIZE))
    return parts


class _Obstacles:
    """Boxes that a label and its leader line should not cover, with weights."""

    def __init__(
        self,
        obstacles: Sequence[Box],
        labels: Mapping[int, Box],
        points: Sequence[Point],
        point: Point,
    ) -> None:
        placed = list(labels.values())
        lines = [dot for n, box in labels.items() for dot in _leader_line(box, points[n])]
        other = [box for box in obstacles if not _is_centered(box, point)]
        # A line through a label is worse than one through a mark or another line.
        self.for_label = _weighted_boxes((obstacles, 1.0), (placed, 1.0), (lines, 50.0))
        self.for_line = _weighted_boxes((placed, 50.0), (other, 5.0), (lines, 5.0))


def _weighted_boxes(*kinds: tuple[Sequence[Box], float]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of several kinds, each with the weight of its kind."""
    boxes = np.reshape([box for kind, _ in kinds for box in kind], (1, -1, 4))
    return boxes, np.repeat([weight for _, weight in kinds], [len(kind) for kind, _ in kinds])


def _candidate_corners(x: Pixels, y: Pixels, width: Pixels) -> Iterator[Point]:
    """Upper left corners of a label, in circles around its mark."""
    for distance in (10, 22, 36, 52, 70, 90, 112, 136):
        for step in range(16):
            angle = math.pi * step / 8
            dx, dy = distance * math.cos(angle), distance * math.sin(angle)
            left = x + dx if dx > 1 else x + dx - width if dx < -1 else x - width / 2
            yield left, y + dy - _LINE_HEIGHT / 2


def _cost(label: Box, point: Point, bounds: Box, obstacles: _Obstacles) -> Pixels:
    """Cost of a label position: overlap, distance from the mark, and leaving the bounds."""
    left, top, width, height = label
    is_inside = left >= bounds[0] + 2 and left + width <= bounds[0] + bounds[2] - 2
    is_inside &= top >= bounds[1] + 1 and top + height <= bounds[1] + bounds[3] - 1
    overlap = _weighted_overlap([label], obstacles.for_label)
    overlap += _weighted_overlap(_leader_line(label, point), obstacles.for_line)
    distance = math.dist(_nearest_point(label, point), point)
    return (0 if is_inside else 1e6) + 50 * overlap + distance


def _is_centered(box: Box, point: Point) -> bool:
    return math.dist((box[0] + box[2] / 2, box[1] + box[3] / 2), point) < 1e-6


def _nearest_point(label: Box, point: Point) -> Point:
    """Point of a label that is nearest to its mark."""
    left, top, width, height = label
    return min(max(point[0], left), left + width), min(max(point[1], top + 2), top + height - 2)


def _leader_line(label: Box, point: Point) -> list[Box]:
    """Line from a label to its mark as small boxes; empty where the mark is near."""
    start = _nearest_point(label, point)
    distance = math.dist(start, point)
    if distance <= 16:
        return []
    steps = [5 * n / distance for n in range(1, int((distance - 8) / 5) + 1)]
    return [
        (start[0] + t * (point[0] - start[0]), start[1] + t * (point[1] - start[1]), 0.5, 0.5)
        for t in steps
    ]


def _weighted_overlap(boxes: Sequence[Box], others: tuple[np.ndarray, np.ndarray]) -> float:
    """Weighted area in square pixels that boxes share with others, with a small margin."""
    (b, weight), a = others, np.reshape(boxes, (-1, 1, 4))
    low, high = np.maximum(a, b), np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    width = (high[..., 0] - low[..., 0] + 3).clip(0)
    height = (high[..., 1] - low[..., 1] + 1).clip(0)
    return float((width * height @ weight).sum())
