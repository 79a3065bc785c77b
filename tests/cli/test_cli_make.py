"""The commands that make relatives and draw the curve: words typed in, files written."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from probes.cli import training
from probes.cli.app import app
from probes.compression.derived_model import DerivedModel
from probes.compression.distillation import pattern_texts
from probes.errors import ModelError
from probes.files import list_derived_models
from probes.models.files.provenance import Provenance, StorageCost
from probes.models.model import load
from probes.testing.tiny_models import tiny_hf


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Relatives go to `runs` in the folder that one works in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


QUICK = ("--steps", 2, "--batch", 2)
TEXTS = ("--texts", "texts.txt")


def write_texts(folder):
    (folder / "texts.txt").write_text("I have two foxes.\nThe cat has a hat.\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "name", "kind"),
    [
        (("quantized", "scratch", "--scheme", "rtn-3"), "scratch-rtn-3", "quantized"),
        (("quantized", "scratch", "--scheme", "int8"), "scratch-int8", "quantized"),
        (("pruned", "scratch", "--fraction", 0.4), "scratch-magnitude-0.4", "pruned"),
        (("pruned", "scratch", "--method", "wanda"), "scratch-wanda-0.5", "pruned"),
        (("pruned", "scratch", "--method", "heads"), "scratch-heads-0.5", "pruned"),
        (("grown", "scratch", "--layers", 3), "scratch-identity-3", "grown"),
        (("grown", "scratch", "--layers", 3, *QUICK, *TEXTS), "scratch-identity-3", "grown"),
        (("distilled", "scratch", *QUICK, *TEXTS), "scratch-distilled-0", "distilled"),
        (
            ("distilled", "scratch", "--teacher-text", "--labels", "hard", *QUICK, *TEXTS),
            "scratch-distilled-0",
            "distilled",
        ),
        (
            ("ticket", "full", "--rounds", 1, *QUICK, *TEXTS, "--name", "lucky"),
            "lucky",
            "ticket",
        ),
    ],
)
def test_what_is_made_loads_by_its_name_and_says_how_it_was_made(here, words, name, kind):
    write_texts(here)
    found = run("make", *words)
    assert found.exit_code == 0, found.output
    assert f"load it as '{name}'" in found.output
    model = load(name)
    assert model.provenance is not None
    assert model.provenance.kind == kind
    assert name in run("list").output


@pytest.mark.parametrize(
    ("more", "held_out"),
    [
        ((), ["cell", "noun", "combination"]),
        (QUICK, ["cell", "noun", "combination"]),
        ((*QUICK, *TEXTS), []),
    ],
)
def test_only_known_training_texts_keep_words_held_out(here, more, held_out):
    write_texts(here)
    done = run("make", "grown", "scratch", "--layers", 3, "--name", "more", *more)
    assert done.exit_code == 0, done.output
    assert list(load("more").provenance.held_out) == held_out


def test_a_run_of_no_steps_is_refused_with_the_texts_that_were_asked_for():
    refused = run("make", "distilled", "full", "--steps", 0, "--batch", 4)
    assert "A run of 0 steps of 4 texts" in refused.stderr


def test_a_student_of_another_tokenizer_learns_patterns_and_its_teachers_text(
    here, letters, monkeypatch
):
    """Without a file of texts; a run that goes on reads the texts that its teacher wrote."""
    for name, count in (("_WRITTEN", 4), ("_QUESTIONS", 16), ("_TIMED", 4)):
        monkeypatch.setattr(pattern_texts, name, count)
    monkeypatch.setattr(training, "_LINE_SECONDS", 0)
    hf_model = tiny_hf("llama", seed=0, vocab_size=len(letters), max_position_embeddings=256)
    made = Provenance("trained", "", StorageCost(0.0, 0.0, 0.0))
    DerivedModel("mine", hf_model, letters, made).save(here / "mine")
    words = ("make", "distilled", "mine", "--layers", 2, "--start", "alternate")
    done = run(*words, *QUICK, "--name", "small")
    assert done.exit_code == 0, done.output
    assert "Step 2 of 2: loss" in done.stderr
    checkpoints = here / "runs" / "work" / "small-checkpoints"
    assert len(json.loads((checkpoints / "teacher_texts.json").read_text())["texts"]) == 4
    refused = run(*words[:4], 9, *QUICK, "--name", "large")
    assert "give a student 1 to 3" in refused.stderr and refused.stderr.count("\n") == 1
    assert not (here / "runs" / "work" / "large-checkpoints").exists()
    student = load("small")
    assert student.shape.layers == 2
    assert student.provenance.settings["start"] == "alternate"
    assert student.provenance.settings["learning_rate"] == 1e-3
    shutil.rmtree(here / "runs" / "relatives")
    monkeypatch.setattr(pattern_texts, "generate_continuations", None)
    assert run(*words, *QUICK, "--name", "small").exit_code == 0


def test_the_gap_to_the_real_kernel_is_printed():
    assert "from the real kernel" in run("make", "quantized", "scratch").output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("quantized", "scratch", "--scheme", "int3"), "use 'rtn-3'"),
        (("pruned", "scratch", "--method", "luck"), "Unknown method"),
        (("grown", "scratch"), "needs"),
        (("distilled", "scratch", "--labels", "loud"), "Unknown labels"),
        (("distilled", "scratch", "--texts", "nothing.txt", *QUICK), "no file"),
        (("distilled", "scratch", "--texts", "binary.txt", *QUICK), "cannot be read ('utf-8'"),
        (("distilled", "scratch", "--device", "gpu", *QUICK), "device 'gpu' cannot be used"),
        (("ticket", "distilled"), "no known early weights"),
        (("quantized", "nobody"), "No model 'nobody'"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line_and_leaves_nothing(here, words, reason):
    (here / "binary.txt").write_bytes(bytes(range(256)))
    found = run("make", *words)
    assert found.exit_code == 1
    assert reason in found.stderr.replace("\n", " ")
    assert not (here / "runs" / "relatives").exists()


@pytest.mark.slow
def test_a_curve_is_drawn_from_made_relatives(here):
    run("make", "quantized", "distilled", "--scheme", "rtn-4")
    words = ("distilled", "distilled-rtn-4", "--bases", 24, "--prompts", 4, "--noise", 1)
    found = run("curve", *words, "--json", "curve.json")
    assert found.exit_code == 0, found.output
    assert "distilled-rtn-4" in found.output
    numbers = json.loads((here / "curve.json").read_text(encoding="utf-8"))
    assert [point["name"] for point in numbers["points"]] == ["distilled-rtn-4"]
    assert "<svg" in (here / "curve.html").read_text(encoding="utf-8")


def test_an_engine_that_is_none_is_refused_before_a_study_begins():
    found = run("study", "labels", "--engine", "spark")
    assert found.exit_code == 1
    assert "No engine 'spark'" in found.stderr


def test_a_study_that_is_none_is_refused():
    found = run("study", "luck")
    assert found.exit_code == 1
    assert "Unknown study 'luck'" in found.stderr


NAMES = {
    "../up": "not allowed",
    "a/b": "not allowed",
    "/tmp/x": "not allowed",
    "..": "not allowed",
    ".hidden": "not allowed",
    "-x": "not allowed",
    "two words": "not allowed",
    "naïve": "not allowed",
    "x" * 101: "not allowed",
    "full": "means another model",
    "gpt2": "means another model",
    "random-init:full:3": "not allowed",
    "random-init-3": "means another model",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["quantized", "pruned", "grown", "distilled", "ticket"])
def test_a_name_that_is_no_file_name_or_means_another_model_is_refused(kind, name, here):
    more = ("--layers", 3) if kind == "grown" else ()
    found = run("make", kind, "no-such-model", *more, f"--name={name}")
    assert found.exit_code == 1
    assert NAMES[name] in found.stderr.replace("\n", " ")
    assert not any(here.iterdir())


def test_a_model_is_replaced_only_by_force(here):
    words = ("make", "quantized", "scratch", "--scheme", "rtn-3", "--name", "mine")
    assert run(*words).exit_code == 0
    again = run("make", "pruned", "full", "--name", "mine")
    assert again.exit_code == 1
    assert "choose another name, or replace it with --force" in again.stderr.replace("\n", " ")
    assert load("mine").provenance.kind == "quantized"
    assert run("make", "pruned", "full", "--name", "mine", "--force").exit_code == 0
    assert load("mine").provenance.kind == "pruned"


def test_other_settings_under_the_same_name_never_return_the_first_run(here):
    write_texts(here)
    words = ("make", "distilled", "scratch", *QUICK, *TEXTS)
    assert run(*words).exit_code == 0
    first = load("scratch-distilled-0")
    other = ("--labels", "hard", "--rate", 0.01)
    assert run(*words, *other).exit_code == 1
    # As after a kill between the last checkpoint and the model.
    shutil.rmtree(here / "runs" / "relatives" / "scratch-distilled-0")
    refused = run(*words, *other)
    assert refused.exit_code == 1
    assert "learning_rate is 0.001 there and 0.01 here" in refused.stderr.replace("\n", " ")
    assert run(*words, *other, "--force").exit_code == 0
    second = load("scratch-distilled-0")
    assert second.provenance.settings["labels"] == "hard"
    pairs = zip(first.bridge.parameters(), second.bridge.parameters(), strict=True)
    assert not all(torch.equal(one, two) for one, two in pairs)


def test_hidden_and_unfinished_folders_are_neither_listed_nor_loaded(here):
    run("make", "quantized", "scratch", "--scheme", "rtn-3", "--name", "mine")
    relatives = here / "runs" / "relatives"
    draft = ".mine.0a1b2c3d.part"
    shutil.copytree(relatives / "mine", relatives / draft)
    (relatives / "half").mkdir()
    (relatives / "half" / "model.safetensors").write_bytes(b"half")
    assert list_derived_models() == ("mine",)
    assert ".mine" not in run("list").output
    for name in (draft, str(relatives / draft), "half"):
        with pytest.raises(ModelError, match=r"hidden folder|No model"):
            load(name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distilled", "quantized"])
def test_a_kill_at_any_moment_leaves_nothing_half_made(kind, here):
    """After kills at up to six random moments the model has the bytes of a run without kills."""
    write_texts(here)
    more = {
        "distilled": ("--steps", 6, "--batch", 2, *TEXTS),
        "quantized": ("--scheme", "rtn-3"),
    }[kind]
    words = ["make", kind, "scratch", *map(str, more), "--name", "mine"]
    command = [sys.executable, "-m", "probes", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    begun = time.monotonic()
    subprocess.run(command, check=True, cwd=here, env=environment, capture_output=True)
    seconds = time.monotonic() - begun
    whole = here / "whole"
    (here / "runs" / "relatives" / "mine").rename(whole)
    shutil.rmtree(here / "runs")
    moments = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            command, cwd=here, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.5, 1.1) * seconds)
        process.kill()
        process.wait()
        for name in list_derived_models():
            assert load(name).provenance.kind == kind
        if list_derived_models():
            break
    else:
        subprocess.run(command, check=True, cwd=here, env=environment, capture_output=True)
    made = here / "runs" / "relatives" / "mine"
    assert list_derived_models() == ("mine",)
    assert {p.name: p.read_bytes() for p in made.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }
