"""Evaluation of the claims H1a to H5 in one model.

gate → hotspots → interventions at the operation's site → tests → one verdict for each claim
"""

from dataclasses import replace

from probes.claims.base_model import find_base_model, reuse_claim
from probes.claims.dose_response import dose_response_rows, training_diversity_claim
from probes.claims.joint_site import find_joint_site
from probes.claims.patterns import pattern_with_behavior, resolve_format
from probes.claims.plan import ClaimSettings as ClaimSettings
from probes.claims.plan import null_kind, plan_claims, with_method
from probes.claims.result import ITEMS, NUMBER_OUTCOMES, SCREEN, ClaimsReport
from probes.claims.separate_path import separate_path_claim
from probes.claims.shared_state import (
    SharedStateEvidence,
    joint_state_claim,
    shared_direction_claim,
    shared_state_claim,
)
from probes.claims.solved_items import SolvedItems
from probes.claims.units import (
    SiteTests,
    compare_base,
    compare_objects,
    dissociate_two_objects,
    run_site_tests,
)
from probes.interventions.dissociation import (
    dissociate,
    necessity,
    output_heads,
)
from probes.interventions.hotspots.measure import HotspotSettings, hotspots
from probes.interventions.hotspots.result import Hotspots
from probes.interventions.result import DASResult, OutputHeads
from probes.interventions.screening.heads import head_measure
from probes.interventions.subspaces.das_search import search_subspace
from probes.interventions.subspaces.directions import operation_direction
from probes.interventions.subspaces.geometry import variance_fractions
from probes.interventions.subspaces.projection import project_states
from probes.models.model import Model, ModelSpec, load
from probes.models.site import joined_roles
from probes.observe.format.kept import pattern_in_format
from probes.plan import LEFT_OUT
from probes.progress import Progress
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.interchange_pairs import (
    OPERATION,
    InterchangePairs,
)
from probes.prompts.pattern import Pattern
from probes.scale.commands import remember_in
from probes.scale.engine import open_engine, starting

_DEFAULTS = ClaimSettings()


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
    has_base = not isinstance(base, str)
    if settings.plan_only and settings.on_plan:
        in_format = pattern_in_format(asked, settings.format, [model], seed=settings.seed)
        settings.on_plan(plan_claims(model, in_format, settings, has_base=has_base)[0])
    # A closed gate is told before a plan is printed.
    behavior = pattern_with_behavior(
        model, pattern, settings.format, criterion=settings.gate, seed=settings.seed
    )
    settings = with_method(model, behavior.pattern, settings)
    if settings.is_planned:
        plan, settings = plan_claims(model, behavior.pattern, settings, has_base=has_base)
        if settings.on_plan:
            settings.on_plan(plan)
    with (
        Progress(plan if settings.progress else None) as progress,
        open_engine(settings.engine, workers=settings.workers, device=settings.device) as engine,
    ):
        progress.begin("gate")
        settings = replace(settings, engine=engine)
        report = _test_claims(model, behavior, settings, base, progress)
    if plan is None or not plan.left_out:
        return report
    left_out = (LEFT_OUT, "; ".join(plan.left_out))
    return replace(report, protocol=(*report.protocol, left_out))


def _test_claims(
    model: Model,
    behavior: SolvedItems,
    settings: ClaimSettings,
    base: Model | str,
    progress: Progress,
) -> ClaimsReport:
    """Test the claims with a pattern whose behavior the model has."""
    pattern, gates = behavior.pattern, behavior.gates
    bases, nulls, seed = settings.bases, settings.nulls, settings.seed
    progress.begin("hotspots")
    screened = settings.screen == "always"
    with starting(settings.engine) as start:
        # What needs no run of another part is a unit.
        two_objects_unit = start(dissociate_two_objects, model, pattern, settings)
        own_hotspots = hotspots(
            model,
            pattern,
            HotspotSettings(
                bases=bases, nulls=nulls, seed=seed, screened=screened, null=null_kind(settings)
            ),
            engine=settings.engine,
        )
        site = own_hotspots.hotspot(OPERATION).site
        site_unit = start(run_site_tests, model, pattern, site, settings)
        directions_unit = start(compare_objects, model, pattern, site, settings)
        base_unit = start(compare_base, model, pattern, site, base, settings)
        search_runs = own_hotspots.search.runs.with_joined_roles(joined_roles(site))
        progress.begin("shared state")
        subspaces = search_subspace(
            search_runs, own_hotspots.runs, site, dimensions=settings.dimensions, seed=seed
        )
        joint_site = find_joint_site(own_hotspots.search, own_hotspots, seed=seed)
        evidence = _shared_state_evidence(model, own_hotspots, subspaces, site_unit.result())
        progress.begin("separate paths")
        dissociation = dissociate(own_hotspots, seed=seed)
        ablation = necessity(own_hotspots.runs, subspaces.subspace, seed=seed)
        measure = head_measure(screened=screened, seed=seed)
        heads = output_heads(search_runs, own_hotspots.runs, measure)
        two_objects, binding = two_objects_unit.result()
        progress.begin("directions")
        directions, no_directions = directions_unit.result()
        progress.begin("base model")
        comparison, reason = base_unit.result()
    fractions = variance_fractions(own_hotspots.runs, [site])
    return ClaimsReport(
        model=model.name,
        pattern=pattern.name,
        gates=gates,
        verdicts=(
            shared_state_claim(evidence),
            joint_state_claim(joint_site, own_hotspots),
            separate_path_claim(dissociation, two_objects, ablation, heads),
            shared_direction_claim(directions, no_directions),
            reuse_claim(comparison, reason),
            training_diversity_claim(dose_response_rows(model.provenance)),
        ),
        hotspots=replace(own_hotspots, search=None),  # Its runs take much memory.
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
            *(((ITEMS, behavior.text),) if behavior.text else ()),
            ("bases", f"{len(own_hotspots.runs)}, and {len(search_runs)} others to find sites"),
            *_method(own_hotspots, heads, settings).items(),
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


def _method(hotspots: Hotspots, heads: OutputHeads, settings: ClaimSettings) -> dict[str, str]:
    """Sites and null of the hotspots for the protocol, and the error of the screens."""
    sites = f"{len(hotspots.sites)} of the residual stream, by role and layer"
    null = f"best site of {settings.nulls} random-init models, threshold"
    if hotspots.null == "permuted":
        null = f"best site with the answers of other bases, {settings.nulls} draws, threshold"
    if not hotspots.screens:
        return {"sites": sites, "null": null}
    return {
        "sites": f"{sites}, chosen by a screen; every fraction is exact",
        SCREEN: "; ".join(map(str, (*hotspots.screens, *heads.screens))),
        "null": null,
    }


def _shared_state_evidence(
    model: Model, own_hotspots: Hotspots, subspaces: DASResult, found: SiteTests
) -> SharedStateEvidence:
    """What H1a depends on, at the operation's site."""
    return SharedStateEvidence(
        hotspots=own_hotspots,
        object_decoding=found.object_decoding,
        unseen_verbs=found.unseen_verbs,
        subspace_search=subspaces,
        operation_free_accuracy=found.operation_free_accuracy,
        distractor_accuracy=found.distractor_accuracy,
        held_out=model.provenance.held_out if model.provenance else (),
    )
