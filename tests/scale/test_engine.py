"""Engines: a unit gives the same wherever it runs, and its errors and warnings arrive."""

import json
import threading
import warnings
from dataclasses import fields, replace
from functools import partial

import pytest
import torch

import probes as pb
from probes.circuits.question.ask import AskSettings
from probes.circuits.trace import TraceSettings
from probes.claims.run import ClaimSettings, evaluate_claims
from probes.comparison.rate_distortion.measure import RateDistortionSettings
from probes.comparison.walkthrough.explain import ExplainSettings
from probes.errors import EngineError, ModelError
from probes.experiments.soft_labels.plan import NameStudySettings
from probes.experiments.soft_labels.run import name_study
from probes.experiments.studies.parts import Part, run_parts
from probes.experiments.studies.registry import run_study
from probes.models.files.loading import parse_dtype
from probes.observe.behavior import evaluate_behavior
from probes.observe.format.fit import FitSettings
from probes.observe.gate import answer_questions
from probes.prompts.catalog import pattern
from probes.prompts.tokens import tokenization
from probes.prompts.tokens.batch import tokenize
from probes.scale.encoding import model_digest
from probes.scale.engine import HERE, InProcess, open_engine, unit_runner
from probes.scale.packed_model import pack_model, unpack_model
from probes.scale.store import Store
from probes.scale.worker import Packer, Worker, value_of
from probes.stats.intervals import bootstrap_mean
from probes.testing.tiny_models import KINDS, OTHER_KINDS, POST_NORM_KINDS, tiny

FOX = "If I have two foxes and I take away one, how many foxes do I have?"
VALUES = torch.arange(8.0).numpy()
SMALL_PLAN = NameStudySettings(
    updates=3, batch=2, layers=1, width=16, heads=2, warmup=1, seeds=(1, 2), tuning_seed=9,
    rates=(0.01,), test=4, first_look=1,
)  # fmt: skip


class ByBytes:
    """Engine whose units cross to a worker of this process and back as bytes."""

    workers = 1

    def __init__(self):
        self.packer, self.places = Packer(lambda packed: packed), {}
        self.fetched, self.outcomes = [], []
        self.worker, self.lock = Worker(self.fetch), threading.Lock()

    def fetch(self, digest):
        self.fetched.append(digest)
        return self.places[digest]

    def call(self, function, *args, **kwargs):
        with self.lock:
            unit, places = self.packer.pack(function, args, kwargs)
            self.places |= places
            self.outcomes.append(self.worker.run(unit))
            return value_of(self.outcomes[-1], self.packer.models)


@pytest.mark.parametrize("kind", [*KINDS, *POST_NORM_KINDS, *OTHER_KINDS])
def test_a_packed_model_is_built_as_an_equal_one(kind):
    model = tiny(kind)
    built = unpack_model(pack_model(model))
    assert model_digest(built) == model_digest(model)
    ids = torch.arange(1, 13).reshape(2, 6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(built.logits(ids, mask), model.logits(ids, mask))


def test_a_quantized_model_travels_with_its_tokenizer_and_provenance():
    model = pb.load(pb.quantize("distilled", "int4"))
    built = unpack_model(pack_model(model))
    assert model_digest(built) == model_digest(model)
    assert built.provenance == model.provenance
    text = "If I have two foxes"
    assert built.tokenizer(text).input_ids == model.tokenizer(text).input_ids


def test_a_model_that_is_built_as_another_is_refused():
    packed = pack_model(tiny("llama"))
    with pytest.raises(EngineError, match="cannot be built by a worker"):
        unpack_model(replace(packed, digest="0" * 40))


def test_a_unit_gives_the_same_as_bytes():
    engine = ByBytes()
    assert engine.call(bootstrap_mean, VALUES, seed=3) == bootstrap_mean(VALUES, seed=3)
    model = pb.load("distilled")
    batch = tokenize(model.tokenizer, [pattern("take-away").match(FOX)])
    there, here = (run(evaluate_behavior, model, batch) for run in (engine.call, InProcess().call))
    assert torch.equal(there.correct, here.correct)


def test_models_and_arguments_are_built_once():
    engine, model = ByBytes(), pb.load("distilled")
    batch = tokenize(model.tokenizer, [pattern("take-away").match(FOX)])
    for _ in range(3):
        engine.call(evaluate_behavior, model, batch)
    assert len(engine.fetched) == len({*engine.fetched}) == 2
    assert model_digest(model) in engine.fetched


def test_models_of_equal_tokenizers_share_one_and_its_prompts(monkeypatch):
    engine, questions = ByBytes(), [pattern("take-away").match(FOX)]
    first, second = pb.load("distilled"), pb.load("full")
    tokenized = []
    kept = tokenization._tokenize
    monkeypatch.setattr(tokenization, "_tokenize", lambda *a: tokenized.append(a) or kept(*a))
    for model in (first, second, first):
        assert engine.call(answer_questions, model, questions).correct.all()
    assert len(tokenized) == 1
    here, there = engine.worker._models.values()
    assert here.tokenizer is there.tokenizer


def test_an_error_arrives_as_what_it_was_and_a_warning_is_given_again():
    engine = ByBytes()
    with pytest.raises(ModelError, match="float7"):
        engine.call(parse_dtype, "float7")
    engine.worker._value = lambda unit: 1 / 0
    with pytest.raises(EngineError, match="ZeroDivisionError") as failed:
        engine.call(bootstrap_mean, VALUES, seed=3)
    assert "line" in failed.value.__notes__[0]
    engine.worker._value = lambda unit: warnings.warn("four texts are left out", stacklevel=1)
    with pytest.warns(UserWarning, match="four texts"), pytest.raises(EngineError):
        engine.call(bootstrap_mean, VALUES, seed=3)


def test_a_store_keeps_what_an_engine_measures(tmp_path):
    engine, store = ByBytes(), Store(tmp_path)
    run_unit = unit_runner(store, engine)
    first = run_unit("mean", bootstrap_mean, VALUES, seed=3)
    again = unit_runner(Store(tmp_path), engine)("mean", bootstrap_mean, VALUES, seed=3)
    assert again == first == Store(tmp_path).remember("mean", bootstrap_mean, VALUES, seed=3)
    assert len(engine.outcomes) == 1


@pytest.mark.slow
def test_a_curve_is_the_same_as_bytes():
    relatives = [pb.quantize("distilled", "int4"), "distilled-narrow"]
    settings = RateDistortionSettings(bases=20, prompts=4, noise_copies=1, nulls=1)
    here, there = (
        pb.rate_distortion("distilled", relatives, settings=replace(settings, engine=engine))
        for engine in ("inprocess", ByBytes())
    )
    assert json.dumps(there.to_dict()) == json.dumps(here.to_dict())


@pytest.mark.slow
def test_a_trace_is_the_same_as_bytes():
    sizes, engine = {"prompts": 4, "random_circuits": 4, "added_edges": 4}, ByBytes()
    here, there = (
        pb.trace("distilled", settings=TraceSettings(**sizes, engine=each))
        for each in ("inprocess", engine)
    )
    assert json.dumps(there.to_dict()) == json.dumps(here.to_dict())
    assert len(engine.outcomes) == 4


@pytest.mark.slow
def test_claims_are_the_same_as_bytes():
    settings, engine = ClaimSettings(bases=24, nulls=2), ByBytes()
    here, there = (
        evaluate_claims("distilled", settings=replace(settings, engine=each))
        for each in ("inprocess", engine)
    )
    assert json.dumps(there.to_dict()) == json.dumps(here.to_dict())
    assert len(engine.outcomes) == 2 + 4


def test_a_part_that_fails_is_named_and_the_rows_of_the_others_are_given():
    parts = [
        Part("first", known=["known"]),
        Part("second", partial(parse_dtype, "float7")),
        Part("third", partial(list, VALUES[:2])),
        Part("fourth", partial(parse_dtype, "float9")),
    ]
    rows = run_parts(parts, HERE)
    assert [next(rows) for _ in range(3)] == ["known", 0.0, 1.0]
    with pytest.raises(ModelError, match=r"second is not measured.*float7.*fourth failed, too"):
        next(rows)


def test_the_runs_of_a_study_are_the_same_as_bytes():
    engine = ByBytes()
    here, there = (
        [*name_study(("soft", "hard"), plan=SMALL_PLAN, engine=each)] for each in (HERE, engine)
    )
    assert there == here
    assert len(engine.outcomes) == 4


def test_a_study_without_units_is_refused_on_an_engine(tmp_path):
    with pytest.raises(EngineError, match="'real-models' runs in one process"):
        run_study("real-models", folder=tmp_path, work=tmp_path, engine=ByBytes())


@pytest.mark.parametrize("settings", [AskSettings, ExplainSettings, FitSettings])
def test_settings_that_no_engine_reads_have_none(settings):
    assert not {"engine", "workers"} & {each.name for each in fields(settings)}


@pytest.mark.parametrize("name", ["spark", "inprocess:there", "processes:4", ""])
def test_an_engine_that_does_not_exist_is_refused(name):
    with pytest.raises(EngineError, match="choose inprocess, processes, ray or ray:ADDRESS"):
        open_engine(name).__enter__()
