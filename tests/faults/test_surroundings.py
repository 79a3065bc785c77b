"""What surrounds a command: folders, clocks, locales, terminals, spreadsheets, memory."""

import io
import json
import locale
import os
import sqlite3
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from safetensors import SafetensorError

from probes.cli import common
from probes.cli.common import PlainConsole, print_line, reports_errors
from probes.compression.derived_model import write_folder_atomic
from probes.errors import FigureError, StoreError
from probes.files import as_text, read_rows, to_jsonable, write_frame, write_rows
from probes.scale.store import Store
from probes.stats.intervals import bootstrap_mean

SAMPLE = np.arange(8.0)


def remember(folder, seed=1):
    """A unit of a store, and whether it was measured."""
    store = Store(folder)
    value = store.remember("mean", bootstrap_mean, SAMPLE, seed=seed)
    return value, store.measured


@pytest.mark.parametrize("name", ["two words", "süß 狐 🦊", 'it\'s "quoted" & <b>', "%41#?"])
def test_a_store_may_be_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name / "runs"
    first, again = remember(folder), remember(folder)
    assert (first[1], again[1]) == (1, 0)
    assert first[0] == again[0]


def test_a_clock_that_is_turned_back_loses_no_unit(tmp_path, monkeypatch):
    remember(tmp_path, seed=1)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    with Store(tmp_path, "probes compare a b").running() as store:
        store.remember("mean", bootstrap_mean, SAMPLE, seed=1)
        store.remember("mean", bootstrap_mean, SAMPLE, seed=2)
    assert (store.reused, store.measured) == (1, 1)
    assert [run.state for run in store.runs()] == ["done"]
    assert next(unit.created for unit in store.ledger.units()) == 1.0


def test_a_decimal_comma_of_the_locale_changes_no_file(tmp_path, monkeypatch):
    rows = [{"model": "a", "value": 0.25}]
    write_rows(rows, tmp_path / "point.csv")
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
    except locale.Error:
        # No such locale here: its decimal point alone is what could matter.
        monkeypatch.setattr(locale, "localeconv", lambda: {"decimal_point": ","})
    try:
        write_rows(rows, tmp_path / "comma.csv")
        assert read_rows(tmp_path / "comma.csv") == rows
        first = remember(tmp_path / "runs")
    finally:
        locale.setlocale(locale.LC_ALL, before)
    assert (tmp_path / "comma.csv").read_bytes() == (tmp_path / "point.csv").read_bytes()
    assert remember(tmp_path / "runs") == (first[0], 0)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match=r"cannot be written.*give another folder with --run"):
        Store(tmp_path / "runs")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["../../../outside", "/etc/outside", "..", "AB" * 20, ""])
def test_a_ledger_that_was_edited_reaches_no_file_elsewhere(tmp_path, key):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"mine")
    store = Store(tmp_path / "runs")
    store.remember("mean", bootstrap_mean, SAMPLE, seed=1)
    store.ledger.close()
    with sqlite3.connect(tmp_path / "runs" / "ledger.sqlite") as base:
        base.execute("UPDATE units SET key = ?", (key,))
    units = store.ledger.units()
    for use in (store.broken, store.strays, lambda: store.remove(units)):
        with pytest.raises(StoreError, match="which is no digest: give another folder"):
            use()
    assert outside.read_bytes() == b"mine"
    assert store.ledger.units() == units


HOSTILE = "\x1b]0;title\x07\x1b[31mred\x9b2J\r\u202eright to left\x00"


def shown(what):
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=True, width=200)
    print_line(console, what) if isinstance(what, str) else console.print(what)
    return file.getvalue()


def test_names_do_not_steer_a_terminal():
    table = common.folding_table("model", caption="")
    table.add_row(HOSTILE)
    for text in (shown(HOSTILE), shown(table)):
        assert "\\x1b]0;title\\x07\\x1b[31mred\\x9b2J\\r\\u202eright to left\\x00" in text
        assert not set(HOSTILE) - set("\x1b") & set(text) & set("\x07\x9b\r\u202e\x00")
        assert "\x1b]0" not in text
    assert shown("süß\t狐\n🦊") == "süß     狐\n🦊\n"


def test_an_error_about_a_hostile_name_is_one_plain_line(capsys):
    @reports_errors
    def command():
        raise StoreError(f"There is no {HOSTILE}")

    with pytest.raises(typer.Exit):
        command()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "\x1b" not in told


FORMULAS = ["=cmd|' /C calc'!A0", "+SUM(A1)", "-2+3", "@x", "\t=1", "=1"]
NUMBERS = ["-1", "+2.5", "-1e-05", "-.5", "-"]


def test_no_text_of_a_table_is_a_formula(tmp_path):
    assert [as_text(text) for text in FORMULAS] == [f"'{text}" for text in FORMULAS]
    assert [as_text(text) for text in [*NUMBERS, "full", "'quoted'", ""]] == [
        *NUMBERS,
        "full",
        "'quoted'",
        "",
    ]
    rows = [{"model": text, "value": -0.5} for text in FORMULAS]
    write_rows(rows, tmp_path / "rows.csv")
    assert not any(line[0] in "=+-@\t" for line in (tmp_path / "rows.csv").read_text().splitlines())
    assert read_rows(tmp_path / "rows.csv") == rows
    frame = pd.DataFrame({"model": FORMULAS, "value": -0.5}, index=pd.Index(FORMULAS))
    write_frame(frame, tmp_path / "frame.csv", index=True)
    read = pd.read_csv(tmp_path / "frame.csv", index_col=0)
    assert read["model"].str.startswith("'").all()
    assert read.index.str.startswith("'").all()
    assert (read["value"] == -0.5).all()


def test_numbers_that_are_none_are_null_in_json_and_large_ones_are_kept(tmp_path):
    values = [float("nan"), float("inf"), -float("inf"), 1e308, np.float64("inf"), np.nan]
    plain = to_jsonable({"values": values, "array": np.array([np.nan, np.inf, 1.5])})
    text = json.dumps(plain, allow_nan=False)
    assert json.loads(text) == {
        "values": [None, None, None, 1e308, None, None],
        "array": [None, None, 1.5],
    }
    write_rows([{"model": "a", "value": value} for value in values], tmp_path / "t.csv")
    assert len(read_rows(tmp_path / "t.csv")) == len(values)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8 GiB"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB free."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["python", "device", "cpu"],
)
def test_full_memory_is_one_line_that_says_how_to_go_on(error, capsys, tmp_path):
    @reports_errors
    def command(*, run):
        with Store(run).running() as store:
            store.remember("mean", bootstrap_mean, SAMPLE, seed=1)
            raise error

    with pytest.raises(typer.Exit) as ended:
        command(run=tmp_path / "runs")
    assert ended.value.exit_code == 1
    told = capsys.readouterr().err
    assert told.startswith("MemoryError: The memory is full (")
    assert told.endswith("give the same command again to go on.\n")
    assert told.count("\n") == 1
    store = Store(tmp_path / "runs")
    assert [run.state for run in store.runs()] == ["failed"]
    assert len(store.ledger.units()) == 1


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_model_that_does_not_fit_on_the_disk_leaves_nothing_and_the_old_one_stays(tmp_path, kind):
    def write(draft):
        (draft / "config.json").write_text("{")
        raise kind("No space left on device")

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(FigureError, match=r"cannot write .*No space left on device"):
        write_folder_atomic(folder, write)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "config.json").read_text() == "{}"


@pytest.mark.parametrize("fails", [False, True], ids=["replaced", "kept"])
def test_a_model_whose_replacement_was_killed_has_its_name_back_before_the_next(tmp_path, fails):
    """The kill came between two renames: the old model had left, and the new one was not there."""
    old, folder = tmp_path / ".model.0123abcd.old", tmp_path / "model"
    old.mkdir()
    (old / "config.json").write_text("{}")

    def write(draft):
        assert (folder / "config.json").read_text() == "{}"
        if fails:
            raise OSError(28, "No space left on device")
        (draft / "config.json").write_text("{ }")

    with pytest.raises(FigureError) if fails else nullcontext():
        write_folder_atomic(folder, write)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "config.json").read_text() == ("{}" if fails else "{ }")


def test_a_model_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    folder, rename = tmp_path / "model", Path.rename
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    def refuse(path, target):
        if path.suffix == ".part":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(FigureError, match="Permission denied"):
        write_folder_atomic(folder, lambda draft: (draft / "config.json").write_text("{ }"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
        RuntimeError(
            "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing"
        ),
    ],
    ids=["python", "safetensors", "torch"],
)
def test_a_disk_that_fills_up_while_a_model_is_trained_is_one_line(error, capsys):
    @reports_errors
    def command(*, steps):
        raise error

    with pytest.raises(typer.Exit) as ended:
        command(steps=3)
    assert ended.value.exit_code == 1
    told = capsys.readouterr().err
    assert told.startswith("OSError: The disk is full (")
    assert told.endswith("kept in 'runs/work': give the same command again to go on.\n")
    assert told.count("\n") == 1


def test_another_error_of_torch_is_not_taken_for_full_memory():
    @reports_errors
    def command():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        command()
