"""Growth: unchanged logits, new layers, their gradients, and refusals."""

import copy
import math

import pytest
import torch

import probes
from probes.compression.derived_model import DerivedModel, dense_storage
from probes.compression.grow import grow, interleave_layers, stack_layers
from probes.errors import ModelError
from probes.models.files.provenance import Provenance
from probes.prompts.tokens.batch import tokenize
from probes.testing.tiny_models import KINDS, tiny_hf

IDS = torch.randint(3, 90, (4, 20), generator=torch.Generator().manual_seed(1))
STACKS = {"gpt2": "transformer.h", "neox": "gpt_neox.layers"}


def bare(kind, seed=0, **overrides):
    hf_model = tiny_hf(kind, seed, **overrides)
    return DerivedModel(
        kind, hf_model, None, Provenance("trained", "", dense_storage(hf_model, bits=16))
    )


def layers_of(hf_model, kind):
    return hf_model.get_submodule(STACKS.get(kind, "model.layers"))


def logits(hf_model):
    with torch.no_grad():
        return hf_model(input_ids=IDS, use_cache=False).logits


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def step(hf_model):
    """One step of gradient descent on the next token."""
    hf_model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    with torch.no_grad():
        for weight in hf_model.parameters():
            weight -= 0.1 * weight.grad
            weight.grad = None


# --- deeper


@pytest.mark.parametrize("how", ["identity", "fresh"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_zero_output_change_no_logit(kind, how):
    origin = bare(kind)
    before = copy.deepcopy(origin.hf_model)
    found = grow(origin, how, 5)
    assert len(layers_of(found.hf_model, kind)) == found.hf_model.config.num_hidden_layers == 5
    assert torch.equal(logits(found.hf_model), logits(origin.hf_model))
    assert same(origin.hf_model, before)
    model = found.to_model()
    ours = model.logits(IDS, torch.ones_like(IDS, dtype=torch.bool))
    theirs = origin.to_model().logits(IDS, torch.ones_like(IDS, dtype=torch.bool))
    assert float((ours - theirs).abs().max()) <= 1e-5


def test_new_layers_are_spread_evenly():
    for layers, new, source in [
        (4, [3], [0, 1, 2, 2]),
        (5, [2, 4], [0, 1, 1, 2, 2]),
        (6, [1, 3, 5], [0, 0, 1, 1, 2, 2]),
        (8, [1, 3, 4, 6, 7], [0, 0, 1, 1, 1, 2, 2, 2]),
    ]:
        settings = grow(bare("llama"), size=layers).provenance.settings
        assert (settings["new_layers"], settings["from_layer"]) == (new, source)


def test_new_layers_follow_the_given_layers():
    origin = bare("llama")
    found = grow(origin, "fresh", insert_after=[0, 0, 2])
    assert found.provenance.settings["new_layers"] == [1, 2, 5]
    assert found.provenance.settings["from_layer"] == [0, None, None, 1, 2, None]
    assert torch.equal(logits(found.hf_model), logits(origin.hf_model))
    assert interleave_layers(2, [1]) == ([0, 1, 1], [2])


@pytest.mark.parametrize("kind", KINDS)
def test_an_identity_layer_copies_the_input_weights_and_a_fresh_one_does_not(kind):
    origin = bare(kind)
    writers = ("o_proj", "down_proj", "c_proj", "attention.dense", "4h_to_h")
    for how in ("identity", "fresh"):
        found = grow(origin, how, insert_after=[1])
        new, old = layers_of(found.hf_model, kind)[2], layers_of(origin.hf_model, kind)[1]
        for name, weight in new.named_parameters():
            if any(word in name for word in writers):
                assert not weight.any(), name
            elif "norm" not in name and "ln_" not in name and name.endswith("weight"):
                assert torch.equal(weight, old.get_parameter(name)) == (how == "identity"), name
                assert weight.any(), name


@pytest.mark.parametrize("how", ["identity", "fresh"])
@pytest.mark.parametrize("kind", KINDS)
def test_new_layers_learn(kind, how):
    found = grow(bare(kind), how, insert_after=[1])
    new = layers_of(found.hf_model, kind)[2]
    before = {name: weight.detach().clone() for name, weight in new.named_parameters()}
    step(found.hf_model)
    changed = {n for n, w in new.named_parameters() if not torch.equal(w, before[n])}
    written = {n for n, w in before.items() if not w.any() and n.endswith("weight")}
    assert written
    assert written <= changed
    # Input weights have gradients only once output weights are nonzero, from the second step.
    step(found.hf_model)
    moved = {n for n, w in new.named_parameters() if not torch.equal(w, before[n])}
    assert {n for n in before if n.endswith("weight")} <= moved


def test_stacking_repeats_the_middle_layers():
    assert stack_layers(4, 6) == ([0, 1, 2, 1, 2, 3], [3, 4])
    assert stack_layers(3, 4) == ([0, 1, 1, 2], [2])
    assert stack_layers(3, 5) == ([0, 1, 2, 1, 2], [3, 4])
    assert stack_layers(2, 4) == ([0, 1, 0, 1], [2, 3])
    # As published: two copies of 32 layers, without the last and the first 8.
    order, new = stack_layers(32, 48)
    assert order == [*range(24), *range(8, 32)]
    assert new == list(range(24, 40))


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_layers_are_copies(kind):
    origin = bare(kind)
    found = grow(origin, "stack", 4)
    old, new = layers_of(origin.hf_model, kind), layers_of(found.hf_model, kind)
    for layer, source in enumerate([0, 1, 1, 2]):
        assert same(new[layer], old[source])
    assert found.provenance.settings["from_layer"] == [0, 1, 1, 2]
    assert found.provenance.settings["new_layers"] == [2]
    assert float((logits(found.hf_model) - logits(origin.hf_model)).abs().max()) > 1e-3


def test_each_layer_has_its_own_key_value_cache():
    """A copied layer with its old index would read the cache of another layer."""
    found = grow(bare("llama"), "stack", 6).hf_model
    assert [layer.self_attn.layer_idx for layer in found.model.layers] == list(range(6))
    with torch.no_grad():
        cached = found(input_ids=IDS, use_cache=True).logits
    assert torch.equal(cached, logits(found))


# --- wider


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 77, 300])
def test_wider_mlps_compute_the_same(kind, width):
    origin = bare(kind)
    before = copy.deepcopy(origin.hf_model)
    neurons = 128 if kind == "gpt2" else 64
    found = grow(origin, "wider", neurons + width)
    assert float((logits(found.hf_model) - logits(origin.hf_model)).abs().max()) <= 1e-5
    assert same(origin.hf_model, before)
    assert found.to_model().shape.layers == 3
    assert found.provenance.settings["new_layers"] == []
    assert (found.provenance.settings["old_width"], found.provenance.settings["width"]) == (
        neurons,
        neurons + width,
    )


def test_copied_neurons_divide_their_output_weights_and_learn_differently():
    origin = bare("llama")
    found = grow(origin, "wider", 128)
    mlp, old = found.hf_model.model.layers[0].mlp, origin.hf_model.model.layers[0].mlp
    assert torch.equal(mlp.gate_proj.weight[:64], old.gate_proj.weight)
    pairs = [
        (n, next(m for m in range(64, 128) if torch.equal(mlp.up_proj.weight[m], row)))
        for n, row in enumerate(old.up_proj.weight)
    ]
    assert sorted(copied for _, copied in pairs) == list(range(64, 128))
    for n, m in pairs:
        both = mlp.down_proj.weight[:, n] + mlp.down_proj.weight[:, m]
        assert torch.allclose(both, old.down_proj.weight[:, n], atol=1e-6)
        part = (mlp.down_proj.weight[:, n] / old.down_proj.weight[:, n]).detach().mean()
        assert 1 / 3 <= float(part) <= 2 / 3
    step(found.hf_model)
    assert not any(torch.equal(mlp.up_proj.weight[n], mlp.up_proj.weight[m]) for n, m in pairs)


# --- all methods


WAYS = [("identity", 5), ("fresh", 5), ("stack", 5), ("wider", 200)]


@pytest.mark.parametrize(("how", "size"), WAYS)
def test_one_seed_gives_one_model(how, size):
    one, again, other = (grow(bare("llama"), how, size, seed=seed) for seed in (1, 1, 2))
    assert same(one.hf_model, again.hf_model)
    assert one.provenance == again.provenance
    assert same(one.hf_model, other.hf_model) == (how in ("identity", "stack"))


def test_the_random_state_of_the_process_is_restored():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    grow(bare("llama"), "fresh", 5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("how", "size"), WAYS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_a_grown_model_is_counted_saved_and_loaded(tmp_path, kind, how, size):
    origin = bare(kind)
    found = grow(origin, how, size)
    assert found.provenance.storage == dense_storage(found.hf_model, bits=16)
    assert found.provenance.storage.weights > origin.provenance.storage.weights
    assert found.provenance.storage.embeddings == origin.provenance.storage.embeddings
    assert (found.provenance.kind, found.provenance.parent) == ("grown", kind)
    model = probes.load(found.save(tmp_path / found.name))
    assert model.provenance == found.provenance
    mask = torch.ones_like(IDS, dtype=torch.bool)
    assert torch.equal(model.logits(IDS, mask), found.to_model().logits(IDS, mask))


def test_a_grown_family_member_has_the_same_logits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = grow("distilled", size=4)
    found.save(tmp_path / "runs" / "relatives" / found.name)
    new, old = probes.load("distilled-identity-4"), probes.load("distilled")
    batch = tokenize(old.tokenizer, probes.pattern("take-away").sample_questions(8, seed=0))
    gap = (new.logits(batch.ids, batch.mask) - old.logits(batch.ids, batch.mask)).abs().max()
    assert float(gap) <= 1e-5
    assert new.provenance is not None
    assert new.provenance.settings["new_layers"] == [1, 3]


def test_growth_can_be_repeated():
    origin = bare("llama")
    found = grow(grow(grow(origin, size=4), "wider", 100), "fresh", insert_after=[3])
    assert found.provenance.parent == "llama-identity-4-wider-100"
    assert float((logits(found.hf_model) - logits(origin.hf_model)).abs().max()) <= 1e-5


# --- refusals


@pytest.mark.parametrize(("how", "size"), WAYS)
def test_a_quantized_model_is_refused_in_the_words_of_pruning(how, size):
    origin = bare("llama")
    made = Provenance("quantized", "full", origin.provenance.storage)
    with pytest.raises(ModelError, match="would count as unrounded: grow full first, and quantize"):
        grow(DerivedModel("full-int8", origin.hf_model, None, made), how, size)


@pytest.mark.parametrize(
    ("how", "settings", "message"),
    [
        ("deeper", {}, r"'deeper'.*identity, fresh, stack, wider"),
        ("identity", {}, r"needs either size or insert_after, and neither was given"),
        ("identity", {"size": 5, "insert_after": [0]}, r"size or insert_after, and both were"),
        ("stack", {"insert_after": [0]}, r"'stack' does not use insert_after: give size"),
        ("wider", {"insert_after": [0]}, r"'wider' does not use insert_after"),
        ("identity", {"size": 3}, r"has 3 layers, and size is 3: give more than 3"),
        ("stack", {"size": 2}, r"has 3 layers, and size is 2"),
        ("stack", {"size": 7}, r"at most 6, and 7 were asked for: grow the result again"),
        ("wider", {"size": 64}, r"has 64 neurons per layer, and size is 64"),
        (
            "identity",
            {"insert_after": [0, 3]},
            r"after \[3\]: give indices of the old layers, 0 to 2",
        ),
        ("fresh", {"insert_after": [-1]}, r"after \[-1\]"),
        ("fresh", {"insert_after": []}, r"after no layer"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(how, settings, message):
    with pytest.raises(ModelError, match=message):
        grow(bare("llama"), how, **settings)


def test_broken_weights_are_refused():
    origin = bare("llama")
    origin.hf_model.model.norm.weight.data[0] = math.nan
    with pytest.raises(ModelError, match=r"model\.norm.*NaN"):
        grow(origin, size=4)


def test_attention_scaled_by_the_layer_index_is_refused():
    origin = bare("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match=r"scales its attention.*use 'wider'"):
        grow(origin, size=4)
    assert grow(origin, "wider", 130).provenance.settings["width"] == 130


def test_other_architectures_are_refused():
    origin = bare("llama")
    origin.hf_model.config.model_type = "opt"
    with pytest.raises(ModelError, match=r"'opt' model.*llama, gpt2, gpt_neox"):
        grow(origin, size=4)


def test_an_unknown_source_is_refused():
    with pytest.raises(ModelError, match="No model 'fulll'"):
        grow("fulll", size=5)
