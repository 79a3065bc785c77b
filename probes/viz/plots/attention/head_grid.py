"""Attention of one head, and of all heads of one model or two.

Differences are right minus left, between paired heads, where both models have equal labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from probes.errors import FigureError
from probes.models.site import head_name, head_names
from probes.viz.colors import COLOR_STOPS, MISSING_COLOR, ColorScale, css_gradient, to_hex
from probes.viz.html_text import MINUS, escape, json_attribute, show_invisible
from probes.viz.picture import Picture
from probes.viz.plots.attention.figure import draw_grid, draw_head
from probes.viz.plots.attention.maps import AttentionMaps, Head
from probes.viz.plots.attention.pooling import block_size, pool_text
from probes.viz.plots.attention.thumbnails import Panel, panel_table, thumbnail_width
from probes.viz.plots.attention.viewer_data import head_labels, long_text_note, model_data
from probes.viz.plots.heat_table import HeatTableStyle, cell_width, heat_table

HeadPair = tuple[Head, Head]


# Larger maps are left to the script: as HTML they would outweigh the rest of the page.
_MAX_STATIC_CELLS = 700
_BOXES = (
    '<label class="pv-live"><input type="checkbox" class="pv-own"> '
    "color each head up to its own maximum</label> "
    '<label class="pv-live"><input type="checkbox" class="pv-no-sink"> '
    "leave out attention to the first key, and renormalize the rest</label>"
)


def head_map(maps: AttentionMaps, layer: int, head: int) -> Picture:
    """One head with its labels and numbers; the map of a long text opens in parts."""
    maps.check_head(layer, head)
    title = maps.title or f"Attention of {maps.model} {head_name(layer, head)}"
    if maps.weights[0, 0].size > _MAX_STATIC_CELLS:
        return replace(
            head_grid(one_head(maps, layer, head)),
            draw=lambda figure: draw_head(figure, maps, layer, head),
        )
    figure = _head_figure(maps, (layer, head), cell_width(len(maps.columns)))
    body = f"{_heading(title)}{_legend(('sequential',))}{figure}"
    return Picture(show_invisible(title), body, lambda figure: draw_head(figure, maps, layer, head))


def head_grid(
    left: AttentionMaps,
    right: AttentionMaps | None = None,
    pairs: Sequence[HeadPair] | None = None,
    start: Head | None = None,
) -> Picture:
    """All heads of one model, or of two with their difference; a click enlarges a head.

    Args:
        left: Model on the left, such as the full one.
        right: Model on the right, such as the distilled one.
        pairs: Pairs of a (layer, head) of `left` and one of `right`; by default heads of the same
            layer and number.
        start: The (layer, head) of `left` that is enlarged at first.
    """
    links = _head_pairs(left, right, pairs) if right else ()
    start = start or (links[0][0] if links else (0, 0))
    left.check_head(*start)
    left, right = _fit_to_page(left, right, dict(links), start)
    grid = _Grid(left, right, links, start)
    panels = grid.panels()
    heads = max(panel.weights.shape[1] for panel in panels)
    columns = " pv-two" if 4 < heads <= 16 and right else ""
    tables = "".join(panel_table(panel, thumbnail_width(heads)) for panel in panels)
    both = f" and {right.model}" if right else ""
    scales = ("sequential", "diverging") if grid.has_difference else ("sequential",)
    title = left.title or f"Attention of {left.model}{both}"
    body = (
        f'<section class="pv-grid" data-maps="{json_attribute(grid.viewer_data())}">'
        f"{_heading(title)}{_legend(scales)}{long_text_note(grid.models)}"
        f'{_BOXES}<div class="pv-panels{columns}">{tables}</div>'
        f'{_pairing_note(grid, pairs)}<div class="pv-detail" aria-live="polite">'
        f"{grid.enlarged()}</div></section>"
    )
    return Picture(show_invisible(title), body, lambda figure: draw_grid(figure, panels))


def head_panel(maps: AttentionMaps, key: str = "left") -> Panel:
    """Panel of all heads of a model."""
    return Panel(key, maps.model, maps.weights, False, head_labels(maps), maps.kv_heads)


def one_head(maps: AttentionMaps, layer: int, head: int) -> AttentionMaps:
    """Maps that hold one head, under its own name."""
    at = (slice(layer, layer + 1), slice(head, head + 1))
    text = maps.long_text
    if text is not None:
        kept = {(0, 0): text.exact[layer, head]} if (layer, head) in text.exact else {}
        text = replace(text, first_key=text.first_key[at], exact=kept)
    error = None if maps.error is None else maps.error[at]
    name = f"{maps.model} {head_name(layer, head)}"
    return replace(
        maps, weights=maps.weights[at], error=error, kv_heads=0, long_text=text,
        title=maps.title or f"Attention of {name}", names=(head_name(layer, head),),
    )  # fmt: skip


def _fit_to_page(
    left: AttentionMaps, right: AttentionMaps | None, partner: dict[Head, Head], start: Head
) -> tuple[AttentionMaps, AttentionMaps | None]:
    """Both models' maps, pooled if they are too large, but for the start and its partner."""
    models = [left] if right is None else [left, right]
    heads = sum(maps.layers * maps.heads for maps in models)
    tokens = max(len(maps.columns) for maps in models)
    block, exact = block_size(tokens, heads), [start]
    if block == 1 or any(maps.long_text for maps in models):
        return left, right
    left = pool_text(left, exact, block)
    if right is not None:
        right = pool_text(right, [partner[head] for head in exact if head in partner], block)
    return left, right


@dataclass(frozen=True, eq=False)
class _Grid:
    """One model or two, with paired heads."""

    left: AttentionMaps
    right: AttentionMaps | None
    pairs: tuple[HeadPair, ...]
    start: Head

    @property
    def models(self) -> list[AttentionMaps]:
        return [self.left] if self.right is None else [self.left, self.right]

    @property
    def has_difference(self) -> bool:
        """Whether cells of the two models have the same meaning."""
        left, right = self.left, self.right
        return right is not None and left.axes == right.axes

    @property
    def difference_name(self) -> str:
        return f"{self.right.model} {MINUS} {self.left.model}" if self.right else ""

    @property
    def is_static(self) -> bool:
        """Whether the enlarged heads are small enough for plain HTML."""
        return sum(maps.weights[0, 0].size for maps in self.models) <= _MAX_STATIC_CELLS

    def panels(self) -> tuple[Panel, ...]:
        panels = tuple(map(head_panel, self.models, ("left", "right")))
        if self.right is None or not self.has_difference:
            return panels
        change = np.full(self.right.weights.shape, np.nan)
        names = list(head_names(self.right.layers, self.right.heads))
        for of_left, of_right in self.pairs:
            change[of_right] = self.right.weights[of_right] - self.left.weights[of_left]
            names[of_right[0] * self.right.heads + of_right[1]] += f" {MINUS} {head_name(*of_left)}"
        kv_heads = self.right.kv_heads
        return *panels, Panel("change", self.difference_name, change, True, tuple(names), kv_heads)

    def viewer_data(self) -> dict[str, object]:
        """Data of the viewer script."""
        heads = [maps.heads for maps in self.models]
        return {
            "models": list(map(model_data, self.models)),
            "links": [[a[0] * heads[0] + a[1], b[0] * heads[1] + b[1]] for a, b in self.pairs],
            "change": self.has_difference,
            "start": self.start[0] * heads[0] + self.start[1],
            "stops": COLOR_STOPS,
            "missing": to_hex(MISSING_COLOR),
            "plain": self.is_static,
        }

    def enlarged(self) -> str:
        """First enlarged head and its partner, as the script draws them."""
        if not self.is_static:
            return '<p class="pv-soft">Heads enlarge here once the notebook or page is trusted.</p>'
        width = cell_width(len(self.left.columns), 1 if self.right is None else 3)
        figures = _head_figure(self.left, self.start, width)
        partner = dict(self.pairs).get(self.start)
        if self.right is not None and partner is None:
            figures += f'<p class="pv-absent">No partner in {escape(self.right.model)}</p>'
        elif self.right is not None and partner is not None:
            figures += _head_figure(self.right, partner, width)
            if self.has_difference:
                style = HeatTableStyle(self.difference_name, signed=True, cell_px=width)
                change = self.right.weights[partner] - self.left.weights[self.start]
                table = heat_table(change, None, self.left.rows, self.left.columns, style)
                heads = f"{head_name(*partner)} {MINUS} {head_name(*self.start)}"
                figures += _figure_html(self.difference_name, heads, table)
        return f'<div class="pv-maps">{figures}</div>'


def _head_pairs(
    left: AttentionMaps, right: AttentionMaps, pairs: Sequence[HeadPair] | None
) -> tuple[HeadPair, ...]:
    """Checked pairs; by default heads of the same layer and number."""
    if pairs is None:
        layers, heads = min(left.layers, right.layers), min(left.heads, right.heads)
        return tuple((head, head) for head in np.ndindex(layers, heads))
    for of_left, of_right in pairs:
        left.check_head(*of_left)
        right.check_head(*of_right)
    for side, heads in (("left", [a for a, _ in pairs]), ("right", [b for _, b in pairs])):
        repeated = [head for head in heads if heads.count(head) > 1]
        if repeated:
            raise FigureError(
                f"{head_name(*repeated[0])} of the {side} model is in two pairs: "
                "give each head at most one partner"
            )
    return tuple(pairs)


def _head_figure(maps: AttentionMaps, head: Head, width: int) -> str:
    name = head_name(*head)
    style = HeatTableStyle(f"{maps.model} {name}", cell_px=width)
    error = None if maps.error is None else maps.error[head]
    table = heat_table(maps.weights[head], error, maps.rows, maps.columns, style)
    return _figure_html(maps.model, name, table)


def _figure_html(model: str, name: str, table: str) -> str:
    return (
        f'<figure class="pv-map"><figcaption><b>{escape(model)}</b> {escape(name)}</figcaption>'
        f'<div class="pv-scroll">{table}</div></figure>'
    )


def _heading(title: str) -> str:
    return f'<p class="pv-title">{escape(title)}</p>'


def _legend(scales: Sequence[ColorScale]) -> str:
    texts = {"sequential": ("attention", "0", "1"), "diverging": ("difference", f"{MINUS}1", "+1")}
    bars = ""
    for scale in scales:
        name, low, high = texts[scale]
        bars += (
            f'<span class="pv-key" data-scale="{scale}">{name} <i>{low}</i>'
            f'<span class="pv-bar pv-hide" style="background:{css_gradient(scale)}"> to </span>'
            f'<i>{high}</i><span class="pv-hide">, </span></span>'
        )
    swatch = f'<span class="pv-swatch" style="background:{to_hex(MISSING_COLOR)}"></span>'
    return (
        f'<div class="pv-legend">{bars}<span class="pv-key">{swatch}gray: no such cell</span></div>'
    )


def _pairing_note(grid: _Grid, pairs: Sequence[HeadPair] | None) -> str:
    if grid.right is None:
        return ""
    which = "of the same layer and number" if pairs is None else "that are paired"
    text = f"Heads {which} are compared. The number below a difference is its largest change."
    if not grid.has_difference:
        text = "The axes of the two models differ, so there is no difference to show."
    return f'<p class="pv-soft pv-remark">{text}</p>'
