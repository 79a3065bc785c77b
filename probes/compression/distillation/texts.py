"""Training texts: rows of tokens, lines of a file, or continuations by a teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from probes.compression.derived_model import DerivedModel
from probes.compression.distillation.plan import TrainingText
from probes.errors import ModelError
from probes.models.layers.kv_cache import cache_argument
from probes.prompts.tokens.special_tokens import special_prefix

Texts = Path | Sequence[TrainingText]
"""A file with one text per line, or tokenized texts."""

_BATCH_SIZE = 256
"""Number of texts that a teacher continues at once."""


def load_texts(model: DerivedModel, texts: Texts) -> Sequence[TrainingText]:
    """Return the given texts, or those of a file (`read_text_file`).

    Raises:
        ModelError: There are no texts, or the file cannot be used.
    """
    rows = read_text_file(model, texts) if isinstance(texts, Path) else texts
    if not rows:
        raise ModelError("There are no texts to train on: give some, or a file with one per line")
    return rows


def pad_token(model: DerivedModel) -> int:
    """Return the token that fills up short texts; padding is masked, so any will do."""
    found = getattr(model.tokenizer, "pad_token_id", None)
    return 0 if found is None else int(found)


def read_text_file(model: DerivedModel, path: Path, *, length: int = 128) -> list[TrainingText]:
    """Read a file with one text per line; longer texts are cut to `length` tokens.

    Raises:
        ModelError: The file is absent, unreadable or empty, or the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ModelError(f"{model.name} has no tokenizer: save one in the folder of its weights")
    if not path.is_file():
        raise ModelError(f"There is no file {str(path)!r}: give a file with one text per line")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{str(path)!r} cannot be read ({error}): give a UTF-8 file with one text per line"
        ) from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise ModelError(f"{str(path)!r} has no text: write one per line")
    start, last = special_prefix(model.tokenizer), model.tokenizer.eos_token_id
    end = () if last is None else (last,)
    limit = min(length, int(model.hf_model.config.max_position_embeddings))
    found = model.tokenizer(texts, add_special_tokens=False).input_ids
    return [TrainingText((*start, *ids, *end)[:limit]) for ids in found]


@torch.no_grad()
def generate_continuations(
    teacher: DerivedModel,
    source_texts: Sequence[TrainingText],
    *,
    seed: int,
    prefix_fraction: float = 0.5,
    length: int = 64,
) -> list[TrainingText]:
    """Return continuations of the beginning of each text, sampled from a teacher.

    Training on them is sequence-level distillation, without the teacher's probabilities.

    Args:
        teacher: Model that writes.
        source_texts: Texts whose beginnings are the prompts.
        seed: Seed of the samples.
        prefix_fraction: Fraction of each text that is the prompt.
        length: Largest number of tokens, with those of the prompt.
    """
    last = teacher.tokenizer.eos_token_id if teacher.tokenizer is not None else None
    prefixes = [text.ids[: max(1, round(prefix_fraction * len(text.ids)))] for text in source_texts]
    order = sorted(range(len(prefixes)), key=lambda index: len(prefixes[index]))
    written: dict[int, TrainingText] = {}
    for start in range(0, len(order), _BATCH_SIZE):
        part = order[start : start + _BATCH_SIZE]
        generator = torch.Generator().manual_seed((seed << 24) + start)
        texts = _generate_batch(
            [prefixes[index] for index in part], teacher.hf_model, generator, (last, length)
        )
        written |= {index: TrainingText(text) for index, text in zip(part, texts, strict=True)}
    return [written[index] for index in range(len(prefixes))]


def _generate_batch(
    prefixes: Sequence[tuple[int, ...]],
    hf_model: Any,  # noqa: ANN401
    generator: torch.Generator,
    stop_and_length: tuple[int | None, int],
) -> list[tuple[int, ...]]:
    """Continue one batch of prompts, token by token."""
    last, length = stop_and_length
    width = max(map(len, prefixes))
    ids = torch.zeros((len(prefixes), width), dtype=torch.long)
    device = hf_model.device
    mask = torch.zeros_like(ids)
    for row, prefix in enumerate(prefixes):  # Padding on the left aligns the next tokens.
        ids[row, width - len(prefix) :] = torch.tensor(prefix)
        mask[row, width - len(prefix) :] = 1
    cache_name, cache = cache_argument(hf_model), DynamicCache(config=hf_model.config)
    feed, unfinished = ids, torch.ones(len(prefixes), dtype=torch.bool)
    for _ in range(max(length - width, 0)):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -feed.shape[1] :]
        out = hf_model(
            input_ids=feed.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            use_cache=True,
            **{cache_name: cache},
        )
        odds = out.logits[:, -1].float().softmax(-1).cpu()
        feed = torch.multinomial(odds, 1, generator=generator)
        ids = torch.cat([ids, feed], -1)
        mask = torch.cat([mask, unfinished[:, None].long()], -1)
        unfinished = unfinished & (feed[:, 0] != (-1 if last is None else last))
        if not unfinished.any():
            break
    return [tuple(map(int, row[kept.bool()])) for row, kept in zip(ids, mask, strict=True)]
