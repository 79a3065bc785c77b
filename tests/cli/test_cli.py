"""The command line: what is printed, what is written, and how mistakes end."""

import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
from typer.testing import CliRunner

from probes.circuits.trace import TraceSettings, trace
from probes.cli.app import app
from probes.files import list_models
from probes.models.model import wrap
from probes.testing.tiny_models import tiny_hf

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


@pytest.mark.slow
def test_compare_writes_the_page_and_the_numbers(folder, tmp_path):
    page, numbers = tmp_path / "r.html", tmp_path / "r.json"
    words = ("--prompts", 4, "--out", page, "--json", numbers, "--device", "cpu")
    found = run("compare", folder, folder, *words)
    assert found.exit_code == 0, found.output
    assert page.stat().st_size > 1000
    assert numbers.stat().st_size > 1000
    assert "Behavior absent" in found.output


@pytest.mark.parametrize("suffix", [".html", ".png", ".svg"])
def test_heatmap_writes_a_picture(folder, tmp_path, suffix):
    if suffix != ".html":
        pytest.importorskip("matplotlib")
    place = tmp_path / f"h{suffix}"
    found = run("heatmap", folder, FOX, "--out", place)
    assert found.exit_code == 0, found.output
    assert place.stat().st_size > 1000


def test_ask_answers_a_question_or_says_what_it_looked_for(folder, tmp_path):
    page, numbers = tmp_path / "a.html", tmp_path / "a.json"
    asked = run("ask", folder, FOX, "--answer-only", "--out", page, "--json", numbers)
    assert asked.exit_code == 0, asked.output
    assert "op: 'take away'" in asked.output
    assert page.stat().st_size > 1000
    assert run("show", numbers).exit_code == 0
    other = run("ask", folder, "What is the capital of France?", "--out", tmp_path / "b.html")
    assert other.exit_code == 1
    assert other.stderr.count("\n") == 1
    assert "looked for a question with 'how many'" in other.stderr
    assert not (tmp_path / "b.html").exists()


def test_heatmap_of_one_head_with_roles_on_the_axes(folder, tmp_path):
    place = tmp_path / "h.html"
    words = ("heatmap", folder, FOX, "--pattern", "take-away", "--head", "L0.H1", "--out", place)
    assert run(*words).exit_code == 0
    assert "thing_asked" in place.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["trace", "claims"])
def test_a_plan_alone_asks_no_gate(command, folder):
    found = run("plan", command, folder)
    assert found.exit_code == 0
    assert f"Plan of {command}" in found.output


def test_list_names_the_family_and_the_patterns():
    found = run("list")
    assert found.exit_code == 0
    for name in (*list_models(), "take-away", "two-owners"):
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
        "matches no template",
    ),
    "no such head": (("heatmap", "{model}", "Hello.", "--head", "L9.H0"), "no head"),
    "two heads": (
        ("heatmap", "{model}", "Hello.", "--head", "L0.H0", "--head", "L0.H1"),
        "give one --head",
    ),
    "no head at all": (("heatmap", "{model}", "Hello.", "--head", "nine"), "is not a head"),
    "unknown suffix": (("heatmap", "{model}", "Hello.", "--out", "h.bmp"), ".html"),
    "empty text": (("heatmap", "{model}", ""), "no text"),
    "too long": (("heatmap", "{model}", "fox " * 300), "takes 128"),
    "unknown member": (("make", "family", "fulll"), "no recipe"),
    "nothing to trace": (("trace", "{model}"), "GateError: small does not have the behavior"),
    "no folder for the trace": (("trace", "{model}", "--out", "no/t.html"), "no folder 'no'"),
    "no folder for its numbers": (("trace", "{model}", "--json", "no/t.json"), "no folder 'no'"),
    "numbers that are no JSON": (("trace", "{model}", "--json", "t.txt"), "'t.txt' is none"),
    "nothing to keep": (("trace", "{model}", "--keep", "0"), "Cannot keep 0.0"),
    "more than all to keep": (("trace", "{model}", "--keep", "1.5"), "Cannot keep 1.5"),
    "trace of no pattern": (("trace", "{model}", "--pattern", "fox"), "'fox' is unknown"),
    "a result that is a folder": (("show", "."), "is a folder: give a .json file"),
    "a page with a long name": (("trace", "{model}", "--out", "x" * 500 + ".html"), "too long"),
    **{
        f"{words[0]} on no device": ((*words, "--device", "gpu"), "device 'gpu' cannot be used")
        for words in (
            ("compare", "{model}", "{model}"),
            ("trace", "{model}"),
            ("claims", "{model}"),
            ("heatmap", "{model}", "Hello."),
            ("ask", "{model}", FOX),
            ("explain", "{model}", FOX),
            ("fit", "{model}"),
            ("curve", "{model}", "{model}"),
        )
    },
    "an unknown base": (("claims", "{model}", "--base-model", "bass"), "No model 'bass'"),
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
        "import sys; from typer.testing import CliRunner; from probes.cli.app import app;"
        "assert CliRunner().invoke(app, ['compare', '--help']).exit_code == 0;"
        "assert not {'torch', 'transformers', 'jaxtyping'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_wrapped_model_needs_no_folder(own):
    from probes.viz.plots.attention.heatmap import heatmap

    model = wrap(tiny_hf("llama", 0, vocab_size=len(own)), name="in memory", tokenizer=own)
    assert heatmap(model, FOX).body


class Found:
    """What a trace is to the command line."""

    def __init__(self):
        self.saved = []

    def save(self, path):
        self.saved.append(path)

    def summary(self):
        return ("4 of 34 edges [bold]hold[/bold] 0.88.", "Without them 0.11 is left.")


DEFAULTS = {name: found.default for name, found in signature(trace).parameters.items()}


@pytest.fixture
def traced(monkeypatch):
    """Note what is asked of `trace`, and run nothing."""
    found, asked = Found(), []

    def note(*words, **options):
        asked.append((words, options))
        return found

    monkeypatch.setattr("probes.circuits.trace.trace", note)
    return found, asked


def test_trace_hands_its_options_on_and_prints_what_was_found(traced, tmp_path):
    found, asked = traced
    page, numbers = tmp_path / "t.html", tmp_path / "t.json"
    words = ("--pattern", "copy", "--method", "exact", "--keep", "0.8", "--roles", "--answer")
    more = ("noun", "--prompts", "7", "--seed", "3", "--out", page, "--json", numbers)
    result = run("trace", "distilled", *words, *more)
    assert result.exit_code == 0, result.output
    settings = TraceSettings(method="exact", answer="noun", prompts=7, seed=3)
    options = {"keep": 0.8, "roles": True, "settings": settings}
    assert asked == [(("distilled", "copy"), options)]
    assert found.saved == [page, numbers]
    lines = result.stdout.splitlines()
    assert lines == [*(f"- {line}" for line in found.summary()), f"Page: {page}"]


def test_trace_without_options_takes_the_defaults_of_the_library(traced, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, asked = traced
    assert run("trace", "full").exit_code == 0
    ((words, options),) = asked
    assert words == ("full", DEFAULTS["pattern"])
    defaults = {"keep": DEFAULTS["keep"], "roles": DEFAULTS["roles"]}
    assert options == {**defaults, "settings": TraceSettings()}
    assert [str(path) for path in found.saved] == ["trace.html"]


def test_help_names_the_options_of_trace():
    said = run("trace", "--help").output
    for name in ("pattern", "method", "keep", "roles", "answer", "prompts", "seed", "out", "json"):
        assert f"--{name}" in said


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--method", "guess", "'eap-ig'"),
        ("--prompts", "3", "4"),
        ("--prompts", str(10**30), "100000"),
        ("--keep", "all", "--keep"),
        ("--seed", "-1", "0"),
        ("--seed", str(2**31), "2147483647"),
    ],
)
def test_an_option_that_trace_cannot_read_is_refused_with_what_it_can(option, value, says, traced):
    _, asked = traced
    result = run("trace", "full", option, value)
    assert result.exit_code == 2
    assert option in result.output
    assert says in result.output
    assert asked == []


@pytest.mark.parametrize("name", ["t.png", "t", "."])
def test_a_page_that_cannot_be_written_is_refused_before_any_work(name, traced, tmp_path):
    _, asked = traced
    assert run("trace", "full", "--out", tmp_path / name).exit_code == 1
    assert asked == []


TARGETS = {
    "compare": ("compare", "full", "full", "--out"),
    "trace": ("trace", "full", "--out"),
    "claims": ("claims", "full", "--out"),
    "heatmap": ("heatmap", "full", FOX, "--out"),
    "curve": ("curve", "full", "distilled", "--out"),
    "numbers": ("compare", "full", "full", "--json"),
    "check": ("check", "full", "--json"),
    "series": ("make", "series", "--out"),
}


@pytest.mark.parametrize("command", TARGETS)
def test_targets_are_tried_before_the_work_begins(command, tmp_path, monkeypatch):
    def work(*_, **__):
        raise AssertionError("the work has begun")

    for module in ("app", "claims", "check", "study", "make"):
        monkeypatch.setattr(f"probes.cli.{module}.silence_libraries", work)
    *words, option = TARGETS[command]
    suffix = ".json" if option == "--json" else ".csv" if command == "series" else ".html"
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    missing = () if command == "series" else (tmp_path / "none" / f"x{suffix}",)
    for path in (folder, tmp_path / f"{'x' * 250}{suffix}", *missing):
        found = run(*words, option, path)
        assert found.exit_code == 1, found.output
        assert len(found.output.strip().splitlines()) == 1
    good = tmp_path / f"good{suffix}"
    good.write_text("before")
    assert isinstance(run(*words, option, good).exception, AssertionError)
    assert good.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {good.name, folder.name}


def test_a_check_does_not_try_a_page_that_it_never_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "check.html").mkdir()
    assert run("check", "no-model", "--json", "c.json").exit_code == 4
    assert (tmp_path / "c.json").is_file()


def test_a_check_in_an_unknown_number_format_ends_with_one_line():
    found = run("check", "full", "--dtype", "int8")
    assert found.exit_code == 1
    assert "Unknown dtype: 'int8'" in found.output
    assert len(found.output.strip().splitlines()) == 1


def test_a_seed_below_nought_ends_with_one_line(folder):
    result = run("trace", folder, "--seed", "-1")
    assert isinstance(result.exception, SystemExit)
    assert "seed" in result.output


def test_claims_about_a_model_without_the_behavior_say_so_and_fail(tmp_path):
    found = run(
        "claims", "random-init:distilled:0", "--bases", "80", "--out", str(tmp_path / "p.html")
    )
    assert found.exit_code == 1
    assert "behavior absent" in found.output
    assert "nothing to test" in found.output + (found.stderr or "")
    assert not (tmp_path / "p.html").exists()


def test_claims_on_too_few_prompts_are_refused_at_once():
    assert run("claims", "full", "--bases", "20").exit_code == 2


def test_series_lists_its_options():
    assert "--work" in run("make", "series", "--help").output
