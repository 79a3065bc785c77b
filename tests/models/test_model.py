"""Logits, edits, loading and generation of a model."""

import copy
import inspect
import pickle
import threading
from dataclasses import replace

import pytest
import torch

import probes
from probes import files
from probes.errors import BatchError, ModelError, SiteError
from probes.models.acceptance import LOGIT_TOLERANCE
from probes.models.files import loading, names
from probes.models.generation import continue_text
from probes.models.model import load, random_init, wrap
from probes.models.readout import last_token, position_ids
from probes.testing.equivalent_heads import ungroup_heads
from probes.testing.tiny_models import KINDS, hook_count, tiny, tiny_hf


@pytest.fixture
def batch():
    """Four prompts of random ids; the first and third are padded on the left."""
    ids = torch.randint(3, 97, (4, 12), generator=torch.Generator().manual_seed(5))
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[0, :5] = mask[2, :2] = False
    return ids, mask


@pytest.mark.parametrize("dtype", LOGIT_TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_hugging_face_in_eager_attention(kind, dtype, batch):
    ids, mask = batch
    hf_model = tiny_hf(kind, seed=0).to(dtype)
    logits = wrap(hf_model, name=kind).logits(ids, mask)
    with torch.no_grad():
        given = {"attention_mask": mask.long(), "position_ids": position_ids(mask)}
        expected = hf_model(input_ids=ids, **given).logits
    assert (logits - expected)[mask].abs().max() <= LOGIT_TOLERANCE[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_left_does_not_change_logits(kind, batch):
    ids, mask = batch
    model = tiny(kind)
    alone = model.logits(ids[:1, 5:], mask[:1, 5:])
    assert torch.allclose(model.logits(ids, mask)[:1, 5:], alone, atol=1e-5)


def test_wrapping_leaves_the_given_model_as_it_was():
    hf_model = tiny_hf("llama", seed=0)
    names = [name for name, _ in hf_model.named_modules()]
    wrap(hf_model, name="copy")
    assert [name for name, _ in hf_model.named_modules()] == names


def test_a_shape_has_the_sizes_of_the_config():
    shape = tiny("llama-gqa").shape
    assert (shape.architecture, shape.layers, shape.heads) == ("LlamaForCausalLM", 3, 4)
    assert (shape.kv_heads, shape.d_model, shape.d_head) == (2, 32, 8)
    assert (shape.d_vocab, shape.context, shape.parallel) == (97, 48, False)
    assert tiny("neox").shape.parallel


def test_ungrouped_heads_give_the_logits_of_grouped_ones(batch):
    model = tiny("llama-gqa")
    ungrouped = ungroup_heads(model)
    assert ungrouped.shape.kv_heads == ungrouped.shape.heads == 4
    assert torch.allclose(ungrouped.logits(*batch), model.logits(*batch), atol=1e-6)


def test_an_edit_sees_the_activation_and_replaces_it(batch):
    model, activations = tiny("gpt2"), []
    before = model.logits(*batch)
    with model.editing(
        {"blocks.1.attn.hook_z": torch.zeros_like, "hook_embed": activations.append}
    ):
        edited = model.logits(*batch)
    assert activations[0].shape == (4, 12, 32)
    assert not torch.allclose(edited, before)
    assert torch.equal(model.logits(*batch), before)


@pytest.mark.parametrize("kind", KINDS)
def test_no_hook_is_left_after_an_edit_or_an_error(kind, batch):
    model = tiny(kind)
    before = hook_count(model)

    def fail(value):
        raise RuntimeError("in an edit")

    with model.editing({"blocks.0.hook_mlp_out": lambda value: None}):
        assert hook_count(model) > before
        model.logits(*batch)
    assert hook_count(model) == before
    with pytest.raises(RuntimeError), model.editing({"blocks.0.hook_mlp_out": fail}):
        model.logits(*batch)
    assert hook_count(model) == before


def test_an_unknown_activation_is_refused_with_the_names_close_to_it():
    model = tiny("llama")
    edits = {"blocks.0.hook_mlp_out": torch.zeros_like, "blocks.0.hook_mlp_uot": torch.zeros_like}
    with pytest.raises(SiteError, match=r"hook_mlp_out"), model.editing(edits):
        pass
    assert hook_count(model) == 0


def test_an_activation_that_is_off_by_default_is_refused():
    with pytest.raises(SiteError), tiny("llama").editing({"blocks.0.attn.hook_result": abs}):
        pass


@pytest.mark.parametrize("edit", [lambda v: v[:1], lambda v: v.double()], ids=["shape", "dtype"])
def test_an_edit_must_keep_shape_and_dtype(edit, batch):
    model = tiny("llama")
    with pytest.raises(SiteError, match="must keep"), model.editing({"hook_embed": edit}):
        model.logits(*batch)


def test_a_second_thread_does_not_run_with_the_edits_of_the_first(batch):
    model, errors = tiny("llama"), []

    def second():
        try:
            model.logits(*batch)
        except ModelError as error:
            errors.append(error)

    with model.editing({"hook_embed": torch.zeros_like}):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another thread" in str(errors[0])


def test_a_random_init_model_depends_on_its_seed_alone(batch):
    model = tiny("llama-gqa")
    state = torch.get_rng_state()
    first = random_init(model, seed=1).logits(*batch)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(random_init(model, seed=1).logits(*batch), first)
    assert not torch.equal(random_init(model, seed=2).logits(*batch), first)
    assert random_init(model, seed=1).shape == model.shape


def test_prompts_longer_than_the_context_are_refused():
    ids = torch.ones(1, 49, dtype=torch.long)
    with pytest.raises(ModelError, match="49 tokens found, at most 48 fit"):
        tiny("gpt2").logits(ids, ids.bool())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_loads_with_tied_weights_and_any_stored_dtype(tmp_path, stored, tied, batch):
    hf_model = tiny_hf("llama-gqa", seed=0, tie_word_embeddings=tied).to(stored)
    hf_model.save_pretrained(tmp_path)
    model = load(tmp_path, device="cpu")
    assert model.dtype == torch.float32
    assert model.tokenizer is None
    # Not hf_model.float(): rounding a model also rounds its rotary angles, loading does not.
    same = tiny_hf("llama-gqa", seed=0, tie_word_embeddings=tied)
    same.load_state_dict(hf_model.state_dict())
    assert torch.equal(model.logits(*batch), wrap(same, name="same").logits(*batch))
    assert load(model) is model


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path):
    tiny_hf("llama", seed=0).config.save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*save_pretrained"):
        load(tmp_path)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    hf_model = tiny_hf("llama", seed=0)
    hf_model.model.norm.weight.data[3] = float("nan")
    hf_model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        load(tmp_path)


def test_missing_weights_are_refused_by_name(tmp_path):
    hf_model = tiny_hf("llama", seed=0)
    weights = hf_model.state_dict()
    del weights["model.norm.weight"]
    hf_model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match=r"model\.norm\.weight is missing"):
        load(tmp_path)


def test_a_family_member_loads_by_name_and_a_close_name_is_suggested(tmp_path, monkeypatch):
    tiny_hf("llama", seed=0).save_pretrained(tmp_path / "models" / "teacher")
    for module in (loading, names, files):
        monkeypatch.setattr(module, "data_folder", lambda: tmp_path)
    assert load("teacher").origin == "family member teacher"
    with pytest.raises(ModelError, match="Did you mean 'teacher'"):
        load("taecher")


@pytest.mark.parametrize("value", [None, 3, ["full"], torch.zeros(3, 3)])
def test_a_value_that_is_neither_a_name_nor_a_model_is_refused_in_one_line(value):
    unchecked = inspect.unwrap(load)  # Tests check types as well, and would refuse it first.
    with pytest.raises(ModelError, match=r"is no model: give a name") as caught:
        unchecked(value)
    assert type(value).__name__ in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_random_init_model_of_any_shape_and_seed_loads_by_name(tmp_path, monkeypatch):
    tiny_hf("llama", seed=0).save_pretrained(tmp_path / "models" / "teacher")
    for module in (loading, names, files):
        monkeypatch.setattr(module, "data_folder", lambda: tmp_path)
    ids, mask = torch.arange(5)[None], torch.ones(1, 5, dtype=torch.bool)
    named = load("random-init:teacher:3").logits(ids, mask)
    assert torch.equal(named, random_init(load("teacher"), seed=3).logits(ids, mask))
    assert not torch.equal(named, load("random-init:teacher").logits(ids, mask))
    with pytest.raises(ModelError, match="random-init:full:3"):
        load("random-init:teacher:x")


def test_an_unreachable_hub_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "data_folder", lambda: tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="Could not load 'nobody/nothing'") as caught:
        load("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ModelError, match="float32"):
        load("anything/here", dtype="int4")


# Sites, and generation.


def test_a_site_edits_its_own_head():
    model, activations = tiny("llama"), []
    ids = torch.randint(3, 97, (2, 6), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids, dtype=torch.bool)
    whole = {"blocks.1.attn.hook_z": lambda value: activations.append(value.clone())}
    with model.editing({"L1.H0": torch.zeros_like} | whole):
        model.logits(ids, mask)
    assert (activations[0][:, :, 0] == 0).all()
    assert (activations[0][:, :, 1:] != 0).all()


@pytest.mark.parametrize("name", ["L9.H0", "L0.H9", "L9.resid", "L0.resid@op"])
def test_an_unknown_site_is_refused(name):
    with pytest.raises(SiteError, match=name), tiny("llama").editing({name: torch.zeros_like}):
        pass


def test_generation_runs_inside_an_edit():
    model = load("full")
    text = probes.pattern("take-away").sample_questions(1, seed=0)[0].text
    plain = model.generate(text, max_new_tokens=3)
    assert plain.startswith(text.strip())
    with model.editing({"L0.MLP": torch.zeros_like}):
        assert model.generate(text, max_new_tokens=3) != plain
    assert model.generate(text, max_new_tokens=3) == plain


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": -1}, {"temperature": -1.0}, {"temperature": float("nan")}, {"seed": 2**63}],
)
def test_generation_with_settings_out_of_range_is_refused(settings):
    with pytest.raises(ModelError, match="give numbers of 0 or more, and a seed below"):
        load("scratch").generate("Tom has 2 foxes.", **settings)


def test_plain_texts_become_a_batch_with_a_short_repr():
    batch = probes.tokenize(load("full"), ["The fox has 3 apples", "a b"])
    assert (len(batch), batch.roles, batch.readouts) == (2, ("bos", "rest"), ())
    assert len(repr(batch)) < 2000
    assert len(repr(load("full"))) < 2000


def test_add_bos_overrides_the_tokenizer_of_a_loaded_model():
    text = "I have 3 foxes"
    given, without = probes.tokenize(load("full"), text), load("full", add_bos=False)
    assert given.roles == ("bos", "rest")
    assert probes.tokenize(without, text).ids.tolist() == given.ids[:, 1:].tolist()
    like = load("random-init:full:0", add_bos=False)
    assert probes.tokenize(like, text).roles == ("rest",)
    assert probes.tokenize(load("full", add_bos=True), text).ids.equal(given.ids)


@pytest.mark.parametrize("kind", ["gpt2", "neox", "gemma2", "olmo2", "phi3"])
def test_logits_at_some_positions_are_those_of_all(kind):
    model = tiny(kind)
    ids = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :4] = False
    at = torch.tensor([[8, 2], [8, 8], [0, 5]])
    wanted = model.logits(ids, mask).take_along_dim(at[..., None], dim=1)
    before = hook_count(model)
    torch.testing.assert_close(model.logits(ids, mask, at), wanted, atol=1e-6, rtol=0)
    assert hook_count(model) == before


def test_only_the_positions_that_are_read_are_unembedded():
    model, rows = tiny("llama"), []
    ids = torch.arange(12).view(2, 6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with model.editing({"unembed.hook_in": lambda resid: rows.append(resid.shape[1])}):
        model.logits(ids, mask, last_token(mask))
    assert rows == [1]


@pytest.mark.parametrize("texts", [["one text"], ("a b", "c d"), probes.Question.from_text("a b")])
def test_generation_takes_a_single_text(texts):
    unchecked = inspect.unwrap(continue_text)  # `Model.generate`, without the check of types.
    with pytest.raises(BatchError, match="give a single text, and call once for each") as caught:
        unchecked(tiny("llama"), texts, max_new_tokens=1, temperature=0.0, seed=0)
    assert type(texts).__name__ in str(caught.value)


def test_a_random_init_model_is_made_of_a_name_as_of_the_model():
    named, given = random_init("full", seed=1), random_init(load("full"), seed=1)
    assert named.name == given.name == "full random-init 1"
    weights = zip(named.bridge.parameters(), given.bridge.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("run_with_cache", "; pb.capture reads activations"),
        ("cfg", "; model.shape has the sizes"),
        ("W_Q", ""),
    ],
)
def test_a_name_of_transformer_lens_is_missing_with_the_place_where_it_is(name, instead):
    model = tiny("llama")
    assert not hasattr(model, name)
    with pytest.raises(AttributeError) as caught:
        getattr(model, name)
    expected = f"Model has no {name}: TransformerLens's own is model.bridge.{name}{instead}"
    assert str(caught.value) == expected


@pytest.mark.parametrize("name", ["fire_with_cache", "__len__", "_repr_html_", "_modules"])
def test_another_missing_name_is_missing_as_in_any_object(name):
    with pytest.raises(AttributeError, match=f"^'Model' object has no attribute '{name}'$"):
        getattr(tiny("llama"), name)


def test_an_error_in_a_property_of_a_model_is_its_own():
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'parameters'"):
        replace(tiny("llama"), bridge=None).device  # noqa: B018 (the property is what fails)


def test_a_model_is_copied_replaced_and_pickled():
    model = tiny("llama")
    assert copy.copy(model).bridge is model.bridge
    assert replace(model, name="other").bridge is model.bridge
    locks = {"lock": None, "turn": None}
    bare = replace(model, bridge=torch.nn.Linear(2, 2), **locks)
    for again in (pickle.loads(pickle.dumps(bare)), copy.deepcopy(bare)):
        assert (again.name, again.shape) == (model.name, model.shape)
        assert torch.equal(again.bridge.weight, bare.bridge.weight)
