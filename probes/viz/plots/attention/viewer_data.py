"""What the viewer script and the texts of a page know of attention maps."""

from collections.abc import Sequence

import numpy as np

from probes.models.site import head_name
from probes.viz.embedding_data import encode_array
from probes.viz.html_text import axis_label, escape, show_invisible
from probes.viz.plots.attention.maps import AttentionMaps


def model_data(maps: AttentionMaps) -> dict[str, object]:
    """Labels, attention and errors of a model."""
    top = 0.0 if maps.error is None else float(np.nanmax(maps.error, initial=0.0))
    return {
        "name": show_invisible(maps.model),
        "heads": maps.heads,
        "labels": head_labels(maps),
        "long": None if maps.long_text is None else _long_text_data(maps),
        "rows": list(map(axis_label, maps.rows)),
        "columns": list(map(axis_label, maps.columns)),
        "weights": encode_array(maps.weights),
        "error": None if maps.error is None else encode_array(maps.error, top),
    }


def head_labels(maps: AttentionMaps) -> tuple[str, ...]:
    """Name of each head, with the heads that share its keys and values."""
    if maps.names:
        return maps.names
    labels = []
    for layer, head in np.ndindex(maps.layers, maps.heads):
        shared = ", ".join(f"H{other}" for other in maps.sharers(head))
        labels.append(head_name(layer, head) + (f" (shares K,V with {shared})" if shared else ""))
    return tuple(labels)


def _long_text_data(maps: AttentionMaps) -> dict[str, object]:
    """Tokens, attention to the first key, and the heads that are exact."""
    text = maps.long_text
    assert text is not None
    return {
        "tokens": list(map(axis_label, text.tokens)),
        "first": encode_array(text.first_key),
        "exact": {
            str(layer * maps.heads + head): encode_array(weights)
            for (layer, head), weights in text.exact.items()
        },
    }


def long_text_note(models: Sequence[AttentionMaps]) -> str:
    """What is pooled, and which heads are not; empty for short texts."""
    notes = []
    for maps in models:
        if (text := maps.long_text) is not None:
            heads = ", ".join(
                maps.names[0] if maps.names else head_name(*head) for head in text.exact
            )
            notes.append(
                f"{escape(maps.model)}: {len(text.tokens):,} tokens, pooled in blocks of "
                f"{text.block} × {text.block}: attention is summed over the keys of a block and "
                f"averaged over its queries. Token by token: {heads or 'no head'}."
            )
    return "".join(f'<p class="pv-soft">{note}</p>' for note in notes)
