"""Pairs are aligned token by token where token counts are equal, else role by role."""

import json
from dataclasses import replace

import pytest
import torch

from probes.errors import BatchError
from probes.prompts.catalog import Pattern, pattern
from probes.prompts.question import Pair
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs


def sample(own, contrast, count=4, name="take-away"):
    return sample_pairs(pattern(name), contrast, count, tokenizers=(own,), seed=2)


def roles_of(batch, row):
    return [batch.roles[role] for role in batch.role_of[row][batch.mask[row]]]


@pytest.mark.parametrize("contrast", ["operation", "x", "y", "thing", "name", "filler"])
def test_pairs_of_one_template_have_equal_token_counts_in_every_role(own, contrast):
    pairs = tokenize_pairs(own, sample(own, contrast))
    assert len(pairs) == 4
    assert pairs.fully_aligned.all()
    for row in range(len(pairs)):
        assert roles_of(pairs.clean, row) == roles_of(pairs.counterfactual, row)
    assert torch.equal(pairs.has_counterpart, pairs.clean.mask)
    assert torch.equal(pairs.clean.mask, pairs.counterfactual.mask)
    assert torch.equal(
        pairs.source_positions, torch.arange(pairs.source_positions.shape[1]).repeat(len(pairs), 1)
    )


@pytest.mark.parametrize("contrast", ["operation", "x", "thing"])
def test_aligned_pairs_differ_only_in_the_tokens_of_the_changed_role(own, contrast):
    role = {"operation": "op"}.get(contrast, contrast)
    pairs = tokenize_pairs(own, sample(own, contrast))
    for row in range(len(pairs)):
        differs = pairs.clean.ids[row] != pairs.counterfactual.ids[row]
        moved = {pairs.clean.roles[found] for found in pairs.clean.role_of[row][differs]}
        assert moved == {role} | ({"thing_asked"} if contrast == "thing" else set())


@pytest.mark.parametrize("contrast", ["paraphrase", "order"])
def test_pairs_of_two_templates_align_the_last_token_of_each_shared_role(own, contrast):
    pairs = tokenize_pairs(own, sample(own, contrast))
    assert not pairs.fully_aligned.any()
    for row in range(len(pairs)):
        clean, other = roles_of(pairs.clean, row), roles_of(pairs.counterfactual, row)
        shared = (set(clean) & set(other)) - {"rest"}
        assert {"x", "op", "y", "thing_asked", "reply_noun", "bos"} <= shared
        assert int(pairs.has_counterpart[row].sum()) == len(shared)
        for role in shared:
            (here,) = pairs.role_mask(role)[row].nonzero()[:, 0].tolist()
            assert here == int(pairs.clean.role_mask(role)[row].nonzero().max())
            there = int(pairs.source_positions[row, here])
            assert there == int(pairs.counterfactual.role_mask(role)[row].nonzero().max())
        assert not pairs.role_mask("rest")[row].any()


@pytest.mark.parametrize("contrast", ["x", "thing", "paraphrase", "order"])
def test_every_aligned_token_has_the_role_of_its_counterpart(own, contrast):
    pairs = tokenize_pairs(own, sample(own, contrast))
    seen = 0
    for row, here in pairs.has_counterpart.nonzero().tolist():
        there = pairs.source_positions[row, here]
        clean = pairs.clean.roles[pairs.clean.role_of[row, here]]
        other = pairs.counterfactual.roles[pairs.counterfactual.role_of[row, there]]
        assert clean == other
        seen += 1
    assert seen >= 8 * len(pairs)


def test_aligned_and_unaligned_pairs_can_share_a_batch(own):
    inexact = replace(sample(own, "paraphrase", 1)[0], contrast="x")
    pairs = tokenize_pairs(own, (*sample(own, "x", 1), inexact))
    assert pairs.fully_aligned.tolist() == [True, False]
    assert pairs.clean.ids.shape == pairs.counterfactual.ids.shape
    assert torch.equal(pairs.has_counterpart[0], pairs.clean.mask[0])


def test_nouns_of_unequal_length_are_aligned_at_their_last_token(own):
    text = "I have 5 {0}. I lose 2. How many {0} do I have now? Answer:"
    clean, other = (pattern("take-away").match(text.format(w)) for w in ("watermelons", "coins"))
    pairs = tokenize_pairs(own, (Pattern.make_pair("thing", clean, other),))
    (here,) = pairs.role_mask("thing")[0].nonzero()[:, 0].tolist()
    start = int((~pairs.clean.mask[0]).sum())
    assert pairs.clean.tokens[0][here - start] == "ons"
    there = int(pairs.source_positions[0, here])
    start = int((~pairs.counterfactual.mask[0]).sum())
    assert pairs.counterfactual.tokens[0][there - start] == " coins"


def test_the_counterfactual_is_followed_by_the_clean_answers(own):
    pairs = sample(own, "operation")
    batch = tokenize_pairs(own, pairs)
    assert all(pair.changes_answer("number") for pair in pairs)
    for row, pair in enumerate(pairs):
        words = "".join(batch.counterfactual.tokens[row]).removeprefix("<bos>")
        assert words == pair.counterfactual.text + "".join(f" {t}" for _, t in pair.clean.answers)
        answer = own.decode(batch.counterfactual.readout("number").answer[row : row + 1])
        assert answer.strip() == pair.counterfactual.answer("number")
    assert torch.equal(batch.clean.ids, tokenize(own, [pair.clean for pair in pairs]).ids)


def test_a_pair_of_equal_questions_aligns_every_token_with_itself(own):
    question = pattern("take-away").sample_questions(1, seed=0)[0]
    pairs = tokenize_pairs(own, (Pair("none", question, question),))
    assert pairs.fully_aligned.all()
    assert torch.equal(pairs.clean.ids, pairs.counterfactual.ids)


def test_pairs_for_two_tokenizers_are_aligned_in_both(own, letters):
    found = sample_pairs(pattern("take-away"), "thing", 3, tokenizers=(own, letters), seed=0)
    for tokenizer in (own, letters):
        assert tokenize_pairs(tokenizer, found).fully_aligned.all()


def test_the_seed_alone_decides_the_pairs(own):
    assert sample(own, "x") == sample(own, "x")
    again = sample_pairs(pattern("take-away"), "x", 4, tokenizers=(own,), seed=3)
    assert sample(own, "x") != again


def test_user_pairs_are_used_unchanged(own, tmp_path):
    line = {
        "clean": "I have 5 foxes. Now I",
        "counterfactual": "I have 5 coins. Now I",
        "answer": "have",
        "counterfactual_answer": "lose",
        "roles": {"thing": "foxes"},
        "counterfactual_roles": {"thing": "coins"},
    }
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    found = pattern(str(path))
    pairs = tokenize_pairs(own, sample_pairs(found, "given", 1, tokenizers=(own,), seed=0))
    assert pairs.clean.roles == ("bos", "rest", "thing", "reply_answer")
    assert pairs.fully_aligned.all()


def test_an_empty_list_of_pairs_is_refused(own):
    with pytest.raises(BatchError, match="at least one pair"):
        tokenize_pairs(own, ())


def test_a_pair_that_is_too_long_is_refused(own):
    with pytest.raises(BatchError, match="the model takes 10"):
        tokenize_pairs(own, sample(own, "x", 1), max_length=10)
