"""Every wrapped model gives Hugging Face's logits, or is refused in one line."""

import accelerate
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import probes as pb
from probes.compression.derived_model import DerivedModel
from probes.errors import ModelError, SiteError
from probes.models.acceptance import check_acceptance, reference_logits
from probes.models.files.provenance import Provenance, StorageCost
from probes.models.model import load, random_init, wrap
from probes.testing.tiny_models import tiny, tiny_hf

SIZE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 48, "initializer_range": 0.15,
    "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 6, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "num_key_value_heads": 4, **EXPERTS,
}  # fmt: skip
SUPPORTED = {
    "gpt2": {},
    "gpt_neox": {"rotary_pct": 0.25},
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 4},
    "mixtral": GROUPED | {"num_local_experts": 4},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "qwen3_moe": GROUPED | EXPERTS | {"num_experts": 4},
    "gemma": GROUPED,
    "gemma2": GROUPED | {"final_logit_softcapping": 1.0, "sliding_window": 4},
    "gemma3_text": GROUPED | {"sliding_window": 4},
    "phi3": {"num_key_value_heads": 2},
    "olmo2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 48, "expansion_ratio": 2},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True},
    "cohere": {"logit_scale": 0.0625, "num_key_value_heads": 2},
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.2, "num_key_value_heads": 2},
    "nemotron": {"num_key_value_heads": 2},
    "smollm3": GROUPED | {"no_rope_layers": [1, 0]},
    "deepseek_v3": MLA,
    "gpt_oss": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "llama4_text": GROUPED | {"num_local_experts": 2, "intermediate_size_mlp": 64},
}
REFUSED = {
    "gpt2 without scaled attention": ("gpt2", {"scale_attn_weights": False}, "logits differ from"),
    "gpt_neox without attention bias": ("gpt_neox", {"attention_bias": False}, "not supported"),
    "falcon with grouped heads": (
        "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, "not supported",
    ),
    "bert reads later tokens": ("bert", {}, "not a causal decoder"),
    "rwkv": ("rwkv", {"context_length": 48}, "not supported|differ"),
    "persimmon": ("persimmon", {}, "not supported"),
    "openai-gpt": (
        "openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}, "differ from",
    ),
}  # fmt: skip


def build(kind, **overrides):
    """Random-init Hugging Face model whose biases and norms are not trivial."""
    config = AutoConfig.for_model(kind, **SIZE | overrides)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for name, weight in hf_model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    return hf_model


@pytest.mark.parametrize("kind", SUPPORTED)
def test_logits_and_the_lens_at_the_last_layer_are_hugging_faces(kind, letters):
    hf_model = build(kind, **SUPPORTED[kind] | {"vocab_size": len(letters)})
    model = wrap(hf_model, name=kind, tokenizer=letters)
    batch = pb.tokenize(model, ["The fox has 3 apples", "a b"])
    with torch.no_grad():
        for row, mask in enumerate(batch.mask):
            expected = hf_model(batch.ids[row, mask][None]).logits[0]
            found = model.logits(batch.ids, batch.mask)[row, mask]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        resid = pb.capture(model, batch, ("resid",))["resid"][-1]
        lens, logits = model.unembed(resid), model.logits(batch.ids, batch.mask)
    torch.testing.assert_close(lens[batch.mask], logits[batch.mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_with_other_logits_is_refused_in_one_line(name):
    kind, overrides, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        wrap(build(kind, **overrides), name="mine")
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_an_edit_of_attention_has_an_effect_or_is_refused(kind):
    model = wrap(build(kind, **SUPPORTED[kind]), name="mine")
    ids = torch.randint(3, 97, (1, 6), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids, dtype=torch.bool)
    plain = model.logits(ids, mask)
    for hook in ("attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z"):
        name = f"blocks.1.{hook}"
        try:
            with model.editing({name: lambda value: value.flip(-2)}):
                edited = model.logits(ids, mask)
        except SiteError as error:
            assert kind in ("opt", "llama4_text")
            assert "no effect" in str(error)
        else:
            assert not torch.equal(edited, plain)
        with model.recording([name]) as kept:
            model.logits(ids, mask)
        assert kept[name].isfinite().any()


@pytest.mark.parametrize("kind", SUPPORTED)
def test_z_of_a_head_is_its_pattern_times_its_values(kind):
    model = wrap(build(kind, **SUPPORTED[kind]), name="mine")
    ids = torch.randint(3, 97, (1, 6), generator=torch.Generator().manual_seed(5))
    names = [f"blocks.1.attn.hook_{name}" for name in ("pattern", "v", "z")]
    with model.recording(names) as kept:
        model.logits(ids, torch.ones_like(ids, dtype=torch.bool))
    pattern, v, z = (kept[name] for name in names)
    if kind != "deepseek_v3":  # Its values have the head before the position.
        v = v.transpose(1, 2)
    v = v.repeat_interleave(model.shape.heads // v.shape[1], dim=1)
    torch.testing.assert_close(z, (pattern @ v).transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_a_lens_that_does_not_give_the_models_logits_is_refused():
    """OPT-350m projects its states down before the unembedding, and has no final norm."""
    overrides = {"word_embed_proj_dim": 16, "do_layer_norm_before": False, "ffn_dim": 64}
    model = wrap(build("opt", **overrides), name="mine")
    with pytest.raises(ModelError, match="logit lens of mine"):
        model.unembed(torch.zeros(1, 1, 32))


def test_a_change_of_one_weight_after_wrapping_is_noticed():
    hf_model = tiny_hf("llama", 0)
    reference = reference_logits(hf_model)
    model = wrap(hf_model, name="changed")
    check_acceptance(model, reference)
    with torch.no_grad():
        next(iter(model.bridge.parameters()))[int(reference.ids[0, 3])] += 0.01
    with pytest.raises(ModelError, match=r"changed .* logits differ from Hugging Face's by"):
        check_acceptance(model, reference)


def test_weights_that_accelerate_offloads_or_splits_are_refused():
    offloaded = accelerate.cpu_offload(tiny_hf("llama", 0), torch.device("cpu"))
    split = tiny_hf("llama", 0)
    split.lm_head.to("meta")
    for hf_model, places in ((offloaded, r"offloaded \(meta\)"), (split, r"cpu, offloaded")):
        wanted = f"weights of large are split: {places}.*load it without device_map or offloading"
        with pytest.raises(ModelError, match=wanted):
            wrap(hf_model, name="large")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_wrap(value):
    hf_model = tiny_hf("llama", 0)
    hf_model.model.norm.weight.data[3] = value
    with pytest.raises(ModelError, match=r"weights of mine are broken: model\.norm\.weight"):
        wrap(hf_model, name="mine")


def test_weights_whose_logits_overflow_are_refused():
    hf_model = tiny_hf("llama", 0)
    hf_model.model.norm.weight.data.fill_(3e38)
    with pytest.raises(ModelError, match="NaN or infinite logits"):
        wrap(hf_model, name="mine")


def test_acceptance_leaves_the_random_numbers_of_the_caller_alone():
    state = torch.get_rng_state()
    random_init(tiny("llama"), seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_tokens_outside_of_the_vocabulary_are_refused_unless_they_are_padding():
    model = tiny("llama")
    ids = torch.tensor([[200, 5, 6], [3, 4, 5]])
    mask = torch.tensor([[False, True, True], [True, True, True]])
    padded = model.logits(ids, mask)
    torch.testing.assert_close(padded[:1, 1:], model.logits(ids[:1, 1:], mask[:1, 1:]))
    for token in (97, -1):
        ids[1, 1] = token
        with pytest.raises(ModelError, match=rf"Token {token} is not in the vocabulary of tiny ll"):
            model.logits(ids, mask)


def test_an_activation_that_a_model_does_not_compute_is_refused_by_name(letters):
    model = wrap(build("mamba", vocab_size=len(letters)), name="mine", tokenizer=letters)
    assert pb.capture(model, "I have 9 foxes.", ("resid",))["resid"].isfinite().all()
    for name in ("attention", "z", "mlp_out"):
        with pytest.raises(SiteError, match=r"mine .*(no activation|not compute)"):
            pb.capture(model, "I have 9 foxes.", (name,))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_an_edit_that_changes_its_activation_in_place_without_returning_it_is_refused(mode):
    model = tiny("llama")
    ids = torch.tensor([[3, 4, 5]])

    def zero(value):
        value.zero_()

    for name in ("blocks.1.hook_mlp_out", "L1.MLP", "L1.H0"):
        with (
            mode(),
            pytest.raises(SiteError, match="changed its activation in place and returned None"),
            model.editing({name: zero}),
        ):
            model.logits(ids, ids > 0)
        with mode(), model.editing({name: lambda value: None}):
            model.logits(ids, ids > 0)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda _: 0.0, "returned float: return a tensor of shape"),
        (lambda value: (value,), "returned tuple"),
        (lambda value: value.tolist(), "returned list"),
        (lambda value: value.numpy(), "returned ndarray"),
        (lambda value: value.to("meta"), "on meta found, .* on cpu wanted"),
        (lambda value: value.double(), "float64 on cpu found"),
    ],
)
def test_an_edit_that_returns_no_tensor_of_the_same_kind_is_refused(edit, said):
    model, ids = tiny("llama"), torch.tensor([[3, 4, 5]])
    for name in ("L1.MLP", "L1.H0"):
        with model.editing({name: edit}), pytest.raises(SiteError, match=said):
            model.logits(ids, ids > 0)


# Derived models, saved and loaded again.


def derived(hf_model):
    return DerivedModel(
        "mine", hf_model, None, Provenance("grown", "parent", StorageCost(1.0, 1.0, 1.0))
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_gives_the_logits_of_the_one_in_memory(tied, tmp_path):
    hf_model = build("gemma2", **SUPPORTED["gemma2"])
    if not tied:  # An output matrix of its own, although the config ties it.
        weight = hf_model.get_input_embeddings().weight
        hf_model.get_output_embeddings().weight = torch.nn.Parameter(weight.flip(0).clone())
    folder = derived(hf_model).save(tmp_path / "same")
    ids = torch.arange(3, 9)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    saved, wrapped = load(folder), wrap(hf_model, name="mine")
    torch.testing.assert_close(saved.logits(ids, mask), wrapped.logits(ids, mask))


def test_a_config_that_does_not_describe_its_model_is_refused_and_nothing_saved(tmp_path):
    """The layers change places, but SmolLM3's rotary setting of each place stays."""
    hf_model = build("smollm3", **SUPPORTED["smollm3"])
    derived(hf_model).save(tmp_path / "before")
    hf_model.model.layers = torch.nn.ModuleList(list(hf_model.model.layers)[::-1])
    with pytest.raises(ModelError, match=r"mine was not saved: loaded again, its logits differ"):
        derived(hf_model).save(tmp_path / "after")
    assert [path.name for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize(("slope", "accepted"), [(1e-5, True), (1e-2, False)])
def test_rounding_that_depends_on_the_length_is_told_from_a_decoder_that_looks_ahead(
    slope, accepted, monkeypatch
):
    hf_model = tiny_hf("llama", seed=0)
    forward = hf_model.forward

    def shorter_texts_give_smaller_logits(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits - slope * (8 - kwargs["input_ids"].shape[1])
        return output

    monkeypatch.setattr(hf_model, "forward", shorter_texts_give_smaller_logits)
    reference = reference_logits(hf_model)
    monkeypatch.undo()
    assert (reference.rounding > 0) == accepted
    model = tiny("llama")
    if accepted:
        check_acceptance(model, reference)
    else:
        with pytest.raises(ModelError, match="not a causal decoder"):
            check_acceptance(model, reference)
