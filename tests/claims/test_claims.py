"""Tests, verdicts and claims: rules on numbers that are set by hand, both ways each."""

import math

import pytest

from probes.claims import claims
from probes.claims.dose_response import read_series
from probes.claims.result import BaseModelComparison
from probes.files import write_rows
from probes.interventions.hotspot_result import Hotspot, Hotspots
from probes.interventions.result import (
    DASResult,
    DecodingResult,
    DirectionComparison,
    Dissociation,
    InterchangeEffect,
    Necessity,
    OutputHeads,
    UnseenVerbs,
)
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


def passed(verdict, start):
    (found,) = (test for test in verdict.tests if test.name.startswith(start))
    return found.passed


# Tests of one number.


@pytest.mark.parametrize(
    ("low", "high", "is_above", "is_below"),
    [
        (0.6, 0.9, True, False),
        (0.1, 0.4, False, True),
        (0.4, 0.6, None, None),
        (0.5, 0.9, None, False),  # An interval that ends at the bar: it is not below it.
        (0.1, 0.5, False, None),
        (0.5, 0.5, False, False),
        (math.nan, math.nan, None, None),
    ],
)
def test_a_number_is_above_or_below_a_bar_with_its_whole_interval_or_not_surely(
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


# From tests to a verdict.


GOOD = check_above("good", "no", YES, 0.5, id="good")
BAD = check_above("bad", "it is bad", NO, 0.5, id="bad")
OPEN = check_above("open", "no", HALF, 0.5, id="open")
GONE = skipped_test("gone", "why", id="gone")


@pytest.mark.parametrize(
    ("tests", "word", "reason"),
    [
        ([GOOD, GOOD], "holds", "all 2 tests passed"),
        ([GOOD, OPEN], "cannot tell", "undecided: open"),
        ([GOOD, OPEN, BAD], "fails", "bad: it is bad"),
        ([GOOD, GONE, BAD], "fails", "bad: it is bad"),
        ([GOOD, GONE], "cannot tell", "undecided: gone"),
        ([GOOD, GONE.non_deciding()], "holds", "its one test passed"),
        (
            [GONE.non_deciding()],
            "cannot tell",
            "nothing could be tested",
        ),
        ([], "cannot tell", "nothing could be tested"),
    ],
)
def test_what_speaks_against_a_claim_beats_what_is_open_and_that_beats_what_holds(
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


# H1.


GROUPS = ("new objects", "untrained objects", "untrained cells")


def spots(**values):
    """Spots of operation, x, y and thing, all of which hold unless told otherwise."""
    groups: dict[str, Estimate] = dict.fromkeys(GROUPS, SURE)
    found = {
        "other_object": SURE,
        "same_object": SURE,
        "difference": NONE,
        "unseen_groups": groups,
    } | values
    cell = Site(1, "resid", "op")
    first = Hotspot("operation", cell, **found)
    rest = [Hotspot(v, cell, SURE, SURE, NONE, groups) for v in ("x", "y", "thing")]
    return bare(Hotspots, hotspots=(first, *rest), thresholds=dict.fromkeys("xy", 0.1) | BARS)


BARS = {"operation": 0.1, "thing": 0.1}
READ, UNREAD = DecodingResult(0.9, 0.2, 8), DecodingResult(0.2, 0.2, 8)
UNSEEN = UnseenVerbs(SURE, NO, Estimate(0.9, 0.8, 1.0), (("lose",), ("sell",)))
SEARCH = bare(DASResult, random_init=NO)


def h1(**changes):
    given = {
        "hotspots": spots(),
        "object_decoding": READ,
        "unseen_verbs": UNSEEN,
        "subspace_search": SEARCH,
        "operation_free_accuracy": SURE,
        "distractor_accuracy": SURE,
    } | changes
    return claims.shared_state_claim(**given)


def test_one_state_whatever_the_object_holds_where_all_speaks_for_it():
    assert h1().label == "holds"
    assert h1(operation_free_accuracy=None, distractor_accuracy=None).label == "holds"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hotspots": spots(other_object=NO, difference=YES)}, "same and other objects alike"),
        ({"hotspots": spots(unseen_groups={"untrained cells": NO})}, "untrained cells: "),
        ({"hotspots": spots(unseen_groups={"new objects": NO})}, "new objects: "),
        ({"hotspots": spots(other_object=NO, same_object=NO)}, "no site hands over operation"),
        ({"unseen_verbs": UnseenVerbs(NO, NO, NONE, ())}, "verbs not fitted on: "),
        (
            {"unseen_verbs": UnseenVerbs(SURE, SURE, Estimate(0.0, -0.1, 0.0), ())},
            "gain over the token embedd",
        ),
        ({"subspace_search": bare(DASResult, random_init=YES)}, "search in an untrained model"),
        ({"operation_free_accuracy": NO}, "asked for y"),
        ({"distractor_accuracy": NO}, "a verb in vain"),
    ],
)
def test_each_counterevidence_alone_fails_it_and_is_named(changes, reason):
    found = h1(**changes)
    assert found.label == "fails"
    assert reason in found.reason


@pytest.mark.parametrize("changes", [{"unseen_verbs": None}, {"object_decoding": UNREAD}])
def test_it_cannot_be_told_where_verbs_are_few_or_no_object_stands_there(changes):
    assert h1(**changes).label == "cannot tell"


# H2.


def parted(**changes):
    values = {"number": SURE, "noun": NO, "thing_number": NO, "thing_noun": SURE}
    v = (
        values
        | {"crossover": Estimate(3.0, 2.0, 4.0), "one_place": Estimate(2.0, 1.0, 3.0)}
        | changes
    )
    operation = InterchangeEffect("operation", v["number"], v["noun"])
    thing = InterchangeEffect("thing", v["thing_number"], v["thing_noun"])
    return Dissociation(operation, thing, v["crossover"], v["one_place"])


NEEDED = Necessity(YES, NONE, Estimate(2.0, 1.0, 3.0), (0.0, 0.1))
HEADS = OutputHeads(("L1.H0",), ("L1.H1",), (NO, SURE), (SURE, NO), (SURE, NO), {})


def test_a_path_of_its_own_holds_with_one_thing_and_with_two():
    assert claims.separate_path_claim(parted(), None, NEEDED, HEADS).label == "holds"
    assert claims.separate_path_claim(parted(), parted(), NEEDED, HEADS).label == "holds"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"thing_noun": NO}, "nothing moves the noun"),
        ({"thing_number": YES}, "the object's site moves the number"),
        ({"noun": YES}, "the operation's site moves the noun"),
        ({"crossover": Estimate(-1.0, -2.0, -0.5)}, "each other's work"),
    ],
)
def test_a_path_that_is_shared_fails_it(changes, reason):
    found = claims.separate_path_claim(parted(**changes), None, NEEDED, HEADS)
    assert found.label == "fails"
    assert reason in found.reason


def test_heads_that_bring_both_are_named_and_no_heads_leave_it_open():
    both = OutputHeads(("L1.H1",), ("L1.H1",), (NO, NO), (NO, NO), (NO, NO), {})
    found = claims.separate_path_claim(parted(), None, NEEDED, both)
    assert found.label == "fails"
    assert "L1.H1 brings both" in found.reason
    none = OutputHeads((), (), (SURE, SURE), (SURE, SURE), (SURE, SURE), {})
    assert claims.separate_path_claim(parted(), None, NEEDED, none).label == "cannot tell"


# H3.


def aligned(raw, rotated, difference, gain):
    return DirectionComparison(SURE, raw, rotated, difference, gain, (), ())


def test_one_direction_for_all_objects_holds_or_only_up_to_a_rotation():
    assert claims.shared_direction_claim(aligned(SURE, SURE, NONE, NONE)).label == "holds"
    found = claims.shared_direction_claim(aligned(NO, SURE, YES, YES))
    assert found.label == "fails"
    assert "up to a rotation" in found.reason
    found = claims.shared_direction_claim(aligned(NO, NO, YES, NONE))
    assert found.label == "fails"
    assert "rotat" not in found.reason


# H4.


def line(**changes):
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
    } | changes
    return BaseModelComparison(**given)


def test_a_takeover_has_the_state_and_direction_of_before_and_a_new_reader():
    assert claims.reuse_claim(line()).label == "holds"
    assert claims.reuse_claim(line(tuned_heads=("L0.H0",))).label == "fails"
    assert claims.reuse_claim(line(difference=YES)).label == "fails"
    assert claims.reuse_claim(line(base_state=NO)).label == "fails"
    assert claims.reuse_claim(line(random_init_direction=YES)).label == "fails"
    found = claims.reuse_claim(None, "none was named")
    assert found.label == "cannot tell"
    assert found.tests[0].meaning_if_failed == "none was named"


def test_heads_shared_are_counted_over_all_heads():
    found = line(base_heads=("a", "b"), tuned_heads=("b", "c"))
    assert found.head_overlap == pytest.approx(1 / 3)
    assert math.isnan(line(base_heads=(), tuned_heads=()).head_overlap)


# H5.


def dose(nouns, value, *, spread=0.05):
    low, high = value - spread, value + spread
    return {
        "nouns": float(nouns),
        "unseen_interchange_accuracy": value,
        "unseen_interchange_accuracy_low": low,
        "unseen_interchange_accuracy_high": high,
    }


def test_a_template_is_learned_from_many_objects_where_many_do_surely_more_than_few():
    found = claims.training_diversity_claim([dose(40, 0.9), dose(2, 0.3), dose(8, 0.5)])
    assert found.label == "holds"
    value = found.tests[0].value
    assert value is not None
    half = math.hypot(0.05, 0.05)  # Errors of separate models add in squares.
    assert value.value == pytest.approx(0.6)
    assert (value.low, value.high) == pytest.approx((0.6 - half, 0.6 + half))


def test_a_response_in_the_wrong_direction_or_none_fails_it_and_a_vague_one_is_left_open():
    assert claims.training_diversity_claim([dose(2, 0.9), dose(40, 0.3)]).label == "fails"
    assert (
        claims.training_diversity_claim(
            [dose(2, 0.9, spread=0.02), dose(40, 0.9, spread=0.02)]
        ).label
        == "fails"
    )
    assert claims.training_diversity_claim(
        [dose(2, 0.5, spread=0.2), dose(40, 0.8, spread=0.2)]
    ).label == ("cannot tell")


@pytest.mark.parametrize("rows", [[], [dose(2, 0.5)]])
def test_a_dose_without_another_says_nothing(rows):
    assert claims.training_diversity_claim(rows).label == "cannot tell"


def test_an_interval_that_is_wider_on_one_side_is_taken_from_the_side_that_counts():
    few = {
        "nouns": 2.0,
        "unseen_interchange_accuracy": 0.0,
        "unseen_interchange_accuracy_low": 0.0,
        "unseen_interchange_accuracy_high": 0.2,
    }
    many = {
        "nouns": 9.0,
        "unseen_interchange_accuracy": 1.0,
        "unseen_interchange_accuracy_low": 0.9,
        "unseen_interchange_accuracy_high": 1.0,
    }
    value = claims.training_diversity_claim([few, many]).tests[0].value
    assert value is not None
    assert value.low == pytest.approx(1 - math.hypot(0.1, 0.2))
    assert value.high == 1


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
    assert list(claims.TITLES) == ["H1", "H2", "H3", "H4", "H5"]


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
