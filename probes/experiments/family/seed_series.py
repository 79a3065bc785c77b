"""Small relatives over seeds and over numbers of objects: what one model cannot tell."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from probes.claims.dose_response import TableRow
from probes.experiments.family.make import make_member
from probes.experiments.family.recipes import SEED_SERIES, recipe
from probes.interventions.confounds import unseen_verbs
from probes.interventions.dissociation import output_heads
from probes.interventions.hotspots import HotspotSettings, hotspots
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.models.model import Model, load
from probes.models.site import joined_roles
from probes.observe.gate import answer_questions
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.held_out import family_split
from probes.prompts.interchange_pairs import OBJECT, OPERATION, sample_interchange_pairs
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.pattern import Pattern


def measure_member(model: Model, pattern: Pattern, *, bases: int = 200, seed: int = 0) -> TableRow:
    """Say where a model holds the operation, and how it fares with objects never trained on."""
    made = recipe(model.name)
    hot = hotspots(model, pattern, HotspotSettings(bases=bases, nulls=0, seed=seed))
    spot = hot.hotspot(OPERATION)
    shares = dict(zip(hot.roles, hot.map(OPERATION)[:, 1:].max(1), strict=True))
    strange = run_interchange_pairs(
        model,
        sample_interchange_pairs(
            pattern, bases // 2, tokenizers=(model.tokenizer,), seed=seed + 1,
            allowed_words={OBJECT: sorted(family_split().nouns)},
        ),
        joined_roles=joined_roles(spot.site),
    )  # fmt: skip
    found = interchange_intervention(strange, [spot.site])
    taken = found.proportion(str(spot.site), OPERATION)
    right = interchange_intervention(strange, []).proportion("none", "base")
    known = pattern.lexicon.words("noun")[: made.nouns]
    tells = tokenizable_by(model.tokenizer)
    asked = pattern.sample_questions(
        bases // 2, seed=seed, keep=lambda q: q[OBJECT] in known and tells(q)
    )
    unseen = unseen_verbs(model, pattern, spot.site, bases=bases // 8, seed=seed)
    heads = output_heads(strange, hot.runs)
    number, noun = {*heads.number_heads}, {*heads.object_heads}
    with_others = hot.other_outcomes.takes_variable(OPERATION)[
        hot.other_outcomes.site_index(str(spot.site))
    ].mean()
    return {
        "model": model.name,
        "kind": model.name.rsplit("-", 1)[0] if not made.shipped else model.name,
        "seed": made.seed,
        "nouns": made.nouns or len(pattern.lexicon.words("noun")) - len(family_split().nouns),
        "layers": made.layers,
        "number": hot.accuracy[0].value,
        "noun": hot.accuracy[1].value,
        "site": str(spot.site),
        "interchange_accuracy": spot.other_object.value,
        "interchange_accuracy_low": spot.other_object.low,
        "interchange_accuracy_high": spot.other_object.high,
        "at_op": float(shares["op"]),
        "at_answer": float(shares["answer"]),
        "joint_interchange_accuracy": float(with_others),
        "object_difference": spot.difference.value,
        "trained_accuracy": float(answer_questions(model, asked).correct[:, 0].float().mean()),
        "unseen_accuracy": right.value,
        "unseen_interchange_accuracy": taken.value,
        "unseen_interchange_accuracy_low": taken.low,
        "unseen_interchange_accuracy_high": taken.high,
        "unseen_verbs": unseen.site.value,
        "unseen_verbs_embedding": unseen.embedding.value,
        "shared_output_heads": len(number & noun) / max(len(number | noun), 1),
    }  # fmt: skip


SHIPPED_MEMBERS = ("full", "full-b", "distilled", "distilled-narrow", "scratch")
"""The shipped models that the series are shown beside."""


def measure_series(
    names: Sequence[str], pattern: str, *, folder: Path, work: Path, bases: int = 200
) -> Iterator[TableRow]:
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
    for name in names or (*SHIPPED_MEMBERS, *(entry.name for entry in SEED_SERIES)):
        place = (folder if recipe(name).shipped else work) / name
        if not (place / "config.json").is_file():
            make_member(name, folder=folder, work=work)
        yield measure_member(load(place), asked, bases=bases)


def write_series(rows: Sequence[TableRow], path: Path) -> None:
    """Write a table of measured series."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({n: f"{v:.4g}" if isinstance(v, float) else v for n, v in row.items()})
