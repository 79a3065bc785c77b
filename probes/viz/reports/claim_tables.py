"""What was measured for each claim, as tables and plots: its tests, then what is beside them."""

import math
from collections.abc import Mapping, Sequence

from probes.claims.result import ClaimsReport
from probes.interventions.dissociation import Dissociation, OutputHeads
from probes.interventions.interchange import NUMBER_READOUT, OBJECT_READOUT
from probes.prompts.interchange_pairs import OBJECT
from probes.stats.evidence import ClaimVerdict, StatisticalTest
from probes.stats.intervals import Estimate
from probes.viz.blocks import Block, Table, TableCell, Tone
from probes.viz.html_text import typographic_minus
from probes.viz.plots.interval_plot import Interval, IntervalPlot

_MAX_THRESHOLD_LENGTH = 20  # Longer bars may be broken in two lines.
_MAX_HEADS = 8  # More heads than this are not read; the rest carry less.
_PASSED_TEXT: dict[bool | None, tuple[str, Tone]] = {
    True: ("yes", "good"),
    False: ("no", "bad"),
    None: ("undecided", "muted"),
}

STATE_INTRO = (
    "Is there one state that says whether to add or to take away, and is it the same whatever "
    "things are counted? It must turn the operation for new things, new numbers and new verbs, and "
    "do more than the words alone. A search for the few directions that carry it is held against "
    "searches that should find nothing."
)
OBJECT_INTRO = (
    "If the noun has a path of its own, the object's place moves the noun and not the number, the "
    "operation's place does the opposite, and either can be broken alone. Crossover: how much more "
    "each place pulls its own answer than the other's, in shares of the right answer's lead; 0 is "
    "no difference. Log-odds: how sure the model is of the right answer, as a logarithm; 1 less is "
    "2.7 times less sure. A head is one of the parts by which a layer looks back at earlier words."
)
DIRECTION_INTRO = (
    "For each of two objects the direction from adding to taking away is fitted anew. If one code "
    "serves all objects, another object's direction turns the operation as well as the own one. If "
    "it does only after a rotation, each object has a code of its own, of the same shape."
)
BASE_MODEL_INTRO = (
    "A model that was trained to answer is held against the one it was tuned from. If tuning took "
    "over what was there, the former direction and the former state still work, and what is new "
    "is who reads them."
)
DOSE_RESPONSE_INTRO = (
    "Models trained alike, but on sentences about few or many objects, are tried on objects that "
    "none of them was trained on. If the operation is general because it was learned from many "
    "objects, it is taken up more often there. This is about the series, not about one model."
)


def claim_tests_table(verdict: ClaimVerdict) -> Table:
    """List the tests of a claim: what was measured, what it had to be, and what came of it."""
    rows = [_test_row(test) for test in verdict.tests]
    columns = (
        "test",
        "measured",
        _nonbreaking("had to be"),
        "passed?",
        "what it would mean if not",
    )
    notes = []
    if any(not test.is_deciding for test in verdict.tests):
        notes.append("Tests in brackets are shown beside: the verdict does not read them.")
    if not verdict.tests:
        notes.append(f"Nothing was tested: {verdict.reason}.")
    caption = f"{verdict.claim}, {verdict.title}: {verdict.label}"
    return Table(columns, rows, caption, "lrlll", notes)


def _test_row(test: StatisticalTest) -> list[str | TableCell]:
    word, tone = _PASSED_TEXT[test.passed]
    name = test.name if test.is_deciding else f"({test.name})"
    if test.value is None:
        return [
            name,
            "–",
            "–",
            TableCell("untested", "muted"),
            f"not tested: {typographic_minus(test.meaning_if_failed)}",
        ]
    bar = (
        _nonbreaking(typographic_minus(test.threshold))
        if len(test.threshold) < _MAX_THRESHOLD_LENGTH
        else typographic_minus(test.threshold)
    )
    return [
        name,
        _nonbreaking(_format_estimate(test.value)),
        bar,
        TableCell(word, tone),
        typographic_minus(test.meaning_if_failed),
    ]


def verdict_reason(verdict: ClaimVerdict) -> str:
    """Say why a claim has its verdict, with the numbers that it rests on."""
    if verdict.label == "fails":
        against = [test for test in verdict.tests if test.is_deciding and test.passed is False]
        return "; ".join(
            f"{_test_text(test)}: {typographic_minus(test.meaning_if_failed)}" for test in against
        )
    if verdict.label == "cannot tell":
        unsure = [test for test in verdict.tests if test.is_deciding and test.passed is None]
        return "; ".join(map(_test_text, unsure)) or typographic_minus(verdict.reason)
    return typographic_minus(verdict.reason)


def _test_text(test: StatisticalTest) -> str:
    if test.value is None:
        return f"{test.name} is not tested, as {typographic_minus(test.meaning_if_failed)}"
    return f"“{test.name}” is {_format_estimate(test.value)} and had to be {typographic_minus(test.threshold)}"


def _nonbreaking(text: str) -> str:
    """Keep a line whole."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def state_blocks(report: ClaimsReport) -> list[Block]:
    """Show the tests of H1, the search, what the states vary with, and how many dimensions."""
    found, there = report.subspace_search, report.object_decoding
    place = str(report.hotspots.hotspot("operation").site)
    sizes = [
        (f"{size} direction{'s' * (size > 1)} searched", share)
        for size, share in zip(found.dimensions_tried, found.accuracies, strict=True)
    ]
    rows = [
        ("the whole state", found.full_state),
        ("difference of means, no search", found.mean_difference),
        *sizes,
        ("… with mixed-up answers", found.permuted_labels),
        ("… where least is told", found.control_site),
        ("… in an untrained model", found.random_init),
    ]
    varies = [
        Interval("object" if name == OBJECT else name, value)
        for name, value in report.variance_fractions.items()
        if math.isfinite(value)
    ]
    enough = "none tried" if found.min_dimensions is None else str(found.min_dimensions)
    size = found.state_dimension
    facts = [
        ["directions that do 0.9 of what the whole state does", enough],
        [
            "distance of states so made from natural ones (natural: 1)",
            f"{found.off_manifold_distance:.2f}",
        ],
        ["dimensions that the states fill, linear", f"{size.participation_ratio:.1f}"],
        ["dimensions that they fill if the sheet is curved", f"{size.two_nn:.1f}"],
        [
            f"the object can be read there (one of {there.n_classes})",
            f"{there.accuracy:.2f}, by chance up to {there.threshold:.2f}",
        ],
    ]
    return [
        claim_tests_table(report.verdict("H1")),
        *_plot(rows, f"How often the operation is taken up from {place}", "share of prompts"),
        IntervalPlot(
            varies,
            f"What the states at {place} vary with (factors overlap, so they need not add to 1)",
            axis="share of variance (omega squared)",
        ),
        Table(("at the operation's place", "found"), facts),
    ]


def object_blocks(report: ClaimsReport) -> list[Block]:
    """Show the tests of H2, the swaps, the heads, and what binds things to numbers."""
    swaps = _swap_rows("one thing", report.dissociation)
    if report.two_object_dissociation is not None:
        swaps += _swap_rows("two things", report.two_object_dissociation)
    needed = report.necessity
    note = (
        f"Resampling the operation's directions lowers the log-odds of the right number by "
        f"{_format_estimate(needed.number)}, of the noun by {_format_estimate(needed.object)}. The gap is wider than "
        f"for {needed.null_percentile:.0%} of random directions of as much variance."
    )
    columns = ("text speaks of", "put in", "number changes", "noun changes")
    blocks: list[Block] = [
        claim_tests_table(report.verdict("H2")),
        Table(columns, swaps, "What moves with each place", "llrr", (note,)),
        _heads_table(report.output_heads),
        _ablation_table(report.output_heads),
    ]
    if report.binding:
        rows = [
            [str(one.layer), *map(str, (one.swapped, one.unchanged, one.random_swapped))]
            for one in report.binding
        ]
        columns = (
            "before layer",
            "number is the other thing's",
            "nothing changes",
            "random vector",
        )
        caption = "Two things in the text: exchanging what binds each to its number"
        blocks.append(Table(columns, rows, caption))
    return blocks


def _swap_rows(mentioned: str, dissociation: Dissociation) -> list[list[str]]:
    named = (("operation", dissociation.operation), ("object", dissociation.object))
    return [[mentioned, f"the {name}'s place", str(s.number), str(s.object)] for name, s in named]


def _heads_table(output_heads: OutputHeads) -> Table:
    """List the heads that bring most of either answer."""
    most = sorted(
        output_heads.head_fractions, key=lambda name: -max(output_heads.head_fractions[name])
    )[:_MAX_HEADS]
    rows = [
        [
            name,
            _fraction_cell(
                output_heads.head_fractions[name][NUMBER_READOUT], name in output_heads.number_heads
            ),
            _fraction_cell(
                output_heads.head_fractions[name][OBJECT_READOUT], name in output_heads.object_heads
            ),
        ]
        for name in sorted(most)
        if max(output_heads.head_fractions[name]) > 0.005
    ]
    note = "L1.H3 is head 3 of layer 1, from 0. ✓: it counts as one of the answer's heads."
    columns = ("head", "of the way to the number", "of the way to the noun")
    return Table(
        columns, rows, "Heads that bring the answers to where they are read", notes=(note,)
    )


def _fraction_cell(fraction: float, is_output_head: bool) -> TableCell:
    return TableCell(
        typographic_minus(f"{round(fraction, 2) + 0.0:.2f}"), "good" if is_output_head else None
    )


def _ablation_table(output_heads: OutputHeads) -> Table:
    number, noun = (
        ", ".join(heads) or "none"
        for heads in (output_heads.number_heads, output_heads.object_heads)
    )
    rows = [
        [f"the number's heads ({number})", *map(str, output_heads.without_number)],
        [f"the noun's heads ({noun})", *map(str, output_heads.without_object)],
        ["the noun's heads, at every word", *map(str, output_heads.without_object_everywhere)],
    ]
    columns = ("knocked out", "number still right", "noun still right")
    return Table(columns, rows, "What breaks without them")


def direction_blocks(report: ClaimsReport) -> list[Block]:
    """Show the tests of H3, how directions serve, and the angles between them."""
    found = report.direction_comparison
    rows = [
        ("the object's own direction", found.own_direction),
        ("another object's direction", found.other_direction),
        ("another object's, rotated", found.rotated_direction),
    ]
    angles = [
        [f"{a} / {b}", f"{angle:.0f}°"]
        for (a, b), angle in zip(found.object_pairs, found.angles, strict=True)
    ]
    note = "0°: the same direction; 90°: they have nothing in common."
    return [
        claim_tests_table(report.verdict("H3")),
        *_plot(rows, "How often a direction turns the operation", "share of prompts"),
        Table(("objects", "angle"), angles, "Between the directions of two objects", notes=(note,)),
    ]


def base_model_blocks(report: ClaimsReport) -> list[Block]:
    """Show the tests of H4, and what the model before still does in this one."""
    found, verdict = report.base_comparison, report.verdict("H4")
    if found is None:
        return [claim_tests_table(verdict)]
    rows = [
        ("its own direction", found.own_direction),
        (f"the direction of {found.base}", found.base_direction),
        (f"the whole state of {found.base}", found.base_state),
        ("an untrained model's direction", found.random_init_direction),
    ]
    heads = [
        [found.base, ", ".join(found.base_heads) or "none"],
        [found.tuned, ", ".join(found.tuned_heads) or "none"],
    ]
    caption = f"How often it turns the operation in {found.tuned}"
    return [
        claim_tests_table(verdict),
        *_plot(rows, caption, "share of prompts"),
        Table(("model", "heads"), heads, "Heads that bring the number to where it is read", "ll"),
    ]


def dose_response_blocks(rows: Sequence[Mapping[str, float | str]]) -> list[Block]:
    """Show how often the operation is taken up, by how many objects the model was trained on."""
    named = [
        (
            f"{float(row['nouns']):.0f} objects",
            Estimate(*(float(row[f"strange{end}"]) for end in ("", "_low", "_high"))),
        )
        for row in sorted(rows, key=lambda row: float(row["nouns"]))
    ]
    return _plot(named, "Taken up with objects never trained on", "share of prompts")


def _plot(estimates: Sequence[tuple[str, Estimate | None]], caption: str, axis: str) -> list[Block]:
    """Plot estimates; those that are missing or not numbers are left out."""
    rows = [
        Interval(name, e.value, e.low, e.high)
        for name, e in estimates
        if e is not None and all(map(math.isfinite, (e.value, e.low, e.high)))
    ]
    return [IntervalPlot(rows, caption, axis=axis)] if rows else []


def _format_estimate(estimate: Estimate) -> str:
    return typographic_minus(str(estimate))
