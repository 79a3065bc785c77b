"""Cross-model interchange succeeds if both models share a code, and only then."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from probes.comparison.variables.control_donors import label_donor, shuffled_donor
from probes.comparison.variables.donors import Donor, ModelDonor, find_recipient
from probes.comparison.variables.held_out_folds import sample_held_out_folds
from probes.comparison.variables.linear_maps import MapKind, fit_map
from probes.comparison.variables.stitching import (
    embedding_sites,
    find_donor_sites,
    self_sites,
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
from probes.comparison.variables.verdicts import carried_sites
from probes.errors import BatchError, ModelError, PatternError, ProbeError
from probes.interventions.interchange import interchange_intervention, with_residual
from probes.interventions.site_search import takes_only
from probes.models.model import random_init, wrap
from probes.models.site import Site
from probes.prompts.interchange_pairs import OBJECT, OPERATION
from probes.stats.auroc import group_auroc
from probes.testing.equivalent_heads import permute_heads, split_heads
from probes.testing.equivalent_layers import insert_silent_layer, rotate_residual
from probes.testing.planted_patterns import fox_pattern, planted_fox
from probes.testing.tiny_models import hook_count, tiny_hf

BASES, PROMPTS = 30, 200
NUMBERS = (OPERATION, "x", "y")
"""Variables with a code shared by all words; each noun has its own dimension."""

EQUIVALENT = {
    "rotated": rotate_residual,
    "permuted": permute_heads,
    "split": lambda model: split_heads(model, ["L1.H0"]),
    "no reliable effect": lambda model: insert_silent_layer(model, 1),
}


@cache
def model(kind, seed=0):
    if kind in EQUIVALENT:
        return EQUIVALENT[kind](planted_fox("template").model).model
    return planted_fox(kind, seed=seed).model


@cache
def folds():
    words = model("template").tokenizer
    return sample_held_out_folds(fox_pattern(), tokenizers=(words,), bases=BASES, prompts=PROMPTS)


@cache
def recipient(kind="template"):
    return find_recipient(model(kind), folds())


@cache
def donor(kind, seed=0):
    if kind == "net":
        return ModelDonor(random_init(model("template"), seed=seed), folds())
    return ModelDonor(model(kind, seed), folds())


@cache
def donor_sites(kind, variable, to="template", seed=0):
    return find_donor_sites(recipient(to), donor(kind, seed), variable)


def accuracy(kind, variable, to="template", *, seed=0, map_kind: MapKind = "ridge", where=None):
    where = donor_sites(kind, variable, to, seed) if where is None else where
    hits = stitched_hits(recipient(to), donor(kind, seed), variable, where, kind=map_kind)
    return float(hits.mean())


# Reading and replacing states.


def test_planted_models_have_each_variable_at_its_own_word():
    for variable, role in ((OPERATION, "op"), ("x", "x"), ("y", "y"), (OBJECT, "thing")):
        site = recipient().sites[variable]
        assert (site.layer, site.component, site.role) == (1, "resid", role)
        assert own_hits(recipient(), variable).all()
        assert self_sites(recipient(), variable) == {role: (1, role)}
        assert embedding_sites(recipient(), variable) == {role: (0, role)}


def test_a_model_without_the_variables_carries_none_of_them_at_the_sites_that_its_search_names():
    assert carried_sites(recipient()) == recipient().sites
    without = find_recipient(random_init(model("template"), seed=0), folds())
    assert without.sites["x"] == Site(1, "resid", "x")
    assert carried_sites(without) == {}


def test_self_stitching_by_the_identity_is_a_plain_interchange():
    for variable in folds().variables:
        stitched = accuracy("template", variable, where=self_sites(recipient(), variable),
                      map_kind="identity")  # fmt: skip
        plain = interchange_intervention(recipient().runs, [recipient().sites[variable]])
        assert stitched == takes_only(plain, variable)[0][folds().test_mask(variable)].mean() == 1


def test_the_replaced_state_is_the_mapped_state_of_the_sources_word():
    """The operation, step by step: one map for each fold, written over the bases' states."""
    here, resid = recipient(), recipient().runs.clean.resid[1].clone()
    op = here.runs.batch.role_mask("op")
    for fold in folds().by_variable[OPERATION]:
        fit = torch.from_numpy(fold.train)
        linear_map = fit_map(
            "ridge",
            donor("rotated").train_states.states_at("op", 1)[fit],
            here.self_donor.train_states.states_at("op", 1)[fit],
        )
        for row in np.flatnonzero(fold.test).tolist():
            resid[row, op[row]] = linear_map(
                donor("rotated").source_states.states_at("op", 1)[[row]]
            )
    after = interchange_intervention(here.runs, [here.sites[OPERATION]],
                     source=with_residual(here.runs, 1, resid))  # fmt: skip
    wanted = takes_only(after, OPERATION)[0][folds().test_mask(OPERATION)]
    hits = stitched_hits(here, donor("rotated"), OPERATION, {"op": (1, "op")})
    assert np.array_equal(hits, wanted)


def test_donors_read_the_sources_with_the_answers_of_the_bases():
    for row, pair in enumerate(folds().interchange_pairs.other):
        text = " ".join(donor("lexical").source_states.batch.tokens[row][1:])
        replies = " ".join(text for _, text in pair.clean.answers)
        assert text == f"{pair.counterfactual.text} {replies}"


def test_the_site_search_runs_no_model_and_skips_answers_and_roles_before_the_word():
    here, donor_states = recipient(), donor("rotated")
    before = hook_count(here.runs.model)
    far = Donor("far", donor_states.train_states, donor_states.source_states)
    for variable in NUMBERS:
        (place,) = find_donor_sites(here, far, variable).values()
        roles = list(donor_states.train_states.roles)
        assert roles.index(place[1]) >= roles.index("op" if variable == OPERATION else variable)
        assert not place[1].startswith("reply")
    assert hook_count(here.runs.model) == before


# Equivalent models.


@pytest.mark.parametrize("kind", sorted(EQUIVALENT))
@pytest.mark.parametrize("variable", NUMBERS)
def test_an_equivalent_donor_is_as_good_as_the_recipients_own_states(kind, variable):
    ceiling = accuracy("template", variable, where=self_sites(recipient(), variable))
    assert ceiling == accuracy(kind, variable) == 1


@pytest.mark.parametrize("variable", NUMBERS)
def test_an_equivalent_recipient_is_as_good_as_an_equivalent_donor(variable):
    ceiling = accuracy(
        "rotated", variable, "rotated", where=self_sites(recipient("rotated"), variable)
    )
    assert ceiling == accuracy("template", variable, "rotated") == 1


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
def test_an_equivalent_donor_needs_only_its_rotation(variable, kind, layer, map_kind, wanted):
    own = "op" if variable == OPERATION else variable
    where = {own: (layer, own)}
    assert accuracy(kind, variable, map_kind=map_kind, where=where) == pytest.approx(
        wanted, abs=0.15
    )


def test_no_map_generalizes_to_a_noun_with_its_own_dimension():
    """Even the recipient's own states have no effect through a ridge map."""
    at = self_sites(recipient(), OBJECT)
    assert accuracy("template", OBJECT, where=at) == 0
    assert accuracy("template", OBJECT, where=at, map_kind="identity") == 1


# Models with other codes.


def test_verbs_without_a_shared_state_do_not_transfer_the_operation():
    assert accuracy("lexical", OPERATION) < 0.1
    assert accuracy("template", OPERATION, where={"op": (1, "op")}) == 1
    for variable in ("x", "y"):
        assert accuracy("lexical", variable) == 1


def test_a_state_for_each_noun_does_not_transfer_the_operation():
    assert planted_accuracy("rotated", OPERATION) < 0.1
    for variable in ("x", "y"):
        assert planted_accuracy("rotated", variable) == 1


def test_a_lookup_table_transfers_the_operation_and_no_number():
    assert planted_accuracy("lookup", OPERATION) == 1
    for variable in ("x", "y"):
        assert planted_accuracy("lookup", variable) < 0.3


@cache
def planted_accuracy(kind, variable, seed=0):
    """Accuracy of a planted kind whose name is also that of an equivalent model."""
    donor_states = read(kind, seed)
    at = find_donor_sites(recipient(), donor_states, variable)
    return float(stitched_hits(recipient(), donor_states, variable, at).mean())


@cache
def read(kind, seed=0):
    return ModelDonor(planted_fox(kind, seed=seed).model, folds())


# Controls.


@pytest.mark.parametrize("variable", NUMBERS)
def test_random_init_label_and_shuffled_donors_have_a_low_accuracy(variable):
    """Not zero: the mean of the numbers is one of them."""
    label = label_donor(recipient().self_donor, folds(), variable)
    most = 0.1 if variable == OPERATION else 0.4
    assert (
        stitched_hits(recipient(), label, variable, embedding_sites(recipient(), variable)).mean()
        < most
    )
    at = donor_sites("rotated", variable)
    for seed in range(2):
        assert accuracy("net", variable, seed=seed) < max(most, 0.25)
        shuffled = shuffled_donor(donor("rotated"), folds(), seed=seed)
        assert stitched_hits(recipient(), shuffled, variable, at).mean() < max(most, 0.25)


def test_a_label_is_the_one_hot_code_of_the_word():
    made = label_donor(recipient().self_donor, folds(), OPERATION)
    states = made.train_states.states_at("x", 0)
    assert (states.sum(1) == 1).all()
    words = folds().question_forms(OPERATION)
    same = np.array([[one == other for other in words] for one in words])
    assert np.array_equal((states @ states.T).bool().numpy(), same)
    tested = made.source_states.states_at("op", 0)
    shared = (tested @ states.T).bool().numpy()
    assert np.array_equal(
        shared,
        np.array([[one == two for two in words] for one in folds().source_forms(OPERATION)]),
    )


def test_training_states_are_shuffled_within_a_template_and_reproducibly():
    order, same, other = (
        shuffled_donor(donor("rotated"), folds(), seed=seed).train_order for seed in (5, 5, 6)
    )
    templates = [question.template for question in folds().questions]
    assert sorted(order.tolist()) == list(range(PROMPTS))
    assert [templates[row] for row in order.tolist()] == templates
    assert torch.equal(order, same)
    assert not torch.equal(order, other)


def test_the_order_of_training_states_decides_which_rows_are_paired():
    states = (donor("rotated").train_states, donor("rotated").source_states)
    donor_in_order = Donor("rotated", *states, torch.arange(PROMPTS))
    at = donor_sites("rotated", OPERATION)
    hits = (
        stitched_hits(recipient(), one, OPERATION, at) for one in (donor("rotated"), donor_in_order)
    )
    assert np.array_equal(*hits)


# The whole measurement.


@cache
def transfers(kind="rotated"):
    nets = [donor("net", seed) for seed in range(2)]
    others = {"lookup": read("lookup")}
    kinds = (OPERATION, "x")
    baselines = TransferBaselines(
        nulls=donor_hits(recipient(), nets, kinds),
        negative_controls={
            name: donor_hits(recipient(), [one], kinds)[one.name] for name, one in others.items()
        },
    )
    return evaluate_donor(recipient(), donor(kind), kinds, baselines, seed=0)


def test_a_transfer_has_every_map_and_every_control_on_the_same_pairs():
    for one in transfers():
        assert one.pairs == folds().test_mask(one.variable).sum()
        assert set(one.maps) == {"identity", "orthogonal", "ridge"}
        assert set(one.controls) == {"token embedding", "label", "shuffled", "random-init"}
        assert len(one.nulls) == 2
        assert one.controls["random-init"].value == max(one.nulls)
        assert one.interchange_accuracy == one.maps["ridge"]
        assert set(one.negative_controls) == {"lookup"}
        assert one.own_accuracy.value == 1


def test_excess_and_shortfall_have_the_documented_signs():
    for one in transfers():
        best = one.controls[one.best_control].value
        assert best == max(control.value for control in one.controls.values())
        assert one.excess.value == pytest.approx(one.interchange_accuracy.value - best)
        assert one.shortfall.value == pytest.approx(
            one.own_ridge_accuracy.value - one.interchange_accuracy.value
        )
    (operation, *_) = transfers()
    assert operation.excess.low > 0.5
    assert operation.shortfall.high < 0.15


def test_missed_pairs_succeed_with_own_states_and_fail_with_the_donors():
    baselines = TransferBaselines(donor_hits(recipient(), [donor("net")], (OPERATION,)), {})
    (one, *_) = evaluate_donor(recipient(), read("lexical"), (OPERATION,), baselines, seed=0)
    assert one.interchange_accuracy.value < 0.1
    assert len(one.missed_pairs) == round(
        (one.own_ridge_accuracy.value - one.interchange_accuracy.value) * one.pairs
    )
    assert set(one.missed_pairs) <= set(np.flatnonzero(folds().test_mask(OPERATION)).tolist())
    assert all(one.missed_pairs == () for one in transfers() if one.shortfall.value == 0)


def test_a_transfer_without_random_init_models_is_refused():
    with pytest.raises(ModelError, match="random-init"):
        evaluate_donor(recipient(), donor("rotated"), NUMBERS, TransferBaselines({}, {}), seed=0)


@pytest.mark.slow
def test_the_result_is_the_same_for_the_same_seed():
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
def test_negative_controls_of_one_name_are_numbered():
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


def test_a_donor_may_have_another_width_and_depth():
    words = model("template").tokenizer
    small = wrap(tiny_hf("neox", 0, vocab_size=len(words)), name="small", tokenizer=words)
    donor_states = ModelDonor(small, folds())
    at = find_donor_sites(recipient(), donor_states, OPERATION)
    assert stitched_hits(recipient(), donor_states, OPERATION, at).mean() < 0.3
    with pytest.raises(BatchError, match="32 dimensions to 256"):
        stitched_hits(recipient(), donor_states, OPERATION, at, kind="identity")


# Separation of groups of models.


SEEDS = range(1, 4)


@pytest.mark.slow
def test_mean_accuracy_separates_seeds_and_equivalent_models_from_other_codes():
    related = [("template", seed) for seed in SEEDS]
    unrelated = [(kind, seed) for kind in ("lexical", "lookup", "rotated") for seed in SEEDS]
    table = {
        one: np.array([planted_accuracy(one[0], v, one[1]) for v in folds().variables])
        for one in (*related, *unrelated)
    }
    equivalent = [
        np.array([accuracy(kind, v) for v in folds().variables]) for kind in sorted(EQUIVALENT)
    ]
    similar = np.array(
        [*(table[one].mean() for one in related), *(one.mean() for one in equivalent)]
    )
    for kind in ("lexical", "lookup", "rotated"):
        others = np.array([table[one].mean() for one in unrelated if one[0] == kind])
        separation = group_auroc(similar, others)
        assert separation.value.value >= 0.95
        assert separation.label == "above"
    assert (
        group_auroc(similar, np.array([table[one].mean() for one in unrelated])).value.value >= 0.95
    )
    # The numbers separate models that the operation does not.
    accuracies = {one: dict(zip(folds().variables, table[one], strict=True)) for one in table}
    assert all(accuracies["lexical", seed][OPERATION] < 0.1 for seed in SEEDS)
    assert all(accuracies["lookup", seed][OPERATION] == 1 for seed in SEEDS)
    assert all(accuracies["lookup", seed]["x"] < 0.3 for seed in SEEDS)
