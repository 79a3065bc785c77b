"""Checks of forward passes: evaluation mode, no edit, tokens that fit, and finite logits."""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import ModelError


def require_eval(model: Any) -> None:  # noqa: ANN401 (a Model)
    """Raise ModelError for a model in training mode, whose runs differ by dropout."""
    if any(module.training for module in model.bridge.modules()):
        raise ModelError(
            f"{model.name} is in training mode, so its runs are random: call eval() on it"
        )


def require_unembed(model: Any) -> None:  # noqa: ANN401 (a Model)
    """Raise ModelError where final norm and unembedding do not give the model's own logits."""
    if "unembed" not in model.passed_checks:
        raise ModelError(
            f"The logit lens of {model.name} ({model.shape.architecture}) is not supported: its "
            "final norm and unembedding do not give its own logits. Use another model."
        )


def require_unedited(model: Any) -> None:  # noqa: ANN401 (a Model)
    """Raise ModelError inside `Model.editing`: a result would name the model without its edits."""
    if model.active_edits:
        raise ModelError(
            f"{model.name} has edits of {', '.join(map(repr, model.active_edits[:3]))} in effect, "
            "which the result would not record: measure it outside of `with model.editing(...)`"
        )


def hook_count(model: Any) -> int:  # noqa: ANN401 (a Model)
    """Number of hooks on the bridge, of torch and of hook points, without the bridge's own."""
    count = 0
    for module in model.bridge.modules():
        # Blocks register these at their first pass and keep them.
        count -= len(getattr(module, "_capture_hook_handles", ()))
        count += len(module._forward_hooks) + len(module._forward_pre_hooks)
        count += len(module._backward_hooks) + len(module._backward_pre_hooks)
        count += len(getattr(module, "fwd_hooks", ())) + len(getattr(module, "bwd_hooks", ()))
    return count


def require_tokens(
    model: Any,  # noqa: ANN401 (a Model)
    ids: Int[Tensor, "prompt position"],
    mask: Bool[Tensor, "prompt position"],
) -> Int[Tensor, "prompt position"]:
    """Ids that a model takes: those of padding are 0 where they are not in its vocabulary.

    Raises:
        ModelError: There are too many tokens, or one of text is not in the vocabulary.
    """
    if ids.shape[1] > model.shape.context:
        raise ModelError(
            f"The prompts are too long for {model.name}: {ids.shape[1]} tokens found, "
            f"at most {model.shape.context} fit. Shorten them."
        )
    outside = (ids < 0) | (ids >= model.shape.d_vocab)
    if bool((outside & mask).any()):
        raise ModelError(
            f"Token {int(ids[outside & mask][0])} is not in the vocabulary of {model.name}, "
            f"which has tokens 0 to {model.shape.d_vocab - 1}: use the model's own tokenizer"
        )
    return ids.masked_fill(outside, 0)


def require_finite(
    name: str, logits: Float[Tensor, "prompt position vocab"], mask: Bool[Tensor, "prompt position"]
) -> None:
    """Raise ModelError for NaN or infinite logits of text; -inf for single tokens is allowed."""
    # The maximum propagates NaN and needs no tensor of the size of the logits.
    finite = logits.detach().amax(-1).isfinite() | ~mask
    if not bool(finite.all()):
        prompt, position = (~finite).nonzero()[0].tolist()
        raise ModelError(
            f"{name} gives NaN or infinite logits (prompt {prompt}, position {position}): load it "
            "with a wider dtype, or check its weights and the edits of its activations"
        )
