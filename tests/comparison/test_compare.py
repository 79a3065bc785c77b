"""Comparing relatives: intervals, gates, profiles, matches, and the whole main job."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.main import get_command

import probes
from probes.cli.app import app
from probes.comparison.assemble import _command
from probes.comparison.compare import compare, compare_family
from probes.comparison.heads.matching import family_wise_threshold, match_heads, pair_heads
from probes.comparison.heads.profiles import HeadProfiles, head_similarity
from probes.comparison.setup.references import ComparisonSettings
from probes.errors import BatchError, ModelError, PatternError
from probes.models.model import random_init, wrap
from probes.observe.behavior import Behavior
from probes.observe.gate import gate_behavior, heuristic_hits
from probes.prompts.catalog import pattern
from probes.stats.intervals import bootstrap_mean, bootstrap_weights, proportion
from probes.testing.tiny_models import hook_count, tiny_hf
from probes.viz.reports.comparison import comparison_page


def profiles(name, effects, attention):
    """Wrap plain arrays ("prompt head feature") as the profiles of a model."""
    heads = tuple(f"L0.H{k}" for k in range(effects.shape[1]))
    return HeadProfiles(name, heads, ("r",), {"x": effects}, {"x": attention})


def random_profiles(seed, heads=4, noise=0.1):
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(1, heads, 30)) + noise * rng.normal(size=(20, heads, 30))
    attention = rng.normal(size=(1, heads, 30)) + noise * rng.normal(size=(20, heads, 30))
    return profiles(f"m{seed}", effects, attention)


def small(own, seed, layers=2):
    hf_model = tiny_hf(
        "llama",
        seed,
        vocab_size=len(own),
        num_hidden_layers=layers,
        max_position_embeddings=128,
    )
    return wrap(hf_model, name=f"small {seed}", tokenizer=own)


def answered(right):
    right = torch.tensor(right)[:, None]
    return Behavior("m", ("number",), right, right.float(), right.long(), right)


def test_an_interval_at_full_marks_does_not_claim_certainty():
    found = proportion(np.ones(20, dtype=bool))
    assert found.value == 1.0
    assert found.high == 1.0
    assert 0.8 < found.low < 0.9


def test_the_bootstrap_interval_of_a_mean_has_the_width_theory_gives():
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap_mean(values, seed=0)
    width = 2 * 1.96 * values.std() / np.sqrt(400)
    assert found.high - found.low == pytest.approx(width, rel=0.1)


def test_every_bootstrap_sample_draws_as_many_prompts_as_there_are():
    drawn = bootstrap_weights(7, 50, seed=1)
    assert (drawn.sum(1) == 7).all()
    assert (drawn == bootstrap_weights(7, 50, seed=1)).all()


def test_copying_the_noun_that_is_asked_for_is_no_heuristic():
    questions = pattern("take-away").sample_questions(40, seed=0)
    assert set(heuristic_hits(questions, "number")) >= {"copy x", "copy y"}
    assert not any(name.startswith("copy thing") for name in heuristic_hits(questions, "noun"))


def test_the_gate_is_closed_for_a_model_that_only_copies():
    questions = pattern("take-away").sample_questions(100, seed=0)
    copies = [str(q["x"]) == q.answer("number") for q in questions]
    gate = gate_behavior(answered(copies), questions, seed=0)[0]
    assert gate.state == "closed"


def test_the_gate_is_open_for_a_model_that_knows_and_partial_for_one_that_half_knows():
    questions = pattern("take-away").sample_questions(100, seed=0)
    knows = gate_behavior(answered([True] * 100), questions, seed=0)[0]
    half = gate_behavior(answered([k % 2 == 0 for k in range(100)]), questions, seed=0)[0]
    assert (knows.state, half.state) == ("open", "partial")
    assert half.margin.low > 0


def test_a_model_matches_itself_head_for_head():
    own = random_profiles(0)
    found = pair_heads(own, own)
    assert found.partners == (0, 1, 2, 3)
    assert found.scores == pytest.approx(np.ones(4))


def test_shuffled_heads_are_found_again():
    own = random_profiles(0)
    order = [2, 0, 3, 1]
    other = profiles("shuffled", own.effects["x"][:, order], own.attention["x"][:, order])
    assert pair_heads(own, other).partners == (1, 3, 0, 2)


def test_similarity_is_the_mean_of_two_cosines():
    effects_a, effects_b = np.array([[[1.0, 0.0]]]), np.array([[[1.0, 1.0]]])
    attention_a, attention_b = np.array([[[0.0, 2.0]]]), np.array([[[0.0, -1.0]]])
    a, b = profiles("a", effects_a, attention_a), profiles("b", effects_b, attention_b)
    assert head_similarity(a.mean(), b.mean())[0, 0, 0] == pytest.approx((np.sqrt(0.5) - 1) / 2)


def test_a_head_without_effects_or_attention_is_similar_to_none():
    zero = profiles("zero", np.zeros((4, 1, 3)), np.zeros((4, 1, 3))).mean()
    assert head_similarity(zero, zero)[0, 0, 0] == 0


def test_noisy_copies_score_above_the_threshold_and_unrelated_heads_do_not():
    own, unrelated = random_profiles(0), random_profiles(99)
    copy = random_profiles(0, noise=0.2)
    nulls = np.stack([pair_heads(own, random_profiles(k)).scores for k in range(1, 21)])
    copies = match_heads(own, copy, null_scores=nulls, other_seed=None, seed=0)
    others = match_heads(own, unrelated, null_scores=nulls, other_seed=None, seed=0)
    assert all(match.above_threshold for match in copies)
    assert not any(match.above_threshold for match in others)
    assert all(match.threshold == family_wise_threshold(nulls) for match in copies)


def test_the_threshold_is_the_conformal_rank_of_the_best_score_of_each_null():
    nulls = np.array([[0.1, 0.9], [0.3, 0.2], [0.5, np.nan]])
    assert family_wise_threshold(nulls) == 0.9


def test_a_head_with_opposite_effects_in_the_two_halves_is_unreliable_whatever_its_score():
    rng = np.random.default_rng(0)
    effects = np.where(np.arange(20)[:, None, None] % 2 == 0, 1.0, -1.0) * rng.normal(
        size=(1, 1, 9)
    )
    effects = effects + 0.01 * rng.normal(size=(20, 1, 9))
    noisy = profiles("noisy", effects, np.ones((20, 1, 9)))
    found = match_heads(noisy, noisy, null_scores=np.full((20, 1), -1.0), other_seed=None, seed=0)
    assert found[0].score.value > found[0].threshold
    assert not found[0].reliable
    assert not found[0].above_threshold


def test_more_heads_than_partners_leaves_some_without():
    found = pair_heads(random_profiles(0, heads=4), random_profiles(1, heads=2))
    assert sorted(found.partners)[:2] == [-1, -1]
    assert np.isnan(found.scores).sum() == 2


def _hats(clean, other):
    def say(number):
        return f"I have {number} hats. Now I have"

    return json.dumps(
        {
            "contrast": "x",
            "clean": say(clean),
            "counterfactual": say(other),
            "answer": str(clean),
            "counterfactual_answer": str(other),
            "roles": {"x": str(clean)},
            "counterfactual_roles": {"x": str(other)},
        }
    )


@pytest.fixture(scope="module")
def compared(own):
    a = small(own, 0)
    return compare(
        a, small(own, 1, layers=1), "take-away", ComparisonSettings(prompts=4, nulls=3, seed=0)
    )


def test_the_other_seed_model_is_no_reference_for_itself(own):
    full, other_seed, relative = (small(own, seed) for seed in range(3))
    settings = ComparisonSettings(
        prompts=4, nulls=1, draws=1, null="permuted", other_seed=other_seed
    )
    found, plain = compare_family(full, [other_seed, relative], "take-away", settings).comparisons
    assert (found.other_seed, plain.other_seed) == ("", other_seed.name)
    assert np.isnan(found.mean_pair_score.other_seed)
    assert not np.isnan(plain.mean_pair_score.other_seed)
    assert not any("other-seed model lacks it as well" in one.reason for one in found.verdicts)


def test_random_init_models_lack_the_behavior(compared):
    assert compared.behavior_absent
    assert set(compared.table()["verdict"]) == {"behavior absent"}
    assert any("absent" in line for line in compared.summary())


def test_the_command_that_repeats_a_comparison_is_one_of_the_command_line(compared):
    assert compared.method.command == ""  # The command line asks for 20 null models.
    settings, pairs = ComparisonSettings(nulls=20, gate="accuracy"), pattern("take-away")
    one, two = (wrap(tiny_hf("llama", seed), name="m") for seed in (0, 1))
    full = (
        replace(one, name="full", origin="family member full"),
        replace(two, name="c", origin="folder /a b/c"),
    )
    words = shlex.split(_command(full, pairs, settings))
    assert words[:4] == ["probes", "compare", "full", "/a b/c"]
    asked = get_command(app).commands["compare"].make_context("compare", words[2:])
    assert asked.params["full"] == "full"
    assert [*asked.params["relatives"]] == ["/a b/c"]
    assert asked.params["prompts"] == settings.prompts and asked.params["nulls"] == 20
    mine = replace(full[1], name="mine")
    assert shlex.split(_command((full[0], mine), pairs, settings))[3] == "mine=/a b/c"
    given = replace(pairs, name="she", file="my pairs/she.jsonl")
    words = shlex.split(_command(full, given, settings))
    assert words[words.index("--pattern") + 1] == "my pairs/she.jsonl"
    assert _command(full, replace(pairs, name="she"), settings) == ""  # Its pairs have no file.
    assert _command((full[0], two), pairs, settings) == ""  # Made in memory.
    assert compared.method.version == probes.__version__


def test_chance_is_computed_behind_a_closed_gate(compared):
    assert np.isfinite(compared.mean_pair_score.chance)
    assert all(np.isfinite(m.threshold) for m in compared.matches)


@pytest.mark.slow
def test_a_comparison_is_the_same_for_the_same_seed_with_any_number_of_workers(own, compared):
    again = compare(
        small(own, 0),
        small(own, 1, layers=1),
        "take-away",
        ComparisonSettings(prompts=4, nulls=3, seed=0),
    )
    assert again.to_dict() == compared.to_dict()


def test_a_model_compared_with_itself_scores_one_everywhere(own):
    a = small(own, 0)
    found = compare(a, a, "take-away", ComparisonSettings(prompts=4, nulls=2, seed=0))
    assert found.full.name != found.other.name
    assert [match.head for match in found.matches] == [match.partner for match in found.matches]
    assert all(match.score.value == pytest.approx(1) for match in found.matches)


def test_relatives_with_different_tokenizers_are_compared_by_roles(own, letters, tmp_path):
    hf_model = tiny_hf("llama", 3, vocab_size=len(letters), max_position_embeddings=200)
    other = wrap(hf_model, name="letters", tokenizer=letters)
    # Letter by letter, 14 and 15 start alike: numbers below ten are told apart.
    pairs = [_hats(k, 9 - k) for k in range(5)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(pairs), encoding="utf-8")
    found = compare(small(own, 0), other, str(path), ComparisonSettings(prompts=5, nulls=2, seed=0))
    assert "x" in found.roles
    assert found.answers == ("answer",)
    # Both sides of every pair are asked: 0 to 4 and 9 to 5.
    assert [gate.n_questions for gate in found.gates] == [10, 10]


def test_a_threshold_near_one_is_reported(compared):
    matches = tuple(replace(match, threshold=0.99) for match in compared.matches)
    gates = tuple(replace(gate, state="open") for gate in compared.gates)
    found = replace(compared, matches=matches, gates=gates)
    assert "too few roles" in " ".join(found.summary())


def test_the_numbers_are_saved_as_json_without_nan(compared, tmp_path):
    compared.save(tmp_path / "result.json")
    read = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert read["pattern"] == "take-away"
    assert len(read["matches"]) == len(compared.matches)
    assert read["summary"] == list(compared.summary())


def test_the_page_says_what_the_summary_says_and_stays_small(compared, tmp_path):
    compared.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 1_000_000
    assert "default-src" in text
    for heading in ("Capability", "Head pairing", "Patching effects"):
        assert heading in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_a_comparison_shows_itself_in_a_notebook(compared):
    assert "data-live=" in compared._repr_html_()
    assert "8 behavior absent" in repr(compared)


def test_a_comparison_leaves_no_hook_behind(own):
    a = small(own, 0)
    before = hook_count(a)
    with pytest.raises(BatchError):
        compare(a, a, "take-away", ComparisonSettings(prompts=2, nulls=1, seed=0))
    assert hook_count(a) == before


def test_a_model_without_a_tokenizer_is_refused(own):
    bare = wrap(tiny_hf("llama", 0), name="bare")
    with pytest.raises(ModelError, match="has no tokenizer"):
        compare(small(own, 0), bare, "take-away", ComparisonSettings(nulls=1))


def test_an_unknown_pattern_is_refused_by_name(own):
    with pytest.raises(PatternError, match="'foxes' is unknown"):
        compare(small(own, 0), small(own, 0), "foxes", ComparisonSettings(nulls=1))


def test_the_report_needs_no_model(compared):
    assert comparison_page(compared).title


def test_untrained_nets_of_two_seeds_differ_and_of_one_seed_do_not(own):
    a = small(own, 0)
    ids, mask = torch.arange(6)[None], torch.ones(1, 6, dtype=torch.bool)
    one, same, two = (random_init(a, seed=k).logits(ids, mask) for k in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, two)
