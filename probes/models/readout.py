"""Where a pass is read: positions of tokens, and logits computed at chosen positions only."""

import inspect
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor


def position_ids(mask: Bool[Tensor, "prompt position"]) -> Int[Tensor, "prompt position"]:
    """Positions of the tokens of each text from 0, without padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def last_token(mask: Bool[Tensor, "prompt position"]) -> Int[Tensor, "prompt 1"]:
    """Position of the last token of each text, for passes of which only activations are used."""
    return mask.shape[1] - 1 - mask.flip(-1).int().argmax(-1, keepdim=True)


def run_bridge(
    bridge: Any,  # noqa: ANN401
    ids: Int[Tensor, "prompt position"],
    mask: Bool[Tensor, "prompt position"],
    at: Int[Tensor, "prompt answer"] | None,
) -> Float[Tensor, "prompt _ vocab"]:
    """Logits of one pass at the positions `at` of each prompt, or at all.

    The other positions are not unembedded: with a vocabulary of 150,000 tokens that costs more than
    most blocks.
    """
    given: dict[str, Tensor | bool] = {"attention_mask": mask.long(), "use_cache": False}
    if "position_ids" in inspect.signature(bridge.original_model.forward).parameters:
        given["position_ids"] = position_ids(mask)
    if at is None:
        return bridge(ids, **given)
    selected: list[bool] = []

    def select(_module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        selected.append(True)
        return args[0].take_along_dim(at[..., None], dim=1), *args[1:]

    handle = bridge.unembed.register_forward_pre_hook(select)
    try:
        logits = bridge(ids, **given)
    finally:
        handle.remove()
    # A head that is no module of its own passes by the hook.
    return logits if selected else logits.take_along_dim(at[..., None], dim=1)
