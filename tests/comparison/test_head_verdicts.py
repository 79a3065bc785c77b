"""The words for heads: on profiles made by hand, and on twins whose truth surgery knows."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from probes.comparison.heads import head_sets as headsets
from probes.comparison.heads.head_sets import ModelHeads, active_heads, rescale_null
from probes.comparison.heads.measurements import NullModels
from probes.comparison.heads.profiles import (
    HeadProfiles,
    affected_answers,
    effect_fractions,
    profile_heads,
)
from probes.comparison.heads.verdicts import head_verdicts
from probes.models.model import load, random_init
from probes.prompts.catalog import pattern
from probes.prompts.pair_batch import sample_pairs, tokenize_pairs
from probes.testing.equivalent_models import permute_heads, split_heads, swap_direction, zero_heads
from probes.testing.tiny_models import tiny

PROMPTS, ROLES, CONTRASTS = 12, ("x", "op", "y", "answer"), ("x", "y", "operation")
FEATURES = len(ROLES) * 2


def head(seed, noise=0.02):
    """A head's effects (logits) by contrast, and its attention, with a little noise by prompt."""
    rng = np.random.default_rng(seed)
    effects = 8 * rng.normal(size=(len(CONTRASTS), FEATURES))
    gaze = rng.normal(size=16)
    shake = np.random.default_rng(seed + 1000)
    return {
        "effects": effects[:, None] + noise * shake.normal(size=(3, PROMPTS, FEATURES)),
        "gaze": gaze + noise * shake.normal(size=(3, PROMPTS, 16)),
    }


def part(whole, share):
    return {"effects": share * whole["effects"], "gaze": whole["gaze"]}


def profiles(heads, name="made", total=(20.0, 10.0)):
    names = tuple(f"L0.H{k}" for k in range(len(heads)))
    effects = {c: np.stack([h["effects"][n] for h in heads], 1) for n, c in enumerate(CONTRASTS)}
    gaze = {c: np.stack([h["gaze"][n] for h in heads], 1) for n, c in enumerate(CONTRASTS)}
    totals = {c: np.tile(np.array(total), (PROMPTS, 1)) for c in CONTRASTS}
    return HeadProfiles(name, names, ROLES, effects, gaze, totals)


@cache
def nets():
    return tuple(profiles([head(100 * n + k) for k in range(4)]) for n in range(1, 13))


@pytest.fixture
def tell(own, monkeypatch):
    """Tell heads made by hand, whose joint patches are the sums of their single ones."""
    known, chosen = {}, pattern("take-away")
    # Only the names of the contrasts are read: nothing is run.
    few = tokenize_pairs(own, sample_pairs(chosen, "x", 2, tokenizers=[own], seed=0))
    batches = dict.fromkeys(CONTRASTS, few)

    def joint(model, given, sets, roles):
        found = known[model.name]
        numbers = [[found.heads.index(name) for name in names] for names in sets]
        return {
            c: np.stack([found.effects[c][1::2][:, some].sum(1) for some in numbers], 1)
            for c in given
        }

    monkeypatch.setattr(headsets, "joint_effects", joint)

    def run(full, other, *, chance=None, **settings):
        views = []
        for name, found in (("a", full), ("b", other)):
            known[name] = found
            model = replace(tiny("gpt2"), name=name, tokenizer=own)
            views.append(ModelHeads(model, batches, found))
        return head_verdicts(views[0], views[1], chance or NullModels(nets()), **settings)

    return run


def words(verdicts):
    return {(verdict.subject, verdict.label, verdict.counterpart) for verdict in verdicts}


def test_a_model_keeps_all_its_heads_wherever_they_stand_and_each_is_equivalent(tell):
    full = [head(1), head(2), head(3)]
    found = tell(profiles(full), profiles([full[2], full[0], full[1]]))
    assert words(found) == {
        ("L0.H0", "kept", "L0.H1"),
        ("L0.H1", "kept", "L0.H2"),
        ("L0.H2", "kept", "L0.H0"),
    }
    assert all(verdict.equivalent for verdict in found)


def test_logits_of_another_scale_change_no_word(tell):
    full = [head(1), head(2)]
    louder = [part(one, 3.0) for one in full]
    found = tell(profiles(full), profiles(louder, total=(60.0, 30.0)))
    assert [verdict.label for verdict in found] == ["kept", "kept"]
    assert all(verdict.equivalent for verdict in found)


def test_a_head_of_a_third_of_the_strength_is_not_kept_however_alike(tell):
    full = [head(1), head(2)]
    found = tell(profiles(full), profiles([part(full[0], 0.33), full[1]]))
    assert [(verdict.label, verdict.counterpart) for verdict in found] == [
        ("cannot tell", "L0.H0"),
        ("kept", "L0.H1"),
    ]
    assert found[0].equivalent is False


def test_two_halves_are_a_split_and_turned_round_a_merge(tell):
    whole, bystander = head(1), head(2)
    halves = [part(whole, 0.5), bystander, part(whole, 0.5)]
    assert words(tell(profiles([whole, bystander]), profiles(halves))) == {
        ("L0.H0", "split", "L0.H0 + L0.H2"),
        ("L0.H1", "kept", "L0.H1"),
    }
    assert words(tell(profiles(halves), profiles([whole, bystander]))) == {
        ("L0.H0", "merged", "L0.H0"),
        ("L0.H2", "merged", "L0.H0"),
        ("L0.H1", "kept", "L0.H1"),
    }


def test_a_set_that_a_joint_patch_denies_is_no_split(tell, monkeypatch):
    """Sums only propose: here the two heads do nothing more together than one of them."""
    whole = head(1)
    halves = profiles([part(whole, 0.5), part(whole, 0.5)])
    monkeypatch.setattr(
        headsets,
        "joint_effects",
        lambda model, given, sets, roles: {
            c: halves.effects[c][1::2, :1].repeat(len(sets), 1) for c in given
        },
    )
    assert "split" not in [verdict.label for verdict in tell(profiles([whole]), halves)]


def test_a_sum_of_heads_that_other_heads_are_is_no_split(tell):
    one, two = head(1), head(2)
    both = {"effects": one["effects"] + two["effects"], "gaze": one["gaze"] + two["gaze"]}
    found = tell(profiles([one, two, both]), profiles([one, two]))
    assert [verdict.label for verdict in found[:2]] == ["kept", "kept"]
    assert found[2].label != "split"


def test_a_head_without_a_like_is_lost_and_turned_round_new(tell):
    full = [head(1), head(3)]
    assert words(tell(profiles(full), profiles(full[:1]))) == {
        ("L0.H0", "kept", "L0.H0"),
        ("L0.H1", "lost", ""),
    }
    assert words(tell(profiles(full[:1]), profiles(full))) == {
        ("L0.H0", "kept", "L0.H0"),
        ("", "new", "L0.H1"),
    }


def test_nothing_is_lost_while_the_gate_is_half_open(tell):
    full = [head(1), head(3)]
    found = tell(profiles(full), profiles(full[:1]), gate="partial")
    assert [verdict.label for verdict in found] == ["kept", "cannot tell"]


def test_behind_a_closed_gate_there_is_no_word(tell):
    full = profiles([head(1), head(2)])
    assert [f.label for f in tell(full, full, gate="closed")] == ["behavior absent"] * 2


def test_heads_that_do_next_to_nothing_are_idle_on_both_sides(tell):
    full = [head(1), part(head(2), 1e-4)]
    noise = head(3, noise=500.0)
    assert words(tell(profiles(full), profiles([head(1), noise]))) == {
        ("L0.H0", "kept", "L0.H0"),
        ("L0.H1", "no reliable effect", ""),
        ("", "no reliable effect", "L0.H1"),
    }


def test_a_head_that_nets_trained_for_another_end_have_too_is_not_called_kept(tell):
    full = profiles([head(1), head(2)])
    strangers = (profiles([head(1), head(9)]),)
    found = tell(full, full, chance=NullModels(nets(), negative_controls=strangers))
    assert [verdict.label for verdict in found] == ["cannot tell", "kept"]


def test_a_split_is_shown_beside_what_nets_without_the_full_model_do(tell):
    whole = head(1)
    full, halves = profiles([whole]), profiles([part(whole, 0.5), part(whole, 0.5)])
    found = tell(full, halves, chance=NullModels(nets(), same_shape=(halves,)))
    shown = found[0].test("same_shape_control")
    assert (shown.name, shown.value.value) == ("split without the full model", 1.0)
    assert not shown.is_deciding
    assert tell(full, halves)[0].test("same_shape_control").value is None


def shifted(whole):
    """The same effects, one role further on."""
    turned_on = whole["effects"].reshape(3, PROMPTS, len(ROLES), 2)
    return {
        "effects": np.roll(turned_on, 1, axis=2).reshape(whole["effects"].shape),
        "gaze": head(77)["gaze"],
    }


@pytest.mark.parametrize(("twin", "word"), [(True, "moved"), (False, "cannot tell")])
def test_a_head_has_moved_only_where_another_seed_has_it_in_place(twin, word, tell):
    sharp = head(1)
    sharp["effects"] = sharp["effects"] * np.repeat([0.1, 1.0, 0.1, 0.1], 2)
    full, other = profiles([sharp]), profiles([shifted(sharp)])
    found = tell(full, other, chance=NullModels(nets(), other_seed=full if twin else None))
    assert (found[0].label, found[0].counterpart) == (word, "L0.H0")
    assert "at y, not at op" in found[0].reason


def test_only_answers_that_go_in_both_models_have_shares():
    one, two = profiles([head(1)]), profiles([head(1)], total=(20.0, 0.1))
    assert affected_answers(one) == tuple((c, k) for c in sorted(CONTRASTS) for k in (0, 1))
    assert affected_answers(one, two) == tuple((c, 0) for c in sorted(CONTRASTS))
    assert affected_answers() == ()
    even = {c: np.ones((1, PROMPTS)) for c in CONTRASTS}
    found = effect_fractions(one.effects, one.total_effects, [("x", 1)], even)
    wanted = one.effects["x"].mean(0)[:, 1::2] / 10
    assert found[0] == pytest.approx(wanted)


def test_an_untrained_net_is_scaled_to_the_strongest_head():
    weak = profiles([part(head(5), 1e-4), part(head(6), 2e-4)], total=(0.0, 0.0))
    where = affected_answers(like := profiles([head(1)]))
    every = {c: np.ones((1, PROMPTS)) for c in CONTRASTS}
    longest = [
        np.linalg.norm(effect_fractions(p.effects, p.total_effects, where, every)[0], axis=1).max()
        for p in (rescale_null(weak, like, where), like)
    ]
    assert longest[0] == pytest.approx(longest[1])


@pytest.fixture(scope="module")
def ground():
    """The distilled member and untrained nets, on few pairs."""
    model, chosen = load("distilled"), pattern("take-away")
    words_of = [model.tokenizer]
    batches = {
        c: tokenize_pairs(model.tokenizer, sample_pairs(chosen, c, 8, tokenizers=words_of, seed=0))
        for c in (*CONTRASTS, "thing")
    }
    roles = ("have", "x", "thing", "op", "y", "ask", "thing_asked", "answer", "reply_number")

    def view(net):
        return ModelHeads(net, batches, profile_heads(net, batches, roles)[0])

    own = view(model)
    chance = NullModels([view(random_init(model, seed=k)).profiles for k in range(4)])
    able = active_heads(own.profiles, affected_answers(own.profiles))
    return own, view, chance, {h for h, b in zip(own.profiles.heads, able, strict=True) if b}


def test_a_twin_with_shuffled_heads_is_kept_head_by_head(ground):
    own, view, chance, able = ground
    twin = permute_heads(own.model, 1)
    found = head_verdicts(own, view(twin.model), chance)
    assert {f.subject: (f.counterpart,) for f in found if f.label == "kept"} == {
        name: twin.head_map[name] for name in able
    }
    assert {f.label for f in found if f.subject not in able} == {"no reliable effect"}


@pytest.mark.slow
def test_a_twin_with_a_split_head_is_split_and_turned_round_merged(ground):
    own, view, chance, _ = ground
    twin = split_heads(own.model, ["L0.H0"], 3)
    other, back = view(twin.model), swap_direction(twin, own.model)
    halves = set(twin.head_map["L0.H0"])
    found = head_verdicts(own, other, chance)
    assert {f.subject for f in found if f.label == "split"} == {"L0.H0"}
    assert {f.label for f in found if f.subject} == {"split", "kept", "no reliable effect"}
    assert next(set(f.counterpart.split(" + ")) for f in found if f.label == "split") == halves
    found = head_verdicts(other, own, chance)
    assert {f.subject for f in found if f.label == "merged"} == halves
    assert {back.head_map[half] for half in halves} == {("L0.H0",)}


@pytest.mark.slow
def test_a_twin_without_a_head_has_lost_that_head_alone(ground):
    own, view, chance, _ = ground
    twin = zero_heads(own.model, ["L0.H2"])
    found = head_verdicts(own, view(twin.model), chance)
    assert [f.subject for f in found if f.label == "lost"] == ["L0.H2"]
    assert not [f for f in found if f.label in ("new", "split", "merged", "moved")]
