"""Weight similarity of the attention heads of two models, by their effective OV and QK maps.

Both maps go from tokens to tokens, so rotating the residual stream and reordering heads changes
nothing. No vocabulary × vocabulary matrix is computed.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from probes.errors import BatchError, ModelError
from probes.models.double_precision import to_double
from probes.models.layers.decoder import DecoderWeights, decompose
from probes.models.layers.norm import IDENTITY, Norm
from probes.models.model import Model
from probes.models.site import head_names
from probes.stats.null_threshold import conformal_threshold


@dataclass(frozen=True, eq=False)
class WeightNull:
    """Cosines of pairs of heads when the tokens of one model are permuted.

    Attributes:
        mean: Mean over pairs and permutations.
        threshold: Threshold of the largest cosine, over permutations.
    """

    mean: float
    threshold: float


@dataclass(frozen=True, eq=False)
class WeightSimilarity:
    """Cosines of the effective maps of all pairs of heads of two models.

    Attributes:
        a, b: Names of the models.
        heads_a, heads_b: Names of the heads, "L0.H0" first, layer by layer.
        ov, qk: Cosine for each pair of heads, -1 to 1; NaN where a map is 0.
        ov_chance, qk_chance: The null of each.
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
        """One row per pair of heads and map, the largest cosine first."""
        maps = (("ov", self.ov, self.ov_chance), ("qk", self.qk, self.qk_chance))
        rows = [
            (name, head_a, head_b, cosines[i, j], chance.threshold)
            for name, cosines, chance in maps
            for i, head_a in enumerate(self.heads_a)
            for j, head_b in enumerate(self.heads_b)
        ]
        columns = ["map", "head_a", "head_b", "cosine", "chance_best"]
        table = pd.DataFrame(rows, columns=pd.Index(columns))
        return table.sort_values(by="cosine", ascending=False, ignore_index=True)


@dataclass(frozen=True, eq=False)
class _FoldedWeights:
    """Factors of the maps with norms folded in.

    The OV map of a head is embed · v · o · unembedᵀ, the QK map embed · q · kᵀ · centered_embedᵀ.
    """

    embed: Float[Tensor, "vocab d_model"]
    centered_embed: Float[Tensor, "vocab d_model"]
    unembed: Float[Tensor, "vocab d_model"]
    q: Float[Tensor, "head d_model d_head"]
    k: Float[Tensor, "head d_model d_head"]
    v: Float[Tensor, "head d_model d_head"]
    o: Float[Tensor, "head d_head d_model"]

    def to(self, device: torch.device) -> "_FoldedWeights":
        """The same factors on a device: two models can be on two."""
        return _FoldedWeights(
            **{each.name: getattr(self, each.name).to(device) for each in fields(self)}
        )


@torch.no_grad()
def weight_similarity(
    a: Model, b: Model, *, permutations: int = 20, seed: int = 0
) -> WeightSimilarity:
    """Cosines of the effective OV and QK maps of all heads of two models with one vocabulary.

    OV is W_E · W_V · W_O · W_U and QK is W_E · W_Q · W_Kᵀ · W_Eᵀ (Elhage et al. 2021). The weight
    and the centering of the norms before attention and unembedding are folded in; their
    input-dependent scale is set to 1. The mean over tokens is subtracted from the unembedding and
    from the attended embedding, because a constant added to all logits or scores changes no
    probability. Biases, learned positions and MLPs are ignored. With rotary positions, QK is that
    of distance 0.

    Later layers read less of the embedding, so their maps mean less. Permuted tokens are a weak
    null: models trained on the same text exceed it. Compare with an other-seed model, too.

    Args:
        a, b: The models.
        permutations: Number of random permutations of the tokens of b for the null.
        seed: Seed of the permutations.

    Raises:
        BatchError: There are fewer than 1 permutations.
        ModelError: The vocabularies differ, or a head's maps are not linear.
    """
    if permutations < 1:
        raise BatchError(f"{permutations} permutations are too few: give at least 1")
    _require_same_vocabulary(a, b)
    folded_a, folded_b = _fold_norms(a), _fold_norms(b)
    folded_b = folded_b.to(folded_a.embed.device)
    norms = _frobenius_norms(folded_a), _frobenius_norms(folded_b)
    ov, qk = _cosines(folded_a, folded_b, norms)
    generator = torch.Generator().manual_seed(seed)
    null = []
    for _ in range(permutations):
        order = torch.randperm(len(folded_b.embed), generator=generator).to(folded_b.embed.device)
        permuted = replace(
            folded_b,
            embed=folded_b.embed[order],
            centered_embed=folded_b.centered_embed[order],
            unembed=folded_b.unembed[order],
        )
        null.append(_cosines(folded_a, permuted, norms))
    ov_chance, qk_chance = (
        WeightNull(
            float(np.mean([np.nanmean(pair[n]) for pair in null])),
            float(conformal_threshold([np.nanmax(pair[n]) for pair in null])),
        )
        for n in range(2)
    )
    heads_a, heads_b = (head_names(m.shape.layers, m.shape.heads) for m in (a, b))
    return WeightSimilarity(a.name, b.name, heads_a, heads_b, ov, qk, ov_chance, qk_chance)


def _cosines(
    a: _FoldedWeights,
    b: _FoldedWeights,
    norms: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the OV and QK maps of all pairs of heads."""
    (a_ov, a_qk), (b_ov, b_qk) = norms
    ov, qk = _inner_products(a, b)
    return (
        (ov / (a_ov[:, None] * b_ov)).cpu().numpy(),
        (qk / (a_qk[:, None] * b_qk)).cpu().numpy(),
    )


def _frobenius_norms(weights: _FoldedWeights) -> tuple[Tensor, Tensor]:
    """Frobenius norm of each head's OV and QK map; NaN instead of 0."""
    ov, qk = (
        products.diagonal().clamp(min=0).sqrt() for products in _inner_products(weights, weights)
    )
    return ov.where(ov > 0, torch.nan), qk.where(qk > 0, torch.nan)


def _inner_products(a: _FoldedWeights, b: _FoldedWeights) -> tuple[Tensor, Tensor]:
    """⟨map of a, map of b⟩ of all pairs of heads, for OV and QK.

    ⟨PQ, RS⟩ = Σ (PᵀR) ∘ (QSᵀ): tokens are the outer axes of both maps, so only d_model × d_model
    matrices remain of the vocabulary.
    """
    embed, centered_embed, unembed = (
        getattr(a, name).T @ getattr(b, name) for name in ("embed", "centered_embed", "unembed")
    )
    ov, qk = [], []
    for head in range(len(a.q)):  # one head at a time bounds the memory
        left, right = a.v[head].T @ embed @ b.v, a.o[head] @ unembed @ b.o.mT
        ov.append((left * right).sum((1, 2)))
        left, right = a.q[head].T @ embed @ b.q, a.k[head].T @ centered_embed @ b.k
        qk.append((left * right).sum((1, 2)))
    return torch.stack(ov), torch.stack(qk)


def _fold_norms(model: Model) -> _FoldedWeights:
    weights = decompose(model)
    _require_linear_maps(model, weights)
    embed = to_double(model.bridge.W_E.detach())
    unembed = to_double(model.bridge.W_U.detach()).T
    heads: dict[str, list[Tensor]] = {name: [] for name in "qkvo"}
    for layer in weights.layers:
        for name in "qkv":
            folded = _fold_norm(layer.attn_norm, to_double(getattr(layer, name)))
            each = 1 if name == "q" else len(layer.q) // len(layer.k)
            heads[name].append(repeat(folded, "head d h -> (head each) d h", each=each))
        heads["o"].append(to_double(layer.o))
    return _FoldedWeights(
        embed=embed,
        centered_embed=embed - embed.mean(0),
        unembed=_fold_norm(weights.final_norm, (unembed - unembed.mean(0)).T).T,
        **{name: torch.cat(by_layer) for name, by_layer in heads.items()},
    )


def _fold_norm(
    norm: Norm, weight: Float[Tensor, "*_ d_model out"]
) -> Float[Tensor, "*_ d_model out"]:
    """Fold a norm with scale 1 into the matrix that reads its output."""
    if norm.weight is None:
        return weight
    folded = to_double(norm.weight)[:, None] * weight
    return folded - folded.mean(-2, keepdim=True) if norm.centered else folded


def _require_linear_maps(model: Model, weights: DecoderWeights) -> None:
    attns = [getattr(block.attn, "original_component", None) for block in model.bridge.blocks]
    read = any(layer.q_norm is not IDENTITY for layer in weights.layers)
    if read or any(hasattr(attn, "q_layernorm") for attn in attns):
        raise ModelError(
            f"{model.name} ({model.shape.architecture}) normalizes queries and keys, so its QK is "
            "not a linear map. Compare the effects of its heads instead: pb.compare."
        )
    if any(layer.attn_post_norm is not IDENTITY for layer in weights.layers):
        raise ModelError(
            f"{model.name} ({model.shape.architecture}) normalizes the sum of its heads, so its "
            "OV is not a linear map. Compare the effects of its heads instead: pb.compare."
        )
    widths = {layer.q.shape[1] for layer in weights.layers} | {model.bridge.W_E.shape[1]}
    if len(widths) > 1:
        raise ModelError(
            f"{model.name} has embeddings and blocks of different widths {sorted(widths)}. Compare "
            "the effects of its heads instead: pb.compare."
        )


def _require_same_vocabulary(a: Model, b: Model) -> None:
    sizes = [int(model.bridge.W_E.shape[0]) for model in (a, b)]
    vocabularies = [m.tokenizer.get_vocab() for m in (a, b) if m.tokenizer is not None]
    same_words = len(vocabularies) < 2 or vocabularies[0] == vocabularies[1]
    if sizes[0] != sizes[1] or not same_words:
        raise ModelError(
            f"{a.name} and {b.name} do not share one vocabulary ({sizes[0]} and {sizes[1]} tokens "
            "found). Compare the effects of their heads (pb.compare) or their states at roles "
            "(pb.representation_similarity) instead."
        )
