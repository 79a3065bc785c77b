"""Directions across objects and verbs, and between models: planted truths and exact identities."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from probes.claims.base_model import (
    BaseComparisonSettings,
    _check_comparable,
    compare_with_base,
)
from probes.claims.plan import ClaimSettings
from probes.claims.units import compare_objects
from probes.errors import ModelError, PatternError
from probes.interventions import confounds
from probes.interventions.confounds import (
    distractor_sentence,
    operation_free_question,
    unseen_verbs,
    verb_groups,
)
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.subspaces import directions
from probes.interventions.subspaces.das import Subspace
from probes.interventions.subspaces.directions import (
    DirectionSettings,
    compare_directions,
    cross_model_hits,
    operation_direction,
    patch_direction,
)
from probes.models.model import load
from probes.models.site import Site, joined_roles
from probes.observe.behavior import Behavior
from probes.observe.gate import answer_questions
from probes.prompts.catalog import list_patterns
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.testing.planted_patterns import MINUS, PLUS, planted_fox
from probes.testing.tiny_models import tiny

HERE = Site(1, "resid", "op")


@cache
def fox(kind="template"):
    return planted_fox(kind)


@cache
def runs(kind="template", seed=0):
    drawn = sample_interchange_pairs(
        fox().pattern, 12, tokenizers=(fox().model.tokenizer,), seed=seed
    )
    return run_interchange_pairs(fox(kind).model, drawn, joined_roles={"op+y": "op y"})


def pairs(count):
    pattern = fox().pattern
    return replace(pattern, lexicon=replace(pattern.lexicon, verbs=pattern.lexicon.verbs[:count]))


def test_a_direction_of_all_dimensions_does_what_the_whole_state_does():
    every = Subspace(1, "op", "means", torch.eye(runs().clean.resid.shape[-1]))
    whole = interchange_intervention(runs(), [HERE]).is_outcome("operation")[0]
    assert np.array_equal(patch_direction(runs(), every), whole)
    assert whole.all()


def test_a_direction_in_which_no_state_differs_turns_nothing():
    quiet = operation_direction(runs(), HERE).basis
    other = torch.zeros_like(quiet)
    still = (runs().states(HERE) == runs().states(HERE, "other")).all(0).nonzero()[0, 0]
    other[0, still] = 1
    assert not patch_direction(runs(), Subspace(1, "op", "means", other)).any()


def test_the_means_direction_is_the_planted_state_and_turns_other_prompts():
    found = operation_direction(runs(), HERE)
    assert found.basis[0, list(fox().state)].abs().sum() > 0.99
    assert patch_direction(runs(seed=1), found).all()


def test_a_joined_site_is_cut_into_its_roles_and_exchanged_as_one():
    assert joined_roles(Site(1, "resid", "op+y")) == {"op+y": "op y"}
    assert joined_roles(HERE) == {}
    found = interchange_intervention(runs(), [Site(1, "resid", "op+y")])
    assert found.is_outcome("operation + y").all()


@pytest.mark.parametrize(
    ("kind", "raw"), [("template", 1), pytest.param("rotated", 0, marks=pytest.mark.slow)]
)
def test_another_objects_direction_serves_as_it_is_or_only_rotated(kind, raw):
    found = compare_directions(fox(kind).model, fox().pattern, HERE, DirectionSettings(1, bases=10))
    assert (
        found.own_direction.value,
        found.other_direction.value,
        found.rotated_direction.value,
    ) == (1, raw, 1)
    assert found.difference.value == found.rotation_gain.value == 1 - raw
    assert found.angles[0] == pytest.approx(0 if raw else 90, abs=10)
    assert len(found.object_pairs) == len(found.angles) == 1
    assert found.object_pairs[0][0] != found.object_pairs[0][1]


@pytest.mark.slow
def test_a_few_prompts_do_not_show_that_there_is_no_difference():
    """Of ten prompts none differs: up to 0.28 of all may (Wilson)."""
    found = compare_directions(fox().model, fox().pattern, HERE, DirectionSettings(1, bases=10))
    assert found.difference.high > 0.1


def with_nouns(*nouns):
    pattern = find_pattern("take-away")
    choices = tuple(
        (kind, nouns if kind == "noun" else words) for kind, words in pattern.lexicon.choices
    )
    return replace(pattern, lexicon=replace(pattern.lexicon, choices=choices))


def test_nouns_are_paired_with_those_of_as_many_tokens_however_many_these_are():
    model = load("distilled")
    sizes = [
        len(model.tokenizer.tokenize(f" {noun}")) for noun in ("foxes", "raincoats", "peacocks")
    ]
    assert sizes[0] < sizes[1] == sizes[2]
    settings = DirectionSettings(bases=10)
    found = compare_directions(model, with_nouns("foxes", "raincoats", "peacocks"), HERE, settings)
    assert [set(pair) for pair in found.object_pairs] == [{"raincoats", "peacocks"}]


def test_nouns_without_another_one_as_long_are_refused_and_leave_the_claim_out():
    model, pattern = load("distilled"), with_nouns("foxes", "raincoats")
    with pytest.raises(PatternError, match=r"No two objects .* foxes \(1\), raincoats \(2\)"):
        compare_directions(model, pattern, HERE)
    found, reason = compare_objects(model, pattern, HERE, ClaimSettings())
    assert found is None
    assert reason.startswith("No two objects of 'take-away'")


# Unseen verbs.


@pytest.mark.parametrize(
    ("kind", "share"), [("template", 1), pytest.param("lexical", 0, marks=pytest.mark.slow)]
)
def test_with_two_pairs_of_verbs_each_is_judged_by_the_other(kind, share):
    found = unseen_verbs(fox(kind).model, pairs(2), HERE, bases=6)
    assert found.verb_groups == (("lose", "find"), ("sell", "buy"))
    assert (found.site.value, found.embedding.value) == (share, 0)
    assert found.gain.value == share
    assert {pair: e.value for pair, e in found.by_pair.items()} == {
        "lose / find": share,
        "sell / buy": share,
    }
    # 6 prompts have an interval from 0.61 on, so that further ones are drawn for each pair.
    assert all(e.high - e.low < 0.14 for e in found.by_pair.values())


def test_one_pair_of_verbs_leaves_none_to_fit_on():
    with pytest.raises(PatternError):
        unseen_verbs(fox().model, pairs(1), HERE, bases=4)


def test_each_pair_of_verbs_is_a_group_unless_it_shares_a_word():
    assert verb_groups(fox().pattern) == [list(p) for p in zip(MINUS, PLUS, strict=True)]
    groups = verb_groups(list_patterns()["take-away"])
    words = [{word for verb in group for word in verb.split()} for group in groups]
    assert all(not a & b for n, a in enumerate(words) for b in words[:n])
    said = sorted(verb for group in groups for verb in group)
    lexicon = list_patterns()["take-away"].lexicon
    every = [dict(forms)["base"] for pair in lexicon.verbs for _, forms in pair]
    assert said == sorted(every)


def test_a_pattern_without_fillers_has_no_distractor_sentence():
    assert distractor_sentence(fox().model, fox().pattern) is None


def test_only_fillers_that_name_a_verb_leave_no_sentence_to_compare_the_distractor_with():
    pattern = find_pattern("take-away")
    choices = dict(pattern.lexicon.choices) | {"filler": ("They take away the trash.",)}
    lexicon = replace(pattern.lexicon, choices=tuple(choices.items()))
    assert distractor_sentence(fox().model, replace(pattern, lexicon=lexicon)) is None


def test_what_is_wrong_without_a_distractor_sentence_says_nothing_about_it(monkeypatch):
    """A model that knows its answer by the numbers, whatever the sentence between them."""

    def answer(model, questions):
        right = torch.tensor([[one["x"] > one["y"], True] for one in questions])
        predicted = torch.zeros(right.shape, dtype=torch.long)
        return Behavior(model.name, ("number", "noun"), right, right.float(), predicted, right)

    monkeypatch.setattr(confounds, "answer_questions", answer)
    found = distractor_sentence(load("distilled"), find_pattern("take-away"), prompts=64)
    assert 0 < found.right < found.asked == 64
    assert found.accuracy.value == 1


def test_a_distractor_sentence_is_compared_with_one_without_a_verb_in_its_place(monkeypatch):
    """ "The shop is closed today." has the letters of "lose", and no verb of the pattern."""
    asked = []

    def answer(model, questions):
        asked.append(questions)
        return answer_questions(model, questions)

    monkeypatch.setattr(confounds, "answer_questions", answer)
    distractor_sentence(load("distilled"), find_pattern("take-away"), prompts=16)
    misled, plain = asked
    assert "The shop is closed today." in {one["filler"] for one in plain}
    for one, other in zip(misled, plain, strict=True):
        assert one["filler"] == "They take away the trash."
        assert "away" not in other["filler"]
        assert one.text.replace(one["filler"], other["filler"]) == other.text


def test_a_number_that_was_wrong_before_the_interchange_does_not_count():
    """Asked for y, the planted model gives x - y: it is right where x is twice y."""
    pattern = fox().pattern
    answers = tuple((name, "y" if name == "number" else rule) for name, rule in pattern.answers)
    opposite = replace(pattern.opposite, answers=answers)
    asked = replace(pattern, answers=answers, opposite=opposite)
    changed, unchanged = (
        operation_free_question(fox().model, asked, Site(1, "resid", role), pairs=64)
        for role in ("op", "thing")
    )
    assert 0 < changed.right == unchanged.right < changed.asked / 2
    assert (changed.accuracy.value, unchanged.accuracy.value) == (0, 1)


# A tuned model and its base model.


def test_a_models_own_state_is_that_of_the_source_and_changes_all():
    assert cross_model_hits(runs(), runs(), HERE).all()


@pytest.mark.slow
def test_a_model_and_itself_have_one_direction_and_one_state():
    model, pattern = fox().model, fox().pattern
    settings = BaseComparisonSettings(bases=10, nulls=3)
    found = compare_with_base(model, model, (pattern, pattern), HERE, settings)
    assert found.own_direction == found.base_direction
    assert (found.own_direction.value, found.difference.value, found.base_state.value) == (1, 0, 1)
    assert found.random_init_direction.value == 0
    assert found.base_heads == found.tuned_heads
    assert found.head_overlap.value == 1
    assert 0 <= found.head_overlap.low <= found.head_overlap.high == 1
    assert len(found.null_head_overlaps) == 3


def test_a_model_of_another_shape_is_no_base_model():
    model, pattern = fox().model, fox().pattern
    with pytest.raises(ModelError, match="was not tuned from"):
        compare_with_base(model, tiny("llama"), (pattern, pattern), HERE)
    other = tiny("llama", num_attention_heads=2, num_key_value_heads=2)
    with pytest.raises(ModelError, match=r"with 4 heads against .* with 2 heads"):
        _check_comparable(tiny("llama"), other, pattern, HERE)


def test_directions_of_a_bfloat16_model_are_not_rounded(monkeypatch):
    made = []
    monkeypatch.setattr(
        directions, "Subspace", lambda *parts: made.append(parts[-1]) or Subspace(*parts)
    )
    model = load("distilled", dtype="bfloat16")
    settings = DirectionSettings(bases=10, n_object_pairs=1)
    compare_directions(model, find_pattern("take-away"), HERE, settings)
    assert made
    assert {basis.dtype for basis in made} == {torch.float32}
