"""Attention on a matplotlib figure, with the colors of the page."""

from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Float

from probes.viz.colors import ColorScale, apply_colormap, text_color
from probes.viz.figure import drawable_text
from probes.viz.html_text import axis_label, typographic_minus
from probes.viz.plots.attention.maps import AttentionMaps
from probes.viz.plots.attention.thumbnails import Panel, largest_change
from probes.viz.plots.heat_table import HeatTableStyle, format_short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 0.12  # In widths of a head.
_MAX_NUMBERED, _MAX_TICKS, _MAX_INCHES = 20, 64, 12.0
_NUMBER_STYLE = HeatTableStyle("", cell_px=22)


def draw_head(figure: "Figure", maps: AttentionMaps, layer: int, head: int) -> None:
    """One head with labels on both axes and, where they fit, numbers in the cells."""
    _, rows, columns = _exact(maps, layer, head)
    cell = _cell_inches(max(len(rows), len(columns)))
    figure.set_size_inches(cell * len(columns) + 1.9, cell * len(rows) + 1.8)
    axes, bar = figure.subplots(2, height_ratios=(cell * len(rows), 0.14))
    draw_head_on(axes, maps, layer, head)
    _colorbar(bar, "sequential")


def draw_head_on(axes: "Axes", maps: AttentionMaps, layer: int, head: int) -> None:
    """One head on axes of a figure that the caller made, without a color bar."""
    weights, rows, columns = _exact(maps, layer, head)
    colors = apply_colormap(weights, "sequential")
    axes.imshow(colors, interpolation="nearest")
    style: dict[str, Any] = {"fontsize": 8, "parse_math": False}
    for names, set_ticks, turn in (
        (columns, axes.set_xticks, {"rotation": 90}), (rows, axes.set_yticks, {})
    ):  # fmt: skip
        shown = range(0, len(names), -(-len(names) // _MAX_TICKS))
        labels = [drawable_text(axis_label(names[at])) for at in shown]
        set_ticks(list(shown), labels, **turn, **style)
    _hide_frame(axes)
    has_numbers = max(weights.shape) <= _MAX_NUMBERED
    for (query, key), value in np.ndenumerate(weights if has_numbers else np.empty((0, 0))):
        text, color = format_short(float(value), _NUMBER_STYLE), text_color(colors[query, key])
        axes.text(key, query, text, ha="center", va="center", fontsize=7, color=color)
    axes.set_xlabel("key: attended to")
    axes.set_ylabel("query: attends")
    name = maps.names[0] if maps.names else f"L{layer}.H{head}"
    axes.set_title(f"{drawable_text(maps.model)} {name}", parse_math=False, fontsize=10)


def _exact(
    maps: AttentionMaps, layer: int, head: int
) -> tuple[Float[np.ndarray, "query key"], tuple[str, ...], tuple[str, ...]]:
    """A head with the labels of its axes; token by token where it is not pooled."""
    text = maps.long_text
    if text is not None and (layer, head) in text.exact:
        return text.exact[layer, head], text.tokens, text.tokens
    return maps.weights[layer, head], maps.rows, maps.columns


def _cell_inches(cells: int) -> float:
    return 0.34 if cells <= _MAX_NUMBERED else min(0.2, _MAX_INCHES / cells)


def draw_grid(figure: "Figure", panels: tuple[Panel, ...]) -> None:
    """All heads of each panel, panels side by side on one scale."""
    widths = [panel.weights.shape[1] for panel in panels]
    head = min(0.9, 4.2 / max(widths))
    height = head * max(panel.weights.shape[0] for panel in panels)
    figure.set_size_inches(head * sum(widths) + 0.5 * len(panels), height + 1.2)
    ratios: dict[str, Any] = {"width_ratios": widths, "height_ratios": (height, 0.12)}
    grid = figure.subplots(2, len(panels), squeeze=False, gridspec_kw=ratios)
    for axes, bar, panel in zip(*grid, panels, strict=True):
        draw_heads_on(axes, panel)
        if panel.key == "right":
            bar.set_axis_off()
        else:
            _colorbar(bar, panel.scale)


def draw_heads_on(axes: "Axes", panel: Panel) -> None:
    """All heads of a panel on axes of a figure that the caller made."""
    layers, heads, queries, keys = panel.weights.shape
    # One image of all heads: hundreds of small ones would take a minute.
    rows, columns = (size + max(1, round(_GAP * size)) for size in (queries, keys))
    image = np.full((layers, rows, heads, columns, 3), 255, dtype=np.uint8)
    top, left = (rows - queries) // 2, (columns - keys) // 2
    for layer, head in np.ndindex(layers, heads):
        colors = apply_colormap(panel.weights[layer, head], panel.scale)
        image[layer, top : top + queries, head, left : left + keys] = colors
        change = largest_change(panel.weights[layer, head])
        if panel.signed and not np.isnan(change):
            text = typographic_minus(f"{change:+.2f}")
            axes.text(head, layer - 0.33, text, ha="center", va="center", fontsize=6)
    flat = rearrange(image, "layer row head column color -> (layer row) (head column) color")
    extent = (-0.5, heads - 0.5, layers - 0.5, -0.5)
    axes.imshow(flat, extent=extent, interpolation="nearest", aspect="equal")
    axes.set_xlim(-0.5, heads - 0.5)
    axes.set_ylim(layers - 0.5, -0.5)
    axes.set_xticks(range(heads), [f"H{head}" for head in range(heads)], fontsize=7)
    axes.set_yticks(range(layers), [f"L{layer}" for layer in range(layers)], fontsize=7)
    axes.xaxis.tick_top()
    axes.set_anchor("N")
    _hide_frame(axes)
    axes.set_title(drawable_text(panel.name), parse_math=False, fontsize=9)


def _hide_frame(axes: "Axes") -> None:
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _colorbar(axes: "Axes", scale: ColorScale) -> None:
    low, name = (0, "attention") if scale == "sequential" else (-1, "difference")
    strip = apply_colormap(np.linspace(low, 1, 256)[np.newaxis], scale)
    axes.imshow(strip, extent=(low, 1, 0, 1), aspect="auto")
    axes.set_yticks([])
    axes.set_xticks([low, (low + 1) / 2, 1])
    axes.tick_params(labelsize=7)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"{name}   (gray: no such cell)", fontsize=7)
