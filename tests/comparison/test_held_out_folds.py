"""Held-out folds: no test word is fitted on, and words of the site search are not tested."""

from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from probes.comparison.variables import donors
from probes.comparison.variables.donors import find_variable_sites
from probes.comparison.variables.held_out_folds import HeldOutFolds, sample_held_out_folds
from probes.errors import PatternError
from probes.interventions.confounds import verb_groups
from probes.interventions.site_search import search_words
from probes.models.site import Site
from probes.prompts.catalog import pattern
from probes.prompts.interchange_pairs import OBJECT, OPERATION, BaseFilter, sample_interchange_pairs
from probes.testing.planted_patterns import MINUS, PLUS, fox_pattern, planted_fox

BASES, PROMPTS = 60, 240


@cache
def words():
    return planted_fox("template").model.tokenizer


@cache
def planted():
    return sample_held_out_folds(fox_pattern(), tokenizers=(words(),), bases=BASES, prompts=PROMPTS)


@pytest.fixture(scope="module")
def shipped(own):
    return sample_held_out_folds(
        pattern("take-away"), tokenizers=(own,), bases=BASES, prompts=PROMPTS
    )


@pytest.fixture(params=["planted", "shipped"])
def folds(request):
    return planted() if request.param == "planted" else request.getfixturevalue("shipped")


def sources(folds: HeldOutFolds):
    return [pair.counterfactual for pair in folds.interchange_pairs.other]


def form(question, variable):
    return str(question["op" if variable == OPERATION else variable])


def test_the_sizes_are_as_given_with_half_the_questions_for_each_operation(folds):
    assert len(folds.interchange_pairs) == BASES
    assert len(folds.questions) == PROMPTS
    assert folds.variables == (OPERATION, "x", "y", OBJECT)
    sides = folds.labels(OPERATION)
    assert {sides.count(side) for side in sides} == {PROMPTS // 2}


def test_no_test_noun_is_in_any_slot_of_any_question(folds):
    tested = {str(source["thing"]) for source in sources(folds)}
    assert len(tested) > 1
    for question in folds.questions:
        assert not tested & {str(value) for _, value in question.slots}


@pytest.mark.parametrize("variable", [OPERATION, "x", "y"])
def test_no_test_form_of_a_fold_is_in_its_training_questions(folds, variable):
    for fold in folds.by_variable[variable]:
        test_forms = {form(sources(folds)[row], variable) for row in np.flatnonzero(fold.test)}
        train_forms = {form(folds.questions[row], variable) for row in np.flatnonzero(fold.train)}
        assert test_forms <= set(fold.forms)
        assert train_forms
        assert not train_forms & set(fold.forms)


@pytest.mark.parametrize("variable", [OPERATION, "x", "y", OBJECT])
def test_every_interchange_pair_is_tested_at_most_once(folds, variable):
    times = np.sum([fold.test for fold in folds.by_variable[variable]], axis=0)
    assert times.max() == 1
    assert np.array_equal(folds.test_mask(variable), times > 0)
    assert folds.test_mask(variable).sum() > BASES // 4


@pytest.mark.parametrize("variable", [OPERATION, "x", "y"])
def test_the_words_of_the_site_search_are_never_tested(folds, variable):
    rows = np.flatnonzero(folds.site_search[variable])
    search_forms = {form(folds.questions[row], variable) for row in rows}
    test_forms = {
        form(sources(folds)[row], variable) for row in np.flatnonzero(folds.test_mask(variable))
    }
    tested = {form for fold in folds.by_variable[variable] for form in fold.forms}
    assert search_forms
    assert not search_forms & (test_forms | tested)
    # All other known words are tested.
    left = {
        form(sources(folds)[row], variable) for row in np.flatnonzero(~folds.test_mask(variable))
    }
    known = {form(question, variable) for question in folds.questions}
    assert left & known <= search_forms


def test_the_object_has_one_fold_with_all_questions_and_all_pairs(folds):
    (fold,) = folds.by_variable[OBJECT]
    assert fold.train.all()
    assert fold.test.all()
    assert 0 < folds.site_search[OBJECT].sum() < PROMPTS


def test_verbs_that_share_a_word_are_in_one_group(shipped):
    groups = [set(fold.forms) for fold in shipped.by_variable[OPERATION]]
    searched = np.flatnonzero(shipped.site_search[OPERATION])
    groups.append({shipped.question_forms(OPERATION)[row] for row in searched})
    parts = [{word for form in group for word in form.split()} for group in groups]
    assert all(not one & two for one, two in combinations(parts, 2))
    assert {"take away", "give away", "pick up", "bring in"} in groups


def test_each_fold_holds_out_both_sides_of_a_verb_pair():
    opposite: dict[str, str] = dict(zip(MINUS, PLUS, strict=True))
    for fold in planted().by_variable[OPERATION]:
        less = [form for form in fold.forms if form in opposite]
        assert {opposite[form] for form in less} == set(fold.forms) - set(less)


def test_the_largest_group_of_verbs_is_tested_in_any_order_of_the_lexicon(own):
    asked = pattern("take-away")
    verbs = asked.lexicon.verbs
    last = tuple(pair for pair in verbs if "away" not in str(pair))
    reordered = replace(
        asked, lexicon=replace(asked.lexicon, verbs=(*last, *(v for v in verbs if v not in last)))
    )
    assert len(verb_groups(reordered)[-1]) == 4
    found = sample_held_out_folds(reordered, tokenizers=(own,), bases=20, prompts=40)
    tested = {form for fold in found.by_variable[OPERATION] for form in fold.forms}
    assert {"take away", "give away"} <= tested


def test_labels_name_the_operation_and_forms_its_verb():
    folds = planted()
    assert set(folds.labels(OPERATION)) == {"take-away", "get-more"}
    for label, form, question in zip(
        folds.labels(OPERATION), folds.question_forms(OPERATION), folds.questions, strict=True
    ):
        assert form == question["op"]
        assert (form in MINUS) == (label == "take-away")
    assert set(folds.source_forms(OPERATION)) <= set(PLUS)
    assert folds.labels("x") == folds.question_forms("x")
    assert folds.source_forms("y") == tuple(str(source["y"]) for source in sources(folds))
    assert folds.source_forms(OBJECT) == tuple(source["thing"] for source in sources(folds))


def test_the_same_seed_samples_the_same_folds_and_another_seed_others():
    one, same, other = (
        sample_held_out_folds(fox_pattern(), tokenizers=(words(),), bases=20, prompts=60, seed=seed)
        for seed in (3, 3, 4)
    )
    assert one.questions == same.questions
    assert one.interchange_pairs == same.interchange_pairs
    for variable in one.variables:
        assert np.array_equal(one.site_search[variable], same.site_search[variable])
        assert all(
            a.forms == b.forms and np.array_equal(a.train, b.train)
            for a, b in zip(one.by_variable[variable], same.by_variable[variable], strict=True)
        )
    assert one.questions != other.questions
    assert one.interchange_pairs != other.interchange_pairs


@pytest.mark.parametrize("seed", [1, 3, 4])
def test_no_test_pair_is_used_for_finding_sites(monkeypatch, seed):
    drawn = sample_held_out_folds(
        fox_pattern(), tokenizers=(words(),), bases=150, prompts=60, seed=seed
    )
    test_texts = {pair.clean.text for pair in drawn.interchange_pairs.other}
    # Without the filter, some would be.
    unfiltered = sample_interchange_pairs(
        fox_pattern(),
        75,
        tokenizers=(words(),),
        seed=seed + 2,
        base_filter=BaseFilter(allowed_words=search_words(fox_pattern())),
    )
    assert test_texts & {pair.clean.text for pair in unfiltered.other}
    searched = []

    def spy(model, pairs, variables, **more):
        searched.append(pairs)
        return [Site(1, "resid", "op")] * len(variables)

    monkeypatch.setattr(donors, "find_sites", spy)
    assert set(find_variable_sites(planted_fox("template").model, drawn, seed=seed)) == set(
        drawn.variables
    )
    (search_pairs,) = searched
    assert len(search_pairs) == 75
    for pairs in (search_pairs.other, search_pairs.same):
        assert not test_texts & {pair.clean.text for pair in pairs}


# Errors.


def draw(asked, **more):
    return sample_held_out_folds(asked, tokenizers=(words(),), bases=8, prompts=20, **more)


def fewer(**changes):
    asked = fox_pattern()
    return replace(asked, lexicon=replace(asked.lexicon, **changes))


def test_too_few_nouns_are_refused():
    with pytest.raises(PatternError, match="3 nouns"):
        draw(fewer(choices=(("noun", ("foxes", "coins", "apples")),)))


def test_too_few_groups_of_verbs_are_refused():
    with pytest.raises(PatternError, match="2 groups of verbs"):
        draw(fewer(verbs=fox_pattern().lexicon.verbs[:2]))
    assert len(draw(fewer(verbs=fox_pattern().lexicon.verbs[:3])).by_variable[OPERATION]) == 2


def test_a_pattern_without_an_opposite_is_refused():
    with pytest.raises(PatternError, match="opposite"):
        draw(replace(fox_pattern(), opposite=None))


def test_more_pairs_than_the_words_allow_are_refused():
    lexicon = fox_pattern().lexicon
    few = tuple((kind, words[:4]) for kind, words in lexicon.choices)
    narrow = fewer(number_range=(0, 9), verbs=lexicon.verbs[:3], choices=few)
    with pytest.raises(PatternError):
        sample_held_out_folds(narrow, tokenizers=(words(),), bases=100_000, prompts=20)


def test_another_seed_holds_out_other_nouns_verbs_and_numbers():
    one, other = (
        sample_held_out_folds(fox_pattern(), tokenizers=(words(),), bases=30, prompts=60, seed=seed)
        for seed in (0, 1)
    )
    for variable in (OPERATION, "x"):
        groups = [{fold.forms for fold in drawn.by_variable[variable]} for drawn in (one, other)]
        assert groups[0] != groups[1]
    nouns = [{pair.clean["thing"] for pair in d.interchange_pairs.other} for d in (one, other)]
    assert nouns[0] != nouns[1]
