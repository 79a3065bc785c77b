"""Makes the embedded family, member by member, in the order that they need each other."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from probes.compression.derived_model import Relative, dense, parent
from probes.compression.distillation.layers import take_layers
from probes.compression.distillation.trainer import Row, Watch
from probes.compression.grow import grow
from probes.compression.pruning.masks import (
    Masks,
    magnitude_masks,
    masked_storage,
    masks_of,
    put_on,
    random_like,
)
from probes.errors import ModelError
from probes.experiments.family.model_card import write_card
from probes.experiments.family.recipes import EVERY, RECIPES, Recipe, recipe
from probes.experiments.family.tokenizer import train_tokenizer
from probes.experiments.family.train import fresh, train
from probes.models.provenance import Made

_TOKENIZER_SEED = 0

GROWTHS = ("identity", "stack", "wider")
"""How a member may be grown before it is trained on."""


def make_members(names: Sequence[str] = (), *, folder: Path, work: Path) -> Iterator[Path]:
    """Make members in the order they need each other; without names, the whole family."""
    _check(names)
    for entry in EVERY:
        if entry.name in names or (not names and entry in RECIPES):
            yield make_member(entry.name, folder=folder, work=work)


def make_member(name: str, *, folder: Path, work: Path, texts: Sequence[Row] = ()) -> Path:
    """Train one member and save it under `folder`, or under `work` if it is not shipped.

    Its start, its teacher and what its masks are made of are read from the same places and must be
    there. `texts` are the rows of its recipe, where they were written already.

    Raises:
        ModelError: The member is unknown, or what it is made from has not been made.
    """
    _check((name,))
    chosen = recipe(name)
    begun = begin(chosen, folder=folder, work=work)
    trained = begun.train(work / f"{name}-checkpoints", texts=texts)
    put_on(begun.masks, trained)
    # Half precision keeps a member below 4 MB; every figure in a card is of the saved weights.
    trained.half()
    target = _place(chosen, folder, work)
    made = _made(chosen, trained, begun.masks, folder, work)
    Relative(name, trained, begun.tokenizer, made).save(target)
    if chosen.shipped:
        write_card(target)
    return target


@dataclass(frozen=True, eq=False)
class Begun:
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
        texts: Sequence[Row] = (),
        watch: Watch | None = None,
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
            watch=watch,
            texts=texts,
            until=until,
        )


def begin(chosen: Recipe, *, folder: Path, work: Path) -> Begun:
    """Return a member as it is before its training.

    Raises:
        ModelError: What it is made from has not been made.
    """
    tokenizer = family_tokenizer(work)
    teacher = _load(chosen.teacher, folder, work) if chosen.teacher else None
    masks = _masks(chosen, folder, work)
    student = _start(chosen, tokenizer, folder, work)
    put_on(masks, student)
    return Begun(chosen, student, teacher, masks, tokenizer)


def _made(
    chosen: Recipe, trained: LlamaForCausalLM, masks: Masks, folder: Path, work: Path
) -> Made:
    kind, _, source = chosen.start.partition(":")
    dials: dict[str, Any] = {
        n: v for n, v in asdict(chosen).items() if n not in ("name", "shipped")
    }
    storage = masked_storage(trained, masks) if masks else dense(trained, bits=16)
    if chosen.masks:
        return Made("ticket", chosen.masks.partition(":")[2], storage, dials)
    if kind in GROWTHS:
        dials |= _grown(chosen, folder, work).made.dials
        return Made("grown", source, storage, dials)
    if chosen.teacher:
        return Made("distilled", chosen.teacher, storage, dials)
    return Made("trained", "" if chosen.start == "fresh" else chosen.start, storage, dials)


def _check(names: Sequence[str]) -> None:
    known = [entry.name for entry in EVERY]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ModelError(f"The family has no member {unknown}: it has {', '.join(known)}")


def family_tokenizer(work: Path) -> PreTrainedTokenizerFast:
    """Return the family's tokenizer, trained if it is not there."""
    home = work / "tokenizer"
    if not home.exists():
        train_tokenizer(seed=_TOKENIZER_SEED).save_pretrained(home)
    return AutoTokenizer.from_pretrained(home)


def _place(chosen: Recipe, folder: Path, work: Path) -> Path:
    return (folder if chosen.shipped else work) / chosen.name


def _load(name: str, folder: Path, work: Path) -> LlamaForCausalLM:
    place = _place(recipe(name), folder, work)
    if not place.exists():
        raise ModelError(f"Member {name!r} is not at {str(place)!r}: make it first")
    return LlamaForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation="eager")


def _start(
    chosen: Recipe, tokenizer: PreTrainedTokenizerFast, folder: Path, work: Path
) -> LlamaForCausalLM:
    kind, _, rest = chosen.start.partition(":")
    if kind == "fresh":
        return fresh(chosen, tokenizer)
    if kind == "alternate":
        teacher = _load(rest, folder, work)
        there = teacher.config.num_hidden_layers
        return take_layers(teacher, range(0, there, there // chosen.layers))
    if kind == "early":
        name, steps = rest.split(":")
        return _early(recipe(name), int(steps), folder, work)
    if kind in GROWTHS:
        return _grown(chosen, folder, work).hf_model
    return _load(chosen.start, folder, work)


def _grown(chosen: Recipe, folder: Path, work: Path) -> Relative:
    kind, _, source = chosen.start.partition(":")
    origin = parent(_place(recipe(source), folder, work))
    if kind == "wider":
        return grow(origin, kind, width=chosen.d_mlp, seed=chosen.seed)
    return grow(origin, kind, layers=chosen.layers, seed=chosen.seed)


def _early(chosen: Recipe, steps: int, folder: Path, work: Path) -> LlamaForCausalLM:
    """Return what a member was after so many steps; its training begins alike each time."""
    place = work / f"{chosen.name}-early-{steps}"
    if not (place / "config.json").is_file():
        begun = begin(chosen, folder=folder, work=work)
        early = begun.train(place.with_name(f"{place.name}-checkpoints"), until=steps)
        made = Made("trained", chosen.name, dense(early, bits=32), {"until": steps})
        Relative(place.name, early, begun.tokenizer, made).save(place)
    return parent(place).hf_model


def _masks(chosen: Recipe, folder: Path, work: Path) -> Masks:
    """Return which weights a recipe keeps; none where it keeps all."""
    if not chosen.masks:
        return {}
    how, _, name = chosen.masks.partition(":")
    source = _load(name, folder, work)
    theirs = masks_of(source)
    if how == "smallest":
        return magnitude_masks(source, 0.5, within=theirs)
    return random_like(theirs, seed=chosen.seed) if how == "like" else theirs
