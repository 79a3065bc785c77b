"""Evaluation of the claims H1a to H5 in one model.

gate → hotspots → interventions at the operation's site → tests → one verdict for each claim
"""

from collections.abc import Callable
from dataclasses import replace

from probes.claims.base_model import (
    BaseComparisonSettings,
    compare_with_base,
    find_base_model,
    reuse_claim,
)
from probes.claims.dose_response import dose_response_rows, training_diversity_claim
from probes.claims.joint_site import find_joint_site
from probes.claims.patterns import (
    has_behavior,
    operation_free_pattern,
    pattern_with_behavior,
    resolve_format,
    statement_pattern,
    two_object_pattern,
)
from probes.claims.plan import ClaimSettings as ClaimSettings
from probes.claims.plan import plan_claims
from probes.claims.result import NUMBER_OUTCOMES, BaseModelComparison, ClaimsReport
from probes.claims.separate_path import separate_path_claim
from probes.claims.shared_state import (
    SharedStateEvidence,
    joint_state_claim,
    shared_direction_claim,
    shared_state_claim,
)
from probes.errors import ModelError, PatternError, SiteError
from probes.interventions.confounds import (
    distractor_sentence,
    operation_free_question,
    unseen_verbs,
)
from probes.interventions.dissociation import dissociate, necessity, output_heads, swap_bindings
from probes.interventions.hotspot_result import Hotspots
from probes.interventions.hotspots import HotspotSettings, hotspots
from probes.interventions.interchange import InterchangeRuns, run_interchange_pairs
from probes.interventions.result import BindingSwap, Dissociation, UnseenVerbs
from probes.interventions.site_search import search_words
from probes.interventions.subspaces.das_search import decode_object, search_subspace
from probes.interventions.subspaces.directions import (
    DirectionSettings,
    compare_directions,
    operation_direction,
)
from probes.interventions.subspaces.geometry import variance_fractions
from probes.interventions.subspaces.projection import project_states
from probes.models.model import Model, ModelSpec, load
from probes.models.site import Site, joined_roles
from probes.observe.gate import gate
from probes.observe.result import Gate
from probes.plan import LEFT_OUT
from probes.progress import Progress
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.interchange_pairs import (
    OBJECT,
    OPERATION,
    BaseFilter,
    InterchangePairs,
    sample_interchange_pairs,
)
from probes.prompts.pattern import Pattern
from probes.scale.commands import remember_in
from probes.stats.intervals import Estimate

_DEFAULTS = ClaimSettings()
_FEW_OBJECTS = 8  # Few enough that each occurs in many prompts.


def evaluate_claims(
    model: ModelSpec,
    pattern: str | Pattern = "take-away",
    settings: ClaimSettings = _DEFAULTS,
    *,
    base_model: ModelSpec | None = None,
) -> ClaimsReport:
    """Test the claims H1a to H5 in one model.

    Args:
        model: Name of a shipped model, a folder, a hub id or a loaded model.
        pattern: A pattern with an opposite, or its name. A model that cannot answer its questions
            is tested on the same facts as statements (`<name>-told`).
        settings: Sizes and seed.
        base_model: The model before tuning; by default the one that the provenance names.

    Raises:
        GateError: The model does not have the behavior.
        PatternError: The outcomes of the pattern coincide, or it has too few words.
    """
    model = load(model, device=settings.device)
    base = find_base_model(model, base_model, device=settings.device)
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    settings = replace(settings, format=resolve_format(model, asked, settings))
    return remember_in(settings, "claims", _evaluate, model, pattern, asked, settings, base)


def _evaluate(
    model: Model,
    pattern: str | Pattern,
    asked: Pattern,
    settings: ClaimSettings,
    base: Model | str,
) -> ClaimsReport:
    """Test the claims in a loaded model; `base` is its base model, or why there is none."""
    plan = None
    if settings.plan_only and settings.on_plan:
        settings.on_plan(plan_claims(model, asked, settings)[0])
    # A closed gate is told before a plan is printed.
    behavior = pattern_with_behavior(
        model, pattern, settings.format, criterion=settings.gate, seed=settings.seed
    )
    if settings.is_planned:
        plan, settings = plan_claims(model, asked, settings)
        if settings.on_plan:
            settings.on_plan(plan)
    with Progress(plan if settings.progress else None) as progress:
        progress.begin("gate")
        report = _test_claims(model, behavior, settings, base, progress)
    if plan is None or not plan.left_out:
        return report
    left_out = (LEFT_OUT, "; ".join(plan.left_out))
    return replace(report, protocol=(*report.protocol, left_out))


def _test_claims(
    model: Model,
    behavior: tuple[Pattern, tuple[Gate, ...]],
    settings: ClaimSettings,
    base: Model | str,
    progress: Progress,
) -> ClaimsReport:
    """Test the claims with a pattern whose behavior the model has, given with its gates."""
    pattern, gates = behavior
    bases, nulls, seed = settings.bases, settings.nulls, settings.seed
    progress.begin("hotspots")
    own_hotspots = hotspots(model, pattern, HotspotSettings(bases=bases, nulls=nulls, seed=seed))
    site = own_hotspots.hotspot(OPERATION).site
    search_pairs = sample_interchange_pairs(
        pattern,
        max(bases // 2, 8),
        tokenizers=(model.tokenizer,),
        seed=seed + 1,
        base_filter=BaseFilter(allowed_words=search_words(pattern)),
    )
    search_runs = run_interchange_pairs(model, search_pairs, joined_roles=joined_roles(site))
    progress.begin("shared state")
    evidence = _shared_state_evidence(pattern, own_hotspots, search_runs, settings)
    joint_site = find_joint_site(search_runs, own_hotspots, seed=seed)
    progress.begin("separate paths")
    dissociation, two_objects, binding = _dissociations(model, pattern, own_hotspots, settings)
    ablation = necessity(own_hotspots.runs, evidence.subspace_search.subspace, seed=seed)
    heads = output_heads(search_runs, own_hotspots.runs)
    progress.begin("directions")
    directions = compare_directions(model, pattern, site, DirectionSettings(seed=seed))
    progress.begin("base model")
    comparison, reason = _base_comparison(model, pattern, site, base, settings)
    fractions = variance_fractions(own_hotspots.runs, [site])
    return ClaimsReport(
        model=model.name,
        pattern=pattern.name,
        gates=gates,
        verdicts=(
            shared_state_claim(evidence),
            joint_state_claim(joint_site, own_hotspots),
            separate_path_claim(dissociation, two_objects, ablation, heads),
            shared_direction_claim(directions),
            reuse_claim(comparison, reason),
            training_diversity_claim(dose_response_rows(model.provenance)),
        ),
        hotspots=own_hotspots,
        joint_site=joint_site,
        variance_fractions={name: float(values[0]) for name, values in fractions.items()},
        object_decoding=evidence.object_decoding,
        unseen_verbs=evidence.unseen_verbs,
        subspace_search=evidence.subspace_search,
        dissociation=dissociation,
        two_object_dissociation=two_objects,
        necessity=ablation,
        output_heads=heads,
        binding=binding,
        direction_comparison=directions,
        base_comparison=comparison,
        protocol=(
            ("bases", f"{len(own_hotspots.runs)}, and {len(search_runs)} others to find sites"),
            ("sites", f"{len(own_hotspots.sites)} of the residual stream, by role and layer"),
            ("null", f"best site of {nulls} random-init models, threshold"),
            ("format", str(pattern.wrapper.format)),
            ("seed", str(seed)),
            *_merged_outcomes(own_hotspots.runs.interchange_pairs),
        ),
        projection=project_states(own_hotspots.runs, site, operation_direction(search_runs, site)),
    )


def _merged_outcomes(pairs: InterchangePairs) -> tuple[tuple[str, str], ...]:
    """What the numbers of a narrow range cannot tell apart, for the protocol."""
    if not (merged := pairs.merged_copies):
        return ()
    count = len(pairs.number_labels)
    text = f"{count} of {count + len(merged)}; {', '.join(merged)} may equal others"
    return ((NUMBER_OUTCOMES, text),)


def _shared_state_evidence(
    pattern: Pattern, own_hotspots: Hotspots, search_runs: InterchangeRuns, settings: ClaimSettings
) -> SharedStateEvidence:
    """Measure what H1a depends on, at the operation's site."""
    model, seed = search_runs.model, settings.seed
    site = own_hotspots.hotspot(OPERATION).site
    few_objects = _sample_few_objects(model, pattern, seed)
    operation_free, distractor = _verb_detector_tests(model, pattern, site, seed)
    return SharedStateEvidence(
        hotspots=own_hotspots,
        object_decoding=decode_object(model, few_objects, site, seed=seed),
        unseen_verbs=_none_if_too_few_verbs(
            lambda: unseen_verbs(model, pattern, site, bases=settings.bases // 5, seed=seed)
        ),
        subspace_search=search_subspace(search_runs, own_hotspots.runs, site, seed=seed),
        operation_free_accuracy=operation_free,
        distractor_accuracy=distractor,
        held_out=model.provenance.held_out if model.provenance else (),
    )


def _sample_few_objects(model: Model, pattern: Pattern, seed: int) -> InterchangePairs:
    """Sample bases about few objects, so that each occurs in many."""
    words = {OBJECT: list(pattern.lexicon.words("noun")[:_FEW_OBJECTS])}
    count = 20 * _FEW_OBJECTS
    return sample_interchange_pairs(
        pattern,
        count,
        tokenizers=(model.tokenizer,),
        seed=seed + 2,
        base_filter=BaseFilter(allowed_words=words),
    )


def _dissociations(
    model: Model, pattern: Pattern, own_hotspots: Hotspots, settings: ClaimSettings
) -> tuple[Dissociation, Dissociation | None, tuple[BindingSwap, ...]]:
    """Dissociate number and noun with one object in the text, and with two."""
    seed = settings.seed
    own = dissociate(own_hotspots, seed=seed)
    two_objects = two_object_pattern(pattern)
    if two_objects is None or not has_behavior(model, two_objects, seed):
        return own, None, ()
    both = hotspots(
        model,
        two_objects,
        HotspotSettings(bases=settings.bases // 2, nulls=0, seed=seed),
        variables=(OPERATION, OBJECT),
    )
    return own, dissociate(both, seed=seed), swap_bindings(both.runs, seed=seed)


def _base_comparison(
    model: Model,
    pattern: Pattern,
    site: Site,
    base: Model | str,
    settings: ClaimSettings,
) -> tuple[BaseModelComparison | None, str]:
    """Compare a model with its base model, or return the reason why that is impossible."""
    if isinstance(base, str):
        return None, base
    statements = statement_pattern(pattern)
    if statements is None:
        return None, f"{pattern.name!r} has no questions with a pattern of the same statements"
    sizes = BaseComparisonSettings(
        bases=settings.bases // 2, nulls=settings.nulls, seed=settings.seed
    )
    try:
        found = compare_with_base(model, base, (pattern, statements), site, sizes)
    except (ModelError, SiteError) as error:  # Such as a base model that lacks the site.
        return None, str(error)
    return found, ""


def _verb_detector_tests(
    model: Model, pattern: Pattern, site: Site, seed: int
) -> tuple[Estimate | None, Estimate | None]:
    """Return the accuracies that a detector of verbs would lower."""
    distractor = distractor_sentence(model, pattern, seed=seed)
    operation_free = operation_free_pattern(pattern)
    if operation_free is None or not gate(model, operation_free, seed=seed)[0].has_behavior:
        return None, distractor
    return operation_free_question(model, operation_free, site, seed=seed), distractor


def _none_if_too_few_verbs(run: Callable[[], UnseenVerbs]) -> UnseenVerbs | None:
    """Return None where a pattern has too few verbs to hold some out."""
    try:
        return run()
    except PatternError:
        return None
