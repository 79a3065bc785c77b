"""Tests of H2: a path of its own for the noun."""

import numpy as np

from probes.claims.definitions import MAJORITY, TITLES
from probes.interventions.interchange_outcomes import NUMBER_READOUT, OBJECT_READOUT
from probes.interventions.result import Dissociation, Necessity, OutputHeads
from probes.interventions.site_search import EQUIVALENCE_MARGIN
from probes.stats.evidence import (
    ClaimVerdict,
    StatisticalTest,
    check_above,
    check_below,
    claim_verdict,
    skipped_test,
)
from probes.stats.intervals import Estimate

_PERCENTILE = 0.95


def separate_path_claim(
    dissociation: Dissociation,
    two_object_dissociation: Dissociation | None,
    necessity: Necessity,
    output_heads: OutputHeads,
) -> ClaimVerdict:
    """H2: the noun has a path of its own, which decides the noun and nothing else.

    A null that is not rejected refutes nothing: where the operation's directions cost the number
    more than the median of the random subspaces do, but not more than nearly all of them, that test
    is undecided. It fails only where the excess is at most their median.

    Args:
        dissociation: Interchange at the sites of operation and object.
        two_object_dissociation: The same with two objects in the text; None if the model cannot
            answer such questions.
        necessity: Resample ablation of the operation's directions.
        output_heads: Heads that write each answer at its read-out.
    """
    tests = [
        *_dissociation_tests(dissociation),
        *_two_object_tests(two_object_dissociation),
        *_necessity_tests(necessity),
        *_ablation_tests(output_heads),
    ]
    return claim_verdict("H2", TITLES["H2"], tests)


def _dissociation_tests(dissociation: Dissociation) -> list[StatisticalTest]:
    operation, thing = dissociation.operation, dissociation.object
    return [
        check_above(
            "the object's site changes the noun",
            "no site changes the noun",
            thing.object,
            MAJORITY,
            id="object_site_noun",
        ),
        check_below(
            "the object's site leaves the number",
            "the object's site changes the number",
            thing.number,
            EQUIVALENCE_MARGIN,
            id="object_site_number",
        ),
        check_below(
            "the operation's site leaves the noun",
            "the operation's site changes the noun",
            operation.object,
            EQUIVALENCE_MARGIN,
            id="operation_site_noun",
        ),
        check_above(
            "crossover (fractions of the logit difference)",
            "each site changes the other's answer as much as its own",
            dissociation.crossover,
            0.0,
            id="crossover",
        ),
        check_above(
            "crossover, both read at the number",
            "the two differ only by where they are read",
            dissociation.crossover_at_number,
            0.0,
            id="crossover_at_number",
        ),
    ]


def _two_object_tests(dissociation: Dissociation | None) -> list[StatisticalTest]:
    if dissociation is None:
        reason = "no such questions, or the model cannot answer them"
        return [skipped_test("two objects", reason, is_deciding=False, id="two_objects")]
    return [
        check_below(
            "two objects: the object's site leaves the number",
            "with two objects in the text, the object's site changes the number",
            dissociation.object.number,
            EQUIVALENCE_MARGIN,
            id="two_objects_number",
        ),
        check_above(
            "two objects: crossover",
            "with two objects in the text, each site changes the other's answer as much as its own",
            dissociation.crossover,
            0.0,
            id="two_objects_crossover",
        ),
    ]


def _necessity_tests(necessity: Necessity) -> list[StatisticalTest]:
    percentile = necessity.null_percentile
    return [
        check_above(
            "ablated directions: the number loses more (fractions of log odds)",
            "resampling the operation's directions costs the noun as much as the number",
            necessity.excess,
            0.0,
            id="necessity",
        ),
        StatisticalTest(
            "ablated directions: more than random ones",
            "resampling random directions of as much variance does the same",
            Estimate(percentile, percentile, percentile),
            f"above more than {_PERCENTILE:.2f} of {len(necessity.null_excesses)} random subspaces",
            _exceeds_null(necessity),
            id="necessity_percentile",
            above=_PERCENTILE,
        ),
    ]


def _exceeds_null(necessity: Necessity) -> bool | None:
    """Whether the excess is above nearly all random subspaces; False at their median or below."""
    if necessity.null_percentile > _PERCENTILE:
        return True
    is_in_bulk = necessity.excess.value <= np.median(necessity.null_excesses)
    return False if is_in_bulk else None


def _ablation_tests(output_heads: OutputHeads) -> list[StatisticalTest]:
    names = ", ".join(output_heads.object_heads) or "none"
    if not output_heads.object_heads or not output_heads.number_heads:
        reason = f"output heads of the noun: {names}; of the number: " + (
            ", ".join(output_heads.number_heads) or "none"
        )
        return [skipped_test("ablated heads", reason, id="ablated_heads")]
    cost = "ablating the output heads of the noun costs the number as well"
    if shared := sorted({*output_heads.object_heads} & {*output_heads.number_heads}):
        cost += f", as {', '.join(shared)} {'writes' if len(shared) == 1 else 'write'} both"
    return [
        check_below(
            f"without {names}: the noun is wrong",
            "the noun is right without its output heads",
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
