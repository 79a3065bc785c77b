"""Whole-answer accuracy and logit differences, on logits written by hand."""

from dataclasses import replace

import pytest
import torch

from probes.errors import BatchError
from probes.models.model import Model, Shape
from probes.observe.behavior import evaluate_behavior, foil_tokens, logit_diff, pair_foils
from probes.prompts.catalog import pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import Readout, tokenize
from probes.prompts.tokens.pair_batch import tokenize_pairs
from probes.testing.tiny_models import tiny

SHAPE = Shape("none", 1, 1, 1, 1, 1, 101, 99, False)


class Scripted(Model):
    """A model that predicts every token of the text, except at scripted positions."""

    device = torch.device("cpu")

    def logits(self, ids, mask, at=None):
        logits = torch.zeros(*ids.shape, self.config["vocab"])
        logits[:, :-1].scatter_(2, ids[:, 1:, None], 2.0)
        for row, position, token, value in self.config["script"]:
            logits[row, position, token] = value
        return logits if at is None else logits.take_along_dim(at[..., None], dim=1)


def scripted(vocab, *script):
    """Scripted model; each entry of `script` is a row, a position, a token and its logit there."""
    return Scripted("scripted", "test", SHAPE, None, None, {"vocab": vocab, "script": script})


def question(*outcomes):
    named = tuple((f"a{k}", words) for k, words in enumerate(outcomes))
    answers = tuple((name, words[0]) for name, words in named)
    return Question("Say", "ours", "ours", (), "digits", answers, named, ())


def test_the_logit_difference_is_the_answer_minus_the_mean_of_its_foils():
    logits = torch.tensor([[1.0, 5.0, 2.0, 8.0], [4.0, 0.5, 9.0, 3.0], [7.0, 1.0, 1.0, 1.0]])
    foils = torch.tensor([[0, 2], [3, -1], [-1, -1]])
    result = logit_diff(logits, foils, torch.tensor([1, 0, 0]))
    assert result.tolist() == [5 - 1.5, 4 - 3, 7]


def test_foils_are_the_outcomes_after_the_answer():
    readout = Readout(
        name="number",
        start=torch.tensor([0, 0, 0]),
        position=torch.tensor([0, 0, 0]),
        answer=torch.tensor([4, 7, 9]),
        outcomes=((4, 5, 6), (7, 8), (9,)),
        end=torch.tensor([1, 1, 1]),
    )
    assert foil_tokens(readout).tolist() == [[5, 6], [8, -1], [-1, -1]]


def test_without_a_foil_the_logit_difference_is_the_logit(own):
    batch = tokenize(own, (question(("foxes",)),))
    assert foil_tokens(batch.readouts[0]).tolist() == [[-1]]
    position, token = int(batch.positions[0, 0]), int(batch.readouts[0].answer[0])
    behavior = evaluate_behavior(scripted(len(own), (0, position, token, 3.5)), batch)
    assert behavior.logit_diff.tolist() == [[3.5]]


def test_the_foil_of_a_pair_is_the_counterfactual_answer_where_it_differs(own):
    text = "I have 9 foxes. I {} 4. How many foxes do I have now? Answer:"
    clean = pattern("take-away").match(text.format("lose"))
    other = pattern("get-more").match(text.format("find"))
    pairs = tokenize_pairs(own, (pattern("take-away").make_pair("operation", clean, other),))
    number, noun = pair_foils(pairs)
    words = [own.decode([token]).strip() for token in number[0].tolist() if token >= 0]
    assert words == ["13"]
    others = [t for t in dict(pairs.pairs[0].clean.outcomes)["noun"] if t != "foxes"]
    tokens = [int(token) for token in noun[0] if token >= 0]
    # Both other nouns, by the first of their tokens.
    assert tokens == [own(f" {word}", add_special_tokens=False)["input_ids"][0] for word in others]


def test_a_correct_answer_is_correct_in_every_token(letters):
    batch = tokenize(letters, (question(("foxes", "coins"), ("now", "yet")),))
    behavior = evaluate_behavior(scripted(101), batch)
    assert behavior.answers == ("a0", "a1")
    assert behavior.correct.tolist() == [[True, True]]
    assert behavior.logit_diff.tolist() == [[2.0, 2.0]]
    assert letters.convert_ids_to_tokens(behavior.predicted[0].tolist()) == ["f", "n"]


@pytest.mark.parametrize("error", range(3, 13))
def test_one_wrong_token_makes_only_its_own_answer_wrong(letters, error):
    """The text is "Say foxes now"; position p predicts token p + 1."""
    batch = tokenize(letters, (question(("foxes", "coins"), ("now", "yet")),))
    assert "".join(batch.tokens[0]) == "Say foxes now"
    wrong = (0, error - 1, letters.convert_tokens_to_ids("!"), 9.0)
    behavior = evaluate_behavior(scripted(101, wrong), batch)
    # The spaces at 3 and 9, which all outcomes share, are part of the answers.
    assert behavior.correct.tolist() == [[error not in range(3, 9), error not in range(9, 13)]]


def test_a_positive_logit_difference_does_not_make_an_answer_correct(letters):
    batch = tokenize(letters, (question(("foxes", "coins")),))
    at = int(batch.positions[0, 0])
    f, c, other = letters.convert_tokens_to_ids(["f", "c", "!"])
    behavior = evaluate_behavior(
        scripted(101, (0, at, other, 9.0), (0, at, c, -1.0), (0, at, f, 4.0)), batch
    )
    assert behavior.logit_diff.tolist() == [[5.0]]
    assert behavior.correct.tolist() == [[False]]
    assert behavior.predicted.tolist() == [[other]]


def test_padding_does_not_change_the_behavior(own):
    questions = pattern("take-away").sample_questions(12, seed=4)
    model = tiny("llama", vocab_size=len(own))
    batch = tokenize(own, questions)
    assert not batch.mask.all()
    together = evaluate_behavior(model, batch)
    for row, one in enumerate(questions):
        alone = evaluate_behavior(model, tokenize(own, (one,)))
        torch.testing.assert_close(together.logit_diff[row], alone.logit_diff[0], atol=1e-5, rtol=0)
        assert torch.equal(together.predicted[row], alone.predicted[0])
        assert torch.equal(together.correct[row], alone.correct[0])


def test_the_batch_size_changes_nothing(own):
    questions = pattern("take-away").sample_questions(7, seed=4)
    batch = tokenize(own, questions)
    errors = [(row, int(batch.readouts[0].position[row]), 0, 9.0) for row in (0, 5)]
    whole = evaluate_behavior(scripted(len(own), *errors), batch)
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
    batch = tokenize(letters, (replace(question(outcomes), text=text),))
    (readout,) = batch.readouts
    assert int(readout.position[0]) + 1 == shared.stop
    assert evaluate_behavior(scripted(len(letters)), batch).correct.all()
    for position in shared:
        wrong = (0, position - 1, letters.convert_tokens_to_ids("!"), 9.0)
        behavior = evaluate_behavior(scripted(len(letters), wrong), batch)
        assert not behavior.correct.any()
        # The logit difference is read at the first differing token.
        assert behavior.logit_diff.tolist() == [[2.0]]


# Numbers digit by digit.


def sum_of(*outcomes):
    return Question(
        "5+9=", "ours", "ours", (), "digits", (("a0", outcomes[0]),), (("a0", outcomes),), ()
    )


def scripted_digits(letters, *script):
    tokens = [(0, position, letters.convert_tokens_to_ids(t), v) for position, t, v in script]
    config = {"vocab": 101, "script": tokens}
    return Scripted("scripted", "test", SHAPE, letters, None, config)


def test_a_number_is_correct_only_if_all_its_digits_are(letters):
    """ "5+9= 14": the first digit is read at 4, the second at 5."""
    batch = tokenize(letters, (sum_of("14", "15", "4"),))
    assert "".join(batch.tokens[0]) == "5+9= 14"
    assert evaluate_behavior(scripted_digits(letters), batch).correct.item()
    for position, digit in ((4, "4"), (5, "5")):
        model = scripted_digits(letters, (position, digit, 9.0))
        assert not evaluate_behavior(model, batch).correct.item()


def test_a_number_that_goes_on_is_another_number(letters):
    """ "4" where the model says "42" is wrong, and "4." is right."""
    batch = tokenize(letters, (sum_of("4", "5"),))
    for following, right in (("2", False), (".", True)):
        model = scripted_digits(letters, (5, following, 9.0))
        assert evaluate_behavior(model, batch).correct.item() is right


def test_an_answer_is_preferred_where_it_beats_each_foil_at_its_own_digit(letters):
    """14 against 15 at the second digit, behind a given 1; against 4 at the first."""
    batch = tokenize(letters, (sum_of("14", "15", "4"),))
    silent = (4, "!", 9.0), (5, "!", 9.0)
    first, second = (4, "4", 8.0), (5, "5", 8.0)
    for script, preferred in (((), True), ((first,), False), ((second,), False)):
        behavior = evaluate_behavior(scripted_digits(letters, *silent, *script), batch)
        assert not behavior.correct.item()
        assert behavior.preferred.item() is preferred


def test_questions_are_answered_as_their_batch(own):
    model = tiny("llama-gqa", vocab_size=len(own))
    object.__setattr__(model, "tokenizer", own)
    questions = pattern("take-away").sample_questions(5, seed=0)
    expected, found = (evaluate_behavior(model, q) for q in (tokenize(own, questions), questions))
    assert torch.equal(found.logit_diff, expected.logit_diff)
    assert evaluate_behavior(model, questions[0]).correct.shape == (1, 2)


def test_texts_without_answers_have_no_behavior(own):
    model = tiny("llama-gqa", vocab_size=len(own))
    with pytest.raises(BatchError, match="0 answers found, which the behavior is measured on"):
        evaluate_behavior(model, tokenize(own, "two foxes"))
