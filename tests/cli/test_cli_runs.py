"""`probes runs`: what was kept, and whether it is whole."""

import os
import signal
import time

import pytest
import torch
from typer.testing import CliRunner

from probes.__main__ import main
from probes.cli import common
from probes.cli.app import app
from probes.cli.common import reports_errors
from probes.cli.interrupts import Terminated, interrupt_line
from probes.scale.store import Store
from probes.stats.intervals import bootstrap_mean
from probes.testing.tiny_models import tiny_hf

RUNNER = CliRunner()
SAMPLE = torch.arange(8.0).numpy()


def run(*words):
    return RUNNER.invoke(app, [str(word) for word in words])


@pytest.fixture
def store(tmp_path):
    """A store in the default place with two runs and three units."""
    for seeds in ([1, 2], [2, 3]):
        with Store("runs", f"probes compare {seeds}").running() as own:
            for seed in seeds:
                own.remember("mean", bootstrap_mean, SAMPLE, seed=seed)
    return own


def test_list_and_show_say_what_was_measured_and_what_was_read(store):
    found = run("runs", "list")
    assert found.exit_code == 0, found.output
    assert found.output.index("compare [2, 3]") < found.output.index("compare [1, 2]")
    assert "Units: 3" in found.output
    shown = run("runs", "show", 2).output
    assert "probes compare [2, 3]: done" in shown
    assert shown.count("measured") == shown.count("reused") == 1


def test_verify_finds_a_changed_file_and_repair_removes_it(store):
    path = store.path(store.ledger.units()[0].key)
    path.write_bytes(path.read_bytes()[:-1])
    found = run("runs", "verify")
    assert (found.exit_code, "broken: mean" in found.output) == (5, True)
    assert run("runs", "verify", "--repair").exit_code == 0
    assert run("runs", "verify").output == "Units in the ledger: 2; broken: 0\n"


def test_prune_removes_what_no_recent_run_used(store):
    stray = store.path("ab" * 20)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"half a file")
    os.utime(stray, (0, 0))
    assert "Removed units: 0 (0.0 MB); files of killed writers: 1" in run("runs", "prune").output
    assert not stray.exists()
    assert "Removed units: 3" in run("runs", "prune", "--days", 0).output
    assert "Units: 0" in run("runs", "list").output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["list"], "StoreError: There is no store in 'runs': give the folder of one with --run"),
        (["show", 1], "StoreError: There is no store in 'runs'"),
        (["verify", "--run", "elsewhere"], "StoreError: There is no store in 'elsewhere'"),
    ],
)
def test_without_a_store_it_is_one_line(words, line):
    found = run("runs", *words)
    assert found.exit_code == 1
    assert found.output.startswith(line)
    assert found.output.count("\n") == 1


def test_an_unknown_run_is_one_line(store):
    found = run("runs", "show", 9)
    assert found.output == "StoreError: There is no run 9 in 'runs': choose one of 2, 1\n"


def test_a_store_in_the_place_of_a_file_is_one_line(tmp_path, own):
    (tmp_path / "file").write_text("x")
    found = run("compare", "full", "distilled", "--run", tmp_path / "file")
    assert found.exit_code == 1
    assert found.output.splitlines()[-1].startswith("StoreError: There can be no store in")


def test_an_interrupt_is_one_line_that_says_how_to_go_on(capsys):
    @reports_errors
    def command(*, run, no_store):
        raise KeyboardInterrupt

    for no_store, line in [(False, "kept in 'r': give the same command again"), (True, "")]:
        with pytest.raises(common.typer.Exit) as ended:
            command(run="r", no_store=no_store)
        assert ended.value.exit_code == 130
        told = capsys.readouterr().err
        assert told.startswith("Interrupted.")
        assert line in told
        assert told.count("\n") == 1


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys):
    @reports_errors
    def command(*, run):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(common.typer.Exit) as ended:
        command(run="r")
    assert ended.value.exit_code == 143
    line = "Terminated. What is finished is kept in 'r': give the same command again to go on.\n"
    assert capsys.readouterr().err == line
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({"run": "r", "no_store": False}, "'r'"),
        ({"steps": 3}, "'runs/work'"),
        ({"steps": 3, "force": False}, "'runs/work' and 'runs/relatives'"),
        ({"scheme": "int4", "force": True}, "'runs/relatives'"),
        (
            {"name": "growing", "work": "w", "fresh": False, "out": None},
            "'w' and 'runs/growing.csv'",
        ),
        ({"name": "growing", "work": "w", "fresh": True, "out": None}, "'w'"),
    ],
)
def test_the_line_of_an_interrupt_names_where_work_is_kept(options, places):
    line = interrupt_line(KeyboardInterrupt(), options)
    told = f"What is finished is kept in {places}: give the same command again to go on."
    assert line == f"Interrupted. {told}"


def raises_at_once(**_):
    raise Terminated


def interrupted_in_its_options(**words):
    one = common.typer.Typer()

    @one.command()
    def command(option: str = common.typer.Option("", callback=lambda _: raises_at_once())):
        """Read an option."""

    one(args=[], **words)


@pytest.mark.parametrize("app", [raises_at_once, interrupted_in_its_options])
def test_an_interrupt_before_a_command_begins_is_one_line(monkeypatch, capsys, app):
    monkeypatch.setattr("probes.cli.app.app", app)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 143
    assert capsys.readouterr().err.startswith("Terminated. No unfinished work is kept:")


@pytest.mark.slow
def test_the_same_comparison_is_read_and_another_reads_what_it_shares(own, tmp_path):
    for name, seed in [("one", 0), ("two", 1), ("three", 2)]:
        hf_model = tiny_hf("llama", seed, vocab_size=len(own), num_hidden_layers=1)
        hf_model.config.max_position_embeddings = 128
        hf_model.save_pretrained(tmp_path / name)
        own.save_pretrained(tmp_path / name)
    pages = []
    for other in ("two", "two", "three"):
        found = run("compare", "one", other, "--prompts", 4, "--json", "r.json")
        assert found.exit_code == 0, found.output
        pages.append(((tmp_path / "r.json").read_text(), "Nothing was measured" in found.output))
    assert pages[0][0] == pages[1][0] != pages[2][0]
    assert [read for _, read in pages] == [False, True, False]
    third, second, first = Store("runs").runs()
    assert (second.measured, second.reused) == (0, 1)
    # The full model, and the profiles and accuracies of 20 random-init models of the shape.
    assert third.reused >= 41
    assert third.measured < first.measured
