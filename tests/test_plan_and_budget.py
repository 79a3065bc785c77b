"""Plans: passes that are counted, budgets that are kept, and progress that counts work."""

import html
import io
import os
import sys
import time
from dataclasses import dataclass, replace

import pytest
from typer.testing import CliRunner

from probes.circuits import trace_plan
from probes.circuits.pruning import PruningRule
from probes.circuits.result import Trace
from probes.circuits.trace import TraceSettings, trace
from probes.circuits.trace_plan import plan_trace
from probes.claims import plan as claims_plan
from probes.claims.plan import ClaimSettings, plan_claims
from probes.cli.app import app
from probes.comparison.compare import compare
from probes.comparison.result import Comparison
from probes.comparison.setup import plan as comparison_plan
from probes.comparison.setup.plan import plan_comparison
from probes.comparison.setup.references import ComparisonSettings, load_references
from probes.errors import BudgetError, PatternError
from probes.models.model import Model, load, wrap
from probes.observe.gate import gate
from probes.plan import (
    Plan,
    Reduction,
    Stage,
    fit_to_budget,
    format_duration,
    parse_duration,
    with_outlook,
)
from probes.progress import Progress
from probes.prompts.catalog import pattern
from probes.testing.tiny_models import tiny_hf
from probes.viz.reports.comparison import comparison_page

pytestmark = pytest.mark.usefixtures("quick_plans")

RUNNER = CliRunner()


@dataclass(frozen=True)
class Settings:
    draws: int = 5
    prompts: int = 32
    null: str = "random-init"


def estimate(settings):
    rest = settings.prompts + 10.0 * (settings.null == "random-init")
    stages = (Stage("draws", 1, 2.0 * settings.draws), Stage("rest", 1, rest))
    return Plan("measure", stages, 10**9)


LOWERED = (
    Reduction("draws", (3, 1), "{less} of {whole} draws"),
    Reduction("null", ("permuted",), "random-init models"),
    Reduction("prompts", (16, 8), "{less} of {whole} pairs"),
)


@pytest.mark.parametrize(
    ("budget", "settings", "left_out"),
    [
        (52.0, Settings(), ()),
        (51.0, Settings(draws=3), ("2 of 5 draws",)),
        (40.0, Settings(draws=3, null="permuted"), ("2 of 5 draws", "random-init models")),
        (
            10.0,
            Settings(draws=1, null="permuted", prompts=8),
            ("4 of 5 draws", "random-init models", "24 of 32 pairs"),
        ),
    ],
)
def test_a_budget_lowers_settings_in_their_order_and_raises_what_it_allows(
    budget, settings, left_out
):
    found, plan = fit_to_budget(Settings(), LOWERED, budget, estimate)
    assert found == settings
    assert plan.left_out == left_out
    assert plan.seconds <= budget


def test_a_budget_below_the_least_says_what_the_least_is():
    with pytest.raises(BudgetError, match=r"takes 10 s at the least .* give --budget 10s or more"):
        fit_to_budget(Settings(), LOWERED, 9.5, estimate)


def test_a_setting_that_saves_nothing_is_not_lowered():
    settings = Settings(null="permuted", draws=1)
    found, plan = fit_to_budget(settings, LOWERED, 18.0, estimate)
    assert found == replace(settings, prompts=16)
    assert plan.left_out == ("16 of 32 pairs",)


def test_no_setting_is_raised():
    found, plan = fit_to_budget(Settings(draws=2), LOWERED, 45.0, estimate)
    assert found == Settings(draws=1)
    assert plan.left_out == ("1 of 2 draws",)


def test_the_plan_says_what_half_the_time_would_leave_out():
    plan = with_outlook(estimate(Settings()), Settings(), LOWERED, estimate)
    assert plan.outlook == ("--budget 26s would leave out random-init models; 16 of 32 pairs.",)
    least = Settings(draws=1, prompts=8, null="permuted")
    assert with_outlook(estimate(least), least, LOWERED, estimate).outlook == ()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2", 120), (" 3 m ", 180)]
)
def test_a_duration_has_a_unit_or_is_in_minutes(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "ten", "-3m", "3d", "1e3s", "nan"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(BudgetError, match="is no duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (99.0, "99 s"), (100.0, "1.7 min"), (7200.0, "2.0 h")]
)
def test_durations_are_written_in_the_unit_that_fits(seconds, text):
    assert format_duration(seconds) == text


# Passes.


@pytest.fixture
def passes(monkeypatch):
    """Count the prompts that models read in whole passes."""
    read, forward = [], Model.forward

    def counted(self, ids, *rest, **more):
        read.append(len(ids))
        return forward(self, ids, *rest, **more)

    monkeypatch.setattr(Model, "forward", counted)
    return read


def test_the_passes_of_the_gate_are_those_that_run(passes):
    model, settings = load("distilled"), TraceSettings(prompts=4)
    plan, _ = plan_trace(model, pattern("take-away"), settings, roles=False)
    planned = {stage.name: stage.passes for stage in plan.stages}
    passes.clear()
    gate(model, pattern("take-away"))
    assert sum(passes) == planned["gate"]


def test_passes_grow_with_the_settings():
    model, own = load("distilled"), pattern("take-away")

    def passes_of(**more):
        settings = TraceSettings(prompts=8, **more)
        return plan_trace(model, own, settings, roles=False)[0].passes

    assert (
        passes_of()
        > passes_of(random_circuits=20)
        > passes_of(random_circuits=20, other_pattern="")
    )


def test_a_budget_for_a_trace_is_kept_by_fewer_circuits_and_pairs(monkeypatch):
    model, own, plans = load("distilled"), pattern("take-away"), []
    monkeypatch.setattr(trace_plan, "seconds_per_prompt", lambda *_, **__: 0.001)
    monkeypatch.setattr(trace_plan, "thread_time", lambda: 0.0)
    whole = TraceSettings(prompts=16, on_plan=plans.append)
    plan, same = plan_trace(model, own, whole, roles=False)
    assert same == whole
    assert plan.left_out == ()
    found = trace(model, own, settings=replace(whole, budget=plan.seconds / 3))
    assert plans[0].seconds <= plan.seconds / 3
    assert found.left_out == plans[0].left_out
    (circuits,) = {len(null.values) for null in found.random_baselines}
    assert 20 <= circuits < 100
    left_out = f"{100 - circuits} of 100 random circuits of each kind"
    assert found.left_out[0] == left_out
    assert found.summary()[-1].startswith(f"Left out to keep to the budget: {left_out}")
    assert Trace.from_dict(found.to_dict()).left_out == found.left_out
    assert "specificity against another pattern" in found.left_out
    assert "Specificity was not tested: it does not fit the budget." in found.summary()
    with pytest.raises(BudgetError, match="at the least"):
        plan_trace(model, own, replace(whole, budget=0.01), roles=False)


def test_a_trace_with_a_plan_is_the_same_trace():
    model, own = load("distilled"), pattern("taken")
    settings = TraceSettings(prompts=4, other_pattern="")
    plain = trace(model, own, settings=settings)
    planned = trace(model, own, settings=replace(settings, on_plan=lambda _: None, progress=True))
    assert planned == plain


def test_pruning_that_stops_early_is_as_faithful_and_says_so():
    settings = TraceSettings(prompts=4, other_pattern="", random_circuits=1, added_edges=1)
    whole = trace("full", settings=settings)
    short = trace("full", settings=replace(settings, pruning=PruningRule(max_runs=2)))
    assert len(short.circuit) > len(whole.circuit)
    assert short.discovery.value.value >= short.keep - 1e-4
    assert dict(short.circuit.protocol)["pruning"] == "stopped after 2 circuits"
    assert "pruning, which stopped after 2 circuits" in short.summary()[-1]


# Comparisons.


def small(own, seed):
    hf_model = tiny_hf("llama", seed, vocab_size=len(own), max_position_embeddings=128)
    return wrap(hf_model, name=f"small {seed}", tokenizer=own)


@pytest.fixture
def steady(monkeypatch):
    """Every pass takes a millisecond."""
    monkeypatch.setattr(comparison_plan, "seconds_per_prompt", lambda *_, **__: 0.001)
    monkeypatch.setattr(comparison_plan, "thread_time", lambda: 0.0)


def planned(own, **more):
    settings = ComparisonSettings(prompts=8, **more)
    models = [small(own, 0), small(own, 1)]
    references = load_references(models[0], models[1:], settings)
    return plan_comparison(models, references, pattern("take-away"), settings)


def test_the_plan_of_a_comparison_follows_its_settings(own, steady):
    whole, settings = planned(own)
    assert settings.screen == settings.null == "auto"
    names = [stage.name for stage in whole.stages]
    assert (
        names[:2] == ["sampling", "models"]
        and "further draws" in names
        and "random-init models" in names
    )
    assert "reference models" not in names  # Nothing names any.
    fewer = [
        planned(own, **more)[0] for more in ({"draws": 1}, {"nulls": 10}, {"screen": "always"})
    ]
    assert all(plan.passes < whole.passes for plan in fewer)
    assert "further draws" not in [stage.name for stage in fewer[0].stages]
    half = {stage.name: stage.passes for stage in fewer[1].stages}["random-init models"]
    assert whole.stages[names.index("random-init models")].passes == pytest.approx(2 * half)


def test_a_budget_leaves_out_draws_or_random_init_models_or_pairs(own, steady):
    whole = planned(own, nulls=40)[0].seconds
    budgets = [0.95 * whole, 0.7 * whole, 0.3 * whole]
    found = [planned(own, nulls=40, budget=budget) for budget in budgets]
    assert all(plan.seconds <= most for (plan, _), most in zip(found, budgets, strict=True))
    (little, _), (some, fewer), (much, least) = found
    assert len(little.left_out) == 1
    assert little.left_out[0].endswith("of 5 draws of prompts for variables")
    assert any(text.endswith("of 40 draws of the null") for text in some.left_out)
    assert fewer.null == "random-init" and fewer.nulls < 40
    assert "random-init models: the null is permuted" in much.left_out
    assert least.null == "permuted"
    assert least.screen in ("never", "always")
    with pytest.raises(BudgetError, match=r"compare takes .* at the least"):
        planned(own, budget=1e-3)


def test_a_comparison_within_a_budget_says_what_it_leaves_out(own, steady, tmp_path):
    plans = []
    settings = ComparisonSettings(prompts=8, budget=20.0, on_plan=plans.append)
    found = compare(small(own, 0), small(own, 1), "take-away", settings)
    assert plans[0].seconds <= 20
    assert plans[0].left_out
    assert found.method.left_out == plans[0].left_out
    line = f"Left out to keep to the budget: {'; '.join(plans[0].left_out)}."
    assert line in found.method.lines()
    assert line in html.unescape(comparison_page(found).body)
    assert Comparison.load(found.save(tmp_path / "found.json")).method == found.method


# Progress and commands.


PLAN = Plan("measure", (Stage("first", 1, 30.0), Stage("second", 1, 90.0)), 10**9)


def test_progress_counts_work_and_not_stages():
    with Progress(PLAN) as progress:
        items = progress.track("ab", "first", 2)
        assert [next(items), next(items)] == ["a", "b"]
        assert progress.done == 15
        assert list(items) == []
        assert list(progress.track("cd", "second", 2, (1, 2))) == ["c", "d"]
        assert progress.done == 120
        progress.begin("a stage that was not planned")
        assert progress.done == 120


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys):
    with Progress(PLAN, every=0.01) as progress:
        progress.begin("first")
        progress.begin("second")
        time.sleep(0.2)
    said = capsys.readouterr()
    assert said.out == ""
    line = "measure: 25% of about 2.0 min is done; now second"
    assert line in said.err.splitlines()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_terminal_without_a_size_there_is_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    with Progress(PLAN) as progress:
        progress.begin("first")
        progress.begin("second")
    assert "measure, second:  25%|" in terminal.getvalue()


def test_without_a_plan_nothing_is_shown(capsys):
    with Progress(None, every=0.01) as progress:
        assert list(progress.track("ab", "first", 2)) == ["a", "b"]
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def run(*words):
    return RUNNER.invoke(app, [str(word) for word in words])


def test_plan_prints_what_a_command_would_do_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("plan", "trace", "distilled", "--prompts", 8)
    assert found.exit_code == 0, found.output
    first, *stages = found.stdout.splitlines()
    assert first.startswith("Plan of trace: about ")
    assert "of CPU time" in first and "GB of memory" in first and "passes of one prompt" in first
    assert any(line.split()[:2] == ["edge", "scores"] for line in stages)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("plan", "list"), "'list' has no plan: choose one of compare, trace, claims, curve, make"),
        (("plan", "make"), "'make' has no plan"),
        (("plan", "make", "family"), "'make family' has no plan"),
        (("make", "quantized", "scratch", "--budget", "0.001s"), "give --budget"),
        (("make", "pruned", "scratch", "--budget", "0.001s"), "give --budget"),
        (("make", "distilled", "scratch", "--budget", "0.001s"), "give --budget"),
        (("make", "distilled", "scratch", "--budget", "soon"), "is no duration"),
        (("curve", "full", "distilled", "--budget", "0.001s"), "give --budget"),
        (("plan", "trace", "no-model"), "ModelError"),
        (("plan", "trace", "distilled", "--budget", "soon"), "is no duration"),
        (("trace", "distilled", "--budget", "0.001s"), "give --budget"),
        (("compare", "full", "distilled", "--budget", "0.001s"), "give --budget"),
    ],
)
def test_a_plan_that_cannot_be_made_ends_with_one_line(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run(*words)
    assert found.exit_code == 1
    assert says in found.stderr
    assert found.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_short_command_prints_no_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trace_plan, "seconds_per_prompt", lambda *_, **__: 1e-5)
    found = run("trace", "distilled", "--pattern", "taken", "--prompts", 4)
    assert found.exit_code == 0, found.output
    assert found.stderr == ""


def test_claims_within_a_budget_say_what_they_leave_out(monkeypatch):
    monkeypatch.setattr(claims_plan, "seconds_per_prompt", lambda *_, **__: 0.001)
    model, own = load("full"), pattern("take-away")
    whole, same = plan_claims(model, own, ClaimSettings())
    assert same == ClaimSettings()
    plan, lowered = plan_claims(model, own, ClaimSettings(budget=0.7 * whole.seconds))
    assert lowered.bases < 200 and lowered.nulls == 20
    assert plan.left_out == (f"{200 - lowered.bases} of 200 prompts",)
    with pytest.raises(BudgetError, match="at the least"):
        plan_claims(model, own, ClaimSettings(budget=1.0))


def test_a_screened_run_of_the_claims_is_planned_as_one(monkeypatch):
    monkeypatch.setattr(claims_plan, "seconds_per_prompt", lambda *_, **__: 0.001)
    model, own = load("full"), pattern("take-away")

    def passes(**changes):
        plan, _ = plan_claims(model, own, ClaimSettings(**changes), has_base=False)
        return {stage.name: stage.passes for stage in plan.stages}

    whole, screened = passes(screen="never"), passes(screen="always", null="permuted")
    assert "base model" not in screened
    assert all(screened[name] <= whole[name] for name in whole)
    assert screened["hotspots"] < whole["hotspots"] / 3
    assert passes(screen="always", null="random-init")["hotspots"] > screened["hotspots"]


def test_a_budget_of_screened_claims_first_leaves_out_sizes_of_subspaces(monkeypatch):
    monkeypatch.setattr(claims_plan, "seconds_per_prompt", lambda *_, **__: 0.001)
    model, own = load("full"), pattern("take-away")
    screened = ClaimSettings(screen="always", null="permuted")
    whole, _ = plan_claims(model, own, screened)
    budget = replace(screened, budget=0.98 * whole.seconds)
    plan, lowered = plan_claims(model, own, budget)
    assert (lowered.dimensions, lowered.bases) == ((1, 8), 200)
    assert plan.left_out == ("searches of subspaces of 2 and of 4 directions",)


def test_a_pattern_that_the_claims_refuse_has_no_plan():
    with pytest.raises(PatternError, match="no opposite operation"):
        plan_claims(load("full"), pattern("ioi"), ClaimSettings())
