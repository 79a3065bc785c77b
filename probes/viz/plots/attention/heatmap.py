"""Attention heatmap of a model on one text."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from probes.errors import FigureError, ModelError
from probes.models.model import Model, ModelSpec, load
from probes.models.site import parse_head
from probes.observe.activations import HOOK_POINTS, capture
from probes.observe.attention import role_attention
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import Batch, require_one_text, tokenize
from probes.viz.picture import Picture
from probes.viz.plots.attention.figure import draw_head_on, draw_heads_on
from probes.viz.plots.attention.head_grid import HeadPair, head_grid, head_map, head_panel
from probes.viz.plots.attention.maps import AttentionMaps, Head, LongText
from probes.viz.plots.attention.pooling import (
    block_labels,
    block_size,
    n_exact,
    pool_blocks,
    pool_rows,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def heatmap(  # noqa: PLR0913 (each is an option of its own)
    model: ModelSpec,
    text: str | Question,
    *,
    compare_with: ModelSpec | None = None,
    head: str = "",
    roles: str | Pattern | None = None,
    ax: "Axes | None" = None,
) -> Picture:
    """Attention of all heads, or of one head, on one text.

    Maps of a long text (1,024 tokens and more) are pooled in blocks of tokens, as many as fit a
    page, and the sharpest heads stay token by token.

    Args:
        model: Model, or a name that `load` takes.
        text: Free text, or a question of a pattern, which is followed by its answers.
        compare_with: Second model, shown with the difference where tokens agree. Heads of models of
            another shape are paired by how alike they attend in this text.
        head: Show only this head, such as "L2.H3".
        roles: Pattern whose roles are the axes in place of tokens, or its name.
        ax: Axes of a matplotlib figure of your own, on which the head is drawn, or all heads.

    Raises:
        MatchError: The text does not fit the pattern.
        BatchError: Several texts are given.
        SiteError: `head` is not the address of a head.
        FigureError: The model has no such head, or `ax` is given for two models.
    """
    if ax is not None and compare_with is not None:
        raise FigureError(
            "ax holds one model, and compare_with names a second: draw each on axes of its own"
        )
    require_one_text(text, question=True)
    one, roles = load(model), find_pattern(roles) if roles else None
    two = load(compare_with) if compare_with else None
    heads = sum(each.shape.layers * each.shape.heads for each in (one, two) if each)
    left = _attention_maps(one, text, roles, heads)
    if head:
        place = parse_head(head)
        left.check_head(*place)
        left = _with_exact(one, text, left, [place])
        if ax is not None:
            draw_head_on(ax, left, *place)
        return head_map(left, *place)
    if two is None:
        best = _sharpest_heads(left, None)
        left = _with_exact(one, text, left, best[: _exact_count(left, 1)])
        if ax is not None:
            draw_heads_on(ax, head_panel(left))
        return head_grid(left, start=best[0])
    right = _attention_maps(two, text, roles, heads)
    pairs = _pairs_by_attention(left, right)
    best = _sharpest_heads(left, pairs or _same_heads(left, right))
    exact = best[: _exact_count(left, 2)]
    partner = dict(pairs or _same_heads(left, right))
    left = _with_exact(one, text, left, exact)
    right = _with_exact(two, text, right, [partner[head] for head in exact])
    return head_grid(left, right, pairs, start=best[0])


def _same_heads(left: AttentionMaps, right: AttentionMaps) -> list[HeadPair]:
    """Heads of the same layer and number."""
    layers, heads = min(left.layers, right.layers), min(left.heads, right.heads)
    return [(head, head) for head in np.ndindex(layers, heads)]


def _exact_count(maps: AttentionMaps, models: int) -> int:
    return n_exact(len(maps.long_text.tokens), models) if maps.long_text else 0


def _sharpest_heads(maps: AttentionMaps, pairs: Sequence[HeadPair] | None) -> list[Head]:
    """Heads whose queries attend most to one earlier token other than the first come first."""
    weights = np.nan_to_num(maps.weights).copy()
    weights[..., 0] = 0
    for query in range(min(weights.shape[-2:])):
        weights[..., query, query] = 0
    sharpness = weights.max(-1).mean(-1)
    known = dict(pairs) if pairs else dict.fromkeys(np.ndindex(sharpness.shape))
    return sorted(known, key=lambda head: -float(sharpness[head]))


def _pairs_by_attention(left: AttentionMaps, right: AttentionMaps) -> list[HeadPair] | None:
    """One-to-one pairs of heads that attend most alike, where the models differ in shape.

    None where heads of the same layer and number are comparable, or the texts have other tokens.
    """
    same_shape = left.weights.shape == right.weights.shape
    if same_shape or left.weights.shape[2:] != right.weights.shape[2:]:
        return None
    from scipy.optimize import linear_sum_assignment

    rows = [
        rearrange(np.nan_to_num(maps.weights), "layer head query key -> (layer head) (query key)")
        for maps in (left, right)
    ]
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in rows]
    found = zip(*linear_sum_assignment(-unit[0] @ unit[1].T), strict=True)
    return [(divmod(int(a), left.heads), divmod(int(b), right.heads)) for a, b in found]


def _attention_maps(
    model: Model, text: str | Question, roles: Pattern | None, heads: int
) -> AttentionMaps:
    """Attention of a model on a text, with tokens, blocks or roles on the axes.

    `heads` are those of all models on the page.
    """
    batch, kv_heads = _tokenized(model, text, roles), model.shape.kv_heads
    if roles:
        pooled = role_attention(model, batch)
        weights = pooled.mean.double().numpy()
        return AttentionMaps(model.name, weights, pooled.roles, pooled.roles, kv_heads=kv_heads)
    labels = batch.tokens[0]
    if (block := block_size(len(labels), heads)) == 1:
        weights = capture(model, batch, ("attention",))["attention"][:, 0].float().cpu().numpy()
        weights = _masked(weights).astype(np.float64)
        return AttentionMaps(model.name, weights, labels, labels, kv_heads=kv_heads)

    def pool(pattern: Tensor) -> Tensor:
        # Layer by layer: the patterns of all layers together can exceed the memory.
        weights = _masked(pattern[0].float().cpu().numpy())
        first = pool_rows(weights[..., 0], block)[..., None]
        return torch.from_numpy(np.concatenate([pool_blocks(weights, block), first], -1))

    kept = _patterns(model, batch, range(model.shape.layers), pool)
    both = torch.stack([*kept.values()]).double().numpy()
    names = block_labels(len(labels), block)
    long_text = LongText(labels, block, both[..., -1], {})
    return AttentionMaps(
        model.name, both[..., :-1], names, names, kv_heads=kv_heads, long_text=long_text
    )


def _with_exact(
    model: Model, text: str | Question, maps: AttentionMaps, heads: Sequence[Head]
) -> AttentionMaps:
    """Maps of a long text with some heads token by token, from a second run; others as they are."""
    if maps.long_text is None or not heads:
        return maps
    layers = sorted({layer for layer, _ in heads})
    kept = _patterns(model, _tokenized(model, text, None), layers, lambda pattern: pattern[0])
    exact = {
        (layer, head): _masked(kept[layer][head].cpu().double().numpy()) for layer, head in heads
    }
    return replace(maps, long_text=replace(maps.long_text, exact=exact))


@torch.no_grad()
def _patterns(
    model: Model, batch: Batch, layers: Iterable[int], select: Callable[[Tensor], Tensor]
) -> dict[int, Tensor]:
    """What is kept of the attention of some layers, by layer."""
    names = {layer: f"blocks.{layer}.{HOOK_POINTS['attention']}" for layer in layers}
    with model.recording(names.values(), select) as kept:
        model.forward(batch.ids, batch.mask, batch.mask.sum(-1, keepdim=True) - 1)
    return {layer: kept[name] for layer, name in names.items()}


def _masked(weights: np.ndarray) -> np.ndarray:
    """Attention "... query key" with NaN for later keys."""
    return np.where(np.tril(np.ones(weights.shape[-2:], dtype=bool)), weights, np.nan)


def _tokenized(model: Model, text: str | Question, roles: Pattern | None) -> Batch:
    if model.tokenizer is None:
        raise ModelError(f"{model.name!r} came without a tokenizer: add its files and load again")
    if isinstance(text, str):
        text = roles.match(text) if roles else Question.from_text(text)
    return tokenize(model.tokenizer, (text,), max_length=model.shape.context)
