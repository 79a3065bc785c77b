"""Verdicts on variables and heads as blocks, shared by the pages on comparisons."""

from collections import Counter
from collections.abc import Sequence

from probes.comparison.heads.head_sets import MIN_EXPLAINED, PARTIAL_EXPLAINED
from probes.comparison.heads.result import MIN_RELIABILITY
from probes.comparison.heads.verdicts import SIMILARITY_MARGIN, STRENGTH_MARGIN
from probes.comparison.model_facts import ModelFacts
from probes.comparison.paths.measure import MIN_PATH_FRACTION
from probes.comparison.paths.verdicts import PATH_MARGIN
from probes.comparison.result import Comparison
from probes.comparison.variables.verdicts import MIN_INTERCHANGE_ACCURACY
from probes.comparison.verdict import NO_VERDICT, SubjectKind, Verdict, VerdictLabel
from probes.viz.blocks import Block, CellValue, Note, Table, TableCell, Tone
from probes.viz.html_text import nonbreaking
from probes.viz.plots.hotspot_map import display_variable
from probes.viz.reports.tables.evidence import (
    BRACKETS_NOTE,
    EVIDENCE_COLUMNS,
    evidence_row,
    evidence_text,
    passed_text,
)
from probes.viz.reports.tables.transfers import interchange_plot, transfer_tables

TONES: dict[VerdictLabel, Tone | None] = {
    "kept": "good",
    "weaker": None,
    "stronger": None,
    "merged": None,
    "split": None,
    "moved": None,
    "lost": "bad",
    "not shared between seeds": "muted",
    "new": None,
    "no reliable effect": "muted",
    "behavior absent": "muted",
    "cannot tell": "muted",
}
"""Tone of each verdict, in the order of the glossary."""

VARIABLE_DEFINITION = (
    "A variable is a part of the question that determines the answer: the operation (add or "
    "subtract), an operand such as x, or the object that is counted."
)
VARIABLE_INTRO = (
    VARIABLE_DEFINITION + " Cross-model interchange: states of {full} are mapped linearly into "
    "{other} and replace its states at the site where {other} itself encodes the variable. The "
    "interchange accuracy is the fraction of pairs in which the answer changes in this variable "
    "alone. Maps are not fitted on any tested verb, object or number. Controls get the same map "
    "and the same search. The upper reference is {other}'s own states through such a map."
)
HEAD_INTRO = (
    "L1.H3 is head 3 of layer 1, both counted from 0. A head is described by its patching effects "
    "and its attention. Its counterpart can be one head, a group of heads, or none. A lost head "
    "does not imply that its computation is lost. Hover over a verdict to see its tests."
)

_VARIABLE_LABELS: dict[VerdictLabel, str] = {
    "kept": "Same role, and the full model's states reach an interchange accuracy at most 0.10 "
    "below that of the relative's own states, and above every control (95 % intervals).",
    "merged": f"Interchange changes it in more than {MIN_INTERCHANGE_ACCURACY:.0%} of the pairs, "
    "but only together with other variables; or one of the roles that the full model needs "
    "together is enough.",
    "split": "The relative needs further roles besides those of the full model.",
    "moved": "Encoded at another role, while two seeds of the full model agree on theirs.",
    "behavior absent": "The relative does not give the answer that the variable determines.",
    "cannot tell": "The intervals show no site, seeds of the full model differ in the role, or the "
    "intervals do not show that the two codes map onto each other.",
}
_HEAD_LABELS: dict[VerdictLabel, str] = {
    "kept": "One head of the relative is more similar than the null and than negative controls, "
    f"and explains more than {MIN_EXPLAINED:.0%} of its effects (95 % intervals).",
    "merged": "Together with other heads, but not alone, it has the effects of one head of the "
    "relative.",
    "split": "Two or three heads of the relative have its effects together, but none of them "
    "alone.",
    "moved": "A head of the relative changes the same answers from another role; another seed of "
    "the full model keeps the role.",
    "lost": "No head of the relative is more similar than the null, and no head or set explains "
    f"{PARTIAL_EXPLAINED:.0%} of its effects or is explained by it, although the relative does "
    "the task.",
    "not shared between seeds": "The relative lacks it as under “lost”, but so does the full "
    "model trained from another seed: training again is enough to lose it.",
    "new": "Exists only in the relative: the rule of “lost” with the models exchanged.",
    "no reliable effect": f"Its effects have a split-half reliability below {MIN_RELIABILITY}, or "
    "are close to 0.",
    "behavior absent": "One of the models does not do the task.",
    "cannot tell": "No other rule applies: the interval of some test includes its threshold.",
}
_PATH_LABELS: dict[VerdictLabel, str] = {
    "kept": f"Carries more than {MIN_PATH_FRACTION:.0%} of the effect in both models, more logits "
    f"than the null, and fractions differ by less than {PATH_MARGIN:.2f}.",
    "weaker": "As “kept”, but the fraction in the relative is smaller, maybe by more than that.",
    "stronger": "As “kept”, but the fraction in the relative is larger, maybe by more than that.",
    "lost": f"Carries less than {MIN_PATH_FRACTION:.0%} of the effect.",
    "not shared between seeds": "As “lost”, and the full model trained from another seed lacks the "
    "path as well.",
    "new": "Only the relative has the path.",
    "behavior absent": "The relative does not do the task.",
    "cannot tell": "The interval of some test includes its threshold.",
}
_MEANINGS: dict[SubjectKind, dict[VerdictLabel, str]] = {
    "path": _PATH_LABELS,
    "variable": _VARIABLE_LABELS,
    "head": _HEAD_LABELS,
}


def glossary(*kinds: SubjectKind) -> Table:
    """Meaning of each verdict for variables, heads, or both."""
    labels: list[VerdictLabel] = [
        label for label in TONES if any(label in _MEANINGS[kind] for kind in kinds)
    ]
    rows = [
        [
            TableCell(nonbreaking(label), TONES[label]),
            *(_MEANINGS[kind].get(label, "(does not occur)") for kind in kinds),
        ]
        for label in labels
    ]
    columns = ("verdict", *(f"meaning for a {kind}" for kind in kinds))
    never_lost = (
        "A variable is never lost while the task is done, because the answer depends on it. Its "
        "sites and heads can be lost."
    )
    notes = [never_lost] if "variable" in kinds else []
    return Table(columns, rows, "Meaning of the verdicts", "l" * len(columns), notes, folded=True)


def verdict_cell(verdict: Verdict, *, with_counterpart: bool = False, hover: str = "") -> TableCell:
    """Label in its tone, with the counterpart if wanted, and the reason as its tooltip."""
    at = f" ({verdict.counterpart})" if with_counterpart and verdict.counterpart else ""
    text = nonbreaking(verdict.label) + at
    return TableCell(text, TONES[verdict.label], hover or verdict.reason)


def _draw_table(comparison: Comparison) -> Table:
    """What each draw of prompts, held-out words and sites gave."""
    full, other = comparison.full.name, comparison.other.name
    rows: list[list[CellValue]] = [
        [
            display_variable(draw.variable),
            draw.seed,
            draw.full_site,
            draw.site,
            draw.interchange_accuracy,
            nonbreaking(draw.label),
        ]
        for draw in comparison.draws
    ]
    columns = ("variable", "seed", f"site in {full}", f"site in {other}", "ridge", "verdict")
    note = (
        f"Ridge: interchange accuracy of {full}'s states in {other}, with the interval over the "
        "prompts of this draw. A verdict above is by all draws together, and is “cannot tell” "
        "where a single draw decides for another one."
    )
    return Table(columns, rows, "Draws of prompts, held-out words and sites", "lrllrl", (note,))


def variable_blocks(comparison: Comparison, *, tests: bool = True) -> list[Block]:
    """Verdicts on variables and the interchange behind them.

    Args:
        comparison: Two models.
        tests: Whether to list all tests and failing prompts too.
    """
    full, other = comparison.full.name, comparison.other.name
    if comparison.transfer_skip_reason:
        return [interchange_skipped(comparison.transfer_skip_reason)]
    verdicts = [verdict for verdict in comparison.verdicts if verdict.kind == "variable"]
    no_site = "does not do the whole task, so it has no site for a variable."
    blocks: list[Block] = [Note(f"No verdict on any variable: {full} {no_site}", "muted")]
    if verdicts:
        blocks = [_variable_table(comparison, verdicts)]
    if comparison.transfers_to_other:
        kept = [verdict.subject for verdict in verdicts if verdict.label == "kept"]
        caption = f"Interchange accuracy of {full}'s states in {other}"
        blocks.append(interchange_plot(comparison.transfers_to_other, caption, kept))
    else:
        blocks.append(Note(f"No interchange into {other}: it {no_site}", "muted"))
    transfers = (*comparison.transfers_to_other, *comparison.transfers_to_full)
    blocks += transfer_tables(transfers) if transfers else []
    if len({draw.seed for draw in comparison.draws}) > 1:
        blocks.append(_draw_table(comparison))
    if tests and any(verdict.tests for verdict in verdicts):
        rows = [
            [display_variable(v.subject), *evidence_row(test)] for v in verdicts for test in v.tests
        ]
        columns = ("variable", *EVIDENCE_COLUMNS)
        caption = f"Tests behind the verdicts ({len(rows)})"
        blocks.append(Table(columns, rows, caption, "llrlll", (BRACKETS_NOTE,), folded=True))
    prompts = [
        [display_variable(verdict.subject), prompt.text, prompt.source]
        for verdict in verdicts
        for prompt in (comparison.failing_prompts.get(verdict.subject, ()) if tests else ())
    ]
    if prompts:
        caption = (
            f"Interchange pairs whose answer changes with mapped states of {other}, but not of "
            f"{full}"
        )
        columns = ("variable", "base question", "source question")
        blocks.append(Table(columns, prompts, caption, "lll", folded=True))
    return blocks


def interchange_skipped(reason: str) -> Note:
    """Note in place of the interchange results."""
    return Note(f"No cross-model interchange was run. {reason}", "muted")


def head_blocks(comparison: Comparison) -> list[Block]:
    """Verdicts on the heads of the full model, and on those that only the relative has."""
    verdicts = [verdict for verdict in comparison.verdicts if verdict.kind == "head"]
    if not verdicts:
        return [Note("There is no verdict on any head.", "muted")]
    columns = (
        "head", "verdict", f"counterpart in {comparison.other.name}", "equivalent within margins",
        "reason",
    )  # fmt: skip
    note = (
        f"Equivalent within margins: similarity at most {SIMILARITY_MARGIN:.2f} below that of the "
        f"head to itself on other prompts, and strength within ±{STRENGTH_MARGIN:.0%}. The verdict "
        "does not depend on it."
    )
    return [Table(columns, list(map(_head_row, verdicts)), align="lllll", notes=(note,))]


def repeat_blocks(comparison: Comparison) -> list[Block]:
    """Number of comparisons with each verdict, if the comparison was repeated."""
    if not comparison.repeats:
        return []
    rows: list[list[CellValue]] = [
        [
            one.kind,
            display_variable(one.subject),
            ", ".join(f"{label} {count}" for label, count in Counter(one.labels).most_common()),
            one.stability,
        ]
        for one in comparison.repeats
        if {*one.labels} - {"no reliable effect", NO_VERDICT}
    ]
    caption = f"Verdicts in {len(comparison.repeats[0].labels)} comparisons with other prompts"
    note = "Stability: fraction of the comparisons with the most frequent verdict."
    return [Table(("kind", "subject", "verdicts", "stability"), rows, caption, "lllr", (note,))]


def models_table(models: Sequence[ModelFacts], notes: Sequence[str]) -> Table:
    """Shapes of the compared models, with notes on the method."""
    rows = [
        [m.name, m.origin, m.lineage or "–", f"{m.layers} × {m.heads}", m.d_model,
         f"{m.parameters:,}"]
        for m in models
    ]  # fmt: skip
    columns = ("model", "origin", "how it was made", "layers × heads", "width", "parameters")
    return Table(columns, rows, align="lllrrr", notes=notes)


def _variable_table(comparison: Comparison, verdicts: Sequence[Verdict]) -> Table:
    rows = list(map(_variable_row, verdicts))
    note = (
        "L1.resid@op is the residual stream before layer 1, counted from 0, at the role op; roles "
        "joined by + are interchanged together."
    )
    notes = (note,) if any(verdict.counterpart for verdict in verdicts) else ()
    columns = ("variable", "verdict", f"site in {comparison.other.name}", "reason")
    return Table(columns, rows, align="llll", notes=notes)


def _variable_row(verdict: Verdict) -> list[CellValue]:
    label = verdict_cell(verdict, hover=tests_text(verdict))
    return [display_variable(verdict.subject), label, verdict.counterpart or None, verdict.reason]


def _head_row(verdict: Verdict) -> list[CellValue]:
    cells = {True: TableCell("yes", "good"), False: TableCell("no", "bad"), None: None}
    label, equivalent = verdict_cell(verdict, hover=tests_text(verdict)), cells[verdict.equivalent]
    subject = verdict.subject or "(relative only)"
    return [subject, label, verdict.counterpart or None, equivalent, verdict.reason]


def tests_text(verdict: Verdict) -> str:
    """Tests of a verdict in one line, or its reason."""
    texts = [f"{evidence_text(test)} ({passed_text(test)})" for test in verdict.tests]
    return " · ".join(texts) or verdict.reason
