"""Role paths of each model: search on some pairs, effects of what was found on others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float

from probes.comparison.setup.prompts import PathPrompts
from probes.interventions.role_paths.graph import (
    RoleGraph,
    RolePath,
    changed_roles,
    join_paths,
    path_roles,
)
from probes.interventions.role_paths.patching import (
    candidate_paths,
    contrast_effects,
    patch_role_graphs,
)
from probes.models.model import Model
from probes.prompts.tokens.pair_batch import PairBatch, tokenize_pairs

FOUND_FRACTION = 0.1
"""Fraction of the effect of a contrast that a path must exceed in the search."""

MIN_PATH_FRACTION = FOUND_FRACTION / 2
"""Fraction that it must exceed on other pairs: lower, as few paths are at both limits."""

_RANDOM_CIRCUITS = 5
_CIRCUIT_PAIRS, _NULL_PAIRS = 16, 8

ContrastAnswer = tuple[str, str]
"""A contrast, and an answer that it changes."""

PathNull = Mapping[tuple[ContrastAnswer, RolePath], float]
"""Absolute mean effect of each path in one draw of the null, in logits."""


@dataclass(frozen=True, eq=False)
class PathPlan:
    """What is measured in every model.

    Attributes:
        test: Pairs of each contrast.
        paths: Paths that were found in any model.
        circuits: For each contrast and answer, all paths of the full model together, all edges but
            these, and random circuits of as many other paths.
    """

    test: PathPrompts
    paths: Mapping[ContrastAnswer, tuple[RolePath, ...]]
    circuits: Mapping[ContrastAnswer, tuple[RoleGraph, ...]]


@dataclass(frozen=True, eq=False)
class PathRuns:
    """Effects in one model, in logits.

    Attributes:
        totals: Effect of each contrast on an answer.
        effects: Effect of each path.
        circuits: Effects of the circuits of the plan, and of the contrast on the same pairs.
    """

    totals: Mapping[ContrastAnswer, Float[np.ndarray, " _"]]
    effects: Mapping[tuple[ContrastAnswer, RolePath], Float[np.ndarray, " _"]]
    circuits: Mapping[ContrastAnswer, tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, " _"]]]


@dataclass(frozen=True, eq=False)
class PathMeasurements:
    """Effects of the planned paths in all models of a comparison.

    Attributes:
        plan: What was measured.
        runs: Effects by name of the model.
    """

    plan: PathPlan
    runs: Mapping[str, PathRuns]


def search_paths(model: Model, prompts: PathPrompts) -> dict[ContrastAnswer, dict[RolePath, float]]:
    """Candidate paths of a model with their fractions, for each contrast and changed answer."""
    found = {}
    for contrast, pairs in _tokenized(model, prompts.search):
        for name in _changed_answers(pairs):
            answer = _number(pairs, name)
            total = float(contrast_effects(model, pairs)[:, answer].mean())
            effects = candidate_paths(model, pairs, answer) if total > 0 else {}
            found[contrast, name] = {
                path: float(effect.mean()) / total for path, effect in effects.items()
            }
    return found


def plan_paths(
    full: Mapping[ContrastAnswer, Mapping[RolePath, float]],
    others: Iterable[Mapping[ContrastAnswer, Mapping[RolePath, float]]],
    prompts: PathPrompts,
    *,
    seed: int,
) -> PathPlan:
    """Plan of the effects to measure: all found paths, and the circuits of the full model."""
    every = {key: dict.fromkeys(found_paths(full, key)) for key in full}
    for other in others:
        for key in every:
            every[key] |= dict.fromkeys(found_paths(other, key))
    rng = np.random.default_rng(seed)
    circuits = {}
    for key, candidates in full.items():
        own = found_paths(full, key)
        rest = [path for path in candidates if path not in own]
        if not own or not rest:
            continue
        size = min(len(own), len(rest))
        draws = [rng.choice(len(rest), size, replace=False) for _ in range(_RANDOM_CIRCUITS)]
        random = [join_paths([rest[k] for k in draw]) for draw in draws]
        circuits[key] = (join_paths(own), *random)
    return PathPlan(prompts, {key: tuple(paths) for key, paths in every.items()}, circuits)


def found_paths(
    searched: Mapping[ContrastAnswer, Mapping[RolePath, float]], key: ContrastAnswer
) -> tuple[RolePath, ...]:
    """Paths that the search found in a model, the strongest first."""
    candidates = searched.get(key, {})
    found = [path for path, fraction in candidates.items() if fraction > FOUND_FRACTION]
    return tuple(sorted(found, key=lambda path: -candidates[path]))


def measure_paths(model: Model, plan: PathPlan) -> PathRuns:
    """Effects of all planned paths and circuits in a model."""
    totals, effects, circuits = {}, {}, {}
    for contrast, pairs in _tokenized(model, plan.test.test):
        keys = [key for key in plan.paths if key[0] == contrast]
        total = contrast_effects(model, pairs)
        for key in keys:
            answer, paths = _number(pairs, key[1]), plan.paths[key]
            totals[key] = total[:, answer].numpy()
            values = patch_role_graphs(model, pairs, [path.graph for path in paths])
            for path, value in zip(paths, values[..., answer].numpy(), strict=True):
                effects[key, path] = value
            if key in plan.circuits:
                first = _first(model, plan.test.test[contrast], _CIRCUIT_PAIRS)
                own, *random = plan.circuits[key]
                graphs = [own, _all_but(own, first), *random]
                values = patch_role_graphs(model, first, graphs)[..., answer].numpy()
                circuits[key] = (values, total[: len(first), answer].numpy())
    return PathRuns(totals, effects, circuits)


def measure_null_paths(model: Model, plan: PathPlan) -> PathNull:
    """Absolute mean effect of each path in a random-init model, in logits, on the first pairs."""
    found = {}
    for contrast, every in plan.test.test.items():
        pairs = _first(model, every, _NULL_PAIRS)
        for key, paths in plan.paths.items():
            if key[0] == contrast and paths:
                values = patch_role_graphs(model, pairs, [path.graph for path in paths])
                means = values[..., _number(pairs, key[1])].mean(1).abs().tolist()
                found |= {(key, path): mean for path, mean in zip(paths, means, strict=True)}
    return found


def permute_paths(runs: PathRuns, *, seed: int) -> PathNull:
    """Absolute mean effect of each path of a model with random signs, in logits.

    A sign-flip test: where a path has no effect on average, the effect in each pair may as well
    have the other sign. All paths of a draw have the same signs.
    """
    signs = {
        key: np.random.default_rng(seed).choice([-1.0, 1.0], len(total))
        for key, total in runs.totals.items()
    }
    return {at: float(abs((effect * signs[at[0]]).mean())) for at, effect in runs.effects.items()}


def _tokenized(model: Model, pairs: Mapping[str, Sequence]) -> Iterable[tuple[str, PairBatch]]:
    for contrast, own in pairs.items():
        yield contrast, _first(model, own, len(own))


def _first(model: Model, pairs: Sequence, count: int) -> PairBatch:
    return tokenize_pairs(model.tokenizer, pairs[:count], max_length=model.shape.context)


def _changed_answers(pairs: PairBatch) -> list[str]:
    """Answers that differ between the clean prompts and the counterfactuals in most pairs."""
    both = zip(pairs.clean.readouts, pairs.counterfactual.readouts, strict=True)
    return [a.name for a, b in both if float((a.answer != b.answer).float().mean()) > 0.5]


def _number(pairs: PairBatch, answer: str) -> int:
    return [readout.name for readout in pairs.clean.readouts].index(answer)


def _all_but(graph: RoleGraph, pairs: PairBatch) -> RoleGraph:
    """All edges except those of a graph, from all changed roles."""
    roles = path_roles(pairs.clean)
    edges = {(a, b) for a, b in product(roles, roles) if a != b}
    return RoleGraph(frozenset(changed_roles(pairs)), frozenset(edges - graph.edges))
