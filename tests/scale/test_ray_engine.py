"""The engine on Ray: the same result as in this process, also when workers end."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer

import probes as pb
from probes.circuits.trace import TraceSettings
from probes.claims.run import ClaimSettings
from probes.comparison.setup.references import ComparisonSettings
from probes.errors import EngineError
from probes.experiments.family.recipes import recipe
from probes.experiments.studies import grids
from probes.experiments.studies.grids import ModelGrid
from probes.experiments.studies.registry import run_study
from probes.files import data_folder, write_rows
from probes.scale import ray_engine
from probes.scale.engine import HERE, open_engine
from probes.stats.intervals import bootstrap_mean

FAMILY = data_folder() / "models"
SMALL = {"prompts": 4, "draws": 1, "nulls": 2}


class EndsItsWorker:
    """Unit over which a process ends as soon as it reads it."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.fixture(scope="module")
def engine():
    pytest.importorskip("ray", reason="Ray is not installed")
    with open_engine("ray", workers=2) as opened:
        yield opened


def as_json(result, folder):
    path = folder / "result.json"
    result.save(path)
    return path.read_text(encoding="utf-8")


def test_without_ray_the_engine_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match="pip install"), open_engine("ray"):
        pass


@pytest.mark.slow
def test_a_comparison_is_the_same_when_a_worker_is_killed(engine, tmp_path):
    settings = ComparisonSettings(**SMALL, workers=2)
    here = pb.compare("distilled", "random-init", "take-away", settings)
    kill = threading.Thread(target=_kill_one_that_works, args=(engine,))
    kill.start()
    there = pb.compare(
        "distilled", "random-init", "take-away", ComparisonSettings(**SMALL, engine=engine)
    )
    kill.join()
    assert as_json(there, tmp_path) == as_json(here, tmp_path)
    assert engine.restarts >= 1


def _kill_one_that_works(engine):
    import ray

    slot = engine._slots[0]
    while slot.actor is None or not slot.lock.locked():
        time.sleep(0.05)
    ray.kill(slot.actor)


@pytest.mark.slow
def test_a_unit_that_ends_every_worker_is_named(engine):
    with pytest.raises(EngineError, match="the unit ended its worker 3 times"):
        engine._run(engine._slots[0], EndsItsWorker(), {}, "the unit")
    values = np.array([1.0, 2.0, 3.0])
    assert engine.call(bootstrap_mean, values, seed=0) == bootstrap_mean(values, seed=0)


@pytest.mark.slow
def test_a_worker_with_other_versions_is_refused(engine, monkeypatch):
    import ray

    slot = engine._slots[0]
    if slot.actor is not None:  # Its core is for the worker that is started here.
        ray.kill(slot.actor)
        slot.actor = None
    monkeypatch.setattr(ray_engine, "versions", lambda: ("other",))
    with pytest.raises(EngineError, match=r"has other versions .* install the same package"):
        engine._start()


def test_ray_does_not_take_the_handler_of_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    with ray_engine._same_handler(signal.SIGTERM):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_more_workers_than_cores_are_refused(engine):
    with pytest.raises(EngineError, match="give fewer --workers"), open_engine("ray", workers=999):
        pass


@pytest.mark.slow
def test_a_study_trains_and_measures_the_same_models(engine, tmp_path, monkeypatch):
    small = replace(
        recipe("scratch"), layers=2, d_model=32, heads=2, d_mlp=32, items=64, steps=6, batch=8,
        shipped=False,
    )  # fmt: skip
    members = (
        replace(small, name="small-1"),
        replace(small, name="small-2", seed=6, start="fresh", teacher="distilled"),
    )
    monkeypatch.setitem(grids.GRIDS, "labels", (ModelGrid("distilled", members),))
    tables, weights = [], []
    for place, each in (("here", HERE), ("there", engine)):
        work = tmp_path / place
        AutoTokenizer.from_pretrained(FAMILY / "full").save_pretrained(work / "tokenizer")
        table = work / "labels.csv"
        write_rows([*run_study("labels", folder=FAMILY, work=work, engine=each)], table)
        tables.append(table.read_bytes())
        weights.append([(work / m.name / "model.safetensors").read_bytes() for m in members])
    assert tables[0] == tables[1]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_traces_and_claims_are_the_same(engine, tmp_path):
    trace = TraceSettings(prompts=4, random_circuits=8, added_edges=8)
    claims = ClaimSettings(bases=40, nulls=2)
    results = [
        (
            pb.compare_traces("full", "full-b", settings=replace(trace, engine=each)),
            pb.evaluate_claims("full", settings=replace(claims, engine=each)),
        )
        for each in ("inprocess", engine)
    ]
    for here, there in zip(*results, strict=True):
        assert as_json(there, tmp_path) == as_json(here, tmp_path)
