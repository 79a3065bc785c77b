"""Scorecards: rows that are known in advance, and relatives that are refused."""

from math import isnan

import pytest

from probes.errors import ModelError
from probes.experiments.family.accuracy import all_axis_questions, evaluate_axes
from probes.experiments.scorecard import (
    ScorecardSettings,
    prepare_scorecard_reference,
    scorecard,
)
from probes.models.model import load, wrap
from probes.testing.tiny_models import tiny_hf


@pytest.fixture(scope="module")
def reference():
    settings = ScorecardSettings(bases=8, prompts=48, per_cell=1, seed=3)
    return prepare_scorecard_reference("distilled", settings=settings)


@pytest.fixture(scope="module")
def own_row(reference):
    return scorecard(reference, "distilled")


def test_a_parent_has_zero_divergence_from_itself(own_row):
    assert own_row.divergence.value == pytest.approx(0, abs=1e-9)
    assert own_row.model == "distilled"
    parts = [own_row.operation, own_row.x, own_row.y, own_row.object]
    assert own_row.mean_interchange_accuracy.value == pytest.approx(
        sum(part.value for part in parts) / 4
    )


def test_accuracy_of_a_row_is_the_accuracy_of_a_model_card(own_row):
    model = load("distilled")
    questions = all_axis_questions(model.tokenizer, per_cell=1, seed=3)
    card = {
        score.axis: score.accuracy
        for score in evaluate_axes(model, questions, seed=3)
        if score.answer == "number" and (score.pattern == "both" or score.axis == "nouns")
    }
    assert {axis: getattr(own_row, axis) for axis in card} == card
    assert len(card) == 5


def test_circuit_faithfulness_is_measured_in_models_of_the_same_shape(reference, own_row):
    other = scorecard(reference, "distilled-narrow").row()
    assert own_row.circuit_faithfulness.value > 0.5
    assert all(
        isnan(other[part])
        for part in (
            "circuit_faithfulness",
            "circuit_faithfulness_low",
            "circuit_faithfulness_high",
        )
    )
    assert other["divergence_low"] > 0


def test_a_relative_with_another_tokenizer_is_refused(reference, letters):
    hf_model = tiny_hf("llama", 0, vocab_size=len(letters))
    other = wrap(hf_model, name="letters", tokenizer=letters)
    with pytest.raises(ModelError, match="different tokenizers"):
        scorecard(reference, other)
