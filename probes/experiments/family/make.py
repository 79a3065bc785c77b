"""Makes the embedded family, member by member, in the order that they need each other."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from probes.compression.derived_model import DerivedModel, dense_storage, load_parent
from probes.compression.distillation.distill import take_layers
from probes.compression.distillation.plan import TrainingText
from probes.compression.distillation.trainer import TrainingCallback
from probes.compression.grow import grow
from probes.compression.pruning.masks import (
    Masks,
    apply_masks,
    magnitude_masks,
    masked_storage,
    nonzero_masks,
    random_masks_like,
)
from probes.errors import ModelError
from probes.experiments.family.model_card import write_card
from probes.experiments.family.recipes import ALL_RECIPES, COMPARED_WITH, RECIPES, Recipe, recipe
from probes.experiments.family.tokenizer import train_tokenizer
from probes.experiments.family.train import random_init_model, train
from probes.files import list_models
from probes.models.provenance import Provenance

_TOKENIZER_SEED = 0

GROWTH_METHODS = ("identity", "stack", "wider")
"""How a member may be grown before it is trained on."""


def make_members(names: Sequence[str] = (), *, folder: Path, work: Path) -> Iterator[Path]:
    """Make members in the order they need each other; without names, the whole family."""
    _check(names)
    for entry in ALL_RECIPES:
        if entry.name in names or (not names and entry in RECIPES):
            yield make_member(entry.name, folder=folder, work=work)


def make_member(name: str, *, folder: Path, work: Path, texts: Sequence[TrainingText] = ()) -> Path:
    """Train one member and save it under `folder`, or under `work` if it is not shipped.

    Its start, its teacher and what its masks are made of are read from the same places and must be
    there. `texts` are the rows of its recipe, where they were written already.

    Raises:
        ModelError: The member is unknown, or what it is made from has not been made.
    """
    _check((name,))
    chosen = recipe(name)
    begun = initialize_member(chosen, folder=folder, work=work)
    trained = begun.train(work / f"{name}-checkpoints", texts=texts)
    apply_masks(begun.masks, trained)
    # Half precision keeps a member below 4 MB; every figure in a card is of the saved weights.
    trained.half()
    target = _member_folder(chosen, folder, work)
    made = _provenance(chosen, trained, begun.masks, folder, work)
    DerivedModel(name, trained, begun.tokenizer, made).save(target)
    if chosen.shipped:
        write_card(target)
    return target


@dataclass(frozen=True, eq=False)
class InitializedMember:
    """A member before its training.

    Attributes:
        recipe: How it is trained.
        student: What is trained, in place; weights that stay zero are zero already.
        teacher: Whose labels it learns; None for the texts' own.
        masks: Which weights it keeps; empty for all.
        tokenizer: The family's.
    """

    recipe: Recipe
    student: LlamaForCausalLM
    teacher: LlamaForCausalLM | None
    masks: Masks
    tokenizer: PreTrainedTokenizerFast

    def train(
        self,
        checkpoints: Path,
        *,
        texts: Sequence[TrainingText] = (),
        callback: TrainingCallback | None = None,
        until: int = 0,
    ) -> LlamaForCausalLM:
        """Train it by its recipe; see `training.train`."""
        return train(
            self.recipe,
            self.student,
            self.tokenizer,
            folder=checkpoints,
            teacher=self.teacher,
            masks=self.masks,
            callback=callback,
            texts=texts,
            until=until,
        )


def initialize_member(chosen: Recipe, *, folder: Path, work: Path) -> InitializedMember:
    """Return a member as it is before its training.

    Raises:
        ModelError: What it is made from has not been made.
    """
    tokenizer = family_tokenizer(work)
    teacher = _load(chosen.teacher, folder, work) if chosen.teacher else None
    masks = _masks(chosen, folder, work)
    student = _initial_model(chosen, tokenizer, folder, work)
    apply_masks(masks, student)
    return InitializedMember(chosen, student, teacher, masks, tokenizer)


def _provenance(
    chosen: Recipe, trained: LlamaForCausalLM, masks: Masks, folder: Path, work: Path
) -> Provenance:
    made = _how_made(chosen, trained, masks, folder, work)
    return replace(made, **COMPARED_WITH.get(chosen.name, {}))


def _how_made(
    chosen: Recipe, trained: LlamaForCausalLM, masks: Masks, folder: Path, work: Path
) -> Provenance:
    kind, _, source = chosen.start.partition(":")
    settings: dict[str, Any] = {
        n: v for n, v in asdict(chosen).items() if n not in ("name", "shipped")
    }
    storage = masked_storage(trained, masks) if masks else dense_storage(trained, bits=16)
    if chosen.masks:
        return Provenance("ticket", chosen.masks.partition(":")[2], storage, settings)
    if kind in GROWTH_METHODS:
        settings |= _grow_member(chosen, folder, work).provenance.settings
        return Provenance("grown", source, storage, settings)
    if chosen.teacher:
        return Provenance("distilled", chosen.teacher, storage, settings)
    return Provenance("trained", "" if chosen.start == "fresh" else chosen.start, storage, settings)


def _check(names: Sequence[str]) -> None:
    known = [entry.name for entry in ALL_RECIPES]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ModelError(
            f"The family has no member {unknown[0]!r}: choose from {', '.join(known[:20])}, …"
        )


def family_tokenizer(work: Path) -> PreTrainedTokenizerFast:
    """Return the family's tokenizer, trained if it is not there."""
    home = work / "tokenizer"
    if not home.exists():
        train_tokenizer(seed=_TOKENIZER_SEED).save_pretrained(home)
    return AutoTokenizer.from_pretrained(home)


def _member_folder(chosen: Recipe, folder: Path, work: Path) -> Path:
    return (folder if chosen.shipped else work) / chosen.name


def _load(name: str, folder: Path, work: Path) -> LlamaForCausalLM:
    place = _member_folder(recipe(name), folder, work)
    if not place.exists():
        raise ModelError(f"Member {name!r} is not at {str(place)!r}: make it first")
    return LlamaForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation="eager")


def _initial_model(
    chosen: Recipe, tokenizer: PreTrainedTokenizerFast, folder: Path, work: Path
) -> LlamaForCausalLM:
    kind, _, rest = chosen.start.partition(":")
    if kind == "fresh":
        return random_init_model(chosen, tokenizer)
    if kind == "alternate":
        teacher = _load(rest, folder, work)
        there = teacher.config.num_hidden_layers
        return take_layers(teacher, range(0, there, there // chosen.layers))
    if kind == "early":
        name, steps = rest.split(":")
        return _early_model(recipe(name), int(steps), folder, work)
    if kind in GROWTH_METHODS:
        return _grow_member(chosen, folder, work).hf_model
    return _load(chosen.start, folder, work)


def _grow_member(chosen: Recipe, folder: Path, work: Path) -> DerivedModel:
    kind, _, source = chosen.start.partition(":")
    origin = load_parent(_member_folder(recipe(source), folder, work))
    size = chosen.d_mlp if kind == "wider" else chosen.layers
    return grow(origin, kind, size, seed=chosen.seed)


def pretraining_model(trained: DerivedModel) -> DerivedModel:
    """Return the weights of a member before its last training: its shipped start, or fresh ones.

    Raises:
        ModelError: It is not a member, or its start is not shipped.
    """
    known = next((entry for entry in ALL_RECIPES if entry.name == trained.name), None)
    if known and known.start in list_models():
        return load_parent(known.start)
    if known and known.start == "fresh":
        fresh = random_init_model(known, trained.tokenizer)
        made = Provenance("trained", "", dense_storage(fresh, bits=16))
        return DerivedModel(f"{trained.name}-early", fresh, trained.tokenizer, made)
    raise ModelError(
        f"{trained.name} has no early weights at hand, and a lottery ticket needs them: give the "
        "model as it was early in training (--early), such as Pythia's step0"
    )


def _early_model(chosen: Recipe, steps: int, folder: Path, work: Path) -> LlamaForCausalLM:
    """Return what a member was after so many steps; its training begins alike each time."""
    place = work / f"{chosen.name}-early-{steps}"
    if not (place / "config.json").is_file():
        begun = initialize_member(chosen, folder=folder, work=work)
        early = begun.train(place.with_name(f"{place.name}-checkpoints"), until=steps)
        made = Provenance("trained", chosen.name, dense_storage(early, bits=32), {"until": steps})
        DerivedModel(place.name, early, begun.tokenizer, made).save(place)
    return load_parent(place).hf_model


def _masks(chosen: Recipe, folder: Path, work: Path) -> Masks:
    """Return which weights a recipe keeps; none where it keeps all."""
    if not chosen.masks:
        return {}
    how, _, name = chosen.masks.partition(":")
    source = _load(name, folder, work)
    theirs = nonzero_masks(source)
    if how == "smallest":
        return magnitude_masks(source, 0.5, within=theirs)
    return random_masks_like(theirs, seed=chosen.seed) if how == "like" else theirs
