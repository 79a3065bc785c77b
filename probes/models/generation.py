"""Continuation of a text, token by token."""

from typing import Any

import torch

from probes.prompts.batch import tokenize


def continue_text(
    model: Any,  # noqa: ANN401 (a Model)
    text: str,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> str:
    """Text with its continuation; see `Model.generate`."""
    ids = tokenize(model, text).ids.to(model.device)
    generator = torch.Generator(model.device).manual_seed(seed)
    for _ in range(min(max_new_tokens, model.shape.context - ids.shape[1])):
        logits = model.logits(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
        if temperature > 0:
            weights = (logits.float() / temperature).softmax(-1)
            token = torch.multinomial(weights, 1, generator=generator)
        else:
            token = logits.argmax(-1, keepdim=True)
        if int(token) == model.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token[None]], 1)
    return model.tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)
