"""Tests of H1a, H1b and H3: one state, what meets in it, and its direction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from probes.claims.definitions import FEWEST_BASES, MAJORITY, TITLES, near_ceiling
from probes.claims.result import JointSite
from probes.interventions.hotspots.result import Hotspot, Hotspots
from probes.interventions.result import (
    ControlAccuracy,
    DASResult,
    DecodingResult,
    DirectionComparison,
    UnseenVerbs,
)
from probes.interventions.site_search import EQUIVALENCE_MARGIN
from probes.interventions.subspaces.das_search import MAX_RANDOM_INIT_ACCURACY
from probes.prompts.interchange_pairs import OPERATION
from probes.stats.evidence import (
    ClaimVerdict,
    StatisticalTest,
    check_above,
    check_below,
    check_within,
    claim_verdict,
    skipped_test,
)


@dataclass(frozen=True, eq=False)
class SharedStateEvidence:
    """Measurements of H1a.

    Attributes:
        hotspots: Hotspots.
        object_decoding: Decoding of the object at the operation's site.
        unseen_verbs: Directions on verbs that they were not fitted on; None with too few verbs.
        subspace_search: DAS at the operation's site, with its controls.
        operation_free_accuracy: Accuracy of "how many did I take away?" after interchange of the
            operation at the same site, where it is right before; None if the model cannot answer
            it.
        distractor_accuracy: Accuracy behind a distractor sentence with the opposite verb, where it
            is right without one; None if the pattern has no such sentence.
        held_out: What the model's training left out, by its provenance; see `Provenance`.
    """

    hotspots: Hotspots
    object_decoding: DecodingResult
    unseen_verbs: UnseenVerbs | None
    subspace_search: DASResult
    operation_free_accuracy: ControlAccuracy | None
    distractor_accuracy: ControlAccuracy | None
    held_out: Sequence[str] = ()


def shared_state_claim(evidence: SharedStateEvidence) -> ClaimVerdict:
    """H1a: one state codes the operation, whatever the object.

    Interchange accuracies, and those of a direction in each pair of unseen verbs, must be near the
    ceiling. The two controls for detectors of words count the answers that are right without them.
    """
    hotspots = evidence.hotspots
    hotspot, threshold = hotspots.hotspot(OPERATION), near_ceiling(hotspots, OPERATION)
    tests = [
        check_above(
            f"operation at {hotspot.site!s}",
            "no site changes the operation and nothing else in all prompts",
            hotspot.same_object,
            threshold,
            id="site_operation",
        ),
        _same_object_test(hotspot, evidence.object_decoding),
        *_unseen_group_tests(hotspot, threshold, evidence.held_out),
        *_unseen_verb_tests(evidence.unseen_verbs, threshold),
        _control_test(
            ("question without the operation", "before the interchange"),
            "the state changes the answer to “how many did I take away?”, too: it detects words",
            evidence.operation_free_accuracy,
            id="operation_free_accuracy",
        ),
        _control_test(
            ("distractor sentence", "without it"),
            "an unrelated sentence with the opposite verb misleads the model: it detects words",
            evidence.distractor_accuracy,
            id="distractor_accuracy",
        ),
        check_below(
            "search in a random-init model",
            "a search finds as much in a random-init model: it can find anything",
            evidence.subspace_search.random_init,
            MAX_RANDOM_INIT_ACCURACY,
            id="random_init_search",
        ),
    ]
    return claim_verdict("H1a", TITLES["H1a"], tests)


def _same_object_test(hotspot: Hotspot, object_decoding: DecodingResult) -> StatisticalTest:
    name, id = "same and other objects are equal", "same_object"
    if not object_decoding.accuracy > object_decoding.threshold + EQUIVALENCE_MARGIN:
        reason = (
            f"the object cannot be decoded at {hotspot.site!s} (accuracy "
            f"{object_decoding.accuracy:.2f}, threshold {object_decoding.threshold:.2f}): no "
            "effect of it can be expected there"
        )
        return skipped_test(name, reason, id=id)
    meanings = (
        "the state changes the operation more often between prompts about two objects",
        "the state changes the operation only, or more often, between prompts about one object",
    )
    return check_within(name, meanings, hotspot.difference, EQUIVALENCE_MARGIN, id=id)


def _unseen_group_tests(
    hotspot: Hotspot, threshold: float, held_out: Sequence[str]
) -> list[StatisticalTest]:
    """Tests of each group of unseen values; only those that training left out are held out."""
    objects = "held-out objects" if "noun" in held_out else "other objects"
    sums = "held-out sums" if "cell" in held_out else "other sums"
    groups = (
        ("new objects", "new objects", "new_objects", "it fails with objects not searched on"),
        ("other objects", objects, "untrained_objects", f"it fails with {objects}"),
        ("other sums", sums, "untrained_cells", f"it fails for {sums}: a table, not a circuit"),
    )
    return [
        check_above(name, meaning, hotspot.unseen_groups[group], threshold, id=id)
        if group in hotspot.unseen_groups
        else skipped_test(name, "the pattern has too few", is_deciding=False, id=id)
        for group, name, id, meaning in groups
    ]


def _unseen_verb_tests(unseen_verbs: UnseenVerbs | None, threshold: float) -> list[StatisticalTest]:
    """Tests of each pair of verbs, of all of them (not deciding), and against the embedding."""
    if unseen_verbs is None:
        reason = "too few verbs to hold some out"
        return [skipped_test("unseen verbs", reason, id="unseen_verbs")]
    meaning = "the direction of other verbs does not change these: it codes words"
    pairs = [
        check_above(f"unseen verbs {pair}", meaning, value, threshold, id=f"unseen_verbs_{n}")
        for n, (pair, value) in enumerate(unseen_verbs.by_pair.items(), 1)
    ]
    site = check_above("unseen verbs", meaning, unseen_verbs.site, MAJORITY, id="unseen_verbs")
    name = "gain over the token embedding"
    if site.passed is False:
        reason = "no unseen verb works"
        gain = skipped_test(name, reason, is_deciding=False, id="embedding_gain")
    else:
        meaning = (
            f"directions in the verbs' embeddings do as much ({unseen_verbs.embedding}): the "
            "words hold the operation, and no circuit makes it"
        )
        gain = check_above(name, meaning, unseen_verbs.gain, 0.0, id="embedding_gain")
    return [*pairs, site.non_deciding() if pairs else site, gain]


def _control_test(
    subject: tuple[str, str], meaning_if_failed: str, control: ControlAccuracy | None, *, id: str
) -> StatisticalTest:
    """Test that answers that are right without a control stay right.

    Not deciding if there are no such questions, undecided if too few are right.

    Args:
        subject: Name of the control, and when answers are right without it.
        meaning_if_failed: Meaning of a failed test.
        control: Accuracy under the control.
        id: Of the test.
    """
    name, when = subject
    if control is None:
        reason = "the model or the pattern has no such question"
        return skipped_test(name, reason, is_deciding=False, id=id)
    right = f"{control.right} of {control.asked} answers are right {when}"
    if control.right < FEWEST_BASES:
        return skipped_test(name, f"{right}, and {FEWEST_BASES} are needed", id=id)
    name = f"{name} ({right})"
    threshold = 1 - 2 * EQUIVALENCE_MARGIN
    return check_above(name, meaning_if_failed, control.accuracy, threshold, id=id)


def joint_state_claim(joint: JointSite, hotspots: Hotspots) -> ClaimVerdict:
    """H1b: operation and operands meet in one state, at one site between two blocks.

    Tested at the site whose interchange most often gives the number of the source: the operation
    and each operand must be taken there, near the ceiling. Separate sites of the variables do not
    count. The tokens of a role are one site. A state that holds only the result of operation and
    operands gives the same number. So the claim holds only where a subspace changes the operation
    alone; it is undecided where the search finds none, as a code may be nonlinear, and where too
    few bases have numbers that the search had not.
    """
    threshold, variables = near_ceiling(hotspots, joint.label), joint.variables
    tests = [
        check_above(
            f"{variable} at {joint.site!s}",
            f"not taken at the best site (all together in {joint.all_variables} of prompts)",
            value,
            threshold,
            id=f"joint_{variable}",
        )
        for variable, value in variables.items()
    ]
    return claim_verdict("H1b", TITLES["H1b"], [*tests, _test_operation_alone(joint)])


def _test_operation_alone(joint: JointSite) -> StatisticalTest:
    """Test that the state is more than the result of operation and operands."""
    name = f"more than the result at {joint.site!s}: operation alone"
    id = "joint_operation_alone"
    if joint.operation_alone is None:
        reason = (
            f"the subspace was not fitted on the numbers of {joint.new_numbers} bases, and "
            f"{FEWEST_BASES} are needed: take a wider range of numbers"
        )
        return skipped_test(name, reason, id=id)
    found = "the state may hold only the result of operation and operands"
    alone = check_above(name, found, joint.operation_alone, MAJORITY, id=id)
    # A search without success is no evidence against a code that is not linear.
    return replace(alone, passed=alone.passed or None)


def shared_direction_claim(
    comparison: DirectionComparison | None, reason: str = ""
) -> ClaimVerdict:
    """H3: the operation has the same direction for every object, not only up to a rotation.

    Args:
        comparison: Transfer of directions between objects; None if none can be compared.
        reason: Why there is none.
    """
    if comparison is None:
        test = skipped_test("directions of two objects", reason, id="own_direction")
        return claim_verdict("H3", TITLES["H3"], [test])
    above = "another object's direction changes the operation less often than the object's own"
    if comparison.rotation_gain.low > EQUIVALENCE_MARGIN:
        above += (
            f", and as often once it is rotated ({comparison.rotated_direction}): the same up to a "
            "rotation"
        )
    below = (
        "the object's own direction changes the operation less often than another object's: it is "
        "poorly fitted"
    )
    tests = [
        check_above(
            "own direction",
            "one direction does not carry the operation",
            comparison.own_direction,
            MAJORITY,
            id="own_direction",
        ),
        check_within(
            "own direction minus another object's",
            (below, above),
            comparison.difference,
            EQUIVALENCE_MARGIN,
            id="other_object_direction",
        ),
    ]
    return claim_verdict("H3", TITLES["H3"], tests)
