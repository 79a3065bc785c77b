"""GGUF files are read in full, exactly, with the tokenizer and the storage that they have."""

import json
import struct

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from probes.compression.derived_model import load_parent
from probes.compression.storage import measure_rate
from probes.errors import ModelError
from probes.models.files import loading
from probes.models.files.gguf import load_gguf
from probes.models.files.gguf_header import read_gguf_header
from probes.models.model import load
from probes.models.process_state import seeded_init

# DeepSeek writes its control tokens with fullwidth bars, which are no bytes of a byte-level token.
USER = "<\uff5cUser\uff5c>"
CONTROL = [USER.replace("User", "begin"), USER.replace("User", "end"), USER, "<think>"]
MERGES = ["f o", "fo x", "1 2"]
TEMPLATE = "{% for m in messages %}" + USER + "{{ m['content'] }}{% endfor %}"
TOKENS = [*sorted(ByteLevel.alphabet()), "fo", "fox", "12", "foxes", *CONTROL]
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers": "blk", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def small(kind="llama", **settings):
    """A random Llama with grouped heads, or a Qwen2 with biases."""
    config_class = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind]
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(TOKENS),
             "max_position_embeddings": 64, "initializer_range": 0.15,
             "tie_word_embeddings": False}  # fmt: skip
    config = config_class(**sizes | settings)
    with seeded_init(0):
        hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for name, weight in hf_model.named_parameters():
            if weight.ndim == 1:
                torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.2)
    return hf_model


def file_name(name):
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def file_weights(hf_model):
    """Weights by their names in the file; llama.cpp pairs the rotary dimensions in another way."""
    config = hf_model.config
    for name, weight in hf_model.state_dict().items():
        own = file_name(name)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        count = next((n for part, n in heads.items() if f".{part}." in own), 0)
        if count and config.model_type == "llama":
            split = weight.reshape(count, 2, -1, *weight.shape[1:])
            weight = split.swapaxes(1, 2).reshape(weight.shape)
        yield own, weight.numpy()


def write(path, hf_model, kinds=("F32",), *, extra=(), tensors=(), pre="llama-bpe", vocab=True):
    """Write a GGUF file; matrices have the number formats in turn."""
    config, arch = hf_model.config, hf_model.config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if vocab:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(TOKENS)
        writer.add_token_types([1] * (len(TOKENS) - 4) + [3, 3, 3, 4])
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(TOKENS.index(CONTROL[0]))
        writer.add_eos_token_id(TOKENS.index(CONTROL[1]))
        writer.add_chat_template(TEMPLATE)
    for name, value in dict(extra).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
        add[type(value)](name, value)
    matrices = 0
    for name, weight in [*file_weights(hf_model), *tensors]:
        kind = Type.F32
        if weight.ndim == 2:
            kind = Type[kinds[matrices % len(kinds)]]
            matrices += 1
        block, size = gguf.GGML_QUANT_SIZES[kind]
        try:
            data = gguf.quantize(weight, kind)
        except NotImplementedError:  # Any bytes are a block; these keep its scales finite.
            shape = (weight.shape[0], weight.shape[1] // block * size)
            data = np.random.default_rng(0).integers(0, 60, shape, dtype=np.uint8)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expected_weights(path, hf_model):
    """Dequantized weights of a file by their names in the model, as the gguf package reads them."""
    read = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    config = hf_model.config
    for name in hf_model.state_dict():
        own = file_name(name)
        weight = torch.from_numpy(np.array(read.get(own, read["token_embd.weight"])))
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        count = next((n for part, n in heads.items() if f".{part}." in own), 0)
        if count and config.model_type == "llama":
            split = weight.reshape(count, -1, 2, *weight.shape[1:])
            weight = split.swapaxes(1, 2).reshape(weight.shape)
        yield name, weight


BATCH = torch.arange(3, 15).view(2, 6), torch.ones(2, 6, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["F16", "Q4_1", "Q8_0"])
def test_logits_are_those_of_transformers_and_weights_those_of_the_blocks(kind, tmp_path):
    hf_model = small()
    path = write(tmp_path / "fox.gguf", hf_model, [kind])
    model = load(path)
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="fox.gguf", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = plain(BATCH[0]).logits
    torch.testing.assert_close(model.logits(*BATCH), expected, atol=1e-5, rtol=0)
    own = load_gguf(path, torch.float32)[0].state_dict()
    for name, weight in expected_weights(path, hf_model):
        assert torch.equal(own[name], weight), name
    assert model.name == "fox.gguf"
    assert kind in model.origin


def test_every_number_format_that_the_gguf_package_dequantizes_is_read_exactly(tmp_path):
    kinds = sorted(kind.name for kind in gguf.quants._type_traits)
    assert {"Q4_K", "Q6_K", "IQ2_XXS", "MXFP4", "TQ1_0"} <= set(kinds)
    hf_model = small(hidden_size=256, intermediate_size=256, num_hidden_layers=5)
    path = write(tmp_path / "all.gguf", hf_model, kinds)
    assert set(kinds) <= set(read_gguf_header(path).types)
    own = load_gguf(path, torch.float32)[0].state_dict()
    for name, weight in expected_weights(path, hf_model):
        assert torch.equal(own[name], weight), name


def test_storage_counts_the_bits_of_the_file(tmp_path):
    hf_model = small()
    path = write(tmp_path / "fox.gguf", hf_model, ["Q4_1"])
    cost = measure_rate(load(path)).storage
    matrices = sum(w.numel() for n, w in hf_model.named_parameters() if "proj" in n)
    tensors = gguf.GGUFReader(path).tensors
    assert cost.total == 8 * sum(int(tensor.n_bytes) for tensor in tensors)
    # A block of 32 weights has 32 codes of 4 bits, a scale and a minimum of 16 bits.
    assert (cost.weights, cost.scales, cost.zero_points) == (
        4 * matrices, matrices / 2, matrices / 2
    )  # fmt: skip
    assert cost.embeddings == 5 * 2 * len(TOKENS) * 64


def test_rounding_to_a_narrower_dtype_is_stated(tmp_path):
    path = write(tmp_path / "fox.gguf", small(), ["Q8_0"])
    assert load(path).provenance.settings["rounding"] == 0
    model = load(path, dtype="bfloat16")
    assert model.provenance.settings["rounding"] == 2**-8
    assert "bfloat16, rounded by up to 3.9e-03" in model.origin


def test_a_gguf_model_is_saved_as_plain_floats_and_quantized_further(tmp_path):
    path = write(tmp_path / "fox.gguf", small(), ["Q8_0"])
    parent = load_parent(path)
    assert parent.provenance.kind == "quantized"
    saved = load(parent.save(tmp_path / "plain"))
    assert torch.equal(saved.logits(*BATCH), load(path).logits(*BATCH))
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    assert saved.provenance.storage == parent.provenance.storage


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
        "original_max_position_embeddings": 16}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}


def divisors(hf_model):
    """Divisor of each rotary frequency by transformers' own buffer."""
    base, width = hf_model.config.rope_parameters["rope_theta"], hf_model.config.head_dim
    plain = base ** -(torch.arange(0, width, 2).double() / width)
    return (plain / hf_model.model.rotary_emb.inv_freq.double()).float().numpy()


@pytest.mark.parametrize(
    ("kind", "rope"), [("llama", LLAMA3), ("llama", LINEAR), ("qwen2", YARN), ("qwen2", None)]
)
def test_scaled_rotary_positions_are_those_of_the_model_that_was_converted(kind, rope, tmp_path):
    hf_model = small(kind, **({"rope_parameters": rope} if rope else {}), head_dim=16)
    extra, tensors = {}, []
    if rope:
        extra = {f"{kind}.rope.scaling.type": rope["rope_type"],
                 f"{kind}.rope.scaling.factor": rope["factor"],
                 f"{kind}.rope.scaling.original_context_length": 16}  # fmt: skip
    if rope is LLAMA3:  # llama.cpp's converter writes the divisors only.
        extra, tensors = {}, [("rope_freqs.weight", divisors(hf_model))]
    path = write(tmp_path / "fox.gguf", hf_model, extra=extra, tensors=tensors)
    with torch.no_grad():
        expected = hf_model(BATCH[0]).logits
    torch.testing.assert_close(load(path).logits(*BATCH), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("extra", "tensors", "message"),
    [
        ({"llama.rope.scaling.type": "longrope"}, [], "scales rotary positions by 'longrope'"),
        ({}, [("rope_freqs.weight", np.full(8, 3, np.float32))], "its own factor for each freq"),
        ({"llama.expert_count": 4}, [], "a mixture of 4 experts"),
        ({}, [("blk.0.attn_q.bias", np.ones(64, np.float32))], "holds .* weights, and LlamaFor"),
        ({"split.count": 3}, [], "part 1 of 3 of a split GGUF file: join them"),
    ],
)
def test_what_would_be_ignored_in_silence_is_refused(extra, tensors, message, tmp_path):
    refused(write(tmp_path / "fox.gguf", small(), extra=extra, tensors=tensors), message)


def refused(path, message):
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_is_one_line(tmp_path):
    path = write(tmp_path / "fox.gguf", small())
    path.write_bytes(path.read_bytes().replace(b"llama", b"lhama"))
    refused(path, "architecture 'lhama', which transformers .* does not read from GGUF")


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 30, 500, 10_000, -1])
def test_a_file_that_is_cut_off_is_one_line(keep, tmp_path):
    path = write(tmp_path / "fox.gguf", small())
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "is empty|is no GGUF file|is not whole: .* bytes found")


def test_an_unknown_number_format_and_version_are_one_line(tmp_path):
    path = write(tmp_path / "fox.gguf", small())
    data = path.read_bytes()
    path.write_bytes(data[:4] + struct.pack("<I", 9) + data[8:])
    refused(path, "GGUF version 9")
    at = data.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16
    path.write_bytes(data[:at] + struct.pack("<I", 999) + data[at + 4 :])
    refused(path, "token_embd.weight in number format 999")


def test_a_file_that_is_not_there_is_named_with_those_that_are(tmp_path):
    write(tmp_path / "fox.gguf", small(), vocab=False)
    refused(tmp_path / "box.gguf", r"No GGUF file '.*box\.gguf': check the path; fox\.gguf found")
    assert load(tmp_path).origin.startswith(f"GGUF file {tmp_path / 'fox.gguf'}")
    (tmp_path / "two.gguf").write_bytes(b"")
    refused(tmp_path, r"2 GGUF files \(fox\.gguf, two\.gguf\): give one")


def test_a_gguf_file_without_a_vocabulary_has_no_tokenizer(tmp_path):
    assert load(write(tmp_path / "fox.gguf", small(), vocab=False)).tokenizer is None


@pytest.mark.parametrize("pre", ["llama-bpe", "deepseek-r1-qwen", "smollm"])
def test_control_tokens_and_the_chat_template_are_those_of_the_file(pre, tmp_path):
    tokenizer = load(write(tmp_path / "fox.gguf", small(), pre=pre)).tokenizer
    start = [TOKENS.index(CONTROL[0])] if pre == "llama-bpe" else []
    text = tokenizer.apply_chat_template([{"role": "user", "content": "foxes"}], tokenize=False)
    assert text == f"{USER}foxes"
    # Llama 3 takes a word that is a token whole; the others merge its letters.
    word = [TOKENS.index("foxes")] if pre == "llama-bpe" else tokenizer.convert_tokens_to_ids(
        ["fox", "e", "s"]
    )  # fmt: skip
    assert tokenizer(text).input_ids == [*start, TOKENS.index(USER), *word]
    digits = ["12"] if pre == "llama-bpe" else ["1", "2"]
    assert tokenizer("<think>12").tokens()[len(start) :] == ["<think>", *digits]
    assert tokenizer("fox 12", return_offsets_mapping=True).offset_mapping[-1][1] == 6
    assert len(tokenizer) == len(TOKENS)
    assert tokenizer.bos_token_id == TOKENS.index(CONTROL[0])


def test_a_hub_file_is_fetched_alone_and_at_its_revision(tmp_path, monkeypatch):
    path, asked = write(tmp_path / "fox.gguf", small()), []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *where, **how: asked.append((where, how)) or path
    )
    model = load("owner/name/fox.gguf@v2")
    assert asked[0] == (("owner/name", "fox.gguf"), {"revision": "v2"})
    assert model.provenance.storage.total > 0


def test_a_model_too_big_for_the_machine_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "fox.gguf", small())
    small().save_pretrained(tmp_path / "folder")
    monkeypatch.setattr("probes.models.files.memory.available_memory", lambda: 300_000)
    monkeypatch.setattr(loading, "check_loaded_keys", lambda *_: pytest.fail("it was read"))
    for place in (path, tmp_path / "folder"):
        refused(place, r"too big for this machine: .* take 0\.0 GB in float32, and 0\.0 GB .* free")


@pytest.mark.real
def test_a_real_file_holds_what_the_gguf_package_dequantizes(real_folder):
    folder = real_folder("smollm2")
    path = folder.with_suffix(".gguf")
    hf_model, tokenizer = load_gguf(path, torch.float32)
    own = hf_model.state_dict()
    for name, weight in expected_weights(path, hf_model):
        assert torch.equal(own[name], weight), name
    text = "If I have 12 foxes, naïve 123a4"
    saved = loading.load_hf_model(str(folder), torch.bfloat16)[1]
    assert tokenizer(text).input_ids == saved(text).input_ids
    assert tokenizer.chat_template == saved.chat_template
