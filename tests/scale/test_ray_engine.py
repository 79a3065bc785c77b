"""The engine on Ray: the same result as in this process, also when workers end."""

import os
import sys
import threading
import time

import numpy as np
import pytest

import probes as pb
from probes.comparison.setup.references import ComparisonSettings
from probes.errors import EngineError
from probes.scale.engine import open_engine
from probes.stats.intervals import bootstrap_mean

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
def test_more_workers_than_cores_are_refused(engine):
    with pytest.raises(EngineError, match="give fewer --workers"), open_engine("ray", workers=999):
        pass
