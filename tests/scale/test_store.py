"""The store of finished work: what is kept is read, what is broken or other is measured again."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from probes.errors import StoreError
from probes.files import write_atomic
from probes.scale import store as store_module
from probes.scale.commands import remember_command
from probes.scale.encoding import model_digest
from probes.scale.store import Store
from probes.stats.intervals import bootstrap_mean
from probes.testing.tiny_models import tiny

SAMPLE = torch.arange(8.0).numpy()


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of a function of the package that the store runs."""
    made = []

    def counted(values, *, seed=0):
        made.append(seed)
        return bootstrap_mean(values, seed=seed)

    counted.__module__, counted.__qualname__ = "probes.stats.intervals", "bootstrap_mean"
    return made, counted


def test_what_was_measured_once_is_read(tmp_path, calls):
    made, measure = calls
    first = Store(tmp_path).remember("mean", measure, SAMPLE, seed=3)
    again = Store(tmp_path).remember("mean", measure, SAMPLE.copy(), seed=3)
    assert again == first == bootstrap_mean(SAMPLE, seed=3)
    assert made == [3]


def test_other_arguments_or_versions_are_measured(tmp_path, calls, monkeypatch):
    made, measure = calls
    store = Store(tmp_path)
    store.remember("mean", measure, SAMPLE, seed=3)
    store.remember("mean", measure, SAMPLE, seed=4)
    store.remember("mean", measure, SAMPLE + 1, seed=3)
    monkeypatch.setattr(store_module, "versions", lambda: ("other",))
    store.remember("mean", measure, SAMPLE, seed=3)
    assert made == [3, 4, 3, 3]


def test_a_model_with_hooks_of_the_user_is_refused(tmp_path):
    model, store = tiny("llama"), Store(tmp_path)
    digest = remember_command(store, "digest", model_digest, model)
    handle = model.bridge.blocks[0].register_forward_hook(lambda *_: None)
    with pytest.raises(StoreError, match="has 1 hooks"):
        remember_command(store, "digest", partial(model_digest, model))
    handle.remove()
    assert remember_command(store, "digest", model_digest, model) == digest


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "swap"])
def test_a_broken_file_is_found_and_measured_again(tmp_path, calls, harm):
    made, measure = calls
    store = Store(tmp_path)
    first = store.remember("mean", measure, SAMPLE, seed=1)
    store.remember("mean", measure, SAMPLE, seed=2)
    one, two = (store.path(unit.key) for unit in store.ledger.units())
    content = bytearray(one.read_bytes())
    content[-3] ^= 1
    match harm:
        case "flip":
            one.write_bytes(bytes(content))
        case "cut":
            one.write_bytes(bytes(content[:20]))
        case "remove":
            one.unlink()
        case "swap":
            shutil.copy(two, one)
    assert [unit.key for unit in store.broken()] == [one.stem]
    assert store.remember("mean", measure, SAMPLE, seed=1) == first
    assert made == [1, 2, 1]
    assert not store.broken()


def test_an_error_before_anything_is_finished_leaves_no_file(tmp_path, calls):
    _, measure = calls
    with pytest.raises(TypeError), Store(tmp_path / "runs").running() as store:
        store.remember("mean", measure, "words", seed=2)
    assert not list(tmp_path.iterdir())


def test_an_error_keeps_nothing_and_the_run_is_failed(tmp_path, calls):
    _, measure = calls
    store = Store(tmp_path, "probes compare a b")
    with pytest.raises(TypeError), store.running():
        store.remember("mean", measure, SAMPLE, seed=1)
        store.remember("mean", measure, "words", seed=2)
    assert len(store.ledger.units()) == 1
    (run,) = store.runs()
    assert (run.command, run.state, run.measured, run.reused) == (
        "probes compare a b",
        "failed",
        1,
        0,
    )


def test_an_interrupted_run_says_so_and_the_next_one_goes_on(tmp_path, calls):
    made, measure = calls
    with pytest.raises(KeyboardInterrupt), Store(tmp_path).running() as store:
        for seed in range(2):
            store.remember("mean", measure, SAMPLE, seed=seed)
        raise KeyboardInterrupt
    with Store(tmp_path).running() as store:
        for seed in range(4):
            store.remember("mean", measure, SAMPLE, seed=seed)
    assert made == [0, 1, 2, 3]
    assert [(run.state, run.measured, run.reused) for run in store.runs()] == [
        ("done", 2, 2),
        ("interrupted", 2, 0),
    ]


def test_threads_never_do_a_unit_twice(tmp_path):
    made, lock = [], threading.Lock()

    def slow(values, *, seed=0):
        with lock:
            made.append(seed)
        time.sleep(0.02)
        return bootstrap_mean(values, seed=seed)

    slow.__module__, slow.__qualname__ = "probes.stats.intervals", "bootstrap_mean"
    stores = [Store(tmp_path) for _ in range(4)]
    jobs = [
        threading.Thread(
            target=lambda own=own: [own.remember("m", slow, SAMPLE, seed=k) for k in range(5)]
        )
        for own in stores
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert sorted(made) == [0, 1, 2, 3, 4]


WORKER = """
import sys, time
from pathlib import Path
import torch
from probes.scale.store import Store
from probes.stats.intervals import bootstrap_mean
def slow(values, *, seed=0):
    with Path(sys.argv[2]).open("a") as file:
        file.write(f"{seed}\\n")
    time.sleep(0.1)
    return bootstrap_mean(values, seed=seed)
slow.__module__, slow.__qualname__ = "probes.stats.intervals", "bootstrap_mean"
sample = torch.arange(8.0).numpy()
with Store(sys.argv[1], "worker").running() as store:
    for seed in range(12):
        store.remember("mean", slow, sample, seed=seed)
"""


@pytest.mark.slow
def test_two_processes_share_the_work_and_a_killed_one_loses_one_unit(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "store"
    command = [sys.executable, "-c", WORKER, str(folder), str(log)]
    first = subprocess.Popen(command)
    while not log.is_file() or len(log.read_text().split()) < 4:
        time.sleep(0.02)
    second = subprocess.Popen(command)
    time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    assert second.wait(120) == 0
    assert first.wait(10) == -signal.SIGKILL
    done = [int(line) for line in log.read_text().split()]
    assert set(done) == set(range(12))
    assert len(done) <= 13  # The unit that was killed is done again, no other.
    store = Store(folder)
    assert [run.state for run in store.runs()] == ["done", "killed"]
    assert not store.broken()
    assert store.remember("mean", bootstrap_mean, SAMPLE, seed=5) == bootstrap_mean(SAMPLE, seed=5)
    assert (store.measured, store.reused) == (0, 1)


def test_a_full_disk_is_one_line_and_what_was_kept_stays(tmp_path, calls, monkeypatch):
    made, measure = calls
    store = Store(tmp_path)
    store.remember("mean", measure, SAMPLE, seed=1)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "write_atomic", full)
    with pytest.raises(StoreError, match=r"No space left on device.*--no-store"):
        store.remember("mean", measure, SAMPLE, seed=2)
    monkeypatch.setattr(store_module, "write_atomic", write_atomic)
    assert len(store.ledger.units()) == 1
    store.remember("mean", measure, SAMPLE, seed=2)
    assert made == [1, 2, 2]


def test_a_folder_that_cannot_be_a_store_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"There can be no store in .*give another folder"):
        Store(tmp_path / "file")
    Store(tmp_path / "newer").remember("mean", bootstrap_mean, SAMPLE, seed=1)
    with sqlite3.connect(tmp_path / "newer" / "ledger.sqlite") as base:
        base.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="has schema 99, and this version reads 1"):
        Store(tmp_path / "newer")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ledger.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=r"ledger .* cannot be used \(file is not a database\)"):
        Store(tmp_path / "broken")


def test_a_unit_is_read_for_an_equal_model_only(tmp_path):
    one, equal, other = (tiny("llama", seed=seed) for seed in (0, 0, 1))
    store = Store(tmp_path)
    keys = [store.key(bootstrap_mean, ([model],), {}) for model in (one, equal, other)]
    assert keys[0] == keys[1] != keys[2]


def test_removed_units_are_gone_from_ledger_and_disk(tmp_path, calls):
    _, measure = calls
    store = Store(tmp_path)
    store.remember("mean", measure, SAMPLE, seed=1)
    (unit,) = store.ledger.units()
    store.remove([unit])
    assert not store.ledger.units()
    assert not list((tmp_path / "units").glob("*/*"))
    stray = store.path("ab" * 20)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"half")
    assert store.strays() == [stray]
    assert replace(unit, key="x") not in store.ledger.units()
