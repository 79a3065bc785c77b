"""Continuation of a text, token by token."""

from typing import Any

import torch

from probes.errors import ModelError
from probes.models.readout import last_token
from probes.prompts.tokens.batch import require_one_text, tokenize


def continue_text(
    model: Any,  # noqa: ANN401 (a Model)
    text: str,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> str:
    """Text with its continuation; see `Model.generate`.

    Raises:
        ModelError: The length, temperature or seed is out of range.
        BatchError: Several texts are given.
    """
    require_one_text(text)
    if max_new_tokens < 0 or not temperature >= 0 or not 0 <= seed < 2**63:
        raise ModelError(
            f"Cannot generate {max_new_tokens} tokens at temperature {temperature:g} with seed "
            f"{seed!s:.40}: give numbers of 0 or more, and a seed below 2**63"
        )
    ids = tokenize(model, text).ids.to(model.device)
    # Tokens are drawn on the CPU, so that a seed draws the same ones on every device.
    generator = torch.Generator().manual_seed(seed)
    for _ in range(min(max_new_tokens, model.shape.context - ids.shape[1])):
        mask = torch.ones_like(ids, dtype=torch.bool)
        logits = model.logits(ids, mask, last_token(mask))[0, 0]
        if temperature > 0:
            weights = (logits.float() / temperature).softmax(-1).cpu()
            token = torch.multinomial(weights, 1, generator=generator).to(ids.device)
        else:
            token = logits.argmax(-1, keepdim=True)
        if int(token) == model.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token[None]], 1)
    return model.tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)
