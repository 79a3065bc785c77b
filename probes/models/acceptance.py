"""Acceptance test: a model gives the logits of the untouched Hugging Face model.

Every model passes it when it is loaded, wrapped or derived. A text runs with and without padding,
and its beginning runs alone, so that padding, positions and causality are checked as well.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import ModelError, SiteError
from probes.models.files.memory import is_out_of_memory
from probes.models.shape import read_context
from probes.models.site import RESID_OUT

# Largest difference from the Hugging Face model in eager attention, for logits up to 1; it grows
# with larger logits. Most architectures do not differ at all.
LOGIT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}

_TOKENS, _PADDING = 8, 3
_MOST_ROUNDING = 100  # Times the tolerance: more than that is no rounding.


@dataclass(frozen=True, eq=False)
class ReferenceLogits:
    """Logits of an untouched Hugging Face model, each text run alone and without padding.

    Attributes:
        ids: A text of random tokens, and its beginning, padded on the left.
        mask: False for padding.
        logits: Zero for padding.
        rounding: Difference of the logits of the beginning in texts of two lengths, where other
            later tokens change none of them; 0 where it is within the tolerance. Coarse weights
            make activations large, and rounding grows with them.
    """

    ids: Int[Tensor, "prompt position"]
    mask: Bool[Tensor, "prompt position"]
    logits: Float[Tensor, "prompt position vocab"]
    rounding: float = 0.0


@torch.no_grad()
def reference_logits(hf_model: Any) -> ReferenceLogits:  # noqa: ANN401
    """Logits of a Hugging Face model in eager attention, before it is wrapped."""
    config = hf_model.config.get_text_config()
    length = min(_TOKENS, read_context(config) or _TOKENS)
    padding = min(_PADDING, length - 1)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(config.vocab_size, (length,), generator=generator)
    ids = torch.stack([text, text.roll(padding)])
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, :padding] = False
    device = next(hf_model.parameters()).device
    ids, mask = ids.to(device), mask.to(device)

    def run(tokens: Int[Tensor, " position"]) -> Float[Tensor, "position vocab"]:
        one = tokens[None]
        return hf_model(input_ids=one, attention_mask=torch.ones_like(one), use_cache=False).logits[
            0
        ]

    rows = [run(ids[row, mask[row]]) for row in range(2)]
    logits = torch.zeros(2, *rows[0].shape, dtype=rows[0].dtype, device=device)
    for row in range(2):
        logits[row, mask[row]] = rows[row]
    beginning, allowed = length - padding, _tolerance(logits)
    gap = float((rows[0][:beginning] - rows[1]).abs().max())
    if not allowed < gap <= _MOST_ROUNDING * allowed:
        return ReferenceLogits(ids, mask, logits)
    other = ids[0].clone()
    other[beginning:] = (other[beginning:] + 1) % config.vocab_size
    change = float((run(other)[:beginning] - rows[0][:beginning]).abs().max())
    return ReferenceLogits(ids, mask, logits, gap if change <= allowed else 0.0)


def _tolerance(logits: Float[Tensor, "*any vocab"]) -> float:
    """Largest difference from these logits."""
    relative = LOGIT_TOLERANCE.get(logits.dtype, LOGIT_TOLERANCE[torch.float32])
    return relative * max(1.0, float(logits.abs().max()))


@torch.no_grad()
def check_acceptance(model: Any, reference: ReferenceLogits) -> None:  # noqa: ANN401 (a Model)
    """Compare a model's logits with the reference; `model.passed_checks` gains "unembed".

    Raises:
        ModelError: Logits differ, are not finite, or depend on later tokens.
    """
    ids, mask, expected = reference.ids, reference.mask, reference.logits
    name = f"{model.name} ({model.shape.architecture})"
    if not bool(expected.isfinite().all()):
        raise ModelError(
            f"{name} gives NaN or infinite logits: load it with a wider dtype, or check the weights"
        )
    allowed = max(_tolerance(expected), 2 * reference.rounding)
    beginning = int(mask[1].sum())
    gap = float((expected[0, :beginning] - expected[1, -beginning:]).abs().max())
    if not gap <= allowed:
        raise ModelError(
            f"{name} is not a causal decoder: later tokens change a logit by {gap:.1e}. Use a "
            "decoder such as Llama, GPT-2 or GPT-NeoX."
        )
    logits, final = _run(model, ids, mask)
    for row, text in enumerate(("", " behind padding")):
        gap = float((logits - expected)[row, mask[row]].abs().max())
        if not gap <= allowed:
            raise ModelError(
                f"{name} is not supported: its logits{text} differ from Hugging Face's by "
                f"{gap:.1e}, {allowed:.1e} allowed. Use a decoder such as Llama, GPT-2 or GPT-NeoX."
            )
    if final is not None:
        model.passed_checks.add("unembed")
        try:
            gap = float((model.unembed(final) - logits)[mask].abs().max())
        except (AttributeError, RuntimeError) as error:  # No final norm, or other shapes.
            if is_out_of_memory(error):
                raise
            gap = float("inf")
        if not gap <= allowed:
            model.passed_checks.remove("unembed")


def _run(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401
    """Logits, and the residual stream after the last block where the model has its hook."""
    last = f"blocks.{model.shape.layers - 1}.{RESID_OUT}"
    try:
        with model.recording([last]) as kept:
            return model.logits(ids, mask), kept.get(last)
    except SiteError:
        return model.logits(ids, mask), None
