"""Measures emerge where the run changes from random-init models to the final model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import probes.experiments.training_dynamics.trajectory as trajectory_module
from probes.errors import FigureError, GateError, ModelError, ProbeError, SiteError
from probes.experiments.training_dynamics.checkpoints import TrajectorySettings, edge_overlap
from probes.experiments.training_dynamics.emergence import (
    MeasureOverTraining,
    emergence_order,
    emergence_step,
)
from probes.experiments.training_dynamics.measures import CIRCUIT_ONLY, EDGE_OVERLAP, LOGIT_DIFF
from probes.experiments.training_dynamics.report import LineChartBlock, LineSeries, trajectory_chart
from probes.experiments.training_dynamics.trajectory import training_trajectory
from probes.models.model import random_init, wrap
from probes.stats.intervals import Estimate
from probes.testing.planted_patterns import planted_fox
from probes.testing.tiny_models import tiny_hf

STEPS = (0, 10, 20, 40)
OTHER_SEED = "planted template"  # The name of every planted model of the kind.
SMALL = TrajectorySettings(bases=12, prompts=4, nulls=1)


def measure(levels, *, draws=200, noise=0.02, **more):
    """A measure with given values, and noise in each bootstrap sample."""
    rng = np.random.default_rng(0)
    bootstrap = np.array(levels)[:, None] + noise * rng.standard_normal((len(levels), draws))
    values = tuple(Estimate(v, v - noise, v + noise) for v in levels)
    final = 1 + noise * rng.standard_normal(draws)
    return MeasureOverTraining(
        "made up", "made up", values, Estimate(1.0, 0.9, 1.1), bootstrap, final, **more
    )


# Emergence.


def test_a_measure_emerges_at_the_first_checkpoint_from_which_it_stays_above_half():
    found = emergence_step(STEPS, measure([0.0, 0.1, 0.8, 1.0]))
    assert (found.step, found.since, found.low, found.high) == (20, 10, 20, 20)
    assert str(found) == "after 10, by 20"


def test_a_measure_that_falls_again_has_not_emerged():
    assert emergence_step(STEPS, measure([0.0, 0.9, 0.2, 1.0])).step == 40


def test_the_threshold_is_half_way_from_chance():
    levels = [0.4, 0.55, 0.65, 1.0]
    assert emergence_step(STEPS, measure(levels)).step == 10
    raised = measure(levels, nulls=(0.4, 0.4))
    assert emergence_step(STEPS, raised).step == 40


def test_an_uncertain_checkpoint_is_skipped_and_is_in_the_interval():
    found = emergence_step(STEPS, measure([0.0, 0.5, 0.9, 1.0], noise=0.1))
    assert found.step == 20
    assert (found.low, found.high) == (10, 20)


def test_a_measure_that_the_final_model_lacks_never_emerges():
    found = emergence_step(STEPS, measure([0.0, 0.9, 0.9, 0.9], nulls=(0.2, 0.99)))
    assert found.step is None
    assert str(found) == "never"


def test_a_measure_of_the_first_checkpoint_may_have_emerged_before():
    found = emergence_step(STEPS, measure([0.9, 0.9, 0.9, 0.9]))
    assert (found.step, found.since) == (0, None)
    assert str(found) == "at or before 0"


def test_one_measure_comes_before_another_only_if_the_bootstrap_samples_agree():
    early, late = measure([0.0, 0.9, 0.9, 1.0]), measure([0.0, 0.0, 0.9, 1.0])
    unsure = measure([0.0, 0.5, 0.9, 1.0], noise=0.1)
    assert emergence_order(early, late) == "before"
    assert emergence_order(late, early) == "after"
    assert emergence_order(early, early) == "with"
    assert emergence_order(unsure, early) == "cannot tell"


def test_measures_that_never_emerge_do_not_emerge_together():
    never = measure([0.0, 0.1, 0.1, 0.2])
    assert never.is_present and emergence_step(STEPS, never).step is None
    assert emergence_order(never, never) == "cannot tell"
    last = measure([0.0, 0.1, 0.1, 0.9])
    assert emergence_order(last, never) == "before"
    assert emergence_order(never, last) == "after"


def test_samples_in_which_neither_measure_emerges_agree_on_no_order():
    """A few samples in which one emerges do not put it before one that never does."""
    never = measure([0.0, 0.1, 0.1, 0.2])
    rare = measure([0.0, 0.1, 0.1, 0.2])
    rare.bootstrap[-1, :10] = 1.0
    assert emergence_order(rare, never) == "cannot tell"
    often = measure([0.0, 0.1, 0.1, 0.9])
    often.bootstrap[-1, :40] = 0.0
    assert emergence_order(often, often) == "cannot tell"


def test_chance_is_the_mean_of_random_edge_sets():
    """Their distribution is skewed, so the middle of the interval is another number."""
    skewed = measure([0.0, 0.1, 0.8, 1.0], random_mean=0.1, random_interval=(0.0, 0.6))
    assert skewed.chance == 0.1


def test_measures_with_different_numbers_of_bootstrap_samples_are_compared():
    early, late = measure([0.0, 0.9, 0.9, 1.0], draws=50), measure([0.0, 0.0, 0.9, 1.0])
    assert emergence_order(early, late) == "before"


@pytest.mark.parametrize("steps", [(0, 10, 20), (0, 10, 10, 20), (20, 10, 5, 0), ()])
def test_steps_that_do_not_fit_are_refused(steps):
    with pytest.raises(ProbeError):
        emergence_step(steps, measure([0.0, 0.1, 0.8, 1.0]))


def test_edge_overlap_is_the_jaccard_index_of_the_strongest_edges():
    own = torch.tensor([[4.0, 3.0, 2.0, 0.0, 0.0]])
    other = torch.tensor([[4.0, 3.0, 0.0, -2.0, 0.0]])
    all_prompts = np.ones((1, 1))
    assert edge_overlap(own, own, 3, all_prompts)[0] == 1
    assert edge_overlap(own, other, 3, all_prompts)[0] == pytest.approx(2 / 4)


# A run whose second half is the final model.


@pytest.fixture(scope="module")
def fox():
    return planted_fox("template")


@pytest.fixture(scope="module")
def run(fox):
    random_models = [random_init(fox.model, seed=70 + n) for n in range(2)]
    models = (*random_models, fox.model, fox.model)
    other_seed = planted_fox("template", seed=1).model
    checkpoints = list(zip(STEPS, models, strict=True))
    return training_trajectory(
        checkpoints, fox.model, fox.pattern, SMALL, other_seeds=(other_seed,)
    )


def test_every_measure_emerges_at_the_first_final_model(run):
    names = ["number accuracy", "noun accuracy", LOGIT_DIFF, CIRCUIT_ONLY, EDGE_OVERLAP]
    names += [
        f"{v} {how}"
        for v in ("operation", "x", "y")
        for how in ("interchange accuracy", "logit shift")
    ]
    for name in names:
        assert (run.emergence(name).step, run.emergence(name).since) == (20, 10), name


def test_measures_that_emerge_at_one_checkpoint_emerge_together(run):
    assert run.order("operation interchange accuracy") == "with"
    assert run.order(CIRCUIT_ONLY, LOGIT_DIFF) == "with"


def test_the_last_checkpoint_has_the_values_of_the_final_model(run):
    for name in (LOGIT_DIFF, EDGE_OVERLAP, "operation logit shift"):
        assert run.measure(name).values[-1].value == pytest.approx(1)
    assert run.measure("number accuracy").values[-1].value == 1
    assert run.circuit_faithfulness[:2] == (None, None)
    assert run.circuit_faithfulness[-1].value >= 0.9
    assert run.measure(CIRCUIT_ONLY).values[-1].value == pytest.approx(
        run.circuit_faithfulness[-1].value
    )


def test_random_init_models_and_random_edges_are_the_chance_level(run):
    assert max(run.measure("operation interchange accuracy").nulls) < 0.2
    low, high = run.measure(EDGE_OVERLAP).random_interval
    assert 0 <= low <= high < 1
    assert low <= run.measure(EDGE_OVERLAP).random_mean <= high


def test_an_other_seed_model_shares_sites_but_not_edges(run):
    """The planted other-seed model has the same states at the same roles, by other heads."""
    assert run.measure("operation interchange accuracy").other_seeds[OTHER_SEED].value == 1
    assert run.measure(EDGE_OVERLAP).other_seeds[OTHER_SEED].value < 1


def test_the_site_of_the_operation_is_the_verb(run):
    assert run.sites["operation"] == "L1.resid@op"
    assert run.measure("operation interchange accuracy at own site").notes[-1] == "L1.resid@op"


def test_a_trajectory_has_a_summary_a_table_and_files(run, tmp_path):
    assert any(line.startswith("operation logit shift: after 10, by 20") for line in run.summary())
    table = run.table()
    assert len(table) == len(run.measures) * len(STEPS)
    assert set(table[table.measure == "number accuracy"].appears) == {20}
    run.save(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["edges"] == run.edges
    run.save(tmp_path / "run.csv")
    assert (tmp_path / "run.csv").read_text().startswith("step,value,low,high")


def test_a_trajectory_is_drawn_with_emergence_steps_and_other_seeds(run, tmp_path):
    block = trajectory_chart(run)
    first = block.panels[0][1][0]
    assert (first.name, first.emergence_index) == ("number accuracy", 2)
    run.save(tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text()
    assert "operation logit shift emerges by step 20" in page
    assert "other-seed model: " in page
    run.picture().save(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_a_run_up_to_a_step_is_a_run(run):
    part = run.until(20)
    assert part.steps == STEPS[:3]
    assert part.emergence("number accuracy") == run.emergence("number accuracy")
    early = run.until(10)
    assert early.emergence("number accuracy").step is None
    assert early.order(CIRCUIT_ONLY) == "cannot tell"
    texts = [line for line in early.summary() if line.startswith(CIRCUIT_ONLY)]
    assert "never [never to never], nor does 'number accuracy' emerge (nor does" in texts[0]
    assert not any("at the same checkpoint" in line for line in early.summary())
    with pytest.raises(SiteError, match="first checkpoint"):
        run.until(-1)


def test_unknown_measures_are_refused(run):
    with pytest.raises(SiteError, match="number accuracy"):
        run.emergence("unknown")


# Bad input.


def test_checkpoints_in_wrong_order_or_none_are_refused(fox):
    for checkpoints in ([], [(5, fox.model), (5, fox.model)], [(9, fox.model), (1, fox.model)]):
        with pytest.raises(ProbeError, match="order of training"):
            training_trajectory(checkpoints, fox.model, fox.pattern, SMALL)


def test_a_final_model_without_the_behavior_is_refused(fox):
    random_model = random_init(fox.model, seed=5)
    with pytest.raises(GateError):
        training_trajectory([(0, fox.model)], random_model, fox.pattern, SMALL)


def test_a_checkpoint_of_another_shape_is_refused_before_anything_is_measured(fox, monkeypatch):
    monkeypatch.setattr(trajectory_module, "prepare_final_reference", None)
    tokenizer = fox.model.tokenizer
    hf_model = tiny_hf("llama", 0, vocab_size=len(tokenizer))
    other = wrap(hf_model, name="tiny", tokenizer=tokenizer)
    with pytest.raises(ModelError, match="shape of the final model"):
        training_trajectory([(0, other)], fox.model, fox.pattern, SMALL)


def test_lines_of_the_wrong_length_or_number_are_refused():
    line = LineSeries("short", (0.0,), (0.0,), (0.0,))
    with pytest.raises(FigureError, match="2 checkpoints"):
        LineChartBlock(("0", "1"), [("panel", [line])])
    with pytest.raises(FigureError, match="nothing to draw"):
        LineChartBlock(("0",), [("panel", [])])
    many = [replace(line, name=str(n)) for n in range(9)]
    with pytest.raises(FigureError, match="cannot be told apart"):
        LineChartBlock(("0",), [("panel", many)])


def test_a_missing_value_leaves_a_gap():
    line = LineSeries("gap", (0.0, float("nan"), 1.0), (0.0,) * 3, (1.0,) * 3)
    assert "nan" not in LineChartBlock(("0", "1", "2"), [("panel", [line])]).body
