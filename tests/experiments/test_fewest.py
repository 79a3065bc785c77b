"""A planted direction is found as one; students are trained alike and chosen by their gates."""

import json
from dataclasses import replace

import pytest
import torch

from probes.compression.distillation.plan import TrainingConfig, TrainingPlan, TrainingText
from probes.compression.distillation.targets import DistillationTargets
from probes.errors import GateError, ModelError, ProbeError
from probes.experiments.fewest.result import (
    FewestParameters,
    FewestSettings,
    MinimalDirections,
    Student,
)
from probes.experiments.fewest.search import count_parameters, fewest_parameters
from probes.experiments.soft_labels.cohort import Learner, distill_cohort
from probes.models.model import random_init
from probes.observe.gate import gate
from probes.stats.intervals import Estimate
from probes.testing.planted_patterns import planted_fox
from probes.testing.tiny_models import tiny_hf

SMALL = FewestSettings(bases=16, prompts=4, variables=("operation",))


@pytest.fixture(scope="module")
def fox():
    return planted_fox("template")


@pytest.fixture(scope="module")
def minima(fox):
    students = [random_init(fox.model, seed=3), fox.model]
    return fewest_parameters([fox.model], fox.pattern, SMALL, students=students)


def test_a_planted_direction_needs_one_direction(minima):
    (few,) = minima.models
    (directions,) = few.directions
    assert (directions.site, directions.fewest, directions.sizes) == ("L1.resid@op", 1, (1,))
    assert directions.interchange_accuracy[0].value >= 0.9 * directions.full_state.value
    assert directions.null < 0.5


def test_the_smallest_circuit_exceeds_random_circuits(minima):
    circuit = minima.models[0].circuit
    assert circuit.is_sufficient
    assert circuit.held_out.value.value >= 0.9
    assert 0 < circuit.held_out.edges < circuit.total_edges / 4
    assert circuit.random_max < 0.5
    assert 0 < circuit.parameters < minima.models[0].block_parameters


def test_weights_are_counted_once(fox, minima):
    config = fox.model.config
    block_parameters = config.num_hidden_layers * (
        4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    )
    assert minima.models[0].block_parameters == block_parameters
    assert minima.models[0].parameters == count_parameters(fox.model) > block_parameters


def test_the_smallest_student_is_the_smallest_that_passes_its_gates(minima):
    able, unable = sorted(minima.students, key=lambda one: not one.passes_gates)
    assert (able.passes_gates, unable.passes_gates) == (True, False)
    assert minima.smallest is None, "one of two seeds of the shape fails"
    small = replace(unable, parameters=10, d_model=4)
    result = FewestParameters(
        minima.pattern, 0.9, minima.models, (able, replace(able, d_model=99), small)
    )
    assert result.smallest == (able.parameters, (able,))
    assert f"Smaller ones do not always pass: {unable.model}" in result.summary()[-1]


def test_the_summary_says_if_no_student_passes(minima):
    unable = next(one for one in minima.students if not one.passes_gates)
    assert "None of 1 students" in FewestParameters("x", 0.9, (), (unable,)).summary()[-1]


def test_too_few_directions_give_no_minimum(fox):
    rotated = planted_fox("rotated")
    minima = fewest_parameters([rotated.model], rotated.pattern, replace(SMALL, sizes=(1,)))
    assert minima.models[0].directions[0].fewest is None
    assert "not enough" in minima.summary()[0]
    assert minima.table().fewest.isna()[0]


def test_minima_have_a_table_and_files(minima, tmp_path):
    table = minima.table()
    assert set(table.unit) == {"directions", "edges", "weights of its nodes", "parameters"}
    assert (table.part.dropna() <= 1).all()
    lacking = replace(
        minima.models[0], circuit=replace(minima.models[0].circuit, random_max=float("nan"))
    )
    replace(minima, models=(lacking,)).save(tmp_path / "few.json")
    # NaN is not JSON: strict readers refuse it.
    saved = json.loads((tmp_path / "few.json").read_text(), parse_constant=pytest.fail)
    assert saved["models"][0]["block_parameters"] > 0
    assert saved["models"][0]["circuit"]["random_max"] is None
    minima.save(tmp_path / "few.csv")
    assert (tmp_path / "few.csv").read_text().startswith("model,what,unit,fewest,of")


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": 0.0}, {"threshold": 1.5}, {"sizes": ()}, {"sizes": (2, 1)}, {"sizes": (0, 1)}],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ProbeError):
        replace(SMALL, **wrong)


def test_no_model_an_unknown_variable_and_a_closed_gate_are_refused(fox):
    with pytest.raises(ProbeError, match="0 models"):
        fewest_parameters([], fox.pattern)
    with pytest.raises(ProbeError, match="no variable"):
        fewest_parameters([fox.model], fox.pattern, replace(SMALL, variables=("unknown",)))
    with pytest.raises(GateError):
        fewest_parameters([random_init(fox.model, seed=1)], fox.pattern, SMALL)


# Students that are trained together.

ROWS = [TrainingText((1, 5 + n % 7, 20 + n % 7, 40 + n % 7, 2)) for n in range(64)]
SETTINGS = TrainingConfig(steps=12, seed=0, batch=8, warmup=2)


def plan(teacher, settings=SETTINGS):
    return TrainingPlan(ROWS, settings, 0, DistillationTargets("soft"), teacher)


def small(seed, **more):
    return tiny_hf("llama", seed, num_hidden_layers=1, **more)


def weights(model):
    return torch.cat([w.detach().flatten() for w in model.parameters()])


def test_students_approach_the_teacher():
    teacher, student = tiny_hf("llama", 9), small(1)
    ids = torch.tensor([row.ids for row in ROWS[:7]])

    def kl():
        with torch.no_grad():
            own, target = (m(input_ids=ids).logits.log_softmax(-1) for m in (student, teacher))
        return float((target.exp() * (target - own)).sum(-1).mean())

    before = kl()
    learners = {"a": Learner(student, 1e-2, 0.0)}
    distill_cohort(learners, plan(teacher, replace(SETTINGS, steps=40)))
    assert kl() < 0.6 * before


def test_other_students_do_not_change_a_student():
    alone, together, other = small(1), small(1), small(2)
    teacher = tiny_hf("llama", 9)
    distill_cohort({"a": Learner(alone)}, plan(teacher))
    distill_cohort({"b": Learner(other, 1e-1), "a": Learner(together)}, plan(teacher))
    assert torch.equal(weights(alone), weights(together))


def test_the_teacher_does_not_change_and_the_callback_sees_all_steps():
    teacher, seen = tiny_hf("llama", 9), []
    before = weights(teacher).clone()

    def watch(step, models):
        seen.append((step, *models))

    distill_cohort({"a": Learner(small(1))}, plan(teacher), watch)
    assert torch.equal(weights(teacher), before)
    assert seen == [(step, "a") for step in range(SETTINGS.steps + 1)]


def test_impossible_students_are_refused():
    teacher, student = tiny_hf("llama", 9), small(1)
    with pytest.raises(ModelError, match="0 students"):
        distill_cohort({}, plan(teacher))
    with pytest.raises(ModelError, match="model of its own"):
        distill_cohort({"a": Learner(student), "b": Learner(student)}, plan(teacher))
    with pytest.raises(ModelError, match="one vocabulary"):
        distill_cohort({"a": Learner(small(1, vocab_size=50))}, plan(teacher))


def test_results_are_plain_numbers_without_a_model():
    half = Estimate(0.5, 0.4, 0.6)
    directions = MinimalDirections("y", "L1.resid@y", half, (1, 2), (half, half), None, 8, 0.1)
    assert directions.fewest is None
    assert Student("s", 1, 8, 100, ()).passes_gates  # No gate is closed.


def test_a_gate_decides_for_a_student(fox):
    gates = gate(fox.model, fox.pattern, prompts=40)
    partial = (gates[0], replace(gates[1], state="partial"))
    assert Student("s", 2, 8, 100, gates).passes_gates
    assert not Student("s", 2, 8, 100, partial).passes_gates
