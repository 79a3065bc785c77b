"""Layer by layer, how alike the states of two models are at the roles of a pattern.

questions → one state a prompt and role, at every layer → CKA, RSA, Procrustes, predictivity

No two rows of one matrix come of one prompt: tokens of a prompt hang together, and would make
any two models look alike. Likeness of states is no likeness of computation: it says where to
look, and interchanges say what is so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from probes.comparison.representations.kernels import RoleKernels
from probes.comparison.representations.role_pooling import pooled_measures
from probes.errors import BatchError, ModelError, SiteError
from probes.models.model import Model
from probes.observe.role_states import RoleStates, capture_role_states
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.pattern import Pattern
from probes.prompts.tokenization import BOS, REST

ALL = "all"
"""Stands for all roles together, in the place of a role."""

_MIN_PROMPTS = 8
_KERNEL_MEASURES = ("cka", "cka given token", "rsa")


@dataclass(frozen=True, eq=False)
class SimilarityMeasure:
    """One measure at every pair of layers; NaN where a site never varies.

    Attributes:
        measure: "cka" (debiased), "cka given token" (of what the token at the role does not
            tell), "rsa", "procrustes", or "predictivity" ("a → b" and "b → a").
        roles: The roles, then "all"; "all" alone for measures of all roles together.
        value: The estimate.
        low, high: Its 95 % interval over prompts (jackknife over 20 blocks); NaN without one.
        chance, chance_high: Mean and 95th percentile where the prompts of b are permuted.
        floor: What each layer of a and the same layer of its other seed score; NaN without one.
    """

    measure: str
    roles: tuple[str, ...]
    value: Float[np.ndarray, "role layer_a layer_b"]
    low: Float[np.ndarray, "role layer_a layer_b"]
    high: Float[np.ndarray, "role layer_a layer_b"]
    chance: Float[np.ndarray, "role layer_a layer_b"]
    chance_high: Float[np.ndarray, "role layer_a layer_b"]
    other_seed: Float[np.ndarray, "role layer_a"]


@dataclass(frozen=True, eq=False)
class RepresentationSimilarity:
    """How alike the states of two models are, with a chance level behind every number.

    Layer n is what block n reads; the last is what the last block writes.

    Attributes:
        a, b, another: Names of the models; `another` is "" where no other seed was given.
        pattern: What was asked.
        prompts: How many questions.
        counts: How many prompts have each role.
        known: How many of them share their token with another, and so count given the token.
        measures: The measures by name.
    """

    a: str
    b: str
    other_seed: str
    pattern: str
    prompts: int
    counts: Mapping[str, int]
    token_counts: Mapping[str, int]
    measures: Mapping[str, SimilarityMeasure]

    def __getitem__(self, measure: str) -> SimilarityMeasure:
        if measure not in self.measures:
            raise SiteError(f"There is no measure {measure!r}: there are {list(self.measures)}")
        return self.measures[measure]

    def table(self) -> pd.DataFrame:
        """Return one row for each measure, role and pair of layers."""
        names = ("value", "low", "high", "chance", "chance_high")
        rows = [
            (
                *(found.measure, role, one, other),
                *(float(getattr(found, name)[r, one, other]) for name in names),
                float(found.other_seed[r, one]),
            )
            for found in self.measures.values()
            for r, role in enumerate(found.roles)
            for one, other in np.ndindex(*found.value.shape[1:])
        ]
        columns = ["measure", "role", "layer_a", "layer_b", *names, "floor"]
        return pd.DataFrame(rows, columns=pd.Index(columns))


def representation_similarity(  # noqa: PLR0913 (what is compared on what, and what it is held against)
    a: Model,
    b: Model,
    pattern: Pattern,
    *,
    prompts: int = 200,
    seed: int = 0,
    other_seed: Model | None = None,
    permutations: int = 20,
    roles: Sequence[str] | None = None,
) -> RepresentationSimilarity:
    """Compare the residuals of two models at the last tokens of roles, on the same questions.

    CKA is debiased (Kornblith et al. 2019, 1905.00414; Song et al. 2012), one row a prompt, and
    "all" is its mean over roles. "cka given token" compares prompts within classes of one token at
    the role, in either model, where prompts are permuted within classes, too. RSA is Spearman's
    correlation of the distances between prompts. Procrustes and predictivity take all roles at
    once, role means off, as one rotation or map must do for all; roles whose states are longer
    weigh more. The map is fitted on the first half of the prompts and judged on the second.

    Args:
        a, b: The models; their vocabularies may differ.
        pattern: What to ask.
        prompts: How many questions; of a pattern with pairs of its own, as many as there are.
        seed: Of the questions and permutations.
        another: A model that differs from `a` in its seed alone, for the floor.
        permutations: How often prompts are permuted for the chance level.
        roles: The roles, or all that the models share but <bos>, the rest, and the last answer.

    Raises:
        SiteError: A role that a model does not have, or that too few prompts have.
        BatchError: Too few prompts or permutations.
        ProbeError: Questions that cannot be drawn or read; see `gate`.
    """
    if permutations < 1:
        raise BatchError(f"{permutations} permutations were asked for: take at least 1")
    models = [model for model in (a, b, other_seed) if model is not None]
    for model in models:
        if model.tokenizer is None:
            raise ModelError(f"{model.name!r} came without a tokenizer: load it with one")
    tokenizers = list({id(model.tokenizer): model.tokenizer for model in models}.values())
    questions = pattern.sample_questions(prompts, seed=seed, keep=tokenizable_by(*tokenizers))
    if len(questions) < _MIN_PROMPTS:
        raise BatchError(f"{len(questions)} prompts are too few: give at least {_MIN_PROMPTS}")
    seen = [capture_role_states(model, questions) for model in models]
    last = f"reply_{questions[0].answers[-1][0]}" if questions[0].answers else ""
    chosen, there = _shared_roles(seen, roles, last)
    sites = [_SelectedStates.of(states, chosen, there) for states in seen]
    keys = np.random.default_rng(seed).random((permutations, len(questions)))
    measures = {kind: _kernel_measure(kind, sites, there, keys) for kind in _KERNEL_MEASURES}
    for name, found in pooled_measures([site.states for site in sites], there, keys).items():
        none = np.full_like(found.value, np.nan)
        measures[name] = SimilarityMeasure(
            name, (ALL,), found.value, none, none, found.chance, found.chance_high, found.other_seed
        )
    known = [_token_classes(sites[:2], r, there[r], by_token=True) for r in range(len(chosen))]
    return RepresentationSimilarity(
        a=a.name,
        b=b.name,
        other_seed=other_seed.name if other_seed else "",
        pattern=pattern.name,
        prompts=len(questions),
        counts=dict(zip(chosen, there.sum(1).tolist(), strict=True)),
        token_counts={
            role: int((np.bincount(classes)[classes] > 1).sum())
            for role, classes in zip(chosen, known, strict=True)
        },
        measures=measures,
    )


@dataclass(frozen=True, eq=False)
class _SelectedStates:
    """One model's states and tokens at the chosen roles."""

    roles: tuple[str, ...]
    states: Float[np.ndarray, "role layer prompt d_model"]
    tokens: np.ndarray

    @classmethod
    def of(
        cls, role_states: RoleStates, roles: tuple[str, ...], present: np.ndarray
    ) -> "_SelectedStates":
        at = [role_states.roles.index(role) for role in roles]
        return cls(roles, role_states.states[at], role_states.tokens[at])


def _shared_roles(
    by_model: Sequence[RoleStates], roles: Sequence[str] | None, excluded: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the roles in the order of the texts, and which prompts have them in all models."""
    shared = [r for r in by_model[0].roles if all(r in states.roles for states in by_model)]
    there = {r: np.all([s.present[s.roles.index(r)] for s in by_model], axis=0) for r in shared}
    if roles is None:
        usual = [
            r for r in shared if r not in (BOS, REST, excluded) and there[r].sum() >= _MIN_PROMPTS
        ]
        place = dict(zip(by_model[0].roles, by_model[0].mean_position, strict=True))
        roles = sorted(usual, key=lambda role: -place[role])
    for role in roles:
        count = int(there[role].sum()) if role in there else 0
        if count < _MIN_PROMPTS:
            raise SiteError(
                f"Role {role!r} is in {count} prompts that all models read: take one that at "
                f"least {_MIN_PROMPTS} have, of {', '.join(shared)}, or more prompts"
            )
    if not roles:
        raise SiteError("No role is shared by enough prompts: give more prompts, or name roles")
    return tuple(roles), np.stack([there[role] for role in roles])


def _token_classes(
    sites: Sequence[_SelectedStates], role: int, present: np.ndarray, *, by_token: bool
) -> np.ndarray:
    """Number the tokens at a role, told apart where either model does; all one if not `given`."""
    if not by_token:
        return np.zeros(int(present.sum()), dtype=np.int64)
    tokens = np.stack([site.tokens[role, present] for site in sites])
    return np.unique(tokens, axis=1, return_inverse=True)[1].reshape(-1)


def _kernel_measure(
    kind: str, sites: Sequence[_SelectedStates], present: np.ndarray, keys: np.ndarray
) -> SimilarityMeasure:
    """Measure one kind for a and b, and its floor for a and its other seed."""

    def paired(other: _SelectedStates) -> RoleKernels:
        given = kind == "cka given token"
        classes = [
            _token_classes((a, other), r, own, by_token=given) for r, own in enumerate(present)
        ]
        return RoleKernels.of(kind, (a.states, other.states), classes, present)

    a = sites[0]
    pair = paired(sites[1])
    drawn = pair.similarities(keys)
    value, chances = drawn[:, 0], drawn[:, 1:]
    low, high = pair.jackknife(value)
    floor = np.full(value.shape[:2], np.nan)
    if len(sites) > 2:
        twin = paired(sites[2]).similarities(keys[:0])[:, 0]
        floor = np.diagonal(twin, axis1=1, axis2=2).copy()
    return SimilarityMeasure(
        measure=kind,
        roles=(*a.roles, ALL),
        value=value,
        low=low,
        high=high,
        chance=chances.mean(1),
        chance_high=np.quantile(chances, 0.95, axis=1),
        other_seed=floor,
    )
