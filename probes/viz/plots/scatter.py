"""The space itself: every prompt as a point on two axes, once for each model and coloring.

A prompt is one group of the drawing, with a point in each panel: so its text is written once, and
on hover it lights up in all panels together. Classes differ in shape as well as in color.
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
    Drawing,
    DrawingShape,
    Group,
    Part,
    Pixels,
    Point,
    TextLabel,
    block_picture,
    column_titles,
    fraction_color,
    rectangle,
    scrollable_svg,
    text_width,
    truncate_text,
)
from probes.viz.html_text import show_invisible, typographic_minus
from probes.viz.picture import Picture

MAX_CLASSES = 20
"""More classes than this cannot be told apart."""

Rectangle = tuple[Pixels, Pixels, Pixels, Pixels]
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
_MIN_ASPECT_RATIO = 0.62
"""Height of a panel beside its width at the least, for the title of its second axis."""


@dataclass(frozen=True, eq=False)
class PointCloud:
    """The prompts of one model as points.

    Attributes:
        model: The name of the model.
        xy: Places on the two axes, in one unit; NaN is a prompt that this model was not given.
        shares: The share of variance on each axis, from 0 to 1; NaN if unknown.
        colors: For each coloring by name, a label or a number of each prompt.
        caption: A line under the name.
        axes: What the two axes are called; short, as the second runs upward.
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
        if any(share < 0 or share > 1 for share in self.variance_fractions):
            raise FigureError(
                f"shares of {self.model!r} are {self.variance_fractions}: give 0 to 1, or NaN"
            )
        for name, values in self.color_labels.items():
            if len(values) != len(self.xy):
                raise FigureError(
                    f"{name!r} of {self.model!r} has {len(values)} values for {len(self.xy)} "
                    "points: give one for each"
                )


@dataclass(frozen=True, eq=False)
class ScatterBlock(Block):
    """Points of every model, once for each coloring: models in columns, colorings in rows.

    One model alone has its colorings side by side. Both axes of a panel have one scale.

    Attributes:
        prompts: The text of each point, the same in all models.
        clouds: The models.
        caption: A line above the panels.
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
        """The drawing with its caption."""
        return caption_html(self.caption) + scrollable_svg(_draw_panels(self), "pv-cloud")

    def __repr__(self) -> str:
        return f"ScatterBlock({len(self.clouds)} models, {len(self.prompts)} prompts)"


def scatter_picture(block: ScatterBlock, *, title: str = "") -> Picture:
    """Draw points of one or several models, with a title above."""
    return block_picture(title or "Prompts on two axes", block, _draw_panels(block))


@dataclass(frozen=True, slots=True)
class _LabelScale:
    """A coloring's classes, or the ends of its numbers."""

    classes: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    missing: bool = False

    def marker(self, value: object, x: Pixels, y: Pixels) -> DrawingShape:
        if isinstance(value, str):
            at = self.classes.index(value)
            outline = _MARKERS[at % len(_MARKERS)]
            fill = PALETTE[at % len(PALETTE)]
            points = tuple((x + dx, y + dy) for dx, dy in outline) or ((x, y),)
            return DrawingShape(points, fill, radius=_RADIUS)
        number = float(value)  # pyright: ignore[reportArgumentType]
        if not np.isfinite(number):
            return DrawingShape(((x, y),), "wash", "soft", radius=_RADIUS)
        unit = (number - self.low) / ((self.high - self.low) or 1.0)
        # On a dark page the darkest would vanish without a rim.
        return DrawingShape(((x, y),), fraction_color(unit), "soft", radius=_RADIUS)


def _color_names(clouds: Sequence[PointCloud]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for cloud in clouds for name in cloud.color_labels))


def _label_scale(name: str, clouds: Sequence[PointCloud]) -> _LabelScale:
    """One scale for all models, so that a color means the same in each."""
    found = [cloud.color_labels[name] for cloud in clouds if name in cloud.color_labels]
    numeric = {isinstance(v, np.ndarray) and v.dtype.kind in "iuf" for v in found}
    if len(numeric) > 1:
        raise FigureError(f"{name!r} is labels in one model and numbers in another: choose one")
    if numeric == {True}:
        numbers = np.concatenate([np.asarray(values, dtype=float) for values in found])
        known = numbers[np.isfinite(numbers)]
        ends = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        return _LabelScale((), *ends, missing=known.size < numbers.size)
    classes = sorted({str(value) for values in found for value in values}, key=_sort_key)
    if len(classes) > MAX_CLASSES:
        raise FigureError(
            f"{name!r} has {len(classes)} classes, and no more than {MAX_CLASSES} can be told "
            "apart: group them, or give numbers"
        )
    return _LabelScale(tuple(classes))


def _sort_key(text: str) -> tuple[bool, float, str]:
    """Whole numbers by size, then words by letter."""
    whole = text.isdecimal()
    return (not whole, float(text) if whole else 0.0, text)


# --- where things stand -----------------------------------------------------------------------


def _draw_panels(block: ScatterBlock) -> Drawing:
    clouds, names = block.clouds, _color_names(block.clouds)
    per_line = min(3, len(names)) if len(clouds) == 1 else 1
    columns = max(per_line, len(clouds))
    pitch = max(_MIN_PANEL, min(_MAX_PANEL, WIDTH / columns))
    side = pitch - 2 * _GAP
    tall = side * max(_MIN_ASPECT_RATIO, *(_aspect_ratio(cloud) for cloud in clouds))
    lefts = [_GAP + at * pitch for at in range(columns)]
    titles = [(cloud.model, cloud.caption) for cloud in clouds]
    # One model alone owns the whole width.
    parts, y = column_titles(titles, lefts, pitch * columns - _GAP if len(clouds) == 1 else side)
    marks: list[list[DrawingShape]] = [[] for _ in block.prompts]
    for start in range(0, len(names), per_line):
        line = names[start : start + per_line]
        room = side if per_line > 1 else pitch * columns - 2 * _GAP
        keys = [
            _legend(n, _label_scale(n, clouds), (lefts[at], y), room) for at, n in enumerate(line)
        ]
        parts += [part for drawn, _ in keys for part in drawn]
        y = max(bottom for _, bottom in keys)
        panels = [(cloud, name) for name in line for cloud in clouds]
        for left, (cloud, name) in zip(lefts, panels, strict=False):
            parts += _frame(cloud, (left, y, side, tall))
            if name in cloud.color_labels:
                _add_points(marks, cloud, name, _label_scale(name, clouds), (left, y, side, tall))
            else:
                middle = (left + side / 2, y + tall / 2)
                parts.append(TextLabel(*middle, "not given", anchor="middle", color="soft"))
        y += tall + 34
    groups = [
        Group(says, tuple(shapes), "paper")
        for says, shapes in zip(_tooltips(block), marks, strict=True)
        if shapes
    ]
    note = f"{len(clouds)} models, {len(block.prompts)} prompts, colored by {', '.join(names)}."
    return Drawing(pitch * columns, y - 8, (*parts, *groups), "Scatter plots", note)


def _tooltips(block: ScatterBlock) -> list[str]:
    """What a point says on hover: its prompt, and its labels where all models agree on them."""
    lines = [[prompt] for prompt in block.prompts]
    for name in _color_names(block.clouds):
        first, *others = (list(cloud.color_labels.get(name, ())) for cloud in block.clouds)
        if first and all(other == first for other in others):
            for line, value in zip(lines, first, strict=True):
                line.append(f"{name}: {_format_label(value)}")
    return ["  |  ".join(line) for line in lines]


def _format_label(value: object) -> str:
    return value if isinstance(value, str) else typographic_minus(f"{value:.4g}")


def _add_points(
    markers: list, cloud: PointCloud, name: str, scale: _LabelScale, panel: Rectangle
) -> None:
    """Put the points of one panel to those of their prompts."""
    left, top, wide, tall = panel
    low, high = _data_limits(cloud)
    span = np.maximum(high - low, 1e-12)
    per = float((np.array([wide - 2 * _PAD, tall - 2 * _PAD]) / span).min())
    for at, (x, y) in enumerate((cloud.xy - (low + high) / 2) * per):
        if not np.isnan(x + y):
            value = cloud.color_labels[name][at]
            markers[at].append(scale.marker(value, left + wide / 2 + x, top + tall / 2 - y))


def _data_limits(cloud: PointCloud) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    known = cloud.xy[~np.isnan(cloud.xy).any(axis=-1)]
    return (known.min(axis=0), known.max(axis=0)) if len(known) else (np.zeros(2), np.ones(2))


def _aspect_ratio(cloud: PointCloud) -> float:
    """How tall a panel must be beside its width, up to a square."""
    low, high = _data_limits(cloud)
    wide, tall = (float(span) for span in high - low)
    return min(1.0, tall / wide if wide > 0 else 1.0)


def _frame(cloud: PointCloud, panel: Rectangle) -> list[Part]:
    left, top, side, tall = panel
    first, second = (
        name + ("" if np.isnan(share) else f": {100 * share:.0f} % of variance")
        for name, share in zip(cloud.axes, cloud.variance_fractions, strict=True)
    )
    style = {"size": 10.5, "anchor": "middle", "color": "soft"}
    return [
        rectangle(left, top, side, tall, "none", "line"),
        TextLabel(left + side / 2, top + tall + 14, first, **style),
        TextLabel(left - 5, top + tall / 2, second, rotated=True, **style),
    ]


def _legend(
    name: str, scale: _LabelScale, position: Point, max_width: Pixels
) -> tuple[list[Part], Pixels]:
    """The legend of a coloring, and where it ends."""
    left, y = position[0], position[1] + 12
    parts: list[Part] = [TextLabel(left, y, name, 12, bold=True)]
    x = left + text_width(name, 12.5) + 14
    if not scale.classes:
        low, high = (typographic_minus(f"{end:.3g}") for end in (scale.low, scale.high))
        x += text_width(low, 10.5) + 5
        parts.append(TextLabel(x - 4, y, low, 10.5, "end", "soft"))
        parts += [rectangle(x + 4 * k, y - 9, 4.2, 10, fraction_color(k / 23)) for k in range(24)]
        parts.append(TextLabel(x + 100, y, high, 10.5, "start", "soft"))
        x += 110 + text_width(high, 10.5)
    entries: list[tuple[str, object]] = [(value, value) for value in scale.classes]
    for words, value in [*entries, *([("no number", np.nan)] if scale.missing else [])]:
        size = 22 + text_width(show_invisible(words), 10.5)
        if x + size > left + max_width and x > left:
            x, y = left, y + 16
        parts.append(scale.marker(value, x + 4, y - 4))
        parts.append(
            TextLabel(x + 12, y, truncate_text(words, max_width - 14, 10.5), 10.5, color="soft")
        )
        x += size
    return parts, y + 9
