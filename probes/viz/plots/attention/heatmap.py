"""Attention heatmap of a model on one text."""

from collections.abc import Sequence

import numpy as np
from einops import rearrange

from probes.errors import ModelError
from probes.models.model import Model, load
from probes.models.site import parse_head
from probes.observe.activations import capture
from probes.observe.attention import role_attention
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import tokenize
from probes.viz.picture import Picture
from probes.viz.plots.attention.head_grid import Head, HeadPair, head_grid, head_map
from probes.viz.plots.attention.maps import AttentionMaps


def heatmap(
    model: str | Model,
    text: str | Question,
    *,
    compare_with: str | Model | None = None,
    head: str = "",
    roles: Pattern | None = None,
) -> Picture:
    """Attention of all heads, or of one head, on one text.

    Args:
        model: Model, or a name that `load` takes.
        text: Free text, or a question of a pattern, which is followed by its answers.
        compare_with: Second model, shown with the difference where tokens agree. Heads of models of
            another shape are paired by how alike they attend in this text.
        head: Show only this head, such as "L2.H3".
        roles: Pattern whose roles are the axes in place of tokens.

    Raises:
        MatchError: The text does not fit the pattern.
        SiteError: `head` is not the address of a head.
        FigureError: The model has no such head.
    """
    left = _attention_maps(load(model), text, roles)
    if head:
        return head_map(left, *parse_head(head))
    right = _attention_maps(load(compare_with), text, roles) if compare_with else None
    pairs = _pairs_by_attention(left, right) if right else None
    return head_grid(left, right, pairs, start=_sharpest_head(left, pairs))


def _sharpest_head(maps: AttentionMaps, pairs: Sequence[HeadPair] | None) -> Head:
    """Head whose queries attend most to one earlier token other than the first, on average."""
    weights = np.nan_to_num(maps.weights).copy()
    weights[..., 0] = 0
    for query in range(min(weights.shape[-2:])):
        weights[..., query, query] = 0
    sharpness = weights.max(-1).mean(-1)
    known = dict(pairs) if pairs else dict.fromkeys(np.ndindex(sharpness.shape))
    return max(known, key=lambda head: float(sharpness[head]))


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


def _attention_maps(model: Model, text: str | Question, roles: Pattern | None) -> AttentionMaps:
    """Attention of a model on one text, with tokens or roles on the axes."""
    if model.tokenizer is None:
        raise ModelError(f"{model.name!r} came without a tokenizer: add its files and load again")
    if isinstance(text, str):
        text = roles.match(text) if roles else Question.from_text(text)
    batch = tokenize(model.tokenizer, (text,), max_length=model.shape.context)
    if roles:
        pooled = role_attention(model, batch)
        return AttentionMaps(model.name, pooled.mean.double().numpy(), pooled.roles, pooled.roles)
    weights = capture(model, batch, ("attention",))["attention"][:, 0].float().cpu().numpy()
    weights = np.where(np.tril(np.ones(weights.shape[-2:], dtype=bool)), weights, np.nan)
    labels = batch.tokens[0]
    return AttentionMaps(model.name, weights.astype(np.float64), labels, labels)
