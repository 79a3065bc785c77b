"""What appears along training appears where it was put: untrained nets, then the final model."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import probes.experiments.training_dynamics.trajectory as trajectory
from probes.errors import FigureError, GateError, ModelError, ProbeError, SiteError
from probes.experiments.training_dynamics.checkpoints import edge_overlap
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
TWIN = "planted template"  # The name of every planted model of the kind.
SMALL: dict[str, Any] = {"bases": 12, "prompts": 4, "nulls": 1}


def course(levels, *, draws=200, noise=0.02, **more):
    """A course whose measure stands at given levels, each draw a little off."""
    rng = np.random.default_rng(0)
    drawn = np.array(levels)[:, None] + noise * rng.standard_normal((len(levels), draws))
    values = tuple(Estimate(v, v - noise, v + noise) for v in levels)
    last = 1 + noise * rng.standard_normal(draws)
    return MeasureOverTraining(
        "made up", "made up", values, Estimate(1.0, 0.9, 1.1), drawn, last, **more
    )


# When something appears.


def test_the_first_checkpoint_that_stays_above_half_is_the_onset():
    found = emergence_step(STEPS, course([0.0, 0.1, 0.8, 1.0]))
    assert (found.step, found.since, found.low, found.high) == (20, 10, 20, 20)
    assert str(found) == "after 10, by 20"


def test_what_rises_and_falls_again_has_not_appeared_yet():
    assert emergence_step(STEPS, course([0.0, 0.9, 0.2, 1.0])).step == 40


def test_half_the_way_starts_at_chance():
    levels = [0.4, 0.55, 0.65, 1.0]
    assert emergence_step(STEPS, course(levels)).step == 10
    raised = course(levels, nulls=(0.4, 0.4))
    assert raised.halfway == pytest.approx(0.7)
    assert emergence_step(STEPS, raised).step == 40


def test_an_unsure_step_is_no_onset_and_its_interval_says_so():
    found = emergence_step(STEPS, course([0.0, 0.5, 0.9, 1.0], noise=0.1))
    assert found.step == 20
    assert (found.low, found.high) == (10, 20)


def test_what_the_final_model_lacks_never_appears():
    found = emergence_step(STEPS, course([0.0, 0.9, 0.9, 0.9], nulls=(0.2, 0.99)))
    assert found.step is None
    assert str(found) == "never"


def test_what_is_there_from_the_first_checkpoint_may_be_older():
    found = emergence_step(STEPS, course([0.9, 0.9, 0.9, 0.9]))
    assert (found.step, found.since) == (0, None)
    assert str(found) == "at or before 0"


def test_one_measure_comes_before_another_only_where_the_draws_agree():
    early, late = course([0.0, 0.9, 0.9, 1.0]), course([0.0, 0.0, 0.9, 1.0])
    unsure = course([0.0, 0.5, 0.9, 1.0], noise=0.1)
    assert emergence_order(early, late) == "before"
    assert emergence_order(late, early) == "after"
    assert emergence_order(early, early) == "with"
    assert emergence_order(unsure, early) == "cannot tell"


def test_courses_of_other_numbers_of_draws_are_compared():
    early, late = course([0.0, 0.9, 0.9, 1.0], draws=50), course([0.0, 0.0, 0.9, 1.0])
    assert emergence_order(early, late) == "before"


@pytest.mark.parametrize("steps", [(0, 10, 20), (0, 10, 10, 20), (20, 10, 5, 0), ()])
def test_steps_that_do_not_fit_are_refused(steps):
    with pytest.raises(ProbeError):
        emergence_step(steps, course([0.0, 0.1, 0.8, 1.0]))


def test_the_strongest_edges_of_one_model_are_all_shared_and_those_of_another_are_counted():
    here = torch.tensor([[4.0, 3.0, 2.0, 0.0, 0.0]])
    there = torch.tensor([[4.0, 3.0, 0.0, -2.0, 0.0]])
    once = np.ones((1, 1))
    assert edge_overlap(here, here, 3, once)[0] == 1
    assert edge_overlap(here, there, 3, once)[0] == pytest.approx(2 / 4)


# A run whose second half is the final model.


@pytest.fixture(scope="module")
def fox():
    return planted_fox("template")


@pytest.fixture(scope="module")
def run(fox):
    nets = [random_init(fox.model, seed=70 + n) for n in range(2)]
    models = (*nets, fox.model, fox.model)
    twin = planted_fox("template", seed=1).model
    checkpoints = list(zip(STEPS, models, strict=True))
    return training_trajectory(checkpoints, fox.model, fox.pattern, other_seeds=(twin,), **SMALL)


def test_everything_appears_where_the_final_model_was_put(run):
    names = ["number accuracy", "noun accuracy", LOGIT_DIFF, CIRCUIT_ONLY, EDGE_OVERLAP]
    names += [
        f"{v} {how}"
        for v in ("operation", "x", "y")
        for how in ("interchange accuracy", "logit shift")
    ]
    for name in names:
        assert (run.emergence(name).step, run.emergence(name).since) == (20, 10), name


def test_what_comes_together_is_said_to_come_together(run):
    assert run.order("operation interchange accuracy") == "with"
    assert run.order(CIRCUIT_ONLY, LOGIT_DIFF) == "with"


def test_the_final_checkpoint_is_the_final_model(run):
    for name in (LOGIT_DIFF, EDGE_OVERLAP, "operation logit shift"):
        assert run.measure(name).values[-1].value == pytest.approx(1)
    assert run.measure("number accuracy").values[-1].value == 1
    assert run.circuit_faithfulness[:2] == (None, None)
    assert run.circuit_faithfulness[-1].value >= 0.9
    assert run.measure(CIRCUIT_ONLY).values[-1].value == pytest.approx(
        run.circuit_faithfulness[-1].value
    )


def test_untrained_nets_and_edges_by_lot_are_the_chance_level(run):
    assert max(run.measure("operation interchange accuracy").nulls) < 0.2
    low, high = run.measure(EDGE_OVERLAP).random_interval
    assert 0 <= low <= high < 1


def test_another_seed_holds_the_state_elsewhere_only_if_it_does(run):
    """The planted twin has the same states at the same roles, by other heads."""
    assert run.measure("operation interchange accuracy").other_seeds[TWIN].value == 1
    assert run.measure(EDGE_OVERLAP).other_seeds[TWIN].value < 1


def test_the_operation_is_found_at_the_verb(run):
    assert run.sites["operation"] == "L1.resid@op"
    assert run.measure("operation interchange accuracy at own site").notes[-1] == "L1.resid@op"


def test_it_is_told_tabled_and_saved(run, tmp_path):
    assert any(line.startswith("operation logit shift: after 10, by 20") for line in run.summary())
    table = run.table()
    assert len(table) == len(run.measures) * len(STEPS)
    assert set(table[table.measure == "number accuracy"].appears) == {20}
    run.save(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["edges"] == run.edges
    run.save(tmp_path / "run.csv")
    assert (tmp_path / "run.csv").read_text().startswith("step,value,low,high")


def test_it_is_drawn_with_its_rings_and_chance(run, tmp_path):
    block = trajectory_chart(run)
    first = block.panels[0][1][0]
    assert (first.name, first.emergence_index) == ("number accuracy", 2)
    run.save(tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text()
    assert "operation logit shift appears by step 20" in page
    assert "another seed" in page
    run.picture().save(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_a_part_of_a_run_is_a_run(run):
    part = run.until(20)
    assert part.steps == STEPS[:3]
    assert part.emergence("number accuracy") == run.emergence("number accuracy")
    assert run.until(10).emergence("number accuracy").step is None
    with pytest.raises(SiteError, match="first checkpoint"):
        run.until(-1)


def test_unknown_measures_are_refused(run):
    with pytest.raises(SiteError, match="number accuracy"):
        run.emergence("luck")


# Bad input.


def test_checkpoints_out_of_order_or_none_are_refused(fox):
    for checkpoints in ([], [(5, fox.model), (5, fox.model)], [(9, fox.model), (1, fox.model)]):
        with pytest.raises(ProbeError, match="order of training"):
            training_trajectory(checkpoints, fox.model, fox.pattern, **SMALL)


def test_a_final_model_that_cannot_do_it_is_refused(fox):
    net = random_init(fox.model, seed=5)
    with pytest.raises(GateError):
        training_trajectory([(0, fox.model)], net, fox.pattern, **SMALL)


def test_a_checkpoint_of_another_shape_is_refused_before_anything_is_measured(fox, monkeypatch):
    monkeypatch.setattr(trajectory, "prepare_final_reference", None)
    words = fox.model.tokenizer
    other = wrap(tiny_hf("llama", 0, vocab_size=len(words)), name="tiny", tokenizer=words)
    with pytest.raises(ModelError, match="shape of the final model"):
        training_trajectory([(0, other)], fox.model, fox.pattern, **SMALL)


def test_lines_that_do_not_fit_their_places_are_refused():
    line = LineSeries("short", (0.0,), (0.0,), (0.0,))
    with pytest.raises(FigureError, match="2 places"):
        LineChartBlock(("0", "1"), [("panel", [line])])
    with pytest.raises(FigureError, match="nothing to draw"):
        LineChartBlock(("0",), [("panel", [])])
    many = [replace(line, name=str(n)) for n in range(9)]
    with pytest.raises(FigureError, match="cannot be told apart"):
        LineChartBlock(("0",), [("panel", many)])


def test_a_missing_value_leaves_a_gap():
    line = LineSeries("gap", (0.0, float("nan"), 1.0), (0.0,) * 3, (1.0,) * 3)
    assert "nan" not in LineChartBlock(("0", "1", "2"), [("panel", [line])]).body
