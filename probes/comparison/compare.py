"""Comparison of a model with its relatives on one pattern.

models → gates, heads and hotspots of each → random-init null → a verdict for each head and variable
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TypeVar

from tqdm.auto import tqdm

from probes.comparison.assemble import ReferenceSet, architecture_key, assemble_comparison
from probes.comparison.family_result import FamilyComparison
from probes.comparison.measurements import (
    ModelMeasurements,
    NullGroup,
    RandomInitNull,
    ReferenceModel,
    measure_model,
    measure_null,
    measure_reference,
    prepare_nulls,
)
from probes.comparison.prompts import ComparisonPrompts, sample_comparison_prompts
from probes.comparison.result import Comparison
from probes.comparison.variables.stitching import Recipient
from probes.comparison.variables.transfer import Hits, donor_hits, with_unique_names
from probes.errors import ModelError
from probes.models.model import Model, load, random_init
from probes.models.run_checks import require_unedited
from probes.prompts.catalog import pattern
from probes.prompts.pattern import Pattern

_SEED_OFFSET = 10_000  # Separates a compared random-init model from those of the null.

T = TypeVar("T")
U = TypeVar("U")
ModelSpec = str | Path | Model


def compare(  # noqa: PLR0913 (the main job has its settings)
    full: ModelSpec,
    other: ModelSpec,
    on: str | Pattern = "take-away",
    *,
    prompts: int = 32,
    seed: int = 0,
    nulls: int = 20,
    other_seed: ModelSpec | None = None,
    negative_controls: Sequence[ModelSpec] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Comparison:
    """Compare the circuits of two models on a pattern, with a null behind every number.

    Args:
        full, other: Models, or names that `load` takes; "random-init" is a fresh model of the
            shape of `full`.
        on: Pattern, its name, or the path of a file of pairs.
        prompts: Pairs for each contrast.
        seed: Seed of the prompts, the random-init models and the bootstrap.
        nulls: Number of random-init models of the other's shape.
        other_seed: Model that differs from `full` in its training seed only. By default the one
            that the provenance of `full` names.
        negative_controls: Models trained on the same texts for another task. By default those that
            the provenance of `full` names.
        workers: Models measured in parallel threads. The result does not depend on it; give torch
            one thread if it is more than one.
        progress: Show a progress bar.

    Raises:
        ProbeError: A model, pattern or file is unknown or does not fit.
    """
    family = compare_family(
        full,
        [other],
        on,
        prompts=prompts,
        seed=seed,
        nulls=nulls,
        other_seed=other_seed,
        negative_controls=negative_controls,
        workers=workers,
        progress=progress,
    )
    return family.comparisons[0]


def compare_family(  # noqa: PLR0913 (the main job has its settings)
    full: ModelSpec,
    others: Sequence[ModelSpec],
    on: str | Pattern = "take-away",
    *,
    prompts: int = 32,
    seed: int = 0,
    nulls: int = 20,
    other_seed: ModelSpec | None = None,
    negative_controls: Sequence[ModelSpec] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> FamilyComparison:
    """Compare a model with several relatives; arguments as in `compare`.

    Each model, and each random-init model, is measured once.

    Raises:
        ProbeError: A model, pattern or file is unknown or does not fit.
    """
    if nulls < 1:
        raise ModelError(f"nulls={nulls} found: a comparison needs at least one random-init model")
    a, bs = _load_models(full, others, seed)
    chosen = pattern(on) if isinstance(on, str) else on
    company = _load_references(a, bs, other_seed, negative_controls)
    if len({id(model.bridge) for model in (a, *bs)}) <= len(bs):
        workers = 1  # A model compared with itself cannot run twice at once.
    building = Lock()
    with ThreadPoolExecutor(workers) as pool:

        def each(job: Callable[[T], U], items: Sequence[T], text: str) -> list[U]:
            return list(_progress_bar(pool.map(job, items), text, progress, len(items)))

        plan = sample_comparison_prompts(
            chosen, [a, *bs], prompts, seed, lambda items: _progress_bar(items, "pairs", progress)
        )
        seen = each(lambda model: measure_model(model, plan), [a, *bs], "models")
        near = _measure_references(
            company,
            seen,
            lambda job: each(job, company.not_compared(seen), "reference models"),
            plan,
        )
        kinds = _null_groups(plan, seen)
        jobs = [(one, number) for one in kinds for number in range(nulls)]
        nets = each(lambda job: measure_null(*job, plan, building), jobs, "random-init models")
        by_shape: dict[object, list[RandomInitNull]] = {}
        for (one, _), found in zip(jobs, nets, strict=True):
            by_shape.setdefault(architecture_key(one.template_model), []).append(found)
        around = ReferenceSet(
            by_shape,
            near.get(company.other_seed.name) if company.other_seed else None,
            {name: near[model.name] for name, model in company.same_shape.items()},
            [near[model.name] for model in company.negative_controls],
            _negative_control_hits(
                plan, seen, [near[model.name] for model in company.negative_controls], each
            ),
        )
        settings = (prompts, seed, nulls)
        return FamilyComparison(
            tuple(
                each(
                    lambda b: assemble_comparison(plan, seen[0], b, around, settings),
                    seen[1:],
                    "verdicts",
                )
            )
        )


def _negative_control_hits(
    prompts: ComparisonPrompts,
    measured: Sequence[ModelMeasurements],
    negative_controls: Sequence[ReferenceModel],
    run_all: Callable[
        [Callable[[Recipient], dict[str, Hits]], Sequence[Recipient], str], list[dict[str, Hits]]
    ],
) -> dict[str, dict[str, Hits]]:
    """Run each negative control as donor into every recipient."""
    recipients = [one.recipient for one in measured if one.recipient]
    if prompts.folds is None:
        return {}
    donors = [one.donor for one in negative_controls if one.donor]
    found = run_all(
        lambda recipient: donor_hits(recipient, donors),
        recipients,
        "negative controls",
    )
    return {recipient.name: hits for recipient, hits in zip(recipients, found, strict=True)}


@dataclass(frozen=True, eq=False)
class _LoadedReferences:
    """Reference models, not compared themselves.

    Attributes:
        other_seed: The full model trained from another seed.
        same_shape: For each relative, by name, a model of its shape trained without the full model.
        negative_controls: Models trained for another task.
    """

    other_seed: Model | None
    same_shape: Mapping[str, Model]
    negative_controls: Sequence[Model]

    def not_compared(self, measured: Sequence[ModelMeasurements]) -> list[Model]:
        """Reference models that are not among the compared ones."""
        known = {one.name for one in measured}
        every = [
            *([self.other_seed] if self.other_seed else []),
            *self.same_shape.values(),
            *self.negative_controls,
        ]
        return list({model.name: model for model in every if model.name not in known}.values())


def _measure_references(
    references: _LoadedReferences,
    measured: Sequence[ModelMeasurements],
    run_all: Callable[[Callable[[Model], ReferenceModel]], Sequence[ReferenceModel]],
    prompts: ComparisonPrompts,
) -> dict[str, ReferenceModel]:
    """Measure the reference models that are not measured yet."""
    found = {one.name: one.as_reference() for one in measured}
    for one in run_all(
        lambda model: measure_reference(model, prompts, with_sites=model is references.other_seed)
    ):
        found[one.name] = one
    return found


def _null_groups(
    prompts: ComparisonPrompts, measured: Sequence[ModelMeasurements]
) -> list[NullGroup]:
    """Groups of random-init models, one for each shape.

    Models of the first shape are donors into the others; models of the others' shapes are donors
    into the first.
    """
    first, *others = measured
    shapes = {architecture_key(one.model): one.model for one in reversed(measured)}
    theirs = {architecture_key(one.model) for one in others}
    found = []
    for shape, like in shapes.items():
        recipients = [first] if shape in theirs else []
        recipients += others if shape == architecture_key(first.model) else []
        ready = [one.recipient for one in recipients if one.recipient]
        found.append(prepare_nulls(like, prompts, ready, states_only=shape not in theirs))
    return found


def _load_models(
    full: ModelSpec, others: Sequence[ModelSpec], seed: int
) -> tuple[Model, list[Model]]:
    """Load the models, with unique names."""
    if not others:
        raise ModelError("Only one model was given: name a relative to compare it with")
    a = load(full)
    found = [
        random_init(a, seed=seed + _SEED_OFFSET) if other == "random-init" else load(other)
        for other in others
    ]
    for model in (a, *found):
        require_unedited(model)
        if model.tokenizer is None:
            raise ModelError(f"{model.name!r} has no tokenizer: add its files and load again")
    return a, with_unique_names(found, [a.name])


def _load_references(
    a: Model,
    bs: Sequence[Model],
    other_seed: ModelSpec | None,
    negative_controls: Sequence[ModelSpec] | None,
) -> _LoadedReferences:
    """Load the other-seed model, same-shape controls and negative controls.

    The provenance of the models names those that are not given.
    """
    facts = {model.name: model.provenance for model in (a, *bs)}
    full_facts = facts[a.name]
    twin = other_seed
    if twin is None and full_facts and full_facts.other_seeds:
        twin = full_facts.other_seeds[0]
    shaped = {b.name: made.controls[0] for b in bs if (made := facts[b.name]) and made.controls}
    if negative_controls is None:
        names = full_facts.negative_controls if full_facts else ()
        negative_controls = [name for name in names if name not in facts]
    given = [*([twin] if twin is not None else []), *shaped.values(), *negative_controls]
    every = _deduplicate(list(map(load, given)), [a, *bs])
    if twin is not None:
        twin, *every = every
    return _LoadedReferences(
        other_seed=twin,
        same_shape=dict(zip(shaped, every, strict=False)),
        negative_controls=list({model.name: model for model in every[len(shaped) :]}.values()),
    )


def _deduplicate(models: Sequence[Model], compared: Sequence[Model]) -> list[Model]:
    """Reuse compared models, and give the others unique names."""
    found: list[Model] = []
    for model in models:
        before = [*compared, *found]
        same = next((one for one in before if _is_same_model(one, model)), None)
        found.append(same or with_unique_names([model], [one.name for one in before])[0])
    return found


def _is_same_model(one: Model, other: Model) -> bool:
    """Whether two values are the same model, loaded once or twice."""
    stored = one.origin.startswith(("family member ", "folder ", "hub "))
    return one.bridge is other.bridge or (stored and one.origin == other.origin)


def _progress_bar(
    items: Iterable[T], label: str, progress: bool, total: int | None = None
) -> Iterable[T]:
    return tqdm(items, desc=label, total=total, leave=False, disable=None if progress else True)
