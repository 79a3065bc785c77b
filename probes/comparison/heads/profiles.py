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

from probes.interventions.sweep import Effects, sweep
from probes.models.model import Model
from probes.observe.attention import role_attention, uniform_attention
from probes.prompts.pair_batch import PairBatch
from probes.prompts.role_axis import spread
from probes.stats.intervals import draws

RELIABLE_FROM = 0.5
"""A head whose effects repeat less than this between halves of the prompts is idle."""

_LIVE_FROM = 0.1


@dataclass(frozen=True, eq=False)
class Profiles:
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
    totals: Mapping[str, Float[np.ndarray, "_ answer"]] = field(default_factory=dict)

    @property
    def reliable(self) -> Bool[np.ndarray, " head"]:
        """Which heads repeat themselves between halves of the prompts; the others are idle."""
        return self.halves().reliability() >= RELIABLE_FROM

    def vectors(self, weights: Mapping[str, Float[np.ndarray, "draw prompt"]]) -> "Vectors":
        """Average over prompts, once for each row of weights."""
        return Vectors(
            np.concatenate([_average(weights[c], e) for c, e in self.effects.items()], axis=2),
            _average(
                np.concatenate([weights[c] for c in self.attention], axis=1),
                np.concatenate(list(self.attention.values()), axis=0),
            ),
        )

    def even(self) -> "Vectors":
        """Average over all prompts alike."""
        return self.vectors({c: np.ones((1, len(e))) for c, e in self.effects.items()})

    def halves(self) -> "Vectors":
        """Average over the even and over the odd prompts."""
        return self.vectors({c: _halves(len(e)) for c, e in self.effects.items()})

    def drawn(self, times: int, *, seed: int) -> "Vectors":
        """Average over bootstrap samples of the prompts; equal seeds draw equal prompts."""
        return self.vectors(
            {
                c: draws(len(e), times, seed=seed + k)
                for k, (c, e) in enumerate(self.effects.items())
            }
        )


@dataclass(frozen=True, eq=False)
class Vectors:
    """Averaged profiles: one set of heads for each way of averaging."""

    effects: Float[np.ndarray, "draw head effect"]
    attention: Float[np.ndarray, "draw head gaze"]

    def reliability(self) -> Float[np.ndarray, " head"]:
        """Return how alike each head's effects are in the two halves (cosine, -1 to 1)."""
        first, second = _unit(self.effects)
        return (first * second).sum(-1)


def profile(
    model: Model,
    batches: Mapping[str, PairBatch],
    roles: Sequence[str],
    *,
    kinds: Sequence[str] = ("heads",),
) -> tuple[Profiles, dict[str, Effects]]:
    """Measure the profiles of a model's heads; the effects come back for all components."""
    effects, attention, swept, heads = {}, {}, {}, []
    for contrast, pairs in batches.items():
        here = [role for role in roles if role in pairs.clean.roles]
        found = swept[contrast] = sweep(model, pairs, kinds=kinds, roles=here)
        heads = [k for k, name in enumerate(found.components) if ".H" in name]
        effects[contrast] = spread(found.each[:, heads].numpy(), here, roles)
        attention[contrast] = _attention(model, pairs, roles)
    names = tuple(next(iter(swept.values())).components[k] for k in heads)
    totals = {contrast: found.total.double().numpy() for contrast, found in swept.items()}
    return Profiles(model.name, names, tuple(roles), effects, attention, totals), swept


def similarity(a: Vectors, b: Vectors) -> Float[np.ndarray, "draw head_a head_b"]:
    """Return how alike heads are: the mean of the cosines of effects and of attention (-1 to 1)."""
    effects = np.einsum("dif,djf->dij", _unit(a.effects), _unit(b.effects))
    attention = np.einsum("dif,djf->dij", _unit(a.attention), _unit(b.attention))
    return (effects + attention) / 2


def live(*models: Profiles) -> tuple[tuple[str, int], ...]:
    """Name the contrasts and answers (by number) that go together in every one of the models.

    An answer that a contrast leaves alone has nothing to take a share of: its mean fall must be a
    tenth of the model's largest.
    """
    found = []
    for model in models:
        means = {
            (contrast, k): abs(float(mean))
            for contrast, totals in model.totals.items()
            for k, mean in enumerate(totals.mean(0))
        }
        largest = max(means.values(), default=0.0)
        found.append({at for at, mean in means.items() if mean > _LIVE_FROM * largest})
    return tuple(sorted(set.intersection(*found))) if found else ()


def shares(
    effects: Mapping[str, Float[np.ndarray, "_ head effect"]],
    totals: Mapping[str, Float[np.ndarray, "_ answer"]],
    where: Sequence[tuple[str, int]],
    weights: Mapping[str, Float[np.ndarray, "draw _"]],
) -> Float[np.ndarray, "draw head share"]:
    """Divide averaged effects by the averaged fall when all is replaced, for each row of weights.

    So two models can be held against each other whose logits have different scales. `where` names
    contrasts and answers, as `live` does; the roles of one stand together.
    """
    found = []
    for contrast, answer in where:
        mine, total = weights[contrast], totals[contrast]
        each = rearrange(
            _average(mine, effects[contrast]),
            "draw head (role answer) -> draw head role answer",
            answer=total.shape[1],
        )
        whole = mine @ total[:, answer] / mine.sum(1)
        found.append(each[..., answer] / whole[:, None, None])
    return np.concatenate(found, axis=2)


def _attention(
    model: Model, pairs: PairBatch, roles: Sequence[str]
) -> Float[np.ndarray, "prompt head feature"]:
    found = role_attention(model, pairs.clean)
    own = found.each - rearrange(
        uniform_attention(pairs.clean), "prompt role role_key -> prompt 1 1 role role_key"
    )
    here = [role for role in roles if role in found.roles]
    at, to = [found.roles.index(r) for r in here], [roles.index(r) for r in here]
    picked = own.numpy()[..., at, :][..., at]
    full = np.full((*picked.shape[:3], len(roles), len(roles)), np.nan, dtype=np.float64)
    full[..., np.array(to)[:, None], np.array(to)] = picked
    return rearrange(full, "prompt layer head role role_key -> prompt (layer head) (role role_key)")


def _average(
    weights: Float[np.ndarray, "draw prompt"], each: Float[np.ndarray, "prompt head feature"]
) -> Float[np.ndarray, "draw head feature"]:
    """Average what is there; a feature that no prompt has is 0 in every model alike."""
    there = ~np.isnan(each)
    total = np.einsum("dp,phf->dhf", weights, np.where(there, each, 0.0), optimize=True)
    count = np.einsum("dp,phf->dhf", weights, there.astype(np.float64), optimize=True)
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def _halves(count: int) -> Float[np.ndarray, "draw prompt"]:
    even = (np.arange(count) % 2 == 0).astype(np.float64)
    return np.stack([even, 1 - even])


def _unit(
    vectors: Float[np.ndarray, "draw head feature"],
) -> Float[np.ndarray, "draw head feature"]:
    """Scale to length 1; a head that does nothing stays at 0 and resembles no other."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-9)
