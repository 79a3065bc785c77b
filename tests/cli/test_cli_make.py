"""The commands that make relatives and draw the curve: words typed in, files written."""

import json

import pytest
from typer.testing import CliRunner

from probes.cli.app import app
from probes.models.model import load


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


def test_the_gap_to_the_real_kernel_is_printed():
    assert "from the real kernel" in run("make", "quantized", "scratch").output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("quantized", "scratch", "--scheme", "int3"), "take 'rtn-3'"),
        (("pruned", "scratch", "--method", "luck"), "Unknown method"),
        (("grown", "scratch"), "needs"),
        (("distilled", "scratch", "--labels", "loud"), "Unknown labels"),
        (("distilled", "scratch", "--texts", "nothing.txt", *QUICK), "no file"),
        (("ticket", "distilled"), "no early weights at hand"),
        (("quantized", "nobody"), "No model 'nobody'"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line_and_leaves_nothing(here, words, reason):
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


def test_a_study_that_is_none_is_refused():
    found = run("study", "luck")
    assert found.exit_code == 1
    assert "Unknown study 'luck'" in found.stderr
