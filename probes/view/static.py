"""Pictures for paper, drawn on a matplotlib figure that is handed in.

matplotlib itself is imported by whoever makes the figure. Colours come from our own table, so a
saved figure looks like the page.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from probes.view.cells import Look, short
from probes.view.colours import Scale, ink, paint
from probes.view.maps import HeadMaps
from probes.view.text import label
from probes.view.thumbs import Panel, largest_change

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 0.12


def draw_head(figure: "Figure", maps: HeadMaps, layer: int, head: int) -> None:
    """One head with labels on both axes and, where they fit, numbers in the cells."""
    queries, keys = len(maps.rows), len(maps.columns)
    each = 0.34 if max(queries, keys) <= 20 else 0.2
    figure.set_size_inches(each * keys + 1.9, each * queries + 1.4)
    axes = figure.subplots()
    weights = maps.weights[layer, head]
    axes.imshow(paint(weights, "share"), interpolation="nearest")
    _labels(axes, maps)
    if each > 0.3:
        _numbers(axes, weights)
    axes.set_xlabel("key: attended to")
    axes.set_ylabel("query: attends")
    axes.set_title(f"{_drawable(maps.model)} L{layer}.H{head}", parse_math=False, fontsize=10)
    _bar(figure, axes, "share")


def draw_grid(figure: "Figure", panels: tuple[Panel, ...]) -> None:
    """The grids of all heads side by side, on one scale."""
    widths = [panel.weights.shape[1] for panel in panels]
    each = min(0.9, 4.2 / max(widths))
    tall = max(panel.weights.shape[0] for panel in panels)
    figure.set_size_inches(each * sum(widths) + 0.9 * len(panels), each * tall + 1.5)
    row = figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
    for axes, panel in zip(row, panels, strict=True):
        _mosaic(axes, panel)
    _bar(figure, row[0], "share")
    if panels[-1].signed:
        _bar(figure, row[-1], "change")


def _mosaic(axes: "Axes", panel: Panel) -> None:
    layers, heads = panel.weights.shape[:2]
    half = (1 - _GAP) / 2
    for layer in range(layers):
        for head in range(heads):
            weights = panel.weights[layer, head]
            colours = paint(weights, "change" if panel.signed else "share")
            extent = (head - half, head + half, layer + half, layer - half)
            axes.imshow(colours, extent=extent, interpolation="nearest", aspect="equal")
            change = largest_change(weights)
            if panel.signed and not np.isnan(change):
                text = f"{change:+.2f}".replace("-", "−")
                axes.text(head, layer - half * 0.75, text, ha="center", va="center", fontsize=6)
    axes.set_xlim(-0.5, heads - 0.5)
    axes.set_ylim(layers - 0.5, -0.5)
    axes.set_xticks(range(heads), [f"H{head}" for head in range(heads)], fontsize=7)
    axes.set_yticks(range(layers), [f"L{layer}" for layer in range(layers)], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(_drawable(panel.name), parse_math=False, fontsize=9)


def _labels(axes: "Axes", maps: HeadMaps) -> None:
    style: dict[str, Any] = {"fontsize": 8, "parse_math": False}
    columns = [_drawable(label(name)) for name in maps.columns]
    rows = [_drawable(label(name)) for name in maps.rows]
    axes.set_xticks(range(len(columns)), columns, rotation=90, **style)
    axes.set_yticks(range(len(rows)), rows, **style)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _numbers(axes: "Axes", weights: np.ndarray) -> None:
    look = Look("", cell=22)
    colours = paint(weights, "share")
    for (query, key), value in np.ndenumerate(weights):
        text = short(float(value), look)
        colour = ink(colours[query, key])
        axes.text(key, query, text, ha="center", va="center", fontsize=7, color=colour)


def _bar(figure: "Figure", axes: "Axes", scale: Scale) -> None:
    """A strip with the scale, and grey for what is not there."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    low = 0.0 if scale == "share" else -1.0
    table = paint(np.linspace(low, 1, 256), scale) / 255
    marks = ScalarMappable(Normalize(low, 1), ListedColormap(table))
    bar = figure.colorbar(marks, ax=axes, location="bottom", fraction=0.05, aspect=30, shrink=0.8)
    bar.ax.tick_params(labelsize=7)
    bar.set_ticks([low, (low + 1) / 2, 1])
    word = "attention" if scale == "share" else "difference"
    bar.set_label(f"{word}   (grey: no such cell)", fontsize=7)


def _drawable(text: str) -> str:
    """The text with characters that the font lacks written as code points."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(char if ord(char) in known else f"U+{ord(char):04X}" for char in text)
