"""Distills: a smaller model is taught what a larger one says."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probes.compression.derived_model import DerivedModel, dense_storage, load_parent
from probes.compression.distillation.layers import take_layers
from probes.compression.distillation.targets import DistillationTargets
from probes.compression.distillation.texts import generate_continuations, load_texts, pad_token
from probes.compression.distillation.trainer import (
    TrainingCallback,
    TrainingConfig,
    TrainingText,
    fit,
)
from probes.errors import ModelError
from probes.models.provenance import Provenance

START_METHODS = ("layers", "fresh")


def distill(  # noqa: PLR0913 (who teaches whom what, and how)
    teacher: str | Path | DerivedModel,
    *,
    texts: Path | Sequence[TrainingText],
    folder: Path,
    start: str = "layers",
    layers: int = 0,
    width: int = 0,
    labels: DistillationTargets | None = None,
    teacher_text: bool = False,
    settings: TrainingConfig | None = None,
    callback: TrainingCallback | None = None,
    progress: bool = False,
) -> DerivedModel:
    """Train a student of a teacher; a run that was stopped goes on where it was.

    Args:
        teacher: A family name, a folder, a hub id or a Relative.
        texts: A file, one text a line, or rows.
        folder: Where checkpoints go.
        start: "layers" takes every so-many-th layer of the teacher with its embeddings (Sanh et
            al. 2019, arXiv 1910.01108), "fresh" draws all weights; a name or folder goes on from
            that model.
        layers: Layers of the student; half of the teacher's by default.
        width: Its residual width, for fresh ones; the teacher's by default. Heads keep their size.
        labels: What it is taught at each token; soft labels by default.
        own_text: Whether it reads what the teacher wrote, not the texts themselves.
        dials: The optimizer's; 1,500 steps of 64 texts from seed 0 by default.
        watch: What looks on at every step.
        progress: Whether to show a bar.

    Raises:
        ModelError: Vocabularies differ, or the student cannot have such a shape.
    """
    taught, settings = (
        labels or DistillationTargets("soft"),
        settings or TrainingConfig(steps=1500, batch=64, seed=0),
    )
    full = load_parent(teacher)
    count = layers or max(1, int(full.hf_model.config.num_hidden_layers) // 2)
    student = build_student(full, start, layers=count, width=width, seed=settings.seed)
    rows = load_texts(full, texts)
    if teacher_text:
        rows = generate_continuations(full, rows, seed=settings.seed)
    hf_model = fit(
        student,
        rows,
        settings,
        folder=folder,
        pad_token=pad_token(full),
        labels=taught,
        teacher=full.hf_model if taught.needs_teacher else None,
        callback=callback,
        progress=progress,
    )
    told: Mapping[str, Any] = {
        "start": start,
        "labels": str(taught),
        "own_text": teacher_text,
        **asdict(settings),
    }
    made = Provenance("distilled", full.name, dense_storage(hf_model, bits=16), told)
    return DerivedModel(f"{full.name}-distilled", hf_model, full.tokenizer, made)


def build_student(
    teacher: DerivedModel, start: str, *, layers: int, width: int = 0, seed: int = 0
) -> nn.Module:
    """Return a student that is not trained yet; arguments as in `distill`."""
    if start == "layers":
        if width and width != int(teacher.hf_model.config.hidden_size):
            raise ModelError(
                f"A student from the teacher's layers has its width, "
                f"{teacher.hf_model.config.hidden_size}, and not {width}: start it fresh"
            )
        return take_layers(teacher.hf_model, evenly_spaced_layers(teacher, layers))
    if start == "fresh":
        return _random_init_student(teacher, layers, width, seed)
    found = load_parent(start)
    sizes = [int(one.hf_model.config.vocab_size) for one in (teacher, found)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"{teacher.name} has {sizes[0]} tokens and {found.name} {sizes[1]}: a student needs its "
            "teacher's vocabulary. Start from another model, or train on the teacher's text."
        )
    return copy.deepcopy(found.hf_model)


def evenly_spaced_layers(teacher: DerivedModel, layers: int) -> list[int]:
    """Return which layers a student takes over: the first, and others evenly spaced behind it."""
    there = int(teacher.hf_model.config.num_hidden_layers)
    if not 1 <= layers <= there:
        raise ModelError(
            f"{teacher.name} has {there} layers: a student can take 1 to {there} of them"
        )
    return [round(k * there / layers) for k in range(layers)]


def _random_init_student(teacher: DerivedModel, layers: int, width: int, seed: int) -> nn.Module:
    config: Any = copy.deepcopy(teacher.hf_model.config)
    old = int(config.hidden_size)
    width = width or old
    each = old // int(config.num_attention_heads)
    if width % each:
        raise ModelError(
            f"A student of width {width} has no whole number of heads of {each}: give a multiple"
        )
    groups = int(getattr(config, "num_key_value_heads", 0) or config.num_attention_heads)
    ratio = int(config.num_attention_heads) // groups
    config.num_hidden_layers, config.hidden_size = layers, width
    config.num_attention_heads = width // each
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = max(1, width // each // ratio)
    if getattr(config, "intermediate_size", None):
        config.intermediate_size = int(config.intermediate_size) * width // old
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind: Any = type(teacher.hf_model)
        return kind._from_config(config, attn_implementation="eager", dtype=torch.float32)


def continue_training(
    model: DerivedModel,
    settings: TrainingConfig,
    *,
    texts: Path | Sequence[TrainingText],
    folder: Path,
    progress: bool = False,
) -> DerivedModel:
    """Train a relative on, on the tokens of texts themselves; it is copied, never changed."""
    rows = load_texts(model, texts)
    hf_model = copy.deepcopy(model.hf_model)
    fit(hf_model, rows, settings, folder=folder, pad_token=pad_token(model), progress=progress)
    told = {**model.provenance.settings, **asdict(settings)}
    return replace(model, hf_model=hf_model, provenance=replace(model.provenance, settings=told))
