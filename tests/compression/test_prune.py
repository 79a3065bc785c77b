"""Pruning: masks, methods, storage cost and refusals."""

import copy
import math

import pytest
import torch
from einops import rearrange

import probes
from probes.compression.derived_model import DerivedModel, dense_storage, load_parent
from probes.compression.pruning.masks import (
    apply_masks,
    density,
    layer_matrices,
    magnitude_masks,
    masked_storage,
    nonzero_masks,
    random_masks_like,
)
from probes.compression.pruning.prune import METHOD_SCOPES, PruningSettings, prune
from probes.errors import ModelError
from probes.models.files.provenance import Provenance
from probes.observe.activations import capture
from probes.prompts.tokens.batch import tokenize
from probes.testing.tiny_models import KINDS, tiny_hf

IDS = torch.randint(3, 90, (6, 20), generator=torch.Generator().manual_seed(1))
NEEDS_TEXTS = ("wanda", "heads", "neurons")
EVERY = [(method, scope) for method, scopes in METHOD_SCOPES.items() for scope in scopes]


def bare(kind, seed=0, **overrides):
    hf_model = tiny_hf(kind, seed, **overrides)
    return DerivedModel(
        kind, hf_model, None, Provenance("trained", "", dense_storage(hf_model, bits=16))
    )


def pruned(origin, fraction, method, scope=None, seed=0):
    if method == "wanda":
        pytest.importorskip("torchao")
    calibration = IDS if method in NEEDS_TEXTS else None
    settings = PruningSettings(scope=scope, seed=seed)
    return prune(origin, fraction, method=method, calibration=calibration, settings=settings)


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def logits(hf_model, ids=IDS):
    with torch.no_grad():
        return hf_model(input_ids=ids, use_cache=False).logits


def lost(found):
    heads = found.provenance.settings["dropped"]
    assert isinstance(heads, list)
    return heads


def within(inner, outer):
    return all(bool((outer[name] | ~mask).all()) for name, mask in inner.items())


# --- masks


@pytest.mark.parametrize("kind", KINDS)
def test_only_matrices_of_the_layers_have_masks(kind):
    hf_model = tiny_hf(kind, 0)
    assert all(".0." in n or ".1." in n or ".2." in n for n in nonzero_masks(hf_model))
    assert {w.ndim for w in layer_matrices(hf_model).values()} == {2}
    counted = sum(w.numel() for w in layer_matrices(hf_model).values())
    assert counted * 16 == dense_storage(hf_model, bits=16).weights


def test_magnitude_masks_prune_the_smallest_weights_of_each_matrix_or_of_all():
    hf_model = tiny_hf("llama", 0)
    own = {name: weight.detach().abs() for name, weight in layer_matrices(hf_model).items()}
    edge = torch.cat([w.flatten() for w in own.values()]).sort().values
    masks = magnitude_masks(hf_model, 0.25)
    assert all(torch.equal(masks[n], w >= edge[edge.numel() // 4]) for n, w in own.items())
    masks = magnitude_masks(hf_model, 0.25, scope="layer")
    for name, weight in own.items():
        assert torch.equal(
            masks[name], weight >= weight.flatten().sort().values[weight.numel() // 4]
        )


def test_magnitude_masks_do_not_change_the_model():
    hf_model = tiny_hf("llama", 0)
    before = copy.deepcopy(hf_model)
    magnitude_masks(hf_model, 0.5, within=magnitude_masks(hf_model, 0.2))
    assert same(hf_model, before)
    assert dict(hf_model.named_buffers()).keys() == dict(before.named_buffers()).keys()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rounds_of_pruning_are_nested_and_prune_a_fraction_of_the_remaining_weights(scope):
    hf_model, masks = tiny_hf("llama", 0), None
    for done in range(1, 4):
        new = magnitude_masks(hf_model, 0.2, scope=scope, within=masks)
        assert masks is None or within(new, masks)
        assert density(new) == pytest.approx(0.8**done, abs=1e-3)
        masks = new
        # Training between rounds moves weights, also masked ones.
        for weight in layer_matrices(hf_model).values():
            weight.data = weight.data.roll(1, 0)


def test_random_masks_keep_the_same_number_of_weights_of_each_matrix():
    masks = magnitude_masks(tiny_hf("llama", 0), 0.7)
    one, again, other = (random_masks_like(masks, seed=seed) for seed in (3, 3, 4))
    assert {n: int(m.sum()) for n, m in one.items()} == {n: int(m.sum()) for n, m in masks.items()}
    assert all(torch.equal(one[name], again[name]) for name in masks)
    assert not any(torch.equal(one[name], other[name]) for name in masks)
    # The expected overlap of two random masks is 0.3.
    both = sum(int((one[n] & m).sum()) for n, m in masks.items())
    assert both / sum(int(m.sum()) for m in masks.values()) == pytest.approx(0.3, abs=0.02)


def test_random_masks_of_two_matrices_of_one_shape_differ():
    masks = {"a": torch.arange(64) < 32, "b": torch.arange(64) < 32}
    drawn = random_masks_like(masks, seed=0)
    assert not torch.equal(drawn["a"], drawn["b"])
    assert torch.equal(random_masks_like({"b": masks["b"]} | masks, seed=0)["a"], drawn["a"])


def test_masked_weights_are_exactly_zero_and_the_others_unchanged():
    hf_model = tiny_hf("gpt2", 0)
    before = {name: weight.detach().clone() for name, weight in layer_matrices(hf_model).items()}
    masks = magnitude_masks(hf_model, 0.5)
    apply_masks(masks, hf_model)
    for name, weight in layer_matrices(hf_model).items():
        assert torch.equal(weight, torch.where(masks[name], before[name], 0.0))
    assert density(nonzero_masks(hf_model)) == 0.5


def test_storage_takes_the_cheapest_index_of_each_matrix():
    hf_model = tiny_hf("llama", 0)
    masks = {n: torch.ones_like(m) for n, m in nonzero_masks(hf_model).items()}
    assert masked_storage(hf_model, masks) == dense_storage(hf_model, bits=16)
    name = "model.layers.0.self_attn.q_proj.weight"  # 32 x 32: positions of 10 bits
    whole = dense_storage(hf_model, bits=16).weights
    for kept, index in [(1024, 0), (1023, 1024), (103, 1024), (102, 1020), (1, 10), (0, 0)]:
        masks[name] = (torch.arange(1024) < kept).reshape(32, 32)
        found = masked_storage(hf_model, masks)
        assert (found.weights, found.mask_index) == (whole - 16 * (1024 - kept), index)


def test_masks_of_another_model_are_refused():
    hf_model, wider = tiny_hf("llama", 0), tiny_hf("llama", 0, intermediate_size=80)
    with pytest.raises(ModelError, match=r"transformer\.h.*no matrix.*same model"):
        apply_masks(nonzero_masks(tiny_hf("gpt2", 0)), hf_model)
    with pytest.raises(ModelError, match=r"mask of .*(80, 32).*(64, 32)"):
        apply_masks(nonzero_masks(wider), hf_model)
    with pytest.raises(ModelError, match="no matrix"):
        magnitude_masks(hf_model, 0.5, within=nonzero_masks(tiny_hf("gpt2", 0)))
    with pytest.raises(ModelError, match="no matrix"):
        masked_storage(hf_model, nonzero_masks(tiny_hf("gpt2", 0)))


# --- prune


@pytest.mark.parametrize(("method", "scope"), EVERY)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fraction_of_the_weights_is_zero_and_the_rest_unchanged(kind, method, scope):
    origin = bare(kind)
    before = copy.deepcopy(origin.hf_model)
    found = pruned(origin, 0.5, method, scope)
    assert same(origin.hf_model, before)
    own, old = layer_matrices(found.hf_model), layer_matrices(before)
    for name, weight in own.items():
        assert torch.equal(weight[weight != 0], old[name][weight != 0])
    rest = {n: w for n, w in found.hf_model.state_dict().items() if n not in own}
    assert all(torch.equal(weight, before.state_dict()[name]) for name, weight in rest.items())
    if method in ("magnitude", "wanda", "random"):
        assert found.provenance.settings["zeros"] == 0.5
    assert (found.provenance.kind, found.provenance.parent) == ("pruned", kind)
    assert found.provenance.storage.total < origin.provenance.storage.total


@pytest.mark.parametrize(("method", "scope"), EVERY)
def test_one_seed_gives_one_model(method, scope):
    origin = bare("llama")
    one, again = (pruned(origin, 0.3, method, scope, seed=2) for _ in range(2))
    assert same(one.hf_model, again.hf_model)
    assert one.provenance == again.provenance
    assert one.name == again.name


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_fractions_are_exact_within_rounding(share):
    origin = bare("llama")
    total = sum(w.numel() for w in layer_matrices(origin.hf_model).values())
    for scope, slack in (("global", 0.5 / total), ("layer", 0.5 / 1024)):
        found = prune(origin, share, settings=PruningSettings(scope=scope))
        assert found.provenance.settings["zeros"] == pytest.approx(share, abs=slack)
    assert found.provenance.settings["share"] == share


def test_a_later_fraction_includes_the_weights_that_were_zero():
    origin = bare("llama")
    steps = prune(prune(origin, 0.3), 0.6)
    assert same(steps.hf_model, prune(origin, 0.6).hf_model)
    assert steps.provenance.parent == "llama-magnitude-0.3"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_wanda_prunes_the_smallest_weight_times_input_norm_in_each_row(kind):
    """Compared with inputs recorded by a hook on the Hugging Face model."""
    origin = bare(kind)
    name = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}[kind]
    seen = []
    module = origin.hf_model.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(origin.hf_model)
    handle.remove()
    norm = rearrange(seen[0], "prompt position column -> (prompt position) column").norm(dim=0)
    weight = module.weight.detach() if kind == "llama" else module.weight.detach().T
    score = weight.abs() * norm
    edge = score.sort(dim=1).values[:, score.shape[1] // 4, None]
    found = pruned(origin, 0.25, "wanda").hf_model.get_submodule(name).weight
    assert torch.equal((found if kind == "llama" else found.T) != 0, score >= edge)


def test_wanda_differs_from_magnitude_where_input_norms_differ():
    """With equal input norms the two would be the same."""
    origin = bare("llama")
    by_input = nonzero_masks(pruned(origin, 0.5, "wanda", "layer").hf_model)
    by_size = magnitude_masks(origin.hf_model, 0.5, scope="layer")
    name = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(by_input[name], by_size[name])


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_heads_had_the_smallest_output_and_write_nothing(kind):
    origin = bare(kind)
    model = origin.to_model()
    found = pruned(origin, 0.25, "heads", "layer")
    sizes = [written_by_head(model, layer) for layer in range(model.shape.layers)]
    dropped = [int(lengths.argmin()) for lengths in sizes]
    assert found.provenance.settings["dropped"] == [
        f"L{n}.H{head}" for n, head in enumerate(dropped)
    ]
    new = found.to_model()
    for layer, head in enumerate(dropped):
        assert float(written_by_head(new, layer)[head]) == 0.0


def written_by_head(model, layer):
    """Root mean square norm over tokens, from the bridge's output matrices."""
    kept = {}
    with model.editing({f"blocks.{layer}.attn.hook_z": lambda z: kept.update(z=z.clone())}):
        model.logits(IDS, torch.ones_like(IDS, dtype=torch.bool))
    wrote = torch.einsum("bphd,hdm->bphm", kept["z"], model.bridge.blocks[layer].attn.W_O)
    return wrote.square().sum(-1).mean(dim=(0, 1)).sqrt()


@pytest.mark.parametrize("kind", KINDS)
def test_pruning_neurons_with_zero_output_changes_no_logit(kind):
    """Half of the neurons have zero output weights: these are pruned and not stored."""
    origin = bare(kind)
    part = {"gpt2": "c_proj", "neox": "dense_4h_to_h"}.get(kind, "down_proj")
    for name, weight in layer_matrices(origin.hf_model).items():
        if name.endswith(f"mlp.{part}.weight"):
            half = weight.data if kind == "gpt2" else weight.data.T
            half[::2] = 0.0
    found = pruned(origin, 0.5, "neurons", "layer")
    assert float((logits(found.hf_model) - logits(origin.hf_model)).abs().max()) < 1e-5
    neurons = half.shape[0]
    assert found.provenance.settings["dropped"] == [neurons // 2] * 3
    gated = 3 if kind.startswith("llama") else 2
    missing = 3 * gated * (neurons // 2) * 32
    whole = dense_storage(origin.hf_model, bits=16).weights
    assert found.provenance.storage.weights == whole - 16 * missing
    assert found.provenance.storage.mask_index == 3 * neurons


def test_a_key_head_is_pruned_only_with_all_its_query_heads():
    origin = bare("llama-gqa")
    found = pruned(origin, 0.5, "heads", "global")
    dropped = set(lost(found))
    for layer in range(3):
        keys = layer_matrices(found.hf_model)[f"model.layers.{layer}.self_attn.k_proj.weight"]
        gone = (keys.reshape(2, -1) == 0).all(dim=1).tolist()
        both = [{f"L{layer}.H{2 * k}", f"L{layer}.H{2 * k + 1}"} <= dropped for k in range(2)]
        assert gone == both


def test_pruned_heads_and_neurons_are_indexed_by_unit():
    origin = bare("llama")
    heads = pruned(origin, 0.5, "heads", "layer")
    assert heads.provenance.storage.mask_index == 3 * 4
    both = pruned(heads, 0.5, "neurons", "layer")
    assert both.provenance.storage.mask_index == 3 * 4 + 3 * 64
    assert both.provenance.storage.weights == dense_storage(origin.hf_model, bits=8).weights


def test_random_pruning_matches_the_number_of_weights_of_another_model():
    origin = bare("llama")
    target = prune(origin, 0.7)
    found = prune(origin, method="random", settings=PruningSettings(like=target, seed=5))
    for name, weight in layer_matrices(found.hf_model).items():
        assert int((weight != 0).sum()) == int((layer_matrices(target.hf_model)[name] != 0).sum())
    assert found.provenance.settings["like"] == "llama-magnitude-0.7"
    assert found.provenance.settings["share"] == pytest.approx(0.7, abs=1e-4)
    masks = nonzero_masks(target.hf_model)
    by_masks = prune(origin, method="random", settings=PruningSettings(like=masks, seed=5))
    assert same(by_masks.hf_model, found.hf_model)


def test_a_pruned_family_member_is_saved_and_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = prune("distilled", 0.5)
    found.save(tmp_path / "runs" / "relatives" / found.name)
    model = probes.load(found.name)
    assert model.provenance == found.provenance
    assert torch.equal(
        torch.tensor(0.5), torch.tensor(load_parent(found.name).provenance.settings["zeros"])
    )
    batch = tokenize(model.tokenizer, probes.pattern("take-away").sample_questions(8, seed=0))
    ours, theirs = (m.logits(batch.ids, batch.mask) for m in (model, found.to_model()))
    assert torch.equal(ours, theirs)


def test_heads_are_scored_on_the_questions_of_a_pattern_without_padding():
    origin = load_parent("distilled")
    found = prune(origin, 0.25, method="heads", calibration=probes.pattern("take-away"))
    assert found.provenance.settings["texts"] == 64
    batch = tokenize(origin.tokenizer, probes.pattern("take-away").sample_questions(64, seed=0))
    assert found.provenance.settings["tokens"] == int(batch.mask.sum())
    seen = capture(origin.to_model(), batch, ["z"])["z"]
    assert seen.shape[0] == 2
    for layer, z in enumerate(seen):
        out = layer_matrices(origin.hf_model)[
            f"model.layers.{layer}.self_attn.o_proj.weight"
        ].detach()
        parts = rearrange(out, "d_model (head d_head) -> head d_head d_model", head=4)
        wrote = torch.einsum("bphd,hdm->bphm", z, parts)[batch.mask]
        least = int(wrote.square().sum(-1).mean(0).argmin())
        assert lost(found)[layer] == f"L{layer}.H{least}"


def test_calibration_texts_may_differ_in_length():
    found = prune("distilled", 0.5, method="neurons", calibration=["Tom has 5 foxes.", "Ann"])
    assert found.provenance.settings["texts"] == 2


# --- refusals


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, None])
def test_a_fraction_outside_0_to_1_is_refused(share):
    with pytest.raises(ModelError, match=r"fraction to prune is .*0 \(none\) to 1 \(all\)"):
        prune(bare("llama"), share)


def test_unknown_methods_and_scopes_are_listed():
    with pytest.raises(ModelError, match=r"'magnitud'.*magnitude, wanda, heads, neurons, random"):
        prune(bare("llama"), 0.5, method="magnitud")
    with pytest.raises(ModelError, match=r"'wanda' does not rank by 'global'.*row, layer"):
        prune(bare("llama"), 0.5, method="wanda", settings=PruningSettings(scope="global"))
    with pytest.raises(ModelError, match=r"scope 'row'.*global, layer"):
        magnitude_masks(tiny_hf("llama", 0), 0.5, scope="row")


def test_scoring_without_texts_or_a_tokenizer_is_refused():
    with pytest.raises(ModelError, match="no texts"):
        prune(bare("llama"), 0.5, method="heads")
    for empty in ([], torch.zeros(3, 0, dtype=torch.long)):
        with pytest.raises(ModelError, match="no texts"):
            prune(bare("llama"), 0.5, method="neurons", calibration=empty)
    with pytest.raises(ModelError, match=r"no tokenizer.*tokens"):
        prune(bare("llama"), 0.5, method="heads", calibration=["Tom has 5 foxes."])
    with pytest.raises(ModelError, match=r"tokens, and distilled takes \d+"):
        prune("distilled", 0.5, method="heads", calibration=["Tom has 5 foxes. " * 500])


def test_random_masks_need_one_of_fraction_and_like():
    origin = bare("llama")
    for fraction, like in ((None, None), (0.5, origin)):
        with pytest.raises(ModelError, match="either a fraction or like"):
            prune(origin, fraction, method="random", settings=PruningSettings(like=like))
    with pytest.raises(ModelError, match="leave out like"):
        prune(origin, 0.5, settings=PruningSettings(like=origin))
    shallow = PruningSettings(like=bare("llama", num_hidden_layers=2))
    with pytest.raises(ModelError, match=r"layers\.2.*only in one"):
        prune(origin, method="random", settings=shallow)


@pytest.mark.parametrize("method", METHOD_SCOPES)
def test_broken_weights_are_refused(method):
    origin = bare("llama")
    layer_matrices(origin.hf_model)["model.layers.0.mlp.up_proj.weight"].data[0, 0] = math.nan
    with pytest.raises(ModelError, match=r"up_proj.*NaN"):
        prune(origin, 0.5, method=method, calibration=IDS)


def test_a_quantized_model_is_refused():
    origin = bare("llama")
    made = Provenance("quantized", "full", origin.provenance.storage)
    with pytest.raises(ModelError, match="prune full first"):
        prune(DerivedModel("full-int8", origin.hf_model, None, made), 0.5)


def test_heads_of_an_unknown_architecture_are_refused():
    from transformers import AutoModelForCausalLM, OPTConfig

    config = OPTConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=1,
        ffn_dim=64,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=48,
    )
    hf_model = AutoModelForCausalLM.from_config(config)
    origin = DerivedModel(
        "odd", hf_model, None, Provenance("trained", "", dense_storage(hf_model, bits=16))
    )
    with pytest.raises(ModelError, match=r"'opt' model.*llama, gpt2, gpt_neox"):
        prune(origin, 0.5, method="heads", calibration=IDS)
    assert prune(origin, 0.5).provenance.settings["zeros"] == pytest.approx(0.5)
