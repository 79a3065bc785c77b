"""Pairs align token for token where they can, and role by role where they cannot."""

import json
from dataclasses import replace

import pytest
import torch

from probes.errors import BatchError
from probes.prompts.batch import encode
from probes.prompts.catalog import Pattern, pattern
from probes.prompts.pair_batch import draw_pairs, encode_pairs, fits
from probes.prompts.question import Pair


def drawn(own, contrast, count=4, name="take-away"):
    return draw_pairs(pattern(name), contrast, count, tokenizers=(own,), seed=2)


def roles_of(batch, row):
    return [batch.roles[role] for role in batch.role_of[row][batch.mask[row]]]


@pytest.mark.parametrize("contrast", ["operation", "x", "y", "thing", "name", "filler"])
def test_pairs_of_one_frame_are_drawn_with_equal_tokens_in_every_role(own, contrast):
    pairs = encode_pairs(own, drawn(own, contrast))
    assert len(pairs) == 4
    assert pairs.exact.all()
    for row in range(len(pairs)):
        assert roles_of(pairs.clean, row) == roles_of(pairs.counterfactual, row)
    assert torch.equal(pairs.exchanged, pairs.clean.mask)
    assert torch.equal(pairs.clean.mask, pairs.counterfactual.mask)
    assert torch.equal(pairs.source, torch.arange(pairs.source.shape[1]).repeat(len(pairs), 1))


@pytest.mark.parametrize("contrast", ["operation", "x", "thing"])
def test_exact_pairs_differ_in_the_tokens_of_the_changed_role_alone(own, contrast):
    role = {"operation": "op"}.get(contrast, contrast)
    pairs = encode_pairs(own, drawn(own, contrast))
    for row in range(len(pairs)):
        differs = pairs.clean.ids[row] != pairs.counterfactual.ids[row]
        moved = {pairs.clean.roles[found] for found in pairs.clean.role_of[row][differs]}
        assert moved == {role} | ({"thing_asked"} if contrast == "thing" else set())


@pytest.mark.parametrize("contrast", ["paraphrase", "order"])
def test_pairs_of_two_frames_exchange_the_last_token_of_each_shared_role(own, contrast):
    pairs = encode_pairs(own, drawn(own, contrast))
    assert not pairs.exact.any()
    for row in range(len(pairs)):
        clean, other = roles_of(pairs.clean, row), roles_of(pairs.counterfactual, row)
        shared = (set(clean) & set(other)) - {"rest"}
        assert {"x", "op", "y", "thing_asked", "reply_noun", "bos"} <= shared
        assert int(pairs.exchanged[row].sum()) == len(shared)
        for role in shared:
            (here,) = pairs.where(role)[row].nonzero()[:, 0].tolist()
            assert here == int(pairs.clean.where(role)[row].nonzero().max())
            there = int(pairs.source[row, here])
            assert there == int(pairs.counterfactual.where(role)[row].nonzero().max())
        assert not pairs.where("rest")[row].any()


@pytest.mark.parametrize("contrast", ["x", "thing", "paraphrase", "order"])
def test_every_exchanged_token_stands_for_one_of_the_same_role(own, contrast):
    pairs = encode_pairs(own, drawn(own, contrast))
    seen = 0
    for row, here in pairs.exchanged.nonzero().tolist():
        there = pairs.source[row, here]
        clean = pairs.clean.roles[pairs.clean.role_of[row, here]]
        other = pairs.counterfactual.roles[pairs.counterfactual.role_of[row, there]]
        assert clean == other
        seen += 1
    assert seen >= 8 * len(pairs)


def test_a_pair_that_fits_and_one_that_does_not_share_a_batch(own):
    inexact = replace(drawn(own, "paraphrase", 1)[0], contrast="x")
    pairs = encode_pairs(own, (*drawn(own, "x", 1), inexact))
    assert pairs.exact.tolist() == [True, False]
    assert pairs.clean.ids.shape == pairs.counterfactual.ids.shape
    assert torch.equal(pairs.exchanged[0], pairs.clean.mask[0])


def test_nouns_of_unequal_length_are_exchanged_at_their_last_token(own):
    text = "I have 5 {0}. I lose 2. How many {0} do I have now? Answer:"
    clean, other = (pattern("take-away").match(text.format(w)) for w in ("watermelons", "coins"))
    pairs = encode_pairs(own, (Pattern.pair_up("thing", clean, other),))
    (here,) = pairs.where("thing")[0].nonzero()[:, 0].tolist()
    start = int((~pairs.clean.mask[0]).sum())
    assert pairs.clean.tokens[0][here - start] == "ons"
    there = int(pairs.source[0, here])
    start = int((~pairs.counterfactual.mask[0]).sum())
    assert pairs.counterfactual.tokens[0][there - start] == " coins"


def test_the_counterfactual_is_read_behind_the_words_of_its_clean_twin(own):
    pairs = drawn(own, "operation")
    batch = encode_pairs(own, pairs)
    assert all(pair.changes("number") for pair in pairs)
    for row, pair in enumerate(pairs):
        words = "".join(batch.counterfactual.tokens[row]).removeprefix("<bos>")
        assert words == pair.counterfactual.text + "".join(f" {t}" for _, t in pair.clean.answers)
        answer = own.decode(batch.counterfactual.readout("number").answer[row : row + 1])
        assert answer.strip() == pair.counterfactual.answer("number")
    assert torch.equal(batch.clean.ids, encode(own, [pair.clean for pair in pairs]).ids)


def test_a_pair_of_equals_exchanges_every_token_for_itself(own):
    question = pattern("take-away").questions(1, seed=0)[0]
    pairs = encode_pairs(own, (Pair("none", question, question),))
    assert pairs.exact.all()
    assert torch.equal(pairs.clean.ids, pairs.counterfactual.ids)


def test_only_questions_that_every_tokenizer_can_tell_apart_are_kept(own, letters):
    questions = pattern("take-away").questions(40, seed=0)
    kept = [question for question in questions if fits(own, letters)(question)]
    assert all(fits(own)(question) for question in questions)
    assert 0 < len(kept) < len(questions)
    for question in kept:
        numbers = dict(question.outcomes)["number"]
        assert len({number[0] for number in numbers}) == len(numbers)


def test_pairs_for_two_tokenizers_can_be_read_by_both(own, letters):
    found = draw_pairs(pattern("take-away"), "thing", 3, tokenizers=(own, letters), seed=0)
    for tokenizer in (own, letters):
        assert encode_pairs(tokenizer, found).exact.all()


def test_pairs_hang_on_their_seed_alone(own):
    assert drawn(own, "x") == drawn(own, "x")
    again = draw_pairs(pattern("take-away"), "x", 4, tokenizers=(own,), seed=3)
    assert drawn(own, "x") != again


def test_pairs_of_ones_own_are_taken_as_they_are(own, tmp_path):
    line = {
        "clean": "I have 5 foxes. Now I",
        "counterfactual": "I have 5 coins. Now I",
        "answer": "have",
        "counterfactual_answer": "lose",
        "roles": {"thing": "foxes"},
        "counterfactual_roles": {"thing": "coins"},
    }
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    found = pattern(str(path))
    pairs = encode_pairs(own, draw_pairs(found, "given", 1, tokenizers=(own,), seed=0))
    assert pairs.clean.roles == ("bos", "rest", "thing", "reply_answer")
    assert pairs.exact.all()


def test_no_pairs_make_no_batch(own):
    with pytest.raises(BatchError, match="at least one pair"):
        encode_pairs(own, ())


def test_a_pair_that_is_too_long_is_refused(own):
    with pytest.raises(BatchError, match="the model takes 10"):
        encode_pairs(own, drawn(own, "x", 1), limit=10)
