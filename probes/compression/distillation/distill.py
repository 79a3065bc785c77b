"""Distils: a smaller model is taught what a larger one says."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probes.compression.derived_model import Relative, dense, parent
from probes.compression.distillation.layers import take_layers
from probes.compression.distillation.targets import Labels
from probes.compression.distillation.texts import corpus, lines, retold
from probes.compression.distillation.trainer import Row, Training, Watch, fit
from probes.compression.pruning.lottery_ticket import tickets
from probes.compression.pruning.masks import Masks
from probes.errors import ModelError
from probes.experiments.family.recipes import EVERY
from probes.experiments.family.train import fresh
from probes.files import family_members
from probes.models.provenance import Made

STARTS = ("layers", "fresh")


def distil(  # noqa: PLR0913 (who teaches whom what, and how)
    teacher: str | Path | Relative,
    *,
    folder: Path,
    start: str = "layers",
    layers: int = 0,
    width: int = 0,
    labels: Labels | None = None,
    own_text: bool = False,
    texts: Path | Sequence[Row] | None = None,
    dials: Training | None = None,
    watch: Watch | None = None,
    progress: bool = False,
) -> Relative:
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
        dials: The optimiser's; 1,500 steps of 64 texts from seed 0 by default.
        watch: What looks on at every step.
        progress: Whether to show a bar.

    Raises:
        ModelError: Vocabularies differ, or the student cannot have such a shape.
    """
    taught, dials = labels or Labels("soft"), dials or Training(steps=1500, batch=64, seed=0)
    full = parent(teacher)
    count = layers or max(1, int(full.hf_model.config.num_hidden_layers) // 2)
    student = student_of(full, start, layers=count, width=width, seed=dials.seed)
    rows = read_texts(full, texts, dials)
    if own_text:
        rows = retold(full, rows, seed=dials.seed)
    hf_model = fit(
        student,
        rows,
        dials,
        folder=folder,
        pad=pad_of(full),
        labels=taught,
        teacher=full.hf_model if taught.taught else None,
        watch=watch,
        progress=progress,
    )
    told: Mapping[str, Any] = {
        "start": start,
        "labels": str(taught),
        "own_text": own_text,
        **asdict(dials),
    }
    made = Made("distilled", full.name, dense(hf_model, bits=16), told)
    return Relative(f"{full.name}-distilled", hf_model, full.tokenizer, made)


def read_texts(
    reader: Relative, texts: Path | Sequence[Row] | None, dials: Training
) -> Sequence[Row]:
    """Return rows to train on: those given, those of a file, or of the family's corpus."""
    if isinstance(texts, Path):
        return lines(reader, texts)
    return texts or corpus(reader, count=dials.steps * dials.batch, seed=dials.seed)


def pad_of(reader: Relative) -> int:
    """Return the token that rows are filled up with; any does, as none is attended to."""
    found = getattr(reader.tokenizer, "pad_token_id", None)
    return 0 if found is None else int(found)


def student_of(
    full: Relative, start: str, *, layers: int, width: int = 0, seed: int = 0
) -> nn.Module:
    """Return a student that is not trained yet; arguments as in `distil`."""
    if start == "layers":
        if width and width != int(full.hf_model.config.hidden_size):
            raise ModelError(
                f"A student from the teacher's layers has its width, "
                f"{full.hf_model.config.hidden_size}, and not {width}: start it fresh"
            )
        return take_layers(full.hf_model, spaced(full, layers))
    if start == "fresh":
        return _fresh(full, layers, width, seed)
    found = parent(start)
    sizes = [int(one.hf_model.config.vocab_size) for one in (full, found)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"{full.name} has {sizes[0]} tokens and {found.name} {sizes[1]}: a student needs its "
            "teacher's vocabulary. Start from another model, or train on the teacher's text."
        )
    return copy.deepcopy(found.hf_model)


def spaced(full: Relative, layers: int) -> list[int]:
    """Return which layers a student takes over: the first, and others evenly spaced behind it."""
    there = int(full.hf_model.config.num_hidden_layers)
    if not 1 <= layers <= there:
        raise ModelError(f"{full.name} has {there} layers: a student can take 1 to {there} of them")
    return [round(k * there / layers) for k in range(layers)]


def _fresh(full: Relative, layers: int, width: int, seed: int) -> nn.Module:
    config: Any = copy.deepcopy(full.hf_model.config)
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
        kind: Any = type(full.hf_model)
        return kind._from_config(config, attn_implementation="eager", dtype=torch.float32)


def trained_on(
    relative: Relative,
    dials: Training,
    *,
    folder: Path,
    texts: Path | Sequence[Row] | None = None,
    progress: bool = False,
) -> Relative:
    """Train a relative on, on the tokens of texts themselves; it is copied, never changed."""
    rows = read_texts(relative, texts, dials)
    hf_model = copy.deepcopy(relative.hf_model)
    fit(hf_model, rows, dials, folder=folder, pad=pad_of(relative), progress=progress)
    told = {**relative.made.dials, **asdict(dials)}
    return replace(relative, hf_model=hf_model, made=replace(relative.made, dials=told))


def find_ticket(  # noqa: PLR0913 (from where to where, and how)
    model: str | Path | Relative,
    early: str | Path | Relative | None,
    dials: Training,
    *,
    folder: Path,
    rounds: int = 3,
    share: float = 0.5,
    texts: Path | Sequence[Row] | None = None,
    progress: bool = False,
) -> Relative:
    """Find a winning ticket by iterative magnitude pruning with rewinding; see `tickets`.

    Args:
        model: The trained model.
        early: What it was early in training; what a member of the family started from is known.
        dials: How it is trained again, in every round.
        folder: Where the checkpoints of the rounds go.
        rounds, share: How often, and the share of the weights left to leave out each time.
        texts: As in `distil`.
        progress: Whether to show bars.

    Raises:
        ModelError: There are no early weights, or those of another model.
    """
    trained = parent(model)
    begun = parent(early) if early is not None else began(trained)
    rows = read_texts(trained, texts, dials)

    def train(hf_model: Any, masks: Masks, name: str) -> nn.Module:  # noqa: ANN401
        place = folder.with_name(f"{folder.name}-{name}")
        fit(
            hf_model,
            rows,
            dials,
            folder=place,
            pad=pad_of(trained),
            masks=masks,
            progress=progress,
        )
        return hf_model

    *_, last = tickets(begun, trained, train, rounds=rounds, share=share)
    told = {**last.relative.made.dials, "rounds": rounds, "share": share, **asdict(dials)}
    return replace(last.relative, made=replace(last.relative.made, dials=told))


def began(trained: Relative) -> Relative:
    """Return what a member of the family was before the training that made it.

    Raises:
        ModelError: It is no member, or what it started from is not at hand.
    """
    known = [entry for entry in EVERY if entry.name == trained.name]
    if known and known[0].start in family_members():
        return parent(known[0].start)
    if known and known[0].start == "fresh":
        like = fresh(known[0], trained.tokenizer)
        bits = dense(like, bits=16)
        return Relative(f"{trained.name}-early", like, trained.tokenizer, Made("trained", "", bits))
    raise ModelError(
        f"{trained.name} has no early weights at hand, and a ticket goes back to them: give the "
        "model as it was early in training (--early), such as Pythia's step0"
    )
