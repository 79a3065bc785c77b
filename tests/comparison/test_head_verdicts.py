"""Verdicts on heads: constructed profiles, and equivalent models with a known head map."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from probes.comparison.assemble import _mean_pair_score
from probes.comparison.heads import head_sets
from probes.comparison.heads.head_sets import ModelHeads, active_heads
from probes.comparison.heads.matching import pair_heads
from probes.comparison.heads.measurements import NullModels
from probes.comparison.heads.profiles import (
    HeadProfiles,
    affected_answers,
    effect_fractions,
    profile_heads,
)
from probes.comparison.heads.set_thresholds import rescale_null
from probes.comparison.heads.verdicts import head_verdicts
from probes.models.model import load, random_init
from probes.prompts.catalog import pattern
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
from probes.testing.equivalent_heads import permute_heads, split_heads, swap_direction, zero_heads
from probes.testing.tiny_models import tiny

PROMPTS, ROLES, CONTRASTS = 12, ("x", "op", "y", "answer"), ("x", "y", "operation")
FEATURES = len(ROLES) * 2


def head(seed, noise=0.02):
    """Effects (logits) by contrast, and attention, of one head, with noise by prompt."""
    rng = np.random.default_rng(seed)
    effects = 8 * rng.normal(size=(len(CONTRASTS), FEATURES))
    attention = rng.normal(size=16)
    noise_rng = np.random.default_rng(seed + 1000)
    return {
        "effects": effects[:, None] + noise * noise_rng.normal(size=(3, PROMPTS, FEATURES)),
        "attention": attention + noise * noise_rng.normal(size=(3, PROMPTS, 16)),
    }


def noisy(one, seed, noise=20.0):
    rng = np.random.default_rng(seed)
    return {name: values + noise * rng.normal(size=values.shape) for name, values in one.items()}


def part(whole, fraction):
    return {"effects": fraction * whole["effects"], "attention": whole["attention"]}


def profiles(heads, name="made", total=(20.0, 10.0)):
    names = tuple(f"L0.H{k}" for k in range(len(heads)))
    effects = {c: np.stack([h["effects"][n] for h in heads], 1) for n, c in enumerate(CONTRASTS)}
    attention = {
        c: np.stack([h["attention"][n] for h in heads], 1) for n, c in enumerate(CONTRASTS)
    }
    totals = {c: np.tile(np.array(total), (PROMPTS, 1)) for c in CONTRASTS}
    return HeadProfiles(name, names, ROLES, effects, attention, totals)


@cache
def nulls():
    return tuple(profiles([head(100 * n + k) for k in range(4)]) for n in range(1, 13))


@pytest.fixture
def verdicts_of(own, monkeypatch):
    """Verdicts on constructed heads whose joint effects are the sums of their effects."""
    known, chosen = {}, pattern("take-away")
    # Only the names of the contrasts are read; no model runs.
    few = tokenize_pairs(own, sample_pairs(chosen, "x", 2, tokenizers=[own], seed=0))
    batches = dict.fromkeys(CONTRASTS, few)

    def joint(model, given, sets, roles):
        profile = known[model.name]
        numbers = [[profile.heads.index(name) for name in names] for names in sets]
        return {
            c: np.stack([profile.effects[c][1::2][:, some].sum(1) for some in numbers], 1)
            for c in given
        }

    monkeypatch.setattr(head_sets, "joint_effects", joint)

    def run(full, other, *, null_models=None, **settings):
        models = []
        for name, profile in (("a", full), ("b", other)):
            known[name] = profile
            model = replace(tiny("gpt2"), name=name, tokenizer=own)
            models.append(ModelHeads(model, batches, profile))
        return head_verdicts(*models, null_models or NullModels(nulls()), **settings)

    return run


def labels(verdicts):
    return {(verdict.subject, verdict.label, verdict.counterpart) for verdict in verdicts}


def test_permuted_heads_are_kept_and_equivalent(verdicts_of):
    full = [head(1), head(2), head(3)]
    found = verdicts_of(profiles(full), profiles([full[2], full[0], full[1]]))
    assert labels(found) == {
        ("L0.H0", "kept", "L0.H1"),
        ("L0.H1", "kept", "L0.H2"),
        ("L0.H2", "kept", "L0.H0"),
    }
    assert all(verdict.equivalent for verdict in found)


def test_the_scale_of_logits_changes_no_verdict(verdicts_of):
    full = [head(1), head(2)]
    scaled = [part(one, 3.0) for one in full]
    found = verdicts_of(profiles(full), profiles(scaled, total=(60.0, 30.0)))
    assert [verdict.label for verdict in found] == ["kept", "kept"]
    assert all(verdict.equivalent for verdict in found)


def test_a_similar_head_of_a_third_of_the_strength_is_not_kept(verdicts_of):
    full = [head(1), head(2)]
    found = verdicts_of(profiles(full), profiles([part(full[0], 0.33), full[1]]))
    assert [(verdict.label, verdict.counterpart) for verdict in found] == [
        ("cannot tell", "L0.H0"),
        ("kept", "L0.H1"),
    ]
    assert found[0].equivalent is False


def test_two_halves_of_a_head_are_a_split_and_in_reverse_a_merge(verdicts_of):
    whole, unrelated = head(1), head(2)
    halves = [part(whole, 0.5), unrelated, part(whole, 0.5)]
    assert labels(verdicts_of(profiles([whole, unrelated]), profiles(halves))) == {
        ("L0.H0", "split", "L0.H0 + L0.H2"),
        ("L0.H1", "kept", "L0.H1"),
    }
    assert labels(verdicts_of(profiles(halves), profiles([whole, unrelated]))) == {
        ("L0.H0", "merged", "L0.H0"),
        ("L0.H2", "merged", "L0.H0"),
        ("L0.H1", "kept", "L0.H1"),
    }


def test_a_set_without_a_joint_effect_is_no_split(verdicts_of, monkeypatch):
    """Sums only propose sets: here two heads together have the effect of one."""
    whole = head(1)
    halves = profiles([part(whole, 0.5), part(whole, 0.5)])
    monkeypatch.setattr(
        head_sets,
        "joint_effects",
        lambda model, given, sets, roles: {
            c: halves.effects[c][1::2, :1].repeat(len(sets), 1) for c in given
        },
    )
    assert "split" not in [verdict.label for verdict in verdicts_of(profiles([whole]), halves)]


def test_a_sum_of_heads_that_match_other_heads_is_no_split(verdicts_of):
    one, two = head(1), head(2)
    both = {
        "effects": one["effects"] + two["effects"],
        "attention": one["attention"] + two["attention"],
    }
    found = verdicts_of(profiles([one, two, both]), profiles([one, two]))
    assert [verdict.label for verdict in found[:2]] == ["kept", "kept"]
    assert found[2].label != "split"


def test_a_head_without_a_counterpart_is_lost_and_in_reverse_new(verdicts_of):
    full = [head(1), head(3)]
    assert labels(verdicts_of(profiles(full), profiles(full[:1]))) == {
        ("L0.H0", "kept", "L0.H0"),
        ("L0.H1", "lost", ""),
    }
    assert labels(verdicts_of(profiles(full[:1]), profiles(full))) == {
        ("L0.H0", "kept", "L0.H0"),
        ("", "new", "L0.H1"),
    }


def test_a_head_that_the_other_seed_model_lacks_as_well_is_not_shared_between_seeds(verdicts_of):
    full, other_seed = [head(1), head(3)], profiles([head(1), head(7)])
    found = verdicts_of(
        profiles(full), profiles(full[:1]), null_models=NullModels(nulls(), other_seed=other_seed)
    )
    assert labels(found) == {
        ("L0.H0", "kept", "L0.H0"),
        ("L0.H1", "not shared between seeds", ""),
    }
    same_seed = NullModels(nulls(), other_seed=profiles(full))
    found = verdicts_of(profiles(full), profiles(full[:1]), null_models=same_seed)
    assert found[1].label == "lost"


def test_a_head_that_does_half_of_the_work_of_another_is_neither_new_nor_lost(verdicts_of):
    """A whole head is explained by none of its parts, but it explains each of them."""
    whole = head(1)
    parts = {"effects": 0.55 * whole["effects"] + head(5)["effects"] * 0.3}
    mixed = {**parts, "attention": head(6)["attention"]}
    here, there = profiles([whole, head(2)]), profiles([mixed, head(2)])
    for found in (verdicts_of(here, there), verdicts_of(there, here)):
        assert {f.label for f in found} <= {"kept", "cannot tell"}


def test_no_head_is_lost_while_the_gate_is_partial(verdicts_of):
    full = [head(1), head(3)]
    found = verdicts_of(profiles(full), profiles(full[:1]), gate="partial")
    assert [verdict.label for verdict in found] == ["kept", "cannot tell"]


def test_with_a_closed_gate_the_behavior_is_absent(verdicts_of):
    full = profiles([head(1), head(2)])
    assert [f.label for f in verdicts_of(full, full, gate="closed")] == ["behavior absent"] * 2


def test_too_few_questions_give_no_verdict_on_heads(verdicts_of):
    full = profiles([head(1), head(2)])
    verdicts = verdicts_of(full, full, gate="too few to tell")
    assert [verdict.label for verdict in verdicts] == ["cannot tell"] * 2
    assert verdicts[0].reason.startswith("too few questions")


def test_weak_or_noisy_heads_of_both_models_have_no_reliable_effect(verdicts_of):
    full = [head(1), part(head(2), 1e-4)]
    noise = head(3, noise=500.0)
    assert labels(verdicts_of(profiles(full), profiles([head(1), noise]))) == {
        ("L0.H0", "kept", "L0.H0"),
        ("L0.H1", "no reliable effect", ""),
        ("", "no reliable effect", "L0.H1"),
    }


def test_a_head_that_a_negative_control_has_is_not_kept(verdicts_of):
    full = profiles([head(1), head(2)])
    controls = (profiles([head(1), head(9)]),)
    found = verdicts_of(full, full, null_models=NullModels(nulls(), negative_controls=controls))
    assert [verdict.label for verdict in found] == ["cannot tell", "kept"]


def test_a_split_is_reported_with_same_shape_controls(verdicts_of):
    whole = head(1)
    full, halves = profiles([whole]), profiles([part(whole, 0.5), part(whole, 0.5)])
    found = verdicts_of(full, halves, null_models=NullModels(nulls(), same_shape=(halves,)))
    control = found[0].test("same_shape_control")
    assert (control.name, control.value.value) == ("split in same-shape controls", 1.0)
    assert not control.is_deciding
    assert verdicts_of(full, halves)[0].test("same_shape_control").value is None


def shifted(whole):
    """The same effects at the next role."""
    by_role = whole["effects"].reshape(3, PROMPTS, len(ROLES), 2)
    return {
        "effects": np.roll(by_role, 1, axis=2).reshape(whole["effects"].shape),
        "attention": head(77)["attention"],
    }


@pytest.mark.parametrize(("with_other_seed", "label"), [(True, "moved"), (False, "cannot tell")])
def test_a_head_has_moved_only_if_the_other_seed_model_has_it_in_place(
    with_other_seed, label, verdicts_of
):
    sharp = head(1)
    sharp["effects"] = sharp["effects"] * np.repeat([0.1, 1.0, 0.1, 0.1], 2)
    full, other = profiles([sharp]), profiles([shifted(sharp)])
    found = verdicts_of(
        full, other, null_models=NullModels(nulls(), other_seed=full if with_other_seed else None)
    )
    assert (found[0].label, found[0].counterpart) == (label, "L0.H0")
    assert "at y, not at op" in found[0].reason


def test_noise_in_the_other_seed_model_confirms_no_move(verdicts_of):
    sharp = head(1)
    sharp["effects"] = sharp["effects"] * np.repeat([0.1, 1.0, 0.1, 0.1], 2)
    full, other = profiles([sharp]), profiles([shifted(sharp)])
    # Some head is always the most similar one, and may be strongest at the same role by chance.
    for seed in range(40, 52):
        unrelated = profiles([head(seed), head(seed + 20)])
        null_models = NullModels(nulls(), other_seed=unrelated)
        found = verdicts_of(full, other, null_models=null_models)[0]
        assert found.label == "cannot tell"
        assert "other-seed model" in found.reason


def test_no_head_is_lost_or_new_against_a_null_that_reaches_everything(verdicts_of):
    """Below a threshold of 1 lies every head."""
    full, other = profiles([head(1)]), profiles([head(30)])
    labels = {v.label for v in verdicts_of(full, other)}
    assert labels == {"lost", "new"}
    same = NullModels([full, full, full])
    found = verdicts_of(full, other, null_models=same)
    assert {v.label for v in found} == {"cannot tell"}
    assert "the null reaches 1.00" in found[0].reason


def test_a_permuted_null_finds_no_head_to_have_moved(verdicts_of):
    sharp = head(1)
    sharp["effects"] = sharp["effects"] * np.repeat([0.1, 1.0, 0.1, 0.1], 2)
    full, other = profiles([sharp]), profiles([shifted(sharp)])
    null = NullModels(nulls(), other_seed=full, is_permuted=True)
    assert verdicts_of(full, other, null_models=null)[0].label != "moved"


def test_fractions_use_only_answers_that_are_affected_in_both_models():
    one, two = profiles([head(1)]), profiles([head(1)], total=(20.0, 0.1))
    assert affected_answers(one) == tuple((c, k) for c in sorted(CONTRASTS) for k in (0, 1))
    assert affected_answers(one, two) == tuple((c, 0) for c in sorted(CONTRASTS))
    assert affected_answers() == ()
    even = {c: np.ones((1, PROMPTS)) for c in CONTRASTS}
    found = effect_fractions(one.effects, one.total_effects, [("x", 1)], even)
    wanted = one.effects["x"].mean(0)[:, 1::2] / 10
    assert found[0] == pytest.approx(wanted)


def test_a_random_init_model_is_scaled_to_the_strongest_head():
    weak = profiles([part(head(5), 1e-4), part(head(6), 2e-4)], total=(0.0, 0.0))
    where = affected_answers(like := profiles([head(1)]))
    every = {c: np.ones((1, PROMPTS)) for c in CONTRASTS}
    longest = [
        np.linalg.norm(effect_fractions(p.effects, p.total_effects, where, every)[0], axis=1).max()
        for p in (rescale_null(weak, like, where), like)
    ]
    assert longest[0] == pytest.approx(longest[1])


@pytest.fixture(scope="module")
def distilled():
    """The distilled model and random-init models, on few pairs."""
    model, chosen = load("distilled"), pattern("take-away")
    tokenizers = [model.tokenizer]
    batches = {
        c: tokenize_pairs(
            model.tokenizer, sample_pairs(chosen, c, 8, tokenizers=tokenizers, seed=0)
        )
        for c in (*CONTRASTS, "thing")
    }
    roles = ("have", "x", "thing", "op", "y", "ask", "thing_asked", "answer", "reply_number")

    def measure(model):
        return ModelHeads(model, batches, profile_heads(model, batches, roles)[0])

    own = measure(model)
    null_models = NullModels([measure(random_init(model, seed=k)).profiles for k in range(4)])
    active = active_heads(own.profiles, affected_answers(own.profiles))
    heads = {h for h, is_active in zip(own.profiles.heads, active, strict=True) if is_active}
    return own, measure, null_models, heads


def test_permuted_heads_of_a_model_are_kept(distilled):
    own, measure, null_models, active = distilled
    equivalent = permute_heads(own.model, 1)
    found = head_verdicts(own, measure(equivalent.model), null_models)
    assert {f.subject: (f.counterpart,) for f in found if f.label == "kept"} == {
        name: equivalent.head_map[name] for name in active
    }
    assert {f.label for f in found if f.subject not in active} == {"no reliable effect"}


@pytest.mark.slow
def test_a_split_head_of_a_model_is_split_and_in_reverse_merged(distilled):
    own, measure, null_models, _ = distilled
    equivalent = split_heads(own.model, ["L0.H0"], 3)
    other, back = measure(equivalent.model), swap_direction(equivalent, own.model)
    halves = set(equivalent.head_map["L0.H0"])
    found = head_verdicts(own, other, null_models)
    assert {f.subject for f in found if f.label == "split"} == {"L0.H0"}
    assert {f.label for f in found if f.subject} == {"split", "kept", "no reliable effect"}
    assert next(set(f.counterpart.split(" + ")) for f in found if f.label == "split") == halves
    found = head_verdicts(other, own, null_models)
    assert {f.subject for f in found if f.label == "merged"} == halves
    assert {back.head_map[half] for half in halves} == {("L0.H0",)}


@pytest.mark.slow
def test_a_model_without_a_head_has_lost_that_head_alone(distilled):
    own, measure, null_models, _ = distilled
    equivalent = zero_heads(own.model, ["L0.H2"])
    found = head_verdicts(own, measure(equivalent.model), null_models)
    assert [f.subject for f in found if f.label == "lost"] == ["L0.H2"]
    assert not [f for f in found if f.label in ("new", "split", "merged", "moved")]


def test_the_fraction_of_a_weak_head_that_a_strong_one_explains_has_a_bound(verdicts_of):
    weak = profiles([part(head(1), 0.05), head(2)])
    found = verdicts_of(weak, profiles([head(1), head(2)]))[0]
    explained = next(test for test in found.tests if test.id == "explained")
    assert explained.value.value == explained.value.low == -1
    assert found.label == "cannot tell"


def test_heads_with_noisy_effects_have_a_mean_pairing_score_within_its_interval():
    a, b = (profiles([noisy(head(k), 100 * model + k) for k in range(6)]) for model in range(2))
    nulls = [pair_heads(a, null) for null in (profiles([head(100 + k) for k in range(6)]),)]
    score = _mean_pair_score(a, b, nulls, None, 0).score
    assert score.low < score.value < score.high
