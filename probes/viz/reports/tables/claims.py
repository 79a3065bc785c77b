"""Blocks of each claim H1a–H5: its tests, then plots and tables of what was measured."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from probes.claims.dose_response import has_behavior
from probes.claims.result import ClaimsReport
from probes.interventions.interchange_outcomes import NUMBER_READOUT, OBJECT_READOUT
from probes.interventions.result import Dissociation, OutputHeads
from probes.stats.evidence import ClaimVerdict
from probes.stats.intervals import Estimate
from probes.viz.blocks import Block, CellValue, Table, TableCell
from probes.viz.html_text import format_number
from probes.viz.plots.hotspot_map import display_variable
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.reports.tables.evidence import (
    BRACKETS_NOTE,
    EVIDENCE_COLUMNS,
    evidence_row,
    evidence_text,
)

_MAX_HEADS = 8
_MIN_HEAD_FRACTION = 0.005
_ACCURACY = "interchange accuracy"

STATE_INTRO = (
    "One state encodes whether to add or to subtract, whatever object is counted. Its interchange "
    "must change the operation with unseen objects, numbers and each pair of unseen verbs, near "
    "the model's own accuracy, and more often than the interchange of the words alone. A search "
    "for the few directions that carry it (DAS) is compared with control searches."
)
JOINT_INTRO = (
    "Operation and operands meet at a site between two blocks if its interchange gives all of them "
    "together: the number of the source. Separate sites of operation and numbers do not count. A "
    "state that holds only their result gives that number, too. Where a subspace of the state "
    "changes the operation alone, the state holds more than the result."
)
OBJECT_INTRO = (
    "If the object has a path of its own, interchange at its site changes the object of the answer "
    "and not the number, interchange at the operation's site does the opposite, and either answer "
    "can be broken alone. Crossover: how much more each site changes its own answer than the other "
    "one, in fractions of the correct answer's logit difference; 0 is no difference. Log-odds are "
    "those of the correct answer."
)
DIRECTION_INTRO = (
    "The direction from adding to subtracting is fitted for two objects separately. If one code "
    "serves all objects, the direction of another object changes the operation as often as the "
    "object's own. If it does so only after a rotation, each object has a code of its own, of the "
    "same shape."
)
BASE_MODEL_INTRO = (
    "A model tuned to answer is compared with its base model. If tuning reused what was there, the "
    "base model's direction and state still work, and only the heads that read them are new."
)
DOSE_RESPONSE_INTRO = (
    "Models of one series were trained alike, but on sentences about few or many objects. They are "
    "tested on objects that none of them was trained on. If training on many objects makes the "
    "operation general, its interchange works more often there. Models without the behavior do not "
    "count. This concerns the series, not one model."
)


def claim_tests_table(verdict: ClaimVerdict) -> Table:
    """Tests of a claim."""
    notes = []
    if any(not test.is_deciding for test in verdict.tests):
        notes.append(BRACKETS_NOTE)
    if not verdict.tests:
        notes.append(f"No tests: {verdict.reason}.")
    caption = f"{verdict.claim}, {verdict.title}: {verdict.label}"
    return Table(EVIDENCE_COLUMNS, list(map(evidence_row, verdict.tests)), caption, "lrlll", notes)


def verdict_reason(verdict: ClaimVerdict) -> str:
    """Reason of a verdict, with the numbers that it depends on."""
    deciding = [test for test in verdict.tests if test.is_deciding]
    if verdict.label == "fails":
        failed = [test for test in deciding if test.passed is False]
        return "; ".join(f"{evidence_text(test)} ({test.meaning_if_failed})" for test in failed)
    undecided = [evidence_text(test) for test in deciding if test.passed is None]
    return ("; ".join(undecided) if verdict.label == "cannot tell" else "") or verdict.reason


def state_blocks(report: ClaimsReport) -> list[Block]:
    """H1a: tests, subspace search, variance of the states, and their dimensions."""
    search, decoding = report.subspace_search, report.object_decoding
    site = str(report.hotspots.hotspot("operation").site)
    rows = [
        ("full state", search.full_state),
        ("mean difference, no search", search.mean_difference),
        *(
            (f"DAS, {size} dimension{'s' * (size > 1)}", accuracy)
            for size, accuracy in zip(search.dimensions_tried, search.accuracies, strict=True)
        ),
        ("DAS, permuted labels", search.permuted_labels),
        ("DAS, control site", search.control_site),
        ("DAS, random-init model", search.random_init),
    ]
    fractions = [
        Interval(display_variable(name), value)
        for name, value in report.variance_fractions.items()
        if math.isfinite(value)
    ]
    size = search.state_dimension
    fewest = "fewest dimensions with 0.9 of the full state's accuracy"
    if not search.left_out:
        fewest += ", on the prompts of the search"
    facts: list[list[CellValue]] = [
        [fewest, search.min_dimensions or "none"],
        ["distance of edited states from natural ones (natural: 1)", search.off_manifold_distance],
        ["intrinsic dimension, participation ratio (linear)", f"{size.participation_ratio:.1f}"],
        ["intrinsic dimension, TwoNN (nonlinear)", f"{size.two_nn:.1f}"],
        [
            f"accuracy of decoding the object, {decoding.n_classes} classes",
            f"{decoding.accuracy:.2f}, threshold {decoding.threshold:.2f}",
        ],
    ]
    factors = f"Variance of the states at {site} by factor (factors overlap; the sum need not be 1)"
    return [
        claim_tests_table(report.verdict("H1a")),
        *_plot(rows, f"Interchange accuracy of the operation at {site}"),
        IntervalPlot(fractions, factors, axis="fraction of variance (omega squared)"),
        Table(("states at the operation's site", "value"), facts),
    ]


def joint_blocks(report: ClaimsReport) -> list[Block]:
    """H1b: tests, and how often each variable is taken at the site."""
    joint = report.joint_site
    rows = [
        *((display_variable(name), value) for name, value in joint.variables.items()),
        ("all together", joint.all_variables),
        ("operation alone, by a subspace (DAS)", joint.operation_alone),
    ]
    caption = f"Fraction of prompts whose number takes each variable at {joint.site!s}"
    return [claim_tests_table(report.verdict("H1b")), *_plot(rows, caption)]


def object_blocks(report: ClaimsReport) -> list[Block]:
    """H2: tests, interchange at both sites, output heads, and binding."""
    swaps = _swap_rows("one object", report.dissociation)
    if report.two_object_dissociation is not None:
        swaps += _swap_rows("two objects", report.two_object_dissociation)
    necessity, heads = report.necessity, report.output_heads
    note = (
        f"Resampling the operation's directions lowers the log-odds of the number by "
        f"{necessity.number}, and those of the object by {necessity.object}. The gap exceeds that "
        f"of {necessity.null_percentile:.0%} of random directions with the same variance."
    )
    columns = ("text with", "interchange at", "number changes", "object changes")
    blocks: list[Block] = [
        claim_tests_table(report.verdict("H2")),
        Table(columns, swaps, "Effect of interchange at each site", "llrr", (note,)),
        _heads_table(heads),
        _ablation_table(heads),
    ]
    if report.binding:
        rows = [[str(b.layer), b.swapped, b.unchanged, b.random_swapped] for b in report.binding]
        columns = ("before layer", "number of the other object", "no change", "random vector")
        caption = "Two objects in the text: interchange of what binds each of them to its number"
        blocks.append(Table(columns, rows, caption))
    return blocks


def _swap_rows(text: str, dissociation: Dissociation) -> list[list[CellValue]]:
    sites = (("operation", dissociation.operation), ("object", dissociation.object))
    return [[text, f"site of the {name}", effect.number, effect.object] for name, effect in sites]


def _heads_table(heads: OutputHeads) -> Table:
    """Heads with the largest fractions of either answer."""
    fractions = heads.head_fractions
    largest = sorted(fractions, key=lambda name: -max(fractions[name]))[:_MAX_HEADS]
    rows = [
        [
            name,
            _fraction_cell(fractions[name][NUMBER_READOUT], name in heads.number_heads),
            _fraction_cell(fractions[name][OBJECT_READOUT], name in heads.object_heads),
        ]
        for name in sorted(largest)
        if max(fractions[name]) > _MIN_HEAD_FRACTION
    ]
    note = "L1.H3 is head 3 of layer 1, from 0. ✓: output head of this answer."
    caption = "Output heads: fraction of the drop of the logit difference"
    return Table(("head", "of the number", "of the object"), rows, caption, notes=(note,))


def _fraction_cell(fraction: float, is_output_head: bool) -> TableCell:
    return TableCell(format_number(fraction), "good" if is_output_head else None)


def _ablation_table(heads: OutputHeads) -> Table:
    number, noun = (", ".join(h) or "none" for h in (heads.number_heads, heads.object_heads))
    rows = [
        [f"output heads of the number ({number})", *heads.without_number],
        [f"output heads of the object ({noun})", *heads.without_object],
        ["output heads of the object, at all positions", *heads.without_object_everywhere],
    ]
    columns = ("ablated", "number right", "object right")
    return Table(columns, rows, "Accuracy without output heads")


def direction_blocks(report: ClaimsReport) -> list[Block]:
    """H3: tests, accuracy of each direction, and angles between objects."""
    comparison, tests = report.direction_comparison, claim_tests_table(report.verdict("H3"))
    if comparison is None:
        return [tests]
    rows = [
        ("direction of the same object", comparison.own_direction),
        ("direction of another object", comparison.other_direction),
        ("direction of another object, rotated", comparison.rotated_direction),
    ]
    angles = [
        [f"{a} / {b}", f"{angle:.0f}°"]
        for (a, b), angle in zip(comparison.object_pairs, comparison.angles, strict=True)
    ]
    caption, note = "Angle between the directions of two objects", "0°: same; 90°: orthogonal."
    return [
        tests,
        *_plot(rows, "Interchange accuracy of the operation, by direction"),
        Table(("objects", "angle"), angles, caption, notes=(note,)),
    ]


def base_model_blocks(report: ClaimsReport) -> list[Block]:
    """H4: tests, and what directions and states of the base model do in the tuned one."""
    comparison, tests = report.base_comparison, claim_tests_table(report.verdict("H4"))
    if comparison is None:
        return [tests]
    base, tuned = comparison.base, comparison.tuned
    rows = [
        (f"direction of {tuned}", comparison.own_direction),
        (f"direction of {base}", comparison.base_direction),
        (f"full state of {base}", comparison.base_state),
        ("direction of a random-init model", comparison.random_init_direction),
    ]
    heads = [
        [base, ", ".join(comparison.base_heads) or "none"],
        [tuned, ", ".join(comparison.tuned_heads) or "none"],
    ]
    null = comparison.null_head_overlaps
    note = f"Jaccard overlap: {comparison.head_overlap}" + (
        f"; with {len(null)} random-init models: {np.mean(null):.2f} on average, {max(null):.2f} "
        "at most."
        if null
        else "."
    )
    return [
        tests,
        *_plot(rows, f"Interchange accuracy of the operation in {tuned}"),
        Table(("model", "heads"), heads, "Output heads of the number", "ll", (note,)),
    ]


def dose_response_blocks(rows: Sequence[Mapping[str, float | str]]) -> list[Block]:
    """H5: interchange accuracy by the number of objects in training."""
    estimates = [
        (
            f"{float(row['nouns']):.0f} objects{'' if has_behavior(row) else ' (behavior absent)'}",
            Estimate(
                *(float(row[f"unseen_interchange_accuracy{end}"]) for end in ("", "_low", "_high"))
            ),
        )
        for row in sorted(rows, key=lambda row: float(row["nouns"]))
    ]
    return _plot(estimates, "Interchange accuracy of the operation with held-out objects")


def _plot(estimates: Sequence[tuple[str, Estimate | None]], caption: str) -> list[Block]:
    """Interval plot without missing and non-finite estimates; empty if none is left."""
    rows = [
        Interval.of(name, e)
        for name, e in estimates
        if e is not None and all(map(math.isfinite, (e.value, e.low, e.high)))
    ]
    return [IntervalPlot(rows, caption, axis=_ACCURACY)] if rows else []
