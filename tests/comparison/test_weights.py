"""Cosines equal those of the explicit token-to-token maps, and follow reordered heads."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from probes.comparison.representations.weights import weight_similarity
from probes.errors import BatchError, ModelError
from probes.models.model import wrap
from probes.testing.equivalent_heads import ungroup_heads
from probes.testing.tiny_models import KINDS, tiny, tiny_hf

WIDTH, HEADS, SIZE = 32, 4, 8


def explicit_maps(model):
    """Each head's 97 × 97 maps from tokens to tokens, from the weights of the bridge."""
    bridge, maps = model.bridge, {"ov": [], "qk": []}

    def norm_matrix(norm):
        inner = norm.original_component
        center = "RMS" not in type(inner).__name__
        mean = torch.full((WIDTH, WIDTH), 1 / WIDTH) if center else torch.zeros(WIDTH, WIDTH)
        return (torch.eye(WIDTH) - mean) @ torch.diag(inner.weight)

    for block in bridge.blocks:
        read, attn = bridge.W_E @ norm_matrix(block.ln1), block.attn
        for head in range(HEADS):
            group = head * len(attn.W_K) // HEADS
            ov = read @ attn.W_V[group] @ attn.W_O[head] @ norm_matrix(bridge.ln_final) @ bridge.W_U
            qk = read @ attn.W_Q[head] @ attn.W_K[group].T @ read.T
            maps["ov"].append(ov - ov.mean(1, keepdim=True))
            maps["qk"].append(qk - qk.mean(1, keepdim=True))
    return {name: torch.stack(some).flatten(1).double() for name, some in maps.items()}


def cosines(a, b):
    return torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_cosines_equal_those_of_the_explicit_maps(kind):
    a, b = tiny(kind, 0), tiny(kind, 1)
    with torch.no_grad():  # initial norm weights are 1, which would hide a dropped one
        for n, model in enumerate((a, b)):
            draw = torch.Generator().manual_seed(n)
            for name, weight in model.bridge.original_model.named_parameters():
                if weight.ndim == 1 and name.endswith("weight"):
                    weight.copy_(0.5 + torch.rand(weight.shape, generator=draw))
    similarity = weight_similarity(a, b, permutations=1)
    maps_a, maps_b = explicit_maps(a), explicit_maps(b)
    for name in ("ov", "qk"):
        wanted = cosines(maps_a[name], maps_b[name])
        np.testing.assert_allclose(getattr(similarity, name), wanted, atol=1e-5)


def rotated_and_reordered(order, *, seed=0):
    """A tiny Llama, and a copy with reordered heads and a rotated residual stream."""
    hf_model, copy = (tiny_hf("llama", seed) for _ in range(2))
    rotation = torch.linalg.qr(
        torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3))
    )[0]
    llama: Any = copy
    rows = (torch.tensor(order)[:, None] * SIZE + torch.arange(SIZE)).flatten()
    with torch.no_grad():
        for layer in llama.model.layers:
            attn = layer.self_attn
            for part in (attn.q_proj, attn.k_proj, attn.v_proj):
                part.weight.copy_(part.weight[rows] @ rotation)
            attn.o_proj.weight.copy_(rotation.T @ attn.o_proj.weight[:, rows])
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight.copy_(part.weight @ rotation)
            layer.mlp.down_proj.weight.copy_(rotation.T @ layer.mlp.down_proj.weight)
        llama.model.embed_tokens.weight.copy_(llama.model.embed_tokens.weight @ rotation)
        llama.lm_head.weight.copy_(llama.lm_head.weight @ rotation)
    return wrap(hf_model, name="original"), wrap(copy, name="rotated")


def test_reordered_heads_of_a_rotated_copy_have_cosine_1():
    order = [2, 0, 3, 1]
    a, b = rotated_and_reordered(order)
    ids = torch.arange(10)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert torch.allclose(a.logits(ids, mask), b.logits(ids, mask), atol=1e-4)
    similarity = weight_similarity(a, b)
    for layer in range(3):
        for position, head in enumerate(order):
            own, moved = 4 * layer + head, 4 * layer + position
            assert similarity.ov[own, moved] == pytest.approx(1, abs=1e-6)
            assert similarity.qk[own, moved] == pytest.approx(1, abs=1e-6)
            assert (np.delete(similarity.ov[own], moved) < 0.9).all()
    assert similarity.heads_a[4 * 1 + 2] == "L1.H2"
    assert similarity.ov_chance.threshold < 0.5
    assert abs(similarity.qk_chance.mean) < 0.1


def test_grouped_query_heads_equal_heads_with_their_own_keys_and_values():
    grouped = tiny("llama-gqa")
    similarity = weight_similarity(grouped, ungroup_heads(grouped), permutations=1)
    np.testing.assert_allclose(np.diag(similarity.ov), 1, atol=1e-6)
    np.testing.assert_allclose(np.diag(similarity.qk), 1, atol=1e-6)


def test_unrelated_models_score_like_the_null():
    similarity = weight_similarity(tiny("llama", 0), tiny("llama", 1))
    for values, chance in (
        (similarity.ov, similarity.ov_chance),
        (similarity.qk, similarity.qk_chance),
    ):
        assert abs(values.mean() - chance.mean) < 0.02
        assert values.max() < 1.5 * chance.threshold


def test_models_of_different_depth_and_width_are_compared():
    small = tiny("llama", 1, hidden_size=16, num_hidden_layers=1)
    similarity = weight_similarity(tiny("llama"), small, permutations=2)
    assert similarity.ov.shape == similarity.qk.shape == (12, 4)
    assert np.abs(similarity.ov).max() <= 1


def test_a_head_with_zero_weights_has_no_cosine():
    hf_model: Any = tiny_hf("llama", 0)
    with torch.no_grad():
        hf_model.model.layers[0].self_attn.o_proj.weight[:, :SIZE] = 0
    similarity = weight_similarity(wrap(hf_model, name="cut"), tiny("llama"), permutations=2)
    assert np.isnan(similarity.ov[0]).all()
    assert np.isfinite(similarity.ov[1:]).all()
    assert np.isfinite(similarity.qk).all()


def test_the_table_is_sorted_by_cosine():
    table = weight_similarity(tiny("gpt2"), tiny("gpt2"), permutations=1).table()
    assert list(table.columns) == ["map", "head_a", "head_b", "cosine", "chance_best"]
    assert len(table) == 2 * 12 * 12
    assert (table["head_a"] == table["head_b"])[:24].all()


def test_models_with_different_vocabularies_are_refused():
    with pytest.raises(ModelError, match=r"97 and 61 tokens.*representation_similarity"):
        weight_similarity(tiny("llama"), tiny("llama", vocab_size=61))
    words = [SimpleNamespace(get_vocab=lambda n=n: {f"word {n}": 0}) for n in range(2)]
    a, b = (wrap(tiny_hf("llama", 0), name="tiny", tokenizer=some) for some in words)
    with pytest.raises(ModelError, match="do not share one vocabulary"):
        weight_similarity(a, b)
    with pytest.raises(BatchError, match="0 permutations"):
        weight_similarity(a, a, permutations=0)
