"""The grid of all heads of one model: rows are layers, columns are heads."""

from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float

from probes.viz.colors import apply_colormap
from probes.viz.embedding_data import png_data_uri
from probes.viz.html_text import escape, typographic_minus

# No thumbnail needs more points than this: what lies between is averaged.
_MAX_CELLS = 48


@dataclass(frozen=True, eq=False)
class Panel:
    """One grid of heads.

    Attributes:
        key: `left`, `right` or `change`: which part of the picture it is.
        name: What stands above it.
        weights: What it shows. A head of NaN only is not there.
        signed: Whether it shows changes around 0.
        names: What each head is called, layer after layer.
    """

    key: str
    name: str
    weights: Float[np.ndarray, "layer head query key"]
    signed: bool
    names: tuple[str, ...]


def panel_table(panel: Panel, width: int) -> str:
    """The grid as a table of buttons, each with the head's picture in it."""
    layers, heads = panel.weights.shape[:2]
    top = "".join(f'<th scope="col">H{head}</th>' for head in range(heads))
    lines = [f"<tr><td></td>{top}</tr>"]
    for layer in range(layers):
        cells = "".join(_thumbnail(panel, layer, head, width) for head in range(heads))
        lines.append(f'<tr><th scope="row">L{layer}</th>{cells}</tr>')
    return (
        f'<figure class="pv-panel" data-panel="{panel.key}"><figcaption><b>{escape(panel.name)}'
        f'</b> <span class="pv-soft">{layers} &times; {heads} heads</span></figcaption>'
        f'<div class="pv-scroll"><table class="pv-heads" aria-label="{escape(panel.name)}: '
        f'rows are layers, columns are heads">{"".join(lines)}</table></div></figure>'
    )


def largest_change(weights: Float[np.ndarray, "query key"]) -> float:
    """The change that is farthest from 0, with its sign; NaN if there is none."""
    known = weights[~np.isnan(weights)]
    return float(known[np.abs(known).argmax()]) if known.size else float("nan")


def thumbnail_width(heads: int) -> int:
    """Pixels for one head, so that a grid of this many heads fits a page."""
    return 84 if heads <= 4 else 62 if heads <= 8 else 43 if heads <= 12 else 31


def _thumbnail(panel: Panel, layer: int, head: int, width: int) -> str:
    weights = panel.weights[layer, head]
    at = layer * panel.weights.shape[1] + head
    name = panel.names[at]
    says = f"{panel.name}, {name}"
    note = ""
    if np.isnan(weights).all():
        says += ": no such head" if panel.key != "change" else ": no partner to compare with"
        note = '<span class="pv-change">&ndash;</span>' if panel.signed else ""
    elif panel.signed:
        change = typographic_minus(f"{largest_change(weights):+.2f}")
        says += f": largest change {change}"
        note = f'<span class="pv-change">{change}</span>'
    points = _block_means(weights)
    times, shrink = _pixel_scale(max(points.shape), width)
    pixels = apply_colormap(points, "change" if panel.signed else "share")
    large = pixels.repeat(times, axis=0).repeat(times, axis=1)
    wide, high = round(large.shape[1] * shrink), round(large.shape[0] * shrink)
    rule = ' class="pv-shrunk"' if shrink < 1 else ""
    return (
        f'<td><button type="button" class="pv-thumb" data-at="{at}" tabindex="{-1 if at else 0}" '
        f'aria-label="{escape(says)}" aria-pressed="false"><img alt="{escape(says)}" '
        f'width="{wide}" height="{high}"{rule} src="{png_data_uri(large)}">'
        f"{note}</button></td>"
    )


def _pixel_scale(count: int, width: int) -> tuple[int, float]:
    """Whole pixels per cell, and the shrinking that then brings `count` cells to the width."""
    times = width // count
    # Whole pixels look best, so a thumbnail may fall a little short of the width.
    if times * count >= 0.85 * width:
        return times, 1.0
    return times + 1, min(1.0, width / ((times + 1) * count))


def _block_means(weights: Float[np.ndarray, "query key"]) -> Float[np.ndarray, "row column"]:
    """Blocks of cells as their mean over the cells that are there."""
    block = -(-max(weights.shape) // _MAX_CELLS)
    if block == 1:
        return weights
    spare = [(0, -size % block) for size in weights.shape]
    padded = np.pad(weights, spare, constant_values=np.nan)
    blocks = rearrange(padded, "(row a) (column b) -> row column (a b)", a=block, b=block)
    known = ~np.isnan(blocks)
    total = np.where(known, blocks, 0).sum(axis=-1)
    count = known.sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
