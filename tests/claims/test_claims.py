"""Tests, verdicts and claims: rules on numbers that are set by hand, both ways each."""

import math

import numpy as np
import pytest

from probes.claims.base_model import bootstrap_head_overlap, reuse_claim
from probes.claims.definitions import TITLES
from probes.claims.dose_response import (
    dose_response_rows,
    read_dose_rows,
    read_series,
    training_diversity_claim,
)
from probes.claims.result import BaseModelComparison, JointSite
from probes.claims.separate_path import separate_path_claim
from probes.claims.shared_state import (
    SharedStateEvidence,
    joint_state_claim,
    shared_direction_claim,
    shared_state_claim,
)
from probes.files import write_rows
from probes.interventions.dissociation import HeadShifts
from probes.interventions.hotspots.result import Hotspot, Hotspots
from probes.interventions.result import (
    ControlAccuracy,
    DASResult,
    DecodingResult,
    DirectionComparison,
    Dissociation,
    InterchangeEffect,
    Necessity,
    OutputHeads,
    UnseenVerbs,
)
from probes.models.files.provenance import Provenance, StorageCost
from probes.models.site import Site
from probes.stats.evidence import (
    behavior_absent,
    check_above,
    check_below,
    check_within,
    claim_verdict,
    skipped_test,
)
from probes.stats.intervals import Estimate

YES, NO = Estimate(0.95, 0.9, 0.97), Estimate(0.02, 0.0, 0.06)
HALF, NONE = Estimate(0.5, 0.4, 0.6), Estimate(0.0, -0.02, 0.02)
SURE = Estimate(1.0, 0.95, 1.0)


def bare(kind, **values):
    """A result of which only these attributes are looked at."""
    made = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def find_test(verdict, id):
    (found,) = (test for test in verdict.tests if test.id == id)
    return found


# Tests of one number.


@pytest.mark.parametrize(
    ("low", "high", "is_above", "is_below"),
    [
        (0.6, 0.9, True, False),
        (0.1, 0.4, False, True),
        (0.4, 0.6, None, None),
        (0.5, 0.9, None, False),  # An interval that ends at the threshold: it is not below it.
        (0.1, 0.5, False, None),
        (0.5, 0.5, False, False),
        (math.nan, math.nan, None, None),
    ],
)
def test_a_number_is_above_or_below_a_threshold_with_its_whole_interval_or_it_is_undecided(
    low, high, is_above, is_below
):
    value = Estimate((low + high) / 2, low, high)
    assert check_above("n", "s", value, 0.5, id="n").passed is is_above
    assert check_below("n", "s", value, 0.5, id="n").passed is is_below


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.05, 0.05, True),
        (-0.1, 0.1, True),
        (-0.2, 0.05, None),
        (0.05, 0.2, None),
        (-0.3, 0.3, None),
        (0.1, 0.3, None),
        (0.11, 0.3, False),
        (-0.3, -0.11, False),
        (math.nan, math.nan, None),
    ],
)
def test_a_difference_is_none_only_where_its_whole_interval_is_within_the_margin(
    low, high, expected
):
    found = check_within("n", "s", Estimate(0.0, low, high), 0.1, id="n")
    assert found.passed is expected
    assert found.threshold == "within ±0.10"


@pytest.mark.parametrize(
    ("low", "high", "meaning"),
    [
        (-0.3, -0.2, "too low"),
        (0.2, 0.3, "too high"),
        (0.0, 0.2, "below: too low; above: too high"),
        (-0.05, 0.05, "below: too low; above: too high"),
    ],
)
def test_an_equivalence_test_that_fails_gives_the_meaning_of_its_side(low, high, meaning):
    found = check_within("n", ("too low", "too high"), Estimate(0.0, low, high), 0.1, id="n")
    assert found.meaning_if_failed == meaning


# From tests to a verdict.


GOOD = check_above("good", "no", YES, 0.5, id="good")
BAD = check_above("bad", "it is bad", NO, 0.5, id="bad")
OPEN = check_above("open", "no", HALF, 0.5, id="open")
GONE = skipped_test("gone", "why", id="gone")


@pytest.mark.parametrize(
    ("tests", "word", "reason"),
    [
        ([GOOD, GOOD], "holds", "all 2 tests passed"),
        ([GOOD, OPEN], "cannot tell", "undecided: open (0.50 [0.40, 0.60])"),
        ([GOOD, OPEN, BAD], "fails", "bad: it is bad"),
        ([GOOD, GONE, BAD], "fails", "bad: it is bad"),
        ([GOOD, GONE], "cannot tell", "undecided: gone (why)"),
        ([GOOD, GONE.non_deciding()], "holds", "its one test passed"),
        (
            [GONE.non_deciding()],
            "cannot tell",
            "nothing could be tested",
        ),
        ([], "cannot tell", "nothing could be tested"),
    ],
)
def test_a_failed_test_decides_before_an_undecided_one_and_that_before_passed_ones(
    tests, word, reason
):
    found = claim_verdict("H1", "title", tests)
    assert found.label == word
    assert reason in found.reason
    assert found.tests == tuple(tests)


def test_a_test_that_does_not_decide_is_shown_and_changes_no_verdict():
    beside = check_above("beside", "no", NO, 0.5, id="beside").non_deciding()
    found = claim_verdict("H1", "title", [GOOD, beside])
    assert (found.label, beside.passed) == ("holds", False)
    assert beside in found.tests


def test_an_absent_behavior_is_neither_held_nor_failed():
    found = behavior_absent("H1", "title", "it cannot count")
    assert (found.label, found.reason, found.tests) == ("behavior absent", "it cannot count", ())


# H1a.


GROUPS = ("new objects", "other objects", "other sums")


def make_hotspots(**values):
    """Hotspots of operation, x, y and thing in a model that is always right."""
    groups: dict[str, Estimate] = dict.fromkeys(GROUPS, SURE)
    site = Site(1, "resid", "op")
    given = {"other_object": SURE, "same_object": SURE, "difference": NONE, "unseen_groups": groups}
    hotspot = Hotspot("operation", site, **given | values)
    thresholds = dict.fromkeys(("operation", "x", "y", "thing", "operation + x + y"), 0.1)
    return bare(Hotspots, hotspots=(hotspot,), thresholds=thresholds, accuracy=(SURE, SURE))


READ, UNREAD = DecodingResult(0.9, 0.2, 8), DecodingResult(0.2, 0.2, 8)
PAIRS = {"lose / find": SURE, "sell / buy": SURE}
UNSEEN = UnseenVerbs(SURE, NO, Estimate(0.9, 0.8, 1.0), (("lose",), ("sell",)), PAIRS)
SEARCH = bare(DASResult, random_init=NO)


def h1a(**changes):
    given = {
        "hotspots": make_hotspots(),
        "object_decoding": READ,
        "unseen_verbs": UNSEEN,
        "subspace_search": SEARCH,
        "operation_free_accuracy": ControlAccuracy(SURE, 60, 64),
        "distractor_accuracy": ControlAccuracy(SURE, 60, 64),
    } | changes
    return shared_state_claim(SharedStateEvidence(**given))


def test_one_state_holds_where_all_tests_pass():
    assert h1a().label == "holds"
    assert h1a(operation_free_accuracy=None, distractor_accuracy=None).label == "holds"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"hotspots": make_hotspots(other_object=NO, difference=YES)},
            "same and other objects are equal: the state changes the operation only, or more "
            "often, between prompts about one object",
        ),
        (
            {"hotspots": make_hotspots(difference=Estimate(-0.9, -1.0, -0.8))},
            "same and other objects are equal: the state changes the operation more often between "
            "prompts about two objects",
        ),
        ({"hotspots": make_hotspots(unseen_groups={"other sums": NO})}, "other sums: "),
        ({"hotspots": make_hotspots(unseen_groups={"new objects": NO})}, "new objects: "),
        ({"hotspots": make_hotspots(same_object=NO)}, "no site changes the operation"),
        ({"hotspots": make_hotspots(same_object=HALF)}, "no site changes the operation"),
        (
            {"unseen_verbs": UnseenVerbs(NO, NO, NONE, (), {"sell / buy": NO})},
            "unseen verbs sell / buy: ",
        ),
        (
            {"unseen_verbs": UnseenVerbs(SURE, SURE, Estimate(0.0, -0.1, 0.0), (), PAIRS)},
            "gain over the token embedd",
        ),
        ({"subspace_search": bare(DASResult, random_init=YES)}, "search in a random-init model"),
        (
            {"operation_free_accuracy": ControlAccuracy(NO, 20, 64)},
            "question without the operation (20 of 64 answers are right before the interchange): ",
        ),
        (
            {"distractor_accuracy": ControlAccuracy(NO, 20, 64)},
            "distractor sentence (20 of 64 answers are right without it): ",
        ),
    ],
)
def test_each_failed_test_alone_fails_it_and_is_named(changes, reason):
    found = h1a(**changes)
    assert found.label == "fails"
    assert reason in found.reason


@pytest.mark.parametrize("control", ["operation_free_accuracy", "distractor_accuracy"])
def test_a_control_with_few_answers_that_are_right_without_it_leaves_it_undecided(control):
    few = h1a(**{control: ControlAccuracy(NO, 19, 64)})
    assert few.label == "cannot tell"
    assert "19 of 64 answers are right" in few.reason
    assert "and 20 are needed" in few.reason
    assert find_test(few, control).passed is None


def test_one_pair_of_verbs_without_the_state_fails_it_whatever_the_mean():
    mean = Estimate(0.83, 0.77, 0.88)
    verbs = UnseenVerbs(mean, NO, Estimate(0.8, 0.7, 0.9), (), PAIRS | {"drop / get": NO})
    found = h1a(unseen_verbs=verbs)
    assert found.label == "fails"
    assert found.reason.startswith("unseen verbs drop / get: ")


def test_a_pair_of_verbs_with_few_prompts_leaves_it_undecided():
    few = Estimate(1.0, 0.68, 1.0)
    found = h1a(unseen_verbs=UnseenVerbs(SURE, NO, SURE, (), PAIRS | {"drop / get": few}))
    assert found.label == "cannot tell"
    assert found.reason == "undecided: unseen verbs drop / get (1.00 [0.68, 1.00])"


@pytest.mark.parametrize("changes", [{"unseen_verbs": None}, {"object_decoding": UNREAD}])
def test_it_is_undecided_with_too_few_verbs_or_where_no_object_can_be_decoded(changes):
    assert h1a(**changes).label == "cannot tell"


def test_only_a_model_whose_provenance_says_so_has_held_out_objects_and_sums():
    def names(verdict):
        return [find_test(verdict, id).name for id in ("untrained_objects", "untrained_cells")]

    assert names(h1a()) == ["other objects", "other sums"]
    assert names(h1a(held_out=("noun",))) == ["held-out objects", "other sums"]
    assert names(h1a(held_out=("cell", "noun"))) == ["held-out objects", "held-out sums"]


# H1b.


def h1b(*, alone=SURE, new_numbers=20, **changes):
    variables = {"operation": SURE, "x": SURE, "y": SURE} | changes
    site = Site(2, "resid", "rest")
    joint = JointSite(site, "operation + x + y", variables, SURE, new_numbers, alone)
    return joint_state_claim(joint, make_hotspots())


def test_operation_and_operands_meet_where_one_site_gives_all_of_them():
    assert h1b().label == "holds"
    assert [test.id for test in h1b().tests][:3] == ["joint_operation", "joint_x", "joint_y"]


@pytest.mark.parametrize("variable", ["operation", "x", "y"])
def test_a_variable_that_is_missing_there_fails_it(variable):
    found = h1b(**{variable: NO})
    assert found.label == "fails"
    assert found.reason.startswith(f"{variable} at L2.resid@rest: not taken at the best site")


@pytest.mark.parametrize("alone", [NO, HALF])
def test_a_state_that_may_hold_the_result_only_leaves_it_undecided(alone):
    found = h1b(alone=alone)
    assert found.label == "cannot tell"
    assert "undecided: more than the result at L2.resid@rest" in found.reason
    assert "may hold only the result" in find_test(found, "joint_operation_alone").meaning_if_failed
    assert h1b(alone=alone, x=NO).label == "fails"


def test_a_subspace_that_was_measured_on_the_numbers_of_its_fit_leaves_it_undecided():
    found = h1b(new_numbers=19, alone=None)
    assert found.label == "cannot tell"
    assert "not fitted on the numbers of 19 bases, and 20 are needed" in found.reason
    assert h1b(new_numbers=0, alone=None, x=NO).label == "fails"


# H2.


def dissociated(**changes):
    values = {"number": SURE, "noun": NO, "thing_number": NO, "thing_noun": SURE}
    v = (
        values
        | {"crossover": Estimate(3.0, 2.0, 4.0), "one_place": Estimate(2.0, 1.0, 3.0)}
        | changes
    )
    operation = InterchangeEffect("operation", v["number"], v["noun"])
    thing = InterchangeEffect("thing", v["thing_number"], v["thing_noun"])
    return Dissociation(operation, thing, v["crossover"], v["one_place"])


NECESSITY = Necessity(YES, NONE, Estimate(2.0, 1.0, 3.0), (0.0, 0.1))
HEADS = OutputHeads(("L1.H0",), ("L1.H1",), (NO, SURE), (SURE, NO), (SURE, NO), {})


def test_a_path_of_its_own_holds_with_one_thing_and_with_two():
    assert separate_path_claim(dissociated(), None, NECESSITY, HEADS).label == "holds"
    assert separate_path_claim(dissociated(), dissociated(), NECESSITY, HEADS).label == "holds"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"thing_noun": NO}, "no site changes the noun"),
        ({"thing_number": YES}, "the object's site changes the number"),
        ({"noun": YES}, "the operation's site changes the noun"),
        (
            {"crossover": Estimate(-1.0, -2.0, -0.5)},
            "changes the other's answer as much as its own",
        ),
    ],
)
def test_a_path_that_is_shared_fails_it(changes, reason):
    found = separate_path_claim(dissociated(**changes), None, NECESSITY, HEADS)
    assert found.label == "fails"
    assert reason in found.reason


@pytest.mark.parametrize(
    ("below", "passed", "label"),
    [
        (20, True, "holds"),
        (19, None, "cannot tell"),
        (11, None, "cannot tell"),
        (10, False, "fails"),  # The median of the null is the excess itself.
        (9, False, "fails"),
        (0, False, "fails"),
    ],
)
def test_random_subspaces_refute_a_path_only_where_most_of_them_cost_as_much(below, passed, label):
    excesses = (1.0,) * below + (3.0,) * (20 - below)
    necessity = Necessity(YES, NONE, Estimate(2.0, 1.0, 3.0), excesses)
    found = separate_path_claim(dissociated(), None, necessity, HEADS)
    assert (find_test(found, "necessity_percentile").passed, found.label) == (passed, label)


def test_heads_that_write_both_are_named_and_no_heads_leave_it_undecided():
    both = OutputHeads(("L1.H1",), ("L1.H1",), (NO, NO), (NO, NO), (NO, NO), {})
    found = separate_path_claim(dissociated(), None, NECESSITY, both)
    assert found.label == "fails"
    assert "L1.H1 writes both" in found.reason
    none = OutputHeads((), (), (SURE, SURE), (SURE, SURE), (SURE, SURE), {})
    assert separate_path_claim(dissociated(), None, NECESSITY, none).label == "cannot tell"


# H3.


def compared(raw, rotated, difference, gain):
    return DirectionComparison(SURE, raw, rotated, difference, gain, (), ())


def test_objects_that_cannot_be_compared_leave_it_undecided_with_the_reason():
    found = shared_direction_claim(None, "no two nouns are as long")
    assert found.label == "cannot tell"
    assert "no two nouns are as long" in found.reason


def test_one_direction_for_all_objects_holds_or_only_up_to_a_rotation():
    assert shared_direction_claim(compared(SURE, SURE, NONE, NONE)).label == "holds"
    found = shared_direction_claim(compared(NO, SURE, YES, YES))
    assert found.label == "fails"
    assert "up to a rotation" in found.reason
    found = shared_direction_claim(compared(NO, NO, YES, NONE))
    assert found.label == "fails"
    assert "rotat" not in found.reason


# H4.


def comparison(**changes):
    given = {
        "base": "a",
        "tuned": "b",
        "own_direction": SURE,
        "base_direction": SURE,
        "difference": NONE,
        "base_state": SURE,
        "random_init_direction": NO,
        "base_heads": ("L0.H0",),
        "tuned_heads": ("L1.H0",),
        "head_overlap": Estimate(0.0, 0.0, 0.2),
        "null_head_overlaps": (0.0, 0.25),
    } | changes
    return BaseModelComparison(**given)


def test_reuse_has_the_state_and_direction_of_the_base_model_and_other_heads():
    assert reuse_claim(comparison()).label == "holds"
    assert reuse_claim(comparison(head_overlap=YES)).label == "fails"
    assert reuse_claim(comparison(difference=YES)).label == "fails"
    assert reuse_claim(comparison(base_state=NO)).label == "fails"
    assert reuse_claim(comparison(random_init_direction=YES)).label == "fails"
    found = reuse_claim(None, "none was named")
    assert found.label == "cannot tell"
    assert found.tests[0].meaning_if_failed == "none was named"


def test_a_base_direction_that_works_better_is_no_reuse_and_has_a_reason_of_its_own():
    better = reuse_claim(comparison(difference=Estimate(-0.5, -0.6, -0.4)))
    assert better.label == "fails"
    assert "its own, which is poorly fitted" in better.reason
    assert "does not work" in reuse_claim(comparison(difference=YES)).reason


def test_shared_heads_are_undecided_where_their_interval_includes_the_threshold():
    wide = reuse_claim(comparison(head_overlap=Estimate(0.33, 0.2, 0.6)))
    assert (wide.label, wide.reason) == (
        "cannot tell",
        "undecided: overlap of output heads (Jaccard) (0.33 [0.20, 0.60])",
    )
    null = find_test(wide, "null_head_overlap")
    assert (null.name, null.threshold) == (
        "overlap above that with 2 random-init models",
        "above 0.25",
    )
    assert not null.is_deciding
    assert find_test(reuse_claim(comparison(base_heads=())), "new_readout_heads").value is None


def head_shifts_of(*rows):
    """Shifts of heads by prompt, where the clean logit difference is 1."""
    shifts = np.array(rows, dtype=float)
    return HeadShifts(tuple(f"L0.H{n}" for n in range(len(rows))), shifts, np.ones(shifts.shape[1]))


def test_the_overlap_of_output_heads_has_a_bootstrap_interval_over_prompts():
    sure, never = [1.0] * 20, [0.0] * 20
    same = bootstrap_head_overlap(head_shifts_of(sure, never), head_shifts_of(sure, never), seed=0)
    assert same == Estimate(1.0, 1.0, 1.0)
    other = bootstrap_head_overlap(head_shifts_of(sure, never), head_shifts_of(never, sure), seed=0)
    assert other == Estimate(0.0, 0.0, 0.0)
    # The second head reaches the threshold, a fifth of the logit difference, in half of the draws.
    some = [2.0, 2.0] + [0.0] * 18
    found = bootstrap_head_overlap(head_shifts_of(sure, some), head_shifts_of(sure, never), seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 1.0)


# H5.


def dose(nouns, value, *, spread=0.05, accuracy=1.0):
    return {
        "nouns": float(nouns),
        "number": accuracy,
        "unseen_interchange_accuracy": value,
        "unseen_interchange_accuracy_low": value - spread,
        "unseen_interchange_accuracy_high": value + spread,
    }


def seeds(nouns, *values, **options):
    return [dose(nouns, value, **options) for value in values]


FEW, MANY = seeds(2, 0.30, 0.31, 0.29), seeds(40, 0.90, 0.91, 0.89)


def test_many_objects_matter_where_three_seeds_each_do_better_than_with_few():
    found = training_diversity_claim([*MANY, *FEW, *seeds(8, 0.50, 0.51, 0.49)])
    assert found.label == "holds"
    value = find_test(found, "dose_response").value
    # Student's t of three models, and the mean of three intervals over prompts; twice.
    error = math.hypot(4.3027 * 0.01 / math.sqrt(3), 0.05 / math.sqrt(3)) * math.sqrt(2)
    assert value.value == pytest.approx(0.6)
    assert (value.low, value.high) == pytest.approx((0.6 - error, 0.6 + error), abs=1e-4)


def test_a_response_in_the_wrong_direction_or_none_fails_it_and_a_vague_one_is_undecided():
    assert training_diversity_claim(
        [*seeds(2, 0.9, 0.9, 0.9), *seeds(40, 0.3, 0.3, 0.3)]
    ).label == ("fails")
    equal = [*seeds(2, *[0.9] * 3, spread=0.02), *seeds(40, *[0.9] * 3, spread=0.02)]
    assert training_diversity_claim(equal).label == "fails"
    vague = [*seeds(2, 0.3, 0.5, 0.7), *seeds(40, 0.6, 0.8, 1.0)]
    assert training_diversity_claim(vague).label == "cannot tell"


def test_a_response_that_falls_between_two_doses_fails_it():
    found = training_diversity_claim([*FEW, *seeds(8, 0.10, 0.11, 0.09), *MANY])
    assert found.label == "fails"
    assert found.reason.startswith("smallest step from fewer to more objects: the response falls")


@pytest.mark.parametrize("rows", [seeds(2, 0.3), seeds(2, 0.3, 0.3), seeds(2, 0.9)])
def test_fewer_than_three_seeds_of_a_dose_decide_nothing(rows):
    found = training_diversity_claim([*rows, *MANY])
    assert found.label == "cannot tell"
    assert f"{len(rows)} model" in found.reason
    assert "3 seeds are needed" in found.reason
    assert not find_test(found, "dose_response").is_deciding


def test_doses_without_the_behavior_are_named_and_have_no_response():
    absent = [*seeds(1, 0.0, 0.0, 0.0, accuracy=0.01), *seeds(2, 0.1, 0.1, 0.1, accuracy=0.34)]
    found = training_diversity_claim([*absent, *MANY])
    assert found.label == "cannot tell"
    assert find_test(found, "dose_1").meaning_if_failed == "behavior absent: accuracy 0.01"
    assert "accuracy 0.01 with 1 object, accuracy 0.34 with 2 objects" in found.reason
    assert training_diversity_claim([*absent, *FEW, *MANY]).label == "holds"


@pytest.mark.parametrize("rows", [[], [dose(2, 0.5)]])
def test_a_dose_without_another_is_undecided(rows):
    assert training_diversity_claim(rows).label == "cannot tell"


def test_the_side_of_an_interval_that_is_wider_is_the_one_that_counts():
    few = dose(2, 0.0) | {
        "unseen_interchange_accuracy_low": 0.0,
        "unseen_interchange_accuracy_high": 0.2,
    }
    many = dose(9, 1.0) | {
        "unseen_interchange_accuracy_low": 0.9,
        "unseen_interchange_accuracy_high": 1.0,
    }
    value = find_test(training_diversity_claim([few, many]), "dose_response").value
    assert value.low == pytest.approx(1 - math.hypot(0.1, 0.2))
    assert value.high == 1


@pytest.mark.parametrize(
    ("held_out", "is_member"), [(("cell", "noun"), True), (("cell",), False), ((), False)]
)
def test_the_series_holds_for_models_with_the_same_held_out_objects_in_their_provenance(
    held_out, is_member
):
    cost = StorageCost(1.0, 1.0, 1.0)
    made = Provenance("trained", "", cost, held_out=held_out)
    assert dose_response_rows(made) == (read_dose_rows() if is_member else [])
    assert dose_response_rows(None) == []


def test_the_shipped_series_has_one_dose_with_the_behavior_and_decides_nothing():
    found = training_diversity_claim(read_dose_rows())
    assert found.label == "cannot tell"
    assert [test.id for test in found.tests][:3] == ["dose_1", "dose_4", "dose_12"]
    assert "fewer than two numbers of objects give the behavior" in found.reason


# The table of series.


def test_a_table_of_series_is_read_as_it_was_written(tmp_path):
    rows = [
        {
            "model": "dose-2",
            "kind": "dose",
            "nouns": 2.0,
            "unseen_interchange_accuracy": 0.25,
            "site": "L1.resid@op",
        }
    ]
    write_rows(rows, tmp_path / "series.csv")
    assert read_series(tmp_path / "series.csv") == rows
    assert read_series(tmp_path / "none.csv") == []


def test_claims_have_a_title_each():
    assert list(TITLES) == ["H1a", "H1b", "H2", "H3", "H4", "H5"]


def test_the_shipped_series_has_every_dose_and_several_seeds():
    rows = read_series()
    assert [row["nouns"] for row in rows if row["kind"] == "dose"] == [1, 4, 12, 40]
    assert len([row for row in rows if row["kind"] == "scratch"]) >= 4
    assert all(
        0
        <= float(row["unseen_interchange_accuracy_low"])
        <= float(row["unseen_interchange_accuracy_high"])
        <= 1
        for row in rows
    )
