"""Fit of a prompt format: selected on one half of the prompts, reported on the other, and kept."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from probes.circuits.trace import TraceSettings, trace
from probes.cli.app import app
from probes.errors import GateError, PatternError, ResultError, TokenizerError
from probes.files import formats_file
from probes.models.model import load, random_init
from probes.observe.format import kept
from probes.observe.format.fit import FitSettings, fit_format
from probes.observe.format.kept import kept_format, pattern_in_format, save_fit
from probes.observe.format.result import FormatFit
from probes.observe.format.trials import Trials
from probes.prompts.catalog import pattern

QUICK = FitSettings(formats=("plain", "few-shot-1", "chat"), prompts=16)


@pytest.fixture(scope="module")
def full():
    return load("full")


@pytest.fixture(scope="module")
def told():
    return pattern("take-away-told")


@pytest.fixture(scope="module")
def fitted(full, told):
    return fit_format([full], told, QUICK)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_widest_format_that_opens_the_gate_is_selected(fitted):
    """The shipped model reads plain text of its own range; it never saw an example or a chat."""
    assert (fitted.selected, fitted.found, fitted.state) == ("plain", True, "open")
    gates = fitted.held_out[0].gates
    assert {(gate.pattern, gate.answer) for gate in gates} == {
        (name, answer)
        for name in ("take-away-told", "get-more-told")
        for answer in ("number", "noun")
    }
    tried = {score.format: score for score in fitted.selection}
    assert {"plain", "plain@0-9@digits", "few-shot-1@0-9@digits", "chat@0-9@digits"} <= {*tried}
    assert "has no chat template" in tried["chat@0-9@digits"].reason
    assert tried["few-shot-1@0-9@digits"].weakest.score.value < 0.9


def test_the_reported_accuracy_is_that_of_other_prompts(full, told):
    trials = Trials((full,), told, QUICK.prompts, QUICK.seed, progress=False)
    for first, second in trials._sample("plain"):
        assert len(first) == len(second) == QUICK.prompts
        assert not {q.text for q in first} & {q.text for q in second}


def test_the_page_shows_every_format_with_its_gate(fitted, full, told):
    page = fitted.picture().body
    assert "plain: selected for full on" in page
    for score in fitted.selection:
        assert score.format in page
    refused = fit_format([random_init(full, seed=0)], told, QUICK)
    assert "No format opens the gate" in refused.picture().body


def test_the_result_is_read_back_and_gives_a_row_for_each_half(fitted, tmp_path):
    assert FormatFit.load(fitted.save(tmp_path / "fit.json")) == fitted
    table = fitted.table()
    assert list(table[table["half"] == "held out"]["format"]) == ["plain"]
    assert {"score", "low", "high", "heuristic", "heuristic accuracy", "gate"} <= {*table}


@pytest.mark.slow
def test_a_model_without_the_behavior_has_no_format(full, told):
    fit = fit_format([random_init(full, seed=0)], told, QUICK)
    assert not fit.found
    assert fit.summary()[0].startswith("No format opens the gate of 'take-away-told'")


@pytest.mark.slow
def test_one_format_is_sought_for_two_models(full, told):
    fit = fit_format([full, random_init(full, seed=0)], told, QUICK)
    assert (len(fit.held_out), fit.found) == (2, False)
    assert fit.held_out[0].state == "open"  # It is the other one that fails.


def test_auto_takes_the_kept_format_and_fits_it_once(full, told, fitted, folder, monkeypatch):
    save_fit(fitted, told, [full])
    assert kept_format(told, [full]) == "plain"
    assert kept_format(pattern("take-away"), [full]) is None
    monkeypatch.setattr(kept, "fit_format", None)
    assert pattern_in_format(told, "auto", [full]) == told
    # A random-init model is compared in the format of the others.
    assert pattern_in_format(told, "auto", [full, random_init(full, seed=0)]) == told


def test_a_kept_format_is_that_of_the_weights_whatever_the_model_is_called(
    full, told, fitted, folder
):
    save_fit(fitted, told, [full])
    assert kept_format(told, [replace(full, name="mine", origin="folder a")]) == "plain"
    # Models in memory have one origin.
    other = replace(random_init(full, seed=0), name=full.name, origin=full.origin)
    assert kept_format(told, [other]) is None


def test_auto_without_a_format_is_refused_in_one_line(full, told, fitted, folder):
    null = random_init(full, seed=0)
    fit = fit_format([null], told, replace(QUICK, formats=("plain@0-9",), prompts=8))
    save_fit(fit, told, [null])
    assert kept_format(told, [null]) == ""
    with pytest.raises(GateError, match=r"No format opens the gate of 'take-away-told' in .*: run"):
        trace(null, told, settings=TraceSettings(format="auto"))


def test_a_broken_file_of_formats_is_refused_in_one_line(full, told, folder):
    formats_file().parent.mkdir()
    for text in ("[", "[1]", '[{"key": 1, "format": "plain"}]', "3"):
        formats_file().write_text(text)
        with pytest.raises(ResultError, match="holds no formats") as caught:
            kept_format(told, [full])
        assert "\n" not in str(caught.value)


def test_a_chat_format_needs_a_template(full, told):
    with pytest.raises(TokenizerError, match="has no chat template"):
        pattern_in_format(told, "chat", [full])


def test_too_few_prompts_and_no_usable_format_are_refused(full, told):
    with pytest.raises(PatternError, match="at least 8"):
        fit_format([full], told, FitSettings(prompts=4))
    with pytest.raises(PatternError, match="No format can be applied"):
        fit_format([full], told, FitSettings(formats=("chat",)))


@pytest.mark.slow
def test_the_command_prints_the_table_and_keeps_the_format(folder):
    done = CliRunner().invoke(app, ["fit", "full", "--prompts", "16", "--json", "fit.json"])
    assert done.exit_code == 0, done.output
    assert "plain: selected for full on 'take-away'" in done.stdout
    assert json.loads(formats_file().read_text())[0]["format"] == "plain"
    done = CliRunner().invoke(app, ["fit", "random-init:full:0", "--prompts", "16"])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("GateError: No format opens the gate of 'take-away'")
    done = CliRunner().invoke(app, ["trace", "full", "--format", "haiku"])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "Format 'haiku' is unknown" in done.stderr


def test_a_kept_format_is_that_of_every_word_of_the_pattern(full, told, fitted, folder):
    save_fit(fitted, told, [full])
    words = told.lexicon.choices
    others = ((words[0][0], (*words[0][1], "okapi")), *words[1:])
    other = replace(told, lexicon=replace(told.lexicon, choices=others))
    assert repr(other) == repr(told)
    assert kept_format(told, [full]) == "plain"
    assert kept_format(other, [full]) is None


def test_a_format_is_fitted_to_models_and_patterns_by_their_names(full, told):
    few = FitSettings(formats=("plain",), prompts=8)
    expected = fit_format([full], told, few).selection
    for models in ("full", ["full"], full):
        assert fit_format(models, told.name, few).selection == expected
