"""The shipped models: nothing held out is in their corpus, and their cards are true."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from probes.compression.derived_model import load_parent
from probes.compression.distillation.trainer import collate
from probes.errors import MatchError, ModelError
from probes.experiments.family.accuracy import (
    AXES,
    all_axis_questions,
    axis_questions,
    evaluate_axes,
)
from probes.experiments.family.corpus import CorpusSettings, sample_texts
from probes.experiments.family.make import (
    _initial_model,
    make_members,
    make_once,
    pretraining_model,
)
from probes.experiments.family.recipes import COMPARED_WITH, NEGATIVE_CONTROL_TASKS, RECIPES, recipe
from probes.experiments.family.tokenizer import BOS, EOS, PAD, SPLIT_WORDS
from probes.experiments.family.train import family_corpus, has_family_tokenizer
from probes.files import data_folder, list_models
from probes.models.model import load
from probes.observe.gate import gate
from probes.prompts.catalog import list_patterns, pattern
from probes.prompts.held_out import family_split, valid_number_pairs

SHIPPED = [entry.name for entry in RECIPES if entry.shipped]


def test_a_model_that_several_need_at_once_is_made_by_one_of_them(tmp_path):
    made, path = [], tmp_path / "work" / "model"

    def make():
        made.append(path)
        time.sleep(0.1)
        path.mkdir()
        (path / "config.json").touch()

    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(lambda _: make_once(path, make), range(4))} == {path}
    assert made == [path]


@pytest.mark.parametrize("kind", ["statements", "questions"])
def test_no_held_out_cell_or_noun_is_in_the_corpus(kind):
    split, read = family_split(), 0
    for item in sample_texts(kind, 150, seed=0):
        for found in _readings(item.prompt, kind):
            read += 1
            assert not split.held_out_axes(found) & {"cell", "noun"}, item.text
    assert read >= 100


def _readings(text, kind):
    """Matches of a text, and of its rest after each sentence, with all patterns of its kind."""
    starts = [0, *(at + 2 for at in range(len(text)) if text.startswith(". ", at))]
    for name, entry in list_patterns().items():
        if name.endswith("-told") == (kind == "statements"):
            for start in starts:
                with suppress(MatchError):
                    yield entry.match(text[start:])


def test_fifteen_percent_of_the_cells_of_each_operation_are_held_out():
    split = family_split()
    for operation in ("minus", "plus"):
        held = [cell for cell in split.number_pairs if cell[0] == operation]
        assert len(held) == round(0.15 * len(valid_number_pairs(operation, 0, 20)))


def test_held_out_nouns_are_in_other_sentences():
    texts = " ".join(item.text for item in sample_texts("statements", 600, seed=1))
    assert all(noun in texts for noun in family_split().nouns)


def test_a_held_out_verb_and_a_held_out_frame_are_each_seen_separately():
    split = family_split()
    patterns = [pattern("take-away"), pattern("get-more")]
    sampled = [q for p in patterns for q in p.sample_questions(200, seed=0) if split.in_training(q)]
    for operation, verb, frame in split.combinations:
        own = [q for q in sampled if pattern(q.pattern).operation == operation]
        assert any(q["op"] == verb for q in own)
        assert any(q.template == frame for q in own)
        assert not any(q["op"] == verb and q.template == frame for q in own)


def test_the_corpus_is_the_same_for_the_same_seed():
    one, same, two = (list(sample_texts("questions", 50, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != two


def test_corpus_settings_have_their_effects():
    def texts(**settings):
        return [
            item.text
            for item in sample_texts("questions", 60, seed=0, settings=CorpusSettings(**settings))
        ]

    assert not any("My name is" in text for text in texts(ambiguous=0.0))
    assert all("My name is" in text for text in texts(ambiguous=1.0))
    rechecked = texts(recheck=1.0)
    assert all(" is " in text.split("Answer:")[1] for text in rechecked)
    assert not any(" less " in text for text in texts(recheck=0.0))
    assert all("foxes" in text for text in texts(nouns=1))


def test_numbers_are_one_token_and_a_third_of_the_words_split():
    own = AutoTokenizer.from_pretrained(data_folder() / "models" / "full")
    for number in range(100):
        assert len(own(f" {number}", add_special_tokens=False).input_ids) == 1
    lexicon = pattern("take-away").lexicon
    words = [*lexicon.words("noun"), *lexicon.words("name")]
    pieces = {word: len(own(f" {word}", add_special_tokens=False).input_ids) for word in words}
    whole = {split.replace(" ", "") for split in SPLIT_WORDS}
    assert all(pieces[word] == 1 for word in words if word not in whole)
    assert all(pieces[word] in (2, 3) for word in whole)
    assert len(whole) == pytest.approx(len(words) / 3, abs=1)
    assert (own.pad_token_id, own.bos_token_id, own.eos_token_id) == (PAD, BOS, EOS)


def test_training_skips_the_prompt_and_the_padding():
    rows = [{"input_ids": (1, 5, 6, 7, 2), "skipped": 3}, {"input_ids": (1, 5, 2), "skipped": 0}]
    batch = collate(rows, PAD)
    assert batch["labels"].tolist() == [[-100, -100, -100, 7, 2], [1, 5, 2, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_a_student_starts_as_the_first_and_third_layer_of_its_teacher(own, tmp_path):
    teacher = load_parent("full").hf_model
    student = _initial_model(recipe("distilled"), own, data_folder() / "models", tmp_path)
    layers, teacher_layers = student.model.layers, teacher.model.layers
    assert len(layers) == 2
    for new, old in ((0, 0), (1, 2)):
        assert torch.equal(layers[new].mlp.up_proj.weight, teacher_layers[old].mlp.up_proj.weight)
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)


def test_an_unknown_model_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ModelError, match="no recipe 'fulll'"):
        list(make_members(["fulll"], folder=tmp_path / "a", work=tmp_path / "b"))
    assert not list(tmp_path.iterdir())


def test_the_questions_of_an_axis_are_held_out_along_it_alone():
    split = family_split()
    for axis in AXES:
        for _, question in axis_questions(pattern("take-away"), axis, per_cell=1, seed=0):
            found = split.held_out_axes(question)
            expected = {
                "seen": set(),
                "cells": {"cell"},
                "nouns": {"noun"},
                "combinations": {"combination"},
                "jointly": {"cell", "noun", "combination"},
            }[axis]
            assert found == expected


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_small_has_a_card_and_passes_its_gate(name):
    folder = data_folder() / "models" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000
    assert (folder / "README.md").is_file()
    own = pattern("take-away-told" if name == "base" else "take-away")
    number, noun = (g.state for g in gate(load(name), own, prompts=60, seed=3))
    # Negative controls cannot count.
    assert number == ("closed" if name in NEGATIVE_CONTROL_TASKS else "open")
    assert noun != "closed"


@pytest.fixture(scope="module")
def card_questions():
    """Questions of a card, sampled once for all models with one tokenizer."""
    kept = {}

    def questions(tokenizer, **settings):
        key = (tokenizer.backend_tokenizer.to_str(), *settings.values())
        if key not in kept:
            kept[key] = all_axis_questions(tokenizer, **settings)
        return kept[key]

    return questions


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "full", "distilled-narrow", "copying"])
def test_the_accuracy_of_a_card_is_measured_again(name, card_questions):
    """One model of each kind: the weights of all are checked by their hashes when they load."""
    numbers = json.loads((data_folder() / "models" / name / "accuracy.json").read_text("utf-8"))
    suffix = "-told" if name == "base" else ""
    model, settings = load(name), {key: numbers[key] for key in ("per_cell", "seed")}
    questions = card_questions(model.tokenizer, suffix=suffix, **settings)
    scores = evaluate_axes(model, questions, seed=settings["seed"])
    assert len(scores) == len(numbers["scores"])
    for score, row in zip(scores, numbers["scores"], strict=True):
        assert (score.pattern, score.axis, score.answer) == (
            row["pattern"],
            row["axis"],
            row["answer"],
        )
        assert score.accuracy.value == pytest.approx(row["value"], abs=0.01)


def test_the_shipped_models_have_recipes():
    assert set(list_models()) >= set(SHIPPED)


def test_shipped_models_are_plain_hugging_face_folders():
    for name in list_models():
        model = LlamaForCausalLM.from_pretrained(data_folder() / "models" / name)
        assert model.config.tie_word_embeddings


def test_the_corpus_needs_the_tokenizer_of_the_shipped_models():
    full = load_parent("full")
    assert has_family_tokenizer(full)
    rows = family_corpus(full, count=20, seed=0)
    assert len(rows) == 20
    assert rows == family_corpus(full, count=20, seed=0)
    with pytest.raises(ModelError, match="give a file of texts"):
        family_corpus(replace(full, tokenizer=None), count=20, seed=0)


def test_the_early_weights_of_a_model_are_a_shipped_model_or_random_init():
    assert pretraining_model(load_parent("full")).name == "base"
    assert pretraining_model(load_parent("scratch")).name == "scratch-early"
    with pytest.raises(ModelError, match="no known early weights"):
        pretraining_model(replace(load_parent("full"), name="another"))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_provenance_names_the_reference_models_of_the_recipes(name):
    provenance = load(name).provenance
    named = {
        field: getattr(provenance, field)
        for field in ("base_model", "other_seed", "control", "negative_control")
        if getattr(provenance, field)
    }
    lists = {n: list(v) if isinstance(v, tuple) else v for n, v in COMPARED_WITH[name].items()}
    assert named == lists
