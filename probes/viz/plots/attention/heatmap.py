"""Attention heatmap of a model on one text."""

import numpy as np

from probes.errors import ModelError
from probes.models.model import Model, load
from probes.models.site import parse_head
from probes.observe.activations import capture
from probes.observe.attention import role_attention
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import tokenize
from probes.viz.picture import Picture
from probes.viz.plots.attention.head_grid import head_grid, head_map
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
        compare_with: Second model, shown with the difference where tokens agree.
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
    return head_grid(left, right)


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
