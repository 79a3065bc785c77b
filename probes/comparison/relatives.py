"""The main job: put one pattern to two relatives and say which heads do the same."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from tqdm.auto import tqdm

from probes.asking import Pattern
from probes.attention import role_attention
from probes.batch import encode
from probes.comparison.estimates import interval, mean
from probes.comparison.gating import ask, judge
from probes.comparison.matching import RELIABLE_FROM, Pairing, match_heads, pair_heads
from probes.comparison.profiles import Profiles, profile, similarity
from probes.comparison.result import Comparison, Overall, Relative, Solved, View
from probes.counterfactuals import PairBatch, draw_pairs, encode_pairs, fits
from probes.errors import BatchError, ModelError
from probes.metrics import Behaviour, behaviour
from probes.model import Model, load, untrained
from probes.patching import Effects
from probes.patterns import pattern
from probes.questions import Pair
from probes.rows import REST

OTHER_SEED = {"full": "full-b", "full-b": "full"}
"""Members of the embedded family that differ in nothing but their seed."""

_GATE_ITEMS = 200
_DRAWS = 200
_FEWEST_PAIRS = 4

T = TypeVar("T")


def compare(  # noqa: PLR0913 (the main job has its dials)
    full: str | Path | Model,
    other: str | Path | Model,
    on: str | Pattern = "take-away",
    *,
    prompts: int = 32,
    seed: int = 0,
    nulls: int = 20,
    another_seed: str | Path | Model | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Comparison:
    """Compare what two models do with a pattern, with a null behind every number.

    Args:
        full, other: Models, or names that `load` takes.
        on: A pattern or its name, or the path of a file of pairs.
        prompts: Pairs for each contrast.
        seed: Of the prompts, the untrained nets and the bootstrap.
        nulls: How many untrained nets of the other's shape give the chance level.
        another_seed: A model that differs from `full` in its seed alone: the ceiling of what
            "the same" can mean. Known for the embedded family, else none.
        workers: How many models are measured at once, each in a thread of its own. The result
            does not depend on it; give torch one thread where it is more than one.
        progress: Whether to show a bar.

    Raises:
        ProbeError: A model, pattern or file that is unknown or does not fit; see its kinds.
    """
    a, b = load(full), load(other)
    if a.name == b.name:
        b = replace(b, name=f"{b.name} (2)")
    chosen = pattern(on) if isinstance(on, str) else on
    for model in (a, b):
        if model.tokenizer is None:
            raise ModelError(
                f"{model.name!r} came without a tokenizer: add its files and load again"
            )
    twin = _twin(a, another_seed)
    tokenizers = list({id(m.tokenizer): m.tokenizer for m in (a, b)}.values())
    questions = chosen.questions(_GATE_ITEMS, seed=seed, keep=fits(*tokenizers))
    pairs = {
        contrast: _pairs(chosen, contrast, prompts, tokenizers, seed)
        for contrast in _bar(chosen.contrasts, "drawing pairs", progress)
    }
    behaviours = {model.name: ask(model, questions) for model in (a, b)}
    models = [model for model in (a, b, twin) if model]
    batches = {model.name: _encoded(model, pairs) for model in models}
    roles = _shared_roles([batches[model.name] for model in (a, b)])
    asked = encode(b.tokenizer, questions, limit=b.shape.context)
    building = Lock()

    def measured(model: Model) -> tuple[Profiles, View | None]:
        kinds = ("heads",) if model is twin else ("heads", "mlps")
        found, effects = profile(model, batches[model.name], roles, kinds=kinds)
        if model is twin:
            return found, None
        exact.update({contrast: effect.exact for contrast, effect in effects.items()})
        return found, _view(model, batches[model.name], roles, effects)

    def null(number: int) -> tuple[Profiles, np.ndarray]:
        with building:  # fresh weights are drawn from torch's one generator
            net = untrained(b, seed=seed + number)
        found, _ = profile(net, batches[b.name], roles)
        return found, behaviour(net, asked).right.float().mean(0).numpy()

    exact: dict[str, float] = {}
    with ThreadPoolExecutor(workers) as pool:
        done = list(_bar(pool.map(measured, models), "patching", progress, len(models)))
        nets = list(_bar(pool.map(null, range(nulls)), "untrained nets", progress, nulls))
    profiles = {model.name: found for model, (found, _) in zip(models, done, strict=True)}
    views = {m.name: view for m, (_, view) in zip(models, done, strict=True) if view is not None}
    null_pairings = [pair_heads(profiles[a.name], found) for found, _ in nets]
    ceiling = pair_heads(profiles[a.name], profiles[twin.name]) if twin else None
    null_scores = np.stack([pairing.score for pairing in null_pairings])
    matches = match_heads(
        profiles[a.name], profiles[b.name], nulls=null_scores, ceiling=ceiling, seed=seed
    )
    taken = {match.partner for match in matches if match.word == "matched"}
    repeats = profiles[b.name].halves().reliability()
    free = [h for h, r in zip(profiles[b.name].heads, repeats, strict=True) if r >= RELIABLE_FROM]
    return Comparison(
        full=_relative(a),
        other=_relative(b),
        pattern=chosen.name,
        title=chosen.title,
        example=questions[0].full_text,
        contrasts={contrast: exact[contrast] for contrast in pairs},
        roles=roles,
        answers=behaviours[a.name].answers,
        prompts=prompts,
        seed=seed,
        nulls=nulls,
        ceiling=twin.name if twin else "",
        gates=(
            *judge(behaviours[a.name], questions, seed=seed),
            *judge(behaviours[b.name], questions, seed=seed),
        ),
        untrained_accuracy=tuple(float(x) for x in np.mean([right for _, right in nets], axis=0)),
        solved=_solved(behaviours, seed),
        matches=matches,
        unmatched=tuple(head for head in free if head not in taken),
        overall=_overall(profiles[a.name], profiles[b.name], null_pairings, ceiling, seed),
        views=views,
    )


def _twin(a: Model, another_seed: str | Path | Model | None) -> Model | None:
    """Return the ceiling's model, if one is known."""
    if another_seed is not None:
        return load(another_seed)
    if a.origin.startswith("family member ") and a.name in OTHER_SEED:
        return load(OTHER_SEED[a.name])
    return None


def _pairs(
    chosen: Pattern, contrast: str, prompts: int, tokenizers: Sequence[Any], seed: int
) -> tuple[Pair, ...]:
    if chosen.given:
        prompts = min(prompts, sum(pair.contrast == contrast for pair in chosen.given))
    if prompts < _FEWEST_PAIRS:
        raise BatchError(
            f"Contrast {contrast!r} has {prompts} pairs: halves and intervals need at least "
            f"{_FEWEST_PAIRS}"
        )
    return draw_pairs(chosen, contrast, prompts, tokenizers=tokenizers, seed=seed)


def _encoded(model: Model, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, PairBatch]:
    limit = model.shape.context
    return {c: encode_pairs(model.tokenizer, given, limit=limit) for c, given in pairs.items()}


def _shared_roles(encoded: Sequence[Mapping[str, PairBatch]]) -> tuple[str, ...]:
    """Return the roles that all models have, in the order in which texts show them.

    The answer that is read last is left out: nothing is read behind it.
    """
    places: list[dict[str, list[float]]] = []
    for batches in encoded:
        found: dict[str, list[float]] = {}
        for pairs in batches.values():
            for role in pairs.clean.roles:
                where = pairs.clean.where(role).nonzero()[:, 1].double()
                found.setdefault(role, []).append(float(where.mean()))
        places.append(found)
    first = next(iter(encoded[0].values())).clean
    last = f"reply_{first.readouts[-1].name}" if first.readouts else ""
    shared = [r for r in places[0] if r != last and all(r in found for found in places)]
    return tuple(sorted(shared, key=lambda r: (r == REST, float(np.mean(places[0][r])))))


def _view(
    model: Model,
    batches: Mapping[str, PairBatch],
    roles: tuple[str, ...],
    effects: Mapping[str, Effects],
) -> View:
    seen = role_attention_over(model, batches, roles)
    mean_of = {c: _laid(e.mean.numpy(), e.roles, roles) for c, e in effects.items()}
    error_of = {c: _laid(e.error.numpy(), e.roles, roles) for c, e in effects.items()}
    components = next(iter(effects.values())).components
    return View(*seen, components, mean_of, error_of)


def role_attention_over(
    model: Model, batches: Mapping[str, PairBatch], roles: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Pool attention over the clean prompts of all contrasts: mean and standard error."""
    found = []
    for pairs in batches.values():
        seen = role_attention(model, pairs.clean)
        each = seen.each.numpy()
        full = np.full((*each.shape[:3], len(roles), len(roles)), np.nan)
        here = [role for role in roles if role in seen.roles]
        at = np.array([seen.roles.index(role) for role in here])
        to = np.array([roles.index(role) for role in here])
        full[..., to[:, None], to] = each[..., at[:, None], at]
        found.append(full)
    every = np.concatenate(found)
    there = (~np.isnan(every)).sum(0)
    total = np.where(there > 0, np.nansum(every, 0) / np.maximum(there, 1), np.nan)
    spread = np.nansum((every - total) ** 2, 0) / np.maximum(there * (there - 1), 1)
    return total, np.where(there > 1, np.sqrt(spread), np.nan)


def _laid(values: np.ndarray, here: Sequence[str], roles: Sequence[str]) -> np.ndarray:
    full = np.full((values.shape[0], len(roles), values.shape[2]), np.nan)
    full[:, [roles.index(role) for role in here]] = values
    return full


def _solved(behaviours: Mapping[str, Behaviour], seed: int) -> tuple[Solved, ...]:
    both = np.logical_and.reduce([b.right.numpy().all(1) for b in behaviours.values()])
    found = []
    for name, seen in behaviours.items():
        for k, answer in enumerate(seen.answers):
            values = seen.lead[:, k].double().numpy()[both]
            lead = mean(values, seed=seed) if len(values) > 1 else None
            found.append(Solved(name, answer, int(both.sum()), lead))
    return tuple(found)


def _overall(
    a: Profiles, b: Profiles, nulls: Sequence[Pairing], ceiling: Pairing | None, seed: int
) -> Overall:
    found = pair_heads(a, b)
    drawn = similarity(a.drawn(_DRAWS, seed=seed), b.drawn(_DRAWS, seed=seed))
    rows = [k for k, partner in enumerate(found.partner) if partner >= 0]
    columns = [found.partner[k] for k in rows]
    chance = [pairing.mean for pairing in nulls]
    return Overall(
        score=interval(found.mean, drawn[:, rows, columns].mean(1)),
        chance=float(np.mean(chance)),
        chance_high=float(np.quantile(chance, 0.95)),
        # The best pairs of the other seed, as many as these models have: a mean over more is lower.
        ceiling=float(np.sort(ceiling.score)[::-1][: len(rows)].mean()) if ceiling else np.nan,
    )


def _relative(model: Model) -> Relative:
    shape = model.shape
    count = int(model.bridge.n_params_total)
    return Relative(model.name, model.origin, shape.layers, shape.heads, shape.d_model, count)


def _bar(items: Iterable[T], text: str, progress: bool, total: int | None = None) -> Iterable[T]:
    return tqdm(items, desc=text, total=total, leave=False, disable=None if progress else True)
