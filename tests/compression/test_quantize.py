"""Quantization: rounding, backends, storage cost, files and refusals."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import probes as pb
from probes.comparison.setup.references import load_models
from probes.compression.derived_model import DerivedModel, dense_storage, load_parent, zero_fraction
from probes.compression.pruning.prune import prune
from probes.compression.quantization.backends import (
    conv1d_to_linear,
    linear_layers,
    weight_matrix,
)
from probes.compression.quantization.quantize import QuantizationSettings, quantize
from probes.compression.quantization.schemes import SCHEMES, parse_scheme, round_to_nearest
from probes.errors import ModelError
from probes.models.files.provenance import Provenance
from probes.prompts.tokens.batch import tokenize
from probes.testing.tiny_models import KINDS, tiny_hf

LIBRARIES = {
    "int8": "torchao",
    "int4": "torchao",
    "int2": "torchao",
    "bnb-int8": "bitsandbytes",
    "nf4": "bitsandbytes",
    "rtn-8": None,
    "rtn-3": None,
}
# How many linear layers three blocks of each kind have.
LINEARS = {"gpt2": 12, "llama": 21, "llama-gqa": 21, "neox": 12}


def need(scheme):
    if library := LIBRARIES.get(scheme):
        pytest.importorskip(library)


def tiny(kind, **overrides):
    hf_model = tiny_hf(kind, 0, **overrides)
    return DerivedModel(
        kind, hf_model, None, Provenance("trained", "", dense_storage(hf_model, bits=16))
    )


def logits(hf_model, seed=1):
    ids = torch.randint(90, (2, 20), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return hf_model(input_ids=ids, use_cache=False).logits


def rows(relative):
    found = relative.hf_model
    return {name: weight_matrix(found.get_submodule(name)) for name in linear_layers(found, "it")}


@pytest.fixture(scope="module")
def distilled():
    return load_parent("distilled")


# --- rounding ------------------------------------------------------------------------------------


def test_two_symmetric_bits_have_the_levels_minus_max_zero_and_max():
    weight = torch.tensor([[4.0, -3.0, 1.9, 0.0], [0.1, -0.2, 0.0, 0.05]])
    found = round_to_nearest(weight, bits=2, group=None, symmetric=True).dequantize()
    # 0.1 is half a step, and rounds to the even level.
    assert torch.equal(found, torch.tensor([[4.0, -4.0, 0.0, 0.0], [0.0, -0.2, 0.0, 0.0]]))


def test_two_bits_with_a_zero_point_have_four_levels_from_minimum_to_maximum():
    found = round_to_nearest(
        torch.tensor([[-1.0, 2.0, 0.4, 0.6, 0.0]]), bits=2, group=None, symmetric=False
    )
    assert found.dequantize().tolist() == [[-1.0, 2.0, 0.0, 1.0, 0.0]]
    assert found.zero_points is not None and found.zero_points.tolist() == [[1]]


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize("group", [None, 8])
def test_every_weight_is_rounded_to_the_nearest_level(bits, group):
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    found = round_to_nearest(weight, bits=bits, group=group, symmetric=True)
    for row in range(5):
        for place, scale in enumerate(found.scales[row].double()):
            steps = torch.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)).double() * scale
            part = slice(place * (group or 24), (place + 1) * (group or 24))
            apart = (weight[row, part].double()[:, None] - steps).abs().amin(1)
            gone = (weight[row, part] - found.dequantize()[row, part]).double().abs()
            assert torch.allclose(gone, apart, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_and_rows_of_zeros_stay_zero(symmetric):
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) + 0.5
    weight[1], weight[2, ::3] = 0, 0
    for bits in (2, 5):
        found = round_to_nearest(weight, bits=bits, group=16, symmetric=symmetric).dequantize()
        assert bool((found[weight == 0] == 0).all()) and bool(found.isfinite().all())


def test_levels_fit_their_bits():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)) * 9 - 3
    for bits in range(2, 17):
        even = round_to_nearest(weight, bits=bits, group=None, symmetric=True)
        uneven = round_to_nearest(weight, bits=bits, group=None, symmetric=False)
        assert int(even.levels.abs().max()) == 2 ** (bits - 1) - 1
        assert int(uneven.levels.min()) >= 0 and int(uneven.levels.max()) <= 2**bits - 1
        assert uneven.zero_points is not None and int(uneven.zero_points.max()) <= 2**bits - 1


# --- every backend, every architecture -----------------------------------------------------------


@pytest.mark.parametrize("scheme", LIBRARIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_has_at_most_2_to_the_bits_values_and_nothing_else_changes(kind, scheme):
    need(scheme)
    source = tiny(kind)
    before = copy.deepcopy(source.hf_model.state_dict())
    found = quantize(source, scheme)
    assert found.provenance.settings["linears"] == LINEARS[kind]
    assert found.name == f"{kind}-{scheme}" and found.provenance.parent == kind
    named = rows(found)
    assert len(named) == LINEARS[kind]
    for name, weight in named.items():
        bits = int(found.provenance.settings["bits"])
        for part in weight.unflatten(
            1, (-1, int(found.provenance.settings["group"] or weight.shape[1]))
        ):
            assert all(len(g.unique()) <= 2**bits for g in part)
        # The bound is below 1, so that the test can fail.
        old = weight_matrix(source.hf_model.get_submodule(name))
        assert 0 < float((weight - old).abs().max()) <= float(old.abs().max()) * 4 / 2**bits
    for key, weight in found.hf_model.state_dict().items():
        if key.removesuffix(".weight") not in named:
            assert torch.equal(weight, before[key]), key
    assert all(torch.equal(w, before[k]) for k, w in source.hf_model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_within_1e_4_of_its_kernel(kind):
    need("int8")
    found = quantize(tiny(kind), "int8")
    assert found.provenance.kernel_gap is not None and found.provenance.kernel_gap <= 1e-4
    assert found.provenance.settings["fused"] == LINEARS[kind]


def test_a_kernel_that_rounds_activations_has_a_larger_gap():
    need("bnb-int8")
    exact, rough = quantize(tiny("llama"), "rtn-8"), quantize(tiny("llama"), "bnb-int8")
    assert exact.provenance.kernel_gap is None
    assert rough.provenance.kernel_gap is not None and 1e-3 < rough.provenance.kernel_gap < 1


def test_the_gap_equals_a_known_shift_of_the_kernel(monkeypatch):
    need("int8")
    from torchao.quantization import quantize_

    def shifted(hf_model, *given, **how):
        quantize_(hf_model, *given, **how)
        hf_model.lm_head.register_forward_hook(lambda *passed: passed[-1] + 0.25)

    monkeypatch.setattr("torchao.quantization.quantize_", shifted)
    assert quantize(tiny("llama"), "int8").provenance.kernel_gap == pytest.approx(0.25, abs=1e-4)


def test_torchao_and_rtn_differ_by_at_most_one_step():
    need("int8")
    theirs, ours = rows(quantize(tiny("gpt2"), "int8")), rows(quantize(tiny("gpt2"), "rtn-8"))
    for name, weight in ours.items():
        step = weight.abs().amax(1, keepdim=True) / 127
        assert bool(((theirs[name] - weight).abs() <= 1.01 * step).all())


def test_nf4_takes_the_nearest_value_of_its_table_in_blocks_across_rows():
    """Blocks do not divide these widths, so a block begins in one row and ends in the next."""
    need("nf4")
    from bitsandbytes.functional import get_4bit_type

    source = tiny("llama", hidden_size=40, intermediate_size=56)
    code = get_4bit_type("nf4", device="cpu")
    found = rows(quantize(source, "nf4"))
    for name, old in rows(source).items():
        blocks = nn.functional.pad(flat := old.flatten(), (0, -flat.numel() % 32)).view(-1, 32)
        top = blocks.abs().amax(1, keepdim=True)
        nearest = code[((blocks / top)[..., None] - code).abs().argmin(-1)] * top
        assert torch.allclose(found[name].flatten(), nearest.flatten()[: flat.numel()], atol=1e-6)


def test_conv1d_layers_replaced_by_linear_ones_compute_the_same():
    source = tiny("gpt2")
    names = linear_layers(source.hf_model, "it")
    turned = conv1d_to_linear(copy.deepcopy(source.hf_model), names)
    assert all(type(turned.get_submodule(name)) is nn.Linear for name in names)
    assert torch.allclose(logits(turned), logits(source.hf_model), atol=1e-5)


# --- storage cost --------------------------------------------------------------------------------


def test_bits_equal_a_count_by_hand():
    """Three layers of GPT-2, 32 wide: 12 matrices of 12 * 32 * 32 weights a layer."""
    count = 3 * 12 * 32 * 32
    outputs = 3 * (96 + 32 + 128 + 32)
    embeddings, other = (97 + 48) * 32, 3 * (4 * 32 + 96 + 32 + 128 + 32) + 2 * 32
    whole = quantize(tiny("gpt2"), "rtn-3").provenance.storage
    assert (whole.weights, whole.scales, whole.zero_points) == (3 * count, 32 * outputs, 0)
    assert (whole.embeddings, whole.other, whole.mask_index) == (16 * embeddings, 16 * other, 0)
    grouped = quantize(
        tiny("gpt2"), "rtn-3", QuantizationSettings(group=16, symmetric=False)
    ).provenance.storage
    assert (grouped.scales, grouped.zero_points) == (32 * count / 16, 3 * count / 16)


@pytest.mark.parametrize(
    ("scheme", "scales"), [("int8", 864), ("int4", 1152), ("bnb-int8", 864), ("nf4", 1152)]
)
def test_scales_of_the_libraries_are_counted(scheme, scales):
    need(scheme)
    found = quantize(tiny("gpt2"), scheme)
    assert (
        found.provenance.storage.weights
        == int(found.provenance.settings["bits"]) * 3 * 12 * 32 * 32
    )
    assert found.provenance.storage.scales == 32 * scales


def test_zero_points_of_torchao_are_counted():
    need("int4")
    found = quantize(tiny("gpt2"), "int4", QuantizationSettings(symmetric=False)).provenance
    assert (
        found.storage.zero_points == 4 * 1152
        and found.kernel_gap is not None
        and found.kernel_gap <= 1e-4
    )


def test_embeddings_are_rounded_on_request_and_stay_tied():
    source = tiny("llama", tie_word_embeddings=True)
    found = quantize(source, "rtn-4", QuantizationSettings(embeddings=True))
    table = found.hf_model.get_input_embeddings().weight
    assert found.hf_model.get_output_embeddings().weight is table
    assert max(len(row.unique()) for row in table.detach()) <= 15
    assert found.provenance.storage.embeddings == 97 * (32 * 4 + 32)
    # Quantizing the layers later does not change it.
    assert quantize(found, "rtn-8").provenance.storage.embeddings == 97 * (32 * 4 + 32)


@pytest.mark.parametrize("scheme", LIBRARIES)
def test_pruned_weights_stay_zero_and_are_not_stored(scheme):
    need(scheme)
    source = tiny("llama")
    with torch.no_grad():
        for name in (named := linear_layers(source.hf_model, "it")):
            source.hf_model.get_submodule(name).weight[:, ::2] = 0
            source.hf_model.get_submodule(name).weight[3] = 0
    made = Provenance("pruned", "llama", dense_storage(source.hf_model, bits=16))
    sparse = Provenance("pruned", "llama", type(made.storage)(1.0, 2.0, 3.0, mask_index=77.0))
    found = quantize(DerivedModel("p", source.hf_model, None, sparse), scheme)
    kept = sum(int((source.hf_model.get_submodule(n).weight != 0).sum()) for n in named)
    assert zero_fraction(found.hf_model) >= zero_fraction(source.hf_model) > 0.5
    assert all(
        bool((found.hf_model.get_submodule(n).weight[3] == 0).all())
        and bool((found.hf_model.get_submodule(n).weight[:, ::2] == 0).all())
        for n in named
    )
    assert found.provenance.storage.weights == kept * int(found.provenance.settings["bits"])
    assert (found.provenance.storage.mask_index, found.provenance.storage.embeddings) == (77.0, 2.0)


def test_matrices_that_are_pruned_whole_are_not_stored_again_without_an_index():
    pruned = prune(tiny("llama"), 1.0)
    assert (pruned.provenance.storage.weights, pruned.provenance.storage.mask_index) == (0, 0)
    once = quantize(pruned, "rtn-4")
    assert once.provenance.storage.weights == 0
    assert quantize(once, "rtn-8").provenance.storage.weights == 0


def test_zeros_of_a_model_that_stores_them_stay_counted():
    source = tiny("llama")
    with torch.no_grad():
        source.hf_model.model.layers[0].mlp.up_proj.weight.zero_()
    whole = dense_storage(source.hf_model, bits=1).weights
    once = quantize(source, "rtn-4")
    assert once.provenance.storage.weights == 4 * whole
    assert quantize(once, "rtn-8").provenance.storage.weights == 8 * whole
    narrow = replace(source.provenance, storage=dense_storage(source.hf_model, bits=8))
    float8 = replace(source, provenance=narrow)
    assert quantize(float8, "rtn-4").provenance.storage.weights == 4 * whole


# --- files and probes ----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["int8", "nf4", "rtn-3"])
@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa"])
def test_a_saved_model_loads_with_the_same_logits_and_provenance(kind, scheme, tmp_path):
    need(scheme)
    found = quantize(tiny(kind), scheme)
    loaded = pb.load(found.save(tmp_path / "it"))
    ids = torch.randint(90, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(loaded.logits(ids, mask), found.to_model().logits(ids, mask))
    assert torch.allclose(loaded.logits(ids, mask), logits(found.hf_model), atol=1e-5)
    assert loaded.provenance == found.provenance


@pytest.mark.parametrize("scheme", ["int4", "bnb-int8", "nf4", "rtn-4"])
def test_the_same_input_gives_the_same_files(scheme, tmp_path):
    need(scheme)
    quantize(tiny("gpt2"), scheme).save(tmp_path / "one")
    quantize(tiny("gpt2"), scheme).save(tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "model.safetensors" in files and "relative.json" in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("scheme", LIBRARIES)
def test_the_random_state_of_the_process_is_restored(scheme):
    need(scheme)
    before = torch.get_rng_state()
    quantize(tiny("gpt2"), scheme)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_quantized_model_can_be_quantized_again(tmp_path):
    once = quantize(tiny("llama"), "rtn-4")
    again = quantize(once.save(tmp_path / "once"), "rtn-4")
    assert again.name == "once-rtn-4" and again.provenance.storage == once.provenance.storage
    # Weights on a level stay there.
    assert torch.allclose(logits(again.hf_model), logits(once.hf_model), atol=1e-4)


def test_probes_run_on_a_quantized_model(distilled):
    need("int4")
    model = quantize(distilled, "int4").to_model()
    pattern = pb.pattern("take-away")
    assert pb.gate(model, pattern, prompts=20)[0].n_questions == 20
    batch = tokenize(model.tokenizer, pattern.sample_questions(4, seed=0))
    assert pb.capture(model, batch, ["attention"]) is not None
    pairs = pb.tokenize_pairs(model.tokenizer, pattern.sample_pairs("operation", 4, seed=0))
    assert pb.activation_patching(model, pairs, roles=["op"]) is not None


def test_more_bits_are_closer_to_the_parent(distilled):
    ids = torch.randint(800, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = distilled.hf_model(ids).logits
        gone = [
            float((quantize(distilled, f"rtn-{bits}").hf_model(ids).logits - whole).abs().mean())
            for bits in (2, 3, 4, 6, 8, 16)
        ]
    assert gone == sorted(gone, reverse=True) and gone[-1] < 1e-2 < gone[0]


@pytest.mark.parametrize("scheme", LIBRARIES)
def test_a_real_model_with_grouped_heads_and_odd_widths(scheme, shared_data):
    need(scheme)
    found = quantize(shared_data("stories260K"), scheme)
    assert found.provenance.settings["linears"] == 5 * 7
    assert found.provenance.kernel_gap is None or found.provenance.kernel_gap < (
        1e-4 if scheme[:3] == "int" else 1
    )
    # Rows are 64 and 172 wide; 32 divides only one of them.
    assert found.provenance.settings["group"] == (64 if scheme == "nf4" else None)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "advice"),
    [
        ("int3", "rtn-3"),
        ("int16", "rtn-16"),
        ("bnb-int4", "rtn-4"),
        ("rtn-1", "rtn-2 to rtn-16"),
        ("rtn-17", "rtn-2 to rtn-16"),
        ("int99", "int8, int4"),
        ("gptq", "int8, int4, int2, bnb-int8, nf4"),
    ],
)
def test_an_unknown_scheme_is_refused_with_a_suggestion(scheme, advice):
    with pytest.raises(ModelError, match=f"no scheme '{scheme}'.*{advice}"):
        quantize(tiny("llama"), scheme)


@pytest.mark.parametrize(
    ("scheme", "settings", "reason"),
    [
        ("rtn-4", {"group": 7}, "group of 7 does not divide .* 32, 64 wide"),
        ("int8", {"group": 64}, "group of 64 does not divide"),
        ("rtn-4", {"group": -8}, "group of -8"),
        ("bnb-int8", {"group": 32}, "one scale for each row"),
        ("nf4", {"group": 64}, "shortest row, which has 32: give group=32"),
        ("nf4", {"group": 0}, "blocks of 0"),
        ("nf4", {"symmetric": False}, "no zero points.*rtn-4"),
        ("int8", {"symmetric": False}, "no zero points.*rtn-8"),
        ("nf4", {"embeddings": True}, "does not round embeddings: use 'rtn-4'"),
    ],
)
def test_settings_that_a_scheme_lacks_are_refused(scheme, settings, reason):
    with pytest.raises(ModelError, match=reason):
        quantize(tiny("llama"), scheme, QuantizationSettings(**settings))


def test_rows_that_are_shorter_than_a_block_are_refused():
    """On a CPU bitsandbytes misreads them, both in its kernel and when it dequantizes."""
    with pytest.raises(ModelError, match="shortest row, which has 16: use 'rtn-4'"):
        parse_scheme("nf4", group=None, symmetric=True, widths={16, 64})


def test_every_listed_scheme_parses():
    for name in SCHEMES:
        assert parse_scheme(name, group=None, symmetric=True, widths={64}).name == name


def test_a_missing_library_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(
        ModelError, match=r"torchao is missing.*pip install 'circuit-relatives\[compress\]'"
    ):
        quantize(tiny("llama"), "int8")


def test_layers_that_a_library_skips_silently_are_refused(monkeypatch):
    need("int8")
    from torchao.quantization import quantize_

    def lazy(hf_model, config, filter_fn):
        quantize_(hf_model, config, lambda m, name: filter_fn(m, name) and "v_proj" not in name)

    monkeypatch.setattr("torchao.quantization.quantize_", lazy)
    with pytest.raises(ModelError, match=r"skipped 3 linear layers.*v_proj"):
        quantize(tiny("llama"), "int8")


def test_wrongly_dequantized_weights_are_refused(monkeypatch):
    need("nf4")
    from bitsandbytes.functional import dequantize_4bit

    monkeypatch.setattr(
        "bitsandbytes.functional.dequantize_4bit", lambda *given: dequantize_4bit(*given).flip(0)
    )
    with pytest.raises(ModelError, match=r"changes .*q_proj.* by more than rounding"):
        quantize(tiny("llama"), "nf4")


def test_a_model_without_linear_layers_is_refused():
    source = tiny("llama")
    bare = source.hf_model
    bare.model.layers = nn.ModuleList()
    with pytest.raises(ModelError, match="no linear layer to quantize"):
        quantize(source, "rtn-4")


def test_matrices_outside_of_linear_layers_are_refused():
    """Experts that share one tensor would silently stay as they are."""
    source = tiny("llama")
    source.hf_model.model.layers[1].mlp.experts = nn.Parameter(torch.zeros(2, 4, 4))
    with pytest.raises(ModelError, match=r"mlp\.experts of llama belongs to no linear layer"):
        quantize(source, "rtn-4")


def test_masked_layers_are_refused_until_the_masks_are_permanent():
    from torch.nn.utils import prune

    source = tiny("llama")
    layer = source.hf_model.model.layers[0].self_attn.q_proj
    prune.l1_unstructured(layer, "weight", amount=0.5)
    with pytest.raises(
        ModelError, match=r"q_proj of llama does not hold plain floats.*prune\.remove"
    ):
        quantize(source, "rtn-4")
    prune.remove(layer, "weight")
    assert (
        float(
            (rows(quantize(source, "rtn-4"))["model.layers.0.self_attn.q_proj"] == 0).float().mean()
        )
        >= 0.5
    )


def test_a_quantized_model_in_memory_is_used_as_it_stands():
    quantized = pb.quantize("scratch", "int8")
    full, (relative,) = load_models("scratch", [quantized], seed=0)
    assert (full.name, relative.name) == ("scratch", quantized.name)
    assert relative.provenance.kind == "quantized"
    with pytest.raises(ModelError, match="loaded already"):
        pb.load(quantized, adapter="folder")


def test_a_loaded_model_is_derived_from_by_the_files_it_came_from():
    loaded = pb.load("distilled")
    made, named = quantize(loaded, "rtn-4"), quantize("distilled", "rtn-4")
    assert (made.name, made.provenance.parent) == (named.name, named.provenance.parent)
    for one, other in zip(made.hf_model.parameters(), named.hf_model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ModelError, match="derived from files"):
        quantize(pb.load("random-init:distilled:1"), "rtn-4")
