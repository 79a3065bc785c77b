"""Grids of models that differ in one factor: each is compared with one parent, one row a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from probes.circuits.result import RandomBaseline
from probes.compression.distillation.plan import TrainingText
from probes.experiments.family.make import (
    GROWTH_METHODS,
    family_tokenizer,
    make_member,
    make_once,
)
from probes.experiments.family.recipes import (
    ALL_RECIPES,
    GROWN_RECIPES,
    LABELS_GRID,
    TICKET_RECIPES,
    TICKETS_BY_PARENT,
    Recipe,
    recipe,
)
from probes.experiments.family.train import training_rows
from probes.experiments.new_layers import NewLayers, new_layers
from probes.experiments.random_paths import random_path_faithfulness
from probes.experiments.scorecard import (
    ScorecardReference,
    prepare_scorecard_reference,
    scorecard,
)
from probes.experiments.studies.parts import Part, run_parts
from probes.files import TableRow
from probes.models.model import Model, load
from probes.scale.engine import HERE, Engine


@dataclass(frozen=True, slots=True)
class ModelGrid:
    """Models that are compared with one parent.

    Attributes:
        parent: Name of the parent.
        recipes: Recipes of the models of the study.
        references: Names of other models that are measured for scale.
    """

    parent: str
    recipes: tuple[Recipe, ...]
    references: tuple[str, ...] = ()


GRIDS: Mapping[str, tuple[ModelGrid, ...]] = {
    "labels": (ModelGrid("full", LABELS_GRID, ("full-b", "distilled", "scratch")),),
    "tickets": (
        ModelGrid("full", TICKET_RECIPES, ("full-b",)),
        # The reference of each parent is the next parent: the other-seed model.
        *(
            ModelGrid(parent, TICKETS_BY_PARENT[parent], (other,))
            for parent, other in zip(
                TICKETS_BY_PARENT, [*list(TICKETS_BY_PARENT)[1:], *TICKETS_BY_PARENT], strict=False
            )
        ),
    ),
    "growing": (ModelGrid("full", GROWN_RECIPES, ("distilled", "scratch", "full-b")),),
}
"""Grids by study."""


@dataclass(frozen=True)
class StudyFolders:
    """Folders of a study, as an argument of its units.

    Attributes:
        folder: Folder of the shipped models.
        work: Folder of the study's models.
    """

    folder: Path
    work: Path

    @cached_property
    def texts(self) -> Callable[[Recipe], list[TrainingText]]:
        """Training texts of a recipe; kept for the next recipe with the same texts."""
        return cached_texts(self.work)

    def ensure(self, entry: Recipe) -> Path:
        """Folder of a model, which is trained if it is missing, as are those that it needs."""

        def make() -> None:
            for name in _needed(entry):
                self.ensure(recipe(name))
            texts = self.texts(entry)
            make_member(entry, folder=self.folder, work=self.work, texts=texts)

        return make_once((self.folder if entry.shipped else self.work) / entry.name, make)


@dataclass(frozen=True)
class GridParent:
    """Parent of a grid, as an argument of its units.

    Attributes:
        name: Its name.
        folders: Where it is; some parents are trained for the study, too.
    """

    name: str
    folders: StudyFolders

    @cached_property
    def reference(self) -> ScorecardReference:
        """Its runs, made at first use."""
        return prepare_scorecard_reference(self.folders.ensure(recipe(self.name)))


def grid_rows(
    name: str,
    *,
    folder: Path,
    work: Path,
    known: Sequence[Mapping[str, float | str]] = (),
    engine: Engine = HERE,
) -> Iterator[TableRow]:
    """Scorecards of the models of a study; missing models are trained.

    Args:
        name: One of `GRIDS`.
        folder: Folder of the shipped models.
        work: Folder of the study's models.
        known: Rows that are not measured again.
        engine: Where models are trained and measured, one a unit.
    """
    done = {(row["parent"], row["model"]): dict(row) for row in known}
    folders, parts = StudyFolders(folder, work), []
    for grid in GRIDS[name]:
        parent = GridParent(grid.parent, folders)
        for entry in (*map(recipe, grid.references), *grid.recipes):
            row = done.get((grid.parent, entry.name))
            measure = partial(_measure_member, parent, entry)
            parts.append(Part(entry.name, known=[row]) if row else Part(entry.name, measure))
    return run_parts(parts, engine)


def _measure_member(parent: GridParent, entry: Recipe) -> list[TableRow]:
    """Train a model if it is missing, and measure it."""
    model = load(parent.folders.ensure(entry))
    return [_scorecard_row(parent.reference, entry, model)]


def _needed(entry: Recipe) -> list[str]:
    """Models of the study that a recipe begins with, learns from, or has its masks from."""
    own = {one.name for one in ALL_RECIPES if not one.shipped}
    parts = (*entry.start.split(":"), *entry.masks.split(":"), entry.teacher)
    return [name for name in dict.fromkeys(parts) if name in own]


def cached_texts(work: Path) -> Callable[[Recipe], list[TrainingText]]:
    """Training texts of a recipe; kept for the next recipe with the same texts."""
    kept: dict[tuple, list[TrainingText]] = {}

    def texts(entry: Recipe) -> list[TrainingText]:
        sampled = (entry.seed, entry.items, entry.statements, entry.task, entry.nouns)
        key = (*sampled, entry.answers_only)
        if key not in kept:
            kept.clear()
            kept[key] = training_rows(entry, family_tokenizer(work))
        return kept[key]

    return texts


def _scorecard_row(reference: ScorecardReference, entry: Recipe, model: Model) -> TableRow:
    numbers = scorecard(reference, model).row()
    if numbers["circuit_faithfulness"] == numbers["circuit_faithfulness"]:  # Of the same shape.
        numbers |= _random_paths_row(random_path_faithfulness(reference, model))
    provenance = model.provenance
    row: TableRow = {
        "model": numbers.pop("model"),
        "parent": reference.parent.name,
        "start": entry.start,
        "labels": entry.labels or ("soft" if entry.teacher else "hard"),
        "teacher": entry.teacher,
        "masks": entry.masks,
        "seed": entry.seed,
        "layers": entry.layers,
        "steps": entry.steps,
        "bits": provenance.storage.total if provenance is not None else float("nan"),
        **numbers,
    }
    if entry.start.partition(":")[0] in GROWTH_METHODS and entry.layers > 2:
        row |= _new_layers_row(new_layers(model))
    return row


def _random_paths_row(result: RandomBaseline) -> TableRow:
    return {
        "random_paths": float(len(result.values)),
        "random_paths_median": float(np.median(result.values)),
        "random_paths_high": float(np.quantile(result.values, 0.95)),
        "above_random_paths": result.percentile,
    }


def _new_layers_row(result: NewLayers) -> TableRow:
    return {
        "without_new": result.accuracy_without_new.value,
        "need_new": result.accuracy_drop.value,
        "need_new_low": result.accuracy_drop.low,
        "need_new_high": result.accuracy_drop.high,
        "need_old": result.accuracy_drop_old.value,
        "circuit_edges": float(result.edges),
        "circuit_new": result.edges_new_fraction,
        "all_new": result.all_new_fraction,
    }
