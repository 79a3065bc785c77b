"""Pictures for paper, drawn on a matplotlib figure that is handed in.

matplotlib itself is imported by whoever makes the figure. Colors come from our own table, so a
saved figure looks like the page.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from probes.viz.colors import ColorScale, apply_colormap, text_color
from probes.viz.figure import drawable_text
from probes.viz.html_text import axis_label, typographic_minus
from probes.viz.plots.attention.maps import AttentionMaps
from probes.viz.plots.attention.thumbnails import Panel, largest_change
from probes.viz.plots.heat_table import HeatTableStyle, format_short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 0.12


def draw_head(figure: "Figure", maps: AttentionMaps, layer: int, head: int) -> None:
    """One head with labels on both axes and, where they fit, numbers in the cells."""
    queries, keys = len(maps.rows), len(maps.columns)
    each = 0.34 if max(queries, keys) <= 20 else 0.2
    wide, high = each * keys, each * queries
    figure.set_size_inches(wide + 1.9, high + 1.8)
    axes, bar = figure.subplots(2, height_ratios=(high, 0.14))
    weights = maps.weights[layer, head]
    axes.imshow(apply_colormap(weights, "share"), interpolation="nearest")
    _label_axes(axes, maps)
    if each > 0.3:
        _write_numbers(axes, weights)
    axes.set_xlabel("key: attended to")
    axes.set_ylabel("query: attends")
    axes.set_title(f"{drawable_text(maps.model)} L{layer}.H{head}", parse_math=False, fontsize=10)
    _colorbar(bar, "share")


def draw_grid(figure: "Figure", panels: tuple[Panel, ...]) -> None:
    """The grids of all heads side by side, on one scale."""
    widths = [panel.weights.shape[1] for panel in panels]
    each = min(0.9, 4.2 / max(widths))
    tall = max(panel.weights.shape[0] for panel in panels)
    figure.set_size_inches(each * sum(widths) + 0.5 * len(panels), each * tall + 1.2)
    ratios: dict[str, Any] = {"width_ratios": widths, "height_ratios": (each * tall, 0.12)}
    grid = figure.subplots(2, len(panels), squeeze=False, gridspec_kw=ratios)
    for axes, bar, panel in zip(*grid, panels, strict=True):
        _draw_panel(axes, panel)
        if panel.key == "right":
            bar.set_axis_off()
        else:
            _colorbar(bar, "change" if panel.signed else "share")


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    layers, heads = panel.weights.shape[:2]
    half = (1 - _GAP) / 2
    for layer in range(layers):
        for head in range(heads):
            weights = panel.weights[layer, head]
            colors = apply_colormap(weights, "change" if panel.signed else "share")
            extent = (head - half, head + half, layer + half, layer - half)
            axes.imshow(colors, extent=extent, interpolation="nearest", aspect="equal")
            change = largest_change(weights)
            if panel.signed and not np.isnan(change):
                text = typographic_minus(f"{change:+.2f}")
                axes.text(head, layer - half * 0.75, text, ha="center", va="center", fontsize=6)
    axes.set_xlim(-0.5, heads - 0.5)
    axes.set_ylim(layers - 0.5, -0.5)
    axes.set_xticks(range(heads), [f"H{head}" for head in range(heads)], fontsize=7)
    axes.set_yticks(range(layers), [f"L{layer}" for layer in range(layers)], fontsize=7)
    axes.xaxis.tick_top()
    axes.set_anchor("N")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(drawable_text(panel.name), parse_math=False, fontsize=9)


def _label_axes(axes: "Axes", maps: AttentionMaps) -> None:
    style: dict[str, Any] = {"fontsize": 8, "parse_math": False}
    columns = [drawable_text(axis_label(name)) for name in maps.columns]
    rows = [drawable_text(axis_label(name)) for name in maps.rows]
    axes.set_xticks(range(len(columns)), columns, rotation=90, **style)
    axes.set_yticks(range(len(rows)), rows, **style)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _write_numbers(axes: "Axes", weights: np.ndarray) -> None:
    look = HeatTableStyle("", cell_px=22)
    colors = apply_colormap(weights, "share")
    for (query, key), value in np.ndenumerate(weights):
        text = format_short(float(value), look)
        color = text_color(colors[query, key])
        axes.text(key, query, text, ha="center", va="center", fontsize=7, color=color)


def _colorbar(axes: "Axes", scale: ColorScale) -> None:
    """A strip with the scale."""
    low = 0 if scale == "share" else -1
    strip = apply_colormap(np.linspace(low, 1, 256)[np.newaxis], scale)
    axes.imshow(strip, extent=(low, 1, 0, 1), aspect="auto")
    axes.set_yticks([])
    axes.set_xticks([low, (low + 1) / 2, 1])
    axes.tick_params(labelsize=7)
    axes.spines[:].set_visible(False)
    word = "attention" if scale == "share" else "difference"
    axes.set_xlabel(f"{word}   (gray: no such cell)", fontsize=7)
