"""Head profiles: vectors that can be compared between models of any shape.

A profile has two parts. Effects: change of each answer's logit difference when the head is patched,
by contrast and role (logits). Attention: role-to-role attention minus that of a head that attends
uniformly, because all causal heads share the latter.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float

from probes.comparison.heads.means import BLOCK, half_weights, weighted_mean
from probes.comparison.heads.result import MIN_RELIABILITY
from probes.interventions.attribution_patching import attribution_patching
from probes.interventions.screening.check import ScreenCheck
from probes.interventions.screening.patching import ExactCells, confirm_exactly
from probes.interventions.sweep import PatchingEffects, activation_patching
from probes.models.model import Model
from probes.observe.attention import RoleAttention, role_attention, uniform_attention
from probes.prompts.tokens.pair_batch import PairBatch
from probes.prompts.tokens.role_axis import expand_to_roles
from probes.stats.intervals import bootstrap_weights

N_DRAWS = 200
"""Bootstrap samples behind every interval on heads."""

_MIN_TOTAL_EFFECT = 0.1

ContrastAnswers = Sequence[tuple[str, int]]
"""Contrasts, each with the number of an answer that it changes."""


@dataclass(frozen=True, eq=False)
class HeadProfiles:
    """Profiles of all heads of one model, by prompt.

    Attributes:
        model: Name of the model.
        heads: "L0.H0" and so on, layer by layer.
        roles: Roles of effects and attention.
        effects: Patching effects by contrast; NaN where a prompt lacks the role.
        attention: Attention minus uniform attention on the clean prompts of each contrast.
        total_effects: Effect of replacing all components, by contrast (logits).
        mean_attention: Mean of the attention where that of single prompts is not kept; else None.
    """

    model: str
    heads: tuple[str, ...]
    roles: tuple[str, ...]
    effects: Mapping[str, Float[np.ndarray, "_ head effect"]]
    attention: Mapping[str, Float[np.ndarray, "_ head attended"]]
    total_effects: Mapping[str, Float[np.ndarray, "_ answer"]] = field(default_factory=dict)
    mean_attention: Float[np.ndarray, "head attended"] | None = None

    @property
    def reliability(self) -> Float[np.ndarray, " head"]:
        """Cosine of each head's effects on the even and on the odd prompts."""
        first, second = unit_length(self._mean_effects(self._split_weights()))
        return (first * second).sum(-1)

    @property
    def reliable(self) -> Bool[np.ndarray, " head"]:
        """Whether each head has reliable effects."""
        return self.reliability >= MIN_RELIABILITY

    def mean(self) -> "MeanProfiles":
        """Mean over all prompts; one draw."""
        return self._mean

    @cached_property
    def _mean(self) -> "MeanProfiles":
        if self.mean_attention is None:
            return self._weighted_mean(self._equal_weights())
        return MeanProfiles(self._mean_effects(self._equal_weights()), self.mean_attention[None])

    def averaged(self) -> "HeadProfiles":
        """Profiles without the attention of single prompts, which is large; its mean is kept."""
        return replace(self, attention={}, mean_attention=self.mean().attention[0])

    def split_halves(self) -> "MeanProfiles":
        """Means over the even and over the odd prompts; two draws."""
        return self._weighted_mean(self._split_weights())

    def bootstrap(self, *, seed: int) -> Iterator["MeanProfiles"]:
        """Means over bootstrap samples, some at a time: all of a large model's take gigabytes.

        The same seed gives the same prompts in every model.
        """
        weights = {
            c: bootstrap_weights(len(e), N_DRAWS, seed=seed + k)
            for k, (c, e) in enumerate(self.effects.items())
        }
        step = max(1, BLOCK // max(1, len(self.heads) * len(self.roles) ** 2))
        for start in range(0, N_DRAWS, step):
            yield self._weighted_mean({c: w[start : start + step] for c, w in weights.items()})

    def effect_fractions(
        self,
        contrast_answers: ContrastAnswers,
        weights: Mapping[str, Float[np.ndarray, "draw _"]] | None = None,
    ) -> Float[np.ndarray, "draw head fraction"]:
        """Effect fractions for each row of weights; by default one row, all prompts equal."""
        weights = self._equal_weights() if weights is None else weights
        return effect_fractions(self.effects, self.total_effects, contrast_answers, weights)

    def _equal_weights(self) -> dict[str, Float[np.ndarray, "1 _"]]:
        return {c: np.ones((1, len(e))) for c, e in self.effects.items()}

    def _split_weights(self) -> dict[str, Float[np.ndarray, "2 _"]]:
        return {c: half_weights(len(e)) for c, e in self.effects.items()}

    def _mean_effects(
        self, weights: Mapping[str, Float[np.ndarray, "draw _"]]
    ) -> Float[np.ndarray, "draw head effect"]:
        effects = [weighted_mean(weights[c], [e]) for c, e in self.effects.items()]
        return np.concatenate(effects, axis=2)

    def _weighted_mean(self, weights: Mapping[str, Float[np.ndarray, "draw _"]]) -> "MeanProfiles":
        attention = weighted_mean(
            np.concatenate([weights[c] for c in self.attention], axis=1),
            [*self.attention.values()],
        )
        return MeanProfiles(self._mean_effects(weights), attention)


@dataclass(frozen=True, eq=False)
class MeanProfiles:
    """Profiles averaged over prompts, once for each draw."""

    effects: Float[np.ndarray, "draw head effect"]
    attention: Float[np.ndarray, "draw head attended"]


def profile_heads(  # noqa: PLR0913 (each is an option of its own)
    model: Model,
    batches: Mapping[str, PairBatch],
    roles: Sequence[str],
    *,
    kinds: Sequence[str] = ("heads",),
    screen: ExactCells | None = None,
    attention_of: Mapping[str, RoleAttention] | None = None,
) -> tuple[HeadProfiles, dict[str, PatchingEffects]]:
    """Measure head profiles; also returns the effects of all components, by contrast.

    With a `screen`, effects come from attribution patching, and are exact for these cells only.
    `attention_of` is the attention on the clean prompts of each contrast, which saves their run.
    """
    effects, attention, heads = {}, {}, []
    patched = _patch_contrasts(model, batches, roles, kinds=kinds, screen=screen)
    for contrast, pairs in batches.items():
        swept = patched[contrast]
        heads = [k for k, name in enumerate(swept.components) if ".H" in name]
        effects[contrast] = expand_to_roles(swept.per_prompt[:, heads].numpy(), swept.roles, roles)
        pooled = attention_of[contrast] if attention_of else role_attention(model, pairs.clean)
        attention[contrast] = _attention_above_uniform(pooled, pairs, roles)
    names = tuple(next(iter(patched.values())).components[k] for k in heads)
    totals = {contrast: swept.total.double().numpy() for contrast, swept in patched.items()}
    return HeadProfiles(model.name, names, tuple(roles), effects, attention, totals), patched


def _patch_contrasts(
    model: Model,
    batches: Mapping[str, PairBatch],
    roles: Sequence[str],
    *,
    kinds: Sequence[str],
    screen: ExactCells | None,
) -> dict[str, PatchingEffects]:
    """Effects of all components at the roles of each contrast.

    After a screen, the strongest cells are patched exactly for contrasts that change an answer
    enough to be compared, and for the others as many random ones as give the error.
    """
    patched = {}
    for contrast, pairs in batches.items():
        how = {"kinds": kinds, "roles": [r for r in roles if r in pairs.clean.roles]}
        patch = activation_patching if screen is None else attribution_patching
        patched[contrast] = patch(model, pairs, **how)
    if screen is None or not (screen.top or screen.random):
        return patched
    totals = {contrast: swept.total.double().numpy() for contrast, swept in patched.items()}
    compared = {contrast for contrast, _ in _affected(totals)}
    for contrast, pairs in batches.items():
        cells = screen if contrast in compared else replace(screen, top=0)
        patched[contrast] = confirm_exactly(
            model, pairs, patched[contrast], kinds=kinds, cells=cells
        )
    return patched


def screen_checks(effects: Mapping[str, PatchingEffects]) -> tuple[ScreenCheck, ...]:
    """Error of the effects of each contrast that attribution patching gave."""
    return tuple(effect.screen for effect in effects.values() if effect.screen)


def head_similarity(a: MeanProfiles, b: MeanProfiles) -> Float[np.ndarray, "draw head_a head_b"]:
    """Mean of the cosines of effects and of attention (-1 to 1)."""
    return (cosines(a.effects, b.effects) + cosines(a.attention, b.attention)) / 2


def similarity_draws(
    a: HeadProfiles, b: HeadProfiles, *, seed: int
) -> Float[np.ndarray, "draw head_a head_b"]:
    """Similarity on all prompts (first draw) and on bootstrap samples (other draws)."""
    samples = zip(a.bootstrap(seed=seed), b.bootstrap(seed=seed), strict=True)
    # In single precision: the pairs of two large models are many.
    draws = [head_similarity(*each).astype(np.float32) for each in samples]
    return np.concatenate([head_similarity(a.mean(), b.mean()).astype(np.float32), *draws])


def affected_answers(*models: HeadProfiles) -> tuple[tuple[str, int], ...]:
    """Contrasts and answers whose mean total effect is above a tenth of the largest, in all models.

    Fractions of other answers are undefined or unstable.
    """
    affected = [_affected(model.total_effects) for model in models]
    return tuple(sorted(set.intersection(*affected))) if affected else ()


def _affected(
    total_effects: Mapping[str, Float[np.ndarray, "_ answer"]],
) -> set[tuple[str, int]]:
    means = {
        (contrast, k): abs(float(mean))
        for contrast, totals in total_effects.items()
        for k, mean in enumerate(totals.mean(0))
    }
    largest = max(means.values(), default=0.0)
    return {at for at, mean in means.items() if mean > _MIN_TOTAL_EFFECT * largest}


def effect_fractions(
    effects: Mapping[str, Float[np.ndarray, "_ head effect"]],
    total_effects: Mapping[str, Float[np.ndarray, "_ answer"]],
    contrast_answers: ContrastAnswers,
    weights: Mapping[str, Float[np.ndarray, "draw _"]],
) -> Float[np.ndarray, "draw head fraction"]:
    """Mean effects divided by the mean total effect, for each row of weights.

    Fractions are comparable between models whose logits have different scales. The last axis is
    (contrast and answer, role).
    """
    fractions = []
    for contrast, answer in contrast_answers:
        weight, total = weights[contrast], total_effects[contrast]
        mean_effects = rearrange(
            weighted_mean(weight, [effects[contrast]]),
            "draw head (role answer) -> draw head role answer",
            answer=total.shape[1],
        )
        mean_total = weight @ total[:, answer] / weight.sum(1)
        fractions.append(mean_effects[..., answer] / mean_total[:, None, None])
    return np.concatenate(fractions, axis=2)


def cosines(
    a: Float[np.ndarray, "draw head_a feature"], b: Float[np.ndarray, "draw head_b feature"]
) -> Float[np.ndarray, "draw head_a head_b"]:
    """Cosine of every pair of vectors; 0 for a zero vector."""
    return unit_length(a) @ unit_length(b).swapaxes(1, 2)


def unit_length(
    vectors: Float[np.ndarray, "draw head feature"],
) -> Float[np.ndarray, "draw head feature"]:
    """Scale vectors to length 1; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-9)


def expand_attention(
    attention: Float[np.ndarray, "prompt layer head _ _"],
    present_roles: Sequence[str],
    roles: Sequence[str],
) -> Float[np.ndarray, "prompt layer head role role_key"]:
    """Attention over all roles, NaN for the roles that the prompts lack."""
    shared = [role for role in roles if role in present_roles]
    source = np.array([present_roles.index(role) for role in shared])
    target = np.array([roles.index(role) for role in shared])
    size = (*attention.shape[:3], len(roles), len(roles))
    expanded = np.full(size, np.nan, dtype=attention.dtype)
    expanded[..., target[:, None], target] = attention[..., source[:, None], source]
    return expanded


def _attention_above_uniform(
    pooled: RoleAttention, pairs: PairBatch, roles: Sequence[str]
) -> Float[np.ndarray, "prompt head feature"]:
    uniform = rearrange(
        uniform_attention(pairs.clean), "prompt role role_key -> prompt 1 1 role role_key"
    )
    expanded = expand_attention((pooled.per_prompt - uniform).numpy(), pooled.roles, roles)
    return rearrange(
        expanded, "prompt layer head role role_key -> prompt (layer head) (role role_key)"
    )
