"""What students read: the family's corpus, lines of a file, or a teacher's own text."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from probes.compression.derived_model import Relative
from probes.compression.distillation.trainer import Row
from probes.errors import ModelError
from probes.experiments.family.recipes import recipe
from probes.experiments.family.tokenizer import BOS, EOS
from probes.experiments.family.train import rows as family_rows
from probes.files import family_members
from probes.models.model import cache_slot

_CHUNK = 256
"""Prompts that a teacher goes on with at once."""


def corpus(reader: Relative, *, count: int, seed: int, statements: float = 0.3) -> list[Row]:
    """Write texts of the family's corpus, a share of them statements, the others questions.

    Raises:
        ModelError: The model does not read with the family's tokenizer.
    """
    if not reads_corpus(reader):
        raise ModelError(
            f"{reader.name} does not read with the family's tokenizer, so the family's corpus is "
            "nothing for it: give a file of texts, one a line"
        )
    chosen = replace(recipe("full"), items=count, seed=seed, statements=statements)
    return family_rows(chosen, reader.tokenizer)


def reads_corpus(reader: Relative) -> bool:
    """Say whether a model reads with the family's tokenizer."""
    if reader.tokenizer is None or not family_members():
        return False
    words = reader.tokenizer.get_vocab()
    return words.get("<bos>") == BOS and words.get("<eos>") == EOS and "Ġfoxes" in words


def lines(reader: Relative, path: Path, *, length: int = 128) -> list[Row]:
    """Read a file of texts, one a line; what is longer than `length` tokens is cut.

    Raises:
        ModelError: There is no such file, it is empty, or the model has no tokenizer.
    """
    if reader.tokenizer is None:
        raise ModelError(f"{reader.name} has no tokenizer: save one beside its weights")
    if not path.is_file():
        raise ModelError(f"There is no file {str(path)!r}: give texts, one a line")
    texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ModelError(f"{str(path)!r} holds no text: write one a line")
    first, last = reader.tokenizer.bos_token_id, reader.tokenizer.eos_token_id
    start = () if first is None else (first,)
    end = () if last is None else (last,)
    limit = min(length, int(reader.hf_model.config.max_position_embeddings))
    found = reader.tokenizer(texts, add_special_tokens=False).input_ids
    return [Row((*start, *ids, *end)[:limit]) for ids in found]


@torch.no_grad()
def retold(
    teacher: Relative, rows: Sequence[Row], *, seed: int, told: float = 0.5, length: int = 64
) -> list[Row]:
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
    heads = [row.ids[: max(1, round(told * len(row.ids)))] for row in rows]
    order = sorted(range(len(heads)), key=lambda k: len(heads[k]))
    written: dict[int, Row] = {}
    for start in range(0, len(order), _CHUNK):
        part = order[start : start + _CHUNK]
        generator = torch.Generator().manual_seed((seed << 24) + start)
        texts = _go_on([heads[k] for k in part], teacher.hf_model, generator, (last, length))
        written |= {k: Row(text) for k, text in zip(part, texts, strict=True)}
    return [written[k] for k in range(len(heads))]


def _go_on(
    heads: Sequence[tuple[int, ...]],
    hf_model: Any,  # noqa: ANN401
    generator: torch.Generator,
    ends: tuple[int | None, int],
) -> list[tuple[int, ...]]:
    """Write texts of one chunk to their ends, all by one token at a time."""
    last, length = ends
    width = max(map(len, heads))
    ids = torch.zeros((len(heads), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, head in enumerate(heads):  # On the left, so that all go on at one place.
        ids[row, width - len(head) :] = torch.tensor(head)
        mask[row, width - len(head) :] = 1
    slot, state = cache_slot(hf_model), DynamicCache(config=hf_model.config)
    feed, open_rows = ids, torch.ones(len(heads), dtype=torch.bool)
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


def dealt(rows: Sequence[Row], *, seed: int) -> list[Row]:
    """Shuffle texts by a seed."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    return order
