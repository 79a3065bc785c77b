"""From a model and a text, or a comparison's numbers, to the maps that pictures are drawn from."""

import numpy as np

from probes.errors import ModelError, SiteError
from probes.models import site
from probes.models.model import Model, load
from probes.observe.activations import capture
from probes.observe.attention import role_attention
from probes.prompts.batch import Batch, tokenize
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
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
    """Draw what the heads of a model attend to in one text.

    Args:
        model: A model, or a name that `load` takes.
        text: What to read: free text, or a question of a pattern with its answers behind it.
        beside: Another model to draw next to it, and the difference where tokens agree.
        head: One head alone, such as "L2.H3"; else all of them.
        roles: A pattern whose roles stand on the axes in place of tokens.

    Raises:
        MatchError: The text does not fit the pattern.
        SiteError: The model has no such head.
    """
    left = attention_maps(load(model), text, roles)
    if head:
        return head_map(left, *parse_head(head, left))
    return head_grid(
        left, attention_maps(load(compare_with), text, roles) if compare_with else None
    )


def attention_maps(
    model: Model, text: str | Question, roles: Pattern | None = None
) -> AttentionMaps:
    """Capture a model's attention in one text, with tokens or roles on the axes."""
    if model.tokenizer is None:
        raise ModelError(f"{model.name!r} came without a tokenizer, and cannot read text")
    if isinstance(text, str):
        text = roles.match(text) if roles else Question.from_text(text)
    batch = tokenize(model.tokenizer, (text,), max_length=model.shape.context)
    if roles:
        return _pooled_maps(model, batch)
    weights = capture(model, batch, ("attention",))["attention"][:, 0].float().cpu().numpy()
    weights = np.where(np.tril(np.ones(weights.shape[-2:], dtype=bool)), weights, np.nan)
    labels = batch.tokens[0]
    return AttentionMaps(model.name, weights.astype(np.float64), labels, labels)


def _pooled_maps(model: Model, batch: Batch) -> AttentionMaps:
    found = role_attention(model, batch)
    return AttentionMaps(model.name, found.mean.double().numpy(), found.roles, found.roles)


def parse_head(name: str, maps: AttentionMaps) -> tuple[int, int]:
    """Read an address such as "L2.H3".

    Raises:
        SiteError: It is not an address, or the model has no such head.
    """
    place = site.parse_head(name)
    if place[0] >= maps.layers or place[1] >= maps.heads:
        raise SiteError(
            f"{maps.model!r} has no head {name!r}: it has layers 0 to {maps.layers - 1} with "
            f"heads 0 to {maps.heads - 1}"
        )
    return place
