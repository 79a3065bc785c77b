"""A model beside several relatives as one page: the table of words, then what it rests on."""

import math
from collections.abc import Sequence

import numpy as np

from probes.comparison.family_result import FamilyComparison
from probes.comparison.result import Comparison
from probes.comparison.verdict import Verdict
from probes.viz.blocks import Block, Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.registry import report
from probes.viz.reports.transfer_tables import donor_plot, format_fraction
from probes.viz.reports.verdict_tables import (
    VARIABLE_INTRO,
    glossary,
    models_table,
    variable_blocks,
    verdict_cell,
)

_VERDICTS_INTRO = (
    "What became of each variable and each head of {full}, relative by relative, and in brackets "
    "where it is there. Point at a word to see why. A variable is something that the question says "
    "and the answer hangs on: the operation (add or take away), a number such as x, the thing that "
    "is asked about. L1.H3 is head 3 of layer 1, and L1.resid@op the state before layer 1 at the "
    "word in the role op, counted from 0; joined by +, two places act together. That a head is "
    "lost does not say that what it computed is lost."
)
_NUMBERS_INTRO = (
    "The numbers beside the words. What chance reaches, and what nets reach that were trained on "
    "such texts for another end, stand in columns of their own."
)
_INTERCHANGE_INTRO = (
    "Kinship: how often states of a relative, put into {full} through a linear map, turn its "
    "answers; the mean over the variables. It does not ask whether the relative can do the task. "
    "No tested word was fitted on. Untrained nets were given the same map and the same search, so "
    "what they reach is chance; nets that were trained on such texts for another end say what "
    "knowing the words alone is worth. What a relative's words hold before any layer counts as its "
    "own work. Then the same variable by variable: green is surely beyond all of these. That is "
    "not proof of descent: a net that learned the same task by itself may come to the same code."
)


@report.register
def family_comparison_page(family: FamilyComparison) -> Picture:
    """Lay a model and its relatives out as one page that needs no network."""
    first = family.comparisons[0]
    full = first.full.name
    sections: list[Section] = [
        (
            "What became of each variable and head",
            _VERDICTS_INTRO.format(full=full),
            [_verdicts_table(family), glossary("variable", "head")],
        ),
        ("How alike they are", _NUMBERS_INTRO, [_numbers_table(family)]),
        (
            "Are they kin, beyond chance?",
            _INTERCHANGE_INTRO.format(full=full),
            _interchange_blocks(family),
        ),
        *(
            (
                f"{one.other.name}: what became of each variable",
                VARIABLE_INTRO.format(full=full, other=one.other.name)
                if one.transfers_to_other
                else "",
                variable_blocks(one, tests=False),
            )
            for one in family.comparisons
        ),
        ("How this was measured", "", [_protocol_table(family)]),
    ]
    notes = [
        Note(line, "bad" if _lacks_behavior(one) else None)
        for line, one in zip(family.summary(), family.comparisons, strict=True)
    ]
    subtitle = f"Pattern “{first.pattern}” ({first.title}).\nFor example: {first.example}"
    return page(f"{full} and its relatives {', '.join(family.names)}", sections, notes, subtitle)


def _lacks_behavior(comparison: Comparison) -> bool:
    """Say whether the relative cannot do it; the gates of the full model stand first."""
    return any(gate.state == "closed" for gate in comparison.gates[len(comparison.answers) :])


def _verdicts_table(family: FamilyComparison) -> Table:
    """Lay out the words: a variable or head to a row, a relative to a column."""
    told = [
        {verdict.subject: verdict for verdict in one.verdicts if verdict.subject}
        for one in family.comparisons
    ]
    subjects = dict.fromkeys(subject for verdicts in told for subject in verdicts)
    idle = [name for name in subjects if _has_no_effect([f[name] for f in told if name in f])]
    rows: list[list[str | TableCell]] = [
        [
            subject,
            *(
                verdict_cell(f[subject], with_counterpart=True) if subject in f else ""
                for f in told
            ),
        ]
        for subject in subjects
        if subject not in idle
    ]
    rows.append(["new heads", *map(_new_heads_cell, family.comparisons)])
    columns = ("variable or head", *family.names)
    full = family.comparisons[0].full.name
    notes = [f"Idle in {full}, and so left out: {', '.join(idle)}."] if idle else []
    return Table(columns, rows, align="l" * len(columns), notes=notes)


def _has_no_effect(verdicts: Sequence[Verdict]) -> bool:
    """Say whether a head is idle in the full model: where the behavior is absent none is."""
    words = {verdict.label for verdict in verdicts}
    return "no reliable effect" in words and words <= {"no reliable effect", "behavior absent"}


def _new_heads_cell(comparison: Comparison) -> TableCell:
    own = [verdict for verdict in comparison.verdicts if verdict.label == "new"]
    why = " · ".join(f"{verdict.counterpart}: {verdict.reason}" for verdict in own)
    return TableCell(", ".join(verdict.counterpart for verdict in own) or "–", hover=why)


def _numbers_table(family: FamilyComparison) -> Table:
    numbers, first = family.metrics(), family.comparisons[0]
    rows = [
        [str(name), *(format_fraction(float(value)) for value in row)]
        for name, row in zip(numbers.index, numbers.to_numpy(dtype=float), strict=True)
    ]
    notes = (
        "Right: share of whole answers. Heads alike: the mean score of all pairs of heads, 0 to 1; "
        "random-init: what 95 % of untrained nets stay below. Turned: how often states of this "
        f"model, put into {first.full.name}, turn its answer in this variable. "
        f"The {first.nulls} untrained nets have the shape of "
        f"{first.other.name}: the best one, number by number.",
    )
    return Table(("what", *map(str, numbers.columns)), rows, notes=notes)


def _interchange_blocks(family: FamilyComparison) -> list[Block]:
    """Plot how much each relative's states turn, beside untrained nets and strangers."""
    kin = [one for one in family.comparisons if not math.isnan(one.mean_interchange_accuracy)]
    first = family.comparisons[0]
    if not kin:
        why = first.transfer_skip_reason or f"{first.full.name} does not do the whole task"
        return [Note(f"No state was carried over. {why}", "muted")]
    rows = [_interchange_interval(one) for one in kin]
    strange = {name: [] for name in kin[0].transfers_to_full[0].negative_controls}
    for name in strange:
        values = [one.negative_controls[name] for one in kin[0].transfers_to_full]
        label = f"{name} (another end)"
        rows.append(Interval(label, float(np.mean(values)), tone="muted"))
    caption = f"Kinship to {first.full.name}: mean over {len(kin[0].transfers_to_full)} variables"
    blocks: list[Block] = [IntervalPlot(rows, caption, axis="share of crossings")]
    for at, one in enumerate(kin[0].transfers_to_full):
        same = [relative.transfers_to_full[at] for relative in kin]
        caption = f"{one.variable}: how often it turns the answer of {first.full.name}"
        blocks.append(donor_plot(same, caption))
    return blocks


def _interchange_interval(comparison: Comparison) -> Interval:
    nets = np.mean([carried.nulls for carried in comparison.transfers_to_full], axis=0)
    beyond = max(
        float(nets.max()),
        *np.mean([[*b.negative_controls.values()] for b in comparison.transfers_to_full], axis=0),
    )
    tone: Tone | None = None if comparison.mean_interchange_accuracy > beyond else "muted"
    return Interval(
        comparison.other.name,
        comparison.mean_interchange_accuracy,
        null=[float(net) for net in nets],
        tone=tone,
    )


def _protocol_table(family: FamilyComparison) -> Table:
    first = family.comparisons[0]
    strangers: Sequence[str] = (
        tuple(first.transfers_to_full[0].negative_controls) if first.transfers_to_full else ()
    )
    return models_table(
        (first.full, *(one.other for one in family.comparisons)),
        (
            f"{first.prompts} pairs for each of the contrasts {', '.join(first.contrasts)}; "
            f"{first.nulls} untrained nets of each shape; seed {first.seed}; another seed of the "
            f"full model: {first.other_seed or 'none known'}; trained for another end: "
            f"{', '.join(strangers) or 'none known'}.",
            "Intervals: 95 %, over prompts; Wilson for shares of crossings. Kinship is drawn "
            "without one: its variables are tried on overlapping prompts.",
        ),
    )
