"""Comparison of a model with its relatives on one pattern.

models → gates, heads and hotspots of each → random-init null → a verdict for each head and variable
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from probes.comparison.assemble import assemble_comparison
from probes.comparison.circuits.edge_result import EdgeComparison
from probes.comparison.circuits.edges import compare_edges, has_same_graph
from probes.comparison.family_result import FamilyComparison, gather_repeats
from probes.comparison.measurements import (
    ModelMeasurements,
    ReferenceModel,
    measure_model,
    measure_reference,
)
from probes.comparison.nulls import measure_nulls
from probes.comparison.pair_transfers import ReferenceSet, measure_pairs
from probes.comparison.paths.measure import PathMeasurements, measure_paths, plan_paths
from probes.comparison.result import Comparison
from probes.comparison.setup.method import NullChoice
from probes.comparison.setup.parallel import RunAll, run_in_pool
from probes.comparison.setup.plan import plan_comparison
from probes.comparison.setup.prompts import ComparisonPrompts, sample_comparison_prompts
from probes.comparison.setup.references import (
    ComparisonSettings,
    ModelSpec,
    ReferenceModels,
    load_models,
    load_references,
)
from probes.comparison.variables.transfer import Hits, donor_hits
from probes.errors import ModelError
from probes.models.model import Model
from probes.observe.format.kept import pattern_in_format
from probes.plan import Plan
from probes.progress import Progress
from probes.prompts.catalog import pattern
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.once import tokenize_once
from probes.scale.commands import open_store, remember_command
from probes.scale.engine import InProcess, open_engine, unit_runner
from probes.scale.store import Store

_DEFAULTS = ComparisonSettings()
_REPEAT_SEED_STEP = 1_000_003  # Seeds of draws, paths and random-init models do not meet.


def compare(
    full: ModelSpec,
    other: ModelSpec,
    on: str | Pattern = "take-away",
    settings: ComparisonSettings = _DEFAULTS,
) -> Comparison:
    """Compare the circuits of two models on a pattern, with a null behind every number.

    Args:
        full, other: Models, or names that `load` takes; "random-init" is a fresh model of the
            shape of `full`.
        on: Pattern, its name, or the path of a file of pairs.
        settings: Sizes, seed, controls, and how much is measured exactly.

    Raises:
        ProbeError: A model, pattern or file is unknown or does not fit.
    """
    return compare_family(full, [other], on, settings).comparisons[0]


def compare_family(
    full: ModelSpec,
    others: Sequence[ModelSpec],
    on: str | Pattern = "take-away",
    settings: ComparisonSettings = _DEFAULTS,
) -> FamilyComparison:
    """Compare `full` with several relatives, `others`; `on` and `settings` as in `compare`.

    Each model, and each random-init model, is measured once.

    Raises:
        ProbeError: A model, pattern or file is unknown or does not fit.
    """
    if settings.nulls < 1:
        raise ModelError(
            f"nulls={settings.nulls} found: a comparison needs at least one random-init model"
        )
    if min(settings.draws, settings.repeats) < 1:
        raise ModelError(
            f"draws={settings.draws} and repeats={settings.repeats} found: a comparison needs at "
            "least one of each"
        )
    with open_store(settings.run) as store, tokenize_once():
        return _compare_in(store, (full, others), on, settings)


def _compare_in(
    store: Store | None,
    specs: tuple[ModelSpec, Sequence[ModelSpec]],
    on: str | Pattern,
    settings: ComparisonSettings,
) -> FamilyComparison:
    """Compare with a store; a comparison of the same models and settings is read from it."""
    a, bs = load_models(*specs, settings.seed, device=settings.device)
    chosen = pattern(on) if isinstance(on, str) else on
    references = load_references(a, bs, settings)
    chosen = pattern_in_format(
        chosen,
        settings.format,
        [a, *bs],
        seed=settings.seed,
        references=references.not_compared(()),
    )
    whole = partial(_compare_loaded, [a, *bs], chosen, references)
    settings = replace(settings, run=store)
    if store is None or settings.budget is not None:  # A budget gives other settings each time.
        return whole(settings)
    return remember_command(store, "comparison", whole, settings)


def _compare_loaded(
    models: Sequence[Model],
    chosen: Pattern,
    references: ReferenceModels,
    settings: ComparisonSettings,
) -> FamilyComparison:
    """Plan and compare loaded models."""
    plan, null_choice = None, settings.null  # A plan with a budget chooses in place of "auto".
    if settings.is_planned:
        if settings.budget is not None:  # Of each comparison.
            settings = replace(settings, budget=settings.budget / settings.repeats)
        plan, settings = plan_comparison(models, references, chosen, settings)
        if settings.on_plan:
            settings.on_plan(plan)
    seeds = [settings.seed + k * _REPEAT_SEED_STEP for k in range(settings.repeats)]
    with open_engine(settings.engine, workers=settings.workers, device=settings.device) as engine:
        # A model compared with itself cannot run twice at once in one process.
        if isinstance(engine, InProcess) and len({id(m.bridge) for m in models}) < len(models):
            engine = InProcess()
        settings = replace(settings, engine=engine)
        every = [
            _compare_once(models, chosen, references, replace(settings, seed=seed), plan)
            for seed in seeds
        ]
    return gather_repeats(
        [[_with_method(one, plan, null_choice) for one in found] for found in every]
    )


def _compare_once(
    models: Sequence[Model],
    chosen: Pattern,
    references: ReferenceModels,
    settings: ComparisonSettings,
    plan: Plan | None,
) -> list[Comparison]:
    """Comparisons of loaded models, all on one draw of pairs."""
    with (
        Progress(plan if settings.progress else None) as progress,
        ThreadPoolExecutor(settings.engine.workers) as pool,
    ):
        run_all = run_in_pool(pool, progress, unit_runner(settings.run, settings.engine))
        prompts = sample_comparison_prompts(chosen, models, settings)
        measured = run_all(partial(measure_model, prompts=prompts), models, "models")
        paths = _measure_paths(prompts, measured, references.other_seed, run_all)
        against = ReferenceSet(
            nulls=measure_nulls(prompts, measured, paths, settings, run_all),
            paths=paths,
            edges=_compare_edges(prompts, measured, settings, run_all),
            **_measure_references(references, measured, prompts, run_all),
        )
        run_unit = unit_runner(settings.run, settings.engine)
        pairs = measure_pairs(prompts, measured, against, run_all, run_unit)
        assemble = partial(
            assemble_comparison, shared=prompts, references=against, settings=settings
        )
        return run_all(assemble, pairs, "verdicts")


def _with_method(comparison: Comparison, plan: Plan | None, null_choice: NullChoice) -> Comparison:
    """The comparison, which says which null was asked for and what a budget left out."""
    left_out = plan.left_out if plan else ()
    method = replace(comparison.method, null_choice=null_choice, left_out=left_out)
    return replace(comparison, method=method)


def _measure_paths(
    prompts: ComparisonPrompts,
    measured: Sequence[ModelMeasurements],
    other_seed: Model | None,
    run_all: RunAll,
) -> PathMeasurements:
    """Effects of all found paths in the models and in the other seed."""
    full, *relatives = measured
    found = [one.paths for one in relatives]
    plan = plan_paths(full.paths, found, prompts.paths, seed=prompts.seed)
    models = {one.name: one.model for one in measured}
    if other_seed:
        models.setdefault(other_seed.name, other_seed)
    runs = run_all(partial(measure_paths, plan=plan), [*models.values()], "role paths")
    return PathMeasurements(plan, dict(zip(models, runs, strict=True)))


def _compare_edges(
    prompts: ComparisonPrompts,
    measured: Sequence[ModelMeasurements],
    settings: ComparisonSettings,
    run_all: RunAll,
) -> dict[str, EdgeComparison]:
    """Compare the full model edge by edge with each relative that has the same graph."""
    is_wanted = prompts.screen is not None if settings.edges is None else settings.edges
    full, *relatives = (one.model for one in measured)
    same = [model for model in relatives if is_wanted and has_same_graph(full, model)]
    if not same:
        return {}
    # One job: the full model cannot run in two threads at once.
    found = run_all(partial(_edges_of_each, full=full, prompts=prompts), [same], "edges")
    return dict(zip((model.name for model in same), found[0], strict=True))


def _edges_of_each(
    relatives: Sequence[Model], full: Model, prompts: ComparisonPrompts
) -> list[EdgeComparison]:
    return [compare_edges(full, relative, prompts) for relative in relatives]


def _measure_reference(job: tuple[Model, bool], prompts: ComparisonPrompts) -> ReferenceModel:
    model, with_sites = job
    return measure_reference(model, prompts, with_sites=with_sites)


def _negative_control_hits(
    prompts: ComparisonPrompts,
    measured: Sequence[ModelMeasurements],
    negative_controls: Sequence[ReferenceModel],
    run_all: RunAll,
) -> dict[str, dict[str, Hits]]:
    """Run each negative control as donor into every recipient."""
    recipients = [one.recipient for one in measured if one.recipient]
    if prompts.folds is None:
        return {}
    donors = [one.donor for one in negative_controls if one.donor]
    hits = run_all(partial(donor_hits, donors=donors), recipients, "negative controls")
    return dict(zip((recipient.name for recipient in recipients), hits, strict=True))


def _measure_references(
    references: ReferenceModels,
    measured: Sequence[ModelMeasurements],
    prompts: ComparisonPrompts,
    run_all: RunAll,
) -> dict[str, Any]:
    """Measure the reference models that are not compared, and name the role of each."""
    other_seed = references.other_seed.name if references.other_seed else ""
    by_name = {one.name: one.as_reference(with_sites=one.name == other_seed) for one in measured}
    others = references.not_compared(by_name)
    jobs = [(model, model.name == other_seed) for model in others]
    for reference in run_all(
        partial(_measure_reference, prompts=prompts), jobs, "reference models"
    ):
        by_name[reference.name] = reference
    controls = [by_name[model.name] for model in references.negative_controls]
    return {
        "other_seed": by_name[references.other_seed.name] if references.other_seed else None,
        "same_shape": {name: by_name[m.name] for name, m in references.same_shape.items()},
        "negative_controls": controls,
        "negative_control_hits": _negative_control_hits(prompts, measured, controls, run_all),
    }
