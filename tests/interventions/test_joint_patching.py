"""Patching heads together is exact, and the search for sets finds the set that was summed."""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch

from probes.comparison.heads.head_sets import MIN_EFFECT, ModelHeads, _patch_jointly
from probes.comparison.heads.profiles import profile_heads
from probes.errors import SiteError
from probes.interventions.joint_patching import candidate_sets, explained_fraction, joint_effects
from probes.interventions.sweep import activation_patching
from probes.observe.behavior import logit_diff, pair_foils
from probes.prompts.catalog import pattern
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
from probes.testing.tiny_models import KINDS, POST_NORM_KINDS, hook_count, tiny

ROLES = ("x", "op", "y", "thing_asked", "answer", "rest", "nowhere")
HEADS = [f"L{n}.H{h}" for n in range(3) for h in range(4)]


@cache
def model(kind, size):
    return tiny(kind, vocab_size=size, max_position_embeddings=128)


def batches(own, contrasts=("x", "operation")):
    chosen = pattern("take-away")
    return {
        c: tokenize_pairs(own, sample_pairs(chosen, c, 4, tokenizers=[own], seed=3))
        for c in contrasts
    }


def by_hand(net, pairs, heads, role):
    """Patch heads by an edit each, in whole passes over all prompts."""
    source, kept = pairs.source_positions[:, :, None, None], {}
    points = {f"blocks.{n}.attn.hook_z" for n in range(3)}
    with net.editing(
        {name: (lambda value, name=name: kept.update({name: value})) for name in points}
    ):
        net.logits(pairs.counterfactual.ids, pairs.counterfactual.mask)

    def edit(name, mine):
        def put(value):
            new, where = value.clone(), pairs.role_mask(role)
            theirs = kept[name].take_along_dim(source, dim=1)
            for head in mine:
                new[:, :, head][where] = theirs[:, :, head][where]
            return new

        return put

    edits = {}
    for n in range(3):
        mine = [int(head[-1]) for head in heads if head.startswith(f"L{n}.")]
        if mine:
            edits[f"blocks.{n}.attn.hook_z"] = edit(f"blocks.{n}.attn.hook_z", mine)

    def leads(logits):
        seen = logits.take_along_dim(pairs.clean.positions[..., None], dim=1)
        answers = [readout.answer for readout in pairs.clean.readouts]
        foils = pair_foils(pairs)
        return torch.stack([logit_diff(seen[:, k], foils[k], a) for k, a in enumerate(answers)], 1)

    before = leads(net.logits(pairs.clean.ids, pairs.clean.mask))
    with net.editing(edits):
        return (before - leads(net.logits(pairs.clean.ids, pairs.clean.mask))).numpy()


@pytest.mark.parametrize("kind", [*KINDS, *POST_NORM_KINDS])
def test_two_heads_patched_together_equal_two_edits_of_a_whole_pass(kind, own):
    net, given = model(kind, len(own)), batches(own, ("x",))
    sets = [("L0.H1", "L2.H3"), ("L1.H0", "L1.H2"), ("L2.H0", "L0.H0", "L1.H3")]
    found = joint_effects(net, given, sets, ROLES)["x"].reshape(4, 3, len(ROLES), 2)
    for number, heads in enumerate(sets):
        for role in ("x", "y", "answer"):
            wanted = by_hand(net, given["x"], heads, role)
            assert found[:, number, ROLES.index(role)] == pytest.approx(wanted, abs=1e-5)
    assert np.nanmax(np.abs(found)) > 1e-2
    assert hook_count(net) == 0


def test_sets_are_patched_at_the_asked_roles_alone(own):
    net, given = model("llama", len(own)), batches(own, ("x",))
    sets = [("L0.H1", "L2.H3"), ("L1.H0", "L1.H2")]
    at = np.zeros((2, len(ROLES)), dtype=bool)
    at[0, ROLES.index("x")] = at[1, ROLES.index("answer")] = True
    whole, some = (
        joint_effects(net, given, sets, ROLES, **more)["x"].reshape(4, 2, len(ROLES), 2)
        for more in ({}, {"at": {"x": at}})
    )
    expected = np.where(at[..., None] | np.isnan(whole), whole, 0.0)
    assert some == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert (np.abs(some[:, at]) > 0).any()


def test_runs_that_restart_equal_whole_passes(own):
    sets = [("L0.H1", "L2.H3"), ("L1.H0", "L1.H2", "L2.H0")]
    given, whole = batches(own, ("x",)), tiny("llama", vocab_size=len(own))
    whole.failed_checks["restarts"] = "as a test"
    with pytest.warns(UserWarning, match="is slow"):
        expected = joint_effects(whole, given, sets, ROLES)["x"]
    found = joint_effects(tiny("llama", vocab_size=len(own)), given, sets, ROLES)["x"]
    assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_together_is_not_the_sum_where_one_head_reads_the_other(own):
    net, given = model("llama", len(own)), batches(own, ("x",))
    pair, one, two = np.split(
        joint_effects(net, given, [("L0.H1", "L2.H3"), ("L0.H1",), ("L2.H3",)], ROLES)["x"], 3, 1
    )
    assert np.nanmax(np.abs(pair - one - two)) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_of_one_head_has_the_profile_that_the_sweep_gives(kind, own):
    net, given = model(kind, len(own)), batches(own)
    wanted, _ = profile_heads(net, given, ROLES)
    found = joint_effects(net, given, [(head,) for head in HEADS], ROLES)
    for contrast in given:
        assert found[contrast] == pytest.approx(wanted.effects[contrast], abs=1e-5, nan_ok=True)


def test_a_profile_keeps_what_replacing_everything_does(own):
    net, given = model("llama", len(own)), batches(own)
    found, _ = profile_heads(net, given, ROLES)
    for contrast, pairs in given.items():
        assert found.total_effects[contrast] == pytest.approx(
            activation_patching(net, pairs).total.numpy()
        )


@pytest.mark.parametrize("heads", [(), ("L3.H0",), ("L0.MLP",), ("L0.H0", "L0.H4")])
def test_a_set_must_name_heads_of_the_model(heads, own):
    with pytest.raises(SiteError, match=r"heads L0\.H0 to L2\.H3"):
        joint_effects(model("gpt2", len(own)), batches(own, ("x",)), [heads], ROLES)


def parts(heads=9, seed=0):
    return np.random.default_rng(seed).normal(size=(heads, 40))


@pytest.mark.parametrize("members", [(2, 5), (0, 3, 8)])
def test_the_search_finds_the_heads_that_were_summed_among_others(members):
    target = parts()[list(members)].sum(0) + 0.1 * parts(1, seed=1)[0]
    assert members in candidate_sets(target, parts())


def test_the_search_agrees_with_trying_every_pair():
    heads = parts(6)
    for seed in range(20):
        target = heads[[1, 4]].sum(0) + 0.5 * parts(1, seed=seed)[0]
        pairs = list(combinations(range(6), 2))
        best = explained_fraction(
            target, np.stack([heads[list(pair)].sum(0) for pair in pairs])
        ).argmax()
        assert candidate_sets(target, heads)[0] == pairs[best]


def test_a_head_that_must_be_turned_round_or_blown_up_takes_no_part():
    heads = parts(3)
    assert candidate_sets(heads[0] - heads[1], heads) == []
    assert candidate_sets(np.zeros(40), heads) == []
    assert candidate_sets(heads[0], np.zeros((3, 40))) == []


def test_what_is_explained_counts_strength_and_not_direction_alone():
    target = np.array([3.0, 4.0])
    rows = np.array([[3.0, 4.0], [1.5, 2.0], [0.0, 0.0], [6.0, 8.0], [-3.0, -4.0]])
    assert explained_fraction(target, rows) == pytest.approx(np.array([1, 0.75, 0, 0, -3]))
    assert explained_fraction(np.zeros(2), rows).max() == -np.inf


def test_in_a_screened_model_sets_are_patched_jointly_where_two_of_their_heads_act(own):
    net, given = model("llama", len(own)), batches(own)
    profiles, _ = profile_heads(net, given, ROLES)
    sets, answers = [("L0.H1", "L2.H3"), ("L1.H0", "L1.H2", "L2.H0")], [("x", 0), ("operation", 0)]
    odd = {c: tokenize_pairs(own, pairs.pairs[1::2]) for c, pairs in given.items()}
    joint, mixed = (
        _patch_jointly(ModelHeads(net, given, profiles, is_screened), odd, sets, answers)
        for is_screened in (False, True)
    )
    kinds = set()
    for contrast in given:
        totals = profiles.total_effects[contrast]
        every = profiles.effects[contrast].reshape(len(totals), 12, len(ROLES), -1)
        fractions = np.nan_to_num(every[::2, ..., 0].mean(0) / totals[::2, 0].mean())
        for number, names in enumerate(sets):
            own_heads = [profiles.heads.index(name) for name in names]
            summed = every[1::2, own_heads].sum(1)
            acting = (np.abs(fractions[own_heads]) >= MIN_EFFECT).sum(0) >= 2
            patched, found = (
                one[contrast].reshape(len(summed), len(sets), len(ROLES), -1)[:, number]
                for one in (joint, mixed)
            )
            expected = np.where(acting[:, None], patched, summed)
            assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)
            kinds |= set(acting.tolist())
    assert kinds == {True, False}
