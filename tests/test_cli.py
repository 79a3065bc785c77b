"""The command line: what is printed, what is written, and how mistakes end."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from probes.cli import app
from probes.model import wrap
from probes.resources import family_members
from probes.testing import tiny_hf

RUNNER = CliRunner()
FOX = "If I have two foxes and I take away one, how many foxes do I have?"


@pytest.fixture(scope="module")
def folder(own, tmp_path_factory):
    """A model folder as a user would have it."""
    place = tmp_path_factory.mktemp("models") / "small"
    hf_model = tiny_hf("llama", 0, vocab_size=len(own), num_hidden_layers=1)
    hf_model.config.max_position_embeddings = 128
    hf_model.save_pretrained(place)
    own.save_pretrained(place)
    return place


def run(*words):
    return RUNNER.invoke(app, [str(word) for word in words])


def test_compare_writes_the_page_and_the_numbers(folder, tmp_path):
    page, numbers = tmp_path / "r.html", tmp_path / "r.json"
    found = run("compare", folder, folder, "--prompts", 4, "--out", page, "--json", numbers)
    assert found.exit_code == 0, found.output
    assert page.stat().st_size > 1000
    assert numbers.stat().st_size > 1000
    assert "Behaviour absent" in found.output


@pytest.mark.parametrize("suffix", [".html", ".png", ".svg"])
def test_heatmap_writes_a_picture(folder, tmp_path, suffix):
    if suffix != ".html":
        pytest.importorskip("matplotlib")
    place = tmp_path / f"h{suffix}"
    found = run("heatmap", folder, FOX, "--out", place)
    assert found.exit_code == 0, found.output
    assert place.stat().st_size > 1000


def test_heatmap_of_one_head_with_roles_on_the_axes(folder, tmp_path):
    place = tmp_path / "h.html"
    words = ("heatmap", folder, FOX, "--pattern", "take-away", "--head", "L0.H1", "--out", place)
    assert run(*words).exit_code == 0
    assert "thing_asked" in place.read_text(encoding="utf-8")


def test_list_names_the_family_and_the_patterns():
    found = run("list")
    assert found.exit_code == 0
    for name in (*family_members(), "take-away", "two-owners"):
        assert name in found.output


MISTAKES = {
    "unknown model": (("compare", "ful", "ful"), "No model 'ful'"),
    "unknown pattern": (("compare", "{model}", "{model}", "--pattern", "fox"), "'fox' is unknown"),
    "missing pair file": (
        ("compare", "{model}", "{model}", "--pattern", "no.jsonl"),
        "cannot be read",
    ),
    "no folder for the page": (
        ("compare", "{model}", "{model}", "--out", "no/r.html"),
        "no folder",
    ),
    "text that does not fit": (
        ("heatmap", "{model}", "Hello there.", "--pattern", "take-away"),
        "fits no frame",
    ),
    "no such head": (("heatmap", "{model}", "Hello.", "--head", "L9.H0"), "no head"),
    "no head at all": (("heatmap", "{model}", "Hello.", "--head", "nine"), "is no head"),
    "unknown suffix": (("heatmap", "{model}", "Hello.", "--out", "h.bmp"), ".html"),
    "empty text": (("heatmap", "{model}", ""), "no text"),
    "too long": (("heatmap", "{model}", "fox " * 300), "takes 128"),
    "unknown member": (("make", "family", "fulll"), "no member"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_one_line_and_leaves_nothing(mistake, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, said = MISTAKES[mistake]
    found = run(*(word.format(model=folder) for word in words))
    assert found.exit_code != 0
    assert said in found.output
    assert "Traceback" not in found.output
    assert len(found.output.strip().splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_help_needs_neither_torch_nor_transformers():
    code = (
        "import sys; from typer.testing import CliRunner; from probes.cli import app;"
        "assert CliRunner().invoke(app, ['compare', '--help']).exit_code == 0;"
        "assert not {'torch', 'transformers', 'jaxtyping'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a_wrapped_model_needs_no_folder(own):
    from probes.view.looking import heatmap

    model = wrap(tiny_hf("llama", 0, vocab_size=len(own)), name="in memory", tokenizer=own)
    assert heatmap(model, FOX).body
