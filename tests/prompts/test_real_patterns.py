"""Shipped patterns on pretrained models: `PROBES_REAL_MODELS=FOLDER pytest -m real`."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.real_patterns import plain_answer
from probes.observe.gate import answer_questions
from probes.prompts.catalog import pattern
from probes.prompts.tokens.pair_batch import tokenizable_by

pytestmark = pytest.mark.real

# Least fraction of questions in which the answer beats each foil.
CHOICES = {"ioi": 0.9, "induction": 0.6, "greater-than": 0.7, "simple-take-away": 0.0}


@pytest.fixture(scope="module")
def plain(real_folder):
    model = AutoModelForCausalLM.from_pretrained(
        real_folder("smollm2"), dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@pytest.mark.parametrize("name", CHOICES)
def test_answers_and_logit_differences_are_those_of_transformers(name, real_model, plain):
    model, shipped = real_model("smollm2"), pattern(name)
    questions = shipped.sample_questions(6, seed=0, keep=tokenizable_by(model.tokenizer))
    behavior = answer_questions(model, questions)
    with torch.no_grad():
        expected = [plain_answer(plain, model.tokenizer, question) for question in questions]
    greedy, differences, chosen = map(list, zip(*expected, strict=True))
    assert behavior.correct[:, 0].tolist() == greedy
    assert behavior.logit_diff[:, 0].tolist() == pytest.approx(differences, abs=1e-3)
    assert sum(chosen) / len(chosen) >= CHOICES[name]
