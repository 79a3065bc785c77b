"""Adaptation: new words are in no text, and steps are counted until a word is learned."""

import copy
from functools import cache

import numpy as np
import pytest
import torch

from probes.compression.derived_model import DerivedModel, load_parent
from probes.errors import ModelError, PatternError
from probes.experiments.adaptation.adapt import (
    Adaptation,
    WordAdaptation,
    adapt,
    evaluation_steps,
)
from probes.experiments.adaptation.new_words import (
    AdaptationSettings,
    check_words,
    prepare_word,
    token_ids,
    unused_words,
)
from probes.prompts.catalog import pattern

SMALL = AdaptationSettings(rates=(2e-4, 4e-4), texts=16, held_out=24, max_steps=16)


@cache
def scratch():
    return load_parent("scratch")


@cache
def learned():
    return adapt(scratch(), words()[:5], SMALL)


@cache
def words():
    return unused_words(scratch().tokenizer)


def test_new_words_are_one_token_that_is_in_no_text():
    tokenizer = scratch().tokenizer
    nouns = {t for n in pattern("take-away").lexicon.words("noun") for t in token_ids(tokenizer, n)}
    assert len(words()) >= 8
    for word in words():
        (token,) = token_ids(tokenizer, f" {word}")
        assert token not in nouns


def test_test_questions_of_a_word_are_not_among_its_training_texts():
    settings = AdaptationSettings(("take-away",), texts=16, batch=4, max_steps=8, held_out=12)
    word = prepare_word(scratch(), words()[0], settings, seed=0)
    training = {scratch().tokenizer.decode(row) for row in word.rows}
    test = {scratch().tokenizer.decode(row[row > 2]) for row in word.word_questions.ids}
    assert len(word.rows) == 16
    assert all(word.token in row for row in word.rows)
    assert bool((word.word_questions.ids == word.token).any(-1).all())
    assert not bool((word.other_questions.ids == word.token).any())
    assert not training & test


def test_the_texts_of_a_word_depend_on_the_seed():
    settings = AdaptationSettings(("take-away",), texts=8, batch=4, max_steps=8, held_out=8)
    one, same, other = (
        prepare_word(scratch(), words()[0], settings, seed=seed).rows for seed in (0, 0, 1)
    )
    assert one == same != other


def test_a_small_model_learns_a_word_in_a_few_steps_and_keeps_the_others():
    result = learned()
    assert result.learned == len(result.words) == 2
    assert 1 <= result.steps.low <= result.steps.value <= result.steps.high <= 16
    assert (
        result.mean_over_words("before").value < 0.5 < 0.9 <= result.mean_over_words("after").value
    )
    assert result.mean_over_words("retention_change").value > -0.2


def test_tuning_words_are_not_among_the_results():
    result = learned()
    assert [word.noun for word in result.words] == list(words()[3:5])
    assert set(result.rate_search) == {2e-4, 4e-4}
    assert result.rate_search[result.rate] == min(result.rate_search.values())


def test_the_given_model_is_not_changed():
    before = copy.deepcopy(scratch().hf_model.state_dict())
    learned()
    after = scratch().hf_model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_table_has_a_row_for_each_word():
    table = learned().table()
    assert list(table.noun) == list(words()[3:5])
    assert "steps" in learned().summary()


def test_a_word_that_is_not_learned_counts_as_the_most_steps():
    results = (
        WordAdaptation("a", 2.0, 0.0, 1.0, 1.0, 0.0, 0.0),
        WordAdaptation("b", np.inf, 0.0, 0.2, 1.0, -0.5, 0.0),
    )
    result = Adaptation("m", 1e-3, results, 10, {1e-3: 5.0})
    assert (result.steps.value, result.learned) == (6.0, 1)
    assert result.mean_over_words("retention_change").value == -0.25


def test_words_that_are_known_or_long_or_few_are_refused():
    tokenizer, some = scratch().tokenizer, list(words()[:3])
    with pytest.raises(PatternError, match="in the training texts"):
        check_words([*some, "foxes"], tokenizer)
    with pytest.raises(PatternError, match="tokens long"):
        check_words([*some, "zzyzx"], tokenizer)
    with pytest.raises(PatternError, match="3 choose the learning rate"):
        adapt(scratch(), some)


@pytest.mark.parametrize(
    "wrong", [{"texts": 0}, {"max_steps": 0}, {"rates": ()}, {"rates": (-1e-3,)}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ModelError, match="1 or more"):
        AdaptationSettings(**wrong)


def test_a_model_without_a_tokenizer_is_refused():
    bare = DerivedModel("bare", scratch().hf_model, None, scratch().provenance)
    with pytest.raises(ModelError, match="no tokenizer"):
        adapt(bare)


def test_the_last_evaluation_is_at_the_most_steps():
    assert evaluation_steps(512)[-3:] == (256, 384, 512)
    assert evaluation_steps(100)[-2:] == (96, 100)
    assert evaluation_steps(3000)[-4:] == (512, 1024, 2048, 3000)
    assert evaluation_steps(1) == (0, 1)
