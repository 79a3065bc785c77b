"""Texts that a student of a pretrained model is trained on."""

import pytest
import torch

from probes.compression.derived_model import load_parent
from probes.compression.distillation import pattern_texts as module
from probes.compression.distillation.distill import (
    DistillationSettings,
    build_student,
    default_training,
)
from probes.compression.distillation.pattern_texts import pattern_texts
from probes.errors import ModelError
from probes.prompts.catalog import list_patterns, unasked_questions


@pytest.fixture(scope="module")
def full():
    return load_parent("full")


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(module, "_QUESTIONS", 4)
    monkeypatch.setattr(module, "_WRITTEN", 8)


def test_no_unasked_question_of_a_word_pattern_is_in_its_shipped_pairs():
    unasked, shipped = unasked_questions(64, seed=0), list_patterns()
    assert {"ioi", "agreement", "pronoun", "simple-take-away"} <= set(unasked)
    assert "capital" not in unasked  # Its words allow no others.
    for name, questions in unasked.items():
        pairs = shipped[name].user_pairs
        asked = {side.text for pair in pairs for side in (pair.clean, pair.counterfactual)}
        texts = {question.text for question in questions}
        assert len(texts) == len(questions) == 64
        assert not texts & asked
    assert unasked != unasked_questions(64, seed=1)
    assert unasked == unasked_questions(64, seed=0)


def test_texts_are_questions_with_answers_and_continuations_each_once_before_any_again(
    full, few, tmp_path
):
    rows = pattern_texts(full, 100, seed=0, written_file=tmp_path / "written.json")
    distinct = set(rows)
    asked = {q.full_text for each in unasked_questions(4, seed=0).values() for q in each}
    texts = full.tokenizer(sorted(asked), add_special_tokens=False).input_ids
    start = rows[0].ids[:1]
    assert {(*start, *ids) for ids in texts} <= {row.ids for row in distinct}
    assert len(rows) == 100
    assert set(rows[: len(distinct)]) == distinct


def test_written_texts_are_kept_until_their_seed_changes(full, few, tmp_path, monkeypatch):
    path = tmp_path / "new" / "written.json"
    rows = pattern_texts(full, 40, seed=0, written_file=path)
    kept = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, "generate_continuations", None)
        assert pattern_texts(full, 40, seed=0, written_file=path) == rows
    path.write_text("half a fi")
    assert pattern_texts(full, 40, seed=0, written_file=path) == rows
    assert path.read_bytes() == kept
    assert pattern_texts(full, 40, seed=1, written_file=path) != rows
    assert path.read_bytes() != kept


def test_texts_of_patterns_need_a_tokenizer(full, tmp_path):
    from dataclasses import replace

    with pytest.raises(ModelError, match="no tokenizer"):
        pattern_texts(replace(full, tokenizer=None), 4, seed=0, written_file=tmp_path / "x.json")


def test_a_small_teacher_has_the_settings_of_the_shipped_models_and_a_large_one_smaller_steps(
    full, monkeypatch
):
    small = default_training(full)
    assert (small.steps, small.batch, small.learning_rate, small.weight_decay) == (
        1500,
        64,
        1e-3,
        1.0,
    )
    monkeypatch.setattr("probes.compression.distillation.distill._LARGE", 1000)
    large = default_training(full, "alternate", 50)
    assert (large.steps, large.warmup, large.weight_decay) == (50, 5, 0.01)
    assert default_training(full, "full-b").learning_rate < large.learning_rate < 1e-3


def test_alternate_is_another_name_of_the_start_from_evenly_spaced_layers(full):
    students = [build_student(full, DistillationSettings(n, 2)) for n in ("layers", "alternate")]
    states = [student.state_dict() for student in students]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
