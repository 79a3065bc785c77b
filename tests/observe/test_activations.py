"""Captured activations, and residual states at roles whatever the tokenizer."""

from functools import cache

import pytest
import torch

import probes as pb
from probes.errors import BatchError, SiteError
from probes.interventions.activation_patching import run_with_cache
from probes.models.model import wrap
from probes.observe import activations
from probes.observe.activations import Activations, capture, last_positions, record
from probes.prompts.catalog import pattern
from probes.prompts.tokens.batch import tokenize
from probes.testing.planted_patterns import fox_pattern, planted_fox
from probes.testing.tiny_models import KINDS, hook_count, tiny, tiny_hf

COUNT = 7


@pytest.fixture
def grouped(own):
    """Questions of several templates and lengths, and a tiny model with grouped heads."""
    questions = pattern("take-away").sample_questions(8, seed=0)
    return tiny("llama-gqa", vocab_size=len(own)), tokenize(own, questions)


def residual(model, prompts, answers_from=None):
    length = model.shape.context
    batch = tokenize(model.tokenizer, prompts, answers_from=answers_from, max_length=length)
    return capture(model, batch, ("resid",))


@cache
def questions(count=COUNT):
    return fox_pattern().sample_questions(count, seed=0)


@cache
def shipped(count):
    """Questions whose numbers have one digit, so that a tokenizer of letters separates them."""
    few = lambda item: item["x"] + item["y"] < 10 and item.numerals == "digits"  # noqa: E731
    return pattern("take-away").sample_questions(count, seed=1, keep=few)


@cache
def model(kind):
    """A random model with the vocabulary of the planted ones."""
    words = planted_fox("template").model.tokenizer
    return wrap(tiny_hf(kind, 0, vocab_size=len(words)), name=f"tiny {kind}", tokenizer=words)


@pytest.fixture(scope="module")
def spelled(letters):
    """A random model with one token a letter, so that a word has many tokens."""
    hf_model = tiny_hf("llama", 0, vocab_size=len(letters), max_position_embeddings=300)
    return wrap(hf_model, name="letters", tokenizer=letters)


def test_what_is_captured_is_what_the_model_computes(grouped):
    model, batch = grouped
    found = capture(model, batch, ("resid", "attention", "z", "mlp_out"))
    layers, heads, width = model.shape.layers, model.shape.heads, batch.ids.shape[1]
    assert found["attention"].shape == (layers, len(batch), heads, width, width)
    assert found["resid"].shape == (layers + 1, len(batch), width, model.shape.d_model)
    logits = model.bridge.unembed(model.bridge.ln_final(found["resid"][-1]))
    torch.testing.assert_close(logits, model.logits(batch.ids, batch.mask), atol=1e-6, rtol=0)
    for layer in range(layers):
        written = model.bridge.blocks[layer].attn.o(found["z"][layer].flatten(2))
        after = found["resid"][layer] + written + found["mlp_out"][layer]
        torch.testing.assert_close(after, found["resid"][layer + 1], atol=1e-5, rtol=0)


def test_plain_text_is_captured_as_its_batch():
    text = "I have 9 foxes."
    found = pb.capture(model("llama"), text, ("resid", "z"))
    batch = tokenize(model("llama"), [text])
    assert torch.equal(found.batch.ids, batch.ids)
    assert torch.equal(found["resid"], capture(model("llama"), batch, ("resid",))["resid"])
    assert len(pb.capture(model("llama"), [text, "I have 3 foxes."])) == 2
    assert len(repr(found)) < 2000
    assert "resid [4, 1, " in repr(found)


@pytest.mark.parametrize("kind", KINDS)
def test_residual_states_are_those_of_a_cached_run(kind):
    batch = tokenize(model(kind).tokenizer, questions())
    found = capture(model(kind), batch, ("resid",))
    assert found.batch is batch
    assert found.model == f"tiny {kind}"
    expected = run_with_cache(model(kind), batch.ids, batch.mask, batch.positions).resid
    assert found["resid"].shape == (4, COUNT, batch.ids.shape[1], 32)
    torch.testing.assert_close(found["resid"][:, batch.mask], expected[:, batch.mask])


def test_chunks_of_prompts_change_nothing():
    every = residual(model("llama"), questions(230))
    few = residual(model("llama"), questions(230)[195:205])
    torch.testing.assert_close(
        every.states_at("op", 2)[195:205], few.states_at("op", 2), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["resid", "attention", "z", "mlp_out"])
def test_prompts_of_any_length_are_captured_as_each_alone(name, grouped, own, monkeypatch):
    monkeypatch.setattr(activations, "_PROMPTS_PER_RUN", 3)
    model, batch = grouped
    found, lengths = record(model, batch, (name,))[name], batch.mask.sum(-1).tolist()
    assert len({*lengths}) > 3
    for row, count in enumerate(lengths):
        alone = record(model, tokenize(own, batch.questions[row : row + 1]), (name,))[name]
        last = found[:, row, :, -count:, -count:] if name == "attention" else found[:, row, -count:]
        torch.testing.assert_close(last, alone[:, 0], atol=1e-5, rtol=1e-4)


def test_a_capture_leaves_no_hook_and_no_gradient_behind(grouped):
    model, batch = grouped
    model.logits(batch.ids, batch.mask)
    before = hook_count(model)
    found = capture(model, batch, ("resid", "attention"))
    assert hook_count(model) == before
    assert not found["resid"].requires_grad


def test_what_is_unknown_or_was_not_captured_is_refused(grouped):
    model, batch = grouped
    with pytest.raises(
        SiteError, match=r"Cannot capture \['keys'\]: known are resid, attention.*recording"
    ):
        capture(model, batch, ("keys",))
    with pytest.raises(SiteError, match=r"'z' was not captured from .* it has \['attention'\]"):
        capture(model, batch)["z"]


def test_states_are_counted_back_from_the_last_token_of_a_role_to_its_first(spelled):
    found = residual(spelled, shipped(4))
    for role in ("op", "thing", "answer"):
        mask = found.batch.role_mask(role)
        positions = [mask[row].nonzero()[:, 0].tolist() for row in range(4)]
        assert last_positions(found.batch, role).tolist() == [some[-1] for some in positions]
        assert found.token_counts(role).tolist() == [len(some) for some in positions]
        for back in (0, 1, 3, 100):
            expected = [some[max(len(some) - 1 - back, 0)] for some in positions]
            states = found["resid"][2][torch.arange(4), expected]
            assert torch.equal(found.states_at(role, 2, back), states)


def test_roles_that_all_prompts_have_are_in_the_order_of_the_text():
    found = residual(model("llama"), questions())
    named = [role for role in found.roles if role not in ("bos", "rest")]
    assert named == [
        "have", "x", "thing", "op", "y", "ask", "thing_asked", "answer",
        "reply_number", "reply_noun",
    ]  # fmt: skip
    assert found.roles[0] == "bos"
    assert len(found) == COUNT


def test_two_tokenizers_have_the_same_roles_in_the_same_order(own, spelled):
    hf_model = tiny_hf("llama", 0, vocab_size=len(own), max_position_embeddings=128)
    words = residual(wrap(hf_model, name="words", tokenizer=own), shipped(12))
    letters = residual(spelled, shipped(12))
    named = [
        [role for role in found.roles if role not in ("bos", "rest")] for found in (words, letters)
    ]
    assert named[0] == named[1]
    assert (letters.token_counts("thing") > words.token_counts("thing")).all()
    nouns = [str(question["thing"]) for question in shipped(12)]
    for found in (words, letters):
        back = found.batch.ids.shape[1] - last_positions(found.batch, "thing")
        tokens = [found.batch.tokens[row][-int(n)] for row, n in enumerate(back)]
        assert all(noun.endswith(token.strip()) for noun, token in zip(nouns, tokens, strict=True))


def test_answers_of_other_questions_replace_the_own_ones():
    prompts, others = questions()[:3], questions()[3:6]
    found = residual(model("llama"), prompts, answers_from=others)
    plain = residual(model("llama"), prompts)
    assert torch.equal(found.states_at("answer", 2), plain.states_at("answer", 2))
    replies = [tokens[-2:] for tokens in found.batch.tokens]
    assert replies == [tuple(text for _, text in question.answers) for question in others]


def test_a_role_that_some_prompts_lack_is_refused():
    found = residual(model("llama"), questions())
    with pytest.raises(SiteError, match="filler"):
        found.states_at("filler", 1)
    role_of = found.batch.role_of.clone()
    role_of[2][found.batch.role_mask("op")[2]] = found.batch.roles.index("rest")
    batch = type(found.batch)(
        found.batch.questions, found.batch.ids, found.batch.mask, found.batch.roles, role_of,
        found.batch.tokens, found.batch.readouts,
    )  # fmt: skip
    lacking = Activations(found.model, batch, found.tensors)
    assert "op" not in lacking.roles
    assert last_positions(batch, "op")[2] == -1
    with pytest.raises(SiteError, match="no role 'op'"):
        lacking.states_at("op", 1)


def test_a_text_longer_than_the_context_is_refused():
    words = planted_fox("template").model.tokenizer
    short = tiny_hf("gpt2", 0, vocab_size=len(words), max_position_embeddings=12)
    with pytest.raises(BatchError, match="12"):
        residual(wrap(short, name="short", tokenizer=words), questions())
