"""States are read where the roles are, whatever the tokens."""

from functools import cache

import pytest
import torch

from probes.errors import BatchError, SiteError
from probes.interventions.activation_patching import run_with_cache
from probes.models.model import wrap
from probes.observe.activations import capture
from probes.observe.residual_states import ResidualStates, capture_residual
from probes.prompts.batch import tokenize
from probes.prompts.catalog import pattern
from probes.testing.planted_patterns import fox_pattern, planted_fox
from probes.testing.tiny_models import KINDS, hook_count, tiny_hf

COUNT = 7


def read(model, asked, forced=None):
    """Encode as a donor's texts are, and read."""
    batch = tokenize(model.tokenizer, asked, answers_from=forced, max_length=model.shape.context)
    return capture_residual(model, batch)


@cache
def questions(count=COUNT):
    return fox_pattern().sample_questions(count, seed=0)


@cache
def shipped(count):
    """Questions about numbers that two letters do not spell, so that letters tell them apart."""
    few = lambda asked: asked["x"] + asked["y"] < 10 and asked.numerals == "digits"  # noqa: E731
    return pattern("take-away").sample_questions(count, seed=1, keep=few)


@cache
def model(kind):
    """A random model that reads the words of the planted ones."""
    words = planted_fox("template").model.tokenizer
    return wrap(tiny_hf(kind, 0, vocab_size=len(words)), name=f"tiny {kind}", tokenizer=words)


@pytest.fixture(scope="module")
def spelled(letters):
    """A random model that reads letter by letter: a word has many tokens."""
    hf_model = tiny_hf("llama", 0, vocab_size=len(letters), max_position_embeddings=300)
    return wrap(hf_model, name="letters", tokenizer=letters)


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_what_a_recording_and_a_capture_hold(kind):
    batch = tokenize(model(kind).tokenizer, questions())
    found = capture_residual(model(kind), batch)
    assert found.batch is batch
    assert found.model == f"tiny {kind}"
    wanted = run_with_cache(model(kind), batch.ids, batch.mask, batch.positions).resid
    assert found.resid.shape == (4, COUNT, batch.ids.shape[1], 32)
    # Behind padding there is nothing to be equal to.
    torch.testing.assert_close(found.resid[:, batch.mask], wanted[:, batch.mask])
    seen = capture(model(kind), batch, ["resid"])["resid"]
    torch.testing.assert_close(found.resid[:, batch.mask], seen[:, batch.mask])


def test_many_questions_are_read_as_few_are():
    every = read(model("llama"), questions(230))
    few = read(model("llama"), questions(230)[195:205])
    torch.testing.assert_close(
        every.states_at("op", 2)[195:205], few.states_at("op", 2), atol=1e-4, rtol=1e-4
    )


def test_reading_leaves_no_hook_and_no_gradient_behind():
    before = hook_count(model("llama"))
    found = read(model("llama"), questions())
    assert hook_count(model("llama")) == before
    assert not found.resid.requires_grad


def test_the_last_token_of_a_word_is_read_and_earlier_ones_down_to_its_first(spelled):
    asked = shipped(4)
    found = read(spelled, asked)
    batch = found.batch
    for role in ("op", "thing", "answer"):
        places = [batch.role_mask(role)[row].nonzero()[:, 0].tolist() for row in range(4)]
        assert found.last_positions(role).tolist() == [some[-1] for some in places]
        assert found.token_counts(role).tolist() == [len(some) for some in places]
        for back in (0, 1, 3, 100):
            wanted = [some[max(len(some) - 1 - back, 0)] for some in places]
            rows = torch.arange(4)
            assert torch.equal(found.states_at(role, 2, back), found.resid[2][rows, wanted])


def test_the_roles_that_all_prompts_have_stand_in_the_order_of_the_text():
    found = read(model("llama"), questions())
    own = [role for role in found.roles if role not in ("bos", "rest")]
    assert own == [
        "have", "x", "thing", "op", "y", "ask", "thing_asked", "answer",
        "reply_number", "reply_noun",
    ]  # fmt: skip
    assert found.roles[0] == "bos"
    assert len(found) == COUNT


def test_the_same_roles_are_read_by_two_tokenizers_in_the_same_order(own, spelled):
    asked = shipped(12)
    hf_model = tiny_hf("llama", 0, vocab_size=len(own), max_position_embeddings=128)
    words = read(wrap(hf_model, name="words", tokenizer=own), asked)
    letters = read(spelled, asked)
    plain = [
        [role for role in found.roles if role not in ("bos", "rest")] for found in (words, letters)
    ]
    assert plain[0] == plain[1]
    assert (letters.token_counts("thing") > words.token_counts("thing")).all()
    for found in (words, letters):
        text = [found.batch.tokens[row][-1 - back] for row, back in enumerate(
            (found.batch.ids.shape[1] - 1 - found.last_positions("thing")).tolist()
        )]  # fmt: skip
        nouns = [str(question["thing"]) for question in asked]
        assert all(noun.endswith(token.strip()) for noun, token in zip(nouns, text, strict=True))


def test_forced_answers_are_written_in_place_of_the_own_ones():
    asked, writers = questions()[:3], questions()[3:6]
    found = read(model("llama"), asked, forced=writers)
    plain = read(model("llama"), asked)
    assert torch.equal(found.states_at("answer", 2), plain.states_at("answer", 2))
    replies = [tokens[-2:] for tokens in found.batch.tokens]
    assert replies == [tuple(text for _, text in writer.answers) for writer in writers]


def test_a_role_that_no_prompt_or_only_some_prompts_have_is_refused():
    found = read(model("llama"), questions())
    with pytest.raises(SiteError, match="filler"):
        found.states_at("filler", 1)
    some = found.batch.role_of.clone()
    some[2][found.batch.role_mask("op")[2]] = found.batch.roles.index("rest")
    batch = type(found.batch)(
        found.batch.questions, found.batch.ids, found.batch.mask, found.batch.roles, some,
        found.batch.tokens, found.batch.readouts,
    )  # fmt: skip
    lacking = ResidualStates(found.model, batch, found.resid)
    assert "op" not in lacking.roles
    for look in (lacking.last_positions, lambda role: lacking.states_at(role, 1)):
        with pytest.raises(SiteError, match="no role 'op'"):
            look("op")


def test_a_text_longer_than_the_model_takes_is_refused():
    words = planted_fox("template").model.tokenizer
    short = tiny_hf("gpt2", 0, vocab_size=len(words), max_position_embeddings=12)
    with pytest.raises(BatchError, match="12"):
        read(wrap(short, name="short", tokenizer=words), questions())
