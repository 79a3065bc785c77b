"""What one model knows turns another's answers where both hold it alike, and nowhere else."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from probes.comparison.variables.held_out_folds import sample_held_out_folds
from probes.comparison.variables.linear_maps import MapKind, fit_map
from probes.comparison.variables.stitching import (
    Donor,
    embedding_sites,
    find_donor_sites,
    label_donor,
    run_donor,
    run_recipient,
    self_sites,
    shuffled_donor,
    stitched_hits,
)
from probes.comparison.variables.transfer import (
    TransferBaselines,
    TransferSettings,
    cross_model_interchange,
    donor_hits,
    evaluate_donor,
    own_hits,
)
from probes.errors import BatchError, ModelError, PatternError, ProbeError
from probes.interventions.interchange import interchange_intervention, with_residual
from probes.interventions.site_search import takes_only
from probes.models.model import random_init, wrap
from probes.prompts.interchange_pairs import OBJECT, OPERATION
from probes.stats.auroc import group_auroc
from probes.testing.equivalent_heads import permute_heads, split_heads
from probes.testing.equivalent_layers import insert_silent_layer, rotate_residual
from probes.testing.planted_patterns import fox_pattern, planted_fox
from probes.testing.tiny_models import hook_count, tiny_hf

BASES, PROMPTS = 30, 200
NUMBERS = (OPERATION, "x", "y")
"""The variables whose code one word teaches of another; each noun has a dimension to itself."""

TWINS = {
    "rotated": rotate_residual,
    "permuted": permute_heads,
    "split": lambda model: split_heads(model, ["L1.H0"]),
    "no reliable effect": lambda model: insert_silent_layer(model, 1),
}


@cache
def model(kind, seed=0):
    if kind in TWINS:
        return TWINS[kind](planted_fox("template").model).model
    return planted_fox(kind, seed=seed).model


@cache
def trials():
    words = model("template").tokenizer
    return sample_held_out_folds(fox_pattern(), tokenizers=(words,), bases=BASES, prompts=PROMPTS)


@cache
def recipient(kind="template"):
    return run_recipient(model(kind), trials())


@cache
def donor(kind, seed=0):
    if kind == "net":
        return run_donor(random_init(model("template"), seed=seed), trials())
    return run_donor(model(kind, seed), trials())


@cache
def places(kind, variable, to="template", seed=0):
    return find_donor_sites(recipient(to), donor(kind, seed), variable)


def share(kind, variable, to="template", *, seed=0, map_kind: MapKind = "ridge", where=None):
    where = places(kind, variable, to, seed) if where is None else where
    hits = stitched_hits(recipient(to), donor(kind, seed), variable, where, kind=map_kind)
    return float(hits.mean())


# What is read and put in.


def test_planted_models_take_up_each_variable_at_its_own_word():
    for variable, role in ((OPERATION, "op"), ("x", "x"), ("y", "y"), (OBJECT, "thing")):
        cell = recipient().sites[variable]
        assert (cell.layer, cell.component, cell.role) == (1, "resid", role)
        assert own_hits(recipient(), variable).all()
        assert self_sites(recipient(), variable) == {role: (1, role)}
        assert embedding_sites(recipient(), variable) == {role: (0, role)}


def test_the_identity_puts_in_what_the_source_itself_hands_over():
    """To itself, by no map: a plain exchange, of all crossings that are judged."""
    for variable in trials().variables:
        found = share("template", variable, where=self_sites(recipient(), variable),
                      map_kind="identity")  # fmt: skip
        plain = interchange_intervention(recipient().runs, [recipient().sites[variable]])
        assert found == takes_only(plain, variable)[0][trials().test_mask(variable)].mean() == 1


def test_what_is_put_in_is_the_mapped_state_of_the_sources_word():
    """The operation, by hand: for each fold a map, and its states written over the bases'."""
    here, resid = recipient(), recipient().runs.clean.resid[1].clone()
    op = here.runs.batch.role_mask("op")
    for fold in trials().by_variable[OPERATION]:
        fit = torch.from_numpy(fold.train)
        found = fit_map(
            "ridge",
            donor("rotated").train_states.states_at("op", 1)[fit],
            here.self_donor.train_states.states_at("op", 1)[fit],
        )
        for row in np.flatnonzero(fold.test).tolist():
            resid[row, op[row]] = found(donor("rotated").source_states.states_at("op", 1)[[row]])
    after = interchange_intervention(here.runs, [here.sites[OPERATION]],
                     source=with_residual(here.runs, 1, resid))  # fmt: skip
    wanted = takes_only(after, OPERATION)[0][trials().test_mask(OPERATION)]
    found = stitched_hits(here, donor("rotated"), OPERATION, {"op": (1, "op")})
    assert np.array_equal(found, wanted)


def test_donors_read_the_sources_behind_the_answers_of_the_bases():
    for row, pair in enumerate(trials().interchange_pairs.other):
        told = " ".join(donor("lexical").source_states.batch.tokens[row][1:])
        replies = " ".join(text for _, text in pair.clean.answers)
        assert told == f"{pair.counterfactual.text} {replies}"


def test_a_search_runs_no_model_and_leaves_out_replies_and_what_stands_before_the_word():
    here, giver = recipient(), donor("rotated")
    before = hook_count(here.runs.model)
    lacking = Donor("far", giver.train_states, giver.source_states)
    for variable in NUMBERS:
        (place,) = find_donor_sites(here, lacking, variable).values()
        roles = list(giver.train_states.roles)
        assert roles.index(place[1]) >= roles.index("op" if variable == OPERATION else variable)
        assert not place[1].startswith("reply")
    assert hook_count(here.runs.model) == before


# Twins.


@pytest.mark.parametrize("kind", sorted(TWINS))
@pytest.mark.parametrize("variable", NUMBERS)
def test_a_twin_hands_over_as_much_as_the_recipients_own_states(kind, variable):
    ceiling = share("template", variable, where=self_sites(recipient(), variable))
    assert ceiling == share(kind, variable) == 1


@pytest.mark.parametrize("variable", NUMBERS)
def test_a_twin_takes_up_as_much_as_it_gives(variable):
    ceiling = share(
        "rotated", variable, "rotated", where=self_sites(recipient("rotated"), variable)
    )
    assert ceiling == share("template", variable, "rotated") == 1


@pytest.mark.parametrize("variable", NUMBERS)
@pytest.mark.parametrize(
    ("kind", "layer", "map_kind", "wanted"),
    [
        ("rotated", 1, "orthogonal", 1),
        ("rotated", 1, "identity", 0),
        ("permuted", 1, "orthogonal", 1),
        ("permuted", 1, "identity", 1),
        ("split", 1, "identity", 1),
        ("no reliable effect", 2, "identity", 1),
        ("no reliable effect", 1, "identity", 1),
    ],
)
def test_a_twin_needs_no_map_but_its_turn(variable, kind, layer, map_kind, wanted):
    own = "op" if variable == OPERATION else variable
    where = {own: (layer, own)}
    assert share(kind, variable, map_kind=map_kind, where=where) == pytest.approx(wanted, abs=0.15)


def test_of_a_noun_with_a_dimension_to_itself_a_map_of_other_nouns_says_nothing():
    """So even the recipient's own states turn nothing through a ridge map: the ceiling says so."""
    at = self_sites(recipient(), OBJECT)
    assert share("template", OBJECT, where=at) == 0
    assert share("template", OBJECT, where=at, map_kind="identity") == 1


# Models that hold it otherwise.


def test_verbs_without_a_shared_state_hand_no_operation_to_one_that_shares():
    assert share("lexical", OPERATION) < 0.1
    assert share("template", OPERATION, where={"op": (1, "op")}) == 1
    for variable in ("x", "y"):
        assert share("lexical", variable) == 1


def test_a_state_for_each_noun_hands_no_operation_of_other_nouns():
    assert planted_share("rotated", OPERATION) < 0.1
    for variable in ("x", "y"):
        assert planted_share("rotated", variable) == 1


def test_a_table_hands_over_the_operation_that_it_holds_alike_and_no_number():
    assert planted_share("lookup", OPERATION) == 1
    for variable in ("x", "y"):
        assert planted_share("lookup", variable) < 0.3


@cache
def planted_share(kind, variable, seed=0):
    """As `share`, of a planted kind that bears the name of a twin as well."""
    giver = read(kind, seed)
    at = find_donor_sites(recipient(), giver, variable)
    return float(stitched_hits(recipient(), giver, variable, at).mean())


@cache
def read(kind, seed=0):
    return run_donor(planted_fox(kind, seed=seed).model, trials())


# Stand-ins.


@pytest.mark.parametrize("variable", NUMBERS)
def test_an_untrained_donor_a_label_and_rows_dealt_anew_turn_next_to_nothing(variable):
    """Not nothing: the mean of a number is some of the numbers."""
    label = label_donor(recipient().self_donor, trials(), variable)
    most = 0.1 if variable == OPERATION else 0.4
    assert (
        stitched_hits(recipient(), label, variable, embedding_sites(recipient(), variable)).mean()
        < most
    )
    at = places("rotated", variable)
    for seed in range(2):
        assert share("net", variable, seed=seed) < max(most, 0.25)
        shuffled = shuffled_donor(donor("rotated"), trials(), seed=seed)
        assert stitched_hits(recipient(), shuffled, variable, at).mean() < max(most, 0.25)


def test_a_label_says_which_word_it_is_and_nothing_else():
    made = label_donor(recipient().self_donor, trials(), OPERATION)
    states = made.train_states.states_at("x", 0)
    assert (states.sum(1) == 1).all()
    words = trials().question_forms(OPERATION)
    same = np.array([[one == other for other in words] for one in words])
    assert np.array_equal((states @ states.T).bool().numpy(), same)
    tested = made.source_states.states_at("op", 0)
    shared = (tested @ states.T).bool().numpy()
    assert np.array_equal(
        shared,
        np.array([[one == two for two in words] for one in trials().source_forms(OPERATION)]),
    )


def test_training_states_are_shuffled_within_a_template_and_reproducibly():
    order, same, other = (
        shuffled_donor(donor("rotated"), trials(), seed=seed).train_order for seed in (5, 5, 6)
    )
    templates = [question.template for question in trials().questions]
    assert sorted(order.tolist()) == list(range(PROMPTS))
    assert [templates[row] for row in order.tolist()] == templates
    assert torch.equal(order, same)
    assert not torch.equal(order, other)


def test_the_order_of_training_states_decides_which_rows_are_paired():
    donor_in_order = replace(donor("rotated"), train_order=torch.arange(PROMPTS))
    at = places("rotated", OPERATION)
    hits = (
        stitched_hits(recipient(), one, OPERATION, at) for one in (donor("rotated"), donor_in_order)
    )
    assert np.array_equal(*hits)


# The whole measure.


@cache
def found(kind="rotated"):
    nets = [donor("net", seed) for seed in range(2)]
    others = {"stranger": read("lookup")}
    kinds = (OPERATION, "x")
    baselines = TransferBaselines(
        nulls=donor_hits(recipient(), nets, kinds),
        negative_controls={
            name: donor_hits(recipient(), [one], kinds)[one.name] for name, one in others.items()
        },
    )
    return evaluate_donor(recipient(), donor(kind), kinds, baselines, seed=0)


def test_a_transfer_holds_every_map_and_every_control_on_the_same_crossings():
    for one in found():
        assert one.pairs == trials().test_mask(one.variable).sum()
        assert set(one.maps) == {"identity", "orthogonal", "ridge"}
        assert set(one.controls) == {"token embedding", "label", "shuffled", "random-init"}
        assert len(one.nulls) == 2
        assert one.controls["random-init"].value == max(one.nulls)
        assert one.interchange_accuracy == one.maps["ridge"]
        assert set(one.negative_controls) == {"stranger"}
        assert one.own_accuracy.value == 1


def test_excess_and_shortfall_are_signed_as_they_say():
    for one in found():
        best = one.controls[one.best_control].value
        assert best == max(control.value for control in one.controls.values())
        assert one.excess.value == pytest.approx(one.interchange_accuracy.value - best)
        assert one.shortfall.value == pytest.approx(
            one.own_ridge_accuracy.value - one.interchange_accuracy.value
        )
    (operation, *_) = found()
    assert operation.excess.low > 0.5
    assert operation.shortfall.high < 0.15


def test_what_was_missed_is_what_the_own_states_turned_and_the_donors_did_not():
    baselines = TransferBaselines(donor_hits(recipient(), [donor("net")], (OPERATION,)), {})
    (one, *_) = evaluate_donor(recipient(), read("lexical"), (OPERATION,), baselines, seed=0)
    assert one.interchange_accuracy.value < 0.1
    assert len(one.missed_pairs) == round(
        (one.own_ridge_accuracy.value - one.interchange_accuracy.value) * one.pairs
    )
    assert set(one.missed_pairs) <= set(np.flatnonzero(trials().test_mask(OPERATION)).tolist())
    assert all(one.missed_pairs == () for one in found() if one.shortfall.value == 0)


def test_a_transfer_without_random_init_models_is_refused():
    with pytest.raises(ModelError, match="random-init"):
        evaluate_donor(recipient(), donor("rotated"), NUMBERS, TransferBaselines({}, {}), seed=0)


@pytest.mark.slow
def test_the_whole_measure_is_the_same_for_the_same_seed():
    settings = TransferSettings(("operation",), bases=16, prompts=80, nulls=1)
    one, same = (
        cross_model_interchange(model("rotated"), model("template"), fox_pattern(), settings)
        for _ in range(2)
    )
    assert one == same
    assert (one[0].donor, one[0].recipient) == (model("rotated").name, model("template").name)


def test_an_unknown_variable_is_refused_by_name():
    with pytest.raises(ProbeError, match="color"):
        cross_model_interchange(
            model("template"), model("template"), fox_pattern(),
            TransferSettings(("color",), bases=8, prompts=60, nulls=1),
        )  # fmt: skip


@pytest.mark.slow
def test_strangers_of_one_name_are_told_apart():
    controls = tuple(planted_fox("lexical", seed=seed).model for seed in (0, 1))
    settings = TransferSettings(("operation",), 8, 60, nulls=1, negative_controls=controls)
    (one,) = cross_model_interchange(model("rotated"), model("template"), fox_pattern(), settings)
    assert len(one.negative_controls) == 2


def test_too_few_prompts_for_a_map_are_refused():
    with pytest.raises(BatchError, match="prompts"):
        cross_model_interchange(
            model("template"),
            model("template"),
            fox_pattern(),
            TransferSettings(bases=8, prompts=12, nulls=1),
        )


def test_a_pattern_without_an_opposite_is_refused():
    with pytest.raises(PatternError, match="opposite"):
        cross_model_interchange(
            model("template"), model("template"), replace(fox_pattern(), opposite=None)
        )


def test_a_donor_of_another_width_and_depth_is_read_as_well():
    words = model("template").tokenizer
    small = wrap(tiny_hf("neox", 0, vocab_size=len(words)), name="small", tokenizer=words)
    giver = run_donor(small, trials())
    at = find_donor_sites(recipient(), giver, OPERATION)
    assert stitched_hits(recipient(), giver, OPERATION, at).mean() < 0.3
    with pytest.raises(BatchError, match="32 dimensions to 256"):
        stitched_hits(recipient(), giver, OPERATION, at, kind="identity")


# Telling models apart.


SEEDS = range(1, 4)


@pytest.mark.slow
def test_kinship_tells_seeds_and_twins_of_a_model_from_models_that_do_it_otherwise():
    related = [("template", seed) for seed in SEEDS]
    strange = [(kind, seed) for kind in ("lexical", "lookup", "rotated") for seed in SEEDS]
    table = {
        one: np.array([planted_share(one[0], v, one[1]) for v in trials().variables])
        for one in (*related, *strange)
    }
    twins = [np.array([share(kind, v) for v in trials().variables]) for kind in sorted(TWINS)]
    kin = np.array([*(table[one].mean() for one in related), *(one.mean() for one in twins)])
    for kind in ("lexical", "lookup", "rotated"):
        others = np.array([table[one].mean() for one in strange if one[0] == kind])
        told = group_auroc(kin, others)
        assert told.value.value >= 0.95
        assert told.label == "above"
    assert group_auroc(kin, np.array([table[one].mean() for one in strange])).value.value >= 0.95
    # Which variable it is that tells them: what the operation hides, the numbers show.
    shares = {one: dict(zip(trials().variables, table[one], strict=True)) for one in table}
    assert all(shares["lexical", seed][OPERATION] < 0.1 for seed in SEEDS)
    assert all(shares["lookup", seed][OPERATION] == 1 for seed in SEEDS)
    assert all(shares["lookup", seed]["x"] < 0.3 for seed in SEEDS)
