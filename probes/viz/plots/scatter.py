"""Scatter plots: every prompt as a point on two axes, one panel for each model and coloring.

A prompt is one group of the drawing with a point in each panel: its text is written once, and on
hover it lights up in all panels together. Classes differ in shape as well as in color.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real

from probes.errors import FigureError
from probes.viz.blocks import Block, caption_html
from probes.viz.drawing import (
    PALETTE,
    WIDTH,
    Box,
    Drawing,
    DrawingShape,
    Group,
    Part,
    Pixels,
    Point,
    TextLabel,
    fraction_color,
    rectangle,
    scrollable_svg,
    text_width,
)
from probes.viz.figure import block_picture
from probes.viz.html_text import typographic_minus
from probes.viz.picture import Picture
from probes.viz.plots.axes import FONT_SIZE, color_bar, column_titles, legend

MAX_CLASSES = 20
"""More classes cannot be told apart."""

Labels = Sequence[str] | Real[np.ndarray, " prompt"]

# An empty outline is a circle. Seven shapes and eight colors make 56 different pairs.
_MARKERS: tuple[tuple[Point, ...], ...] = (
    (),
    ((-3, -3), (3, -3), (3, 3), (-3, 3)),
    ((0, -4), (4, 3), (-4, 3)),
    ((0, -4), (4, 0), (0, 4), (-4, 0)),
    ((0, 4), (4, -3), (-4, -3)),
    ((-3, -4), (3, 4), (-3, 4), (3, -4)),
    ((-4, -1), (-1, -1), (-1, -4), (1, -4), (1, -1), (4, -1),
     (4, 1), (1, 1), (1, 4), (-1, 4), (-1, 1), (-4, 1)),
)  # fmt: skip
_RADIUS, _PAD, _GAP = 3.2, 9.0, 16.0
_MAX_PANEL, _MIN_PANEL = 300.0, 200.0
_MIN_ASPECT_RATIO = 0.62  # Below this the title of the second axis does not fit.


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Prompts of one model as points.

    Attributes:
        model: Name of the model.
        xy: Coordinates in one unit; NaN for prompts that this model was not given.
        variance_fractions: Fraction of variance on each axis, in [0, 1]; NaN if unknown.
        color_labels: For each coloring a label or a number for each prompt.
        caption: Line below the name.
        axes: Names of the two axes; short, as the second runs upward.
    """

    model: str
    xy: Float[np.ndarray, "prompt 2"]
    variance_fractions: tuple[float, float]
    color_labels: Mapping[str, Labels]
    caption: str = ""
    axes: tuple[str, str] = ("axis 1", "axis 2")

    def __post_init__(self) -> None:
        if np.isinf(self.xy).any():
            raise FigureError(f"xy of {self.model!r} holds an infinite number: give NaN if missing")
        if any(fraction < 0 or fraction > 1 for fraction in self.variance_fractions):
            raise FigureError(
                f"variance_fractions of {self.model!r} are {self.variance_fractions}: give 0 to 1, "
                "or NaN"
            )
        for name, values in self.color_labels.items():
            if len(values) != len(self.xy):
                raise FigureError(
                    f"{name!r} of {self.model!r} has {len(values)} values for {len(self.xy)} "
                    "points: give one for each"
                )


@dataclass(frozen=True, eq=False, repr=False)
class ScatterBlock(Block):
    """Points of all models: models in columns, colorings in rows.

    One model alone has its colorings side by side. Both axes of a panel have one scale.

    Attributes:
        prompts: Text of each point, the same in all models.
        clouds: Models.
        caption: Line above the panels.
    """

    prompts: Sequence[str]
    clouds: Sequence[PointCloud]
    caption: str = ""

    def __post_init__(self) -> None:
        if not any(cloud.color_labels for cloud in self.clouds):
            raise FigureError("There is nothing to draw: give a model and a coloring")
        for cloud in self.clouds:
            if len(cloud.xy) != len(self.prompts):
                raise FigureError(
                    f"{cloud.model!r} has {len(cloud.xy)} points for {len(self.prompts)} prompts: "
                    "give every model all prompts in one order, NaN where it was not given one"
                )
        for name in _color_names(self.clouds):
            _label_scale(name, self.clouds)

    @property
    def body(self) -> str:
        """Drawing with its caption."""
        return caption_html(self.caption) + scrollable_svg(_draw_panels(self), "pv-cloud")


def scatter_picture(block: ScatterBlock, *, title: str = "") -> Picture:
    """Scatter plots with a title."""
    return block_picture(title or "Prompts on two axes", block, _draw_panels(block))


@dataclass(frozen=True, slots=True)
class _LabelScale:
    """Marks of one coloring: its classes, or the range of its numbers."""

    classes: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    has_missing: bool = False

    def mark(self, value: object, x: Pixels, y: Pixels) -> DrawingShape:
        if isinstance(value, str):
            at = self.classes.index(value)
            outline = _MARKERS[at % len(_MARKERS)]
            points = tuple((x + dx, y + dy) for dx, dy in outline) or ((x, y),)
            return DrawingShape(points, PALETTE[at % len(PALETTE)], radius=_RADIUS)
        number = float(value)  # pyright: ignore[reportArgumentType]
        if not np.isfinite(number):
            return DrawingShape(((x, y),), "wash", "soft", radius=_RADIUS)
        unit = (number - self.low) / ((self.high - self.low) or 1.0)
        # The outline keeps the darkest color visible on a dark page.
        return DrawingShape(((x, y),), fraction_color(unit), "soft", radius=_RADIUS)


def _color_names(clouds: Sequence[PointCloud]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for cloud in clouds for name in cloud.color_labels))


def _label_scale(name: str, clouds: Sequence[PointCloud]) -> _LabelScale:
    """One scale for all models, so that a color means the same in each."""
    labels = [cloud.color_labels[name] for cloud in clouds if name in cloud.color_labels]
    is_numeric = {isinstance(v, np.ndarray) and v.dtype.kind in "iuf" for v in labels}
    if len(is_numeric) > 1:
        raise FigureError(f"{name!r} is labels in one model and numbers in another: choose one")
    if is_numeric == {True}:
        numbers = np.concatenate([np.asarray(values, dtype=float) for values in labels])
        known = numbers[np.isfinite(numbers)]
        ends = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        return _LabelScale((), *ends, has_missing=known.size < numbers.size)
    classes = sorted({str(value) for values in labels for value in values}, key=_sort_key)
    if len(classes) > MAX_CLASSES:
        raise FigureError(
            f"{name!r} has {len(classes)} classes, and no more than {MAX_CLASSES} can be told "
            "apart: group them, or give numbers"
        )
    return _LabelScale(tuple(classes))


def _sort_key(text: str) -> tuple[bool, float, str]:
    """Whole numbers by size, then words by letter."""
    is_number = text.isdecimal()
    return (not is_number, float(text) if is_number else 0.0, text)


def _draw_panels(block: ScatterBlock) -> Drawing:
    clouds, names = block.clouds, _color_names(block.clouds)
    is_single = len(clouds) == 1
    per_row = min(3, len(names)) if is_single else 1
    columns = max(per_row, len(clouds))
    pitch = max(_MIN_PANEL, min(_MAX_PANEL, WIDTH / columns))
    width = pitch - 2 * _GAP
    height = width * max(_MIN_ASPECT_RATIO, *map(_aspect_ratio, clouds))
    lefts = [_GAP + at * pitch for at in range(columns)]
    titles = [(cloud.model, cloud.caption) for cloud in clouds]
    parts, y = column_titles(titles, lefts, pitch * columns - _GAP if is_single else width)
    marks: list[list[DrawingShape]] = [[] for _ in block.prompts]
    for start in range(0, len(names), per_row):
        row = names[start : start + per_row]
        room = width if per_row > 1 else pitch * columns - 2 * _GAP
        bottom = y
        for left, name in zip(lefts, row, strict=False):
            entries, end = _legend(name, _label_scale(name, clouds), (left, y + 12), room)
            parts += entries
            bottom = max(bottom, end)
        y = bottom
        panels = [(cloud, name) for name in row for cloud in clouds]
        for left, (cloud, name) in zip(lefts, panels, strict=False):
            box = (left, y, width, height)
            parts += _frame(cloud, box)
            if name in cloud.color_labels:
                _add_points(marks, cloud, name, _label_scale(name, clouds), box)
            else:
                middle = (left + width / 2, y + height / 2)
                parts.append(TextLabel(*middle, "not given", anchor="middle", color="soft"))
        y += height + 34
    groups = [
        Group(tooltip, tuple(shapes), "paper")
        for tooltip, shapes in zip(_tooltips(block), marks, strict=True)
        if shapes
    ]
    note = f"{len(clouds)} models, {len(block.prompts)} prompts, colored by {', '.join(names)}."
    return Drawing(pitch * columns, y - 8, (*parts, *groups), "Scatter plots", note)


def _tooltips(block: ScatterBlock) -> list[str]:
    """Prompt of each point, and its labels where all models agree on them."""
    lines = [[prompt] for prompt in block.prompts]
    for name in _color_names(block.clouds):
        first, *others = (list(cloud.color_labels.get(name, ())) for cloud in block.clouds)
        if first and all(other == first for other in others):
            for line, value in zip(lines, first, strict=True):
                text = value if isinstance(value, str) else typographic_minus(f"{value:.4g}")
                line.append(f"{name}: {text}")
    return ["  |  ".join(line) for line in lines]


def _add_points(
    marks: list[list[DrawingShape]], cloud: PointCloud, name: str, scale: _LabelScale, box: Box
) -> None:
    """Append the points of one panel to the marks of their prompts."""
    left, top, width, height = box
    low, high = _data_limits(cloud)
    span = np.maximum(high - low, 1e-12)
    per_unit = float((np.array([width - 2 * _PAD, height - 2 * _PAD]) / span).min())
    for at, (x, y) in enumerate((cloud.xy - (low + high) / 2) * per_unit):
        if not np.isnan(x + y):
            value = cloud.color_labels[name][at]
            marks[at].append(scale.mark(value, left + width / 2 + x, top + height / 2 - y))


def _data_limits(cloud: PointCloud) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    known = cloud.xy[~np.isnan(cloud.xy).any(axis=-1)]
    return (known.min(axis=0), known.max(axis=0)) if len(known) else (np.zeros(2), np.ones(2))


def _aspect_ratio(cloud: PointCloud) -> float:
    """Height over width of the points, at most 1."""
    low, high = _data_limits(cloud)
    width, height = (float(span) for span in high - low)
    return min(1.0, height / width if width > 0 else 1.0)


def _frame(cloud: PointCloud, box: Box) -> list[Part]:
    left, top, width, height = box
    first, second = (
        name + ("" if np.isnan(fraction) else f": {100 * fraction:.0f} % of variance")
        for name, fraction in zip(cloud.axes, cloud.variance_fractions, strict=True)
    )
    style = {"size": FONT_SIZE, "anchor": "middle", "color": "soft"}
    return [
        rectangle(box, "none", "line"),
        TextLabel(left + width / 2, top + height + 14, first, **style),
        TextLabel(left - 5, top + height / 2, second, rotated=True, **style),
    ]


def _legend(
    name: str, scale: _LabelScale, position: Point, width: Pixels
) -> tuple[list[Part], Pixels]:
    """Legend of a coloring, and its bottom."""
    left, y = position
    parts: list[Part] = [TextLabel(left, y, name, 12, bold=True)]
    x = left + text_width(name, 12.5) + 14
    if not scale.classes:
        low, high = (typographic_minus(f"{end:.3g}") for end in (scale.low, scale.high))
        bar, x = color_bar((x, y), (low, high))
        parts += bar
    values: list[tuple[str, object]] = [(value, value) for value in scale.classes]
    values += [("no number", np.nan)] if scale.has_missing else []
    entries = [
        (text, lambda x, y, value=value: (scale.mark(value, x, y),)) for text, value in values
    ]
    marks, bottom = legend(entries, (left, y), width, x - left)
    return [*parts, *marks], bottom
