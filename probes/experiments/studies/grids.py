"""Grids of models that differ in one factor: each is compared with one parent, one row a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes.circuits.result import RandomBaseline
from probes.compression.distillation.plan import TrainingText
from probes.experiments.family.make import GROWTH_METHODS, family_tokenizer, make_member
from probes.experiments.family.recipes import (
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
from probes.files import TableRow
from probes.models.model import Model, load


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


def grid_rows(
    name: str, *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[TableRow]:
    """Scorecards of the models of a study; missing models are trained.

    Args:
        name: One of `GRIDS`.
        folder: Folder of the shipped models.
        work: Folder of the study's models.
        known: Rows that are not measured again.
    """
    done = {(row["parent"], row["model"]): dict(row) for row in known}
    for grid in GRIDS[name]:
        texts = cached_texts(work)
        reference: ScorecardReference | None = None
        for entry in (*map(recipe, grid.references), *grid.recipes):
            if (grid.parent, entry.name) in done:
                yield done[grid.parent, entry.name]
                continue
            # Some parents are trained for the study, too.
            reference = reference or prepare_scorecard_reference(
                ensure_member(recipe(grid.parent), folder, work, texts)
            )
            yield _scorecard_row(reference, entry, load(ensure_member(entry, folder, work, texts)))


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


def ensure_member(
    entry: Recipe, folder: Path, work: Path, texts: Callable[[Recipe], list[TrainingText]]
) -> Path:
    """Folder of a model, which is trained if it is missing."""
    path = (folder if entry.shipped else work) / entry.name
    if not (path / "config.json").is_file():
        make_member(entry.name, folder=folder, work=work, texts=texts(entry))
    return path


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
