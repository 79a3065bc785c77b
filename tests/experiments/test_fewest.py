"""What was planted in one direction takes one, and the smallest student is one that can."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from probes.compression.distillation.plan import TrainingConfig, TrainingText
from probes.errors import GateError, ModelError, ProbeError
from probes.experiments.fewest.result import FewestParameters, MinimalDirections, Student
from probes.experiments.fewest.search import count_parameters, fewest_parameters
from probes.experiments.soft_labels.cohort import Learner, distill_cohort
from probes.models.model import random_init
from probes.observe.gate import gate
from probes.stats.intervals import Estimate
from probes.testing.planted_patterns import planted_fox
from probes.testing.tiny_models import tiny_hf

SMALL: dict[str, Any] = {"bases": 16, "prompts": 4, "variables": ("operation",)}


@pytest.fixture(scope="module")
def fox():
    return planted_fox("template")


@pytest.fixture(scope="module")
def found(fox):
    net = random_init(fox.model, seed=3)
    return fewest_parameters([fox.model], fox.pattern, students=[net, fox.model], **SMALL)


def test_a_planted_direction_takes_one(found):
    (few,) = found.models
    (here,) = few.directions
    assert (here.site, here.fewest, here.sizes) == ("L1.resid@op", 1, (1,))
    assert here.interchange_accuracy[0].value >= 0.9 * here.full_state.value
    assert here.null < 0.5


def test_a_circuit_is_smaller_than_the_model_and_beats_the_lot(found):
    wires = found.models[0].circuit
    assert wires.is_sufficient
    assert wires.held_out.value.value >= 0.9
    assert 0 < wires.held_out.edges < wires.total_edges / 4
    assert wires.random_max < 0.5
    assert 0 < wires.parameters < found.models[0].block_parameters


def test_weights_are_counted_once(fox, found):
    config = fox.model.config
    inner = config.num_hidden_layers * (
        4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    )
    assert found.models[0].block_parameters == inner
    assert found.models[0].parameters == count_parameters(fox.model) > inner


def test_the_smallest_student_is_the_smallest_that_does_it(found):
    able, unable = sorted(found.students, key=lambda one: not one.passes_gates)
    assert (able.passes_gates, unable.passes_gates) == (True, False)
    assert found.smallest is None, "one of two seeds of the shape fails"
    small = replace(unable, parameters=10, d_model=4)
    some = FewestParameters(
        found.pattern, 0.9, found.models, (able, replace(able, d_model=99), small)
    )
    assert some.smallest == (able.parameters, (able,))
    assert f"Smaller ones do not surely: {unable.model}" in some.summary()[-1]


def test_no_student_that_can_is_said_so(found):
    unable = next(one for one in found.students if not one.passes_gates)
    assert "None of 1 students" in FewestParameters("x", 0.9, (), (unable,)).summary()[-1]


def test_directions_that_are_not_enough_are_no_number(fox):
    """The noun's own codes: one direction cannot serve sixteen dimensions."""
    rotated = planted_fox("rotated")
    found = fewest_parameters([rotated.model], rotated.pattern, sizes=(1,), **SMALL)
    here = found.models[0].directions[0]
    assert here.fewest is None
    assert "not enough" in found.summary()[0]
    assert found.table().fewest.isna()[0]


def test_it_is_tabled_and_saved(found, tmp_path):
    table = found.table()
    assert set(table.unit) == {"directions", "edges", "weights of its nodes", "parameters"}
    assert (table.part.dropna() <= 1).all()
    lacking = replace(
        found.models[0], circuit=replace(found.models[0].circuit, random_max=float("nan"))
    )
    replace(found, models=(lacking,)).save(tmp_path / "few.json")
    # NaN is no JSON: strict readers refuse it.
    told = json.loads((tmp_path / "few.json").read_text(), parse_constant=pytest.fail)
    assert told["models"][0]["block_parameters"] > 0
    assert told["models"][0]["circuit"]["random_max"] is None
    found.save(tmp_path / "few.csv")
    assert (tmp_path / "few.csv").read_text().startswith("model,what,unit,fewest,of")


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": 0.0}, {"threshold": 1.5}, {"sizes": ()}, {"sizes": (2, 1)}, {"sizes": (0, 1)}],
)
def test_numbers_that_ask_for_nothing_are_refused(fox, wrong):
    with pytest.raises(ProbeError):
        fewest_parameters([fox.model], fox.pattern, **{**SMALL, **wrong})


def test_no_model_an_unknown_variable_and_one_that_cannot_do_it_are_refused(fox):
    with pytest.raises(ProbeError, match="0 models"):
        fewest_parameters([], fox.pattern)
    with pytest.raises(ProbeError, match="no variable"):
        fewest_parameters([fox.model], fox.pattern, **{**SMALL, "variables": ("luck",)})
    with pytest.raises(GateError):
        fewest_parameters([random_init(fox.model, seed=1)], fox.pattern, **SMALL)


# A class of students.

ROWS = [TrainingText((1, 5 + n % 7, 20 + n % 7, 40 + n % 7, 2)) for n in range(64)]
DIALS = TrainingConfig(steps=12, seed=0, batch=8, warmup=2)


def small(seed, **more):
    return tiny_hf("llama", seed, num_hidden_layers=1, **more)


def weights(model):
    return torch.cat([w.detach().flatten() for w in model.parameters()])


def test_students_learn_what_the_teacher_says():
    teacher, student = tiny_hf("llama", 9), small(1)
    ids = torch.tensor([row.ids for row in ROWS[:7]])

    def gap():
        with torch.no_grad():
            both = (m(input_ids=ids).logits.log_softmax(-1) for m in (student, teacher))
            said, wanted = both
        return float((wanted.exp() * (wanted - said)).sum(-1).mean())

    before = gap()
    distill_cohort(
        {"a": Learner(student, 1e-2, 0.0)}, teacher, ROWS, replace(DIALS, steps=40), pad=0
    )
    assert gap() < 0.6 * before


def test_who_sits_beside_a_student_changes_nothing():
    alone, beside, other = small(1), small(1), small(2)
    teacher = tiny_hf("llama", 9)
    distill_cohort({"a": Learner(alone)}, teacher, ROWS, DIALS, pad=0)
    distill_cohort({"b": Learner(other, 1e-1), "a": Learner(beside)}, teacher, ROWS, DIALS, pad=0)
    assert torch.equal(weights(alone), weights(beside))


def test_the_teacher_stays_as_it_is_and_all_steps_are_seen():
    teacher, seen = tiny_hf("llama", 9), []
    before = weights(teacher).clone()

    def look(step, models):
        seen.append((step, *models))

    distill_cohort({"a": Learner(small(1))}, teacher, ROWS, DIALS, pad=0, callback=look)
    assert torch.equal(weights(teacher), before)
    assert seen == [(step, "a") for step in range(DIALS.steps + 1)]


def test_classes_that_cannot_be_taught_are_refused():
    teacher, student = tiny_hf("llama", 9), small(1)
    with pytest.raises(ModelError, match="0 students"):
        distill_cohort({}, teacher, ROWS, DIALS, pad=0)
    with pytest.raises(ModelError, match="model of its own"):
        distill_cohort({"a": Learner(student), "b": Learner(student)}, teacher, ROWS, DIALS, pad=0)
    with pytest.raises(ModelError, match="one vocabulary"):
        distill_cohort({"a": Learner(small(1, vocab_size=50))}, teacher, ROWS, DIALS, pad=0)


def test_a_share_can_be_told_without_a_model():
    """Results are plain numbers: they are made and read without any net."""
    half = Estimate(0.5, 0.4, 0.6)
    found = MinimalDirections("y", "L1.resid@y", half, (1, 2), (half, half), None, 8, 0.1)
    assert found.fewest is None
    assert Student("s", 1, 8, 100, ()).passes_gates  # No gate was asked for: none is shut.


def test_a_gate_decides_for_a_student(fox):
    gates = gate(fox.model, fox.pattern, prompts=40)
    shut = (gates[0], replace(gates[1], state="partial"))
    assert Student("s", 2, 8, 100, gates).passes_gates
    assert not Student("s", 2, 8, 100, shut).passes_gates
