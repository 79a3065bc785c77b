"""Plans of models that are made: steps that are counted and timed, and budgets that are kept."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from probes.cli.app import app
from probes.compression import plan as make_plan
from probes.compression.derived_model import load_parent
from probes.compression.distillation.plan import (
    TrainingConfig,
    TrainingPlan,
    TrainingText,
    hash_model,
)
from probes.compression.distillation.targets import DistillationTargets
from probes.compression.distillation.trainer import fit
from probes.compression.plan import (
    MakeSettings,
    TextSample,
    plan_pruning,
    plan_quantization,
    plan_training,
    require_budget,
)
from probes.compression.pruning.prune import PruningSettings
from probes.compression.quantization.quantize import QuantizationSettings
from probes.errors import BudgetError, ModelError
from probes.models.model import load
from probes.plan import LEFT_OUT
from probes.prompts.catalog import pattern
from probes.testing.tiny_models import tiny_hf

TEXTS = [TrainingText((1, 5, 9, 3)), TrainingText((1, 7, 2, 8, 4))]
SOFT = DistillationTargets("soft")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("I have two foxes.\nThe cat has a hat.\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def steady(monkeypatch):
    """Every step takes a second."""
    monkeypatch.setattr(make_plan, "_time_steps", lambda *_: (1.0, 10**9))


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def plan_of(steps, *, labels=SOFT, **asked):
    teacher = tiny_hf("llama", 0)
    training = TrainingPlan(TEXTS, TrainingConfig(steps, 0, batch=2), 0, labels, teacher)
    settings = MakeSettings(command="make distilled", **asked)
    return plan_training(tiny_hf("llama", 1), training, TextSample(TEXTS), settings)


def test_the_planned_passes_of_training_are_those_that_run(monkeypatch, tmp_path, steady):
    plan, settings = plan_of(3)
    student, teacher, rows = tiny_hf("llama", 1), tiny_hf("llama", 0), []
    for model in (student, teacher):
        model.register_forward_hook(lambda _, __, out: rows.append(len(out.logits)))
    head: Any = student.lm_head
    head.register_full_backward_hook(lambda _, __, out: rows.extend([len(out[0])] * 2))
    fit(student, TrainingPlan(TEXTS, settings, 0, SOFT, teacher), folder=tmp_path)
    assert sum(rows) == {stage.name: stage.passes for stage in plan.stages}["training"] == 24


def test_without_a_teacher_or_with_rounds_of_pruning_the_passes_are_others(steady):
    hard = DistillationTargets("hard")
    assert plan_of(3, labels=hard)[0].passes == 18
    assert plan_of(3, labels=hard, rounds=2)[0].passes == 36


def test_a_budget_takes_fewer_steps_and_says_how_many(steady):
    plan, settings = plan_of(100, budget=61.0)
    assert settings.steps == 60
    assert plan.left_out == ("40 of 100 training steps",)
    assert plan_of(100)[0].outlook == ("--budget 51s would leave out 50 of 100 training steps.",)
    plan, settings = plan_of(100, budget=121.0, rounds=2)
    assert plan.left_out == ("40 of 100 training steps of each round",)
    with pytest.raises(BudgetError, match="make distilled takes 10 s at the least"):
        plan_of(100, budget=9.0)


def test_timing_of_steps_changes_no_model_generator_or_file(here):
    student, teacher = tiny_hf("llama", 1), tiny_hf("llama", 0)
    before = [hash_model(model) for model in (student, teacher)]
    torch.manual_seed(5)
    np.random.seed(5)
    drawn = torch.rand(3), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    training = TrainingPlan(TEXTS, TrainingConfig(4, 0, batch=2), 0, SOFT, teacher)
    asked = MakeSettings(command="make distilled")
    plan, settings = plan_training(student, training, TextSample(TEXTS), asked)
    assert torch.equal(torch.rand(3), drawn[0]) and np.random.rand() == drawn[1]
    assert settings == training.settings and plan.seconds > 0
    assert [hash_model(model) for model in (student, teacher)] == before
    assert not student.training and all(w.grad is None for w in student.parameters())
    assert [path.name for path in here.iterdir()] == ["texts.txt"]


def test_a_plan_of_pruning_counts_the_calibration_texts_and_refuses_what_prune_refuses():
    full = load_parent("scratch")
    own = pattern("take-away")
    plan = plan_pruning(full, "heads", own, PruningSettings())
    assert plan.passes == 64
    assert plan_pruning(full, "magnitude", own, PruningSettings()).passes == 0
    with pytest.raises(ModelError, match="Unknown method"):
        plan_pruning(full, "luck", own, PruningSettings())


def test_a_plan_of_rounding_counts_the_passes_of_the_kernel():
    full = load_parent("scratch")
    assert plan_quantization(full, "rtn-3", QuantizationSettings()).passes == 0
    plan = plan_quantization(full, "int4", QuantizationSettings())
    assert plan.passes == pytest.approx(2 * 16, rel=0.1)
    with pytest.raises(BudgetError, match="make quantized takes"):
        require_budget(plan, MakeSettings(command="make quantized", budget=1e-9))
    with pytest.raises(ModelError, match="use 'rtn-3'"):
        plan_quantization(full, "int3", QuantizationSettings())


@pytest.mark.parametrize(
    "words",
    [
        ("quantized", "scratch"),
        ("pruned", "scratch", "--method", "wanda"),
        ("grown", "scratch", "--layers", 3),
        ("grown", "scratch", "--layers", 3, "--steps", 4, "--texts", "texts.txt"),
        ("distilled", "scratch", "--steps", 4, "--batch", 2, "--teacher-text"),
        ("ticket", "full", "--steps", 4, "--batch", 2),
    ],
)
def test_a_plan_alone_makes_nothing(here, words):
    found = run("plan", "make", *words)
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith(f"Plan of make {words[0]}: about ")
    assert [path.name for path in here.iterdir()] == ["texts.txt"]


def test_a_model_trained_within_a_budget_says_what_was_left_out(here, steady):
    """It is that of as many steps; a budget that is refused leaves what was there."""
    words = ("make", "distilled", "scratch", "--batch", 2, "--texts", "texts.txt")
    assert "at the least" in run(*words, "--steps", 20, "--budget", "1s").stderr
    assert [path.name for path in here.iterdir()] == ["texts.txt"]
    done = run(*words, "--steps", 20, "--budget", "5.5s", "--name", "short")
    assert done.exit_code == 0, done.output
    assert "Left out to keep to the budget: 15 of 20 training steps." in done.stdout
    made = load("short").provenance
    assert made is not None
    settings = made.settings
    assert settings["steps"] == 5
    assert settings[LEFT_OUT] == "15 of 20 training steps"
    assert run(*words, "--steps", 5, "--name", "five").exit_code == 0
    pairs = zip(load("short").bridge.parameters(), load("five").bridge.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    plan = here / "runs" / "work" / "short-checkpoints" / "plan.json"
    kept = json.loads(plan.read_text())
    forced = run(*words, "--steps", 20, "--budget", "1s", "--name", "short", "--force")
    assert forced.exit_code == 1
    assert json.loads(plan.read_text()) == kept
