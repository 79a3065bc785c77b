"""Verdicts on variables: each rule on constructed numbers, and the sites of planted models."""

from dataclasses import replace

import pytest

from probes.comparison.variables.donors import find_recipient
from probes.comparison.variables.draws import (
    MeasuredDraw,
    pool_sites,
    pool_transfers,
    settle_verdict,
    shared_roles,
)
from probes.comparison.variables.held_out_folds import sample_held_out_folds
from probes.comparison.variables.result import CrossModelTransfer
from probes.comparison.variables.verdicts import (
    VariableSite,
    absent_variable_verdict,
    variable_site,
    variable_verdict,
)
from probes.comparison.verdict import NON_INFERIORITY, Verdict
from probes.observe.result import Gate, GateState
from probes.prompts.interchange_pairs import OBJECT
from probes.stats.intervals import Estimate, difference
from probes.testing.planted_patterns import planted_fox

SURE, HALF, NEVER = Estimate(0.9, 0.8, 0.95), Estimate(0.5, 0.4, 0.6), Estimate(0.1, 0.05, 0.2)
NEARLY = Estimate(0.6, 0.5, 0.7)


def gate(state: GateState = "open", answer: str = "number"):
    return Gate("relative", "foxes", answer, 100, SURE, "copy x", 0.1, SURE, SURE, state)


GATES = (gate(), gate(answer="noun"))


def site(*roles, alone=SURE, together=None):
    return VariableSite(f"L1.resid@{'+'.join(roles)}", frozenset(roles), alone, together or alone)


def transfer(**changes):
    made = CrossModelTransfer(
        variable="operation",
        donor="full",
        recipient="relative",
        pairs=100,
        site="L1.resid@op",
        donor_sites=("L2.resid@op",),
        own_accuracy=SURE,
        own_ridge_accuracy=SURE,
        maps={"ridge": SURE},
        controls={
            "token embedding": NEVER,
            "label": NEVER,
            "shuffled": NEVER,
            "random-init": NEVER,
        },
        nulls=(0.1, 0.05),
        negative_controls={},
        excesses=dict.fromkeys(
            ("token embedding", "label", "shuffled", "random-init"), Estimate(0.8, 0.7, 0.9)
        ),
        shortfall=Estimate(0.0, -0.05, 0.05),
        missed_pairs=(),
    )
    return replace(made, **changes)


def label(full, other, transferred=None, gates=GATES, **options):
    return variable_verdict(full, other, transferred or transfer(), gates, **options).label


# Each rule.


def test_the_behavior_is_absent_if_the_gate_of_the_variables_answer_is_closed():
    closed = (gate("closed"), gate(answer="noun"))
    assert label(site("op"), site("op"), gates=closed) == "behavior absent"
    assert label(site("x"), site("x"), transfer(variable="x"), closed) == "behavior absent"
    noun = transfer(variable=OBJECT)
    assert label(site("thing"), site("thing"), noun, closed) == "kept"
    other = (gate(), gate("closed", "noun"))
    assert label(site("thing"), site("thing"), noun, other) == "behavior absent"
    assert label(site("op"), site("op"), gates=other) == "kept"


def test_too_few_questions_give_no_verdict_on_a_variable():
    few = (gate("too few to tell"), gate(answer="noun"))
    verdict = variable_verdict(site("op"), site("op"), transfer(), few)
    assert verdict.label == absent_variable_verdict("operation", few).label == "cannot tell"
    assert "100 questions are too few to tell whether relative has" in verdict.reason


def test_a_partial_gate_is_not_closed():
    assert label(site("op"), site("op"), gates=(gate("partial"), GATES[1])) == "kept"


@pytest.mark.parametrize("alone", [HALF, NEVER, NEARLY])
def test_without_a_site_in_the_full_model_there_is_no_verdict(alone):
    verdict = variable_verdict(site("op", alone=alone), site("op"), transfer(), GATES)
    assert verdict.label == "cannot tell"
    assert "no site of the full model" in verdict.reason


def test_a_site_that_carries_the_variable_only_with_others_is_merged():
    assert label(site("op"), site("op", alone=NEVER, together=SURE)) == "merged"


@pytest.mark.parametrize(
    ("alone", "together"), [(HALF, SURE), (NEVER, HALF), (NEVER, NEVER), (NEVER, NEARLY)]
)
def test_without_a_site_in_the_relative_there_is_no_verdict(alone, together):
    verdict = variable_verdict(
        site("op"), site("op", alone=alone, together=together), transfer(), GATES
    )
    assert verdict.label == "cannot tell"
    assert "no site or pair of sites" in verdict.reason


def test_more_roles_than_in_the_full_model_are_a_split_and_fewer_a_merge():
    assert label(site("op"), site("op", "y")) == "split"
    assert label(site("op", "y"), site("y")) == "merged"


def test_another_role_is_a_move_only_if_the_other_seed_agrees_with_the_full_model():
    full, other = site("op"), site("y")
    assert label(full, other, other_seed_roles=frozenset({"op"})) == "moved"
    assert label(full, other, other_seed_roles=frozenset({"y"})) == "cannot tell"
    assert label(full, other, other_seed_roles=frozenset({"answer"})) == "cannot tell"
    assert label(full, other, other_seed_roles=None) == "cannot tell"
    assert label(full, other, other_seed_roles=frozenset()) == "cannot tell"
    # Overlapping roles differ too, if neither set contains the other.
    assert (
        label(site("op", "x"), site("op", "y"), other_seed_roles=frozenset({"op", "x"})) == "moved"
    )


@pytest.mark.parametrize(
    ("full", "other", "other_seed", "wanted"),
    [
        (("op",), ("op", "y"), ("op",), "split"),
        (("op",), ("op", "y"), ("op", "y"), "cannot tell"),
        (("op",), ("op", "y"), ("y",), "cannot tell"),
        (("op", "y"), ("y",), ("op", "y"), "merged"),
        (("op", "y"), ("y",), ("y",), "cannot tell"),
    ],
)
def test_if_seeds_differ_in_roles_there_is_neither_split_nor_merge(full, other, other_seed, wanted):
    assert label(site(*full), site(*other), other_seed_roles=frozenset(other_seed)) == wanted


def test_a_transfer_without_random_init_models_says_that_none_ran():
    """A permuted null has none: labels and shuffled states are the controls."""
    whole, plain = transfer(), transfer(controls={"token embedding": NEVER, "label": NEVER})
    verdicts = [variable_verdict(site("op"), site("op"), one, GATES) for one in (whole, plain)]
    assert [one.label for one in verdicts] == ["kept", "kept"]
    assert verdicts[0].test("above_random_init") is None
    skipped = verdicts[1].test("above_random_init")
    assert skipped.passed is None and "permuted null" in skipped.meaning_if_failed


def test_the_same_role_is_kept_whatever_the_role_in_the_other_seed():
    assert label(site("op"), site("op"), other_seed_roles=frozenset({"y"})) == "kept"


def test_the_reason_tells_if_seeds_differ_or_no_other_seed_is_given():
    reasons = [
        variable_verdict(
            site("op"), site("y"), transfer(), GATES, other_seed_roles=other_seed
        ).reason
        for other_seed in (None, frozenset({"y"}), frozenset())
    ]
    assert "no other-seed model" in reasons[0]
    assert "no site of the other-seed model" in reasons[2]
    assert "the other-seed model differs as well" in reasons[1]


def test_the_same_role_with_a_linear_map_is_kept():
    verdict = variable_verdict(site("op"), site("op"), transfer(), GATES)
    assert (verdict.label, verdict.subject, verdict.kind) == ("kept", "operation", "variable")
    assert verdict.counterpart == "L1.resid@op"


@pytest.mark.parametrize(
    "changes",
    [
        {"shortfall": Estimate(0.05, 0.0, 0.15)},
        {"shortfall": Estimate(0.3, 0.2, 0.4)},
        {"shortfall": Estimate(0.05, 0.0, 0.1)},
        {"maps": {"ridge": NEVER}},
        {"controls": {"token embedding": NEVER, "label": SURE}},
        {"controls": {"token embedding": NEVER, "label": NEVER, "random-init": SURE}},
        {"controls": {"token embedding": NEVER, "shuffled": Estimate(0.8, 0.7, 0.9)}},
    ],
)
def test_the_same_role_is_undecided_with_a_shortfall_or_an_equal_control(changes):
    assert label(site("op"), site("op"), transfer(**changes)) == "cannot tell"


def test_another_code_is_reported_only_if_the_shortfall_is_above_the_margin():
    far, near = (
        variable_verdict(site("op"), site("op"), transfer(shortfall=shortfall), GATES).reason
        for shortfall in (Estimate(0.3, 0.2, 0.4), Estimate(0.05, 0.0, 0.15))
    )
    assert "another code" in far
    assert "another code" not in near


@pytest.mark.parametrize(("high", "expected"), [(0.099, "kept"), (0.1, "cannot tell")])
def test_the_whole_interval_of_the_shortfall_is_below_the_margin(high, expected):
    transferred = transfer(shortfall=Estimate(0.05, 0.0, high))
    assert label(site("op"), site("op"), transferred) == expected


def test_the_token_embedding_may_do_as_much():
    """It is part of the donor, so its test is reported but does not decide."""
    transferred = transfer(controls={"token embedding": SURE, "label": NEVER})
    verdict = variable_verdict(site("op"), site("op"), transferred, GATES)
    assert verdict.label == "kept"
    test = verdict.test("above_embedding")
    assert not test.is_deciding
    assert not test.passed


def test_negative_controls_are_reported_and_do_not_decide():
    transferred = transfer(negative_controls={"copying": 0.2, "permuted": 0.95})
    verdict = variable_verdict(site("op"), site("op"), transferred, GATES)
    assert verdict.label == "kept"
    test = verdict.test("above_negative_controls")
    assert test.name == "accuracy above permuted"
    assert not test.is_deciding
    assert not test.passed


# The order of the rules.


def test_rules_apply_in_order():
    closed = (gate("closed"), GATES[1])
    without_site = site("op", alone=NEVER)
    only_together = site("y", alone=NEVER, together=SURE)
    far = transfer(shortfall=Estimate(0.3, 0.2, 0.4))
    other_seed = frozenset({"op"})
    # A closed gate comes first.
    assert (
        label(without_site, only_together, far, closed, other_seed_roles=other_seed)
        == "behavior absent"
    )
    # Then the site of the full model.
    assert label(without_site, only_together, far, other_seed_roles=other_seed) == "cannot tell"
    assert label(without_site, site("op", "y"), far) == "cannot tell"
    # A merge with other variables comes before another role.
    assert label(site("op"), only_together, far, other_seed_roles=other_seed) == "merged"
    # A missing site in the relative comes before role and code.
    assert label(site("op"), site("op", "y", alone=HALF)) == "cannot tell"
    assert label(site("op"), site("y", alone=HALF), other_seed_roles=other_seed) == "cannot tell"
    # More roles, or another role, come before the code.
    assert label(site("op"), site("op", "y"), far) == "split"
    assert label(site("op"), site("y"), far, other_seed_roles=other_seed) == "moved"


def test_every_verdict_has_its_tests():
    verdict = variable_verdict(site("op"), site("op"), transfer(), GATES)
    assert [test.name for test in verdict.tests] == [
        "accuracy at L1.resid@op of the full model",
        "accuracy at L1.resid@op",
        "shortfall from its own states",
        "accuracy above controls (label)",
        "accuracy above the token embedding",
    ]
    assert all(test.passed for test in verdict.tests)


def test_a_variable_is_equivalent_if_the_shortfall_is_below_the_margin():
    near, open_, far = (
        variable_verdict(site("op"), site("op"), transfer(shortfall=one), GATES).equivalent
        for one in (Estimate(0.0, -0.05, 0.05), Estimate(0.1, 0.0, 0.2), Estimate(0.3, 0.2, 0.4))
    )
    assert (near, open_, far) == (True, None, False)


@pytest.mark.parametrize(
    ("ceiling", "passed"), [(SURE, True), (NEARLY, None), (HALF, None), (NEVER, None)]
)
def test_the_shortfall_is_tested_only_if_the_own_states_work_through_a_map(ceiling, passed):
    verdict = variable_verdict(site("op"), site("op"), transfer(own_ridge_accuracy=ceiling), GATES)
    test = verdict.test(NON_INFERIORITY)
    assert test.passed is passed
    assert (test.value is None) == (passed is None)
    assert verdict.equivalent is passed


def test_states_without_effect_are_not_equivalent_to_own_states_without_effect():
    """For example, if each word has its own dimension, no map generalizes to it."""
    idle = transfer(own_ridge_accuracy=NEVER, maps={"ridge": NEVER})
    assert variable_verdict(site("op"), site("op"), idle, GATES).equivalent is not True


# Models without interchange.


def test_without_interchange_the_gate_of_the_variables_answer_decides():
    gates = (gate("closed"), gate(answer="noun"))
    assert absent_variable_verdict("x", gates).label == "behavior absent"
    assert absent_variable_verdict("operation", gates).label == "behavior absent"
    assert absent_variable_verdict(OBJECT, gates).label == "cannot tell"
    assert absent_variable_verdict(OBJECT, gates[::-1]).label == "behavior absent"
    assert absent_variable_verdict("x", gates).tests == ()


# Sites.


@pytest.mark.parametrize("kind", ["template", "lexical"])
def test_planted_models_carry_each_variable_only_at_its_own_word(kind):
    fox = planted_fox(kind)
    folds = sample_held_out_folds(
        fox.pattern, tokenizers=(fox.model.tokenizer,), bases=30, prompts=60
    )
    recipient = find_recipient(fox.model, folds)
    for variable in folds.variables:
        verdict = variable_site(recipient, variable)
        own = "op" if variable == "operation" else variable
        assert verdict.roles == {own}
        assert verdict.site == f"L1.resid@{own}"
        assert verdict.exclusive_accuracy.value == verdict.inclusive_accuracy.value == 1


def test_an_operation_that_fails_with_one_pair_of_verbs_is_not_kept():
    """The mean over verbs can hide a pair."""
    groups = {"take away, get": SURE, "lose, find": NEVER}
    found = variable_verdict(site("op"), site("op"), transfer(by_verbs=groups), GATES)
    assert found.label == "cannot tell"
    assert "not for all verbs" in found.reason and "lose, find" in found.reason
    assert found.test("worst_verbs").passed is False
    whole = variable_verdict(site("op"), site("op"), transfer(by_verbs={"all": SURE}), GATES)
    assert whole.label == "kept"


# Several draws of prompts, words and sites.


def test_one_draw_is_its_own_mean():
    assert pool_transfers([transfer()]) == transfer()
    assert pool_sites([site("op")]).exclusive_accuracy == SURE


def test_the_interval_over_draws_covers_their_differences():
    draws = [transfer(maps={"ridge": Estimate(v, v - 0.01, v + 0.01)}) for v in (0.4, 0.5, 0.6)]
    pooled = pool_transfers(draws)
    accuracy = pooled.interchange_accuracy
    assert accuracy.value == pytest.approx(0.5)
    # Student's t with 2 degrees of freedom: 4.303 · 0.1 / √3.
    assert accuracy.high - accuracy.value == pytest.approx(0.248, abs=1e-3)
    assert pooled.pairs == 300


def test_the_interval_of_an_accuracy_over_draws_ends_at_0_and_1():
    draws = [transfer(maps={"ridge": Estimate(v, v, v)}) for v in (0.0, 0.1, 0.9)]
    accuracy = pool_transfers(draws).interchange_accuracy
    assert (accuracy.low, accuracy.high) == (0, 1)


def test_the_interval_of_equal_draws_keeps_their_own_errors():
    pooled = pool_transfers([transfer(), transfer(), transfer(), transfer()])
    own, mean = transfer().shortfall, pooled.shortfall
    assert mean.high - mean.value == pytest.approx((own.high - own.value) / 2)


def test_a_map_that_one_draw_lacks_is_left_out():
    draws = [transfer(maps={"ridge": SURE, "identity": HALF}), transfer()]
    assert set(pool_transfers(draws).maps) == {"ridge"}


def draw_of(label, full=("op",), other=("op",)):
    verdict = Verdict("operation", "variable", label, "L1.resid@op", "because")
    return MeasuredDraw(0, site(*full), site(*other), transfer(), verdict)


@pytest.mark.parametrize(
    ("pooled", "draws", "label"),
    [
        ("kept", ("kept", "kept"), "kept"),
        ("kept", ("kept", "cannot tell"), "kept"),
        ("kept", ("cannot tell", "cannot tell"), "cannot tell"),
        ("kept", ("kept", "moved"), "cannot tell"),
        ("split", ("split", "moved"), "cannot tell"),
        ("cannot tell", ("kept", "cannot tell"), "cannot tell"),
    ],
)
def test_a_verdict_needs_a_draw_that_decides_for_it_and_none_for_another(pooled, draws, label):
    settled = settle_verdict(draw_of(pooled).verdict, [draw_of(draw) for draw in draws])
    assert settled.label == label
    if label != pooled:
        assert f"{len(draws)} draws of prompts and words differ" in settled.reason


@pytest.mark.parametrize(("elsewhere", "label"), [(1, "kept"), (2, "cannot tell")])
def test_all_draws_but_one_must_find_sites_of_the_same_roles(elsewhere, label):
    draws = [draw_of("kept")] * (5 - elsewhere) + [draw_of("cannot tell", other=("y",))] * elsewhere
    for order in (draws, draws[::-1]):
        settled = settle_verdict(draw_of("kept").verdict, order)
        assert settled.label == label
        assert shared_roles(order)[0].other.roles == frozenset({"op"})


def test_random_init_models_of_one_draw_keep_their_own_interval():
    null = Estimate(0.2, 0.1, 0.35)
    first = transfer(controls=transfer().controls | {"random-init": null})
    further = transfer(
        controls={k: v for k, v in transfer().controls.items() if k != "random-init"}
    )
    pooled = pool_transfers([first, further, further])
    assert pooled.controls["random-init"] == null
    assert pooled.best_control == "random-init"
    assert pooled.excess == difference(pooled.interchange_accuracy, null)
