"""What each head does, as a vector that two models of any shape share.

A head's profile has two halves. Its effects: how far patching it at each role, for each contrast,
moves each answer (logits). Its attention: how much it attends from role to role, less what a head
would that attends to all tokens alike (every causal head resembles every other by that much).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float

from probes.interventions.sweep import PatchingEffects, activation_patching
from probes.models.model import Model
from probes.observe.attention import role_attention, uniform_attention
from probes.prompts.pair_batch import PairBatch
from probes.prompts.role_axis import expand_to_roles
from probes.stats.intervals import bootstrap_weights

MIN_RELIABILITY = 0.5
"""A head whose effects repeat less than this between halves of the prompts is idle."""

_MIN_TOTAL_EFFECT = 0.1


@dataclass(frozen=True, eq=False)
class HeadProfiles:
    """The profiles of all heads of one model, prompt by prompt.

    Attributes:
        model: Name of the model.
        heads: "L0.H0" and so on, layer by layer.
        roles: The roles of both halves.
        effects: For each contrast, what patching moves; NaN where a prompt lacks the role.
        attention: For each contrast's clean prompts, attention less uniform attention.
        totals: For each contrast, the fall of each answer's lead when all is replaced (logits).
    """

    model: str
    heads: tuple[str, ...]
    roles: tuple[str, ...]
    effects: Mapping[str, Float[np.ndarray, "_ head effect"]]
    attention: Mapping[str, Float[np.ndarray, "_ head gaze"]]
    total_effects: Mapping[str, Float[np.ndarray, "_ answer"]] = field(default_factory=dict)

    @property
    def reliable(self) -> Bool[np.ndarray, " head"]:
        """Which heads repeat themselves between halves of the prompts; the others are idle."""
        return self.split_halves().reliability() >= MIN_RELIABILITY

    def weighted_mean(
        self, weights: Mapping[str, Float[np.ndarray, "draw prompt"]]
    ) -> "MeanProfiles":
        """Average over prompts, once for each row of weights."""
        return MeanProfiles(
            np.concatenate(
                [_weighted_mean(weights[c], e) for c, e in self.effects.items()], axis=2
            ),
            _weighted_mean(
                np.concatenate([weights[c] for c in self.attention], axis=1),
                np.concatenate(list(self.attention.values()), axis=0),
            ),
        )

    def mean(self) -> "MeanProfiles":
        """Average over all prompts alike."""
        return self.weighted_mean({c: np.ones((1, len(e))) for c, e in self.effects.items()})

    def split_halves(self) -> "MeanProfiles":
        """Average over the even and over the odd prompts."""
        return self.weighted_mean({c: _half_weights(len(e)) for c, e in self.effects.items()})

    def bootstrap(self, times: int, *, seed: int) -> "MeanProfiles":
        """Average over bootstrap samples of the prompts; equal seeds draw equal prompts."""
        return self.weighted_mean(
            {
                c: bootstrap_weights(len(e), times, seed=seed + k)
                for k, (c, e) in enumerate(self.effects.items())
            }
        )


@dataclass(frozen=True, eq=False)
class MeanProfiles:
    """Averaged profiles: one set of heads for each way of averaging."""

    effects: Float[np.ndarray, "draw head effect"]
    attention: Float[np.ndarray, "draw head gaze"]

    def reliability(self) -> Float[np.ndarray, " head"]:
        """Return how alike each head's effects are in the two halves (cosine, -1 to 1)."""
        first, second = _normalize(self.effects)
        return (first * second).sum(-1)


def profile_heads(
    model: Model,
    batches: Mapping[str, PairBatch],
    roles: Sequence[str],
    *,
    kinds: Sequence[str] = ("heads",),
) -> tuple[HeadProfiles, dict[str, PatchingEffects]]:
    """Measure the profiles of a model's heads; the effects come back for all components."""
    effects, attention, swept, heads = {}, {}, {}, []
    for contrast, pairs in batches.items():
        here = [role for role in roles if role in pairs.clean.roles]
        found = swept[contrast] = activation_patching(model, pairs, kinds=kinds, roles=here)
        heads = [k for k, name in enumerate(found.components) if ".H" in name]
        effects[contrast] = expand_to_roles(found.per_prompt[:, heads].numpy(), here, roles)
        attention[contrast] = _attention_above_uniform(model, pairs, roles)
    names = tuple(next(iter(swept.values())).components[k] for k in heads)
    totals = {contrast: found.total.double().numpy() for contrast, found in swept.items()}
    return HeadProfiles(model.name, names, tuple(roles), effects, attention, totals), swept


def head_similarity(a: MeanProfiles, b: MeanProfiles) -> Float[np.ndarray, "draw head_a head_b"]:
    """Return how alike heads are: the mean of the cosines of effects and of attention (-1 to 1)."""
    effects = np.einsum("dif,djf->dij", _normalize(a.effects), _normalize(b.effects))
    attention = np.einsum("dif,djf->dij", _normalize(a.attention), _normalize(b.attention))
    return (effects + attention) / 2


def affected_answers(*models: HeadProfiles) -> tuple[tuple[str, int], ...]:
    """Name the contrasts and answers (by number) that go together in every one of the models.

    An answer that a contrast leaves alone has nothing to take a share of: its mean fall must be a
    tenth of the model's largest.
    """
    found = []
    for model in models:
        means = {
            (contrast, k): abs(float(mean))
            for contrast, totals in model.total_effects.items()
            for k, mean in enumerate(totals.mean(0))
        }
        largest = max(means.values(), default=0.0)
        found.append({at for at, mean in means.items() if mean > _MIN_TOTAL_EFFECT * largest})
    return tuple(sorted(set.intersection(*found))) if found else ()


def effect_fractions(
    effects: Mapping[str, Float[np.ndarray, "_ head effect"]],
    total_effects: Mapping[str, Float[np.ndarray, "_ answer"]],
    contrast_answers: Sequence[tuple[str, int]],
    weights: Mapping[str, Float[np.ndarray, "draw _"]],
) -> Float[np.ndarray, "draw head share"]:
    """Divide averaged effects by the averaged fall when all is replaced, for each row of weights.

    So two models can be held against each other whose logits have different scales. `where` names
    contrasts and answers, as `live` does; the roles of one stand together.
    """
    found = []
    for contrast, answer in contrast_answers:
        mine, total = weights[contrast], total_effects[contrast]
        each = rearrange(
            _weighted_mean(mine, effects[contrast]),
            "draw head (role answer) -> draw head role answer",
            answer=total.shape[1],
        )
        whole = mine @ total[:, answer] / mine.sum(1)
        found.append(each[..., answer] / whole[:, None, None])
    return np.concatenate(found, axis=2)


def _attention_above_uniform(
    model: Model, pairs: PairBatch, roles: Sequence[str]
) -> Float[np.ndarray, "prompt head feature"]:
    found = role_attention(model, pairs.clean)
    own = found.per_prompt - rearrange(
        uniform_attention(pairs.clean), "prompt role role_key -> prompt 1 1 role role_key"
    )
    here = [role for role in roles if role in found.roles]
    at, to = [found.roles.index(r) for r in here], [roles.index(r) for r in here]
    picked = own.numpy()[..., at, :][..., at]
    full = np.full((*picked.shape[:3], len(roles), len(roles)), np.nan, dtype=np.float64)
    full[..., np.array(to)[:, None], np.array(to)] = picked
    return rearrange(full, "prompt layer head role role_key -> prompt (layer head) (role role_key)")


def _weighted_mean(
    weights: Float[np.ndarray, "draw prompt"], each: Float[np.ndarray, "prompt head feature"]
) -> Float[np.ndarray, "draw head feature"]:
    """Average what is there; a feature that no prompt has is 0 in every model alike."""
    there = ~np.isnan(each)
    total = np.einsum("dp,phf->dhf", weights, np.where(there, each, 0.0), optimize=True)
    count = np.einsum("dp,phf->dhf", weights, there.astype(np.float64), optimize=True)
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def _half_weights(count: int) -> Float[np.ndarray, "draw prompt"]:
    even = (np.arange(count) % 2 == 0).astype(np.float64)
    return np.stack([even, 1 - even])


def _normalize(
    vectors: Float[np.ndarray, "draw head feature"],
) -> Float[np.ndarray, "draw head feature"]:
    """Scale to length 1; a head that does nothing stays at 0 and resembles no other."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-9)
