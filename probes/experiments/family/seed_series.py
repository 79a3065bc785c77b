"""Series of small models over seeds and over numbers of objects."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from probes.experiments.family.make import make_member
from probes.experiments.family.recipes import SEED_SERIES, recipe
from probes.files import TableRow
from probes.interventions.confounds import unseen_verbs
from probes.interventions.dissociation import output_heads
from probes.interventions.hotspots.measure import HotspotSettings, hotspots
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.models.model import Model, load
from probes.models.site import joined_roles
from probes.observe.gate import answer_questions
from probes.prompts.catalog import pattern as load_pattern
from probes.prompts.held_out import family_split
from probes.prompts.interchange_pairs import OBJECT, OPERATION, BaseFilter, sample_interchange_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.pair_batch import tokenizable_by

SHIPPED_MEMBERS = ("full", "full-b", "distilled", "distilled-narrow", "scratch")
"""Shipped models that are measured with the series."""


def measure_member(model: Model, pattern: Pattern, *, bases: int = 200, seed: int = 0) -> TableRow:
    """Site of the operation; accuracy and interchange accuracy with unseen objects and verbs."""
    made, lexicon, unseen_nouns = recipe(model.name), pattern.lexicon, family_split().nouns
    hot = hotspots(model, pattern, HotspotSettings(bases=bases, nulls=0, seed=seed))
    spot = hot.hotspot(OPERATION)
    best_by_role = dict(zip(hot.roles, hot.map(OPERATION)[:, 1:].max(1), strict=True))
    unseen_runs = run_interchange_pairs(
        model,
        sample_interchange_pairs(
            pattern,
            bases // 2,
            tokenizers=(model.tokenizer,),
            seed=seed + 1,
            base_filter=BaseFilter(allowed_words={OBJECT: sorted(unseen_nouns)}),
        ),
        joined_roles=joined_roles(spot.site),
    )
    outcomes = interchange_intervention(unseen_runs, [spot.site])
    unseen = outcomes.proportion(str(spot.site), OPERATION)
    unseen_accuracy = interchange_intervention(unseen_runs, []).proportion("none", "base")
    trained_nouns = lexicon.words("noun")[: made.nouns]
    is_tokenizable = tokenizable_by(model.tokenizer)
    questions = pattern.sample_questions(
        bases // 2, seed=seed, keep=lambda q: q[OBJECT] in trained_nouns and is_tokenizable(q)
    )
    verbs = unseen_verbs(model, pattern, spot.site, bases=bases // 8, seed=seed)
    heads = output_heads(unseen_runs, hot.runs)
    number, noun = {*heads.number_heads}, {*heads.object_heads}
    joint = hot.other_outcomes.takes_variable(OPERATION)
    return {
        "model": model.name,
        "kind": model.name.rsplit("-", 1)[0] if not made.shipped else model.name,
        "seed": made.seed,
        "nouns": made.nouns or len(lexicon.words("noun")) - len(unseen_nouns),
        "layers": made.layers,
        "number": hot.accuracy[0].value,
        "noun": hot.accuracy[1].value,
        "site": str(spot.site),
        "interchange_accuracy": spot.other_object.value,
        "interchange_accuracy_low": spot.other_object.low,
        "interchange_accuracy_high": spot.other_object.high,
        "at_op": float(best_by_role["op"]),
        "at_answer": float(best_by_role["answer"]),
        "joint_interchange_accuracy": float(
            joint[hot.other_outcomes.site_index(str(spot.site))].mean()
        ),
        "object_difference": spot.difference.value,
        "trained_accuracy": float(answer_questions(model, questions).correct[:, 0].float().mean()),
        "unseen_accuracy": unseen_accuracy.value,
        "unseen_interchange_accuracy": unseen.value,
        "unseen_interchange_accuracy_low": unseen.low,
        "unseen_interchange_accuracy_high": unseen.high,
        "unseen_verbs": verbs.site.value,
        "unseen_verbs_embedding": verbs.embedding.value,
        "shared_output_heads": len(number & noun) / max(len(number | noun), 1),
    }


def measure_series(
    names: Sequence[str], pattern: str, *, folder: Path, work: Path, bases: int = 200
) -> Iterator[TableRow]:
    """Rows of the models of the series; missing models are trained.

    Args:
        names: Models; by default the whole series and the shipped models.
        pattern: Pattern to measure on.
        folder: Folder of the shipped models, from which some of the series start.
        work: Folder of the models of the series.
        bases: Number of interchange pairs.

    Raises:
        ModelError: A name is unknown.
    """
    measured_on = load_pattern(pattern)
    for name in names or (*SHIPPED_MEMBERS, *(entry.name for entry in SEED_SERIES)):
        path = (folder if recipe(name).shipped else work) / name
        if not (path / "config.json").is_file():
            make_member(name, folder=folder, work=work)
        yield measure_member(load(path), measured_on, bases=bases)
