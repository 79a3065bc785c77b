"""The words for variables, rule by rule, on numbers made by hand; and where models hold them."""

from dataclasses import replace

import pytest

from probes.comparison.variables.held_out_folds import sample_held_out_folds
from probes.comparison.variables.result import CrossModelTransfer
from probes.comparison.variables.stitching import run_recipient
from probes.comparison.variables.verdicts import (
    VariableSite,
    absent_variable_verdict,
    variable_site,
    variable_verdict,
)
from probes.comparison.verdict import NON_INFERIORITY
from probes.observe.result import Gate, GateState
from probes.prompts.interchange_pairs import OBJECT
from probes.stats.intervals import Estimate
from probes.testing.planted_patterns import planted_fox

SURE, HALF, NEVER = Estimate(0.9, 0.8, 0.95), Estimate(0.5, 0.4, 0.6), Estimate(0.1, 0.05, 0.2)
NEARLY = Estimate(0.6, 0.5, 0.7)


def gate(state: GateState = "open", answer: str = "number"):
    return Gate("relative", "foxes", answer, 100, SURE, "copy x", 0.1, SURE, SURE, state)


GATES = (gate(), gate(answer="noun"))


def place(*roles, alone=SURE, along=None):
    return VariableSite(f"L1.resid@{'+'.join(roles)}", frozenset(roles), alone, along or alone)


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
        excess=Estimate(0.8, 0.7, 0.9),
        best_control="label",
        shortfall=Estimate(0.0, -0.05, 0.05),
        missed_pairs=(),
    )
    return replace(made, **changes)


def word(full, other, carried=None, gates=GATES, **more):
    return variable_verdict(full, other, carried or transfer(), gates, **more).label


# Each rule.


def test_a_closed_gate_of_the_variables_own_answer_says_that_the_behavior_is_absent():
    closed = (gate("closed"), gate(answer="noun"))
    assert word(place("op"), place("op"), gates=closed) == "behavior absent"
    assert word(place("x"), place("x"), transfer(variable="x"), closed) == "behavior absent"
    noun = transfer(variable=OBJECT)
    assert word(place("thing"), place("thing"), noun, closed) == "kept"
    other = (gate(), gate("closed", "noun"))
    assert word(place("thing"), place("thing"), noun, other) == "behavior absent"
    assert word(place("op"), place("op"), gates=other) == "kept"


def test_too_few_questions_give_no_verdict_on_a_variable():
    few = (gate("too few to tell"), gate(answer="noun"))
    verdict = variable_verdict(place("op"), place("op"), transfer(), few)
    assert verdict.label == absent_variable_verdict("operation", few).label == "cannot tell"
    assert "100 questions are too few to tell whether relative has" in verdict.reason


def test_a_partial_gate_is_no_closed_one():
    assert word(place("op"), place("op"), gates=(gate("partial"), GATES[1])) == "kept"


@pytest.mark.parametrize("alone", [HALF, NEVER, NEARLY])
def test_nothing_is_said_of_what_the_full_model_does_not_surely_hold_anywhere(alone):
    found = variable_verdict(place("op", alone=alone), place("op"), transfer(), GATES)
    assert found.label == "cannot tell"
    assert "no site of the full model" in found.reason


def test_a_place_that_hands_over_only_along_with_others_has_merged():
    assert word(place("op"), place("op", alone=NEVER, along=SURE)) == "merged"


@pytest.mark.parametrize(
    ("alone", "along"), [(HALF, SURE), (NEVER, HALF), (NEVER, NEVER), (NEVER, NEARLY)]
)
def test_a_place_that_does_not_surely_hand_over_is_not_told(alone, along):
    found = variable_verdict(place("op"), place("op", alone=alone, along=along), transfer(), GATES)
    assert found.label == "cannot tell"
    assert "no site or pair of sites" in found.reason


def test_more_roles_than_in_the_full_model_are_a_split_and_fewer_a_merge():
    assert word(place("op"), place("op", "y")) == "split"
    assert word(place("op", "y"), place("y")) == "merged"


def test_another_role_is_a_move_only_if_the_other_seed_holds_it_where_the_full_model_does():
    full, other = place("op"), place("y")
    assert word(full, other, other_seed_roles=frozenset({"op"})) == "moved"
    assert word(full, other, other_seed_roles=frozenset({"y"})) == "cannot tell"
    assert word(full, other, other_seed_roles=frozenset({"answer"})) == "cannot tell"
    assert word(full, other, other_seed_roles=None) == "cannot tell"
    # Roles that overlap, but of which neither has the other's, are other roles too.
    assert (
        word(place("op", "x"), place("op", "y"), other_seed_roles=frozenset({"op", "x"})) == "moved"
    )


@pytest.mark.parametrize(
    ("full", "other", "twin", "wanted"),
    [
        (("op",), ("op", "y"), ("op",), "split"),
        (("op",), ("op", "y"), ("op", "y"), "cannot tell"),
        (("op",), ("op", "y"), ("y",), "cannot tell"),
        (("op", "y"), ("y",), ("op", "y"), "merged"),
        (("op", "y"), ("y",), ("y",), "cannot tell"),
    ],
)
def test_where_seeds_differ_in_roles_neither_split_nor_merged_is_told(full, other, twin, wanted):
    assert word(place(*full), place(*other), other_seed_roles=frozenset(twin)) == wanted


def test_the_same_role_is_kept_wherever_another_seed_holds_it():
    assert word(place("op"), place("op"), other_seed_roles=frozenset({"y"})) == "kept"


def test_the_reason_says_whether_seeds_differ_or_none_is_known():
    reasons = [
        variable_verdict(place("op"), place("y"), transfer(), GATES, other_seed_roles=twin).reason
        for twin in (None, frozenset({"y"}))
    ]
    assert "no other-seed model" in reasons[0]
    assert "the other-seed model differs as well" in reasons[1]


def test_the_same_role_in_a_code_that_maps_is_kept():
    found = variable_verdict(place("op"), place("op"), transfer(), GATES)
    assert (found.label, found.subject, found.kind) == ("kept", "operation", "variable")
    assert found.counterpart == "L1.resid@op"


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
def test_the_same_role_is_not_told_where_states_fall_short_or_a_stand_in_does_as_much(changes):
    assert word(place("op"), place("op"), transfer(**changes)) == "cannot tell"


def test_another_code_is_reported_only_if_the_shortfall_is_above_the_margin():
    far, near = (
        variable_verdict(place("op"), place("op"), transfer(shortfall=shortfall), GATES).reason
        for shortfall in (Estimate(0.3, 0.2, 0.4), Estimate(0.05, 0.0, 0.15))
    )
    assert "another code" in far
    assert "another code" not in near


@pytest.mark.parametrize(("high", "label"), [(0.099, "kept"), (0.1, "cannot tell")])
def test_the_whole_interval_of_the_shortfall_is_below_the_margin(high, label):
    carried = transfer(shortfall=Estimate(0.05, 0.0, high))
    assert word(place("op"), place("op"), carried) == label


def test_the_bare_embedding_may_do_as_much():
    """It is a part of the donor: shown beside, it decides nothing."""
    carried = transfer(controls={"token embedding": SURE, "label": NEVER})
    found = variable_verdict(place("op"), place("op"), carried, GATES)
    assert found.label == "kept"
    beside = found.test("above_embedding")
    assert not beside.is_deciding
    assert not beside.passed


def test_nets_trained_for_another_end_are_shown_beside():
    carried = transfer(negative_controls={"copying": 0.2, "permuted": 0.95})
    found = variable_verdict(place("op"), place("op"), carried, GATES)
    assert found.label == "kept"
    beside = found.test("above_negative_controls")
    assert beside.name == "accuracy above permuted"
    assert not beside.is_deciding
    assert not beside.passed


# The order of the rules.


def test_rules_are_read_from_top_to_bottom():
    closed = (gate("closed"), GATES[1])
    lost = place("op", alone=NEVER)
    only_along = place("y", alone=NEVER, along=SURE)
    far = transfer(shortfall=Estimate(0.3, 0.2, 0.4))
    twin = frozenset({"op"})
    # A closed gate before all else.
    assert word(lost, only_along, far, closed, other_seed_roles=twin) == "behavior absent"
    # What the full model does not hold, before what the relative does.
    assert word(lost, only_along, far, other_seed_roles=twin) == "cannot tell"
    assert word(lost, place("op", "y"), far) == "cannot tell"
    # That it stands with other variables, before that it stands elsewhere or beside another role.
    assert word(place("op"), only_along, far, other_seed_roles=twin) == "merged"
    # That the relative does not hold it, before where and in what code.
    assert word(place("op"), place("op", "y", alone=HALF)) == "cannot tell"
    assert word(place("op"), place("y", alone=HALF), other_seed_roles=twin) == "cannot tell"
    # Further roles, before the code; another role, before the code.
    assert word(place("op"), place("op", "y"), far) == "split"
    assert word(place("op"), place("y"), far, other_seed_roles=twin) == "moved"


def test_every_word_comes_with_the_tests_that_it_was_read_from():
    found = variable_verdict(place("op"), place("op"), transfer(), GATES)
    assert [test.name for test in found.tests] == [
        "accuracy at L1.resid@op of the full model",
        "accuracy at L1.resid@op",
        "shortfall from its own states",
        "accuracy above controls (label)",
        "accuracy above the token embedding",
    ]
    assert all(test.passed for test in found.tests)


def test_a_variable_is_equivalent_where_the_full_models_states_do_as_much():
    near, open_, far = (
        variable_verdict(place("op"), place("op"), transfer(shortfall=one), GATES).equivalent
        for one in (Estimate(0.0, -0.05, 0.05), Estimate(0.1, 0.0, 0.2), Estimate(0.3, 0.2, 0.4))
    )
    assert (near, open_, far) == (True, None, False)


@pytest.mark.parametrize(
    ("ceiling", "passed"), [(SURE, True), (NEARLY, None), (HALF, None), (NEVER, None)]
)
def test_as_good_as_its_own_is_tested_only_where_its_own_surely_do_something(ceiling, passed):
    found = variable_verdict(place("op"), place("op"), transfer(own_ridge_accuracy=ceiling), GATES)
    test = found.test(NON_INFERIORITY)
    assert test.passed is passed
    assert (test.value is None) == (passed is None)
    assert found.equivalent is passed


def test_states_that_turn_nothing_where_the_own_ones_turn_nothing_are_not_equivalent():
    """As of words with a dimension to each: a map of other words says nothing of them."""
    idle = transfer(own_ridge_accuracy=NEVER, maps={"ridge": NEVER})
    assert variable_verdict(place("op"), place("op"), idle, GATES).equivalent is not True


# What was not put in.


def test_of_a_model_without_a_host_the_closed_gate_decides_by_variable():
    gates = (gate("closed"), gate(answer="noun"))
    assert absent_variable_verdict("x", gates).label == "behavior absent"
    assert absent_variable_verdict("operation", gates).label == "behavior absent"
    assert absent_variable_verdict(OBJECT, gates).label == "cannot tell"
    assert absent_variable_verdict(OBJECT, gates[::-1]).label == "behavior absent"
    assert absent_variable_verdict("x", gates).tests == ()


# Where models hold them.


@pytest.mark.parametrize("kind", ["template", "lexical"])
def test_planted_models_hold_each_variable_at_its_own_word_alone(kind):
    fox = planted_fox(kind)
    trials = sample_held_out_folds(
        fox.pattern, tokenizers=(fox.model.tokenizer,), bases=30, prompts=60
    )
    recipient = run_recipient(fox.model, trials)
    for variable in trials.variables:
        found = variable_site(recipient, variable)
        own = "op" if variable == "operation" else variable
        assert found.roles == {own}
        assert found.site == f"L1.resid@{own}"
        assert found.exclusive_accuracy.value == found.inclusive_accuracy.value == 1
