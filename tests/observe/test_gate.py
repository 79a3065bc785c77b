"""Gates with few questions: too few to tell, and not an absent behavior."""

import json

import numpy as np
import pytest
import torch

from probes.circuits.task import require_open_gate
from probes.errors import GateError
from probes.models.model import wrap
from probes.observe.behavior import Behavior
from probes.observe.gate import gate_behavior
from probes.prompts.catalog import pattern
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


def gate_of(given, correct):
    questions = given.sample_questions(len(correct), seed=0)
    assert len(questions) == len(correct)
    right = torch.tensor(correct)[:, None]
    behavior = Behavior("m", ("answer",), right, torch.zeros(len(correct), 1), right.long())
    (gate,) = gate_behavior(behavior, questions, seed=0)
    return gate


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("answers", [("she", "he"), ("{}", "1{}")])
def test_one_or_two_pairs_are_too_few_to_tell(tmp_path, pairs, answers):
    gate = gate_of(pairs_pattern(tmp_path, pairs, answers), [False] * (2 * pairs))
    assert gate.state == "too few to tell"
    assert not gate.has_behavior
    assert f"{2 * pairs} questions are too few to tell whether m has" in gate.too_few_reason


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
