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

from probes.comparison.assemble import Around, compared, shape_of
from probes.comparison.family_result import Relatives
from probes.comparison.measurements import (
    Aside,
    Measured,
    Net,
    Nulls,
    Plan,
    aside,
    draw_plan,
    measured,
    net,
    nulls_like,
)
from probes.comparison.result import Comparison
from probes.comparison.variables.stitching import Host
from probes.comparison.variables.transfer import Hits, apart, handed
from probes.errors import ModelError
from probes.files import family_members
from probes.models.model import Model, load, untrained
from probes.prompts.catalog import pattern
from probes.prompts.pattern import Pattern

OTHER_SEED = {"full": "full-b", "full-b": "full"}
"""Members of the embedded family that differ in nothing but their seed."""

STRANGERS = ("copying", "permuted")
"""Members that were trained on the same words for another end."""

SAME_SHAPE = {"distilled": "scratch"}
"""Members with the shape of another, trained for the same end without the full model."""

_FAR = 10_000  # Added to the seed of an untrained net that is compared, not one that is chance.

T = TypeVar("T")
U = TypeVar("U")
Name = str | Path | Model


def compare(  # noqa: PLR0913 (the main job has its dials)
    full: Name,
    other: Name,
    on: str | Pattern = "take-away",
    *,
    prompts: int = 32,
    seed: int = 0,
    nulls: int = 20,
    another_seed: Name | None = None,
    strangers: Sequence[Name] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Comparison:
    """Compare what two models do with a pattern, with a null behind every number.

    Args:
        full, other: Models, or names that `load` takes; "untrained" is a net of the first's shape.
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
        another_seed=another_seed,
        strangers=strangers,
        workers=workers,
        progress=progress,
    )
    return found.comparisons[0]


def compare_family(  # noqa: PLR0913 (the main job has its dials)
    full: Name,
    others: Sequence[Name],
    on: str | Pattern = "take-away",
    *,
    prompts: int = 32,
    seed: int = 0,
    nulls: int = 20,
    another_seed: Name | None = None,
    strangers: Sequence[Name] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Relatives:
    """Compare a model with several relatives at once; arguments as in `compare`.

    Each model, and each net that stands for chance, is measured once.

    Raises:
        ProbeError: A model, pattern or file that is unknown or does not fit; see its kinds.
    """
    if nulls < 1:
        raise ModelError(f"nulls={nulls} found: a comparison needs at least one untrained net")
    a, bs = _named(full, others, seed)
    chosen = pattern(on) if isinstance(on, str) else on
    company = _company(a, bs, another_seed, strangers)
    if len({id(model.bridge) for model in (a, *bs)}) <= len(bs):
        workers = 1  # A model compared with itself cannot run twice at once.
    building = Lock()
    with ThreadPoolExecutor(workers) as pool:

        def each(job: Callable[[T], U], items: Sequence[T], text: str) -> list[U]:
            return list(_bar(pool.map(job, items), text, progress, len(items)))

        plan = draw_plan(
            chosen, [a, *bs], prompts, seed, lambda items: _bar(items, "pairs", progress)
        )
        seen = each(lambda model: measured(model, plan), [a, *bs], "models")
        near = _near(company, seen, lambda job: each(job, company.unseen(seen), "beside"), plan)
        kinds = _kinds(plan, seen)
        jobs = [(one, number) for one in kinds for number in range(nulls)]
        nets = each(lambda job: net(*job, plan, building), jobs, "untrained nets")
        by_shape: dict[object, list[Net]] = {}
        for (one, _), found in zip(jobs, nets, strict=True):
            by_shape.setdefault(shape_of(one.like), []).append(found)
        around = Around(
            by_shape,
            near.get(company.twin.name) if company.twin else None,
            {name: near[model.name] for name, model in company.controls.items()},
            [near[model.name] for model in company.strangers],
            _passed(plan, seen, [near[model.name] for model in company.strangers], each),
        )
        dials = (prompts, seed, nulls)
        return Relatives(
            tuple(each(lambda b: compared(plan, seen[0], b, around, dials), seen[1:], "words"))
        )


def _passed(
    plan: Plan,
    seen: Sequence[Measured],
    strangers: Sequence[Aside],
    each: Callable[[Callable[[Host], dict[str, Hits]], Sequence[Host], str], list[dict[str, Hits]]],
) -> dict[str, dict[str, Hits]]:
    """Put the strangers into every model that can be put into, once."""
    trials, hosts = plan.trials, [one.host for one in seen if one.host]
    if trials is None:
        return {}
    donors = [one.donor for one in strangers if one.donor]
    found = each(lambda host: handed(host, donors, trials, trials.variables), hosts, "strangers")
    return {host.name: hits for host, hits in zip(hosts, found, strict=True)}


@dataclass(frozen=True, eq=False)
class _Company:
    """Models that the compared ones are held against.

    Attributes:
        twin: Another seed of the full model.
        controls: For relatives, by name, one of their shape that never saw the full model.
        strangers: Models trained for another end.
    """

    twin: Model | None
    controls: Mapping[str, Model]
    strangers: Sequence[Model]

    def unseen(self, seen: Sequence[Measured]) -> list[Model]:
        """Return those that are not compared themselves."""
        known = {one.name for one in seen}
        every = [*([self.twin] if self.twin else []), *self.controls.values(), *self.strangers]
        return list({model.name: model for model in every if model.name not in known}.values())


def _near(
    company: _Company,
    seen: Sequence[Measured],
    each: Callable[[Callable[[Model], Aside]], Sequence[Aside]],
    plan: Plan,
) -> dict[str, Aside]:
    """Measure what models are held against, where it was not measured as one of them."""
    found = {one.name: one.beside() for one in seen}
    for one in each(lambda model: aside(model, plan, sites=model is company.twin)):
        found[one.name] = one
    return found


def _kinds(plan: Plan, seen: Sequence[Measured]) -> list[Nulls]:
    """Say what nets of each shape are for: the first model's, and each of the others'.

    Nets of the first model's shape are put into the others, and theirs into the first.
    """
    first, *others = seen
    shapes = {shape_of(one.model): one.model for one in reversed(seen)}
    theirs = {shape_of(one.model) for one in others}
    found = []
    for shape, like in shapes.items():
        hosts = [first] if shape in theirs else []
        hosts += others if shape == shape_of(first.model) else []
        ready = [one.host for one in hosts if one.host]
        found.append(nulls_like(like, plan, ready, alone=shape not in theirs))
    return found


def _named(full: Name, others: Sequence[Name], seed: int) -> tuple[Model, list[Model]]:
    """Load the models; two of one name are told apart."""
    if not others:
        raise ModelError("One model alone was given: name a relative to compare it with")
    a = load(full)
    found = [
        untrained(a, seed=seed + _FAR) if other == "untrained" else load(other) for other in others
    ]
    for model in (a, *found):
        if model.tokenizer is None:
            raise ModelError(
                f"{model.name!r} came without a tokenizer: add its files and load again"
            )
    return a, apart(found, [a.name])


def _company(
    a: Model, bs: Sequence[Model], another_seed: Name | None, strangers: Sequence[Name] | None
) -> _Company:
    """Return another seed, controls of the relatives' shapes, and the strangers, where known."""
    known = a.origin.startswith("family member ")
    twin = another_seed or (OTHER_SEED.get(a.name) if known else None)
    shaped = {b.name: SAME_SHAPE[b.name] for b in bs if known and b.name in SAME_SHAPE}
    if strangers is None:
        names = [a.name, *(b.name for b in bs)]
        strangers = [n for n in STRANGERS if known and n in family_members() and n not in names]
    given = [*([twin] if twin is not None else []), *shaped.values(), *strangers]
    every = _known(list(map(load, given)), [a, *bs])
    if twin is not None:
        twin, *every = every
    return _Company(
        twin=twin,
        controls=dict(zip(shaped, every, strict=False)),
        strangers=list({model.name: model for model in every[len(shaped) :]}.values()),
    )


def _known(models: Sequence[Model], seen: Sequence[Model]) -> list[Model]:
    """Give a model that is compared itself its name there, and number others of a taken name."""
    found: list[Model] = []
    for model in models:
        before = [*seen, *found]
        same = next((one for one in before if _same(one, model)), None)
        found.append(same or apart([model], [one.name for one in before])[0])
    return found


def _same(one: Model, other: Model) -> bool:
    """Tell whether two are one model, loaded once or twice."""
    stored = one.origin.startswith(("family member ", "folder ", "hub "))
    return one.bridge is other.bridge or (stored and one.origin == other.origin)


def _bar(items: Iterable[T], text: str, progress: bool, total: int | None = None) -> Iterable[T]:
    return tqdm(items, desc=text, total=total, leave=False, disable=None if progress else True)
