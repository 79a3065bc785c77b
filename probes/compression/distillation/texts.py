"""Training texts: rows of tokens, lines of a file, or continuations by a teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from probes.compression.derived_model import DerivedModel
from probes.compression.distillation.trainer import TrainingText
from probes.errors import ModelError
from probes.models.kv_cache import cache_argument
from probes.prompts.tokenization import special_prefix

_BATCH_SIZE = 256
"""Prompts that a teacher goes on with at once."""


def load_texts(model: DerivedModel, texts: Path | Sequence[TrainingText]) -> Sequence[TrainingText]:
    """Return the given rows, or those of a file (`read_text_file`).

    Raises:
        ModelError: There are no rows, or the file cannot be used.
    """
    rows = read_text_file(model, texts) if isinstance(texts, Path) else texts
    if not rows:
        raise ModelError(
            "There are no texts to train on: give rows, or a file with one text a line"
        )
    return rows


def pad_token(model: DerivedModel) -> int:
    """Return the id that fills up short rows; padding is masked, so any id will do."""
    found = getattr(model.tokenizer, "pad_token_id", None)
    return 0 if found is None else int(found)


def read_text_file(model: DerivedModel, path: Path, *, length: int = 128) -> list[TrainingText]:
    """Read a file of texts, one a line; what is longer than `length` tokens is cut.

    Raises:
        ModelError: There is no such file, it is empty, or the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ModelError(f"{model.name} has no tokenizer: save one beside its weights")
    if not path.is_file():
        raise ModelError(f"There is no file {str(path)!r}: give texts, one a line")
    texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ModelError(f"{str(path)!r} holds no text: write one a line")
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
    """Let a teacher go on with the beginning of each text, and return what it wrote.

    This is distillation in its second sense: training on the teacher's text, without its
    probabilities, as DeepSeek-R1-Distill was made.

    Args:
        teacher: Who writes, drawing each token from all that it says.
        rows: Whose beginnings it is given.
        seed: Of the drawing.
        told: Share of each text that it is given.
        length: Tokens at most, those given among them.
    """
    last = teacher.tokenizer.eos_token_id if teacher.tokenizer is not None else None
    heads = [row.ids[: max(1, round(prefix_fraction * len(row.ids)))] for row in source_texts]
    order = sorted(range(len(heads)), key=lambda k: len(heads[k]))
    written: dict[int, TrainingText] = {}
    for start in range(0, len(order), _BATCH_SIZE):
        part = order[start : start + _BATCH_SIZE]
        generator = torch.Generator().manual_seed((seed << 24) + start)
        texts = _generate_batch(
            [heads[k] for k in part], teacher.hf_model, generator, (last, length)
        )
        written |= {k: TrainingText(text) for k, text in zip(part, texts, strict=True)}
    return [written[k] for k in range(len(heads))]


def _generate_batch(
    prefixes: Sequence[tuple[int, ...]],
    hf_model: Any,  # noqa: ANN401
    generator: torch.Generator,
    stop_and_length: tuple[int | None, int],
) -> list[tuple[int, ...]]:
    """Write texts of one chunk to their ends, all by one token at a time."""
    last, length = stop_and_length
    width = max(map(len, prefixes))
    ids = torch.zeros((len(prefixes), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, head in enumerate(prefixes):  # On the left, so that all go on at one place.
        ids[row, width - len(head) :] = torch.tensor(head)
        mask[row, width - len(head) :] = 1
    slot, state = cache_argument(hf_model), DynamicCache(config=hf_model.config)
    feed, open_rows = ids, torch.ones(len(prefixes), dtype=torch.bool)
    for _ in range(max(length - width, 0)):
        place = (mask.cumsum(-1) - 1).clamp(min=0)[:, -feed.shape[1] :]
        out = hf_model(
            input_ids=feed,
            attention_mask=mask,
            position_ids=place,
            use_cache=True,
            **{slot: state},
        )
        drawn = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1, generator=generator)
        feed = drawn
        ids = torch.cat([ids, drawn], -1)
        mask = torch.cat([mask, open_rows[:, None].long()], -1)
        open_rows = open_rows & (drawn[:, 0] != (-1 if last is None else last))
        if not open_rows.any():
            break
    return [tuple(map(int, row[kept.bool()])) for row, kept in zip(ids, mask, strict=True)]
