"""Checks of every forward pass: evaluation mode and finite logits."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from probes.errors import ModelError


def require_eval(model: Any) -> None:  # noqa: ANN401 (a Model)
    """Raise ModelError for a model in training mode, whose runs differ by dropout."""
    if any(module.training for module in model.bridge.modules()):
        raise ModelError(
            f"{model.name} is in training mode, so its runs are random: call eval() on it"
        )


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
