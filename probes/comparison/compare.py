"""Comparison of a model with its relatives on one pattern.

models → gates, heads and hotspots of each → random-init null → a verdict for each head and variable
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from probes.comparison.assemble import assemble_comparison
from probes.comparison.circuits.edge_result import EdgeComparison
from probes.comparison.circuits.edges import compare_edges
from probes.comparison.family_result import FamilyComparison
from probes.comparison.measurements import (
    ModelMeasurements,
    NullDraw,
    NullGroup,
    ReferenceModel,
    measure_model,
    measure_null,
    measure_reference,
    permute_measurements,
    prepare_nulls,
)
from probes.comparison.pair_transfers import (
    MeasuredPair,
    ReferenceSet,
    architecture_key,
    first_draw,
    further_draw,
    run_draw,
)
from probes.comparison.paths.measure import PathMeasurements, measure_paths, plan_paths
from probes.comparison.result import Comparison
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

T = TypeVar("T")
U = TypeVar("U")
_DEFAULTS = ComparisonSettings()


@runtime_checkable
class RunAll(Protocol):
    """Function that runs a job on each item."""

    def __call__(
        self,
        job: Callable[[T], U],
        items: Sequence[T],
        label: str,
        part: tuple[int, int] = (0, 1),
    ) -> list[U]:
        """Run the job on each item of a part of a stage, in parallel threads and with progress."""
        ...


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
    """Compare a model with several relatives; arguments as in `compare`.

    Each model, and each random-init model, is measured once.

    Raises:
        ProbeError: A model, pattern or file is unknown or does not fit.
    """
    if settings.nulls < 1:
        raise ModelError(
            f"nulls={settings.nulls} found: a comparison needs at least one random-init model"
        )
    if settings.draws < 1:
        raise ModelError(f"draws={settings.draws} found: a comparison needs at least one draw")
    a, bs = load_models(full, others, settings.seed)
    chosen = pattern(on) if isinstance(on, str) else on
    references = load_references(a, bs, settings)
    chosen = pattern_in_format(
        chosen,
        settings.format,
        [a, *bs],
        seed=settings.seed,
        references=references.not_compared(()),
    )
    plan = None
    if settings.is_planned:
        plan, settings = plan_comparison([a, *bs], references, chosen, settings)
        if settings.on_plan:
            settings.on_plan(plan)
    workers = settings.workers
    if len({id(model.bridge) for model in (a, *bs)}) <= len(bs):
        workers = 1  # A model compared with itself cannot run twice at once.
    with (
        Progress(plan if settings.progress else None) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):

        def run_all(
            job: Callable[[T], U],
            items: Sequence[T],
            label: str,
            part: tuple[int, int] = (0, 1),
        ) -> list[U]:
            return list(progress.track(pool.map(job, items), label, len(items), part))

        prompts = sample_comparison_prompts(chosen, [a, *bs], settings)
        measured = run_all(lambda model: measure_model(model, prompts), [a, *bs], "models")
        paths = _measure_paths(prompts, measured, references.other_seed, run_all)
        against = ReferenceSet(
            nulls=_measure_nulls(prompts, measured, paths, settings.nulls, run_all),
            paths=paths,
            edges=_compare_edges(prompts, measured, settings, run_all),
            **_measure_references(references, measured, prompts, run_all),
        )
        pairs = _measure_pairs(prompts, measured, against, run_all)
        comparisons = run_all(
            lambda pair: assemble_comparison(prompts, pair, against, settings), pairs, "verdicts"
        )
    return FamilyComparison(tuple(_with_left_out(one, plan) for one in comparisons))


def _with_left_out(comparison: Comparison, plan: Plan | None) -> Comparison:
    """The comparison, which says what a budget left out."""
    if plan is None or not plan.left_out:
        return comparison
    return replace(comparison, method=replace(comparison.method, left_out=plan.left_out))


def _measure_pairs(
    prompts: ComparisonPrompts,
    measured: Sequence[ModelMeasurements],
    references: ReferenceSet,
    run_all: RunAll,
) -> list[MeasuredPair]:
    """Interchange between the full model and each relative; the runs of one draw at a time."""
    full, *relatives = measured
    if prompts.folds is None:
        return [MeasuredPair(full, other, ()) for other in relatives]
    firsts = run_all(
        lambda other: first_draw(prompts, full, other, references), relatives, "interchange"
    )
    draws = [[first] for first in firsts]
    stage, parts = "further draws", 2 * len(prompts.further_folds)
    for number, (seed, folds) in enumerate(prompts.further_folds.items()):
        run = partial(run_draw, folds=folds, seed=seed)
        runs = run_all(run, measured, stage, (2 * number, parts))
        jobs = [(runs[0], own) for own in runs[1:]]
        transfer = partial(further_draw, seed=seed)
        further = run_all(transfer, jobs, stage, (2 * number + 1, parts))
        for one, draw in zip(draws, further, strict=True):
            one.append(draw)
    return [MeasuredPair(full, b, tuple(own)) for b, own in zip(relatives, draws, strict=True)]


def _measure_nulls(
    prompts: ComparisonPrompts,
    measured: Sequence[ModelMeasurements],
    paths: PathMeasurements,
    nulls: int,
    run_all: RunAll,
) -> dict[object, list[NullDraw]]:
    """Measure the random-init models of each architecture, or permute what was measured."""
    if prompts.permuted_null:
        return {
            one.name: [
                permute_measurements(one, paths.runs[one.name], prompts.seed + n)
                for n in range(nulls)
            ]
            for one in measured[1:]
        }
    jobs = [(group, n) for group in _null_groups(prompts, measured) for n in range(nulls)]
    results = run_all(
        lambda job: measure_null(*job, prompts, paths.plan), jobs, "random-init models"
    )
    by_architecture: dict[object, list[NullDraw]] = {}
    for (group, _), null in zip(jobs, results, strict=True):
        by_architecture.setdefault(architecture_key(group.template_model), []).append(null)
    return by_architecture


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
    runs = run_all(lambda model: measure_paths(model, plan), [*models.values()], "role paths")
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
    same = [model for model in relatives if is_wanted and _has_same_graph(full, model)]
    # One job: the full model cannot run in two threads at once.
    found = run_all(
        lambda models: [compare_edges(full, m, prompts) for m in models], [same], "edges"
    )
    return dict(zip((model.name for model in same), found[0], strict=True))


def _has_same_graph(full: Model, other: Model) -> bool:
    """Whether two models have the same shape, vocabulary and so the same edges."""
    tokens = full.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    return full.shape == other.shape and tokens and full.bridge is not other.bridge


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
    hits = run_all(lambda recipient: donor_hits(recipient, donors), recipients, "negative controls")
    return dict(zip((recipient.name for recipient in recipients), hits, strict=True))


def _measure_references(
    references: ReferenceModels,
    measured: Sequence[ModelMeasurements],
    prompts: ComparisonPrompts,
    run_all: RunAll,
) -> dict[str, Any]:
    """Measure the reference models that are not compared, and name the role of each."""
    by_name = {one.name: one.as_reference() for one in measured}
    for reference in run_all(
        lambda model: measure_reference(model, prompts, with_sites=model is references.other_seed),
        references.not_compared(by_name),
        "reference models",
    ):
        by_name[reference.name] = reference
    controls = [by_name[model.name] for model in references.negative_controls]
    return {
        "other_seed": by_name[references.other_seed.name] if references.other_seed else None,
        "same_shape": {name: by_name[m.name] for name, m in references.same_shape.items()},
        "negative_controls": controls,
        "negative_control_hits": _negative_control_hits(prompts, measured, controls, run_all),
    }


def _null_groups(
    prompts: ComparisonPrompts, measured: Sequence[ModelMeasurements]
) -> list[NullGroup]:
    """Groups of random-init models, one for each shape.

    Models of the first shape are donors into the others; models of the others' shapes are donors
    into the first.
    """
    first, *others = measured
    templates = {architecture_key(one.model): one.model for one in reversed(measured)}
    compared = {architecture_key(one.model) for one in others}
    groups = []
    for key, template in templates.items():
        recipients = [first] if key in compared else []
        recipients += others if key == architecture_key(first.model) else []
        open_recipients = [one.recipient for one in recipients if one.recipient]
        groups.append(
            prepare_nulls(template, prompts, open_recipients, states_only=key not in compared)
        )
    return groups
