"""Cosines of effective maps are those of the maps written out, and follow heads that are moved."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from probes.comparison.weights import weight_similarity
from probes.errors import BatchError, ModelError
from probes.models.model import wrap
from probes.testing.tiny_models import KINDS, tiny, tiny_hf, ungroup_heads

WIDTH, HEADS, SIZE = 32, 4, 8


def written_out(model):
    """Each head's maps from tokens to tokens, 97 × 97, straight from the bridge's weights."""
    bridge, maps = model.bridge, {"ov": [], "qk": []}

    def weighed(norm):
        inner = norm.original_component
        center = "RMS" not in type(inner).__name__
        mean = torch.full((WIDTH, WIDTH), 1 / WIDTH) if center else torch.zeros(WIDTH, WIDTH)
        return (torch.eye(WIDTH) - mean) @ torch.diag(inner.weight)

    for block in bridge.blocks:
        read, attn = bridge.W_E @ weighed(block.ln1), block.attn
        for head in range(HEADS):
            group = head * len(attn.W_K) // HEADS
            said = read @ attn.W_V[group] @ attn.W_O[head] @ weighed(bridge.ln_final) @ bridge.W_U
            scored = read @ attn.W_Q[head] @ attn.W_K[group].T @ read.T
            maps["ov"].append(said - said.mean(1, keepdim=True))
            maps["qk"].append(scored - scored.mean(1, keepdim=True))
    return {name: torch.stack(some).flatten(1).double() for name, some in maps.items()}


def cosines(a, b):
    return torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_cosines_are_those_of_the_maps_written_out(kind):
    a, b = tiny(kind, 0), tiny(kind, 1)
    with torch.no_grad():  # fresh norm weights are one and would hide one that is dropped
        for n, model in enumerate((a, b)):
            draw = torch.Generator().manual_seed(n)
            for name, weight in model.bridge.original_model.named_parameters():
                if weight.ndim == 1 and name.endswith("weight"):
                    weight.copy_(0.5 + torch.rand(weight.shape, generator=draw))
    found = weight_similarity(a, b, permutations=1)
    one, other = written_out(a), written_out(b)
    np.testing.assert_allclose(found.ov, cosines(one["ov"], other["ov"]), atol=1e-5)
    np.testing.assert_allclose(
        found.qk,
        cosines(
            one["qk"],
            other["qk"],
        ),
        atol=1e-5,
    )


def turned_and_mixed(order, *, seed=0):
    """A tiny Llama, and its twin with heads reordered and the residual rotated."""
    hf_model, twin = (tiny_hf("llama", seed) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3)))[0]
    some: Any = twin
    rows = (torch.tensor(order)[:, None] * SIZE + torch.arange(SIZE)).flatten()
    with torch.no_grad():
        for layer in some.model.layers:
            attn = layer.self_attn
            for part in (attn.q_proj, attn.k_proj, attn.v_proj):
                part.weight.copy_(part.weight[rows] @ turn)
            attn.o_proj.weight.copy_(turn.T @ attn.o_proj.weight[:, rows])
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight.copy_(part.weight @ turn)
            layer.mlp.down_proj.weight.copy_(turn.T @ layer.mlp.down_proj.weight)
        some.model.embed_tokens.weight.copy_(some.model.embed_tokens.weight @ turn)
        some.lm_head.weight.copy_(some.lm_head.weight @ turn)
    return wrap(hf_model, name="one"), wrap(twin, name="turned")


def test_heads_that_were_moved_in_a_rotated_twin_are_found_at_exactly_one():
    order = [2, 0, 3, 1]
    a, b = turned_and_mixed(order)
    ids = torch.arange(10)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert torch.allclose(a.logits(ids, mask), b.logits(ids, mask), atol=1e-4)
    found = weight_similarity(a, b)
    for layer in range(3):
        for place, head in enumerate(order):
            own, twin = 4 * layer + head, 4 * layer + place
            assert found.ov[own, twin] == pytest.approx(1, abs=1e-6)
            assert found.qk[own, twin] == pytest.approx(1, abs=1e-6)
            assert (np.delete(found.ov[own], twin) < 0.9).all()
    assert found.heads_a[4 * 1 + 2] == "L1.H2"
    assert found.ov_chance.best_95 < 0.5
    assert abs(found.qk_chance.mean) < 0.1


def test_heads_that_share_keys_and_values_are_as_those_that_have_their_own():
    grouped = tiny("llama-gqa")
    found = weight_similarity(grouped, ungroup_heads(grouped), permutations=1)
    np.testing.assert_allclose(np.diag(found.ov), 1, atol=1e-6)
    np.testing.assert_allclose(np.diag(found.qk), 1, atol=1e-6)


def test_unrelated_models_are_as_alike_as_chance():
    found = weight_similarity(tiny("llama", 0), tiny("llama", 1))
    for values, chance in ((found.ov, found.ov_chance), (found.qk, found.qk_chance)):
        assert abs(values.mean() - chance.mean) < 0.02
        assert values.max() < 1.5 * chance.best_95


def test_models_of_other_depth_and_width_are_compared():
    small = tiny("llama", 1, hidden_size=16, num_hidden_layers=1)
    found = weight_similarity(tiny("llama"), small, permutations=2)
    assert found.ov.shape == found.qk.shape == (12, 4)
    assert np.abs(found.ov).max() <= 1


def test_a_head_without_weights_is_like_none():
    hf_model: Any = tiny_hf("llama", 0)
    with torch.no_grad():
        hf_model.model.layers[0].self_attn.o_proj.weight[:, :SIZE] = 0
    found = weight_similarity(wrap(hf_model, name="cut"), tiny("llama"), permutations=2)
    assert np.isnan(found.ov[0]).all()
    assert np.isfinite(found.ov[1:]).all()
    assert np.isfinite(found.qk).all()


def test_the_table_puts_the_most_alike_first():
    found = weight_similarity(tiny("gpt2"), tiny("gpt2"), permutations=1).table()
    assert list(found.columns) == ["map", "head_a", "head_b", "cosine", "chance_best"]
    assert len(found) == 2 * 12 * 12
    assert (found["head_a"] == found["head_b"])[:24].all()


def test_models_without_one_vocabulary_are_refused_and_the_alternative_is_named():
    with pytest.raises(ModelError, match=r"97 and 61 tokens.*compare_states"):
        weight_similarity(tiny("llama"), tiny("llama", vocab_size=61))
    words = [SimpleNamespace(get_vocab=lambda n=n: {f"word {n}": 0}) for n in range(2)]
    a, b = (wrap(tiny_hf("llama", 0), name="tiny", tokenizer=some) for some in words)
    with pytest.raises(ModelError, match="do not share one vocabulary"):
        weight_similarity(a, b)
    with pytest.raises(BatchError, match="0 permutations"):
        weight_similarity(a, a, permutations=0)
