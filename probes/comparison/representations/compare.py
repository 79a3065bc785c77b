"""Representational similarity of two models at the roles of a pattern, for all pairs of layers.

A matrix has one row per prompt, because tokens of one prompt depend on each other. Similar states
do not imply the same computation; interchange interventions test that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from probes.comparison.representations.kernels import RoleKernels, permute_within_classes
from probes.comparison.representations.measures import predictivity, procrustes
from probes.comparison.representations.moments import MomentsGrid, grid_moments
from probes.comparison.representations.result import (
    ALL,
    RepresentationSimilarity,
    SimilarityMeasure,
)
from probes.errors import BatchError, ModelError, SiteError
from probes.models.model import Model
from probes.observe.role_states import RoleStates, capture_role_states
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.pair_batch import sample_readable_questions
from probes.prompts.tokens.tokenization import BOS, REST
from probes.stats.null_threshold import conformal_threshold

_MIN_PROMPTS = 8
_CKA_GIVEN_TOKEN = "cka given token"
_KERNEL_MEASURES = ("cka", _CKA_GIVEN_TOKEN, "rsa")
_A_TO_B, _B_TO_A = "predictivity a → b", "predictivity b → a"
_POOLED_MEASURES = ("procrustes", _A_TO_B, _B_TO_A)


@dataclass(frozen=True)
class SimilaritySettings:
    """Settings of `representation_similarity`.

    Attributes:
        prompts: Number of questions; a pattern with its own pairs may have fewer.
        permutations: Number of permutations of the prompts for the null.
        roles: Roles to compare. By default all shared roles except <bos>, the rest and the last
            answer.
        seed: Seed of the questions and permutations.
    """

    prompts: int = 200
    permutations: int = 20
    roles: Sequence[str] | None = None
    seed: int = 0


def representation_similarity(
    a: Model,
    b: Model,
    pattern: Pattern,
    *,
    other_seed: Model | None = None,
    settings: SimilaritySettings = SimilaritySettings(),
) -> RepresentationSimilarity:
    """Compare the residual streams of two models at the last token of each role.

    CKA is debiased (Kornblith et al. 2019, arXiv:1905.00414; Song et al. 2012); its "all" is the
    mean over roles. "cka given token" compares and permutes prompts within classes that have the
    same token at the role in both models. RSA is Spearman's correlation of the distances between
    prompts. Procrustes and predictivity fit one rotation or linear map for all roles, after
    subtracting the mean of each role; roles with longer states weigh more. Predictivity fits on the
    first half of the prompts and evaluates on the second.

    Args:
        a, b: The models; their vocabularies may differ.
        pattern: Pattern of the questions.
        other_seed: Model that differs from `a` only in its seed.
        settings: Numbers of prompts and permutations, roles and seed.

    Raises:
        SiteError: A model lacks a role, or too few prompts have it.
        BatchError: Too few prompts or permutations.
        ModelError: A model has no tokenizer.
        ProbeError: The questions cannot be sampled or tokenized; see `gate`.
    """
    if settings.permutations < 1:
        raise BatchError(f"{settings.permutations} permutations are too few: give at least 1")
    models = [model for model in (a, b, other_seed) if model is not None]
    questions = _sample_questions(models, pattern, settings)
    by_model = [capture_role_states(model, questions) for model in models]
    last_answer = f"reply_{questions[0].answers[-1][0]}" if questions[0].answers else ""
    roles, present = _shared_roles(by_model, settings.roles, last_answer)
    sites = [_SelectedStates.of(states, roles) for states in by_model]
    keys = np.random.default_rng(settings.seed).random((settings.permutations, len(questions)))
    measures = {kind: _kernel_measure(kind, sites, present, keys) for kind in _KERNEL_MEASURES}
    measures |= _pooled_measures([site.states for site in sites], present, keys)
    classes = [_token_classes(sites[:2], r, present[r]) for r in range(len(roles))]
    return RepresentationSimilarity(
        a=a.name,
        b=b.name,
        other_seed=other_seed.name if other_seed else "",
        pattern=pattern.name,
        prompts=len(questions),
        counts=dict(zip(roles, present.sum(1).tolist(), strict=True)),
        token_counts={
            role: int((np.bincount(of_role)[of_role] > 1).sum())
            for role, of_role in zip(roles, classes, strict=True)
        },
        measures=measures,
    )


def _sample_questions(
    models: Sequence[Model], pattern: Pattern, settings: SimilaritySettings
) -> tuple[Question, ...]:
    for model in models:
        if model.tokenizer is None:
            raise ModelError(f"{model.name!r} has no tokenizer: load it with one")
    tokenizers = list({id(model.tokenizer): model.tokenizer for model in models}.values())
    questions = sample_readable_questions(
        pattern, settings.prompts, tokenizers=tokenizers, seed=settings.seed
    )
    if len(questions) < _MIN_PROMPTS:
        raise BatchError(f"{len(questions)} prompts are too few: give at least {_MIN_PROMPTS}")
    return questions


@dataclass(frozen=True, eq=False)
class _SelectedStates:
    """States and tokens of one model at the selected roles."""

    roles: tuple[str, ...]
    states: Float[np.ndarray, "role layer prompt d_model"]
    tokens: np.ndarray

    @classmethod
    def of(cls, role_states: RoleStates, roles: tuple[str, ...]) -> "_SelectedStates":
        index = [role_states.roles.index(role) for role in roles]
        return cls(roles, role_states.states[index], role_states.tokens[index])


def _shared_roles(
    by_model: Sequence[RoleStates], roles: Sequence[str] | None, excluded: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Roles in the order of the text, and which prompts have them in all models."""
    shared = [r for r in by_model[0].roles if all(r in states.roles for states in by_model)]
    present = {r: np.all([s.present[s.roles.index(r)] for s in by_model], axis=0) for r in shared}
    if roles is None:
        skipped = (BOS, REST, excluded)
        roles = [r for r in shared if r not in skipped and present[r].sum() >= _MIN_PROMPTS]
        from_right = dict(zip(by_model[0].roles, by_model[0].mean_position, strict=True))
        roles.sort(key=lambda role: -from_right[role])
    for role in roles:
        count = int(present[role].sum()) if role in present else 0
        if count < _MIN_PROMPTS:
            raise SiteError(
                f"Role {role!r} is in {count} prompts that all models read: choose one of "
                f"{', '.join(shared)} that at least {_MIN_PROMPTS} prompts have, or more prompts"
            )
    if not roles:
        raise SiteError("No role is shared by enough prompts: give more prompts, or name roles")
    return tuple(roles), np.stack([present[role] for role in roles])


def _token_classes(
    sites: Sequence[_SelectedStates], role: int, present: Bool[np.ndarray, " prompt"]
) -> np.ndarray:
    """Class of each prompt; two prompts share a class if all models read the same token."""
    tokens = np.stack([site.tokens[role, present] for site in sites])
    return np.unique(tokens, axis=1, return_inverse=True)[1].reshape(-1)


def _kernel_measure(
    kind: str,
    sites: Sequence[_SelectedStates],
    present: Bool[np.ndarray, "role prompt"],
    keys: Float[np.ndarray, "order prompt"],
) -> SimilarityMeasure:
    """CKA or RSA of a and b, and of a and its other-seed model."""
    a = sites[0]

    def kernels(other: _SelectedStates) -> RoleKernels:
        classes = [
            _token_classes((a, other), r, has_role)
            if kind == _CKA_GIVEN_TOKEN
            else np.zeros(int(has_role.sum()), dtype=np.int64)
            for r, has_role in enumerate(present)
        ]
        return RoleKernels.of(kind, (a.states, other.states), classes, present)

    pair = kernels(sites[1])
    values = pair.similarities(keys)
    value, null = values[:, 0], values[:, 1:]
    low, high = pair.jackknife(value)
    other_seed = np.full(value.shape[:2], np.nan)
    if len(sites) > 2:
        same_recipe = kernels(sites[2]).similarities(keys[:0])[:, 0]
        other_seed = np.diagonal(same_recipe, axis1=1, axis2=2).copy()
    return SimilarityMeasure(
        measure=kind,
        roles=(*a.roles, ALL),
        value=value,
        low=low,
        high=high,
        chance=null.mean(1),
        chance_high=conformal_threshold(np.moveaxis(null, 1, 0)),
        other_seed=other_seed,
    )


def _pooled_measures(
    states: Sequence[Float[np.ndarray, "role _ prompt _"]],
    present: Bool[np.ndarray, "role prompt"],
    keys: Float[np.ndarray, "order prompt"],
) -> dict[str, SimilarityMeasure]:
    """Procrustes and predictivity with all roles pooled; `states` are those of a, b, other seed."""
    second = np.arange(present.shape[1]) * 2 >= present.shape[1]
    shape = (states[0].shape[1], states[1].shape[1])
    draws = [_pooled_values(_halves(states[:2], present, second, k)) for k in (None, *keys)]
    other_seed = dict.fromkeys(_POOLED_MEASURES, np.full(shape[0], np.nan))
    if len(states) > 2:
        halves = _halves((states[0], states[2]), present, second, None)
        same_recipe = _pooled_values(halves, diagonal=True)
        other_seed = {name: np.diagonal(v).copy() for name, v in same_recipe.items()}
    measures = {}
    for name in _POOLED_MEASURES:
        values = np.stack([draw[name] for draw in draws])
        unknown = np.full_like(values[:1], np.nan)
        measures[name] = SimilarityMeasure(
            measure=name,
            roles=(ALL,),
            value=values[:1],
            low=unknown,
            high=unknown,
            chance=values[1:].mean(0)[None],
            chance_high=conformal_threshold(values[1:])[None],
            other_seed=other_seed[name][None],
        )
    return measures


def _pooled_values(
    halves: tuple[MomentsGrid, MomentsGrid], *, diagonal: bool = False
) -> dict[str, Float[np.ndarray, "layer_a layer_b"]]:
    train, test = halves
    shape = (len(train.x), len(train.y))
    values = {name: np.full(shape, np.nan) for name in _POOLED_MEASURES}
    for pair in np.ndindex(*shape):
        if diagonal and pair[0] != pair[1]:
            continue
        values["procrustes"][pair] = procrustes(train[pair] + test[pair])
        values[_A_TO_B][pair] = predictivity(train[pair], test[pair])
        values[_B_TO_A][pair] = predictivity(train[pair].swapped, test[pair].swapped)
    return values


def _halves(
    states: Sequence[np.ndarray], present: np.ndarray, second: np.ndarray, key: np.ndarray | None
) -> tuple[MomentsGrid, MomentsGrid]:
    """Moments of both halves of the prompts, minus the role means of the first half.

    Args:
        states: Those of two models; `key` permutes the prompts of the second within halves.
        second: Which prompts are in the second half.
    """
    rows = [
        [np.concatenate(half, 1) for half in zip(*_role_halves(s, present, second, k), strict=True)]
        for s, k in zip(states, (None, key), strict=True)
    ]
    train, test = (grid_moments(list(rows[0][n]), list(rows[1][n])) for n in range(2))
    return train, test


def _role_halves(
    states: np.ndarray, present: np.ndarray, second: np.ndarray, key: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows of each role, "layer prompt d_model", of both halves."""
    for role, has_role in enumerate(present):
        half = second[has_role].astype(np.int64)
        if not 0 < half.sum() < len(half):
            continue
        rows = states[role][:, has_role].astype(np.float64)
        if key is not None:
            rows = rows[:, permute_within_classes(half, key[has_role])]
        mean = rows[:, half == 0].mean(1, keepdims=True)
        yield rows[:, half == 0] - mean, rows[:, half == 1] - mean
