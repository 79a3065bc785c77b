"""Small relatives over seeds and over numbers of objects: what one model cannot tell."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from probes.experiments.family.make import make_member
from probes.experiments.family.recipes import SERIES, recipe
from probes.files import data_folder
from probes.interventions.confounds import unseen_verbs
from probes.interventions.dissociation import branches
from probes.interventions.hotspots import hotspots
from probes.interventions.interchange import cross, exchange
from probes.models.model import Model, load
from probes.models.site import join, site_name
from probes.observe.gate import ask
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.held_out import family_split
from probes.prompts.interchange_pairs import OBJECT, OPERATION, crossings
from probes.prompts.pair_batch import fits
from probes.prompts.pattern import Pattern

Row = dict[str, float | str]


def measure(model: Model, pattern: Pattern, *, bases: int = 200, seed: int = 0) -> Row:
    """Say where a model holds the operation, and how it fares with objects never trained on."""
    made = recipe(model.name)
    hot = hotspots(model, pattern, bases=bases, seed=seed, nulls=0)
    spot = hot.spot(OPERATION)
    shares = dict(zip(hot.roles, hot.map(OPERATION)[:, 1:].max(1), strict=True))
    strange = cross(
        model,
        crossings(
            pattern, bases // 2, tokenizers=(model.tokenizer,), seed=seed + 1,
            words={OBJECT: sorted(family_split().nouns)},
        ),
        roles=join(spot.cell),
    )  # fmt: skip
    found = exchange(strange, [spot.cell])
    taken = found.share(site_name(spot.cell), OPERATION)
    right = exchange(strange, []).share("none", "base")
    known = pattern.lexicon.words("noun")[: made.nouns]
    tells = fits(model.tokenizer)
    asked = pattern.questions(bases // 2, seed=seed, keep=lambda q: q[OBJECT] in known and tells(q))
    unseen = unseen_verbs(model, pattern, spot.cell, bases=bases // 8, seed=seed)
    heads = branches(strange, hot.crossed)
    number, noun = {*heads.number_heads}, {*heads.noun_heads}
    with_others = hot.other.takes(OPERATION)[hot.other.row(site_name(spot.cell))].mean()
    return {
        "model": model.name,
        "kind": model.name.rsplit("-", 1)[0] if not made.shipped else model.name,
        "seed": made.seed,
        "nouns": made.nouns or len(pattern.lexicon.words("noun")) - len(family_split().nouns),
        "layers": made.layers,
        "number": hot.accuracy[0].value,
        "noun": hot.accuracy[1].value,
        "site": site_name(spot.cell),
        "taken": spot.other.value,
        "taken_low": spot.other.low,
        "taken_high": spot.other.high,
        "at_op": float(shares["op"]),
        "at_answer": float(shares["answer"]),
        "with_others": float(with_others),
        "object_difference": spot.difference.value,
        "trained_right": float(ask(model, asked).right[:, 0].float().mean()),
        "strange_right": right.value,
        "strange": taken.value,
        "strange_low": taken.low,
        "strange_high": taken.high,
        "unseen_verbs": unseen.site.value,
        "unseen_verbs_embedding": unseen.embedding.value,
        "heads_shared": len(number & noun) / max(len(number | noun), 1),
    }  # fmt: skip


MEASURED = ("full", "full-b", "distilled", "distilled-narrow", "scratch")
"""The shipped models that the series are shown beside."""


def series(
    names: Sequence[str], pattern: str, *, folder: Path, work: Path, bases: int = 200
) -> Iterator[Row]:
    """Make the models of the series that are not there yet, and measure each.

    Args:
        names: Which; by default all, and the shipped models beside them.
        pattern: What they are asked.
        folder: Where the shipped family is: some of the series start from it.
        work: Where models of the series are, or go.
        bases: Prompts to judge on.

    Raises:
        ModelError: A name is unknown.
    """
    asked = find_pattern(pattern)
    for name in names or (*MEASURED, *(entry.name for entry in SERIES)):
        place = (folder if recipe(name).shipped else work) / name
        if not (place / "config.json").is_file():
            make_member(name, folder=folder, work=work)
        yield measure(load(place), asked, bases=bases)


def series_file() -> Path:
    """Return the table of measured series that comes with the kit."""
    return data_folder() / "series.csv"


def read_series(path: Path | None = None) -> list[Row]:
    """Read a table of measured series; none where there is no file."""
    path = path or series_file()
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def write_series(rows: Sequence[Row], path: Path) -> None:
    """Write a table of measured series."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({n: f"{v:.4g}" if isinstance(v, float) else v for n, v in row.items()})


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
