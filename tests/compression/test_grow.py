"""Growing: what stays the same, which layers are new, and that they learn."""

import copy
import math

import pytest
import torch

import probes
from probes.compression.derived_model import DerivedModel, dense_storage
from probes.compression.grow import grow, interleave_layers, stack_layers
from probes.errors import ModelError
from probes.models.provenance import Provenance
from probes.prompts.batch import tokenize
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
    """Take one step of plain descent on the next token."""
    hf_model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    with torch.no_grad():
        for weight in hf_model.parameters():
            weight -= 0.1 * weight.grad
            weight.grad = None


# --- deeper


@pytest.mark.parametrize("how", ["identity", "fresh"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_write_nothing_change_no_logit(kind, how):
    origin = bare(kind)
    before = copy.deepcopy(origin.hf_model)
    found = grow(origin, how, layers=5)
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
        settings = grow(bare("llama"), layers=layers).provenance.settings
        assert (settings["new_layers"], settings["from_layer"]) == (new, source)


def test_new_layers_go_where_they_are_wanted():
    origin = bare("llama")
    found = grow(origin, "fresh", insert_after=[0, 0, 2])
    assert found.provenance.settings["new_layers"] == [1, 2, 5]
    assert found.provenance.settings["from_layer"] == [0, None, None, 1, 2, None]
    assert torch.equal(logits(found.hf_model), logits(origin.hf_model))
    assert interleave_layers(2, [1]) == ([0, 1, 1], [2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_copied_layer_reads_as_its_source_does_and_a_fresh_one_does_not(kind):
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
    # What only reads waits for the writing: it follows at the next step.
    step(found.hf_model)
    moved = {n for n, w in new.named_parameters() if not torch.equal(w, before[n])}
    assert {n for n in before if n.endswith("weight")} <= moved


def test_stacking_says_which_layers_come_twice():
    assert stack_layers(4, 6) == ([0, 1, 2, 1, 2, 3], [3, 4])
    assert stack_layers(3, 4) == ([0, 1, 1, 2], [2])
    assert stack_layers(3, 5) == ([0, 1, 2, 1, 2], [3, 4])
    assert stack_layers(2, 4) == ([0, 1, 0, 1], [2, 3])
    # As published: 32 layers, of which the last and the first 8 are left out of two copies.
    order, new = stack_layers(32, 48)
    assert order == [*range(24), *range(8, 32)]
    assert new == list(range(24, 40))


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_layers_are_copies(kind):
    origin = bare(kind)
    found = grow(origin, "stack", layers=4)
    old, new = layers_of(origin.hf_model, kind), layers_of(found.hf_model, kind)
    for layer, source in enumerate([0, 1, 1, 2]):
        assert same(new[layer], old[source])
    assert found.provenance.settings["from_layer"] == [0, 1, 1, 2]
    assert found.provenance.settings["new_layers"] == [2]
    assert float((logits(found.hf_model) - logits(origin.hf_model)).abs().max()) > 1e-3


def test_each_layer_keeps_keys_and_values_of_its_own():
    """A copied layer that kept its old number would read the cache of another."""
    found = grow(bare("llama"), "stack", layers=6).hf_model
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
    found = grow(origin, "wider", width=neurons + width)
    assert float((logits(found.hf_model) - logits(origin.hf_model)).abs().max()) <= 1e-5
    assert same(origin.hf_model, before)
    assert found.to_model().shape.layers == 3
    assert found.provenance.settings["new_layers"] == []
    assert (found.provenance.settings["old_width"], found.provenance.settings["width"]) == (
        neurons,
        neurons + width,
    )


def test_copied_neurons_share_out_what_they_write_and_learn_apart():
    origin = bare("llama")
    found = grow(origin, "wider", width=128)
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


# --- all of them


WAYS = [
    ("identity", {"layers": 5}),
    ("fresh", {"layers": 5}),
    ("stack", {"layers": 5}),
    ("wider", {"width": 200}),
]


@pytest.mark.parametrize(("how", "settings"), WAYS)
def test_one_seed_gives_one_model(how, settings):
    one, again, other = (grow(bare("llama"), how, **settings, seed=seed) for seed in (1, 1, 2))
    assert same(one.hf_model, again.hf_model)
    assert one.provenance == again.provenance
    assert same(one.hf_model, other.hf_model) == (how in ("identity", "stack"))


def test_growing_draws_from_no_shared_stream():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    grow(bare("llama"), "fresh", layers=5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("how", "settings"), WAYS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_what_grew_is_counted_saved_and_loaded(tmp_path, kind, how, settings):
    origin = bare(kind)
    found = grow(origin, how, **settings)
    assert found.provenance.storage == dense_storage(found.hf_model, bits=16)
    assert found.provenance.storage.weights > origin.provenance.storage.weights
    assert found.provenance.storage.embeddings == origin.provenance.storage.embeddings
    assert (found.provenance.kind, found.provenance.parent) == ("grown", kind)
    model = probes.load(found.save(tmp_path / found.name))
    assert model.provenance == found.provenance
    mask = torch.ones_like(IDS, dtype=torch.bool)
    assert torch.equal(model.logits(IDS, mask), found.to_model().logits(IDS, mask))


def test_a_grown_family_member_answers_as_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = grow("distilled", layers=4)
    found.save(tmp_path / "runs" / "relatives" / found.name)
    new, old = probes.load("distilled-identity-4"), probes.load("distilled")
    batch = tokenize(old.tokenizer, probes.pattern("take-away").sample_questions(8, seed=0))
    gap = (new.logits(batch.ids, batch.mask) - old.logits(batch.ids, batch.mask)).abs().max()
    assert float(gap) <= 1e-5
    assert new.provenance is not None
    assert new.provenance.settings["new_layers"] == [1, 3]


def test_growth_can_be_repeated():
    origin = bare("llama")
    found = grow(grow(grow(origin, layers=4), "wider", width=100), "fresh", insert_after=[3])
    assert found.provenance.parent == "llama-identity-4-wider-100"
    assert float((logits(found.hf_model) - logits(origin.hf_model)).abs().max()) <= 1e-5


# --- what is refused


@pytest.mark.parametrize(
    ("how", "settings", "message"),
    [
        ("deeper", {}, r"'deeper'.*identity, fresh, stack, wider"),
        ("identity", {}, r"needs insert_after or layers, and nothing was given"),
        (
            "identity",
            {"layers": 5, "insert_after": [0]},
            r"insert_after, layers was given: give insert_after or layers alone",
        ),
        ("identity", {"width": 99}, r"needs insert_after or layers, and width was given"),
        ("stack", {"insert_after": [0]}, r"needs layers, and insert_after was given"),
        ("wider", {"layers": 5}, r"needs width, and layers was given"),
        ("identity", {"layers": 3}, r"has 3 layers and is to grow to 3: give more than 3"),
        ("stack", {"layers": 2}, r"has 3 layers and is to grow to 2"),
        ("stack", {"layers": 7}, r"at most 6, and 7 were asked for: stack what comes of it"),
        ("wider", {"width": 64}, r"has 64 neurons a layer and is to grow to 64"),
        (
            "identity",
            {"insert_after": [0, 3]},
            r"behind \[3\]: give numbers of the old layers, 0 to 2",
        ),
        ("fresh", {"insert_after": [-1]}, r"behind \[-1\]"),
        ("fresh", {"insert_after": []}, r"behind no layer"),
    ],
)
def test_dials_that_do_not_fit_are_refused(how, settings, message):
    with pytest.raises(ModelError, match=message):
        grow(bare("llama"), how, **settings)


def test_broken_weights_are_refused():
    origin = bare("llama")
    origin.hf_model.model.norm.weight.data[0] = math.nan
    with pytest.raises(ModelError, match=r"model\.norm.*NaN"):
        grow(origin, layers=4)


def test_attention_scaled_by_the_layers_number_is_refused():
    origin = bare("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match=r"scales its attention.*take 'wider'"):
        grow(origin, layers=4)
    assert grow(origin, "wider", width=130).provenance.settings["width"] == 130


def test_other_kinds_of_model_are_refused():
    origin = bare("llama")
    origin.hf_model.config.model_type = "opt"
    with pytest.raises(ModelError, match=r"'opt' model.*llama, gpt2, gpt_neox"):
        grow(origin, layers=4)


def test_an_unknown_source_is_refused():
    with pytest.raises(ModelError, match="No model 'fulll'"):
        grow("fulll", layers=5)
