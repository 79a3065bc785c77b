"""Prove: the fox claim put to the test in one model, with what speaks against it.

gate → hotspots → searches, swaps, directions → tests → one verdict a claim
"""

from collections.abc import Callable
from pathlib import Path

from probes.claims import claims
from probes.claims.base_model import Lineage, lineage
from probes.claims.result import Proof
from probes.errors import GateError, PatternError, SiteError
from probes.experiments.family.recipes import RECIPES
from probes.experiments.family.seed_series import read_series
from probes.files import family_members
from probes.interventions.confounds import Unseen, asked_back, loud_filler, unseen_verbs
from probes.interventions.das_search import object_decodable, search
from probes.interventions.directions import align, operation_direction
from probes.interventions.dissociation import (
    Binding,
    Dissociation,
    binding,
    branches,
    dissociate,
    necessity,
)
from probes.interventions.hotspots import Hotspots, finding_words, hotspots
from probes.interventions.interchange import cross
from probes.interventions.projection import space
from probes.interventions.variance import variance_shares
from probes.models.model import Model, load
from probes.models.site import Cell, join
from probes.observe.gate import Gate, gate
from probes.prompts.catalog import all_patterns
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.interchange_pairs import OBJECT, OPERATION, Crossings, crossings
from probes.prompts.pattern import Pattern
from probes.prompts.template import Frame
from probes.stats.intervals import Estimate

TOLD = "-told"
_SHOWN_OBJECTS = 8  # Few enough that each stands in many prompts.


def prove(  # noqa: PLR0913 (the job has its dials)
    model: str | Path | Model,
    pattern: str | Pattern = "take-away",
    *,
    before: str | Path | Model | None = None,
    bases: int = 200,
    nulls: int = 20,
    seed: int = 0,
) -> Proof:
    """Put the fox claim to the test in one model: H1 to H5, each with its evidence.

    Args:
        model: A family name, a folder, a hub id or a loaded model.
        pattern: A pattern with an opposite, or its name. A model that cannot answer its questions
            is tried on the same facts as statements (`<name>-told`).
        before: The model that it was tuned from; the family's own is known.
        bases: Prompts that the verdicts rest on; half as many more find the sites. Fewer than 80
            leave tests undecided, whatever they find: 0 of 30 may be a tenth.
        nulls: Untrained nets for the chance level.
        seed: Of prompts, nets and searches.

    Raises:
        GateError: The model does not have the behaviour.
        PatternError: The outcomes of the pattern collide, or it has too few words.
    """
    model = load(model)
    asked, gates = _open(model, pattern, seed)
    hot = hotspots(model, asked, bases=bases, nulls=nulls, seed=seed)
    cell = hot.spot(OPERATION).cell
    drawn = crossings(
        asked,
        max(bases // 2, 8),
        tokenizers=(model.tokenizer,),
        seed=seed + 1,
        words=finding_words(asked),
    )
    finding = cross(model, drawn, roles=join(cell))
    searched = search(finding, hot.crossed, cell, seed=seed)
    unseen = _or_none(lambda: unseen_verbs(model, asked, cell, bases=bases // 5, seed=seed))
    there = object_decodable(model, _few_objects(model, asked, seed), cell, seed=seed)
    parted, two, bound = _parted(model, asked, hot, bases, seed)
    needed = necessity(hot.crossed, searched.space, seed=seed)
    heads = branches(finding, hot.crossed)
    aligned = align(model, asked, cell, seed=seed)
    line, why = _lineage(model, asked, cell, before, (bases, seed))
    back, loud = _detectors(model, asked, cell, seed)
    shares = variance_shares(hot.crossed, [cell])
    points = space(hot.crossed, cell, operation_direction(finding, cell))
    return Proof(
        model=model.name,
        pattern=asked.name,
        gates=gates,
        verdicts=(
            claims.template(hot, there, unseen, searched, back, loud),
            claims.branch(parted, two, needed, heads),
            claims.direction(aligned),
            claims.hijack(line, why),
            claims.learned(doses() if model.name in family_members() else ()),
        ),
        hot=hot,
        variance={name: float(values[0]) for name, values in shares.items()},
        object_there=there,
        unseen=unseen,
        searched=searched,
        parted=parted,
        two=two,
        needed=needed,
        heads=heads,
        bound=bound,
        aligned=aligned,
        line=line,
        protocol=(
            ("bases", f"{len(hot.crossed)} to judge by, {len(finding)} others to find sites by"),
            ("sites", f"{len(hot.cells)} residuals, by role and layer"),
            ("chance", f"best site of {nulls} untrained nets, 95th percentile"),
            ("seed", str(seed)),
        ),
        points=points,
    )


def doses() -> list[dict[str, float | str]]:
    """Return the measured models that differ in how many objects they were trained on."""
    return [row for row in read_series() if row["kind"] == "dose"]


def _open(model: Model, pattern: str | Pattern, seed: int) -> tuple[Pattern, tuple[Gate, ...]]:
    """Return the pattern that the model can do: the one asked for, or its twin in statements."""
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    crossings(asked, 1, tokenizers=(model.tokenizer,), seed=seed)  # Refuses what cannot be crossed.
    gates = gate(model, asked, seed=seed)
    if all(found.state != "closed" for found in gates):
        return asked, gates
    twin = all_patterns().get(asked.name + TOLD) if isinstance(pattern, str) else None
    if twin is not None:
        told = gate(model, twin, seed=seed)
        if all(found.state != "closed" for found in told):
            return twin, told
    worst = next(found for found in gates if found.state == "closed")
    raise GateError(
        f"{model.name} does not have the behaviour: {worst.answer} of {asked.name!r} is right in "
        f"{worst.accuracy}, {worst.heuristic!r} in {worst.heuristic_accuracy:.2f}. There is "
        "nothing to prove; choose a model or a pattern whose gate is open."
    )


def _few_objects(model: Model, pattern: Pattern, seed: int) -> Crossings:
    """Draw bases about few objects, so that each stands in many."""
    words = {OBJECT: list(pattern.lexicon.words("noun")[:_SHOWN_OBJECTS])}
    count = 20 * _SHOWN_OBJECTS
    return crossings(pattern, count, tokenizers=(model.tokenizer,), seed=seed + 2, words=words)


def _parted(
    model: Model, pattern: Pattern, hot: Hotspots, bases: int, seed: int
) -> tuple[Dissociation, Dissociation | None, tuple[Binding, ...]]:
    """Part number and noun where one thing is spoken of, and where two are."""
    own = dissociate(hot, seed=seed)
    twin = _two_things(pattern)
    if twin is None or any(found.state == "closed" for found in gate(model, twin, seed=seed)):
        return own, None, ()
    spots = (OPERATION, OBJECT)
    both = hotspots(model, twin, variables=spots, bases=bases // 2, nulls=0, seed=seed)
    return own, dissociate(both, seed=seed), binding(both.crossed, seed=seed)


def _two_things(pattern: Pattern) -> Pattern | None:
    """Return the shipped pattern that speaks of two things and asks the same."""
    told = TOLD if pattern.name.endswith(TOLD) else ""
    known = all_patterns()
    if known.get(pattern.name) != pattern:
        return None
    more = "" if pattern.operation == "minus" else "-more"
    return known[f"distractor{more}{told}"] if pattern.frames == _frames(told) else None


def _frames(told: str) -> tuple[Frame, ...]:
    return all_patterns()[f"take-away{told}"].frames


def _lineage(
    model: Model, pattern: Pattern, cell: Cell, before: str | Path | Model | None,
    dials: tuple[int, int],
) -> tuple[Lineage | None, str]:  # fmt: skip
    """Hold a model against the one it was tuned from, or say why that cannot be done."""
    bases, seed = dials
    told = all_patterns().get(pattern.name.removesuffix(TOLD) + TOLD)
    if before is None:
        made = next((entry for entry in RECIPES if entry.name == model.name), None)
        if made is None or made.start == "fresh" or ":" in made.start:
            return None, f"{model.name} was not tuned from a model of its shape, or none was named"
        if made.start not in family_members():
            return None, f"{made.start}, which {model.name} was tuned from, is not at hand"
        before = made.start
    if told is None or pattern.name.endswith(TOLD):
        return None, f"{pattern.name!r} has no twin in statements to ask the model before by"
    try:
        found = lineage(model, load(before), pattern, told, cell, bases=bases // 2, seed=seed)
    except SiteError as error:
        return None, str(error)
    return found, ""


def _detectors(
    model: Model, pattern: Pattern, cell: Cell, seed: int
) -> tuple[Estimate | None, Estimate | None]:
    """Try what a mere detector of verbs would fall for."""
    loud = loud_filler(model, pattern, seed=seed)
    name = {"take-away": "taken", "get-more": "gotten"}.get(pattern.name.removesuffix(TOLD))
    if name is None or all_patterns().get(pattern.name) != pattern:
        return None, loud
    back = all_patterns()[name + (TOLD if pattern.name.endswith(TOLD) else "")]
    if gate(model, back, seed=seed)[0].state == "closed":
        return None, loud
    return asked_back(model, back, cell, seed=seed), loud


def _or_none(run: Callable[[], Unseen]) -> Unseen | None:
    """Return None where a pattern has too few verbs to leave some out."""
    try:
        return run()
    except PatternError:
        return None
