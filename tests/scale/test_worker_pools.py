"""Engines of workers: the same result as in this process, also when workers end."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

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
from probes.scale.messages import Message
from probes.stats.intervals import bootstrap_mean

FAMILY = data_folder() / "models"
SMALL = {"prompts": 4, "draws": 1, "nulls": 2}
VALUES = np.array([1.0, 2.0, 3.0])


class EndsItsWorker(Message):
    """Unit over which a process ends as soon as it reads it."""

    def __reduce__(self):
        return os._exit, (1,)


class Prints(Message):
    """Unit that prints when it is read, and is none."""

    def __reduce__(self):
        return print, ("not an outcome",)


@pytest.fixture(scope="module")
def ray_workers():
    pytest.importorskip("ray", reason="Ray is not installed")
    with open_engine("ray", workers=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def two_processes():
    with open_engine("processes", workers=2) as opened:
        yield opened


@pytest.fixture(scope="module", params=["two_processes", "ray_workers"])
def engine(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def processes():
    with open_engine("processes", workers=1) as opened:
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
    slot = engine._slots[0]
    while slot.worker is None or not slot.lock.locked():
        time.sleep(0.05)
    slot.worker.end()


@pytest.mark.slow
def test_a_unit_that_ends_every_worker_is_named(engine):
    with pytest.raises(EngineError, match="the unit ended its worker 3 times"):
        engine._run(engine._slots[0], EndsItsWorker(b"", ()), {}, "the unit")
    assert engine.call(bootstrap_mean, VALUES, seed=0) == bootstrap_mean(VALUES, seed=0)


def test_a_unit_gives_the_same_in_another_process(processes):
    assert processes.call(bootstrap_mean, VALUES, seed=0) == bootstrap_mean(VALUES, seed=0)


def test_what_a_unit_prints_is_no_outcome(processes, capfd):
    outcome = processes._run(processes._slots[0], Prints(b"", ()), {}, "the unit")
    assert outcome.error[0] == "AttributeError"
    assert capfd.readouterr() == ("", "")
    assert processes.restarts == 0


def test_a_killed_process_costs_its_unit_only(processes):
    before = processes.restarts
    processes.call(bootstrap_mean, VALUES, seed=0)
    processes._slots[0].worker.process.kill()
    assert processes.call(bootstrap_mean, VALUES, seed=0) == bootstrap_mean(VALUES, seed=0)
    assert processes.restarts == before + 1


def test_processes_end_with_the_one_that_started_them(tmp_path):
    # Without `if __name__ == "__main__"`: no process runs the script again.
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from probes.scale.engine import open_engine\n"
        "with open_engine('processes', workers=1) as engine:\n"
        "    print(engine._slots[0].worker.process.pid, engine.put.__self__.folder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as started:
        worker, folder = started.stdout.readline().split()
        started.kill()
    end = time.monotonic() + 60
    while _runs(int(worker)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _runs(int(worker))
    assert not Path(folder).exists()


def _runs(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")  # A process whose parent has not asked for it is a zombie.
    return not stat.exists() or stat.read_text().split()[2] != "Z"


def test_nothing_is_left_of_processes_that_were_closed():
    with open_engine("processes", workers=1) as opened:
        opened.call(bootstrap_mean, VALUES, seed=0)
        worker, place = opened._slots[0].worker.process, Path(opened.put.__self__.folder)
        assert place.is_dir()
    assert worker.poll() is not None
    assert not place.exists()
    with pytest.raises(EngineError, match="ended with its engine"):
        opened.call(bootstrap_mean, VALUES, seed=0)


@pytest.mark.slow
def test_a_worker_with_other_versions_is_refused(ray_workers, monkeypatch):
    slot = ray_workers._slots[0]
    if slot.worker is not None:  # Its core is for the worker that is started here.
        slot.worker.end()
        slot.worker = None
    monkeypatch.setattr(ray_engine, "versions", lambda: ("other",))
    with pytest.raises(EngineError, match=r"has other versions .* install the same package"):
        ray_workers.start()


def test_ray_does_not_take_the_handler_of_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    with ray_engine._same_handler(signal.SIGTERM):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
    assert signal.getsignal(signal.SIGTERM) is before


def test_more_processes_than_cores_are_refused():
    with (
        pytest.raises(EngineError, match="give fewer --workers"),
        open_engine("processes", workers=999),
    ):
        pass


@pytest.mark.slow
def test_more_workers_of_ray_than_cores_are_refused(ray_workers):
    with pytest.raises(EngineError, match="give fewer --workers"), open_engine("ray", workers=999):
        pass


@pytest.mark.slow
def test_a_study_trains_and_measures_the_same_models(ray_workers, tmp_path, monkeypatch):
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
    for place, each in (("here", HERE), ("there", ray_workers)):
        work = tmp_path / place
        AutoTokenizer.from_pretrained(FAMILY / "full").save_pretrained(work / "tokenizer")
        table = work / "labels.csv"
        write_rows([*run_study("labels", folder=FAMILY, work=work, engine=each)], table)
        tables.append(table.read_bytes())
        weights.append([(work / m.name / "model.safetensors").read_bytes() for m in members])
    assert tables[0] == tables[1]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_traces_and_claims_are_the_same(two_processes, tmp_path):
    trace = TraceSettings(prompts=4, random_circuits=8, added_edges=8)
    claims = ClaimSettings(bases=24, nulls=2)
    results = [
        (
            pb.compare_traces("distilled", "scratch", settings=replace(trace, engine=each)),
            pb.evaluate_claims("distilled", settings=replace(claims, engine=each)),
        )
        for each in ("inprocess", two_processes)
    ]
    for here, there in zip(*results, strict=True):
        assert as_json(there, tmp_path) == as_json(here, tmp_path)
