"""What a model answers after an exchange, as bars of 100 %."""

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
    Drawing,
    DrawingShape,
    Group,
    Part,
    Pixels,
    TextLabel,
    block_picture,
    collapsed_table,
    rectangle,
    scrollable_svg,
    text_width,
    truncate_text,
)
from probes.viz.html_text import axis_label, show_invisible
from probes.viz.picture import Picture

_MAX_LABEL_WIDTH = 210.0
"""The most that the names of the sites may take."""
_FIXED_COLORS = {
    "base": "#9aa1ac", "other": "#d5dae2", "operation": PALETTE[0], "x": PALETTE[1],
    "y": PALETTE[2], "object": PALETTE[3],
}  # fmt: skip
"""These outcomes have the same color in every picture."""


@dataclass(frozen=True, eq=False)
class OutcomeBlock(Block):
    """What the model answers after an exchange at each site, as bars of 100 %.

    Attributes:
        sites: What each bar is called.
        outcomes: The outcomes, in the order in which they are drawn. `a + b` is drawn in the
            colors of both, `copies a` in a pale one of a, `base` and `other` in gray.
        shares: Shares from 0 to 1 that add to 1 for each site; a site of NaN is empty.
        counts: Of how many prompts each bar is, or None.
        caption: A line above the bars.
    """

    sites: Sequence[str]
    outcomes: Sequence[str]
    fractions: Float[np.ndarray, "site outcome"]
    counts: Sequence[int] | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        wanted = (len(self.sites), len(self.outcomes))
        if np.shape(self.fractions) != wanted or 0 in wanted:
            raise FigureError(
                f"shares have shape {np.shape(self.fractions)}, but there are {wanted[0]} sites and "
                f"{wanted[1]} outcomes: name each one"
            )
        known = self.fractions[~np.isnan(self.fractions).all(axis=-1)]
        whole = np.abs(known.sum(axis=-1) - 1) < 1e-3
        if not (whole.all() and (known >= 0).all()):
            raise FigureError("shares of a site do not add to 1: give all outcomes, or NaN for all")
        if self.counts is not None and len(self.counts) != wanted[0]:
            raise FigureError(f"{len(self.counts)} counts for {wanted[0]} sites: give one for each")

    @property
    def body(self) -> str:
        """The bars with their caption and legend, and their numbers as a table."""
        rows = [
            [site, *("–" if np.isnan(share) else f"{share:.3f}" for share in line)]
            for site, line in zip(self.sites, self.fractions, strict=True)
        ]
        numbers = collapsed_table(Table(["site", *self.outcomes], rows))
        return (
            caption_html(self.caption)
            + HOVER_STYLE
            + scrollable_svg(_draw_bars(self), "pv-hot")
            + numbers
        )

    def __repr__(self) -> str:
        return f"OutcomeBlock({len(self.sites)} sites, {len(self.outcomes)} outcomes)"


def outcome_chart(block: OutcomeBlock, *, title: str = "") -> Picture:
    """Draw outcomes as bars, with a title above."""
    return block_picture(
        title or "What the model answers after an exchange", block, _draw_bars(block)
    )


def _outcome_colors(outcomes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The colors of each outcome: several where it joins several."""
    words = dict.fromkeys(word for outcome in outcomes for word in _split_outcome(outcome)[0])
    fresh = [word for word in words if word not in _FIXED_COLORS]
    known = _FIXED_COLORS | {w: PALETTE[(4 + at) % len(PALETTE)] for at, w in enumerate(fresh)}
    found = {}
    for outcome in outcomes:
        words, pale = _split_outcome(outcome)
        found[outcome] = tuple(_lighten(known[w]) if pale else known[w] for w in words)
    return found


def _split_outcome(outcome: str) -> tuple[list[str], bool]:
    """The parts of an outcome, and whether it is a mere copy of one."""
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
    side = max(60.0, *(text_width(text, 11) for text in labels)) + 10
    end = WIDTH - (70 if block.counts is not None else 24)
    parts, y = _legend(block.outcomes, colors)
    for at, (site, text) in enumerate(zip(block.sites, labels, strict=True)):
        parts.append(Group(site, (TextLabel(side - 8, y + 14, text, 11, "end"),)))
        x = side
        for outcome, share in zip(block.outcomes, block.fractions[at], strict=True):
            if share > 0:
                size = (end - side) * float(share)
                drawn = _bar_segment((x, y, size), colors[outcome], float(share))
                parts.append(Group(f"{site}: {outcome} {100 * share:.1f} %", drawn))
                x += size
        if np.isnan(block.fractions[at]).all():
            parts.append(TextLabel(side + 6, y + 14, "nothing measured", 10.5, color="soft"))
        if block.counts is not None:
            words = f"n = {block.counts[at]:,}"
            parts.append(TextLabel(end + 8, y + 14, words, 10.5, color="soft"))
        y += 25
    for tick in range(0, 101, 25):
        x = side + (end - side) * tick / 100
        parts.append(DrawingShape(((x, y - 3), (x, y + 2)), "none", "soft"))
        parts.append(TextLabel(x, y + 14, f"{tick} %", 10, "middle", "soft"))
    says = "Shares of each outcome at each site. The numbers follow as a table."
    return Drawing(WIDTH, y + 20, tuple(parts), "Outcomes of an exchange", says)


def _bar_segment(
    position: tuple[Pixels, Pixels, Pixels], colors: tuple[str, ...], fraction: float
) -> tuple[DrawingShape | TextLabel, ...]:
    """A stretch of a bar: its colors in bands, and its percentage where that fits."""
    x, y, size = position
    first, *others = colors
    high, middle = 20 / len(colors), x + size / 2
    drawn: list[DrawingShape | TextLabel] = [
        rectangle(x, y + high * k, max(size - 0.8, 0.4), high, color)
        for k, color in enumerate(colors)
    ]
    text = f"{100 * fraction:.0f} %"
    if size < text_width(text, 10.5) + 6:
        return tuple(drawn)
    if others:
        room = text_width(text, 10.5) + 2
        drawn.append(rectangle(middle - room / 2, y + 3, room, 14, "#ffffff"))
        return *drawn, TextLabel(middle, y + 14, text, 10.5, "middle", "#16181d")
    return *drawn, TextLabel(middle, y + 14, text, 10.5, "middle", text_color(_rgb(first)))


def _legend(
    outcomes: Sequence[str], colors: dict[str, tuple[str, ...]]
) -> tuple[list[Part], Pixels]:
    parts: list[Part] = []
    x, y = 0.0, 2.0
    for outcome in outcomes:
        size = 34 + text_width(show_invisible(outcome), 11)
        if x + size > WIDTH and x > 0:
            x, y = 0.0, y + 19
        bands = colors[outcome]
        for k, color in enumerate(bands):
            parts.append(rectangle(x, y + 13 * k / len(bands), 15, 13 / len(bands), color))
        parts.append(TextLabel(x + 20, y + 11, truncate_text(outcome, WIDTH - 30, 11), 11))
        x += size
    return parts, y + 26
