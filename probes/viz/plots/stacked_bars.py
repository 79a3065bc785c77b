"""What a model answers after an exchange, as bars of 100 %."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from probes.errors import FigureError
from probes.viz.blocks import Block, Table, caption
from probes.viz.colours import hexed, ink
from probes.viz.drawing import (
    HOT_STYLE,
    PALETTE,
    WIDTH,
    Group,
    Part,
    Pixels,
    Shape,
    Sheet,
    Words,
    box,
    details,
    fitted,
    pictured,
    scrolled,
    wide,
)
from probes.viz.html_text import label, visible
from probes.viz.picture import Picture

_SIDE = 210.0
"""The most that the names of the sites may take."""
_FIXED = {
    "base": "#9aa1ac", "other": "#d5dae2", "operation": PALETTE[0], "x": PALETTE[1],
    "y": PALETTE[2], "object": PALETTE[3],
}  # fmt: skip
"""These outcomes have the same colour in every picture."""


@dataclass(frozen=True, eq=False)
class OutcomeBlock(Block):
    """What the model answers after an exchange at each site, as bars of 100 %.

    Attributes:
        sites: What each bar is called.
        outcomes: The outcomes, in the order in which they are drawn. `a + b` is drawn in the
            colours of both, `copies a` in a pale one of a, `base` and `other` in grey.
        shares: Shares from 0 to 1 that add to 1 for each site; a site of NaN is empty.
        counts: Of how many prompts each bar is, or None.
        caption: A line above the bars.
    """

    sites: Sequence[str]
    outcomes: Sequence[str]
    shares: Float[np.ndarray, "site outcome"]
    counts: Sequence[int] | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        wanted = (len(self.sites), len(self.outcomes))
        if np.shape(self.shares) != wanted or 0 in wanted:
            raise FigureError(
                f"shares have shape {np.shape(self.shares)}, but there are {wanted[0]} sites and "
                f"{wanted[1]} outcomes: name each one"
            )
        known = self.shares[~np.isnan(self.shares).all(axis=-1)]
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
            for site, line in zip(self.sites, self.shares, strict=True)
        ]
        numbers = details(Table(["site", *self.outcomes], rows))
        return caption(self.caption) + HOT_STYLE + scrolled(_bars(self), "pv-hot") + numbers

    def __repr__(self) -> str:
        return f"OutcomeBlock({len(self.sites)} sites, {len(self.outcomes)} outcomes)"


def outcome_picture(block: OutcomeBlock, *, title: str = "") -> Picture:
    """Draw outcomes as bars, with a title above."""
    return pictured(title or "What the model answers after an exchange", block, _bars(block))


def _coloured(outcomes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The colours of each outcome: several where it joins several."""
    words = dict.fromkeys(word for outcome in outcomes for word in _split(outcome)[0])
    fresh = [word for word in words if word not in _FIXED]
    known = _FIXED | {w: PALETTE[(4 + at) % len(PALETTE)] for at, w in enumerate(fresh)}
    found = {}
    for outcome in outcomes:
        words, pale = _split(outcome)
        found[outcome] = tuple(_pale(known[w]) if pale else known[w] for w in words)
    return found


def _split(outcome: str) -> tuple[list[str], bool]:
    """The parts of an outcome, and whether it is a mere copy of one."""
    if outcome.startswith("copies "):
        return [outcome.removeprefix("copies ")], True
    return outcome.split(" + "), False


def _pale(colour: str) -> str:
    return hexed(np.rint(255 - 0.4 * (255 - _channels(colour).astype(float))).astype(np.uint8))


def _channels(colour: str) -> UInt8[np.ndarray, "3"]:
    return np.frombuffer(bytes.fromhex(colour[1:]), dtype=np.uint8)


def _bars(block: OutcomeBlock) -> Sheet:
    colours = _coloured(block.outcomes)
    labels = [fitted(label(site), _SIDE, 11) for site in block.sites]
    side = max(60.0, *(wide(text, 11) for text in labels)) + 10
    end = WIDTH - (70 if block.counts is not None else 24)
    parts, y = _legend(block.outcomes, colours)
    for at, (site, text) in enumerate(zip(block.sites, labels, strict=True)):
        parts.append(Group(site, (Words(side - 8, y + 14, text, 11, "end"),)))
        x = side
        for outcome, share in zip(block.outcomes, block.shares[at], strict=True):
            if share > 0:
                size = (end - side) * float(share)
                drawn = _segment((x, y, size), colours[outcome], float(share))
                parts.append(Group(f"{site}: {outcome} {100 * share:.1f} %", drawn))
                x += size
        if np.isnan(block.shares[at]).all():
            parts.append(Words(side + 6, y + 14, "nothing measured", 10.5, colour="soft"))
        if block.counts is not None:
            words = f"n = {block.counts[at]:,}"
            parts.append(Words(end + 8, y + 14, words, 10.5, colour="soft"))
        y += 25
    for tick in range(0, 101, 25):
        x = side + (end - side) * tick / 100
        parts.append(Shape(((x, y - 3), (x, y + 2)), "none", "soft"))
        parts.append(Words(x, y + 14, f"{tick} %", 10, "middle", "soft"))
    says = "Shares of each outcome at each site. The numbers follow as a table."
    return Sheet(WIDTH, y + 20, tuple(parts), "Outcomes of an exchange", says)


def _segment(
    at: tuple[Pixels, Pixels, Pixels], bands: tuple[str, ...], share: float
) -> tuple[Shape | Words, ...]:
    """A stretch of a bar: its colours in bands, and its percentage where that fits."""
    x, y, size = at
    first, *others = bands
    high, middle = 20 / len(bands), x + size / 2
    drawn: list[Shape | Words] = [
        box(x, y + high * k, max(size - 0.8, 0.4), high, colour) for k, colour in enumerate(bands)
    ]
    text = f"{100 * share:.0f} %"
    if size < wide(text, 10.5) + 6:
        return tuple(drawn)
    if others:
        room = wide(text, 10.5) + 2
        drawn.append(box(middle - room / 2, y + 3, room, 14, "#ffffff"))
        return *drawn, Words(middle, y + 14, text, 10.5, "middle", "#16181d")
    return *drawn, Words(middle, y + 14, text, 10.5, "middle", ink(_channels(first)))


def _legend(
    outcomes: Sequence[str], colours: dict[str, tuple[str, ...]]
) -> tuple[list[Part], Pixels]:
    parts: list[Part] = []
    x, y = 0.0, 2.0
    for outcome in outcomes:
        size = 34 + wide(visible(outcome), 11)
        if x + size > WIDTH and x > 0:
            x, y = 0.0, y + 19
        bands = colours[outcome]
        for k, colour in enumerate(bands):
            parts.append(box(x, y + 13 * k / len(bands), 15, 13 / len(bands), colour))
        parts.append(Words(x + 20, y + 11, fitted(outcome, WIDTH - 30, 11), 11))
        x += size
    return parts, y + 26
