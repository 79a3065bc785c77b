"""Heads compared by their weights alone: what each writes for each token, and attends to for each.

A head's effective maps take tokens to tokens: OV from the token that is read to the logits that
it raises, QK from the token that asks to the scores of the tokens it may read. They are the same
however a model's residual is rotated and its heads are ordered. Nothing of vocab × vocab is made.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from probes.errors import BatchError, ModelError
from probes.models.decoder import DecoderWeights, decompose
from probes.models.model import Model
from probes.models.norm import Norm
from probes.models.site import head_names


@dataclass(frozen=True, eq=False)
class WeightNull:
    """What pairs of heads score where one model's tokens are renamed at random.

    Attributes:
        mean: Mean cosine of all pairs.
        best: The 95th percentile, over permutations, of the best pair of all.
    """

    mean: float
    best_95: float


@dataclass(frozen=True, eq=False)
class WeightSimilarity:
    """How alike two models' heads are, by their weights.

    Attributes:
        a, b: Names of the models.
        heads_a, heads_b: "L0.H0" and so on, layer by layer.
        ov, qk: Cosine of the effective maps of each pair of heads, -1 to 1; NaN where a head's
            map is nought.
        ov_chance, qk_chance: The same for renamed tokens.
    """

    a: str
    b: str
    heads_a: tuple[str, ...]
    heads_b: tuple[str, ...]
    ov: Float[np.ndarray, "head_a head_b"]
    qk: Float[np.ndarray, "head_a head_b"]
    ov_chance: WeightNull
    qk_chance: WeightNull

    def table(self) -> pd.DataFrame:
        """Return one row for each pair of heads and each map, the most alike first."""
        sides = (("ov", self.ov, self.ov_chance), ("qk", self.qk, self.qk_chance))
        rows = [
            (name, one, other, found[i, j], chance.best_95)
            for name, found, chance in sides
            for i, one in enumerate(self.heads_a)
            for j, other in enumerate(self.heads_b)
        ]
        columns = ["map", "head_a", "head_b", "cosine", "chance_best"]
        found = pd.DataFrame(rows, columns=pd.Index(columns))
        return found.sort_values(by="cosine", ascending=False, ignore_index=True)


@dataclass(frozen=True, eq=False)
class _Folded:
    """A model's maps in thin factors; products with embeddings are left undone.

    OV of a head is embed · v · o · unembed, its QK embed · q · kᵀ · embedᵀ.
    """

    embed: Float[Tensor, "vocab d_model"]
    centered_embed: Float[Tensor, "vocab d_model"]
    """The embeddings less their mean over tokens."""
    unembed: Float[Tensor, "vocab d_model"]
    q: Float[Tensor, "head d_model d_head"]
    k: Float[Tensor, "head d_model d_head"]
    v: Float[Tensor, "head d_model d_head"]
    o: Float[Tensor, "head d_head d_model"]


@torch.no_grad()
def weight_similarity(
    a: Model, b: Model, *, permutations: int = 20, seed: int = 0
) -> WeightSimilarity:
    """Compare all heads of two relatives with one vocabulary by their effective maps.

    OV is W_E · W_V · W_O · W_U and QK is W_E · W_Q · W_Kᵀ · W_Eᵀ (Elhage et al. 2021). A norm
    stands before attention and before the unembedding: its scale, which hangs on the input, is
    set to 1; its weight is folded in, and so is the mean that a layer norm takes off. What is
    added to all logits or scores of one row alike changes no probability, so the mean over
    tokens is taken off the unembedding and off the embedding that is attended to. Biases, learned
    positions and MLPs are left out; where positions are rotated, QK is that of distance 0.

    The further a layer is from the embedding, the less of what it reads is an embedding. Renamed
    tokens are a low bar, which any two models trained on one text clear, of other seeds too:
    before a cosine is taken for kinship, hold it against that of another seed.

    Args:
        a, b: The models.
        permutations: How often b's tokens are renamed at random for the chance level.
        seed: Of the permutations.

    Raises:
        ModelError: The vocabularies differ, or a model has heads that this cannot read.
    """
    if permutations < 1:
        raise BatchError(f"{permutations} permutations were asked for: take at least 1")
    _refuse_vocabularies(a, b)
    one, other = _fold_norms(a), _fold_norms(b)
    lengths = _frobenius_norms(one), _frobenius_norms(other)
    ov, qk = _cosines(one, other, lengths)
    draw = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(permutations):
        order = torch.randperm(len(other.embed), generator=draw).to(other.embed.device)
        renamed = replace(
            other,
            embed=other.embed[order],
            centered_embed=other.centered_embed[order],
            unembed=other.unembed[order],
        )
        drawn.append(_cosines(one, renamed, lengths))
    chances = [
        WeightNull(
            float(np.mean([np.nanmean(pair[n]) for pair in drawn])),
            float(np.quantile([np.nanmax(pair[n]) for pair in drawn], 0.95)),
        )
        for n in range(2)
    ]
    return WeightSimilarity(
        a.name, b.name, _head_names(a), _head_names(b), ov, qk, chances[0], chances[1]
    )


def _cosines(
    a: _Folded, b: _Folded, norms: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines of all pairs' OV and QK maps."""
    (a_ov, a_qk), (b_ov, b_qk) = norms
    ov, qk = _inner_products(a, b)
    return (
        (ov / (a_ov[:, None] * b_ov)).cpu().numpy(),
        (qk / (a_qk[:, None] * b_qk)).cpu().numpy(),
    )


def _frobenius_norms(model: _Folded) -> tuple[Tensor, Tensor]:
    """Return the Frobenius norms of each head's maps; NaN where one is nought."""
    found = [each.diagonal().clamp(min=0).sqrt() for each in _inner_products(model, model)]
    ov, qk = (each.where(each > 0, torch.nan) for each in found)
    return ov, qk


def _inner_products(a: _Folded, b: _Folded) -> tuple[Tensor, Tensor]:
    """Return ⟨map of a, map of b⟩ of all pairs of heads.

    ⟨PQ, RS⟩ = Σ (PᵀR) ∘ (QSᵀ): with tokens on the outside of both, only d_model × d_model is left
    of the vocabulary.
    """
    read, centered_embed, write = (
        getattr(a, name).T @ getattr(b, name) for name in ("embed", "centered_embed", "unembed")
    )
    pairs = [], []
    for head in range(len(a.q)):  # one head at a time: all pairs' inner products are many
        sides = (a.v[head].T @ read @ b.v, a.o[head] @ write @ b.o.mT)
        pairs[0].append((sides[0] * sides[1]).sum((1, 2)))
        sides = (a.q[head].T @ read @ b.q, a.k[head].T @ centered_embed @ b.k)
        pairs[1].append((sides[0] * sides[1]).sum((1, 2)))
    return torch.stack(pairs[0]), torch.stack(pairs[1])


def _fold_norms(model: Model) -> _Folded:
    anatomy = decompose(model)
    _refuse_unreadable(model, anatomy)
    embed, unembed = model.bridge.W_E.detach().double(), model.bridge.W_U.detach().double().T
    parts: dict[str, list[Tensor]] = {name: [] for name in "qkvo"}
    for layer in anatomy.layers:
        norm = layer.attn_norm
        groups = len(layer.q) // len(layer.k)
        for name in "qkv":
            found = _fold_norm(norm, getattr(layer, name).double())
            each = 1 if name == "q" else groups
            parts[name].append(repeat(found, "head d h -> (head each) d h", each=each))
        parts["o"].append(layer.o.double())
    return _Folded(
        embed=embed,
        centered_embed=embed - embed.mean(0),
        unembed=_fold_norm(anatomy.final_norm, (unembed - unembed.mean(0)).T).T,
        **{name: torch.cat(some) for name, some in parts.items()},
    )


def _fold_norm(
    norm: Norm, weight: Float[Tensor, "*_ d_model out"]
) -> Float[Tensor, "*_ d_model out"]:
    """Fold a norm, its scale set to 1, into the matrix that reads it."""
    if norm.weight is None:
        return weight
    found = norm.weight.double()[:, None] * weight
    return found - found.mean(-2, keepdim=True) if norm.centered else found


def _head_names(model: Model) -> tuple[str, ...]:
    shape = model.shape
    return head_names(shape.layers, shape.heads)


def _refuse_unreadable(model: Model, weights: DecoderWeights) -> None:
    inside = [getattr(block.attn, "original_component", None) for block in model.bridge.blocks]
    if any(hasattr(attn, name) for attn in inside for name in ("q_norm", "q_layernorm")):
        raise ModelError(
            f"{model.name} ({model.shape.architecture}) normalizes its queries and keys, so that "
            "its QK is no linear map. Compare what its heads do instead: probes.compare."
        )
    widths = {layer.q.shape[1] for layer in weights.layers} | {model.bridge.W_E.shape[1]}
    if len(widths) > 1:
        raise ModelError(
            f"{model.name} embeds tokens in another width than its blocks read: {sorted(widths)} "
            "found. Compare what its heads do instead: probes.compare."
        )


def _refuse_vocabularies(a: Model, b: Model) -> None:
    sizes = [int(model.bridge.W_E.shape[0]) for model in (a, b)]
    known = [m.tokenizer.get_vocab() for m in (a, b) if m.tokenizer is not None]
    if sizes[0] != sizes[1] or (len(known) == 2 and known[0] != known[1]):
        raise ModelError(
            f"{a.name} and {b.name} do not share one vocabulary ({sizes[0]} and {sizes[1]} tokens "
            "found): maps from tokens to tokens cannot be compared. Compare what their heads do "
            "(probes.compare) or the states at their roles "
            "(probes.comparison.representations.compare.compare_states)."
        )
