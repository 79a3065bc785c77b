"""Prove: the fox claim put to the test in one model, with what speaks against it.

gate → hotspots → searches, swaps, directions → tests → one verdict a claim
"""

from collections.abc import Callable
from pathlib import Path

from probes.claims import claims
from probes.claims.base_model import compare_with_base
from probes.claims.dose_response import dose_response_rows
from probes.claims.result import BaseModelComparison, ClaimsReport
from probes.errors import GateError, ModelError, PatternError, SiteError
from probes.interventions.confounds import (
    distractor_sentence,
    operation_free_question,
    unseen_verbs,
)
from probes.interventions.das_search import decode_object, search_subspace
from probes.interventions.directions import (
    DirectionSettings,
    compare_directions,
    operation_direction,
)
from probes.interventions.dissociation import dissociate, necessity, output_heads, swap_bindings
from probes.interventions.geometry import variance_fractions
from probes.interventions.hotspot_result import Hotspots
from probes.interventions.hotspots import HotspotSettings, hotspots
from probes.interventions.interchange import run_interchange_pairs
from probes.interventions.projection import project_states
from probes.interventions.result import BindingSwap, Dissociation, UnseenVerbs
from probes.interventions.site_search import search_words
from probes.models.model import Model, load
from probes.models.site import Site, joined_roles
from probes.observe.gate import gate
from probes.observe.result import Gate
from probes.prompts.catalog import list_patterns
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.interchange_pairs import (
    OBJECT,
    OPERATION,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.pattern import Pattern
from probes.prompts.template import Template
from probes.stats.intervals import Estimate

DECLARATIVE_SUFFIX = "-told"
_FEW_OBJECTS = 8  # Few enough that each stands in many prompts.


def evaluate_claims(  # noqa: PLR0913 (the job has its dials)
    model: str | Path | Model,
    pattern: str | Pattern = "take-away",
    *,
    base_model: str | Path | Model | None = None,
    bases: int = 200,
    nulls: int = 20,
    seed: int = 0,
) -> ClaimsReport:
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
        GateError: The model does not have the behavior.
        PatternError: The outcomes of the pattern collide, or it has too few words.
    """
    model = load(model)
    if base_model is not None:  # A wrong name ends before the measurements.
        base_model = load(base_model)
    asked, gates = _open_gates(model, pattern, seed)
    hot = hotspots(model, asked, HotspotSettings(bases=bases, nulls=nulls, seed=seed))
    cell = hot.hotspot(OPERATION).site
    drawn = sample_interchange_pairs(
        asked,
        max(bases // 2, 8),
        tokenizers=(model.tokenizer,),
        seed=seed + 1,
        allowed_words=search_words(asked),
    )
    finding = run_interchange_pairs(model, drawn, joined_roles=joined_roles(cell))
    searched = search_subspace(finding, hot.runs, cell, seed=seed)
    unseen = _none_if_too_few_verbs(
        lambda: unseen_verbs(model, asked, cell, bases=bases // 5, seed=seed)
    )
    there = decode_object(model, _sample_few_objects(model, asked, seed), cell, seed=seed)
    parted, two, bound = _dissociations(model, asked, hot, bases, seed)
    needed = necessity(hot.runs, searched.subspace, seed=seed)
    heads = output_heads(finding, hot.runs)
    aligned = compare_directions(model, asked, cell, DirectionSettings(seed=seed))
    line, why = _base_comparison(model, asked, cell, base_model, (bases, seed))
    back, loud = _verb_detector_tests(model, asked, cell, seed)
    shares = variance_fractions(hot.runs, [cell])
    points = project_states(hot.runs, cell, operation_direction(finding, cell))
    return ClaimsReport(
        model=model.name,
        pattern=asked.name,
        gates=gates,
        verdicts=(
            claims.shared_state_claim(hot, there, unseen, searched, back, loud),
            claims.separate_path_claim(parted, two, needed, heads),
            claims.shared_direction_claim(aligned),
            claims.reuse_claim(line, why),
            claims.training_diversity_claim(
                dose_response_rows() if model.origin.startswith("family member ") else ()
            ),
        ),
        hotspots=hot,
        variance_fractions={name: float(values[0]) for name, values in shares.items()},
        object_decoding=there,
        unseen_verbs=unseen,
        subspace_search=searched,
        dissociation=parted,
        two_object_dissociation=two,
        necessity=needed,
        output_heads=heads,
        binding=bound,
        direction_comparison=aligned,
        base_comparison=line,
        protocol=(
            ("bases", f"{len(hot.runs)} to judge by, {len(finding)} others to find sites by"),
            ("sites", f"{len(hot.sites)} residuals, by role and layer"),
            ("chance", f"best site of {nulls} untrained nets, 95th percentile"),
            ("seed", str(seed)),
        ),
        projection=points,
    )


def _open_gates(
    model: Model, pattern: str | Pattern, seed: int
) -> tuple[Pattern, tuple[Gate, ...]]:
    """Return the pattern that the model can do: the one asked for, or its twin in statements."""
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    sample_interchange_pairs(
        asked, 1, tokenizers=(model.tokenizer,), seed=seed
    )  # Refuses what cannot be crossed.
    gates = gate(model, asked, seed=seed)
    if all(found.has_behavior for found in gates):
        return asked, gates
    twin = (
        list_patterns().get(asked.name + DECLARATIVE_SUFFIX) if isinstance(pattern, str) else None
    )
    if twin is not None:
        told = gate(model, twin, seed=seed)
        if all(found.has_behavior for found in told):
            return twin, told
    worst = next(found for found in gates if not found.has_behavior)
    if worst.state == "too few to tell":
        raise GateError(worst.too_few_reason)
    raise GateError(
        f"{model.name} does not have the behavior: {worst.answer} of {asked.name!r} is right in "
        f"{worst.accuracy}, {worst.heuristic!r} in {worst.heuristic_accuracy:.2f}. There is "
        "nothing to prove; choose a model or a pattern whose gate is open."
    )


def _sample_few_objects(model: Model, pattern: Pattern, seed: int) -> InterchangePairs:
    """Draw bases about few objects, so that each stands in many."""
    words = {OBJECT: list(pattern.lexicon.words("noun")[:_FEW_OBJECTS])}
    count = 20 * _FEW_OBJECTS
    return sample_interchange_pairs(
        pattern, count, tokenizers=(model.tokenizer,), seed=seed + 2, allowed_words=words
    )


def _dissociations(
    model: Model, pattern: Pattern, own_hotspots: Hotspots, bases: int, seed: int
) -> tuple[Dissociation, Dissociation | None, tuple[BindingSwap, ...]]:
    """Part number and noun where one thing is spoken of, and where two are."""
    own = dissociate(own_hotspots, seed=seed)
    twin = _two_object_pattern(pattern)
    if twin is None or not all(found.has_behavior for found in gate(model, twin, seed=seed)):
        return own, None, ()
    spots = (OPERATION, OBJECT)
    settings = HotspotSettings(bases=bases // 2, nulls=0, seed=seed)
    both = hotspots(model, twin, settings, variables=spots)
    return own, dissociate(both, seed=seed), swap_bindings(both.runs, seed=seed)


def _two_object_pattern(pattern: Pattern) -> Pattern | None:
    """Return the shipped pattern that speaks of two things and asks the same."""
    told = DECLARATIVE_SUFFIX if pattern.name.endswith(DECLARATIVE_SUFFIX) else ""
    known = list_patterns()
    if known.get(pattern.name) != pattern:
        return None
    more = "" if pattern.operation == "minus" else "-more"
    return (
        known[f"distractor{more}{told}"]
        if pattern.templates == _take_away_templates(told)
        else None
    )


def _take_away_templates(suffix: str) -> tuple[Template, ...]:
    return list_patterns()[f"take-away{suffix}"].templates


def _base_comparison(
    model: Model, pattern: Pattern, site: Site, base_model: str | Path | Model | None,
    settings: tuple[int, int],
) -> tuple[BaseModelComparison | None, str]:  # fmt: skip
    """Hold a model against the one it was tuned from, or say why that cannot be done."""
    bases, seed = settings
    told = list_patterns().get(pattern.name.removesuffix(DECLARATIVE_SUFFIX) + DECLARATIVE_SUFFIX)
    if base_model is None:
        base_model = model.provenance.base_model if model.provenance else ""
        if not base_model:
            return None, f"no base model of {model.name} is known: name it"
    if told is None or pattern.name.endswith(DECLARATIVE_SUFFIX):
        return None, f"{pattern.name!r} has no twin in statements to ask the model before by"
    try:
        found = compare_with_base(
            model, load(base_model), pattern, told, site, bases=bases // 2, seed=seed
        )
    except (ModelError, SiteError) as error:  # The base model is not at hand, or lacks the site.
        return None, str(error)
    return found, ""


def _verb_detector_tests(
    model: Model, pattern: Pattern, site: Site, seed: int
) -> tuple[Estimate | None, Estimate | None]:
    """Try what a mere detector of verbs would fall for."""
    loud = distractor_sentence(model, pattern, seed=seed)
    name = {"take-away": "taken", "get-more": "gotten"}.get(
        pattern.name.removesuffix(DECLARATIVE_SUFFIX)
    )
    if name is None or list_patterns().get(pattern.name) != pattern:
        return None, loud
    back = list_patterns()[
        name + (DECLARATIVE_SUFFIX if pattern.name.endswith(DECLARATIVE_SUFFIX) else "")
    ]
    if not gate(model, back, seed=seed)[0].has_behavior:
        return None, loud
    return operation_free_question(model, back, site, seed=seed), loud


def _none_if_too_few_verbs(run: Callable[[], UnseenVerbs]) -> UnseenVerbs | None:
    """Return None where a pattern has too few verbs to leave some out."""
    try:
        return run()
    except PatternError:
        return None
