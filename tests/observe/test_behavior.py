"""Whole answers and logit differences, on logits that are written by hand."""

from dataclasses import replace

import pytest
import torch

from probes.models.model import Model, Shape
from probes.observe.behavior import evaluate_behavior, foil_tokens, logit_diff, pair_foils
from probes.prompts.batch import Readout, tokenize
from probes.prompts.catalog import pattern
from probes.prompts.pair_batch import tokenize_pairs
from probes.prompts.question import Question
from probes.testing.tiny_models import tiny

SHAPE = Shape("none", 1, 1, 1, 1, 1, 101, 99, False)


class Scripted(Model):
    """A model that foretells every token as written, but for those it is told to get wrong."""

    device = torch.device("cpu")

    def logits(self, ids, mask):
        found = torch.zeros(*ids.shape, self.config["vocab"])
        found[:, :-1].scatter_(2, ids[:, 1:, None], 2.0)
        for row, position, token, value in self.config["says"]:
            found[row, position, token] = value
        return found


def scripted(vocab, *says):
    """Build one; each of `says` is a row, a position, a token and its logit there."""
    return Scripted("scripted", "test", SHAPE, None, None, {"vocab": vocab, "says": says})


def asked(*answers):
    named = [(f"a{k}", outcomes) for k, outcomes in enumerate(answers)]
    right = tuple((name, outcomes[0]) for name, outcomes in named)
    return Question("Say", "ours", "ours", (), "digits", right, tuple(named), ())


def test_the_lead_is_the_answer_less_the_mean_of_its_rivals():
    logits = torch.tensor([[1.0, 5.0, 2.0, 8.0], [4.0, 0.5, 9.0, 3.0], [7.0, 1.0, 1.0, 1.0]])
    others = torch.tensor([[0, 2], [3, -1], [-1, -1]])
    found = logit_diff(logits, others, torch.tensor([1, 0, 0]))
    assert found.tolist() == [5 - 1.5, 4 - 3, 7]


def test_rivals_are_the_outcomes_behind_the_answer():
    readout = Readout(
        name="number",
        start=torch.tensor([0, 0, 0]),
        position=torch.tensor([0, 0, 0]),
        answer=torch.tensor([4, 7, 9]),
        outcomes=((4, 5, 6), (7, 8), (9,)),
        end=torch.tensor([1, 1, 1]),
    )
    assert foil_tokens(readout).tolist() == [[5, 6], [8, -1], [-1, -1]]


def test_an_answer_that_no_prompt_gives_a_rival_leads_by_its_logit(own):
    batch = tokenize(own, (asked(("foxes",)),))
    assert foil_tokens(batch.readouts[0]).tolist() == [[-1]]
    at, token = int(batch.positions[0, 0]), int(batch.readouts[0].answer[0])
    found = evaluate_behavior(scripted(len(own), (0, at, token, 3.5)), batch)
    assert found.logit_diff.tolist() == [[3.5]]


def test_what_a_pair_is_held_against_is_the_other_answer_where_it_moves(own):
    text = "I have 9 foxes. I {} 4. How many foxes do I have now? Answer:"
    clean = pattern("take-away").match(text.format("lose"))
    other = pattern("get-more").match(text.format("find"))
    pairs = tokenize_pairs(own, (pattern("take-away").make_pair("operation", clean, other),))
    number, noun = pair_foils(pairs)
    words = [own.decode([token]).strip() for token in number[0].tolist() if token >= 0]
    assert words == ["13"]
    spare = [t for t in dict(pairs.pairs[0].clean.outcomes)["noun"] if t != "foxes"]
    held = [int(token) for token in noun[0] if token >= 0]
    # Both spare nouns, by the first of their tokens.
    assert held == [own(f" {word}", add_special_tokens=False)["input_ids"][0] for word in spare]


def test_a_right_answer_is_right_in_every_token(letters):
    batch = tokenize(letters, (asked(("foxes", "coins"), ("now", "yet")),))
    found = evaluate_behavior(scripted(101), batch)
    assert found.answers == ("a0", "a1")
    assert found.correct.tolist() == [[True, True]]
    assert found.logit_diff.tolist() == [[2.0, 2.0]]
    assert letters.convert_ids_to_tokens(found.predicted[0].tolist()) == ["f", "n"]


@pytest.mark.parametrize("slip", range(3, 13))
def test_one_wrong_token_spoils_the_answer_that_it_stands_in_and_no_other(letters, slip):
    """The text is "Say foxes now"; position p foretells token p + 1."""
    batch = tokenize(letters, (asked(("foxes", "coins"), ("now", "yet")),))
    assert "".join(batch.tokens[0]) == "Say foxes now"
    wrong = (0, slip - 1, letters.convert_tokens_to_ids("!"), 9.0)
    found = evaluate_behavior(scripted(101, wrong), batch)
    # The spaces at 3 and 9, which all outcomes share, are part of the answers.
    assert found.correct.tolist() == [[slip not in range(3, 9), slip not in range(9, 13)]]


def test_a_lead_does_not_make_an_answer_right(letters):
    batch = tokenize(letters, (asked(("foxes", "coins")),))
    at = int(batch.positions[0, 0])
    f, c, other = letters.convert_tokens_to_ids(["f", "c", "!"])
    found = evaluate_behavior(
        scripted(101, (0, at, other, 9.0), (0, at, c, -1.0), (0, at, f, 4.0)), batch
    )
    assert found.logit_diff.tolist() == [[5.0]]
    assert found.correct.tolist() == [[False]]
    assert found.predicted.tolist() == [[other]]


def test_a_padded_batch_is_answered_as_each_prompt_alone(own):
    questions = pattern("take-away").sample_questions(12, seed=4)
    model = tiny("llama", vocab_size=len(own))
    batch = tokenize(own, questions)
    assert not batch.mask.all()
    together = evaluate_behavior(model, batch)
    for row, question in enumerate(questions):
        alone = evaluate_behavior(model, tokenize(own, (question,)))
        torch.testing.assert_close(together.logit_diff[row], alone.logit_diff[0], atol=1e-5, rtol=0)
        assert torch.equal(together.predicted[row], alone.predicted[0])
        assert torch.equal(together.correct[row], alone.correct[0])


def test_the_size_of_a_chunk_changes_nothing(own):
    questions = pattern("take-away").sample_questions(7, seed=4)
    batch = tokenize(own, questions)
    slips = [(row, int(batch.readouts[0].position[row]), 0, 9.0) for row in (0, 5)]
    whole = evaluate_behavior(scripted(len(own), *slips), batch)
    assert whole.correct[:, 0].tolist() == [False, True, True, True, True, False, True]
    model = tiny("llama", vocab_size=len(own))
    whole, parts = evaluate_behavior(model, batch), evaluate_behavior(model, batch, batch_size=3)
    torch.testing.assert_close(whole.logit_diff, parts.logit_diff, atol=1e-5, rtol=0)
    assert torch.equal(whole.predicted, parts.predicted)


@pytest.mark.parametrize(
    ("text", "outcomes", "shared"),
    [("Rome", ("New York", "New Zealand"), range(4, 9)), ("5+7=", ("12", "17"), range(4, 6))],
)
def test_tokens_that_the_outcomes_share_count_for_accuracy(letters, text, outcomes, shared):
    batch = tokenize(letters, (replace(asked(outcomes), text=text),))
    (readout,) = batch.readouts
    assert int(readout.position[0]) + 1 == shared.stop
    assert evaluate_behavior(scripted(len(letters)), batch).correct.all()
    for at in shared:
        wrong = (0, at - 1, letters.convert_tokens_to_ids("!"), 9.0)
        found = evaluate_behavior(scripted(len(letters), wrong), batch)
        assert not found.correct.any()
        # The logit difference is read at the first differing token.
        assert found.logit_diff.tolist() == [[2.0]]
