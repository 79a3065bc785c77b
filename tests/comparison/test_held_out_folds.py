"""What maps are fitted on holds no tested word, and what chooses a site is never judged."""

from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from probes.comparison.variables import stitching as grafting
from probes.comparison.variables.held_out_folds import HeldOutFolds, sample_held_out_folds
from probes.comparison.variables.stitching import find_variable_sites
from probes.errors import PatternError
from probes.interventions.confounds import verb_groups
from probes.interventions.site_search import search_words
from probes.models.site import Site
from probes.prompts.catalog import pattern
from probes.prompts.interchange_pairs import OBJECT, OPERATION, sample_interchange_pairs
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
def trials(request):
    return planted() if request.param == "planted" else request.getfixturevalue("shipped")


def sources(trials: HeldOutFolds):
    return [pair.counterfactual for pair in trials.interchange_pairs.other]


def spoken(question, variable):
    return str(question["op" if variable == OPERATION else variable])


def test_there_are_as_many_crossings_and_questions_as_asked_for_half_of_each_operation(trials):
    assert len(trials.interchange_pairs) == BASES
    assert len(trials.questions) == PROMPTS
    assert trials.variables == (OPERATION, "x", "y", OBJECT)
    sides = trials.labels(OPERATION)
    assert {sides.count(side) for side in sides} == {PROMPTS // 2}


def test_no_tested_noun_is_in_any_question_wherever_it_may_stand(trials):
    tested = {str(source["thing"]) for source in sources(trials)}
    assert len(tested) > 1
    for question in trials.questions:
        assert not tested & {str(value) for _, value in question.slots}


@pytest.mark.parametrize("variable", [OPERATION, "x", "y"])
def test_what_a_fold_is_judged_on_is_in_none_of_its_fitted_rows(trials, variable):
    for fold in trials.by_variable[variable]:
        judged = {spoken(sources(trials)[row], variable) for row in np.flatnonzero(fold.test)}
        fitted = {spoken(trials.questions[row], variable) for row in np.flatnonzero(fold.train)}
        assert judged <= set(fold.forms)
        assert fitted
        assert not fitted & set(fold.forms)


@pytest.mark.parametrize("variable", [OPERATION, "x", "y", OBJECT])
def test_every_crossing_is_judged_once_at_most(trials, variable):
    times = np.sum([fold.test for fold in trials.by_variable[variable]], axis=0)
    assert times.max() == 1
    assert np.array_equal(trials.test_mask(variable), times > 0)
    assert trials.test_mask(variable).sum() > BASES // 4


@pytest.mark.parametrize("variable", [OPERATION, "x", "y"])
def test_the_words_that_choose_a_site_are_never_judged(trials, variable):
    rows = np.flatnonzero(trials.site_search[variable])
    choosing = {spoken(trials.questions[row], variable) for row in rows}
    judged = {
        spoken(sources(trials)[row], variable) for row in np.flatnonzero(trials.test_mask(variable))
    }
    tested = {form for fold in trials.by_variable[variable] for form in fold.forms}
    assert choosing
    assert not choosing & (judged | tested)
    # Nothing else is left out: what is not judged is of the words that choose.
    left = {
        spoken(sources(trials)[row], variable)
        for row in np.flatnonzero(~trials.test_mask(variable))
    }
    known = {spoken(question, variable) for question in trials.questions}
    assert left & known <= choosing


def test_the_object_is_judged_in_all_crossings_by_a_map_that_is_fitted_on_all_questions(trials):
    (fold,) = trials.by_variable[OBJECT]
    assert fold.train.all()
    assert fold.test.all()
    assert 0 < trials.site_search[OBJECT].sum() < PROMPTS


def test_verbs_that_share_a_word_are_left_out_together(shipped):
    groups = [set(fold.forms) for fold in shipped.by_variable[OPERATION]]
    groups.append({
        shipped.question_forms(OPERATION)[row] for row in np.flatnonzero(shipped.site_search[OPERATION])
    })  # fmt: skip
    parts = [{word for form in group for word in form.split()} for group in groups]
    assert all(not one & two for one, two in combinations(parts, 2))
    assert {"take away", "give away", "pick up", "bring in"} in groups


def test_each_fold_leaves_out_both_sides_of_a_verb_pair():
    opposite: dict[str, str] = dict(zip(MINUS, PLUS, strict=True))
    for fold in planted().by_variable[OPERATION]:
        less = [form for form in fold.forms if form in opposite]
        assert {opposite[form] for form in less} == set(fold.forms) - set(less)


def test_the_largest_group_of_verbs_is_tested_wherever_it_stands_in_the_lexicon(own):
    asked = pattern("take-away")
    verbs = asked.lexicon.verbs
    last = tuple(pair for pair in verbs if "away" not in str(pair))
    turned = replace(
        asked, lexicon=replace(asked.lexicon, verbs=(*last, *(v for v in verbs if v not in last)))
    )
    assert len(verb_groups(turned)[-1]) == 4
    found = sample_held_out_folds(turned, tokenizers=(own,), bases=20, prompts=40)
    tested = {form for fold in found.by_variable[OPERATION] for form in fold.forms}
    assert {"take away", "give away"} <= tested


def test_labels_say_the_operation_and_forms_say_its_word():
    trials = planted()
    assert set(trials.labels(OPERATION)) == {"take-away", "get-more"}
    for label, form, question in zip(
        trials.labels(OPERATION), trials.question_forms(OPERATION), trials.questions, strict=True
    ):
        assert form == question["op"]
        assert (form in MINUS) == (label == "take-away")
    assert set(trials.source_forms(OPERATION)) <= set(PLUS)
    assert trials.labels("x") == trials.question_forms("x")
    assert trials.source_forms("y") == tuple(str(source["y"]) for source in sources(trials))
    assert trials.source_forms(OBJECT) == tuple(source["thing"] for source in sources(trials))


def test_the_same_seed_draws_the_same_and_another_seed_others():
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


@pytest.mark.parametrize("seed", range(3))
def test_no_crossing_is_among_those_that_find_the_sites(monkeypatch, seed):
    drawn = sample_held_out_folds(
        fox_pattern(), tokenizers=(words(),), bases=150, prompts=60, seed=seed
    )
    judged = {pair.clean.text for pair in drawn.interchange_pairs.other}
    # Drawn blindly, some would be: what keeps them out is no accident of these words.
    blind = sample_interchange_pairs(
        fox_pattern(), 75, tokenizers=(words(),), seed=seed + 2,
        allowed_words=search_words(fox_pattern()),
    )  # fmt: skip
    assert judged & {pair.clean.text for pair in blind.other}
    handed = []

    def spy(model, finding, variables, **more):
        handed.append(finding)
        return [Site(1, "resid", "op")] * len(variables)

    monkeypatch.setattr(grafting, "find_sites", spy)
    assert set(find_variable_sites(planted_fox("template").model, drawn, seed=seed)) == set(
        drawn.variables
    )
    (finding,) = handed
    assert len(finding) == 75
    for pairs in (finding.other, finding.same):
        assert not judged & {pair.clean.text for pair in pairs}


# What is refused.


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


def test_more_crossings_than_there_are_words_for_are_refused():
    narrow = fewer(number_range=(0, 12), verbs=fox_pattern().lexicon.verbs[:3])
    with pytest.raises(PatternError):
        sample_held_out_folds(narrow, tokenizers=(words(),), bases=100_000, prompts=20)
