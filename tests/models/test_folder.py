"""Nothing in a model's folder is passed over in silence, and every fault is one line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from probes.errors import ModelError
from probes.models.files import names
from probes.models.files.folder import check_folder
from probes.models.files.loading import model_errors
from probes.models.model import load, wrap
from probes.testing.tiny_models import tiny_hf

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    tiny_hf("llama", seed=0).save_pretrained(tmp_path)
    return tmp_path


def refused(folder, match):
    with pytest.raises(ModelError, match=match) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return caught.value


def change_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def shard(folder, name="model-00001-of-00001.safetensors"):
    """Turn the weights into one shard with an index."""
    keys = list(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    content = {"metadata": {}, "weight_map": dict.fromkeys(keys, name)}
    (folder / INDEX).write_text(json.dumps(content))


def test_a_sharded_folder_loads(folder):
    shard(folder)
    assert load(folder).shape.layers == 3


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "../elsewhere.safetensors", "/tmp/elsewhere.safetensors",
     "sub/a.safetensors", "..", "C:\\a.safetensors"],
)  # fmt: skip
def test_an_index_opens_safetensors_of_the_folder_alone(folder, name, monkeypatch):
    shard(folder, name)
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    refused(folder, "only safetensors files of the folder itself are opened")


def test_a_shard_that_is_missing_is_named(folder):
    shard(folder, "model-00002-of-00002.safetensors")
    refused(folder, r"model-00002-of-00002\.safetensors .* is missing")


@pytest.mark.parametrize("name", ["consolidated.safetensors", "model-00001-of-00002.safetensors"])
def test_two_sets_of_weights_are_refused(folder, name):
    (folder / name).write_bytes((folder / WEIGHTS).read_bytes())
    refused(folder, f"two sets of weights: model.safetensors would be loaded, {name}")


def test_hidden_files_are_no_second_set(folder):
    storage = load(folder).provenance.storage
    (folder / "._model.safetensors").write_bytes(b"resource fork")
    check_folder(folder)
    assert load(folder).provenance.storage == storage


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_next_to_the_weights_is_refused_by_name(folder, name):
    (folder / name).write_text("{}")
    refused(folder, rf"holds an adapter \({name}\), which would be ignored")


def write_adapter(folder, weights, **settings):
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none"} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def lora(module, rows, columns, rank=2):
    generator = torch.Generator().manual_seed(rows)
    name = f"base_model.model.{module}.lora_"
    return {
        f"{name}A.weight": 0.3 * torch.randn(rank, columns, generator=generator),
        f"{name}B.weight": 0.3 * torch.randn(rows, rank, generator=generator),
    }


@pytest.mark.parametrize("own_folder", [True, False])
@pytest.mark.parametrize(("settings", "scale"), [({}, 3.0), ({"use_rslora": True}, 6 / 2**0.5)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_is_merged_on_demand(kind, settings, scale, own_folder, tmp_path):
    hf_model = tiny_hf(kind, seed=0)
    hf_model.save_pretrained(tmp_path)
    module, rows = ("model.layers.1.mlp.up_proj", 64)
    if kind == "gpt2":  # Its matrices are stored transposed.
        module, rows = ("transformer.h.1.attn.c_attn", 96)
    weights = lora(module, rows, 32)
    folder = tmp_path if own_folder else tmp_path / "adapter"
    adapter = write_adapter(folder, weights, **settings)
    b_times_a = (
        weights[f"base_model.model.{module}.lora_B.weight"]
        @ (weights[f"base_model.model.{module}.lora_A.weight"])
    )
    weight = hf_model.get_submodule(module).weight
    with torch.no_grad():
        weight += scale * (b_times_a.T if kind == "gpt2" else b_times_a)
    model = load(tmp_path, adapter=adapter)
    assert model.name == f"{tmp_path.name}+{adapter.name}"
    ids = torch.arange(3, 9)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    expected = wrap(hf_model, name="merged").logits(ids, mask)
    torch.testing.assert_close(model.logits(ids, mask), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("weights", "settings", "message"),
    [
        (lora("model.layers.1.mlp.up_proj", 64, 32), {"peft_type": "IA3"}, "is IA3 with"),
        (lora("model.layers.1.mlp.up_proj", 64, 32), {"use_dora": True}, "LORA with use_dora"),
        (lora("model.layers.1.mlp.up_proj", 64, 32), {"bias": "all"}, "LORA with bias"),
        (lora("model.layers.7.mlp.up_proj", 64, 32), {}, "does not fit the model: .*, none found"),
        (lora("model.layers.1.mlp.up_proj", 64, 16), {}, r"is \(64, 16\) there, \(64, 32\) found"),
        ({"base_model.model.lm_head.weight": torch.ones(2)}, {}, "no LoRA matrix found"),
        (
            lora("model.layers.1.mlp.up_proj", 64, 32) | {"extra.weight": torch.ones(2)},
            {},
            "extra.weight found",
        ),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(folder, weights, settings, message):
    adapter = write_adapter(folder / "adapter", weights, **settings)
    with pytest.raises(ModelError, match=message):
        load(folder, adapter=adapter)


def test_an_adapter_is_never_ignored(folder):
    adapter = write_adapter(folder / "adapter", lora("model.layers.1.mlp.up_proj", 64, 32))
    with pytest.raises(ModelError, match="is loaded already"):
        load(load(folder), adapter=adapter)
    with pytest.raises(ModelError, match="random-init"):
        load("random-init:full:3", adapter=adapter)
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        load(folder, adapter=folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_quantized_weights_are_refused_by_their_method(folder, method):
    change_config(folder, quantization_config={"quant_method": method, "bits": 4})
    refused(folder, rf"stored quantized \({method}\).*dequantize")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_integer_weights_are_refused_since_their_scales_are_missing(folder, kind):
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda weights: weights.update({name: (9 * weights[name]).to(kind)}))
    refused(folder, rf"stores {name} as .*quantized without its scales")


def test_a_padding_token_outside_of_the_vocabulary_does_not_matter(folder):
    ids, mask = torch.arange(5)[None], torch.ones(1, 5, dtype=torch.bool)
    expected = load(folder).logits(ids, mask)
    change_config(folder, pad_token_id=9999)
    assert torch.equal(load(folder).logits(ids, mask), expected)


@pytest.mark.parametrize("name", ["x" * 5000, "owner/" + "x" * 5000, "a\0b", "", "\udcff"])
def test_a_name_that_no_file_can_have_is_one_line(name):
    with pytest.raises(ModelError) as caught:
        load(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("seed", ["9" * 30, "9" * 5000, "-1", "1.5"])
def test_a_seed_of_a_name_that_is_out_of_range_is_refused(seed):
    with pytest.raises(ModelError, match=r"The seed of 'random-init:full:.* up to 18 digits"):
        load(f"random-init:full:{seed}")


def test_weights_of_layers_that_the_config_lacks_are_refused(folder):
    change_config(folder, num_hidden_layers=2)
    refused(folder, r"model\.layers\.2\..* would be ignored \(9 such found\)")


def test_a_weight_that_no_architecture_knows_is_refused(folder):
    change_weights(folder, lambda weights: weights.update({"extra.weight": torch.ones(2)}))
    refused(folder, r"extra\.weight would be ignored")


def test_a_missing_weight_is_refused(folder):
    change_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    refused(folder, r"model\.layers\.1\.mlp\.up_proj\.weight is missing")


def test_weights_of_other_sizes_are_refused(folder):
    change_config(folder, intermediate_size=48)
    refused(folder, r"down_proj\.weight has shape \(32, 64\), and the config gives \(32, 48\)")


def test_causal_masks_of_old_files_are_no_weights(tmp_path):
    tiny_hf("gpt2", seed=0).save_pretrained(tmp_path)
    mask = {"transformer.h.0.attn.bias": torch.ones(1), "h.0.attn.masked_bias": torch.ones(1)}
    change_weights(tmp_path, lambda weights: weights.update(mask))
    assert load(tmp_path).shape.layers == 3


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{", "[" * 100_000, '{"model_type": "nobody"}', '{"model_type": 7}',
     '{"model_type": "llama", "num_hidden_layers": "three"}', '{"architectures": []}', "\udcff",
     '{"quantization_config": 3}'],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_broken_config_is_one_line(folder, content):
    (folder / "config.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    error = refused(folder, "")
    assert str(folder) in str(error)


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 64, b"\x08" + b"\x00" * 7 + b"{"])
def test_broken_weights_are_one_line(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    refused(folder, "Could not load")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{}", "[1]", "{", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_is_one_line_or_none(folder, name, content):
    (folder / name).write_text(content)
    refused(folder, "Could not load")


def test_a_tokenizer_of_vocab_and_merges_loads(folder):
    vocab = {"<|endoftext|>": 0, "a": 1, "b": 2, "Ġ": 3, "ab": 4}
    tiny_hf("gpt2", seed=0).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    tokenizer = load(folder).tokenizer
    assert tokenizer("ab a")["input_ids"] == [4, 3, 1]


def test_a_folder_without_a_tokenizer_has_none(folder):
    assert load(folder).tokenizer is None


@pytest.mark.parametrize(
    "error",
    [ImportError("no module"), KeyError("llama"), RecursionError("deep"), AttributeError("x"),
     TypeError("7 is\nno number"), MemoryError(), AssertionError(), OSError("gone")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_error_becomes_one_line_that_keeps_its_cause(error):
    with pytest.raises(ModelError) as caught, model_errors("Could not load 'x'", "Check it."):
        raise error
    text = str(caught.value)
    assert text.startswith("Could not load 'x': ")
    assert text.endswith("Check it.")
    assert type(error).__name__ in text
    assert "\n" not in text
    assert caught.value.__cause__ is error


def test_a_panic_of_rust_code_becomes_one_line_and_an_interrupt_stays():
    class PanicException(BaseException):
        pass

    with pytest.raises(ModelError, match="index out of bounds"), model_errors("a", "b"):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), model_errors("a", "b"):
        raise KeyboardInterrupt


def test_a_hub_model_is_fetched_without_pickles_and_checked_as_a_folder(folder, monkeypatch):
    asked = {}

    def fetch(source, **patterns):
        asked.update(patterns, source=source)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr(names, "list_models", lambda: ())
    model = load("owner/name")
    assert (model.name, model.origin, model.provenance) == ("name", "hub owner/name", None)
    assert asked["source"] == "owner/name"
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter"):
        load("owner/name")
