"""Checkpoints belong to one plan: a change of any setting is refused by its name."""

from dataclasses import fields, replace

import pytest
import torch

import probes
from probes.compression.distillation.plan import (
    PLAN_FILE,
    TrainingConfig,
    TrainingPlan,
    TrainingText,
    claim_checkpoints,
)
from probes.compression.distillation.targets import DistillationTargets
from probes.errors import ModelError
from probes.testing.tiny_models import tiny_hf

TEXTS = [TrainingText((3, 4, 5), 1), TrainingText((6, 7)), TrainingText((8, 9, 10, 11))]
SETTINGS = TrainingConfig(steps=8, seed=0, batch=4, warmup=2, save_every=3)
SOFT = TrainingPlan(TEXTS, SETTINGS, 0, DistillationTargets("soft"), tiny_hf("llama", seed=5))
MASK = {"model.layers.0.mlp.up_proj.weight": torch.ones(64, 32, dtype=torch.bool)}


def with_settings(**change):
    return replace(SOFT, settings=replace(SETTINGS, **change))


def with_labels(**change):
    return replace(SOFT, labels=replace(SOFT.labels, **change))


CHANGES = {
    "texts": replace(SOFT, texts=TEXTS[:-1]),
    "masks": replace(SOFT, masks=MASK),
    "teacher": replace(SOFT, teacher=tiny_hf("llama", seed=6)),
    "pad_token": replace(SOFT, pad_token=1),
    "labels.kind": with_labels(kind="top-k"),
    "labels.k": with_labels(k=3),
    "labels.temperature": with_labels(temperature=2.0),
    "labels.smoothing": with_labels(smoothing=0.2),
    "steps": with_settings(steps=9),
    "seed": with_settings(seed=1),
    "batch": with_settings(batch=5),
    "learning_rate": with_settings(learning_rate=0.01),
    "weight_decay": with_settings(weight_decay=0.5),
    "warmup": with_settings(warmup=3),
    "schedule": with_settings(schedule="cosine"),
}


def fake_run(folder, plan, student):
    claim_checkpoints(folder, plan.fingerprint(student))
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3}')


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_any_setting_is_refused_by_name(name, tmp_path):
    student = tiny_hf("llama", seed=0)
    fake_run(tmp_path, SOFT, student)
    claim_checkpoints(tmp_path, SOFT.fingerprint(student))
    with pytest.raises(ModelError, match=f"belong to another run: [a-z ]*{name}.*Use another"):
        claim_checkpoints(tmp_path, CHANGES[name].fingerprint(student))


def test_another_student_or_version_is_refused(tmp_path, monkeypatch):
    student = tiny_hf("llama", seed=0)
    fake_run(tmp_path, SOFT, student)
    with pytest.raises(ModelError, match="the student differs"):
        claim_checkpoints(tmp_path, SOFT.fingerprint(tiny_hf("llama", seed=1)))
    monkeypatch.setattr(probes, "__version__", "99", raising=False)
    with pytest.raises(ModelError, match=r"probes is '.*' there and '99' here"):
        claim_checkpoints(tmp_path, SOFT.fingerprint(student))


def test_every_setting_has_a_test_of_its_change():
    known = set(SOFT.fingerprint(tiny_hf("llama", seed=0)))
    versions = {"probes", "torch", "transformers", "accelerate"}
    assert known - versions - {"student", "device", "half_precision"} == set(CHANGES)
    shaping = {f.name for f in fields(TrainingConfig)} - {"save_every", "stop_after", "device"}
    assert shaping <= known


def test_checkpoints_of_an_unknown_run_are_refused(tmp_path):
    student = tiny_hf("llama", seed=0)
    fake_run(tmp_path, SOFT, student)
    for content in ("", "[]", '{"steps": '):
        (tmp_path / PLAN_FILE).write_text(content)
        with pytest.raises(ModelError, match=r"no readable plan\.json"):
            claim_checkpoints(tmp_path, SOFT.fingerprint(student))


def test_a_folder_without_a_complete_checkpoint_takes_another_plan(tmp_path):
    student = tiny_hf("llama", seed=0)
    claim_checkpoints(tmp_path, SOFT.fingerprint(student))
    claim_checkpoints(tmp_path, CHANGES["batch"].fingerprint(student))
    fake_run(tmp_path, CHANGES["batch"], student)
    with pytest.raises(ModelError, match="batch is 5 there and 4 here"):
        claim_checkpoints(tmp_path, SOFT.fingerprint(student))
