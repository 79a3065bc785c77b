"""Lots of models that are alike but for one thing, held against one parent: one row a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from probes.compression.distillation.plan import TrainingText as Text
from probes.experiments.family.make import GROWTH_METHODS, family_tokenizer, make_member
from probes.experiments.family.recipes import (
    GROWN_RECIPES,
    LABELS_GRID,
    TICKET_RECIPES,
    TICKETS_BY_PARENT,
    Recipe,
    recipe,
)
from probes.experiments.family.train import training_rows as texts_of
from probes.experiments.new_layers import NewLayers, new_layers
from probes.experiments.scorecard import (
    ScorecardReference,
    TableRow,
    prepare_scorecard_reference,
    scorecard,
)
from probes.models.model import Model, load


@dataclass(frozen=True, slots=True)
class ModelGrid:
    """Models that are held against one parent.

    Attributes:
        parent: The name of the member that they are held against.
        made: Recipes of those that are made for the study.
        beside: Members that are measured with them, for the scale.
    """

    parent: str
    recipes: tuple[Recipe, ...]
    references: tuple[str, ...] = ()


GRIDS: Mapping[str, tuple[ModelGrid, ...]] = {
    "labels": (ModelGrid("full", LABELS_GRID, ("full-b", "distilled", "scratch")),),
    "tickets": (
        ModelGrid("full", TICKET_RECIPES, ("full-b",)),
        # Beside each parent stands the next one: a net of the same recipe and another seed.
        *(
            ModelGrid(parent, TICKETS_BY_PARENT[parent], (other,))
            for parent, other in zip(
                TICKETS_BY_PARENT, [*list(TICKETS_BY_PARENT)[1:], *TICKETS_BY_PARENT], strict=False
            )
        ),
    ),
    "growing": (ModelGrid("full", GROWN_RECIPES, ("distilled", "scratch", "full-b")),),
}
"""What each study of this kind measures."""


def grid_rows(
    name: str, *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[TableRow]:
    """Make the models of a study that are not there yet, and measure each.

    Args:
        name: Which of LOTS.
        folder: Where the shipped family is.
        work: Where the models of the study are, or go.
        known: Rows that were measured before; they are given back as they are.
    """
    done = {(row["parent"], row["model"]): dict(row) for row in known}
    for lot in GRIDS[name]:
        wanted = [recipe(one) for one in lot.references] + list(lot.recipes)
        texts = cached_texts(work)
        yard: ScorecardReference | None = None
        for entry in wanted:
            if (lot.parent, entry.name) in done:
                yield done[lot.parent, entry.name]
                continue
            # The parent of some is made for the study, too.
            yard = yard or prepare_scorecard_reference(
                ensure_member(recipe(lot.parent), folder, work, texts)
            )
            yield _scorecard_row(yard, entry, load(ensure_member(entry, folder, work, texts)))


def cached_texts(work: Path) -> Callable[[Recipe], list[Text]]:
    """Write the texts of a recipe once where the next one reads the same."""
    kept: dict[tuple, list[Text]] = {}

    def texts(entry: Recipe) -> list[Text]:
        key = (entry.seed, entry.items, entry.statements, entry.answers_only, entry.nouns)
        if key not in kept:
            kept.clear()
            kept[key] = texts_of(entry, family_tokenizer(work))
        return kept[key]

    return texts


def ensure_member(
    entry: Recipe, folder: Path, work: Path, texts: Callable[[Recipe], list[Text]]
) -> Path:
    """Return where a member is; it is made if it is not there."""
    place = (folder if entry.shipped else work) / entry.name
    if not (place / "config.json").is_file():
        make_member(entry.name, folder=folder, work=work, texts=texts(entry))
    return place


def _scorecard_row(reference: ScorecardReference, entry: Recipe, model: Model) -> TableRow:
    found = scorecard(reference, model).row()
    made = model.provenance
    told: TableRow = {
        "parent": reference.parent.name,
        "start": entry.start,
        "labels": entry.labels or ("soft" if entry.teacher else "hard"),
        "teacher": entry.teacher,
        "masks": entry.masks,
        "seed": entry.seed,
        "layers": entry.layers,
        "steps": entry.steps,
        "bits": made.storage.total if made is not None else float("nan"),
    }
    row = {"model": found.pop("model"), **told, **found}
    if entry.start.partition(":")[0] in GROWTH_METHODS and entry.layers > 2:
        row |= _new_layers_row(new_layers(model))
    return row


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
