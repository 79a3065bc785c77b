"""Page of one model and several relatives: verdicts, similarity and cross-model interchange."""

import math

import numpy as np

from probes.comparison.family_result import FamilyComparison
from probes.comparison.result import Comparison
from probes.comparison.verdict import Verdict
from probes.viz.blocks import Block, CellValue, Note, Table, TableCell
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.hotspot_map import display_variable
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.registry import report
from probes.viz.reports.path_panels import path_picture, short_answer
from probes.viz.reports.tables.transfers import donor_plot, negative_control_rows
from probes.viz.reports.tables.verdicts import (
    VARIABLE_DEFINITION,
    VARIABLE_INTRO,
    glossary,
    interchange_skipped,
    models_table,
    repeat_blocks,
    variable_blocks,
    verdict_cell,
)

_VERDICTS_INTRO = (
    "Verdict on each variable and head of {full} in each relative, with its counterpart in "
    "brackets. Hover over a verdict to see the reason. " + VARIABLE_DEFINITION + " L1.H3 is head 3 "
    "of layer 1, and L1.resid@op the residual stream before layer 1 at the role op, counted from "
    "0; sites joined by + act together. A lost head does not imply that its computation is lost."
)
_NUMBERS_INTRO = "Numbers behind the verdicts."
_COLUMNS_INTRO = " Random-init models and negative controls have columns of their own."
_INTERCHANGE_INTRO = (
    "Mean interchange accuracy: states of a relative are mapped linearly into {full}; the accuracy "
    "is the fraction of interchange pairs in which the answer changes in the intended variable "
    "alone, averaged over the variables. It does not require that the relative does the task. Maps "
    "are not fitted on any tested word. {controls}The token embeddings of a relative count as its "
    "own. One plot for each variable follows; green lies above all controls. That does not show "
    "descent: a model that learned the task independently can arrive at the same code."
)
_CONTROLS_INTRO = (
    "Random-init models get the same map and the same search: they give the null. Negative "
    "controls, trained on the same texts for another task, show what knowledge of the words alone "
    "is worth. "
)
_METHOD_NOTE = (
    "Intervals: 95 %, over prompts; Wilson for interchange accuracies. The mean interchange "
    "accuracy has none, because its variables are tested on overlapping prompts."
)


@report.register
def family_comparison_page(family: FamilyComparison) -> Picture:
    """Page of a model and its relatives."""
    first = family.comparisons[0]
    full = first.full.name
    verdicts = [_verdicts_table(family), glossary("path", "variable", "head")]
    # A permuted null runs no model.
    has_models = first.method.null == "random-init"
    controls = _CONTROLS_INTRO if has_models else ""
    interchange_intro = _INTERCHANGE_INTRO.format(full=full, controls=controls)
    numbers_intro = _NUMBERS_INTRO + _COLUMNS_INTRO * has_models
    sections: list[Section] = [
        (
            "Verdicts on role paths, variables and heads",
            _VERDICTS_INTRO.format(full=full),
            verdicts,
        ),
        ("Similarity", numbers_intro, [_metrics_table(family)]),
        ("Cross-model interchange", interchange_intro, _interchange_blocks(family)),
    ]
    for one in family.comparisons:
        intro = VARIABLE_INTRO.format(full=full, other=one.other.name)
        intro = intro if one.transfers_to_other else ""
        blocks = [*variable_blocks(one, tests=False), *repeat_blocks(one)]
        sections.append((f"{one.other.name}: verdicts on variables", intro, blocks))
    sections.append(("Method", "", [_method_table(family)]))
    # The first lines are those of the relatives.
    lacking = {k for k, one in enumerate(family.comparisons) if _lacks_behavior(one)}
    notes = [Note(line, "bad" if k in lacking else None) for k, line in enumerate(family.summary())]
    subtitle = f"Pattern “{first.pattern}” ({first.title}).\nExample: {first.example}"
    answers = [
        Note(short_answer(one), "bad" if k in lacking else None)
        for k, one in enumerate(family.comparisons)
    ]
    lead = [*answers, *path_picture(family.comparisons), *notes]
    return page(f"{full} and its relatives {', '.join(family.names)}", sections, lead, subtitle)


def _lacks_behavior(comparison: Comparison) -> bool:
    """Whether a gate of the relative is not open; the gates of the full model come first."""
    return not all(gate.is_passed for gate in comparison.gates[len(comparison.answers) :])


def _verdicts_table(family: FamilyComparison) -> Table:
    """Verdicts with one row for each path, variable or head and one column for each relative."""
    by_subject: dict[str, list[Verdict | None]] = {}
    for at, one in enumerate(family.comparisons):
        for verdict in one.verdicts:
            if verdict.subject:
                row = by_subject.setdefault(verdict.subject, [None] * len(family.comparisons))
                row[at] = verdict
    inactive = [subject for subject, row in by_subject.items() if _has_no_effect(row)]
    rows: list[list[CellValue]] = [
        [
            display_variable(subject),
            *("" if v is None else verdict_cell(v, with_counterpart=True) for v in row),
        ]
        for subject, row in by_subject.items()
        if subject not in inactive
    ]
    rows.append(["new paths and heads", *map(_new_heads_cell, family.comparisons)])
    columns = ("path, variable or head", *family.names)
    full = family.comparisons[0].full.name
    note = f"Heads without a reliable effect in {full} are left out: {', '.join(inactive)}."
    return Table(columns, rows, align="l" * len(columns), notes=[note] if inactive else [])


def _has_no_effect(verdicts: list[Verdict | None]) -> bool:
    """Whether a head of the full model has no reliable effect, in any comparison with a gate."""
    labels = {verdict.label for verdict in verdicts if verdict}
    return "no reliable effect" in labels and labels <= {"no reliable effect", "behavior absent"}


def _new_heads_cell(comparison: Comparison) -> TableCell:
    new = [verdict for verdict in comparison.verdicts if verdict.label == "new"]
    reasons = " · ".join(f"{verdict.counterpart}: {verdict.reason}" for verdict in new)
    return TableCell(", ".join(verdict.counterpart for verdict in new) or "–", hover=reasons)


def _metrics_table(family: FamilyComparison) -> Table:
    metrics, first = family.metrics(), family.comparisons[0]
    rows = [
        [str(name), *map(float, row)]
        for name, row in zip(metrics.index, metrics.to_numpy(dtype=float), strict=True)
    ]
    note = (
        "Right: accuracy of whole answers. Head similarity: mean score of all pairs of heads, 0 to "
        f"1, and the threshold of {first.method.null_name}. Interchange accuracy: fraction of "
        f"pairs in which states of this model, mapped into {first.full.name}, change the answer in "
        "this variable alone."
    )
    if "best random-init" in metrics:
        note += (
            f" Best random-init: highest of {first.nulls} models of {first.other.name}'s shape, "
            "metric by metric."
        )
    return Table(("metric", *map(str, metrics.columns)), rows, notes=(note,))


def _interchange_blocks(family: FamilyComparison) -> list[Block]:
    """Mean interchange accuracy of each relative, then one plot for each variable."""
    measured = [o for o in family.comparisons if not math.isnan(o.mean_interchange_accuracy)]
    first, full = family.comparisons[0], family.comparisons[0].full.name
    if not measured:
        reason = first.transfer_skip_reason or f"{full} does not do the whole task."
        return [interchange_skipped(reason)]
    variables = measured[0].transfers_to_full
    rows = [
        *map(_interchange_interval, measured),
        *negative_control_rows(
            {
                name: float(np.mean([one.negative_controls[name] for one in variables]))
                for name in variables[0].negative_controls
            }
        ),
    ]
    caption = f"Mean interchange accuracy in {full} over {len(variables)} variables"
    blocks: list[Block] = [IntervalPlot(rows, caption, axis="interchange accuracy")]
    for at, one in enumerate(variables):
        transfers = [relative.transfers_to_full[at] for relative in measured]
        caption = f"{display_variable(one.variable)}: interchange accuracy in {full}"
        blocks.append(donor_plot(transfers, caption))
    return blocks


def _interchange_interval(comparison: Comparison) -> Interval:
    transfers, accuracy = comparison.transfers_to_full, comparison.mean_interchange_accuracy
    nulls = np.mean([one.nulls for one in transfers], axis=0)
    negative = np.mean([[*one.negative_controls.values()] for one in transfers], axis=0)
    tone = None if accuracy > max([*nulls, *negative], default=0.0) else "muted"
    return Interval(
        comparison.other.name, accuracy, null=[float(null) for null in nulls], tone=tone
    )


def _method_table(family: FamilyComparison) -> Table:
    first = family.comparisons[0]
    other_seed = next(
        (one.other_seed for one in family.comparisons if one.other_seed), "none known"
    )
    controls = first.transfers_to_full[0].negative_controls if first.transfers_to_full else ()
    of = "shape" if first.method.null == "random-init" else "relative"
    sizes = (
        f"{first.prompts} pairs for each of the contrasts {', '.join(first.contrasts)}; "
        f"{first.nulls} {first.method.null_name} of each {of}; seed {first.seed}; other-seed model "
        f"of the full model: {other_seed}; negative controls: "
        f"{', '.join(controls) or 'none known'}."
    )
    models = (first.full, *(one.other for one in family.comparisons))
    return models_table(models, (sizes, _METHOD_NOTE))
