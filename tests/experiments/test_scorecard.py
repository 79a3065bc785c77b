"""A relative's row beside its parent: what must come out, and what is refused."""

from math import isnan

import pytest

from probes.errors import ModelError
from probes.experiments.family.accuracy import all_axis_questions, evaluate_axes
from probes.experiments.scorecard import prepare_scorecard_reference, scorecard
from probes.models.model import load, wrap
from probes.testing.tiny_models import tiny_hf


@pytest.fixture(scope="module")
def yard():
    return prepare_scorecard_reference("distilled", bases=8, prompts=48, per_cell=1, seed=3)


@pytest.fixture(scope="module")
def own_row(yard):
    return scorecard(yard, "distilled")


def test_a_parent_is_no_distance_from_itself(own_row):
    assert own_row.divergence.value == pytest.approx(0, abs=1e-9)
    assert own_row.model == "distilled"
    parts = [own_row.operation, own_row.x, own_row.y, own_row.object]
    assert own_row.mean_interchange_accuracy.value == pytest.approx(
        sum(part.value for part in parts) / 4
    )


def test_accuracy_of_a_row_is_the_accuracy_that_a_card_would_tell(own_row):
    model = load("distilled")
    asked = all_axis_questions(model.tokenizer, per_cell=1, seed=3)
    told = {
        score.axis: score.accuracy
        for score in evaluate_axes(model, asked, seed=3)
        if score.answer == "number" and (score.pattern == "both" or score.axis == "nouns")
    }
    assert {axis: getattr(own_row, axis) for axis in told} == told
    assert len(told) == 5


def test_a_circuit_is_held_only_against_models_of_its_shape(yard, own_row):
    other = scorecard(yard, "distilled-narrow").row()
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


def test_a_relative_that_reads_other_tokens_is_refused(yard, letters):
    hf_model = tiny_hf("llama", 0, vocab_size=len(letters))
    other = wrap(hf_model, name="letters", tokenizer=letters)
    with pytest.raises(ModelError, match="different tokenizers"):
        scorecard(yard, other)
