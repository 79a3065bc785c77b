"""Verdicts on role paths: each rule on constructed numbers, and whole comparisons."""

from dataclasses import replace

import numpy as np
import pytest

from probes.comparison.paths.measure import PathPlan, found_paths, plan_paths
from probes.comparison.paths.result import PathEffect
from probes.comparison.paths.verdicts import path_verdicts
from probes.comparison.setup.prompts import PathPrompts
from probes.interventions.role_paths.graph import RolePath
from probes.observe.result import Gate
from probes.stats.intervals import Estimate, bootstrap_ratio_difference

MUCH, LITTLE, NONE = (
    Estimate(0.8, 0.75, 0.85),
    Estimate(0.2, 0.15, 0.25),
    Estimate(0.0, -0.01, 0.01),
)
LIMIT, OPEN = Estimate(0.05, 0.03, 0.08), Estimate(0.6, 0.3, 0.9)


def gate(state="open"):
    return Gate("relative", "foxes", "number", 100, MUCH, "copy x", 0.1, MUCH, MUCH, state)


def effect(full, other, other_seed=None, **changes):
    low, high = full.low - other.high, full.high - other.low
    made = PathEffect(
        contrast="operation",
        answer="number",
        roles=("op", "answer"),
        full=full,
        other=other,
        other_seed=other_seed,
        shortfall=Estimate(full.value - other.value, low, high),
        logits=Estimate(5.0, 4.0, 6.0),
        random_init=0.1,
        pairs=64,
    )
    return replace(made, **changes)


def label(*numbers, **changes):
    verdicts = path_verdicts([effect(*numbers, **changes)], [gate()])
    return verdicts[0].label if verdicts else None


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((MUCH, MUCH), "kept"),
        ((MUCH, LITTLE), "weaker"),
        ((LITTLE, MUCH), "stronger"),
        ((MUCH, NONE), "lost"),
        ((MUCH, NONE, MUCH), "lost"),
        ((MUCH, NONE, LIMIT), "lost"),
        ((MUCH, NONE, NONE), "not shared between seeds"),
        ((NONE, MUCH), "new"),
        ((LIMIT, LIMIT), "cannot tell"),
        ((MUCH, LIMIT), "cannot tell"),
        ((MUCH, OPEN), "cannot tell"),
        ((NONE, NONE), None),
    ],
)
def test_the_rules_of_a_path(numbers, expected):
    assert label(*numbers) == expected


def test_no_more_logits_than_in_random_init_models_is_no_path():
    assert label(MUCH, MUCH, logits=Estimate(0.05, 0.04, 0.06)) == "cannot tell"
    assert label(NONE, MUCH, logits=Estimate(0.05, 0.04, 0.06)) == "cannot tell"


def test_a_contrast_without_an_effect_leaves_the_fraction_undefined():
    undefined = Estimate(np.nan, np.nan, np.nan)
    found = bootstrap_ratio_difference(
        (np.ones(8), np.ones(8)), (np.ones(8), np.tile([1.0, -1.0], 4)), seed=0
    )
    assert np.isnan(found.value)
    assert label(MUCH, undefined, shortfall=undefined) == "cannot tell"


def test_the_behavior_is_absent_where_a_gate_is_closed():
    (verdict,) = path_verdicts([effect(MUCH, NONE), effect(NONE, MUCH)], [gate("closed")])
    assert (verdict.label, verdict.subject) == ("behavior absent", "operation: op → answer")


@pytest.mark.parametrize("state", ["partial", "not established", "too few to tell"])
def test_no_path_is_lost_or_new_unless_the_gate_of_its_answer_is_open(state):
    numbers = [(MUCH, NONE), (MUCH, NONE, NONE), (NONE, MUCH)]
    for each in numbers:
        (verdict,) = path_verdicts([effect(*each)], [gate(), gate(state)])
        assert verdict.label == "cannot tell"
        assert verdict.reason.endswith("but a gate is not open")
        assert (verdict.subject == "") == (each[0] is NONE)
    assert path_verdicts([effect(MUCH, MUCH)], [gate(state)])[0].label == "kept"
    another = replace(gate(state), answer="noun")
    assert path_verdicts([effect(MUCH, NONE)], [gate(), another])[0].label == "lost"


def test_the_only_way_to_the_answer_shows_nothing_of_a_model():
    whole = Estimate(1.0, 1 - 3e-7, 1 + 3e-7)
    (forced,) = path_verdicts([effect(whole, whole)], [gate()])
    assert forced.label == "cannot tell" and "no other way" in forced.reason
    assert label(whole, MUCH) == "weaker"
    assert label(Estimate(1.0, 0.98, 1.02), Estimate(1.0, 0.98, 1.02)) == "kept"


def test_a_new_path_is_one_of_the_relative_and_equivalence_needs_equal_fractions():
    (new,) = path_verdicts([effect(NONE, MUCH)], [gate()])
    assert (new.subject, new.counterpart) == ("", "operation: op → answer")
    (same,) = path_verdicts([effect(MUCH, MUCH)], [gate()])
    assert same.equivalent
    (weaker,) = path_verdicts([effect(MUCH, LITTLE)], [gate()])
    assert weaker.equivalent is False


def test_the_difference_of_two_fractions_is_paired_by_prompt():
    rng = np.random.default_rng(0)
    total = rng.uniform(5, 10, 40)
    part = total * rng.uniform(0.2, 0.9, 40)
    same = bootstrap_ratio_difference((part, total), (part, total), seed=0)
    assert (same.low, same.value, same.high) == (0, 0, 0)
    less = bootstrap_ratio_difference((part, total), (part - 0.1 * total, total), seed=0)
    assert (less.low, less.high) == (pytest.approx(0.1), pytest.approx(0.1))


def test_the_plan_holds_all_found_paths_and_random_circuits_of_others():
    key = ("x", "number")
    paths = [RolePath(("x", role, "answer")) for role in "abcdef"]
    full = {key: dict(zip(paths, (0.6, 0.3, 0.05, 0.0, 0.0, 0.0), strict=True))}
    other = {key: dict(zip(paths, (0.9, 0.0, 0.0, 0.2, 0.0, 0.0), strict=True))}
    plan: PathPlan = plan_paths(full, [other], PathPrompts({}, {}), seed=0)
    assert plan.paths[key] == (paths[0], paths[1], paths[3])
    assert found_paths(full, key) == (paths[0], paths[1])
    own, *random = plan.circuits[key]
    assert own.edges == paths[0].graph.edges | paths[1].graph.edges
    assert all(len(graph.edges) == 4 for graph in random)
    assert not any(graph.edges & paths[0].graph.edges for graph in random)


def test_an_open_verdict_says_how_many_pairs_would_decide_it():
    # The interval reaches 0.03 to either side, the limit is 0.02 away: (3 / 2) squared as many.
    near = Estimate(0.07, 0.04, 0.1)
    (verdict,) = path_verdicts([effect(MUCH, near)], [gate()])
    assert verdict.label == "cannot tell"
    assert verdict.reason.endswith("about 144 pairs would decide")
    (without,) = path_verdicts([effect(MUCH, LIMIT)], [gate()])
    assert "would decide" not in without.reason
