"""Grid of thumbnails of all heads: rows are layers, columns are heads."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probes.viz.colors import ColorScale, apply_colormap
from probes.viz.embedding_data import png_data_uri
from probes.viz.html_text import escape, typographic_minus
from probes.viz.plots.attention.pooling import pool_blocks

# Larger maps are pooled in blocks.
_MAX_CELLS = 48


@dataclass(frozen=True, eq=False)
class Panel:
    """One grid of heads.

    Attributes:
        key: `left`, `right` or `change`.
        name: Text above the grid.
        weights: Attention or its difference; missing heads are NaN.
        signed: Whether the panel shows differences.
        names: Name of each head, layer after layer.
        kv_heads: Number of heads for keys and values; 0 if unknown.
    """

    key: str
    name: str
    weights: Float[np.ndarray, "layer head query key"]
    signed: bool
    names: tuple[str, ...]
    kv_heads: int = 0

    @property
    def scale(self) -> ColorScale:
        """Color scale."""
        return "diverging" if self.signed else "sequential"


def panel_table(panel: Panel, width: int) -> str:
    """HTML table of buttons, each with the thumbnail of a head."""
    layers, heads = panel.weights.shape[:2]
    header = "".join(f'<th scope="col">H{head}</th>' for head in range(heads))
    lines = [f"<tr><td></td>{header}</tr>"]
    if 0 < panel.kv_heads < heads:
        size = heads // panel.kv_heads
        groups = "".join(
            f'<th scope="colgroup" colspan="{size}" class="pv-group">K,V {group}</th>'
            for group in range(panel.kv_heads)
        )
        lines.insert(0, f"<tr><td></td>{groups}</tr>")
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
    """Difference with the largest absolute value; NaN if there is none."""
    known = weights[~np.isnan(weights)]
    return float(known[np.abs(known).argmax()]) if known.size else float("nan")


def thumbnail_width(heads: int) -> int:
    """Width in pixels at which this many heads fit a page."""
    return 84 if heads <= 4 else 62 if heads <= 8 else 43 if heads <= 12 else 31


def _thumbnail(panel: Panel, layer: int, head: int, width: int) -> str:
    weights = panel.weights[layer, head]
    at = layer * panel.weights.shape[1] + head
    text, note = f"{panel.name}, {panel.names[at]}", ""
    if np.isnan(weights).all():
        text += ": no such head" if panel.key != "change" else ": no partner to compare with"
        note = '<span class="pv-change">&ndash;</span>' if panel.signed else ""
    elif panel.signed:
        change = typographic_minus(f"{largest_change(weights):+.2f}")
        text += f": largest change {change}"
        note = f'<span class="pv-change">{change}</span>'
    cells = pool_blocks(weights, -(-max(weights.shape) // _MAX_CELLS))
    times, shrink = _pixel_scale(max(cells.shape), width)
    image = apply_colormap(cells, panel.scale).repeat(times, axis=0).repeat(times, axis=1)
    size = f'width="{round(image.shape[1] * shrink)}" height="{round(image.shape[0] * shrink)}"'
    css_class = ' class="pv-shrunk"' if shrink < 1 else ""
    return (
        f'<td><button type="button" class="pv-thumb" data-at="{at}" tabindex="{-1 if at else 0}" '
        f'aria-label="{escape(text)}" aria-pressed="false"><img alt="{escape(text)}" '
        f'{size}{css_class} src="{png_data_uri(image)}">{note}</button></td>'
    )


def _pixel_scale(count: int, width: int) -> tuple[int, float]:
    """Whole pixels per cell, and the factor that shrinks `count` cells to the width."""
    times = width // count
    # Whole pixels are sharpest, so a thumbnail may be a little narrower than the width.
    if times * count >= 0.85 * width:
        return times, 1.0
    return times + 1, min(1.0, width / ((times + 1) * count))
