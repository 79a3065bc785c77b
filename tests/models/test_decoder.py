"""Weights and activations of decoders, rebuilt and compared with the model."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import rms_norm
from transformers import AutoModelForCausalLM, MistralConfig, Qwen3Config

from probes.comparison.representations.weights import weight_similarity
from probes.errors import ModelError
from probes.interventions.activation_patching import MLP, Z
from probes.models.layers.decoder import (
    Norm,
    apply_rotary,
    capture_decoder,
    decompose,
    rebuild_residual,
)
from probes.models.layers.norm import IDENTITY, read_norm
from probes.models.model import wrap
from probes.testing.tiny_models import KINDS, POST_NORM_KINDS, hook_count, tiny

PROMPTS, LENGTH = 4, 9
MASKS = {
    "unpadded": [(0, 9), (0, 9), (0, 9), (0, 9)],
    "left": [(0, 9), (3, 9), (8, 9), (1, 9)],
    "right": [(0, 9), (0, 6), (0, 1), (0, 8)],
    "both": [(0, 9), (2, 7), (4, 5), (1, 8)],
}
# Variants of the blocks that the tiny models have by default.
ODD = {
    "neox in sequence": ("neox", {"use_parallel_residual": False}),
    "neox rotated whole": ("neox", {"rotary_pct": 1.0}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with wide heads": ("llama", {"head_dim": 16}),
    "llama with one group": ("llama-gqa", {"num_key_value_heads": 1}),
    "gpt2 scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
}


def prompts(padding="unpadded"):
    ids = torch.randint(3, 97, (PROMPTS, LENGTH), generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(PROMPTS, LENGTH, dtype=torch.bool)
    for row, (start, end) in enumerate(MASKS[padding]):
        mask[row, start:end] = True
    return ids, mask, torch.tensor([end - 1 for _, end in MASKS[padding]])


def run(model, padding="unpadded", weights=None):
    return capture_decoder(model, weights or decompose(model), *prompts(padding))


def gap(model, padding):
    """Largest difference of a rebuilt logit from the model's."""
    weights = decompose(model)
    inputs, _ = run(model, padding)
    last = rebuild_residual(weights, inputs)[torch.arange(PROMPTS), prompts(padding)[2]]
    return float((weights.unembed(weights.final_norm(last)) - inputs.logits).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_rebuilt_logits_are_the_models_own_with_any_padding(kind):
    model = tiny(kind)
    for padding in MASKS:
        assert gap(model, padding) < 1e-5
        ids, mask, readout = prompts(padding)
        inputs, _ = run(model, padding)
        logits = model.logits(ids, mask)[torch.arange(PROMPTS), readout]
        assert torch.equal(inputs.logits, logits)


@pytest.mark.parametrize("name", ODD)
def test_blocks_of_other_settings_are_rebuilt_as_well(name):
    kind, overrides = ODD[name]
    model = tiny(kind, **overrides)
    assert gap(model, "both") < 1e-5
    assert (tiny(kind).logits(*prompts()[:2]) - model.logits(*prompts()[:2])).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_captured_activations_are_those_of_the_model(kind):
    model = tiny(kind)
    ids, mask, _ = prompts("left")
    kept = {}
    names = {"resid_pre": "hook_resid_pre", "z": Z, "mlp_out": MLP, "v": "attn.hook_v"}
    if kind != "neox":
        names["resid_mid"] = "hook_resid_mid"
    edits = {
        f"blocks.{layer}.{point}": lambda value, key=(name, layer): kept.update({key: value})
        for name, point in names.items()
        for layer in range(3)
    }
    edits["hook_embed"] = lambda value: kept.update({"embed": value})
    edits["blocks.2.hook_resid_post"] = lambda value: kept.update({"resid_final": value})
    with model.editing(edits):
        model.logits(ids, mask)
    inputs, activations = run(model, "left")
    for key, value in kept.items():
        captured = (
            getattr(activations, key)
            if isinstance(key, str)
            else getattr(activations, key[0])[key[1]]
        )
        # Padding attends to itself here and to nothing in the model: compare text only.
        torch.testing.assert_close(
            captured[mask], value.reshape(captured.shape)[mask], atol=1e-5, rtol=0
        )
    assert torch.equal(inputs.embed + inputs.position_embed, activations.resid_pre[0])


def test_only_learned_positions_are_added_to_the_embedding():
    for kind in KINDS:
        inputs, _ = run(tiny(kind))
        assert bool(inputs.position_embed.any()) == (kind == "gpt2")
        assert [one is None for one in inputs.rotary] == 3 * [kind == "gpt2"]


def test_decomposed_weights_share_memory_with_the_model():
    model = tiny("llama")
    weights = decompose(model)
    with torch.no_grad():
        for parameter in model.bridge.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(run(model)[0].logits, run(tiny("llama"))[0].logits)
    run(model, weights=weights)


@pytest.mark.parametrize("kind", KINDS)
def test_projections_of_the_residual_give_the_captured_queries_keys_and_z(kind):
    model = tiny(kind)
    weights = decompose(model)
    inputs, activations = run(model, "left")
    mask = prompts("left")[1]
    for n, layer in enumerate(weights.layers):
        y = layer.attn_norm(activations.resid_pre[n])
        q, k = (apply_rotary(layer.project(port, y), inputs.rotary[n]) for port in "qk")
        v = layer.project("v", y)
        z = layer.attend(q, k, v, inputs.attention_mask)
        for rebuilt, captured in (
            (q, activations.q[n]),
            (k, activations.k[n]),
            (v, activations.v[n]),
            (z, activations.z[n]),
        ):
            torch.testing.assert_close(rebuilt[mask], captured[mask], atol=1e-5, rtol=0)


# The norm and its gradient.


NORMS = {
    "layer norm": lambda w, b: Norm(w, b, 1e-5, centered=True),
    "layer norm without bias": lambda w, b: Norm(w, None, 1e-5, centered=True),
    "rms norm": lambda w, b: Norm(w, None, 1e-6, centered=False),
    "no norm": lambda w, b: Norm(None, None, 0.0, centered=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_gradient_of_a_norm_is_that_of_autograd(name):
    draw = torch.Generator().manual_seed(3)
    weight, bias = (torch.randn(32, generator=draw).double() for _ in range(2))
    norm = NORMS[name](weight, bias)
    x = (3 * torch.randn(2, 5, 32, generator=draw).double() + 1).requires_grad_()
    grad = torch.randn(2, 4, 5, 32, generator=draw).double()
    each = [torch.autograd.grad(norm(x), x, grad[:, head])[0] for head in range(4)]
    # The residual broadcasts over the heads that read it.
    result = norm.backward(grad.clone(), x.detach()[:, None])
    torch.testing.assert_close(result, torch.stack(each, 1), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", NORMS)
def test_the_change_of_a_norm_is_that_of_autograd(name):
    draw = torch.Generator().manual_seed(3)
    weight, bias = (torch.randn(32, generator=draw).double() for _ in range(2))
    norm = NORMS[name](weight, bias)
    x = 3 * torch.randn(2, 5, 32, generator=draw).double() + 1
    change = torch.randn(2, 4, 5, 32, generator=draw).double()
    each = [torch.func.jvp(norm, (x,), (change[:, head],))[1] for head in range(4)]
    result = norm.forward_change(change.clone(), x[:, None])
    torch.testing.assert_close(result, torch.stack(each, 1), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("kind", POST_NORM_KINDS)
def test_norms_behind_attention_and_mlp_are_the_models_own(kind):
    model = tiny(kind)
    assert gap(model, "both") < 1e-5
    x = 2 * torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1)) + 0.5
    for block, layer in zip(model.bridge.blocks, decompose(model).layers, strict=True):
        own = block.original_component
        torch.testing.assert_close(layer.attn_post_norm(x), own.post_attention_layernorm(x))
        inner = own.post_feedforward_layernorm(own.mlp(x))
        torch.testing.assert_close(layer.mlp(x), inner, atol=1e-5, rtol=1e-5)
        assert (layer.attn_norm is IDENTITY) == (kind == "olmo2")


def test_a_norm_that_is_neither_by_its_weight_nor_by_one_more_is_refused():
    class OddRMSNorm(nn.RMSNorm):
        def forward(self, x):
            return super().forward(x) + 1

    class Component(nn.Module):
        original_component = OddRMSNorm(32, eps=1e-6)

    with pytest.raises(ModelError, match="neither by its weight w nor by 1"):
        read_norm(Component())


@pytest.mark.parametrize("added", [0, 1])
@pytest.mark.parametrize("size", [1.0, 30.0, 100.0])
def test_a_norm_in_16_bits_is_read_as_the_nearer_of_its_weight_and_one_more(added, size):
    stored = (size * torch.linspace(0.5, 1.5, 32)).to(torch.bfloat16)

    class SomeRMSNorm(nn.RMSNorm):
        def forward(self, x):
            return rms_norm(x.float(), (32,), added + self.weight.float(), self.eps).to(x.dtype)

    class Component(nn.Module):
        original_component = SomeRMSNorm(32, eps=1e-6)

    Component.original_component.weight = nn.Parameter(stored)
    assert torch.equal(read_norm(Component()).weight.float(), stored.float() + added)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_the_models_own(kind):
    model = tiny(kind)
    weights = decompose(model)
    x = 2 * torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1)) + 0.5
    for block, layer in zip(model.bridge.blocks, weights.layers, strict=True):
        torch.testing.assert_close(layer.attn_norm(x), block.ln1.original_component(x))
        torch.testing.assert_close(layer.mlp_norm(x), block.ln2.original_component(x))
    torch.testing.assert_close(weights.final_norm(x), model.bridge.ln_final.original_component(x))


def test_an_identity_in_place_of_a_norm_of_queries_and_keys_is_read_as_no_norm():
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    hf_model = AutoModelForCausalLM.from_config(Qwen3Config(**sizes, **heads)).eval()
    for layer in hf_model.model.layers:
        layer.self_attn.q_norm = layer.self_attn.k_norm = nn.Identity()
    model = wrap(hf_model, name="no head norms")
    assert all(layer.q_norm is layer.k_norm is IDENTITY for layer in decompose(model).layers)
    assert gap(model, "left") < 1e-5
    assert weight_similarity(model, model).qk.diagonal() == pytest.approx(1)


# Attention.


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_attention_is_a_softmax_over_the_allowed_keys(softcap):
    draw = torch.Generator().manual_seed(4)
    q = torch.randn(2, 5, 4, 8, generator=draw)
    k, v = (torch.randn(2, 5, 2, 8, generator=draw) for _ in range(2))
    allowed = torch.ones(5, 5).tril().bool().repeat(2, 1, 1)
    allowed[1, :, 1] = torch.arange(5) == 1
    layer = replace(decompose(tiny("llama-gqa")).layers[0], scale=0.3, softcap=softcap)
    z = layer.attend(q, k, v, allowed)
    for prompt in range(2):
        for head in range(4):
            scores = 0.3 * q[prompt, :, head] @ k[prompt, :, head // 2].T
            scores = scores if softcap is None else softcap * (scores / softcap).tanh()
            pattern = scores.masked_fill(~allowed[prompt], -torch.inf).softmax(-1)
            expected = pattern @ v[prompt, :, head // 2]
            torch.testing.assert_close(z[prompt, :, head], expected)


def test_rotary_keeps_the_length_and_the_dimensions_beyond_it():
    x = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(5))
    angle = torch.rand(2, 5, 2).repeat(1, 1, 2)
    rotated = apply_rotary(x, (angle.cos(), angle.sin()))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotated[..., 4:], x[..., 4:])
    back = apply_rotary(rotated, (angle.cos(), -angle.sin()))
    torch.testing.assert_close(back, x)
    assert apply_rotary(x, None) is x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("port", ["q", "k", "v"])
def test_a_choice_of_heads_is_projected_as_all_heads_are(kind, port):
    layer = decompose(tiny(kind)).layers[1]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(6))
    every = layer.project(port, x)
    assert every.shape == (2, 5, len(getattr(layer, port)), 8)
    for heads in ([1], [1, 0], [0, 0, 1, 1]):
        torch.testing.assert_close(layer.project(port, x, heads), every[..., heads, :])


# Models that are refused.


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_give_other_logits_are_refused(kind):
    model = tiny(kind)
    weights = decompose(model)
    first, *rest = weights.layers
    changes = [
        {"scale": 2 * first.scale},
        {"o_bias": first.o_bias + torch.linspace(0, 0.3, 32)},
        {"q": first.q.flip(0)},
        {"mlp_norm": replace(first.mlp_norm, eps=1.0)},
    ]
    for change in changes:
        other = replace(weights, layers=(replace(first, **change), *rest))
        with pytest.raises(ModelError, match=r"not the plain sum of heads and MLP.* differ by"):
            run(model, weights=other)
    if weights.parallel:
        return
    other = replace(weights, parallel=True)
    with pytest.raises(ModelError, match="Use a decoder such as Llama, GPT-2 or GPT-NeoX"):
        run(model, weights=other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_are_not_finite_are_refused(kind, value):
    model = tiny(kind)
    with torch.no_grad():
        model.bridge.unembed.original_component.weight[5] = value
    with pytest.raises(ModelError, match="gives NaN or infinite logits"):
        run(model)


def test_weights_that_give_nan_where_the_model_does_not_are_refused():
    model = tiny("llama")
    weights = decompose(model)
    first, *rest = weights.layers
    other = replace(weights, layers=(replace(first, scale=float("nan")), *rest))
    with pytest.raises(ModelError, match="not the plain sum"):
        run(model, weights=other)


def sliding():
    """A model whose queries attend to four keys."""
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}
    config = MistralConfig(**sizes, **heads, max_position_embeddings=48, initializer_range=0.15)
    torch.manual_seed(0)
    return wrap(AutoModelForCausalLM.from_config(config).eval(), name="sliding")


def test_a_sliding_window_is_rebuilt():
    model = sliding()
    ids, mask, readout = prompts()
    assert [layer.window for layer in decompose(model).layers] == [4, 4]
    capture_decoder(model, decompose(model), ids, mask, readout)  # Checks the rebuilt logits.


def test_weights_that_fit_only_short_prompts_are_refused_on_long_ones():
    """A sliding window matters only in prompts that are longer than it."""
    model, (ids, mask, readout) = sliding(), prompts()
    weights = decompose(model)
    weights = replace(weights, layers=tuple(replace(one, window=None) for one in weights.layers))
    mask[0, :6] = False
    with pytest.raises(ModelError, match="not the plain sum"):
        capture_decoder(model, weights, ids.flip(0), mask.flip(0), readout)
    with pytest.raises(ModelError, match="not the plain sum"):
        capture_decoder(model, weights, ids, mask, readout)


def test_an_unknown_norm_is_refused():
    class GroupNormComponent(nn.Module):
        original_component = nn.GroupNorm(1, 32)

    with pytest.raises(ModelError, match="The norm GroupNorm is not supported"):
        read_norm(GroupNormComponent())


@pytest.mark.parametrize("kind", KINDS)
def test_no_hook_is_left_behind(kind):
    model = tiny(kind)
    model.logits(*prompts()[:2])
    before = hook_count(model)
    run(model)
    assert hook_count(model) == before
