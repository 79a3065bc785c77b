"""Training of the shipped models, in the order in which they need each other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from probes.compression.derived_model import DerivedModel, dense_storage, load_parent
from probes.compression.distillation.distill import take_layers
from probes.compression.distillation.plan import TrainingPlan, TrainingText
from probes.compression.distillation.targets import parse_labels
from probes.compression.distillation.trainer import TrainingCallback, fit
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
from probes.experiments.family.tokenizer import PAD, train_tokenizer
from probes.experiments.family.train import random_init_model, training_config, training_rows
from probes.files import list_models
from probes.models.files.provenance import Provenance
from probes.prompts.held_out import HELD_OUT_AXES

_TOKENIZER_SEED = 0

GROWTH_METHODS = ("identity", "stack", "wider")
"""Methods of growth, as in `Recipe.start`."""


def make_members(names: Sequence[str] = (), *, folder: Path, work: Path) -> Iterator[Path]:
    """Train models in the order in which they need each other; by default all shipped ones.

    Raises:
        ModelError: A name is unknown.
    """
    for name in names:
        recipe(name)
    for entry in ALL_RECIPES:
        if entry.name in names or (not names and entry in RECIPES):
            yield make_member(entry.name, folder=folder, work=work)


def make_member(
    member: str | Recipe, *, folder: Path, work: Path, texts: Sequence[TrainingText] = ()
) -> Path:
    """Train one model and save it in `folder`, or in `work` if it is not shipped.

    Args:
        member: A recipe, or its name.
        folder, work: Folders of the models that it starts from, its teacher, and its masks.
        texts: Training texts of its recipe, if they are at hand.

    Raises:
        ModelError: The name is unknown, or a model that it needs is missing.
    """
    chosen = recipe(member) if isinstance(member, str) else member
    initial = initialize_member(chosen, folder=folder, work=work)
    trained = initial.train(work / f"{chosen.name}-checkpoints", texts=texts)
    apply_masks(initial.masks, trained)
    # Half precision keeps a model below 4 MB; the numbers of a card are of the saved weights.
    trained.half()
    target = _member_folder(chosen, folder, work)
    provenance = _provenance(chosen, trained, initial.masks, folder, work)
    DerivedModel(chosen.name, trained, initial.tokenizer, provenance).save(target)
    if chosen.shipped:
        write_card(target)
    return target


@dataclass(frozen=True, eq=False)
class InitializedMember:
    """Model before its training.

    Attributes:
        recipe: Recipe.
        student: Initial model, trained in place; masked weights are zero.
        teacher: Teacher, or None for hard labels.
        masks: Weights that are kept; empty for all.
        tokenizer: Tokenizer.
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
        """Train the student in place, with checkpoints in a folder.

        Args:
            checkpoints: Folder from whose last checkpoint training resumes.
            texts: Training texts of the recipe, if they are at hand.
            callback: Called at step 0 and after every step.
            until: Number of steps after which training stops; 0 for all.
        """
        chosen = self.recipe
        kind = chosen.labels or ("soft" if self.teacher is not None else "hard")
        plan = TrainingPlan(
            texts or training_rows(chosen, self.tokenizer),
            replace(training_config(chosen), stop_after=until),
            PAD,
            parse_labels(kind, temperature=chosen.temperature),
            self.teacher,
            self.masks,
        )
        fit(self.student, plan, folder=checkpoints, callback=callback, progress=True)
        return self.student


def initialize_member(chosen: Recipe, *, folder: Path, work: Path) -> InitializedMember:
    """Model of a recipe before its training.

    Raises:
        ModelError: A model that it needs is missing.
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
    return replace(made, held_out=HELD_OUT_AXES, **COMPARED_WITH.get(chosen.name, {}))


def _how_made(
    chosen: Recipe, trained: LlamaForCausalLM, masks: Masks, folder: Path, work: Path
) -> Provenance:
    method, _, source = chosen.start.partition(":")
    settings: dict[str, Any] = {
        n: v for n, v in asdict(chosen).items() if n not in ("name", "shipped")
    }
    storage = masked_storage(trained, masks) if masks else dense_storage(trained, bits=16)
    if chosen.masks:
        kind, parent = "ticket", chosen.masks.partition(":")[2]
    elif method in GROWTH_METHODS:
        kind, parent = "grown", source
        settings |= _grow_member(chosen, folder, work).provenance.settings
    elif chosen.teacher:
        kind, parent = "distilled", chosen.teacher
    else:
        kind, parent = "trained", "" if chosen.start == "fresh" else chosen.start
    return Provenance(kind, parent, storage, settings)


def family_tokenizer(work: Path) -> PreTrainedTokenizerFast:
    """Tokenizer of the shipped models; it is trained if it is missing."""

    def make() -> None:
        train_tokenizer(seed=_TOKENIZER_SEED).save_pretrained(draft)
        draft.rename(path)

    path, draft = work / "tokenizer", work / "tokenizer-draft"
    return AutoTokenizer.from_pretrained(make_once(path, make))


def make_once(path: Path, make: Callable[[], object]) -> Path:
    """Make the folder of a model or tokenizer if it is missing; other processes wait for it."""
    if not _is_made(path):
        with lock_folder(path):
            if not _is_made(path):
                make()
    return path


def lock_folder(path: Path) -> FileLock:
    """Lock, for a `with`, of a folder that is being made; it ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"), thread_local=False)


def _is_made(path: Path) -> bool:
    return any((path / name).is_file() for name in ("config.json", "tokenizer_config.json"))


def _member_folder(chosen: Recipe, folder: Path, work: Path) -> Path:
    return (folder if chosen.shipped else work) / chosen.name


def _load(name: str, folder: Path, work: Path) -> LlamaForCausalLM:
    path = _member_folder(recipe(name), folder, work)
    if not path.exists():
        raise ModelError(f"Model {name!r} is not at {str(path)!r}: make it first")
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


def _initial_model(
    chosen: Recipe, tokenizer: PreTrainedTokenizerFast, folder: Path, work: Path
) -> LlamaForCausalLM:
    kind, _, rest = chosen.start.partition(":")
    if kind == "fresh":
        return random_init_model(chosen, tokenizer)
    if kind == "alternate":
        teacher = _load(rest, folder, work)
        layers = teacher.config.num_hidden_layers
        return take_layers(teacher, range(0, layers, layers // chosen.layers))
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
    """Weights of a shipped model before its last training: a shipped model, or random-init.

    Raises:
        ModelError: It is no shipped model, or its start is not shipped.
    """
    known = next((entry for entry in ALL_RECIPES if entry.name == trained.name), None)
    if known and known.start in list_models():
        return load_parent(known.start)
    if known and known.start == "fresh":
        initial = random_init_model(known, trained.tokenizer)
        provenance = Provenance("trained", "", dense_storage(initial, bits=16))
        return DerivedModel(f"{trained.name}-early", initial, trained.tokenizer, provenance)
    raise ModelError(
        f"{trained.name} has no known early weights, and a lottery ticket needs them: give the "
        "model early in its training (--early), such as Pythia's step0"
    )


def _early_model(chosen: Recipe, steps: int, folder: Path, work: Path) -> LlamaForCausalLM:
    """Model of a recipe after some steps; training is deterministic."""

    def make() -> None:
        initial = initialize_member(chosen, folder=folder, work=work)
        early = initial.train(path.with_name(f"{path.name}-checkpoints"), until=steps)
        storage = dense_storage(early, bits=16)
        provenance = Provenance("trained", chosen.name, storage, {"until": steps})
        DerivedModel(path.name, early, initial.tokenizer, provenance).save(path)

    path = work / f"{chosen.name}-early-{steps}"
    return load_parent(make_once(path, make)).hf_model


def _masks(chosen: Recipe, folder: Path, work: Path) -> Masks:
    """Weights that a recipe keeps; empty for all."""
    if not chosen.masks:
        return {}
    method, _, name = chosen.masks.partition(":")
    source = _load(name, folder, work)
    masks = nonzero_masks(source)
    if method == "smallest":
        return magnitude_masks(source, 0.5, within=masks)
    return random_masks_like(masks, seed=chosen.seed) if method == "like" else masks
