"""Lots of models that are alike but for one thing, held against one parent: one row a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from probes.compression.distillation.trainer import Row as Text
from probes.experiments.family.make import GROWTHS, family_tokenizer, make_member
from probes.experiments.family.recipes import CROSSED, GROWN, SQUARE, TICKETS, Recipe, recipe
from probes.experiments.family.train import rows as texts_of
from probes.experiments.new_layers import NewLayers, new_layers
from probes.experiments.scorecard import Row, Yardstick, standing, yardstick
from probes.models.model import Model, load


@dataclass(frozen=True, slots=True)
class Lot:
    """Models that are held against one parent.

    Attributes:
        parent: The name of the member that they are held against.
        made: Recipes of those that are made for the study.
        beside: Members that are measured with them, for the scale.
    """

    parent: str
    made: tuple[Recipe, ...]
    beside: tuple[str, ...] = ()


LOTS: Mapping[str, tuple[Lot, ...]] = {
    "labels": (Lot("full", SQUARE, ("full-b", "distilled", "scratch")),),
    "tickets": (
        Lot("full", TICKETS, ("full-b",)),
        # Beside each parent stands the next one: a net of the same recipe and another seed.
        *(
            Lot(parent, CROSSED[parent], (other,))
            for parent, other in zip(CROSSED, [*list(CROSSED)[1:], *CROSSED], strict=False)
        ),
    ),
    "growing": (Lot("full", GROWN, ("distilled", "scratch", "full-b")),),
}
"""What each study of this kind measures."""


def lot_rows(
    name: str, *, folder: Path, work: Path, known: Sequence[Mapping[str, float | str]] = ()
) -> Iterator[Row]:
    """Make the models of a study that are not there yet, and measure each.

    Args:
        name: Which of LOTS.
        folder: Where the shipped family is.
        work: Where the models of the study are, or go.
        known: Rows that were measured before; they are given back as they are.
    """
    done = {(row["parent"], row["model"]): dict(row) for row in known}
    for lot in LOTS[name]:
        wanted = [recipe(one) for one in lot.beside] + list(lot.made)
        texts = kept_texts(work)
        yard: Yardstick | None = None
        for entry in wanted:
            if (lot.parent, entry.name) in done:
                yield done[lot.parent, entry.name]
                continue
            # The parent of some is made for the study, too.
            yard = yard or yardstick(member_at(recipe(lot.parent), folder, work, texts))
            yield _row(yard, entry, load(member_at(entry, folder, work, texts)))


def kept_texts(work: Path) -> Callable[[Recipe], list[Text]]:
    """Write the texts of a recipe once where the next one reads the same."""
    kept: dict[tuple, list[Text]] = {}

    def texts(entry: Recipe) -> list[Text]:
        key = (entry.seed, entry.items, entry.statements, entry.answers_only, entry.nouns)
        if key not in kept:
            kept.clear()
            kept[key] = texts_of(entry, family_tokenizer(work))
        return kept[key]

    return texts


def member_at(
    entry: Recipe, folder: Path, work: Path, texts: Callable[[Recipe], list[Text]]
) -> Path:
    """Return where a member is; it is made if it is not there."""
    place = (folder if entry.shipped else work) / entry.name
    if not (place / "config.json").is_file():
        make_member(entry.name, folder=folder, work=work, texts=texts(entry))
    return place


def _row(yard: Yardstick, entry: Recipe, model: Model) -> Row:
    found = standing(yard, model).row()
    made = model.made
    told: Row = {
        "parent": yard.parent.name,
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
    if entry.start.partition(":")[0] in GROWTHS and entry.layers > 2:
        row |= _grown(new_layers(model))
    return row


def _grown(found: NewLayers) -> Row:
    return {
        "without_new": found.without.value,
        "need_new": found.need.value,
        "need_new_low": found.need.low,
        "need_new_high": found.need.high,
        "need_old": found.old.value,
        "circuit_edges": float(found.edges),
        "circuit_new": found.touching,
        "all_new": found.expected,
    }
