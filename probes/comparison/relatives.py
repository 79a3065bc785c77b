"""The main job: put one pattern to a model and its relatives, and say what became of what.

models → gates, heads, hotspots of each → nets that stand for chance → one word a head and variable
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TypeVar

from tqdm.auto import tqdm

from probes.asking import Pattern
from probes.comparison.measuring import Measured, Net, aside, draw_plan, measured, net
from probes.comparison.pairing import Around, compared, shape_of
from probes.comparison.result import Comparison
from probes.comparison.together import Relatives
from probes.errors import ModelError
from probes.model import Model, load, untrained
from probes.patterns import pattern
from probes.resources import family_members

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
    a, bs = _named(full, others, seed)
    chosen = pattern(on) if isinstance(on, str) else on
    twin, control, strange = _company(a, bs, another_seed, strangers)
    building = Lock()

    def shown(items: Sequence[T]) -> Iterable[T]:
        return _bar(items, "drawing pairs", progress)

    with ThreadPoolExecutor(workers) as pool:

        def each(job: Callable[[T], U], items: Sequence[T], text: str) -> list[U]:
            return list(_bar(pool.map(job, items), text, progress, len(items)))

        plan = draw_plan(chosen, [a, *bs], prompts, seed, shown)
        seen = each(lambda model: measured(model, plan), [a, *bs], "models")
        beside = [model for model in (twin, control, *strange) if model]
        near = each(lambda m: aside(m, plan, sites=m is twin), beside, "models beside")
        shapes = list({shape_of(model): model for model in (a, *bs)}.values())
        jobs = [(like, number) for like in shapes for number in range(nulls)]

        def chance(job: tuple[Model, int]) -> Net:
            like, number = job
            hosts = [one.host for one in seen if one.host and _meets(like, one, seen)]
            alone = all(shape_of(like) != shape_of(b) for b in bs)
            return net(like, number, plan, hosts, building, alone=alone)

        nets = each(chance, jobs, "untrained nets")
    around = Around(
        {
            shape_of(like): [n for (of, _), n in zip(jobs, nets, strict=True) if of is like]
            for like in shapes
        },
        near[0] if twin else None,
        near[bool(twin)] if control else None,
        near[-len(strange) :] if strange else [],
    )
    dials = (prompts, seed, nulls)
    return Relatives(tuple(compared(plan, seen[0], b, around, dials) for b in seen[1:]))


def _meets(like: Model, one: Measured, seen: Sequence[Measured]) -> bool:
    """Say whether nets of a shape are put into a model: the first's shape into all others,
    the others' into the first."""
    first = seen[0]
    if one is first:
        return any(shape_of(like) == shape_of(other.model) for other in seen[1:])
    return shape_of(like) == shape_of(first.model)


def _named(full: Name, others: Sequence[Name], seed: int) -> tuple[Model, list[Model]]:
    """Load the models; two of one name are told apart."""
    if not others:
        raise ModelError("One model alone was given: name a relative to compare it with")
    a = load(full)
    found = [a]
    for other in others:
        model = untrained(a, seed=seed + _FAR) if other == "untrained" else load(other)
        if model.tokenizer is None or a.tokenizer is None:
            bare = model.name if model.tokenizer is None else a.name
            raise ModelError(f"{bare!r} came without a tokenizer: add its files and load again")
        same = sum(one.name.split(" (")[0] == model.name for one in found)
        found.append(replace(model, name=f"{model.name} ({same + 1})") if same else model)
    return a, found[1:]


def _company(
    a: Model, bs: Sequence[Model], another_seed: Name | None, strangers: Sequence[Name] | None
) -> tuple[Model | None, Model | None, list[Model]]:
    """Return another seed, a control of the relatives' shape, and the strangers, where known."""
    known = a.origin.startswith("family member ")
    twin = another_seed or (OTHER_SEED.get(a.name) if known else None)
    control = next((SAME_SHAPE[b.name] for b in bs if known and b.name in SAME_SHAPE), None)
    if strangers is None:
        strangers = [name for name in STRANGERS if known and name in family_members()]
    names = {a.name, *(b.name for b in bs)}
    return (
        load(twin) if twin is not None else None,
        load(control) if control is not None else None,
        [model for model in map(load, strangers) if model.name not in names],
    )


def _bar(items: Iterable[T], text: str, progress: bool, total: int | None = None) -> Iterable[T]:
    return tqdm(items, desc=text, total=total, leave=False, disable=None if progress else True)
