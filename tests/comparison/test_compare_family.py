"""Comparison of a model with its relatives: verdicts, numbers, explanations and equivalence."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import typer

from probes.cli.common import require_equivalence
from probes.comparison import compare as relatives
from probes.comparison import nulls
from probes.comparison.assemble import _accuracy_changes, _missing_draws
from probes.comparison.compare import compare, compare_family
from probes.comparison.explanation import FailingPrompt
from probes.comparison.failing_prompts import head_failing_prompts
from probes.comparison.family_result import FamilyComparison, gather_repeats
from probes.comparison.heads.head_sets import ModelHeads
from probes.comparison.heads.profiles import HeadProfiles
from probes.comparison.heads.result import HeadMatch, MeanPairScore
from probes.comparison.measurements import ModelMeasurements, ReferenceModel
from probes.comparison.model_facts import ModelFacts, PlotData
from probes.comparison.nulls import NullDraw, NullGroup
from probes.comparison.paths.result import PathEffect
from probes.comparison.paths.verdicts import path_verdicts
from probes.comparison.result import Comparison
from probes.comparison.setup import prompts as sampling
from probes.comparison.setup.method import ComparisonMethod
from probes.comparison.setup.prompts import ComparisonPrompts, PathPrompts
from probes.comparison.setup.references import ComparisonSettings, load_models
from probes.comparison.variables.result import CrossModelTransfer
from probes.comparison.variables.verdicts import (
    VariableSite,
    absent_variable_verdict,
    variable_verdict,
)
from probes.comparison.verdict import (
    SIMILARITY_EQUIVALENCE,
    STRENGTH_EQUIVALENCE,
    RepeatedVerdict,
    Verdict,
    VerdictLabel,
)
from probes.errors import (
    EquivalenceError,
    ModelError,
    NotTestedError,
    PatternError,
    ProbeError,
    SiteError,
)
from probes.models.files.provenance import Provenance, StorageCost
from probes.models.model import load, random_init, wrap
from probes.observe.behavior import Behavior
from probes.observe.result import Gate, GateState
from probes.prompts.catalog import pattern
from probes.stats.evidence import StatisticalTest
from probes.stats.intervals import Estimate
from probes.testing.equivalent_layers import rotate_residual, round_weights
from probes.testing.planted_patterns import fox_pattern, planted_fox
from probes.testing.tiny_models import hook_count, tiny_hf

FOX = fox_pattern()
SURE, NONE = Estimate(0.9, 0.85, 0.95), Estimate(0.0, -0.03, 0.03)
HALF = Estimate(0.5, 0.4, 0.6)


@cache
def fox(kind, seed=0):
    return planted_fox(kind, seed=seed).model


@cache
def rotated():
    return rotate_residual(fox("template")).model


@pytest.fixture(scope="module")
def small_plan():
    """Few crossings and few questions: planted models are always right."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampling, "TRANSFER_SIZES", (120, 200))
        yield


def relatives_of_the_template():
    return [rotated(), fox("lexical"), "random-init"]


def compare_planted(**more):
    return compare_family(
        fox("template"),
        relatives_of_the_template(),
        FOX,
        ComparisonSettings(
            prompts=4,
            draws=2,
            nulls=2,
            other_seed=fox("template", 1),
            negative_controls=[fox("lookup")],
            **more,
        ),
    )


@pytest.fixture(scope="module")
def family(small_plan):
    return compare_planted()


# A comparison made by hand.


def gate(model: str, answer: str, state: GateState = "open"):
    return Gate(model, "foxes", answer, 100, SURE, "copy x", 0.1, SURE, SURE, state)


def transfer_of(variable, donor="full", recipient="other", **changes):
    controls = {"token embedding": NONE, "label": NONE, "shuffled": NONE, "random-init": NONE}
    made = CrossModelTransfer(
        variable=variable,
        donor=donor,
        recipient=recipient,
        pairs=100,
        site="L1.resid@op",
        donor_sites=("L1.resid@op",),
        own_accuracy=SURE,
        own_ridge_accuracy=SURE,
        maps={"ridge": SURE},
        controls=controls,
        nulls=(0.1, 0.0),
        negative_controls={"copying": 0.2},
        excesses=dict.fromkeys(("token embedding", "label", "shuffled", "random-init"), SURE),
        shortfall=NONE,
        missed_pairs=(),
    )
    return replace(made, **changes)


def held(*roles, alone=SURE, along=None):
    return VariableSite(f"L1.resid@{'+'.join(roles)}", frozenset(roles), alone, along or alone)


def comparison_of(full, other, roles=None, **changes):
    """Verdict on "op" at two sites, and a comparison that contains it."""
    one = transfer_of("op", **changes)
    gates = tuple(gate("other", answer) for answer in ("number", "noun"))
    verdict = variable_verdict(full, other, one, gates, other_seed_roles=roles and frozenset(roles))
    return verdict, made(
        verdicts=(verdict, made().verdicts[1]), transfers_to_other=(one, transfer_of("x"))
    )


def head(
    name: str, word: VerdictLabel = "kept", there: str | None = None, *, equal: bool | None = True
):
    tests = tuple(
        StatisticalTest(test, "no", SURE, "within ±0.10", equal, id=test)
        for test in (SIMILARITY_EQUIVALENCE, STRENGTH_EQUIVALENCE)
    )
    return Verdict(name, "head", word, there if there is not None else name, "so it is", tests)


def view():
    effects = np.arange(8.0).reshape(2, 2, 2)
    attention = np.full((1, 2, 2, 2), 0.5)
    return PlotData(attention, attention, ("L0.H0", "L0.H1"), {"x": effects}, {"x": effects / 10})


MATCHES = tuple(
    HeadMatch(name, name, SURE, 0.9, 0.9, 0.1, 0.2, float("nan")) for name in ("L0.H0", "L0.H1")
)


def made(**changes):
    variables = [Verdict(v, "variable", "kept", f"L1.resid@{v}", "the same") for v in ("op", "x")]
    whole = Comparison(
        full=ModelFacts("full", "made", 1, 2, 8, 100),
        other=ModelFacts("other", "made", 1, 2, 8, 50),
        pattern="foxes",
        title="Foxes",
        example="How many?",
        contrasts={"x": 1.0},
        roles=("x", "answer"),
        answers=("number", "noun"),
        prompts=4,
        seed=0,
        nulls=2,
        other_seed="",
        gates=tuple(gate(model, a) for model in ("full", "other") for a in ("number", "noun")),
        random_init_accuracy=(0.0, 0.0),
        solved_logit_diffs=(),
        matches=MATCHES,
        mean_pair_score=MeanPairScore(SURE, 0.1, 0.2, float("nan")),
        plot_data={"full": view(), "other": view()},
        accuracy_changes=(NONE, NONE),
        verdicts=(*variables, head("L0.H0"), head("L0.H1")),
        transfers_to_other=(transfer_of("op"), transfer_of("x")),
        transfers_to_full=(transfer_of("op", "other", "full"), transfer_of("x", "other", "full")),
        failing_prompts={"op": (FailingPrompt("a", "b", "c", "d"),)},
    )
    return replace(whole, **changes)


def test_summary_and_table_give_verdicts_and_pairing_scores_of_heads():
    found = made()
    assert "Heads of full in other: 2 kept." in found.summary()
    assert any(line.startswith("Mean pairing score") for line in found.summary())
    assert list(found.table()["verdict"]) == ["kept", "kept"]


# Equal, or not.


def test_what_is_kept_and_right_as_often_is_equal():
    made().assert_equivalent()
    made().assert_equivalent(heads=True)
    FamilyComparison((made(),)).assert_equivalent(heads=True)


def test_an_equivalence_error_is_a_mistake_that_can_be_mended_and_a_failed_test():
    assert issubclass(EquivalenceError, ProbeError)
    assert issubclass(EquivalenceError, AssertionError)


@pytest.mark.parametrize(("low", "equal"), [(-0.09, True), (-0.1, False), (-0.4, False)])
def test_an_answer_that_may_be_right_less_often_by_the_margin_is_not_equal(low, equal):
    found = made(accuracy_changes=(NONE, Estimate(-0.02, low, 0.1)))
    if equal:
        found.assert_equivalent()
        return
    with pytest.raises(EquivalenceError, match="noun: accuracy changes by"):
        found.assert_equivalent()
    found.assert_equivalent(margin=0.5)


def test_a_path_that_is_the_only_way_is_no_tested_mechanism():
    whole = Estimate(1.0, 1.0, 1.0)
    path = PathEffect(
        "x", "number", ("x", "answer"), whole, whole, None, NONE, Estimate(5.0, 4.0, 6.0), 0.1, 8
    )
    (verdict,) = path_verdicts([path], made().gates)
    found = made(
        paths=(path,),
        verdicts=(verdict,),
        transfers_to_other=(),
        transfer_skip_reason="pairs of your own",
    )
    check = found.equivalence(heads=False)
    assert "x: x → answer (the only way to the answer, in any model)" in check.untested
    assert not check.mechanism_tested
    with pytest.raises(NotTestedError, match="mechanism not tested"):
        check.require()


def test_a_head_without_a_counterpart_shows_no_effect_that_was_not_measured(monkeypatch):
    """The sum over no heads would be 0."""
    measured = object.__new__(ModelMeasurements)
    object.__setattr__(measured, "heads", object.__new__(ModelHeads))
    for name, each in (("model", None), ("profiles", HeadProfiles("m", ("L0.H0",), (), {}, {}))):
        object.__setattr__(measured.heads, name, each)
    for other in ("cannot tell", "lost", "no reliable effect"):
        assert head_failing_prompts(measured, measured, head("L0.H0", other, "")) == ()


def test_where_the_gate_asks_for_a_choice_the_choice_must_be_as_good():
    """Whole answers of a small model may be wrong in both models."""
    wrong = torch.zeros(40, 1, dtype=torch.bool)
    chosen, less = torch.ones(40, 1, dtype=torch.bool), (torch.arange(40) < 24)[:, None]
    full, other = (
        Behavior("m", ("name",), wrong, wrong.float(), wrong.long(), preferred)
        for preferred in (chosen, less)
    )
    (accuracy,) = _accuracy_changes(full, other, "accuracy")
    (choice,) = _accuracy_changes(full, other, "choice")
    assert (accuracy.value, choice.value) == (0, -0.4)
    assert _accuracy_changes(full, other, "logit-diff") == (choice,)
    gates = tuple(
        replace(gate(model, a), criterion="choice", choice=SURE)
        for model in ("full", "other")
        for a in ("number", "noun")
    )
    with pytest.raises(EquivalenceError, match="accuracy among foils changes by"):
        made(gates=gates, accuracy_changes=(choice, NONE)).assert_equivalent()


def test_draws_that_a_pattern_does_not_allow_are_missing_with_their_reason(monkeypatch):
    whole = sampling.sample_held_out_folds

    def first_alone(chosen, *, seed, **more):
        if seed:
            raise PatternError("too few words")
        return whole(chosen, seed=seed, **more)

    monkeypatch.setattr(sampling, "sample_held_out_folds", first_alone)
    settings = ComparisonSettings(prompts=4, draws=3, screen="never", null="permuted")
    found = sampling.sample_comparison_prompts(pattern("take-away"), [load("distilled")], settings)
    assert found.folds and not found.further_folds and not found.transfer_skip_reason
    line = "Variables were measured in 1 of 3 draws of prompts: too few words."
    assert _missing_draws(found, settings) == line
    assert line in ComparisonMethod(missing_draws=line).lines()


def test_getting_better_is_no_failure():
    made(accuracy_changes=(Estimate(0.5, 0.4, 0.6), NONE)).assert_equivalent()


@pytest.mark.parametrize(
    ("label", "full", "other", "roles"),
    [
        ("split", held("op"), held("op", "y"), None),
        ("merged", held("op", "y"), held("y"), None),
        ("merged", held("op"), held("op", alone=NONE, along=SURE), None),
        ("moved", held("op"), held("y"), ("op",)),
        ("cannot tell", held("op"), held("op", alone=HALF), None),
        ("cannot tell", held("op"), held("y"), None),
        ("cannot tell", held("op"), held("y"), ("y",)),
    ],
)  # fmt: skip
def test_a_variable_that_is_not_kept_is_named_with_its_reason(label, full, other, roles):
    verdict, found = comparison_of(full, other, roles)
    assert verdict.label == label
    with pytest.raises(EquivalenceError) as error:
        found.assert_equivalent()
    assert f"op: {label} ({verdict.reason})" in str(error.value)
    assert "; x" not in str(error.value)


def test_a_variable_that_a_label_transfers_as_well_is_not_equivalent():
    controls = {"token embedding": NONE, "label": SURE, "shuffled": NONE, "random-init": NONE}
    verdict, found = comparison_of(held("op"), held("op"), controls=controls)
    assert verdict.label == "cannot tell"
    with pytest.raises(EquivalenceError, match="op: cannot tell"):
        found.assert_equivalent(margin=0.5)


@pytest.mark.parametrize("variable", ["x", "thing"])
def test_a_variable_of_an_absent_behavior_is_not_equal_however_near_the_accuracies(variable):
    """As where the full model is right in a fifth, and the relative surely in no more than chance.

    Nothing is put into a relative with a closed gate: there is a word, but no transfer.
    """
    gates = (gate("other", "number", "closed"), gate("other", "noun"))
    verdicts = (absent_variable_verdict(variable, gates),)
    found = made(verdicts=verdicts, transfers_to_other=(), gates=(*made().gates[:2], *gates))
    with pytest.raises(EquivalenceError, match=f"{variable}: {verdicts[0].label}"):
        found.assert_equivalent()


def test_states_that_fall_short_by_the_margin_are_named():
    short = (transfer_of("op", shortfall=Estimate(0.04, 0.0, 0.08)), transfer_of("x"))
    made(transfers_to_other=short).assert_equivalent()
    with pytest.raises(EquivalenceError, match="op: kept") as error:
        made(transfers_to_other=short).assert_equivalent(margin=0.05)
    assert "; x" not in str(error.value)


def test_the_message_has_the_shortfall_of_the_states():
    short = (transfer_of("op", shortfall=Estimate(0.04, 0.0, 0.08)), transfer_of("x"))
    with pytest.raises(EquivalenceError, match=r"fall short by 0\.04"):
        made(transfers_to_other=short).assert_equivalent(margin=0.05)


def test_where_the_own_states_turn_no_more_than_the_margin_nothing_falls_short_of_them():
    """To fall short of nothing by nothing is no equality."""
    little = (transfer_of("op", own_ridge_accuracy=Estimate(0.12, 0.08, 0.2)), transfer_of("x"))
    made(transfers_to_other=little).assert_equivalent(margin=0.05)
    with pytest.raises(EquivalenceError, match="op: kept"):
        made(transfers_to_other=little).assert_equivalent()


def test_heads_count_only_where_they_are_asked_for_and_idle_ones_never():
    verdicts = made().verdicts[:2]
    weaker = (
        *verdicts,
        head("L0.H0", equal=False),
        head("L0.H1", "no reliable effect", "", equal=False),
    )
    made(verdicts=weaker).assert_equivalent()
    with pytest.raises(EquivalenceError, match=r"L0\.H0: kept, not equivalent"):
        made(verdicts=weaker).assert_equivalent(heads=True)
    made(verdicts=(*weaker[:2], weaker[3])).assert_equivalent(heads=True)
    new = (*verdicts, head("", "new", "L0.H1", equal=None))
    made(verdicts=new).assert_equivalent(heads=True)


def test_what_no_gate_lets_through_is_not_equal():
    with pytest.raises(EquivalenceError, match="gate is closed"):
        made(
            verdicts=made().verdicts[2:], transfers_to_other=(), transfers_to_full=()
        ).assert_equivalent()


def test_where_no_variable_can_be_tested_the_heads_decide():
    """A pairs file has no opposite, so that no variable is interchanged."""
    pairs = {"transfers_to_other": (), "transfer_skip_reason": "pairs of your own"}
    made(verdicts=made().verdicts[2:], **pairs).assert_equivalent()
    lost = (head("L0.H0", "lost", "", equal=None), head("", "new", "L0.H1", equal=None))
    with pytest.raises(EquivalenceError, match=r"L0\.H0: lost, not equivalent"):
        made(verdicts=lost, **pairs).assert_equivalent()


@pytest.mark.parametrize("verdicts", [(), (head("L0.H0", "no reliable effect", "", equal=None),)])
def test_a_comparison_that_tested_no_mechanism_cannot_pass(verdicts):
    found = made(verdicts=verdicts, transfers_to_other=(), transfer_skip_reason="pairs of your own")
    with pytest.raises(NotTestedError, match="mechanism not tested: variables"):
        found.assert_equivalent()
    check = found.equivalence()
    assert not check.mechanism_tested
    assert "accuracy of number" in check.passed
    assert "not tested: " in " ".join(check.lines())


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ((head("L0.H0"),), None),
        ((head("L0.H0", "lost", "", equal=None),), 3),
        ((head("L0.H0", "no reliable effect", "", equal=None),), 4),
        ((), 4),
    ],
)
def test_the_exit_code_tells_a_difference_from_a_mechanism_that_was_not_tested(verdicts, code):
    found = made(verdicts=verdicts, transfers_to_other=(), transfer_skip_reason="pairs of your own")
    with pytest.raises(typer.Exit) if code else nullcontext() as stopped:
        require_equivalence(found, 0.1)
    assert not code or stopped.value.exit_code == code


def test_what_was_tested_and_what_was_not_is_listed():
    check = made().equivalence()
    assert check.passed == ("accuracy of number", "accuracy of noun", "op", "x")
    paths = "role paths (none was found with aligned tokens)"
    assert check.untested == (paths, "heads (not requested)")
    assert made().equivalence(heads=True).passed[-2:] == ("L0.H0", "L0.H1")


def test_of_many_heads_without_effect_the_first_are_named_and_the_others_counted():
    idle = [head(f"L{k}.H0", "no reliable effect", "", equal=False) for k in range(12)]
    check = made(verdicts=(*made().verdicts, *idle)).equivalence(heads=True)
    assert "L0.H0, L1.H0, L2.H0 and 9 other heads (no reliable effect)" in check.untested
    check = made(verdicts=(*made().verdicts, *idle[:8])).equivalence(heads=True)
    assert check.untested[-1].count("L") == 8


def test_the_summary_ends_with_what_survives_what_is_lost_and_what_cannot_be_told_and_why():
    verdicts = (
        *made().verdicts[:2], head("L0.H0", "lost", ""), head("L0.H1", "cannot tell", ""),
    )  # fmt: skip
    lines = made(verdicts=verdicts).summary()
    assert lines[-1] == (
        "In other survive: op, x; lost: L0.H0; cannot tell: L0.H1, because so it is (1 of 1)."
    )
    order = [line.split(" of ")[0] for line in lines if " of full in other: " in line]
    assert order == ["Role paths", "Variables", "Heads"]


def test_one_of_several_relatives_is_named():
    bad = made(
        other=ModelFacts("worse", "made", 1, 2, 8, 1),
        accuracy_changes=(Estimate(-0.5, -0.6, -0.4), NONE),
    )
    with pytest.raises(
        EquivalenceError, match="worse is not shown to be equivalent to full"
    ) as error:
        FamilyComparison((made(), bad)).assert_equivalent()
    assert "other" not in str(error.value)


def test_a_variable_that_the_full_model_holds_at_no_place_is_not_asked_for():
    """As the docstring says: every variable that full holds at a place."""
    verdict, found = comparison_of(held("op", alone=HALF), held("y", alone=NONE), shortfall=HALF)
    assert "no site of the full model" in verdict.reason
    found.assert_equivalent()


def test_a_wider_margin_forgives_more_of_a_variable():
    verdict, found = comparison_of(held("op"), held("op"), shortfall=Estimate(0.1, 0.05, 0.15))
    assert verdict.label == "cannot tell"
    found.assert_equivalent(margin=0.3)
    with pytest.raises(EquivalenceError, match="op: cannot tell"):
        found.assert_equivalent()


def test_two_models_that_cannot_do_it_are_not_equal():
    gates = tuple(replace(one, state="closed") for one in made().gates)
    with pytest.raises(EquivalenceError, match=r"noun is correct in .* of full itself"):
        made(
            gates=gates,
            verdicts=(),
            transfers_to_other=(),
            transfers_to_full=(),
            transfer_skip_reason="pairs",
        ).assert_equivalent()


def test_a_behavior_that_was_not_established_is_said_and_proves_no_equivalence():
    gates = tuple(replace(one, criterion="none", state="not established") for one in made().gates)
    found = made(gates=gates)
    assert sum(line.startswith("Behavior not established: ") for line in found.summary()) == 4
    line, _ = FamilyComparison((found,)).summary()
    assert "Behavior not established: other was not asked whether it has number" in line
    with pytest.raises(EquivalenceError, match="number: the gate asked nothing of full itself"):
        found.assert_equivalent()


@pytest.mark.slow
def test_a_rotated_shipped_model_keeps_its_variables_and_two_bits_are_too_few():
    model = load("distilled")
    found = compare_family(
        model,
        [rotate_residual(model).model, round_weights(model, 2), "random-init"],
        settings=ComparisonSettings(prompts=6, nulls=2, negative_controls=[]),
    )
    same, coarse, net = found.comparisons
    assert {v: same.verdict(v).label for v in ("operation", "y", "thing")} == dict.fromkeys(
        ("operation", "y", "thing"), "kept"
    )
    exact = set()
    for one in same.transfers_to_other:
        assert one.shortfall.high < 0.1
        layer, roles = one.site.split("@")
        if one.donor_sites == tuple(f"{layer}@{role}" for role in roles.split("+")):
            # Read at the same sites: a ridge map undoes a rotation.
            assert one.interchange_accuracy.value == one.own_ridge_accuracy.value
            assert one.shortfall.value == 0
            exact.add(one.variable)
    assert exact >= {"operation", "x", "y"}
    heads = [
        verdict
        for verdict in same.verdicts
        if verdict.kind == "head" and verdict.label != "no reliable effect"
    ]
    assert {verdict.label for verdict in heads} == {"kept"}
    assert all(verdict.subject == verdict.counterpart for verdict in heads)
    for one in (coarse, net):
        with pytest.raises(EquivalenceError, match="number: accuracy changes by"):
            one.assert_equivalent()
    # The model itself holds the first number at no one place: nothing to keep, or to lose.
    assert "no site of the full model" in same.verdict("x").reason
    same.assert_equivalent()


# Why.


def test_a_variable_shows_both_ways_and_a_head_the_patches_of_both_models():
    why = made().explain("op")
    assert list(why.interventions["donor"]) == ["full", "other"]
    assert set(why.interventions["variable"]) == {"op"}
    assert why.failing_prompts == (FailingPrompt("a", "b", "c", "d"),)
    why = made().explain("L0.H1")
    assert list(why.interventions["of"]) == ["full", "relative"]
    row = why.interventions.iloc[0]
    # The strongest of [[4, 5], [6, 7]].
    assert (row["head"], row["role"], row["answer"]) == ("L0.H1", "answer", "noun")
    assert (row["fall"], row["error"]) == (7.0, 0.7)
    assert "L0.H1: kept (L0.H1) – so it is." in why.lines()[0]
    assert "L0.H1" in repr(why)


def test_each_part_of_a_split_head_has_its_rows():
    verdicts = (head("L0.H0", "split", "L0.H0 + L0.H1"),)
    assert list(made(verdicts=verdicts).explain("L0.H0").interventions["head"]) == [
        "L0.H0",
        "L0.H0",
        "L0.H1",
    ]


def test_a_head_that_only_the_relative_has_is_found_by_its_place():
    verdicts = (head("L0.H0"), head("", "new", "L0.H1"))
    why = made(verdicts=verdicts).explain("L0.H1")
    assert why.verdict.label == "new"
    assert list(why.interventions["of"]) == ["relative"]


def test_a_head_that_only_the_relative_has_is_found_beside_one_of_its_name():
    verdicts = (head("L0.H0"), head("L0.H1", "lost", ""), head("", "new", "L0.H1"))
    words = {
        made(verdicts=verdicts).explain(name).verdict.label for name in ("L0.H1", "other L0.H1")
    }
    assert words == {"lost", "new"}


def test_an_unknown_subject_is_refused_with_what_there_is():
    with pytest.raises(SiteError, match=r"'color'.*op, x, L0\.H0"):
        made().explain("color")
    with pytest.raises(SiteError, match="other"):
        FamilyComparison((made(),)).explain("op", "no such model")


def test_the_object_is_found_by_its_name_in_sentences_and_in_patterns():
    verdicts = (replace(made().verdicts[0], subject="thing"),)
    found = made(verdicts=verdicts)
    assert found.verdict("object") is found.verdict("thing") is verdicts[0]


def test_heads_of_the_relative_have_its_name_in_the_line_of_a_family():
    verdicts = (head("L0.H0"), head("", "new", "L0.H0"))
    line = FamilyComparison((made(verdicts=verdicts),)).summary()[0]
    assert line.endswith("kept: L0.H0; new: other L0.H0.")


def test_the_csv_of_a_family_names_its_rows(tmp_path):
    family = FamilyComparison((made(), made(other=ModelFacts("worse", "made", 1, 2, 8, 1))))
    family.save(tmp_path / "family.csv")
    first, *rows = (tmp_path / "family.csv").read_text().splitlines()
    assert first == ",other,worse"
    assert [row.split(",")[0] for row in rows] == [*family.table().index]


def test_an_empty_name_is_no_subject():
    with pytest.raises(SiteError):
        made().verdict("")


# Tables.


def test_verdicts_are_in_one_table_and_numbers_in_another():
    gone = made(
        other=ModelFacts("worse", "made", 1, 2, 8, 1),
        verdicts=(Verdict("op", "variable", "cannot tell", "", "?"), head("", "new", "L0.H1")),
        transfers_to_full=(
            transfer_of("op", "worse", "full", maps={"ridge": NONE}, nulls=(0.3, 0.0)),
            transfer_of("x", "worse", "full", nulls=(0.0, 0.2)),
        ),
    )
    both = FamilyComparison((made(), gone))
    assert both.names == ("other", "worse")
    assert both["worse"] is gone
    table = both.table()
    assert table.loc["op"].tolist() == ["kept (L1.resid@op)", "cannot tell"]
    assert table.loc["x"].tolist() == ["kept (L1.resid@x)", ""]
    assert table.loc["new"].tolist() == ["–", "L0.H1"]
    numbers = both.metrics()
    assert numbers.loc["mean interchange accuracy", "other"] == pytest.approx(0.9)
    assert numbers.loc["mean interchange accuracy", "worse"] == pytest.approx(0.45)
    assert numbers.loc["op interchange accuracy", "best random-init"] == 0.3
    assert numbers.loc["x interchange accuracy", "best random-init"] == 0.2
    # The mean is taken for each model first, then the maximum over models.
    assert numbers.loc["mean interchange accuracy", "best random-init"] == pytest.approx(0.15)
    assert numbers.loc["mean interchange accuracy", "copying"] == pytest.approx(0.2)
    assert json.dumps(both.to_dict())
    assert "worse" in repr(both)


def test_mean_interchange_accuracy_is_nan_without_interchange_into_the_full_model():
    assert np.isnan(made(transfers_to_full=()).mean_interchange_accuracy)
    assert made(transfers_to_full=(), transfers_to_other=()).transfer_table().empty


# The whole job on planted models.


@pytest.mark.slow
def test_a_rotated_model_keeps_its_variables_and_controls_keep_the_numbers(family):
    same, lexical, net = family.comparisons
    assert [same.verdict(v).label for v in ("operation", "x", "y")] == ["kept"] * 3
    assert [lexical.verdict(v).label for v in ("x", "y")] == ["kept"] * 2
    assert lexical.verdict("operation").label == "cannot tell"
    assert {verdict.label for verdict in net.verdicts} == {"behavior absent"}
    assert net.transfers_to_other == ()
    assert len(net.transfers_to_full) == 4
    # The negative control has heads that carry the same words.
    found = [
        verdict
        for verdict in same.verdicts
        if verdict.kind == "head" and verdict.label != "no reliable effect"
    ]
    assert found
    assert all(verdict.counterpart == verdict.subject for verdict in found)
    assert all(v.label == "kept" or "negative control" in v.reason for v in found)
    assert (
        same.mean_interchange_accuracy
        > lexical.mean_interchange_accuracy
        > net.mean_interchange_accuracy
    )


@pytest.mark.slow
def test_mean_interchange_accuracy_is_the_mean_over_variables_into_the_full_model(family):
    for one in family.comparisons:
        assert one.mean_interchange_accuracy == pytest.approx(
            np.mean([b.interchange_accuracy.value for b in one.transfers_to_full])
        )
        assert {b.recipient for b in one.transfers_to_full} == {family.comparisons[0].full.name}
        assert {b.donor for b in one.transfers_to_full} == {one.other.name}
        assert {f.donor for f in one.transfers_to_other} <= {one.full.name}


@pytest.mark.slow
def test_why_works_for_every_subject_of_every_relative(family, tmp_path):
    for one in family.comparisons:
        for verdict in one.verdicts:
            why = one.explain(verdict.subject or verdict.counterpart)
            assert why.lines()
            assert repr(why)
    numbers = family.metrics()
    assert set(numbers.columns) == {*family.names, "best random-init", "planted lookup"}
    family.save(tmp_path / "family.json")
    assert FamilyComparison.load(tmp_path / "family.json").names == family.names


@pytest.mark.slow
def test_a_pair_alone_gives_what_the_family_gives(family, small_plan):
    found = compare(
        fox("template"),
        fox("lexical"),
        FOX,
        ComparisonSettings(
            prompts=4,
            draws=2,
            nulls=2,
            other_seed=fox("template", 1),
            negative_controls=[fox("lookup")],
        ),
    )
    assert found.to_dict() == family["planted lexical"].to_dict()


@pytest.mark.slow
def test_two_workers_find_what_one_finds(family, small_plan):
    before = hook_count(fox("template"))
    assert compare_planted(workers=2).to_dict() == family.to_dict()
    assert hook_count(fox("template")) == before


@pytest.mark.slow
def test_a_model_is_compared_with_itself_by_two_workers(small_plan):
    compare(
        fox("template"),
        fox("template"),
        FOX,
        ComparisonSettings(prompts=4, draws=1, nulls=1, workers=2),
    )


@pytest.mark.slow
def test_an_other_seed_model_without_the_behavior_gives_no_roles(small_plan):
    net = random_init(fox("template"), seed=7)
    found = compare_family(
        fox("template"),
        [net, fox("lexical")],
        FOX,
        ComparisonSettings(prompts=4, draws=1, nulls=1, other_seed=net, negative_controls=[]),
    )
    assert {verdict.label for verdict in found[net.name].verdicts} == {"behavior absent"}
    assert found["planted lexical"].verdict("x").label == "kept"


# Pairs of a file.


def hats(clean, other):
    return json.dumps({
        "contrast": "x",
        "clean": f"I have {clean} hats. Now I have",
        "counterfactual": f"I have {other} hats. Now I have",
        "answer": str(clean), "counterfactual_answer": str(other),
        "roles": {"x": str(clean)}, "counterfactual_roles": {"x": str(other)},
    })  # fmt: skip


def small(own, seed):
    hf_model = tiny_hf(
        "llama", seed, vocab_size=len(own), num_hidden_layers=2, max_position_embeddings=64
    )
    return wrap(hf_model, name=f"small {seed}", tokenizer=own)


@pytest.fixture(scope="module")
def from_file(own, tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "hats.jsonl"
    path.write_text("\n".join(hats(k, 9 - k) for k in range(5)), encoding="utf-8")
    models = [small(own, 0), small(own, 1)]
    return compare_family(
        models[0], [models[1], "random-init"], str(path), ComparisonSettings(prompts=5, nulls=2)
    )


def test_pairs_of_a_file_say_why_nothing_was_put_in_and_name_no_variable(from_file):
    for one in from_file.comparisons:
        assert one.transfer_skip_reason
        assert one.transfers_to_other == one.transfers_to_full == ()
        assert {verdict.kind for verdict in one.verdicts} == {"head"}
        assert {verdict.label for verdict in one.verdicts} == {"behavior absent"}
        assert np.isnan(one.mean_interchange_accuracy)
        assert one.explain("L0.H0").verdict.label == "behavior absent"
        with pytest.raises(SiteError):
            one.explain("operation")
    assert "random-init" in from_file.names[1]
    assert from_file.metrics().loc["mean interchange accuracy"].isna().all()
    assert json.dumps(from_file.to_dict())


def test_closed_gates_leave_heads_without_a_verdict_and_keep_the_numbers(from_file):
    table = from_file.table()
    assert (table.drop("new") == "behavior absent").all(axis=None)
    assert np.isfinite(from_file.comparisons[0].mean_pair_score.chance)


# Who is compared with whom.


def test_models_of_one_name_get_unique_names():
    a = fox("template")
    _, found = load_models(a, [a, fox("lexical"), fox("template", 1), fox("lexical", 1)], 0)
    assert [model.name for model in found] == [
        "planted template (2)", "planted lexical", "planted template (3)", "planted lexical (2)",
    ]  # fmt: skip


def test_names_with_brackets_get_unique_names_and_others_stay():
    named = [replace(fox(kind), name=name) for kind, name in
             (("template", "net (a)"), ("lexical", "net (a)"), ("lookup", "net"))]  # fmt: skip
    _, found = load_models(named[0], named[1:], 0)
    assert [model.name for model in found] == ["net (a) (2)", "net"]


def test_a_compared_random_init_model_is_not_a_model_of_the_null():
    _, (net,) = load_models(fox("template"), ["random-init"], 0)
    assert net.name == "planted template random-init 10000"
    assert net.tokenizer is fox("template").tokenizer


def test_one_model_alone_is_refused():
    with pytest.raises(ModelError, match="Only one model was given, 'planted template'"):
        compare_family(fox("template"), [], FOX)


def test_an_unknown_model_or_pattern_is_refused():
    with pytest.raises(ModelError):
        compare(fox("template"), "no such model", FOX)
    with pytest.raises(PatternError, match="unknown"):
        compare(fox("template"), fox("lexical"), "no such pattern")


@pytest.fixture
def references_used(monkeypatch):
    """Replace all measurements, and record which reference models are used for which relative."""
    calls = []
    empty = HeadProfiles("none", (), (), {}, {}, {})

    def spy(pair, shared, references, settings):
        calls.append((pair.other.name, references))
        return made()

    def reference(model, *_, **__):
        return ReferenceModel(model, empty, None, {})

    def measured(model, prompts):
        one = object.__new__(ModelMeasurements)  # With only the fields that are read here.
        known = {
            "model": model,
            "recipient": None,
            "donor": None,
            "paths": {},
            "heads": ModelHeads(model, {}, empty),
        }
        for name, value in known.items():
            object.__setattr__(one, name, value)
        return one

    plan = object.__new__(ComparisonPrompts)
    object.__setattr__(plan, "folds", None)
    object.__setattr__(plan, "paths", PathPrompts({}, {}))
    object.__setattr__(plan, "seed", 0)
    monkeypatch.setattr(relatives, "sample_comparison_prompts", lambda *_: plan)
    monkeypatch.setattr(relatives, "measure_model", measured)
    monkeypatch.setattr(
        nulls, "prepare_nulls", lambda like, *_, **__: NullGroup(like, (), None, None, None)
    )
    monkeypatch.setattr(nulls, "measure_null", lambda *_, **__: NullDraw(None, None, {}, {}))
    monkeypatch.setattr(relatives, "measure_reference", reference)
    monkeypatch.setattr(relatives, "assemble_comparison", spy)
    return calls


def test_a_control_is_used_for_the_relative_of_its_shape(references_used):
    models = [load(name) for name in ("full", "distilled", "distilled-narrow")]
    compare_family(
        models[0], models[1:], settings=ComparisonSettings(nulls=1, negative_controls=[])
    )
    assert [name for name, _ in references_used] == ["distilled", "distilled-narrow"]
    for _, references in references_used:
        assert {name: one.name for name, one in references.same_shape.items()} == {
            "distilled": "scratch"
        }


def test_a_control_that_is_compared_itself_is_measured_once(references_used, monkeypatch):
    measured = []
    monkeypatch.setattr(
        relatives, "measure_reference", lambda model, *_, **__: measured.append(model.name)
    )
    compare_family(
        load("full"),
        [load("distilled"), load("scratch"), load("full-b")],
        settings=ComparisonSettings(nulls=1, negative_controls=[]),
    )
    assert measured == []
    (_, references), *_ = references_used
    assert (references.other_seed.name, references.same_shape["distilled"].name) == (
        "full-b",
        "scratch",
    )


def test_all_negative_controls_that_are_given_are_used(references_used):
    controls = [fox("lexical", 1), fox("lexical", 2)]
    compare_family(
        fox("template"),
        [fox("lexical")],
        FOX,
        ComparisonSettings(nulls=1, negative_controls=controls),
    )
    ((_, references),) = references_used
    assert [one.model.bridge for one in references.negative_controls] == [
        one.bridge for one in controls
    ]
    names = [one.name for one in references.negative_controls]
    assert len({*names, "planted template", "planted lexical"}) == 4


def test_another_seed_of_the_same_name_is_another_model(references_used):
    """Two folders can share their last part."""
    other = fox("template", 1)
    assert other.name == fox("template").name
    compare_family(
        fox("template"),
        [fox("lexical")],
        FOX,
        ComparisonSettings(nulls=1, other_seed=other, negative_controls=[]),
    )
    ((_, references),) = references_used
    assert references.other_seed.model.bridge is other.bridge


def test_a_negative_control_with_the_other_seeds_name_is_another_model(references_used):
    compare_family(
        fox("template"),
        [fox("lexical")],
        FOX,
        ComparisonSettings(nulls=1, other_seed=fox("lookup", 1), negative_controls=[fox("lookup")]),
    )
    ((_, references),) = references_used
    assert references.other_seed.model.bridge is fox("lookup", 1).bridge
    assert [one.model.bridge for one in references.negative_controls] == [fox("lookup").bridge]


def test_a_relative_that_is_also_a_negative_control_keeps_its_name(references_used):
    """By its name it is left out of its own negative controls."""
    compare_family(
        fox("template"),
        [fox("lexical")],
        FOX,
        ComparisonSettings(nulls=1, negative_controls=[fox("lexical"), fox("lookup")]),
    )
    ((name, references),) = references_used
    assert [one.name for one in references.negative_controls] == [name, "planted lookup"]


def test_the_reference_models_are_those_that_the_provenance_names(references_used):
    compare_family(
        load("full"), [load("distilled"), load("copying")], settings=ComparisonSettings(nulls=1)
    )
    ((_, references), _) = references_used
    assert references.other_seed.name == "full-b"
    assert {name: one.name for name, one in references.same_shape.items()} == {
        "distilled": "scratch"
    }
    assert [one.name for one in references.negative_controls] == ["permuted"]


def test_any_model_can_name_its_reference_models(references_used):
    made = Provenance(
        "trained", "", StorageCost(1.0, 1.0, 1.0),
        other_seed="scratch", negative_control=["permuted", "copying"],
    )  # fmt: skip
    own = replace(fox("template"), provenance=made)
    compare_family(own, [replace(fox("lexical"), provenance=replace(made, control="full"))], FOX)
    ((name, references),) = references_used
    assert references.other_seed.name == "scratch"
    assert {name: one.name for name, one in references.same_shape.items()} == {name: "full"}
    assert [one.name for one in references.negative_controls] == ["permuted", "copying"]


def test_models_without_provenance_have_no_reference_models(references_used):
    compare_family(fox("template"), [fox("lexical")], FOX, ComparisonSettings(nulls=1))
    ((_, references),) = references_used
    assert (
        references.other_seed,
        dict(references.same_shape),
        list(references.negative_controls),
    ) == (
        None,
        {},
        [],
    )


def test_zero_random_init_models_are_refused_before_anything_is_measured(references_used):
    with pytest.raises(ModelError, match="nulls"):
        compare_family(fox("template"), [fox("lexical")], FOX, ComparisonSettings(nulls=0))
    assert not references_used


# Comparisons repeated with other prompts.


def repeated(*labels_of_heads):
    """Comparison whose head L0.H0 has each of the labels in turn, if it has a verdict."""
    every = [
        (made(verdicts=(*made().verdicts[:2], *([head("L0.H0", label)] if label else []))),)
        for label in labels_of_heads
    ]
    return gather_repeats(every).comparisons[0]


@pytest.mark.parametrize(
    ("labels", "stability", "counts"),
    [
        (("kept", "kept", "kept"), 1.0, "3 of 3 verdicts on heads are decided; of 1 heads with a "
         "decided one, 1 have no other decided one, 1 the same verdict in all."),
        (("kept", "cannot tell", "kept"), 2 / 3, "2 of 3 verdicts on heads are decided; of 1 heads "
         "with a decided one, 1 have no other decided one, 0 the same verdict in all."),
        (("kept", "lost", "cannot tell"), 1 / 3, "2 of 3 verdicts on heads are decided; of 1 heads "
         "with a decided one, 0 have no other decided one, 0 the same verdict in all."),
        (("kept", "", "kept"), 2 / 3, "2 of 2 verdicts on heads are decided; of 1 heads with a "
         "decided one, 1 have no other decided one, 0 the same verdict in all."),
    ],
)  # fmt: skip
def test_repeated_comparisons_say_which_verdicts_hold(labels, stability, counts):
    found = repeated(*labels)
    assert found.stability()["L0.H0"] == pytest.approx(stability)
    assert found.stability()["op"] == 1.0
    assert f"3 comparisons with other prompts: {counts}" in found.summary()
    row = found.repeat_table().set_index("subject").loc["L0.H0"]
    assert [row["1"], row["2"], row["3"]] == [label or "no verdict" for label in labels]


def test_the_verdict_of_a_repeated_comparison_is_that_of_its_first_prompts(tmp_path):
    found = repeated("kept", "lost")
    assert found.verdict("L0.H0").label == "kept"
    assert Comparison.load(found.save(tmp_path / "found.json")).repeats == found.repeats
    assert "2 comparisons with other prompts" in found.picture().body
    assert "2 comparisons with other prompts" in FamilyComparison((found,)).picture().body


def test_repeats_have_seeds_of_their_own_and_the_first_is_the_comparison_itself(monkeypatch):
    seeds = []

    def once(models, chosen, references, settings, plan):
        seeds.append(settings.seed)
        labels = ["kept", "lost", "lost"]
        return tuple(
            made(seed=settings.seed, verdicts=(head("L0.H0", labels[len(seeds) - 1]),))
            for _ in models[1:]
        )

    monkeypatch.setattr(relatives, "_compare_once", once)
    found = compare(fox("template"), fox("lookup"), FOX, ComparisonSettings(seed=5, repeats=3))
    assert seeds[0] == found.seed == 5
    assert len({*seeds}) == 3
    assert found.verdict("L0.H0").label == "kept"
    assert found.repeats == (RepeatedVerdict("head", "L0.H0", ("kept", "lost", "lost")),)


def test_fewer_than_one_comparison_is_refused():
    with pytest.raises(ModelError, match="repeats=0 found"):
        compare(fox("template"), rotated(), FOX, ComparisonSettings(repeats=0))
