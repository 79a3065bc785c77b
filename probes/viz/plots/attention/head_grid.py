"""Attention of one head, and of all heads of one model or two, as pictures.

Sign: a difference is right minus left, so what the right model attends to more is positive. Heads
are compared cell by cell, and only where both models have that cell under the same label.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from probes.errors import FigureError
from probes.models.site import head_name, head_names
from probes.viz.colors import COLOR_STOPS, MISSING_COLOR, css_gradient, to_hex
from probes.viz.embedding_data import encode_array
from probes.viz.html_text import MINUS, axis_label, escape, json_attribute, show_invisible
from probes.viz.picture import Picture
from probes.viz.plots.attention.figure import draw_grid, draw_head
from probes.viz.plots.attention.maps import AttentionMaps
from probes.viz.plots.attention.thumbnails import Panel, panel_table, thumbnail_width
from probes.viz.plots.heat_table import HeatTableStyle, cell_width, heat_table

HeadPair = tuple[tuple[int, int], tuple[int, int]]

_MAX_CELLS = 5_000_000
# Longer maps are left to the script: as text they would outweigh all the rest of the page.
_MAX_STATIC_CELLS = 700


def head_map(maps: AttentionMaps, layer: int, head: int) -> Picture:
    """One head, with its labels on the axes and its numbers in the cells."""
    _check_head(maps, layer, head)
    name = head_name(layer, head)
    look = HeatTableStyle(f"{maps.model} {name}", cell_px=cell_width(len(maps.columns)))
    error = None if maps.error is None else maps.error[layer, head]
    weights = maps.weights[layer, head]
    table = heat_table(weights, error, maps.rows, maps.columns, look)
    title = maps.title or f"Attention of {maps.model} {name}"
    body = f"{_heading(title)}{_legend(('share',))}{_model_figure(maps.model, name, table)}"
    return Picture(show_invisible(title), body, lambda figure: draw_head(figure, maps, layer, head))


def head_grid(
    left: AttentionMaps,
    right: AttentionMaps | None = None,
    pairs: Sequence[HeadPair] | None = None,
    start: tuple[int, int] | None = None,
) -> Picture:
    """All heads of one model, or of two and their difference; any head enlarges.

    Args:
        left: The model on the left, such as the full one.
        right: The model on the right, such as the distilled one.
        pairs: Which (layer, head) of `left` belongs to which of `right`. By default those of the
            same layer and head.
        start: The (layer, head) of `left` that is enlarged at first.
    """
    if left.weights.size + (right.weights.size if right else 0) > _MAX_CELLS:
        raise FigureError(
            f"{left.weights.size:,} cells are too many for one page: "
            "show fewer layers, a shorter prompt, or roles in place of tokens"
        )
    links = () if right is None else _head_pairs(left, right, pairs)
    panels = _panels(left, right, links)
    chosen = start or (links[0][0] if links else (0, 0))
    _check_head(left, *chosen)
    heads = max(panel.weights.shape[1] for panel in panels)
    width = thumbnail_width(heads)
    columns = " pv-two" if 4 < heads <= 16 and right else ""
    grids = "".join(panel_table(panel, width) for panel in panels)
    title = left.title or _title(left, right)
    body = (
        f'<section class="pv-grid" data-maps="{json_attribute(_viewer_data(left, right, links, chosen))}">'
        f"{_heading(title)}{_legend(('share', 'change') if len(panels) > 2 else ('share',))}"
        f'{_toggle()}<div class="pv-panels{columns}">{grids}</div>'
        f'{_pairing_note(left, right, pairs)}<div class="pv-detail" aria-live="polite">'
        f"{_detail(left, right, links, chosen)}</div></section>"
    )
    return Picture(show_invisible(title), body, lambda figure: draw_grid(figure, panels))


def same_labels(left: AttentionMaps, right: AttentionMaps) -> bool:
    """Whether cells of the two models mean the same, so that they may be subtracted."""
    return left.rows == right.rows and left.columns == right.columns


def _head_pairs(
    left: AttentionMaps, right: AttentionMaps, pairs: Sequence[HeadPair] | None
) -> tuple[HeadPair, ...]:
    if pairs is None:
        layers, heads = min(left.layers, right.layers), min(left.heads, right.heads)
        places = [(layer, head) for layer in range(layers) for head in range(heads)]
        return tuple((place, place) for place in places)
    for ours, theirs in pairs:
        _check_head(left, *ours)
        _check_head(right, *theirs)
    for side, places in (("left", [a for a, _ in pairs]), ("right", [b for _, b in pairs])):
        if len(set(places)) < len(places):
            twice = next(place for place in places if places.count(place) > 1)
            raise FigureError(
                f"layer {twice[0]} head {twice[1]} of the {side} model is in two pairs: "
                "give each head at most one partner"
            )
    return tuple(pairs)


def _panels(
    left: AttentionMaps, right: AttentionMaps | None, pairs: tuple[HeadPair, ...]
) -> tuple[Panel, ...]:
    first = Panel("left", left.model, left.weights, False, _head_names(left))
    if right is None:
        return (first,)
    second = Panel("right", right.model, right.weights, False, _head_names(right))
    if not same_labels(left, right):
        return first, second
    change = np.full(right.weights.shape, np.nan)
    names = list(_head_names(right))
    for (layer, head), (layer_right, head_right) in pairs:
        change[layer_right, head_right] = (
            right.weights[layer_right, head_right] - left.weights[layer, head]
        )
        names[layer_right * right.heads + head_right] += f" {MINUS} L{layer}.H{head}"
    name = f"{right.model} {MINUS} {left.model}"
    return first, second, Panel("change", name, change, True, tuple(names))


def _viewer_data(
    left: AttentionMaps,
    right: AttentionMaps | None,
    pairs: tuple[HeadPair, ...],
    selected: tuple[int, int],
) -> dict[str, object]:
    """All that the viewer script needs, as plain values."""
    models = [left] if right is None else [left, right]
    return {
        "models": [_model_data(maps) for maps in models],
        "links": [[a[0] * left.heads + a[1], b[0] * right.heads + b[1]] for a, b in pairs if right],
        "change": right is not None and same_labels(left, right),
        "start": selected[0] * left.heads + selected[1],
        "stops": COLOR_STOPS,
        "missing": to_hex(MISSING_COLOR),
        "plain": _fits_static(left, right),
    }


def _model_data(maps: AttentionMaps) -> dict[str, object]:
    top = 0.0 if maps.error is None else float(np.nanmax(maps.error, initial=0.0))
    return {
        "name": show_invisible(maps.model),
        "heads": maps.heads,
        "rows": [axis_label(name) for name in maps.rows],
        "columns": [axis_label(name) for name in maps.columns],
        "weights": encode_array(maps.weights),
        "error": None if maps.error is None else encode_array(maps.error, top),
    }


def _fits_static(left: AttentionMaps, right: AttentionMaps | None) -> bool:
    size = left.weights[0, 0].size + (right.weights[0, 0].size if right else 0)
    return size <= _MAX_STATIC_CELLS


def _detail(
    left: AttentionMaps,
    right: AttentionMaps | None,
    pairs: tuple[HeadPair, ...],
    selected: tuple[int, int],
) -> str:
    """The enlarged head as plain HTML, the same as the script would build."""
    if not _fits_static(left, right):
        return '<p class="pv-soft">Heads enlarge here once the notebook or page is trusted.</p>'
    width = cell_width(len(left.columns), 1 if right is None else 3)
    out = _enlarged_head(left, selected, width)
    if right is None:
        return f'<div class="pv-maps">{out}</div>'
    partner = dict(pairs).get(selected)
    if partner is None:
        return f'<div class="pv-maps">{out}{_missing_head_figure(right.model)}</div>'
    out += _enlarged_head(right, partner, width)
    if same_labels(left, right):
        name = f"{right.model} {MINUS} {left.model}"
        look = HeatTableStyle(name, signed=True, cell_px=width)
        change = right.weights[partner] - left.weights[selected]
        table = heat_table(change, None, left.rows, left.columns, look)
        out += _model_figure(
            name, f"L{partner[0]}.H{partner[1]} {MINUS} L{selected[0]}.H{selected[1]}", table
        )
    return f'<div class="pv-maps">{out}</div>'


def _enlarged_head(maps: AttentionMaps, head: tuple[int, int], width: int) -> str:
    name = head_name(*head)
    error: Float[np.ndarray, "query key"] | None = None if maps.error is None else maps.error[head]
    look = replace(HeatTableStyle(f"{maps.model} {name}"), cell_px=width)
    table = heat_table(maps.weights[head], error, maps.rows, maps.columns, look)
    return _model_figure(maps.model, name, table)


def _model_figure(model: str, name: str, table: str) -> str:
    return (
        f'<figure class="pv-map"><figcaption><b>{escape(model)}</b> {escape(name)}</figcaption>'
        f'<div class="pv-scroll">{table}</div></figure>'
    )


def _missing_head_figure(model: str) -> str:
    return f'<p class="pv-absent">No partner in {escape(model)}</p>'


def _head_names(maps: AttentionMaps) -> tuple[str, ...]:
    return head_names(maps.layers, maps.heads)


def _title(left: AttentionMaps, right: AttentionMaps | None) -> str:
    return f"Attention of {left.model}" + (f" and {right.model}" if right else "")


def _heading(title: str) -> str:
    return f'<p class="pv-title">{escape(title)}</p>'


def _legend(scales: Sequence[str]) -> str:
    words = {"share": ("attention", "0", "1"), "change": ("difference", f"{MINUS}1", "+1")}
    bars = "".join(
        f'<span class="pv-key" data-scale="{scale}">{words[scale][0]} <i>{words[scale][1]}</i>'
        f'<span class="pv-bar pv-hide" style="background:{css_gradient(scale)}"> to </span>'
        f'<i>{words[scale][2]}</i><span class="pv-hide">, </span></span>'
        for scale in ("share", "change")
        if scale in scales
    )
    gray = (
        f'<span class="pv-key"><span class="pv-swatch" style="background:{to_hex(MISSING_COLOR)}"></span>'
        "gray: no such cell</span>"
    )
    return f'<div class="pv-legend">{bars}{gray}</div>'


def _toggle() -> str:
    return (
        '<label class="pv-live"><input type="checkbox" class="pv-own"> '
        "color each head up to its own maximum</label>"
    )


def _pairing_note(
    left: AttentionMaps, right: AttentionMaps | None, pairs: Sequence[HeadPair] | None
) -> str:
    if right is None:
        return ""
    if not same_labels(left, right):
        text = "The axes of the two models differ, so there is no difference to show."
    else:
        which = "of the same layer and head" if pairs is None else "that are paired"
        text = f"Heads {which} are compared. The number under a difference is its largest change."
    return f'<p class="pv-soft pv-remark">{text}</p>'


def _check_head(maps: AttentionMaps, layer: int, head: int) -> None:
    if not (0 <= layer < maps.layers and 0 <= head < maps.heads):
        raise FigureError(
            f"{maps.model!r} has no layer {layer} head {head}: layers run from 0 to "
            f"{maps.layers - 1} and heads from 0 to {maps.heads - 1}"
        )
