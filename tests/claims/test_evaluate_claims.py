"""The whole proof on planted models: each verdict is what was planted, for the reason planted."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from probes.claims.run import evaluate_claims
from probes.errors import GateError, PatternError, ProbeError
from probes.models.model import random_init
from probes.testing.planted_patterns import planted_fox
from probes.testing.tiny_models import hook_count


@cache
def fox(kind="template"):
    return planted_fox(kind)


@cache
def proof(kind):
    return evaluate_claims(fox(kind).model, fox(kind).pattern, bases=40, nulls=1)


def against(kind, claim):
    """The deciding tests that speak against a claim."""
    return [t.name for t in proof(kind).verdict(claim).tests if t.is_deciding and t.passed is False]


# What is refused, and says what to do.


def test_a_model_without_the_behavior_is_refused_with_what_to_do():
    null = random_init(fox().model, seed=0)
    with pytest.raises(GateError, match="choose a model or a pattern whose gate is open"):
        evaluate_claims(null, fox().pattern, bases=8, nulls=0)


@pytest.mark.slow
def test_outcomes_that_collide_are_refused_before_anything_is_proved():
    """From 2 to 6 there are no two sums of which all mixtures differ."""
    pattern = fox().pattern
    narrow = replace(pattern, lexicon=replace(pattern.lexicon, number_range=(0, 6)))
    with pytest.raises(PatternError):
        evaluate_claims(fox().model, narrow, bases=8, nulls=0)


# The verdicts.


@pytest.mark.slow
def test_the_template_holds_by_every_deciding_test():
    for claim in ("H1", "H2", "H3"):
        found = proof("template").verdict(claim)
        assert found.label == "holds", found.reason
        assert all(test.passed for test in found.tests if test.is_deciding)
    assert (
        proof("template").direction_comparison.other_direction.value,
        proof("template").subspace_search.min_dimensions,
    ) == (1, 1)


@pytest.mark.slow
def test_a_state_for_each_verb_fails_by_verbs_that_were_not_fitted_on():
    assert proof("lexical").verdict("H1").label == "fails"
    assert against("lexical", "H1") == ["verbs not fitted on"]


@pytest.mark.slow
def test_a_table_fails_by_the_sums_that_it_never_saw():
    assert proof("lookup").gates[0].state == "partial"
    assert proof("lookup").verdict("H1").label == "fails"
    assert against("lookup", "H1") == ["untrained cells"]


@pytest.mark.slow
def test_a_code_for_each_noun_fails_by_other_objects_and_is_the_same_up_to_a_rotation():
    assert proof("rotated").verdict("H1").label == "fails"
    assert "same and other objects alike" in against("rotated", "H1")
    found = proof("rotated").verdict("H3")
    assert (found.label, "up to a rotation" in found.reason) == ("fails", True)
    aligned = proof("rotated").direction_comparison
    assert aligned.other_direction.high < 0.1
    assert aligned.rotated_direction.low > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["template", "lexical", "lookup", "rotated"])
def test_a_model_of_no_family_has_nothing_before_it(kind):
    found = proof(kind).verdict("H4")
    assert found.label == "cannot tell"
    assert "no base model" in found.tests[0].meaning_if_failed
    assert (
        proof(kind).base_comparison,
        proof(kind).two_object_dissociation,
        proof(kind).binding,
    ) == (None, None, ())


# What it leaves behind.


@pytest.mark.slow
def test_a_proof_is_json_and_is_saved_whole(tmp_path):
    found = proof("template")
    numbers = found.to_dict()
    assert json.loads(json.dumps(numbers, allow_nan=False)) == json.loads(json.dumps(numbers))
    assert [v["claim"] for v in numbers["verdicts"]] == ["H1", "H2", "H3", "H4", "H5"]
    place = tmp_path / "proof.json"
    place.write_text("x" * 10_000_000)
    found.save(place)
    # A file that was longer leaves nothing behind.
    assert "template" in json.dumps(json.loads(place.read_text()))
    assert [p.name for p in tmp_path.iterdir()] == ["proof.json"]


@pytest.mark.slow
def test_a_proof_leaves_the_dice_the_hooks_and_the_weights_as_they_were():
    model = planted_fox("template").model
    weights = [weight.clone() for weight in model.bridge.parameters()]
    dice, hooks = torch.get_rng_state(), hook_count(model)
    first = evaluate_claims(model, fox().pattern, bases=10, nulls=1)
    assert torch.equal(torch.get_rng_state(), dice)
    assert hook_count(model) == hooks
    assert all(map(torch.equal, weights, model.bridge.parameters()))
    assert first.verdict("H1").claim == "H1"
    with pytest.raises(ProbeError, match="no claim 'H9'"):
        first.verdict("H9")
