"""The main job: put one pattern to a model and its relatives, and say what became of what.

models → gates, heads, hotspots of each → nets that stand for chance → one word a head and variable
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
    ComparisonPrompts,
    ModelMeasurements,
    NullGroup,
    RandomInitNull,
    ReferenceModel,
    measure_model,
    measure_null,
    measure_reference,
    prepare_nulls,
    sample_comparison_prompts,
)
from probes.comparison.result import Comparison
from probes.comparison.variables.stitching import Recipient
from probes.comparison.variables.transfer import Hits, donor_hits, with_unique_names
from probes.errors import ModelError
from probes.files import list_models
from probes.models.model import Model, load, random_init
from probes.prompts.catalog import pattern
from probes.prompts.pattern import Pattern

OTHER_SEED = {"full": "full-b", "full-b": "full"}
"""Members of the embedded family that differ in nothing but their seed."""

NEGATIVE_CONTROLS = ("copying", "permuted")
"""Members that were trained on the same words for another end."""

SAME_SHAPE = {"distilled": "scratch"}
"""Members with the shape of another, trained for the same end without the full model."""

_SEED_OFFSET = (
    10_000  # Added to the seed of an untrained net that is compared, not one that is chance.
)

T = TypeVar("T")
U = TypeVar("U")
ModelSpec = str | Path | Model


def compare(  # noqa: PLR0913 (the main job has its dials)
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
    """Compare what two models do with a pattern, with a null behind every number.

    Args:
        full, other: Models, or names that `load` takes; "random-init" is a net of the first's shape.
        on: A pattern or its name, or the path of a file of pairs.
        prompts: Pairs for each contrast.
        seed: Of the prompts, the untrained nets and the bootstrap.
        nulls: How many untrained nets of the other's shape give the chance level.
        another_seed: A model that differs from `full` in its seed alone: the ceiling of what
            "the same" can mean. Known for the embedded family, else none.
        strangers: Models trained on such texts for another end: the stricter null. Known for the
            embedded family, else none.
        workers: How many models are measured at once, each in a thread of its own. The result
            does not depend on it; give torch one thread where it is more than one.
        progress: Whether to show a bar.

    Raises:
        ProbeError: A model, pattern or file that is unknown or does not fit; see its kinds.
    """
    found = compare_family(
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
    return found.comparisons[0]


def compare_family(  # noqa: PLR0913 (the main job has its dials)
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
    """Compare a model with several relatives at once; arguments as in `compare`.

    Each model, and each net that stands for chance, is measured once.

    Raises:
        ProbeError: A model, pattern or file that is unknown or does not fit; see its kinds.
    """
    if nulls < 1:
        raise ModelError(f"nulls={nulls} found: a comparison needs at least one untrained net")
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
            company, seen, lambda job: each(job, company.not_compared(seen), "beside"), plan
        )
        kinds = _null_groups(plan, seen)
        jobs = [(one, number) for one in kinds for number in range(nulls)]
        nets = each(lambda job: measure_null(*job, plan, building), jobs, "untrained nets")
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
                    "words",
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
    """Put the strangers into every model that can be put into, once."""
    trials, recipients = prompts.folds, [one.recipient for one in measured if one.recipient]
    if trials is None:
        return {}
    donors = [one.donor for one in negative_controls if one.donor]
    found = run_all(
        lambda recipient: donor_hits(recipient, donors, trials, trials.variables),
        recipients,
        "strangers",
    )
    return {recipient.name: hits for recipient, hits in zip(recipients, found, strict=True)}


@dataclass(frozen=True, eq=False)
class _LoadedReferences:
    """Models that the compared ones are held against.

    Attributes:
        twin: Another seed of the full model.
        controls: For relatives, by name, one of their shape that never saw the full model.
        strangers: Models trained for another end.
    """

    other_seed: Model | None
    same_shape: Mapping[str, Model]
    negative_controls: Sequence[Model]

    def not_compared(self, measured: Sequence[ModelMeasurements]) -> list[Model]:
        """Return those that are not compared themselves."""
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
    """Measure what models are held against, where it was not measured as one of them."""
    found = {one.name: one.as_reference() for one in measured}
    for one in run_all(
        lambda model: measure_reference(model, prompts, with_sites=model is references.other_seed)
    ):
        found[one.name] = one
    return found


def _null_groups(
    prompts: ComparisonPrompts, measured: Sequence[ModelMeasurements]
) -> list[NullGroup]:
    """Say what nets of each shape are for: the first model's, and each of the others'.

    Nets of the first model's shape are put into the others, and theirs into the first.
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
    """Load the models; two of one name are told apart."""
    if not others:
        raise ModelError("One model alone was given: name a relative to compare it with")
    a = load(full)
    found = [
        random_init(a, seed=seed + _SEED_OFFSET) if other == "random-init" else load(other)
        for other in others
    ]
    for model in (a, *found):
        if model.tokenizer is None:
            raise ModelError(
                f"{model.name!r} came without a tokenizer: add its files and load again"
            )
    return a, with_unique_names(found, [a.name])


def _load_references(
    a: Model,
    bs: Sequence[Model],
    other_seed: ModelSpec | None,
    negative_controls: Sequence[ModelSpec] | None,
) -> _LoadedReferences:
    """Return another seed, controls of the relatives' shapes, and the strangers, where known."""
    known = a.origin.startswith("family member ")
    twin = other_seed or (OTHER_SEED.get(a.name) if known else None)
    shaped = {b.name: SAME_SHAPE[b.name] for b in bs if known and b.name in SAME_SHAPE}
    if negative_controls is None:
        names = [a.name, *(b.name for b in bs)]
        negative_controls = [
            n for n in NEGATIVE_CONTROLS if known and n in list_models() and n not in names
        ]
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
    """Give a model that is compared itself its name there, and number others of a taken name."""
    found: list[Model] = []
    for model in models:
        before = [*compared, *found]
        same = next((one for one in before if _is_same_model(one, model)), None)
        found.append(same or with_unique_names([model], [one.name for one in before])[0])
    return found


def _is_same_model(one: Model, other: Model) -> bool:
    """Tell whether two are one model, loaded once or twice."""
    stored = one.origin.startswith(("family member ", "folder ", "hub "))
    return one.bridge is other.bridge or (stored and one.origin == other.origin)


def _progress_bar(
    items: Iterable[T], label: str, progress: bool, total: int | None = None
) -> Iterable[T]:
    return tqdm(items, desc=label, total=total, leave=False, disable=None if progress else True)
