"""Attention hooks of a bridge: the head axis of z, and edits that the model ignores."""

from typing import Any

import torch
from torch import Tensor

from probes.errors import SiteError
from probes.models.layers.kv_cache import accept_cache_argument

EDITABLE_CHECK = "edits of {}"
"""Entry of `Model.passed_checks` for a hook whose edits have an effect."""

_PATTERN, _SCORES, _Z = "attn.hook_pattern", "attn.hook_attn_scores", "attn.hook_z"


def adapt_attention(bridge: Any, config: Any) -> None:  # noqa: ANN401
    """Make the attention of a bridge what this kit and this release of transformers need."""
    split_value_heads(bridge, config)
    accept_cache_argument(bridge.blocks)


def split_value_heads(bridge: Any, config: Any) -> None:  # noqa: ANN401
    """Split z by heads where values have a width of their own (multi-head latent attention)."""
    width = getattr(config.get_text_config(), "v_head_dim", None)
    for block in bridge.blocks if width else ():
        output = getattr(getattr(block, "attn", None), "o", None)
        conversion = getattr(getattr(output, "hook_in", None), "hook_conversion", None)
        if conversion is not None:
            conversion.n_heads, conversion.d_head = bridge.cfg.n_heads, width


@torch.no_grad()
def check_attention_edits(model: Any, ids: Tensor, mask: Tensor) -> None:  # noqa: ANN401 (a Model)
    """Add to `model.passed_checks` the attention hooks whose edits change what follows.

    Some blocks compute attention in one call and only report scores and pattern. Here all scores
    go to the first key, then all patterns to 0: the pattern must follow the scores, and z must be
    0. Random draws and the caller's edits play no part.
    """
    patterns: list[Tensor] = []
    outputs: list[Tensor] = []

    def first_key(scores: Tensor) -> Tensor:
        scores = torch.zeros_like(scores)
        scores[..., 0] = 1e4
        return scores

    def no_attention(pattern: Tensor) -> Tensor:
        patterns.append(pattern)
        return torch.zeros_like(pattern)

    edits = {_SCORES: first_key, _PATTERN: no_attention, _Z: lambda z: outputs.append(z)}
    layers = range(model.shape.layers)
    hooks = {f"blocks.{n}.{hook}": edit for n in layers for hook, edit in edits.items()}
    with model.hooked({name: e for name, e in hooks.items() if name in model.bridge.hook_dict}):
        model.logits(ids, mask)
    if patterns and all(bool((p[..., :1] >= p).all()) for p in patterns):
        model.passed_checks.add(EDITABLE_CHECK.format(_SCORES))
    if patterns and outputs and not any(bool(z.any()) for z in outputs):
        model.passed_checks.add(EDITABLE_CHECK.format(_PATTERN))


def require_effect(model: Any, name: str) -> None:  # noqa: ANN401 (a Model)
    """Raise SiteError for an edit of an attention hook that the model would ignore."""
    for hook in (_SCORES, _PATTERN):
        if name.endswith(hook) and EDITABLE_CHECK.format(hook) not in model.passed_checks:
            raise SiteError(
                f"An edit of {name!r} would have no effect: {model.name} "
                f"({model.shape.architecture}) computes attention in one call. Edit z instead, "
                "such as 'L1.H0'."
            )
