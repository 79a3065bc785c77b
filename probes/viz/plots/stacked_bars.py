"""Stacked bars of the outcomes of an interchange intervention at each site."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from probes.errors import FigureError
from probes.viz.blocks import Block, Table, caption_html
from probes.viz.colors import text_color, to_hex
from probes.viz.drawing import (
    HOVER_STYLE,
    PALETTE,
    WIDTH,
    Box,
    Drawing,
    DrawingShape,
    Group,
    Pixels,
    TextLabel,
    collapsed_table,
    rectangle,
    scrollable_svg,
    text_width,
    truncate_text,
)
from probes.viz.html_text import axis_label
from probes.viz.plots.axes import FONT_SIZE, legend

_MAX_LABEL_WIDTH = 210.0
_FIXED_COLORS = {
    "base": "#9aa1ac", "other": "#d5dae2", "operation": PALETTE[0], "x": PALETTE[1],
    "y": PALETTE[2], "object": PALETTE[3],
}  # fmt: skip
"""Outcomes with the same color in every chart."""


@dataclass(frozen=True, eq=False, repr=False)
class OutcomeBlock(Block):
    """Outcomes of an interchange intervention, one bar of 100 % for each site.

    Attributes:
        sites: Bar labels.
        outcomes: Outcomes in drawing order. `a + b` has the colors of both, `copies a` a pale one
            of a; `base` and `other` are gray.
        fractions: Fractions that sum to 1 for each site; a site of NaN is empty.
        counts: Number of prompts of each bar, or None.
        caption: Line above the bars.
    """

    sites: Sequence[str]
    outcomes: Sequence[str]
    fractions: Float[np.ndarray, "site outcome"]
    counts: Sequence[int] | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        shape = (len(self.sites), len(self.outcomes))
        if np.shape(self.fractions) != shape or 0 in shape:
            raise FigureError(
                f"fractions have shape {np.shape(self.fractions)}, but there are {shape[0]} sites "
                f"and {shape[1]} outcomes: name each one"
            )
        known = self.fractions[~np.isnan(self.fractions).all(axis=-1)]
        if not ((np.abs(known.sum(axis=-1) - 1) < 1e-3).all() and (known >= 0).all()):
            raise FigureError(
                "fractions of a site do not sum to 1: give all outcomes, or NaN for all"
            )
        if self.counts is not None and len(self.counts) != shape[0]:
            raise FigureError(f"{len(self.counts)} counts for {shape[0]} sites: give one for each")

    @property
    def body(self) -> str:
        """Bars with their caption and legend, and the numbers as a table."""
        rows = [
            [site, *("–" if np.isnan(one) else f"{one:.3f}" for one in fractions)]
            for site, fractions in zip(self.sites, self.fractions, strict=True)
        ]
        chart = scrollable_svg(_draw_bars(self), "pv-hot")
        table = collapsed_table(Table(["site", *self.outcomes], rows))
        return caption_html(self.caption) + HOVER_STYLE + chart + table


def _outcome_colors(outcomes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Colors of each outcome; joint outcomes have several."""
    variables = dict.fromkeys(name for outcome in outcomes for name in _split(outcome)[0])
    others = [name for name in variables if name not in _FIXED_COLORS]
    known = _FIXED_COLORS | {n: PALETTE[(4 + at) % len(PALETTE)] for at, n in enumerate(others)}
    colors = {}
    for outcome in outcomes:
        names, is_copy = _split(outcome)
        colors[outcome] = tuple(_lighten(known[n]) if is_copy else known[n] for n in names)
    return colors


def _split(outcome: str) -> tuple[list[str], bool]:
    """Variables of an outcome, and whether it copies one."""
    if outcome.startswith("copies "):
        return [outcome.removeprefix("copies ")], True
    return outcome.split(" + "), False


def _lighten(color: str) -> str:
    return to_hex(np.rint(255 - 0.4 * (255 - _rgb(color).astype(float))).astype(np.uint8))


def _rgb(color: str) -> UInt8[np.ndarray, "3"]:
    return np.frombuffer(bytes.fromhex(color[1:]), dtype=np.uint8)


def _draw_bars(block: OutcomeBlock) -> Drawing:
    colors = _outcome_colors(block.outcomes)
    labels = [truncate_text(axis_label(site), _MAX_LABEL_WIDTH, 11) for site in block.sites]
    left = max(60.0, *(text_width(text, 11) for text in labels)) + 10
    right = WIDTH - (70 if block.counts is not None else 24)
    entries = [
        (outcome, lambda x, y, bands=colors[outcome]: _bands((x - 8, y - 7, 15, 13), bands))
        for outcome in block.outcomes
    ]
    parts, y = legend(entries, (0.0, 13.0), WIDTH)
    y += 8
    for at, (site, text) in enumerate(zip(block.sites, labels, strict=True)):
        parts.append(Group(site, (TextLabel(left - 8, y + 14, text, 11, "end"),)))
        x = left
        for outcome, fraction in zip(block.outcomes, block.fractions[at], strict=True):
            if fraction > 0:
                width = (right - left) * float(fraction)
                segment = _bar_segment((x, y, width), colors[outcome], float(fraction))
                parts.append(Group(f"{site}: {outcome} {100 * fraction:.1f} %", segment))
                x += width
        if np.isnan(block.fractions[at]).all():
            parts.append(TextLabel(left + 6, y + 14, "not measured", FONT_SIZE, color="soft"))
        if block.counts is not None:
            count = f"n = {block.counts[at]:,}"
            parts.append(TextLabel(right + 8, y + 14, count, FONT_SIZE, color="soft"))
        y += 26
    for percent in range(0, 101, 25):
        x = left + (right - left) * percent / 100
        parts.append(DrawingShape(((x, y - 3), (x, y + 2)), "none", "soft"))
        parts.append(TextLabel(x, y + 14, f"{percent} %", 10, "middle", "soft"))
    note = "Fractions of each outcome at each site. The numbers follow as a table."
    return Drawing(WIDTH, y + 20, tuple(parts), "Outcomes of interchange interventions", note)


def _bands(box: Box, colors: Sequence[str]) -> tuple[DrawingShape, ...]:
    """Box in horizontal bands of several colors."""
    x, y, width, height = box
    band = height / len(colors)
    return tuple(rectangle((x, y + band * k, width, band), one) for k, one in enumerate(colors))


def _bar_segment(
    position: tuple[Pixels, Pixels, Pixels], colors: tuple[str, ...], fraction: float
) -> tuple[DrawingShape | TextLabel, ...]:
    """Segment of a bar, with its percentage where that fits."""
    x, y, width = position
    shapes = _bands((x, y, max(width - 0.8, 0.4), 20), colors)
    text, middle = f"{100 * fraction:.0f} %", x + width / 2
    room = text_width(text, FONT_SIZE)
    if width < room + 6:
        return shapes
    ink = text_color(_rgb(colors[0]))
    if len(colors) > 1:
        # A white box keeps the text readable over several colors.
        ink = "#16181d"
        shapes = (*shapes, rectangle((middle - room / 2 - 1, y + 3, room + 2, 14), "#ffffff"))
    return *shapes, TextLabel(middle, y + 14, text, FONT_SIZE, "middle", ink)
