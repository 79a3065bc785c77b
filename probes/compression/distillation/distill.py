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
from probes.compression.distillation.texts import (
    family_corpus,
    generate_continuations,
    read_text_file,
)
from probes.compression.distillation.trainer import (
    TrainingCallback,
    TrainingConfig,
    TrainingText,
    fit,
)
from probes.compression.pruning.lottery_ticket import iterative_pruning
from probes.compression.pruning.masks import Masks
from probes.errors import ModelError
from probes.experiments.family.recipes import ALL_RECIPES
from probes.experiments.family.train import random_init_model
from probes.files import list_models
from probes.models.provenance import Provenance

START_METHODS = ("layers", "fresh")


def distill(  # noqa: PLR0913 (who teaches whom what, and how)
    teacher: str | Path | DerivedModel,
    *,
    folder: Path,
    start: str = "layers",
    layers: int = 0,
    width: int = 0,
    labels: DistillationTargets | None = None,
    teacher_text: bool = False,
    texts: Path | Sequence[TrainingText] | None = None,
    settings: TrainingConfig | None = None,
    callback: TrainingCallback | None = None,
    progress: bool = False,
) -> DerivedModel:
    """Train a student of a teacher; a run that was stopped goes on where it was.

    Args:
        teacher: A family name, a folder, a hub id or a Relative.
        folder: Where checkpoints go.
        start: "layers" takes every so-many-th layer of the teacher with its embeddings (Sanh et
            al. 2019, arXiv 1910.01108), "fresh" draws all weights; a name or folder goes on from
            that model.
        layers: Layers of the student; half of the teacher's by default.
        width: Its residual width, for fresh ones; the teacher's by default. Heads keep their size.
        labels: What it is taught at each token; soft labels by default.
        own_text: Whether it reads what the teacher wrote, not the texts themselves.
        texts: A file, one text a line, or rows; the family's corpus by default.
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
    rows = load_texts(full, texts, settings)
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


def load_texts(
    model: DerivedModel, texts: Path | Sequence[TrainingText] | None, settings: TrainingConfig
) -> Sequence[TrainingText]:
    """Return rows to train on: those given, those of a file, or of the family's corpus."""
    if isinstance(texts, Path):
        return read_text_file(model, texts)
    return texts or family_corpus(model, count=settings.steps * settings.batch, seed=settings.seed)


def pad_token(model: DerivedModel) -> int:
    """Return the token that rows are filled up with; any does, as none is attended to."""
    found = getattr(model.tokenizer, "pad_token_id", None)
    return 0 if found is None else int(found)


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
    folder: Path,
    texts: Path | Sequence[TrainingText] | None = None,
    progress: bool = False,
) -> DerivedModel:
    """Train a relative on, on the tokens of texts themselves; it is copied, never changed."""
    rows = load_texts(model, texts, settings)
    hf_model = copy.deepcopy(model.hf_model)
    fit(hf_model, rows, settings, folder=folder, pad_token=pad_token(model), progress=progress)
    told = {**model.provenance.settings, **asdict(settings)}
    return replace(model, hf_model=hf_model, provenance=replace(model.provenance, settings=told))


def lottery_ticket(  # noqa: PLR0913 (from where to where, and how)
    model: str | Path | DerivedModel,
    early: str | Path | DerivedModel | None,
    settings: TrainingConfig,
    *,
    folder: Path,
    rounds: int = 3,
    fraction: float = 0.5,
    texts: Path | Sequence[TrainingText] | None = None,
    progress: bool = False,
) -> DerivedModel:
    """Find a winning ticket by iterative magnitude pruning with rewinding; see `tickets`.

    Args:
        model: The trained model.
        early: What it was early in training; what a member of the family started from is known.
        dials: How it is trained again, in every round.
        folder: Where the checkpoints of the rounds go.
        rounds, share: How often, and the share of the weights left to leave out each time.
        texts: As in `distill`.
        progress: Whether to show bars.

    Raises:
        ModelError: There are no early weights, or those of another model.
    """
    trained = load_parent(model)
    begun = load_parent(early) if early is not None else initial_model(trained)
    rows = load_texts(trained, texts, settings)

    def train(hf_model: Any, masks: Masks, name: str) -> nn.Module:  # noqa: ANN401
        place = folder.with_name(f"{folder.name}-{name}")
        fit(
            hf_model,
            rows,
            settings,
            folder=place,
            pad_token=pad_token(trained),
            masks=masks,
            progress=progress,
        )
        return hf_model

    *_, last = iterative_pruning(begun, trained, train, rounds=rounds, fraction=fraction)
    told = {
        **last.model.provenance.settings,
        "rounds": rounds,
        "share": fraction,
        **asdict(settings),
    }
    return replace(last.model, provenance=replace(last.model.provenance, settings=told))


def initial_model(trained: DerivedModel) -> DerivedModel:
    """Return what a member of the family was before the training that made it.

    Raises:
        ModelError: It is no member, or what it started from is not at hand.
    """
    known = [entry for entry in ALL_RECIPES if entry.name == trained.name]
    if known and known[0].start in list_models():
        return load_parent(known[0].start)
    if known and known[0].start == "fresh":
        like = random_init_model(known[0], trained.tokenizer)
        bits = dense_storage(like, bits=16)
        return DerivedModel(
            f"{trained.name}-early", like, trained.tokenizer, Provenance("trained", "", bits)
        )
    raise ModelError(
        f"{trained.name} has no early weights at hand, and a ticket goes back to them: give the "
        "model as it was early in training (--early), such as Pythia's step0"
    )
