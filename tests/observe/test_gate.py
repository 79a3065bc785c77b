"""Gates with few questions: too few to tell, and not an absent behavior."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from probes.circuits.task import require_open_gate
from probes.errors import GateError
from probes.models.model import load, wrap
from probes.observe.behavior import Behavior
from probes.observe.gate import (
    _margin,
    answer_questions,
    default_criterion,
    gate,
    gate_behavior,
    heuristic_hits,
)
from probes.prompts.catalog import pattern
from probes.stats.intervals import bootstrap_mean, proportion
from probes.testing.tiny_models import tiny_hf


def pairs_pattern(folder, count, answers=("she", "he")):
    lines = [
        {
            "clean": f"Girl {n} is here. Then",
            "counterfactual": f"Boy {n} is here. Then",
            "answer": answers[0].format(n),
            "counterfactual_answer": answers[1].format(n),
        }
        for n in range(count)
    ]
    path = folder / "gender.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return pattern(str(path))


def gate_of(given, correct, preferred=None, criterion="accuracy"):
    questions = given.sample_questions(len(correct), seed=0)
    assert len(questions) == len(correct)
    right = torch.tensor(correct)[:, None]
    preferred = right if preferred is None else torch.tensor(preferred)[:, None]
    numbers = torch.full((len(correct), 1), 2.0) + torch.arange(len(correct))[:, None] % 2
    behavior = Behavior("m", ("answer",), right, numbers, right.long(), preferred)
    (gate,) = gate_behavior(behavior, questions, seed=0, criterion=criterion)
    return gate


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("answers", [("she", "he"), ("{}", "1{}")])
def test_one_or_two_pairs_are_too_few_to_tell(tmp_path, pairs, answers):
    gate = gate_of(pairs_pattern(tmp_path, pairs, answers), [False] * (2 * pairs))
    assert gate.state == "too few to tell"
    assert not gate.has_behavior
    assert f"{2 * pairs} questions are too few to tell whether m has" in gate.too_few_reason


@pytest.mark.parametrize("criterion", ["choice", "logit-diff"])
def test_two_right_pairs_may_be_guessed(tmp_path, criterion):
    gate = gate_of(pairs_pattern(tmp_path, 2, ("she", "he")), [True] * 4, criterion=criterion)
    assert gate.state == "too few to tell"
    assert -1 <= gate.margin.low <= gate.margin.high <= 1


def test_wrong_answers_to_enough_pairs_close_the_gate(tmp_path):
    given = pairs_pattern(tmp_path, 12)
    assert gate_of(given, [False] * 24).state == "closed"
    assert gate_of(given, [True] * 24).state == "open"


def test_pairs_whose_correct_answers_would_not_open_the_gate_are_too_few(tmp_path):
    """Three pairs with two answers: even all six correct have a margin that reaches 0."""
    given = pairs_pattern(tmp_path, 3)
    gate = gate_of(given, [True] * 6)
    expected = "partial" if gate.margin.low > 0 else "too few to tell"
    assert gate.state == expected
    assert (gate_of(given, [False] * 6).state == "closed") == (gate.margin.low > 0)


def test_duplicate_pairs_do_not_narrow_the_interval(tmp_path):
    given = pairs_pattern(tmp_path, 12)
    path = tmp_path / "gender.jsonl"
    path.write_text("\n".join([path.read_text(encoding="utf-8")] * 4), encoding="utf-8")
    with pytest.warns(UserWarning, match="36 of 48 pairs are duplicates"):
        repeated = pattern(str(path))
    correct = (np.arange(24) % 3 > 0).tolist()
    assert repeated.user_pairs == given.user_pairs
    assert gate_of(repeated, correct).accuracy == gate_of(given, correct).accuracy


def test_a_trace_of_two_pairs_is_refused_as_too_few_and_not_as_absent(own, tmp_path):
    model = wrap(tiny_hf("llama", 0, vocab_size=len(own)), name="tiny", tokenizer=own)
    with pytest.raises(GateError, match=r"4 questions are too few to tell whether tiny has .*Give"):
        require_open_gate(model, pairs_pattern(tmp_path, 2), seed=0)


# What the gate asks.


def test_pairs_are_asked_for_a_choice_and_free_answers_for_accuracy(tmp_path):
    assert default_criterion(pairs_pattern(tmp_path, 2)) == "choice"
    assert default_criterion(pattern("take-away")) == "accuracy"


def test_an_answer_above_its_foil_opens_the_choice_gate_though_another_token_is_first(tmp_path):
    given = pairs_pattern(tmp_path, 12)
    gate = gate_of(given, [False] * 24, [True] * 24, "choice")
    assert (gate.state, gate.score.value, gate.accuracy.value) == ("open", 1.0, 0.0)
    assert (gate.chance, gate.heuristic_accuracy) == (0.5, 0.5)
    assert "answer above its foils 100%" in gate.sentence
    assert "chance 50%, whole answers right 0%: gate open." in gate.sentence
    assert gate_of(given, [False] * 24, [True] * 24).state == "closed"


def test_answers_above_their_foils_by_chance_close_the_choice_gate(tmp_path):
    by_chance = [n % 2 == 0 for n in range(24)]
    gate = gate_of(pairs_pattern(tmp_path, 12), [True] * 24, by_chance, "choice")
    assert gate.state == "closed"
    assert gate.closed_reason.startswith(
        "m does not have the behavior: answer of 'gender' has answ"
    )


def test_a_positive_logit_difference_opens_the_logit_diff_gate(tmp_path):
    given = pairs_pattern(tmp_path, 12)
    gate = gate_of(given, [False] * 24, [False] * 24, "logit-diff")
    assert gate.state == "open"
    assert gate.logit_diff.low > 0
    assert "logit difference 2.50" in gate.sentence


def test_gate_none_asks_nothing_and_says_so(tmp_path):
    gate = gate_of(pairs_pattern(tmp_path, 12), [False] * 24, criterion="none")
    assert (gate.state, gate.has_behavior, gate.is_passed) == ("not established", False, True)
    assert gate.notice.startswith("Behavior not established: m was not asked")
    assert gate_of(pairs_pattern(tmp_path, 12), [True] * 24).notice == ""


def test_a_choice_without_foils_is_refused():
    (question,) = pattern("take-away").sample_questions(1, seed=0)
    bare = replace(question, outcomes=tuple((n, (t,)) for n, t in question.answers))
    flags = torch.ones(1, 2, dtype=torch.bool)
    behavior = Behavior("m", ("number", "noun"), flags, flags.float(), flags.long(), flags)
    with pytest.raises(GateError, match="number of 'take-away' has no foils"):
        gate_behavior(behavior, [bare], seed=0, criterion="choice")


def test_either_name_of_the_prompt_is_a_heuristic(tmp_path):
    """Indirect objects: whoever says one of the two names is right half of the time."""
    names = [("Ann", "Bob"), ("Carl", "Dora"), ("Emma", "Finn"), ("Gina", "Hugo")]
    lines = [
        {
            "clean": f"When {a} and {b} met, {a} gave a cup to",
            "counterfactual": f"When {a} and {b} met, {b} gave a cup to",
            "answer": b,
            "counterfactual_answer": a,
        }
        for a, b in names
    ]
    path = tmp_path / "ioi.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    questions = pattern(str(path)).sample_questions(8, seed=0)
    hits = heuristic_hits(questions, "answer")
    assert hits["any outcome that the prompt names"].tolist() == [0.5] * 8
    assert hits["always Bob"].mean() == 1 / 8
    only = [replace(q, outcomes=(("answer", (q.answer("answer"), "Zoe")),)) for q in questions]
    # A single named outcome is the answer itself: copying it is the behavior.
    assert "any outcome that the prompt names" not in heuristic_hits(only, "answer")


# Pretrained models.


@pytest.mark.real
@pytest.mark.parametrize("name", ["ioi", "agreement"])
def test_pairs_are_judged_by_what_they_ask_on_a_pretrained_model(real_model, name):
    """SmolLM2 says "." before it agrees, but "is" is above "are" where the noun is singular."""
    model, given = real_model("smollm2"), pattern(name)
    (chosen,) = gate(model, given, prompts=40)
    (whole,) = gate(model, given, prompts=40, criterion="accuracy")
    assert (chosen.criterion, chosen.state) == ("choice", "open")
    assert chosen.accuracy == whole.accuracy
    if name == "agreement":
        assert whole.state != "open"
        assert whole.accuracy.high < chosen.score.low


@pytest.mark.real
def test_the_choice_of_a_pretrained_model_is_that_of_transformers(real_folder, real_model):
    questions = pattern("agreement").sample_questions(12, seed=0)
    behavior = answer_questions(real_model("smollm2"), questions)
    theirs = AutoModelForCausalLM.from_pretrained(
        real_folder("smollm2"), dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = real_model("smollm2").tokenizer
    for row, question in enumerate(questions):
        ids = tokenizer(question.text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = theirs(ids).logits[0, -1]
        answer, *foils = (
            logits[tokenizer(f" {text}")["input_ids"][0]]
            for text in dict(question.outcomes)["answer"]
        )
        assert bool(behavior.preferred[row, 0]) == all(answer > foil for foil in foils)
        assert bool(behavior.correct[row, 0]) == bool(answer == logits.max())


def test_a_margin_over_a_constant_chance_has_the_error_of_the_accuracy():
    """Twelve of twelve right have a margin with a width, as their accuracy has one."""
    right = np.ones(12, dtype=bool)
    found = _margin(right, np.full(12, 0.25), 0)
    assert found.value == found.high == 0.75
    assert found.low == pytest.approx(proportion(right).low - 0.25)
    wrong = _margin(~right, np.full(12, 0.25), 0)
    assert wrong.low == -0.25 < wrong.high == pytest.approx(proportion(~right).high - 0.25)
    varied = np.arange(12) % 2.0
    assert _margin(right, varied, 0) == bootstrap_mean(1 - varied, seed=0, bounds=(-1, 1))


def test_a_gate_is_asked_of_a_model_and_a_pattern_by_their_names():
    expected = gate(load("full"), pattern("take-away"), prompts=20)
    assert gate("full", "take-away", prompts=20) == expected
