"""Comparisons that are screened, with a null that no further model gives."""

import html
import json
from dataclasses import replace

import numpy as np
import pytest

from probes.comparison.compare import compare
from probes.comparison.heads.matching import family_wise_threshold, pair_heads
from probes.comparison.heads.permuted import permute_roles
from probes.comparison.heads.profiles import (
    N_DRAWS,
    HeadProfiles,
    profile_heads,
    similarity_draws,
)
from probes.comparison.paths.measure import PathRuns, permute_paths
from probes.comparison.setup.cost import MAX_OPERATIONS, is_cheaper, sweep_operations
from probes.comparison.setup.method import ComparisonMethod
from probes.comparison.setup.prompts import tokenize_contrasts
from probes.comparison.setup.references import ComparisonSettings
from probes.interventions.role_paths.graph import RolePath
from probes.interventions.screening.check import ScreenCheck
from probes.interventions.screening.patching import ExactCells
from probes.models.model import load, random_init, wrap
from probes.observe.gate import gate
from probes.plan import Plan
from probes.prompts.catalog import pattern
from probes.prompts.tokens.pair_batch import sample_pairs
from probes.result import load_result
from probes.testing.tiny_models import tiny_hf
from probes.viz.reports.comparison import comparison_page

ROLES = ("x", "op", "y", "answer")


def small(own, seed):
    hf_model = tiny_hf("llama", seed, vocab_size=len(own), max_position_embeddings=128)
    return wrap(hf_model, name=f"small {seed}", tokenizer=own)


@pytest.fixture
def profiles():
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(6, 5, len(ROLES), 2))
    effects[:, :, 0] = 0  # The contrast comes later.
    attention = np.tril(rng.normal(size=(6, 5, len(ROLES), len(ROLES))))
    return HeadProfiles(
        "m",
        tuple(f"L0.H{k}" for k in range(5)),
        ROLES,
        {"y": effects.reshape(6, 5, -1)},
        {"y": attention.reshape(6, 5, -1)},
        {"y": np.ones((6, 2))},
    )


def test_a_permuted_head_keeps_its_strength_and_loses_its_roles(profiles):
    found = permute_roles(profiles, seed=1)
    for mine, theirs in ((profiles.effects, found.effects), (profiles.attention, found.attention)):
        assert not np.array_equal(mine["y"], theirs["y"])
        np.testing.assert_allclose(np.sort(mine["y"], -1), np.sort(theirs["y"], -1))
    again = permute_roles(profiles, seed=1)
    np.testing.assert_array_equal(again.effects["y"], found.effects["y"])
    assert not np.array_equal(permute_roles(profiles, seed=2).effects["y"], found.effects["y"])


def test_a_permuted_head_acts_and_attends_only_where_some_head_does(profiles):
    found = permute_roles(profiles, seed=1)
    assert (found.effects["y"].reshape(6, 5, len(ROLES), 2)[:, :, 0] == 0).all()
    attention = found.attention["y"].reshape(6, 5, len(ROLES), len(ROLES))
    assert np.array_equal(attention, np.tril(attention))


def test_permuting_the_mean_attention_gives_the_mean_of_the_permuted_attention(profiles):
    two = replace(
        profiles,
        effects={**profiles.effects, "z": profiles.effects["y"][:3]},
        attention={**profiles.attention, "z": profiles.attention["y"][:3] + 1},
    )
    two.attention["z"].reshape(3, 5, len(ROLES), len(ROLES))[:, :, 1] = np.nan
    averaged = two.averaged()
    assert averaged.attention == {}
    for seed in range(3):
        found, expected = (permute_roles(each, seed=seed).mean() for each in (averaged, two))
        np.testing.assert_allclose(found.attention, expected.attention, atol=1e-12)
        np.testing.assert_allclose(found.effects, expected.effects, atol=1e-12)


def test_heads_are_averaged_and_compared_in_blocks_of_any_size(profiles, monkeypatch):
    other = permute_roles(profiles, seed=1)
    expected = similarity_draws(profiles, other, seed=0)
    assert expected.shape == (1 + N_DRAWS, 5, 5)
    for module in ("means", "profiles"):
        monkeypatch.setattr(f"probes.comparison.heads.{module}.BLOCK", 700)
    fresh = replace(profiles)  # Without the mean that it keeps.
    np.testing.assert_allclose(similarity_draws(fresh, other, seed=0), expected, atol=1e-6)


def test_a_path_whose_sign_varies_is_within_the_permuted_null():
    key, rng = ("op", "number"), np.random.default_rng(0)
    steady, noise = RolePath(("op", "answer")), RolePath(("op", "y", "answer"))
    effects = {(key, steady): np.ones(32), (key, noise): rng.normal(size=32)}
    runs = PathRuns({key: np.ones(32)}, effects, {})
    draws = [permute_paths(runs, seed=seed) for seed in range(40)]
    assert max(draw[key, steady] for draw in draws) < 0.6
    assert np.mean([draw[key, noise] < abs(effects[key, noise].mean()) for draw in draws]) < 0.95


def test_a_screened_comparison_says_so_and_saves_it(own, tmp_path):
    settings = ComparisonSettings(
        prompts=4, nulls=20, draws=1, screen="always", null="permuted", edges=True
    )
    result = compare(small(own, 0), small(own, 1), "take-away", settings)
    assert result.method.null == "permuted"
    assert {check.contrast for check in result.method.screens} == {*result.contrasts}
    assert result.random_init_accuracy == ()
    assert any("permuted profiles" in line for line in (result.method.null_name,))
    assert result.edges.skip_reason
    page = comparison_page(result).body
    assert "Spearman" in page and "null permutes" in page
    assert result.method.null_choice == "permuted" and "cost too much" not in page
    loaded = load_result(result.save(tmp_path / "result.json"))
    assert loaded.method == replace(result.method) and loaded.edges == result.edges


def test_heads_of_random_init_models_are_screened_and_the_error_is_told(own, tmp_path):
    settings = ComparisonSettings(prompts=4, nulls=2, draws=1)
    result = compare(small(own, 0), small(own, 1), "take-away", settings)
    checks = result.method.null_screens
    assert {check.contrast for check in checks} == {*result.contrasts}
    assert all(check.exact == check.random > 0 for check in checks)
    assert not result.method.screens
    (line,) = result.method.null_lines()
    assert f"{sum(check.exact for check in checks)} random cells" in line and "Spearman" in line
    assert line in html.unescape(comparison_page(result).body) and line not in result.summary()
    assert load_result(result.save(tmp_path / "result.json")).method == result.method


def test_the_permuted_null_says_that_it_tests_no_moved_heads():
    assert any(
        "no head is found to have moved" in line for line in ComparisonMethod("permuted").lines()
    )
    assert ComparisonMethod().lines() == ()


def test_the_reason_of_a_permuted_null_is_given_only_where_it_was_not_asked_for():
    (chosen,) = ComparisonMethod("permuted").lines()
    (asked,) = ComparisonMethod("permuted", null_choice="permuted").lines()
    assert "random-init models of this size cost too much" in chosen
    assert "null permutes" in asked and "random-init" not in asked


def test_a_null_that_a_plan_permutes_within_a_budget_was_not_asked_for(own, monkeypatch):
    def cheaper(models, references, on, settings):
        return Plan("compare", (), 0), replace(settings, null="permuted", screen="always")

    monkeypatch.setattr("probes.comparison.compare.plan_comparison", cheaper)
    settings = ComparisonSettings(prompts=4, nulls=2, draws=1, edges=False, budget=60.0)
    result = compare(small(own, 0), small(own, 1), "take-away", settings)
    assert (result.method.null, result.method.null_choice) == ("permuted", "auto")


def test_a_method_saved_without_its_choice_of_a_null_is_read(own, tmp_path):
    settings = ComparisonSettings(prompts=4, nulls=2, draws=1)
    path = compare(small(own, 0), small(own, 1), "take-away", settings).save(tmp_path / "r.json")
    saved = json.loads(path.read_text(encoding="utf-8"))
    del saved["method"]["null_choice"]
    path.write_text(json.dumps(saved), encoding="utf-8")
    assert load_result(path).method.null_choice == "auto"


def test_random_init_models_are_counted_as_the_gate_counts(own, tmp_path):
    path = tmp_path / "hats.jsonl"
    path.write_text("\n".join(hats(k, 7 - k) for k in range(6)), encoding="utf-8")
    full, other = small(own, 0), small(own, 1)
    for criterion in ("choice", "accuracy", "logit-diff"):
        settings = ComparisonSettings(prompts=4, nulls=1, draws=1, gate=criterion)
        result = compare(full, other, str(path), settings)
        null = random_init(other, seed=settings.seed)
        (one,) = gate(null, pattern(str(path)), criterion=criterion, seed=settings.seed)
        expected = one.accuracy if criterion == "accuracy" else one.choice
        assert result.random_init_accuracy == pytest.approx((expected.value,))
    assert one.choice.value != one.accuracy.value


def hats(clean, other):
    """A pair of numbers of hats, as a line of a file."""
    pair = {
        "contrast": "x",
        "clean": f"I have {clean} hats. Now I have",
        "counterfactual": f"I have {other} hats. Now I have",
        "answer": str(clean),
        "counterfactual_answer": str(other),
        "roles": {"x": str(clean)},
        "counterfactual_roles": {"x": str(other)},
    }
    return json.dumps(pair)


def test_the_error_of_a_null_without_any_effect_is_told_in_logits():
    none = ScreenCheck("random-init 0", "name", 9, 5, 5, float("nan"), 0.0, 0.0, 5, 1.0)
    some = replace(none, contrast="x", random=15, spearman=0.9, mean_absolute_error=0.02)
    (line,) = ComparisonMethod(null_screens=(none,)).null_lines()
    assert "mean absolute error 0.000 logits" in line
    (line,) = ComparisonMethod(null_screens=(none, some)).null_lines()
    assert "mean absolute error 0.015 logits" in line
    effect = replace(some, mean_absolute_effect=0.2)
    (line,) = ComparisonMethod(null_screens=(none, effect)).null_lines()
    assert "mean Spearman 0.90, mean absolute error 10% of the effect" in line


def test_small_models_are_measured_exactly_and_large_ones_screened(own):
    model = small(own, 0)
    pairs = sample_pairs(pattern("take-away"), "x", 4, tokenizers=(own,), seed=0)
    batches = tokenize_contrasts(model, {"x": pairs})
    operations = sweep_operations(model, batches, ROLES)
    assert sweep_operations(model, batches, ROLES * 2) == 2 * operations
    assert not is_cheaper("auto", "always", [operations])
    assert is_cheaper("auto", "always", [operations, 2 * MAX_OPERATIONS])
    assert is_cheaper("always", "always", [operations])
    assert not is_cheaper("never", "always", [2 * MAX_OPERATIONS])


@pytest.mark.slow
def test_further_random_init_models_rarely_exceed_the_permuted_threshold():
    """The permuted null is stricter than what it stands for: at most the stated rate passes."""
    full, relative = load("full"), load("distilled")
    query, draws = pattern("take-away"), 20
    pairs = {
        contrast: sample_pairs(query, contrast, 8, tokenizers=(full.tokenizer,), seed=0)
        for contrast in query.contrasts
    }
    batches = tokenize_contrasts(full, pairs)
    roles = [role for role in next(iter(batches.values())).clean.roles if role != "reply_noun"]

    def profile(model):
        return profile_heads(model, batches, roles, screen=ExactCells(0, 0))[0]

    a, b = profile(full), profile(relative)
    permuted = [pair_heads(a, permute_roles(b, seed=seed)).scores for seed in range(draws)]
    threshold = family_wise_threshold(np.stack(permuted))
    further = [
        np.nanmax(pair_heads(a, profile(random_init(relative, seed=100 + seed))).scores)
        for seed in range(draws)
    ]
    assert np.mean(np.array(further) > threshold) <= 0.05
    assert np.nanmax(pair_heads(a, b).scores) > threshold
