"""The plan of a curve: passes that follow its settings, and budgets that it keeps to."""

from dataclasses import replace

import pytest

from probes.comparison.rate_distortion import plan as curve_plan
from probes.comparison.rate_distortion.measure import RateDistortionSettings, rate_distortion
from probes.comparison.rate_distortion.plan import RELATIVES, plan_curve
from probes.comparison.rate_distortion.result import RateDistortionCurve
from probes.comparison.setup import plan as comparison_plan
from probes.errors import BudgetError
from probes.models.model import load
from probes.plan import LEFT_OUT
from probes.prompts.catalog import pattern
from probes.testing.equivalent_layers import round_weights

pytestmark = pytest.mark.usefixtures("quick_plans")

SMALL = RateDistortionSettings(bases=24, prompts=8, noise_copies=2, nulls=2)


@pytest.fixture
def steady(monkeypatch):
    """Every pass takes a millisecond, also those of the verdicts; nothing else takes time."""
    for plan in (curve_plan, comparison_plan):
        monkeypatch.setattr(plan, "seconds_per_prompt", lambda *_, **__: 0.001)
        monkeypatch.setattr(plan, "thread_time", lambda: 0.0)
    monkeypatch.setattr(curve_plan, "_SECONDS", 0.0)


@pytest.fixture(scope="module")
def models():
    full = load("full")
    return full, round_weights(full, 3)


def planned(models, settings):
    return plan_curve(models[0], models[1:], pattern("take-away"), settings)


def stages(plan):
    return {stage.name: stage.passes for stage in plan.stages}


def test_the_plan_of_a_curve_follows_its_settings(models, steady):
    plan, same = planned(models, SMALL)
    assert same == SMALL
    found = stages(plan)
    assert list(found) == ["parent", RELATIVES, "random-init models"]
    one = stages(planned(models, replace(SMALL, nulls=1))[0])
    assert found["random-init models"] == pytest.approx(2 * one["random-init models"], abs=1)
    assert one[RELATIVES] == found[RELATIVES]
    quiet = [
        stages(planned(models, replace(SMALL, noise_copies=n))[0])[RELATIVES] for n in (0, 1, 2)
    ]
    assert quiet[2] - quiet[1] == pytest.approx(quiet[1] - quiet[0], abs=1)
    twice = stages(planned((*models, models[1]), SMALL)[0])
    assert twice[RELATIVES] == pytest.approx(2 * found[RELATIVES], abs=1)


def test_a_relative_that_was_trained_anew_gets_no_copies_with_noise(models, steady):
    trained = (models[0], load("full-b"))
    with_copies, without = (
        stages(planned(trained, replace(SMALL, noise_copies=n))[0]) for n in (2, 0)
    )
    assert with_copies == without


def test_a_budget_leaves_out_nulls_then_copies_then_questions(models, steady):
    settings = replace(SMALL, bases=200, prompts=32, noise_copies=3, nulls=3)
    whole = planned(models, settings)[0].seconds
    plan, lowered = planned(models, replace(settings, budget=0.9 * whole))
    assert plan.left_out == (f"{3 - lowered.nulls} of 3 random-init models",)
    plan, lowered = planned(models, replace(settings, budget=0.5 * whole))
    assert plan.seconds <= 0.5 * whole
    assert any(text.endswith("of 3 random-init models") for text in plan.left_out)
    assert any(text.endswith("of 3 copies with weight noise") for text in plan.left_out)
    assert lowered.bases >= 80 and lowered.prompts >= 8
    with pytest.raises(BudgetError, match=r"curve takes .* at the least"):
        planned(models, replace(settings, budget=0.1 * whole))


def test_a_curve_within_a_budget_says_what_it_leaves_out(models, steady, tmp_path):
    plans, budget = [], 0.9 * planned(models, SMALL)[0].seconds
    settings = replace(SMALL, budget=budget, on_plan=plans.append)
    curve = rate_distortion(models[0], models[1:], settings=settings)
    (plan,) = plans
    assert plan.left_out and plan.seconds <= budget
    assert dict(curve.protocol)[LEFT_OUT] == "; ".join(plan.left_out)
    assert curve.summary()[-1] == f"{LEFT_OUT.capitalize()}: {'; '.join(plan.left_out)}."
    assert (
        RateDistortionCurve.load(curve.save(tmp_path / "curve.json")).summary() == curve.summary()
    )


def test_the_verdicts_of_a_curve_are_planned_and_are_the_first_to_be_left_out(models, steady):
    settings = replace(SMALL, verdicts=True)
    plan, _ = planned(models, settings)
    passes = stages(plan)
    assert passes["verdicts"] > 0
    plan, lowered = planned(models, replace(settings, budget=plan.seconds - 0.001))
    assert not lowered.verdicts
    assert plan.left_out[0] == "verdicts on heads and variables"
