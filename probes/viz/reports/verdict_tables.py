"""What became of heads and variables, as the blocks that pages about relatives share."""

from collections.abc import Sequence

from probes.comparison.heads.head_sets import MIN_EXPLAINED, PARTIAL_EXPLAINED
from probes.comparison.heads.matching import MIN_RELIABILITY
from probes.comparison.heads.verdicts import SIMILARITY_MARGIN, STRENGTH_MARGIN
from probes.comparison.model_facts import ModelFacts
from probes.comparison.result import Comparison
from probes.comparison.variables.verdicts import MIN_INTERCHANGE_ACCURACY
from probes.comparison.verdict import SubjectKind, Verdict, VerdictLabel
from probes.stats.evidence import StatisticalTest
from probes.viz.blocks import Block, Note, Table, TableCell, Tone
from probes.viz.reports.transfer_tables import (
    interchange_plot,
    nonbreaking,
    transfer_tables,
    with_minus_signs,
)

TONES: dict[VerdictLabel, Tone | None] = {
    "kept": "good",
    "merged": None,
    "split": None,
    "moved": None,
    "lost": "bad",
    "new": None,
    "no reliable effect": "muted",
    "behavior absent": "muted",
    "cannot tell": "muted",
}
"""Whether a word is good news, bad news, no news, or neither."""

VARIABLE_INTRO = (
    "A variable is something that the question says and the answer hangs on: the operation (add or "
    "take away), a number such as x, the thing that is asked about. Here states of {full} are put "
    "into {other}, at the place where {other} itself holds the variable, through a linear map from "
    "the one model's states to the other's. Then the answer turns as it should, or it does not. No "
    "tested word was fitted on: the map has seen none of the verbs, things and numbers that are "
    "tried. Whatever stands in for {full} was given the same map and the same search, so what it "
    "reaches is chance; what {other}'s own states reach through such a map is the ceiling."
)
HEAD_INTRO = (
    "A head is one of the parts by which a layer looks back at earlier words; L1.H3 is head 3 of "
    "layer 1, both from 0. What a head does is what replacing its output moves, and how it "
    "attends. A head may become another head, a group of heads, or nothing; and a head that is "
    "lost does not say that what it computed is lost. Point at a word to see its tests."
)

_VARIABLE_LABELS: dict[VerdictLabel, str] = {
    "kept": "It is held at the same role, and the full model's states, put in there, surely do at "
    "most 0.10 less than the relative's own, and more than any stand-in.",
    "merged": f"It is handed over in more than {MIN_INTERCHANGE_ACCURACY:.0%} of the crossings, but only along with "
    "others; or at one of the roles that the full model needs together.",
    "split": "The relative needs further roles besides the full model's.",
    "moved": "It is held at another role, and two seeds of the full model agree on theirs.",
    "behavior absent": "The relative does not give the answer that the variable turns.",
    "cannot tell": "No place surely holds it, seeds differ in where it is, or the two codes do not "
    "surely map onto each other.",
}
_HEAD_LABELS: dict[VerdictLabel, str] = {
    "kept": "One head there is surely more like it than chance and than nets trained for another "
    f"end offer, and surely does more than {MIN_EXPLAINED:.0%} of its work.",
    "merged": "With other heads, and not alone, it does the work of one head there.",
    "split": "Two or three heads there do its work together, and none of them alone.",
    "moved": "A head there moves the same answers, but from another role; another seed of the full "
    "model keeps the role.",
    "lost": "Surely no head there is like it beyond chance, and no head or group does "
    f"{PARTIAL_EXPLAINED:.0%} of its work, though the relative can do the task.",
    "new": "A head of the relative alone: the rule of “lost” turned round.",
    "no reliable effect": f"What it does repeats by less than {MIN_RELIABILITY} between halves of the prompts, or "
    "moves next to nothing.",
    "behavior absent": "One of the models cannot do the task: there is nothing to have a part in.",
    "cannot tell": "None of these: the interval of some test includes its bar.",
}
_LABEL_MEANINGS: dict[SubjectKind, dict[VerdictLabel, str]] = {
    "variable": _VARIABLE_LABELS,
    "head": _HEAD_LABELS,
}

_PASSED_TEXT: dict[bool | None, tuple[str, Tone]] = {
    True: ("yes", "good"),
    False: ("no", "bad"),
    None: ("undecided", "muted"),
}


def glossary(*kinds: SubjectKind) -> Table:
    """Explain in a line each what the words mean, of variables, of heads, or of both."""
    words: list[VerdictLabel] = [
        word for word in TONES if any(word in _LABEL_MEANINGS[kind] for kind in kinds)
    ]
    rows = [
        [
            TableCell(nonbreaking(w), TONES[w]),
            *(_LABEL_MEANINGS[k].get(w, "(never said)") for k in kinds),
        ]
        for w in words
    ]
    columns = ("word", *(f"what it says of a {kind}" for kind in kinds))
    notes = []
    if "variable" in kinds:
        notes.append(
            "A variable is never lost while the task is done: the answer hangs on it. What may be "
            "lost are places and heads."
        )
    return Table(columns, rows, "What the words mean", "l" * len(columns), notes)


def verdict_cell(verdict: Verdict, *, with_counterpart: bool = False, hover: str = "") -> TableCell:
    """Show a word in its tone, with where it is, and what it rests on when pointed at."""
    at = f" ({verdict.counterpart})" if with_counterpart and verdict.counterpart else ""
    return TableCell(
        nonbreaking(verdict.label) + at,
        TONES[verdict.label],
        with_minus_signs(hover or verdict.reason),
    )


def variable_blocks(comparison: Comparison, *, tests: bool = True) -> list[Block]:
    """Show what became of the variables, and what states turn in the other model.

    Args:
        found: The comparison.
        tests: Whether every test is listed as well; else it shows where a word is pointed at.
    """
    if comparison.transfer_skip_reason:
        return [Note(f"No state was carried over. {comparison.transfer_skip_reason}", "muted")]
    verdicts = [verdict for verdict in comparison.verdicts if verdict.kind == "variable"]
    blocks: list[Block] = (
        [_variable_table(comparison, verdicts)] if verdicts else [_no_verdict_note(comparison)]
    )
    if comparison.transfers_to_other:
        blocks.append(
            interchange_plot(
                comparison.transfers_to_other,
                f"How often states of {comparison.full.name} turn the answer of {comparison.other.name}",
                [verdict.subject for verdict in verdicts if verdict.label == "kept"],
            )
        )
    else:
        why = "it does not do the whole task, so it has no place of its own for a variable"
        blocks.append(Note(f"Nothing was put into {comparison.other.name}: {why}.", "muted"))
    if comparison.transfers_to_other or comparison.transfers_to_full:
        blocks += transfer_tables((*comparison.transfers_to_other, *comparison.transfers_to_full))
    if tests and any(verdict.tests for verdict in verdicts):
        blocks.append(_tests_table(verdicts))
    rows = [
        [verdict.subject, item.text, item.source]
        for verdict in verdicts
        for item in (comparison.failing_prompts.get(verdict.subject, ()) if tests else ())
    ]
    if rows:
        columns = ("variable", "what is asked", "the question that left the state")
        caption = (
            f"Some crossings that states of {comparison.other.name} turn, mapped, and those of "
            f"{comparison.full.name} do not"
        )
        blocks.append(Table(columns, rows, caption, "lll"))
    return blocks


def head_blocks(comparison: Comparison) -> list[Block]:
    """Show what became of each head of the full model, and the relative's own heads."""
    verdicts = [verdict for verdict in comparison.verdicts if verdict.kind == "head"]
    if not verdicts:
        return [Note("Nothing was said of any head.", "muted")]
    columns = ("head", "word", f"where in {comparison.other.name}", "equal within margins", "why")
    note = (
        f"Equal within margins: surely at most {SIMILARITY_MARGIN:.2f} less alike than the head is to itself "
        f"on other prompts, and its strength within {STRENGTH_MARGIN:.0%}. The word does not read it."
    )
    rows = [_head_row(verdict) for verdict in verdicts]
    return [Table(columns, rows, align="lllll", notes=(note,))]


def models_table(models: Sequence[ModelFacts], notes: Sequence[str]) -> Table:
    """List what was compared, with notes on how it was measured."""
    rows = [
        [m.name, m.origin, f"{m.layers} × {m.heads}", str(m.d_model), f"{m.parameters:,}"]
        for m in models
    ]
    columns = ("model", "from", "layers × heads", "width", "parameters")
    return Table(columns, rows, align="llrrr", notes=notes)


def _no_verdict_note(comparison: Comparison) -> Note:
    return Note(
        f"No word is given to any variable: {comparison.full.name} does not do the whole task, so it "
        "has no place for one.",
        "muted",
    )


def _variable_table(comparison: Comparison, verdicts: Sequence[Verdict]) -> Table:
    rows = [
        [
            verdict.subject,
            verdict_cell(verdict, hover=_tests_summary(verdict)),
            verdict.counterpart or "–",
            with_minus_signs(verdict.reason),
        ]
        for verdict in verdicts
    ]
    note = (
        "L1.resid@op is the state before layer 1, from 0, at the word in the role op; two roles "
        "joined by + are put in together."
    )
    notes = (note,) if any(verdict.counterpart for verdict in verdicts) else ()
    columns = ("variable", "word", f"where in {comparison.other.name}", "why")
    return Table(columns, rows, align="llll", notes=notes)


def _head_row(verdict: Verdict) -> list[str | TableCell]:
    equal = {
        True: TableCell("yes", "good"),
        False: TableCell("no", "bad"),
        None: TableCell("–", "muted"),
    }
    return [
        verdict.subject or "(its own)",
        verdict_cell(verdict, hover=_tests_summary(verdict)),
        verdict.counterpart or "–",
        equal[verdict.equivalent],
        with_minus_signs(verdict.reason),
    ]


def _tests_summary(verdict: Verdict) -> str:
    """Say in one line which tests were read."""
    return " · ".join(map(_test_summary, verdict.tests)) or verdict.reason


def _test_summary(test: StatisticalTest) -> str:
    value = "not measured" if test.value is None else str(test.value)
    word = "shown beside" if not test.is_deciding else _PASSED_TEXT[test.passed][0]
    return f"{test.name}: {value}, wanted {test.threshold} ({word})"


def _tests_table(verdicts: Sequence[Verdict]) -> Table:
    rows = [_test_row(verdict, test) for verdict in verdicts for test in verdict.tests]
    columns = ("variable", "test", "measured", "wanted", "passed?", "what it would mean if not")
    note = "Tests in brackets are shown beside: the word does not read them."
    return Table(columns, rows, "The tests behind the words", "llrlll", (note,))


def _test_row(verdict: Verdict, test: StatisticalTest) -> list[str | TableCell]:
    name = test.name if test.is_deciding else f"({test.name})"
    value = "–" if test.value is None else nonbreaking(with_minus_signs(str(test.value)))
    return [
        verdict.subject, name, value, nonbreaking(with_minus_signs(test.threshold)), TableCell(*_PASSED_TEXT[test.passed]), test.meaning_if_failed
    ]  # fmt: skip
