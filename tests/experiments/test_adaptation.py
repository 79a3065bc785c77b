"""A word is new where nothing knows it, and steps are counted until it works."""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from probes.compression.derived_model import DerivedModel, load_parent
from probes.errors import ModelError, PatternError
from probes.experiments.adaptation.adapt import Adaptation, WordAdaptation, adapt
from probes.experiments.adaptation.new_words import (
    check_words,
    prepare_word,
    token_ids,
    unused_words,
)
from probes.prompts.catalog import pattern


@cache
def scratch():
    return load_parent("scratch")


@cache
def learned():
    return adapt(scratch(), words()[:5], rates=(2e-4, 4e-4), texts=16, held_out=24, max_steps=16)


@cache
def words():
    return unused_words(scratch().tokenizer)


def test_fresh_words_are_one_token_that_no_text_holds():
    tokenizer = scratch().tokenizer
    nouns = {t for n in pattern("take-away").lexicon.words("noun") for t in token_ids(tokenizer, n)}
    assert len(words()) >= 8
    for word in words():
        (token,) = token_ids(tokenizer, f" {word}")
        assert token not in nouns


def test_a_lesson_judges_by_numbers_that_it_did_not_teach():
    asked = [pattern("take-away")]
    lesson = prepare_word(scratch(), asked, words()[0], (16, 4, 8, 12), 0)
    taught = {scratch().tokenizer.decode(row) for row in lesson.rows}
    judged = {scratch().tokenizer.decode(row[row > 2]) for row in lesson.word_questions.ids}
    assert len(lesson.rows) == 16
    assert all(lesson.token in row for row in lesson.rows)
    assert bool((lesson.word_questions.ids == lesson.token).any(-1).all())
    assert not bool((lesson.other_questions.ids == lesson.token).any())
    assert not taught & judged


def test_a_lesson_is_the_same_for_one_seed_only():
    asked = [pattern("take-away")]
    one, same, other = (
        prepare_word(scratch(), asked, words()[0], (8, 4, 8, 8), seed).rows for seed in (0, 0, 1)
    )
    assert one == same != other


def test_a_small_model_takes_up_a_word_in_a_few_steps_and_keeps_the_others():
    found = learned()
    assert found.learned == len(found.words) == 2
    assert 1 <= found.steps.low <= found.steps.value <= found.steps.high <= 16
    assert found.mean_over_words("before").value < 0.5 < 0.9 <= found.mean_over_words("after").value
    assert found.mean_over_words("retention_change").value > -0.2


def test_the_words_that_chose_the_rate_are_not_counted():
    found = learned()
    assert [trial.noun for trial in found.words] == list(words()[3:5])
    assert set(found.rate_search) == {2e-4, 4e-4}
    assert found.rate_search[found.rate] == min(found.rate_search.values())


def test_the_model_that_was_given_is_not_changed():
    before = copy.deepcopy(scratch().hf_model.state_dict())
    learned()
    after = scratch().hf_model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_is_told_in_a_row_for_each_word():
    table = learned().table()
    assert list(table.noun) == list(words()[3:5])
    assert "steps" in learned().summary()


def test_a_word_that_never_worked_counts_as_the_most_steps():
    trials = (
        WordAdaptation("a", 2.0, 0.0, 1.0, 1.0, 0.0, 0.0),
        WordAdaptation("b", np.inf, 0.0, 0.2, 1.0, -0.5, 0.0),
    )
    found = Adaptation("m", 1e-3, trials, 10, {1e-3: 5.0})
    assert (found.steps.value, found.learned) == (6.0, 1)
    assert found.mean_over_words("retention_change").value == -0.25


def test_words_that_are_known_or_long_or_few_are_refused():
    tokenizer, some = scratch().tokenizer, list(words()[:3])
    with pytest.raises(PatternError, match="known"):
        check_words([*some, "foxes"], tokenizer)
    with pytest.raises(PatternError, match="tokens long"):
        check_words([*some, "zzyzx"], tokenizer)
    with pytest.raises(PatternError, match="3 choose the learning rate"):
        adapt(scratch(), some)


def test_numbers_that_ask_for_nothing_and_models_without_tokenizer_are_refused():
    asked: list[dict[str, Any]] = [
        {"texts": 0},
        {"max_steps": 0},
        {"rates": ()},
        {"rates": (-1e-3,)},
    ]
    for wrong in asked:
        with pytest.raises(ModelError, match="1 or more"):
            adapt(scratch(), words()[:5], **wrong)
    bare = DerivedModel("bare", scratch().hf_model, None, scratch().provenance)
    with pytest.raises(ModelError, match="no tokenizer"):
        adapt(bare)
