"""Students of two teachers: the scores against each, and how well a score separates them."""

import numpy as np
import pytest
from transformers import AutoTokenizer

import probes.experiments.inheritance.run as study
from probes.experiments.inheritance.result import SCORES, score_separations
from probes.experiments.inheritance.scores import (
    InheritanceSettings,
    error_consistency,
    inheritance_scores,
    run_model,
    run_reference,
    sample_shared_prompts,
)
from probes.experiments.studies.registry import run_study
from probes.experiments.studies.tables import read_study
from probes.files import data_folder
from probes.models.model import load
from probes.prompts.catalog import pattern

FAMILY = data_folder() / "models"


def test_error_consistency_is_agreement_beyond_two_accuracies():
    half, other = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert error_consistency(half, half) == 1
    assert error_consistency(half, other) == 0
    assert error_consistency(half, ~half) == -1
    assert np.isnan(error_consistency(np.ones(4, bool), np.ones(4, bool)))


def rows(kin, others, reference="full", **constant):
    return [
        {"reference": reference, "kin": is_kin, **dict.fromkeys(SCORES, 0.0), **constant, **scores}
        for is_kin, group in ((1.0, kin), (0.0, others))
        for scores in group
    ]


def test_a_divergence_that_is_smaller_in_kin_has_an_auroc_of_one():
    table = rows([{"kl_number": 0.1, "y": 0.9}] * 3, [{"kl_number": 0.2, "y": 0.1}] * 3)
    found = {one.score: one for one in score_separations(table)}
    assert found["kl_number"].auroc.value.value == found["y"].auroc.value.value == 1
    assert found["accuracy_number"].auroc.value.value == 0.5
    assert (found["kl_number"].kin, found["kl_number"].others) == pytest.approx((0.1, 0.2))


def test_p_values_are_corrected_for_all_scores():
    table = rows([{"y": 0.9 + k} for k in range(4)], [{"y": 0.1 - k} for k in range(4)])
    found = next(one for one in score_separations(table) if one.score == "y")
    assert found.auroc.p_value == pytest.approx(2 / 70)
    assert found.p_corrected == pytest.approx(len(SCORES) * 2 / 70)


def test_students_without_a_score_are_left_out_and_counted():
    nan = float("nan")
    table = rows([{"y": 0.9}, {"y": nan}], [{"y": 0.1}, {"y": 0.2}])
    found = next(one for one in score_separations(table) if one.score == "y")
    assert (found.auroc.n_related, found.undefined) == (1, 1)
    none = rows([{"y": nan}], [{"y": 0.1}])
    assert "y" not in {one.score for one in score_separations(none)}


def test_the_difference_between_two_references_cancels_how_good_a_student_is():
    """Each student is nearer to its teacher by 0.1, and the students differ by more."""
    table = [
        {**dict.fromkeys(SCORES, 0.0), "model": f"{teacher}{k}", "reference": reference,
         "kin": float(teacher == reference), "cka": 0.2 * k + 0.1 * (teacher == reference)}
        for reference in ("a", "b")
        for teacher in ("a", "b")
        for k in range(3)
    ]  # fmt: skip
    found = {one.reference: one for one in score_separations(table) if one.score == "cka"}
    assert found["a"].auroc.value.value == found["b"].auroc.value.value == pytest.approx(6 / 9)
    assert found["a − b"].auroc.value.value == 1
    assert (found["a − b"].kin, found["a − b"].others) == pytest.approx((0.1, -0.1))


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Study with one untrained student of each teacher."""
    AutoTokenizer.from_pretrained(FAMILY / "full").save_pretrained(tmp_path / "tokenizer")
    for name, value in {
        "COHORTS": ((3,),),
        "LAYERS": 1,
        "WIDTH": 16,
        "STEPS": 1,
        "BATCH": 2,
    }.items():
        monkeypatch.setattr(study, name, value)
    return tmp_path


def test_both_students_of_a_seed_start_alike_and_training_is_not_repeated(tiny):
    def train():
        pairs = [[study.InheritanceStudent(teacher, 3)] for teacher in study.TEACHERS]
        return [
            study.train_inheritance_students(students, folder=FAMILY, work=tiny)[0]
            for students in pairs
        ]

    paths = train()
    assert [path.name for path in paths] == ["student-of-full-3", "student-of-full-b-3"]
    facts = [load(path).provenance for path in paths]
    assert [fact.parent for fact in facts] == ["full", "full-b"]
    assert facts[0].settings == facts[1].settings
    before = [(path / "config.json").stat().st_mtime_ns for path in paths]
    train()
    assert [(path / "config.json").stat().st_mtime_ns for path in paths] == before


def test_measured_students_are_neither_trained_nor_measured_again(tiny):
    known = [
        {"model": f"student-of-{teacher}-3", "reference": reference, "kin": float(k)}
        for k, teacher in enumerate(study.TEACHERS)
        for reference in study.TEACHERS
    ]
    assert list(run_study("inheritance", folder=FAMILY, work=tiny, known=known)) == known
    assert {path.name for path in tiny.iterdir()} == {"tokenizer"}


def test_the_shipped_table_has_every_score_and_as_many_students_of_each_teacher():
    table = read_study("inheritance")
    assert set(SCORES) <= set(table[0])
    found = {
        (one.reference, one.auroc.n_related, one.auroc.n_negative_controls)
        for one in score_separations(table)
    }
    assert {reference for reference, *_ in found} >= set(study.TEACHERS)
    assert all(kin == others for _, kin, others in found)


@pytest.mark.slow
def test_a_model_is_nearest_to_itself_by_every_score():
    model = load("full")
    settings = InheritanceSettings(draws=1, bases=40, prompts=200, states=40)
    prompts = sample_shared_prompts(model, pattern("take-away"), settings)
    reference = run_reference(model, prompts)
    own, other = (
        inheritance_scores(reference, run_model(one, prompts), prompts)
        for one in (model, load("scratch"))
    )
    assert set(own) == set(SCORES)
    assert own["kl_number"] == own["kl_noun"] == 0
    for name in (
        "error_consistency",
        "margin_correlation",
        "cka",
        "rsa",
        "weights_ov",
        "cka_embedding",
    ):
        assert own[name] == pytest.approx(1, abs=1e-3)
    for name, is_similarity in SCORES.items():
        if name not in ("accuracy_number", "accuracy_noun", "operation"):
            assert (own[name] > other[name]) == is_similarity, name
