"""The five claims, each with the tests that its verdict reads; pure rules, no models."""

from collections.abc import Mapping, Sequence

from probes.claims.result import BaseModelComparison
from probes.interventions.das_search import MAX_RANDOM_INIT_ACCURACY
from probes.interventions.hotspot_result import Hotspot, Hotspots
from probes.interventions.interchange import NUMBER_READOUT, OBJECT_READOUT
from probes.interventions.result import (
    DASResult,
    DecodingResult,
    DirectionComparison,
    Dissociation,
    Necessity,
    OutputHeads,
    UnseenVerbs,
)
from probes.interventions.site_search import EQUIVALENCE_MARGIN
from probes.prompts.interchange_pairs import OBJECT, OPERATION
from probes.stats.evidence import (
    ClaimVerdict,
    StatisticalTest,
    check_above,
    check_below,
    check_within,
    claim_verdict,
    skipped_test,
)
from probes.stats.intervals import Estimate

MAJORITY = 0.5
"""A site hands a variable over where it does so more often than not."""

_PERCENTILE = 0.95

TITLES = {
    "H1": "one state codes the operation and the numbers, whatever the object",
    "H2": "the noun travels a path of its own",
    "H3": "the operation lies in the same direction for every object",
    "H4": "tuning took over what was there before it",
    "H5": "the template was learned from many objects",
}


def shared_state_claim(  # noqa: PLR0913 (one argument for each test)
    hotspots: Hotspots, object_decoding: DecodingResult, unseen_verbs: UnseenVerbs | None, subspace_search: DASResult | None,
    operation_free_accuracy: Estimate | None, distractor_accuracy: Estimate | None,
) -> ClaimVerdict:  # fmt: skip
    """H1: some state codes the operation and which number is which, whatever the object.

    Args:
        hot: The hotspots.
        object_there: Whether the object can be read at the operation's site.
        unseen: Directions tried on verbs that they were not fitted on.
        search: The searched subspace, for the capacity of the search.
        asked_back: How often "how many did I take away?" keeps its answer when the operation is
            put in at the same site.
        loud_filler: How often it is right behind a sentence that has the opposite verb in vain.
    """
    spot = hotspots.hotspot(OPERATION)
    tests = [_site_test(hotspots, found) for found in hotspots.hotspots if found.variable != OBJECT]
    tests.append(_same_object_test(spot, object_decoding))
    tests += _held_out_tests(spot)
    tests += _unseen_verb_tests(unseen_verbs)
    if operation_free_accuracy is None:
        tests.append(
            skipped_test(
                "asked for y",
                "the model does not answer it",
                is_deciding=False,
                id="operation_free_accuracy",
            )
        )
    else:
        says = "the state turns the answer to 'how many did I take away?' too: a detector of words"
        tests.append(
            check_above(
                "asked for y, the answer stays",
                says,
                operation_free_accuracy,
                1 - 2 * EQUIVALENCE_MARGIN,
                id="operation_free_accuracy",
            )
        )
    if distractor_accuracy is None:
        tests.append(
            skipped_test(
                "a verb in vain",
                "no such sentence in the pattern",
                is_deciding=False,
                id="distractor_accuracy",
            )
        )
    else:
        says = (
            "a sentence with the verb that has nothing to do with it misleads: a detector of words"
        )
        tests.append(
            check_above(
                "a verb in vain",
                says,
                distractor_accuracy,
                1 - 2 * EQUIVALENCE_MARGIN,
                id="distractor_accuracy",
            )
        )
    if subspace_search is not None:
        says = "a search finds as much in an untrained model: it can find anything"
        tests.append(
            check_below(
                "search in an untrained model",
                says,
                subspace_search.random_init,
                MAX_RANDOM_INIT_ACCURACY,
                id="random_init_search",
            )
        )
    return claim_verdict("H1", TITLES["H1"], tests)


def _unseen_verb_tests(unseen_verbs: UnseenVerbs | None) -> list[StatisticalTest]:
    if unseen_verbs is None:
        return [
            skipped_test(
                "verbs not fitted on", "too few verbs to leave some out", id="unseen_verbs"
            )
        ]
    says = (
        "a direction fitted on some verbs does not turn others: it tells words, not the operation"
    )
    site = check_above("verbs not fitted on", says, unseen_verbs.site, MAJORITY, id="unseen_verbs")
    name = "gain over the token embedding"
    if site.passed is False:
        return [
            site,
            skipped_test(name, "nothing to gain on", is_deciding=False, id="embedding_gain"),
        ]
    says = (
        f"directions in the verbs' embeddings already do as much ({unseen_verbs.embedding}): the words "
        "hold the operation, no circuit makes it"
    )
    return [site, check_above(name, says, unseen_verbs.gain, 0.0, id="embedding_gain")]


def _site_test(hotspots: Hotspots, hotspot: Hotspot) -> StatisticalTest:
    bar = max(MAJORITY, hotspots.thresholds[hotspot.variable])
    return check_above(
        f"{hotspot.variable} at {hotspot.site!s}",
        f"no site hands over {hotspot.variable} and nothing else",
        hotspot.same_object,
        bar,
        id=f"site_{hotspot.variable}",
    )


def _same_object_test(hotspot: Hotspot, object_decoding: DecodingResult) -> StatisticalTest:
    if not object_decoding.accuracy > object_decoding.threshold + EQUIVALENCE_MARGIN:
        return skipped_test(
            "same and other objects alike",
            f"no object can be read at {hotspot.site!s} ({object_decoding.accuracy:.2f}, chance up to "
            f"{object_decoding.threshold:.2f}): that it does not matter there says nothing",
            id="same_object",
        )
    return check_within(
        "same and other objects alike",
        "the state hands over the operation only, or less, between sentences about one object",
        hotspot.difference,
        EQUIVALENCE_MARGIN,
        id="same_object",
    )


def _held_out_tests(hotspot: Hotspot) -> list[StatisticalTest]:
    says = {
        "new objects": "it fails with objects that the site was not found by",
        "untrained objects": "it fails with objects that the family's training held out",
        "untrained cells": "it fails for sums that the family's training held out: a table, not a "
        "circuit",
    }
    return [
        check_above(
            name, says[name], hotspot.unseen_groups[name], MAJORITY, id=name.replace(" ", "_")
        )
        if name in hotspot.unseen_groups
        else skipped_test(
            name, "the pattern has none", is_deciding=False, id=name.replace(" ", "_")
        )
        for name in says
    ]


def separate_path_claim(
    dissociation: Dissociation,
    two_object_dissociation: Dissociation | None,
    necessity: Necessity,
    output_heads: OutputHeads,
) -> ClaimVerdict:
    """H2: the noun travels another path, which decides the noun and nothing else.

    Args:
        parted: Swaps of operation and object.
        two: The same where two things are spoken of; None where the model cannot do that.
        needed: What resampling the operation's directions costs.
        heads: Heads that bring each answer to where it is read.
    """
    operation, thing = dissociation.operation, dissociation.object
    says = "the object's site moves the number"
    tests = [
        check_above(
            "the object's site moves the noun",
            "nothing moves the noun",
            thing.object,
            MAJORITY,
            id="object_site_noun",
        ),
        check_below(
            "it leaves the number", says, thing.number, EQUIVALENCE_MARGIN, id="object_site_number"
        ),
    ]
    says = "the operation's site moves the noun"
    tests.append(
        check_below(
            "the operation leaves the noun",
            says,
            operation.object,
            EQUIVALENCE_MARGIN,
            id="operation_site_noun",
        )
    )
    says = "the sites do each other's work"
    tests.append(
        check_above(
            "crossover (shares of the lead)", says, dissociation.crossover, 0.0, id="crossover"
        )
    )
    says = "the two are told apart only by where they are read"
    tests.append(
        check_above(
            "crossover, read at one place",
            says,
            dissociation.crossover_at_number,
            0.0,
            id="crossover_at_number",
        )
    )
    if two_object_dissociation is None:
        tests.append(
            skipped_test(
                "two things spoken of",
                "the model cannot do it",
                is_deciding=False,
                id="two_objects",
            )
        )
    else:
        says = "with two things in the text, the object's site moves the number"
        tests.append(
            check_below(
                "two things: it leaves the number",
                says,
                two_object_dissociation.object.number,
                EQUIVALENCE_MARGIN,
                id="two_objects_number",
            )
        )
        says = "with two things in the text, the sites do each other's work"
        tests.append(
            check_above(
                "two things: crossover",
                says,
                two_object_dissociation.crossover,
                0.0,
                id="two_objects_crossover",
            )
        )
    says = "resampling the operation's directions hurts the noun as much as the number"
    tests.append(
        check_above(
            "needed by the number more (shares of log-odds)",
            says,
            necessity.excess,
            0.0,
            id="necessity",
        )
    )
    tests.append(
        StatisticalTest(
            "needed more than directions beside it",
            "resampling random directions of as much variance does the same",
            Estimate(
                necessity.null_percentile, necessity.null_percentile, necessity.null_percentile
            ),
            f"above more than 0.95 of {len(necessity.null_excesses)} random subspaces",
            necessity.null_percentile > _PERCENTILE,
            id="necessity_percentile",
        )
    )
    tests += _ablation_tests(output_heads)
    return claim_verdict("H2", TITLES["H2"], tests)


def _ablation_tests(output_heads: OutputHeads) -> list[StatisticalTest]:
    names = ", ".join(output_heads.object_heads) or "none"
    if not output_heads.object_heads or not output_heads.number_heads:
        return [
            skipped_test(
                "heads knocked out",
                f"heads of the noun: {names}; too few stand out",
                id="ablated_heads",
            )
        ]
    cost = "knocking out the heads that bring the noun costs the number as well"
    alike = {*output_heads.object_heads} & {*output_heads.number_heads}
    if alike:
        cost += f", as {', '.join(sorted(alike))} brings both"
    return [
        check_below(
            f"without {names}: the noun breaks",
            "the noun survives without its heads",
            output_heads.without_object[OBJECT_READOUT],
            MAJORITY,
            id="ablated_noun",
        ),
        check_above(
            f"without {names}: the number stays",
            cost,
            output_heads.without_object[NUMBER_READOUT],
            1 - EQUIVALENCE_MARGIN,
            id="ablated_number",
        ),
    ]


def shared_direction_claim(comparison: DirectionComparison) -> ClaimVerdict:
    """H3: the same place and direction across objects, not merely up to a rotation."""
    says = "another object's direction turns less than its own"
    if comparison.rotation_gain.low > EQUIVALENCE_MARGIN:
        says += f", and as much once it is rotated ({comparison.rotated_direction}): the same up to a rotation"
    tests = [
        check_above(
            "own direction",
            "one direction does not carry it",
            comparison.own_direction,
            MAJORITY,
            id="own_direction",
        ),
        check_within(
            "own less another object's",
            says,
            comparison.difference,
            EQUIVALENCE_MARGIN,
            id="other_object_direction",
        ),
    ]
    return claim_verdict("H3", TITLES["H3"], tests)


def reuse_claim(comparison: BaseModelComparison | None, reason: str = "") -> ClaimVerdict:
    """H4: instruct tuning takes over what was there: same sites, same direction, new reader."""
    if comparison is None:
        return claim_verdict(
            "H4", TITLES["H4"], [skipped_test("the model before", reason, id="base_model")]
        )
    tests = [
        check_within(
            "own direction less the former one",
            f"the direction of {comparison.base} does not serve {comparison.tuned}",
            comparison.difference,
            EQUIVALENCE_MARGIN,
            id="base_direction",
        ),
        check_above(
            "the former state, put in",
            "the state is not the same",
            comparison.base_state,
            MAJORITY,
            id="base_state",
        ),
        check_below(
            "an untrained model's direction",
            "any direction does",
            comparison.random_init_direction,
            EQUIVALENCE_MARGIN,
            id="random_init_direction",
        ),
        skipped_test("a new reader", "no heads stand out", id="new_readout_heads")
        if not (comparison.base_heads and comparison.tuned_heads)
        else StatisticalTest(
            "a new reader",
            f"the same heads read it out: {', '.join(comparison.base_heads)} before, "
            f"{', '.join(comparison.tuned_heads)} after",
            Estimate(comparison.head_overlap, comparison.head_overlap, comparison.head_overlap),
            "heads shared below 0.50 (Jaccard, no interval)",
            comparison.head_overlap < MAJORITY,
            id="new_readout_heads",
        ),
    ]
    return claim_verdict("H4", TITLES["H4"], tests)


def training_diversity_claim(rows: Sequence[Mapping[str, float | str]]) -> ClaimVerdict:
    """H5: the template exists because training was full of it with other objects.

    Args:
        rows: For models trained on few and on many objects, "nouns", and how often the operation
            of sentences about objects that none of them was trained on is taken up, as "unseen_interchange_accuracy",
            "unseen_interchange_accuracy_low" and "unseen_interchange_accuracy_high"; see `series`.
    """
    if len(rows) < 2:
        why = "no relatives of this model that were trained on few objects are measured"
        return claim_verdict(
            "H5", TITLES["H5"], [skipped_test("dose and response", why, id="dose_response")]
        )
    rows = sorted(rows, key=lambda row: float(row["nouns"]))
    few, *_, many = rows
    gain = float(many["unseen_interchange_accuracy"]) - float(few["unseen_interchange_accuracy"])
    # The two are separate models: errors add in squares (Newcombe 1998, method 10).
    low = gain - _error_length(many, "low", few, "high")
    high = gain + _error_length(many, "high", few, "low")
    shown = ", ".join(
        f"{row['nouns']:.0f}: {float(row['unseen_interchange_accuracy']):.2f}" for row in rows
    )
    tests = [
        check_above(
            f"{many['nouns']:.0f} objects rather than {few['nouns']:.0f}",
            f"trained on few objects, the operation is taken up as well ({shown})",
            Estimate(gain, low, high),
            EQUIVALENCE_MARGIN,
            id="dose_response",
        ),
        skipped_test(
            "over seeds", "one model for each number of objects", is_deciding=False, id="seeds"
        ),
    ]
    return claim_verdict("H5", TITLES["H5"], tests)


def _error_length(
    first: Mapping[str, float | str],
    first_end: str,
    second: Mapping[str, float | str],
    second_end: str,
) -> float:
    ends = ((first, first_end), (second, second_end))
    steps = [
        float(row["unseen_interchange_accuracy"]) - float(row[f"unseen_interchange_accuracy_{end}"])
        for row, end in ends
    ]
    return sum(step**2 for step in steps) ** 0.5
