"""Makes the embedded family, member by member, in the order that they need each other."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from probes.errors import ModelError
from probes.family.card import write_card
from probes.family.recipes import RECIPES, SERIES, Recipe, recipe
from probes.family.tokenizer import train_tokenizer
from probes.family.training import alternate_layers, fresh, train

_TOKENIZER_SEED = 0


def make_members(names: Sequence[str] = (), *, folder: Path, work: Path) -> Iterator[Path]:
    """Make members in the order they need each other; without names, the whole family."""
    _check(names)
    for entry in (*RECIPES, *SERIES):
        if entry.name in names or (not names and entry in RECIPES):
            yield make_member(entry.name, folder=folder, work=work)


def make_member(name: str, *, folder: Path, work: Path) -> Path:
    """Train one member and save it under `folder`, or under `work` if it is not shipped.

    Its start and its teacher are read from the same places and must be there.

    Raises:
        ModelError: The member is unknown, or what it starts from has not been made.
    """
    _check((name,))
    chosen = recipe(name)
    tokenizer = _tokenizer(work)
    teacher = _load(chosen.teacher, folder, work) if chosen.teacher else None
    student = _start(chosen, tokenizer, folder, work)
    trained = train(
        chosen, student, tokenizer, folder=work / f"{name}-checkpoints", teacher=teacher
    )
    target = _place(chosen, folder, work)
    # Half precision keeps a member below 4 MB; every figure in a card is of the saved weights.
    trained.half().save_pretrained(target)
    tokenizer.save_pretrained(target)
    if chosen.shipped:
        write_card(target)
    return target


def _check(names: Sequence[str]) -> None:
    known = [entry.name for entry in (*RECIPES, *SERIES)]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ModelError(f"The family has no member {unknown}: it has {', '.join(known)}")


def _tokenizer(work: Path) -> PreTrainedTokenizerFast:
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
    if chosen.start == "fresh":
        return fresh(chosen, tokenizer)
    if chosen.start.startswith("alternate:"):
        return alternate_layers(_load(chosen.start.split(":")[1], folder, work), chosen.layers)
    return _load(chosen.start, folder, work)
