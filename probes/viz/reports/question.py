"""Page of one question: roles, answers with foils, attention by role, and the circuit's use."""

import numpy as np

from probes.circuits.question.result import AnswerReading, CircuitUse, QuestionReport
from probes.viz.blocks import Block, Matrix, Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.circuit.diagram import circuit_diagram
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.registry import report

_MAX_HEADS = 16
_UNLIKELY = 0.005  # Is written as 0.00.
_ROLES_INTRO = (
    "The stretches of the text that the pattern names. What no role claims has the role rest."
)
_ANSWERS_INTRO = (
    "Probability of the whole text of each possible answer behind the prompt: the correct one, "
    "that of the other operation, and the numbers and objects of the question."
)
_ATTENTION_INTRO = (
    "Attention from the token at which the first answer is read, to all tokens of each role. Each "
    "row sums to 1. Shown are the heads that attend most to one role other than bos and rest."
)
_CIRCUIT_INTRO = (
    "The circuit was found on other questions of the pattern. Faithfulness f is the fraction of "
    "the logit difference that remains when only its edges carry the values of this question, and "
    "all others those of a counterfactual of this question. 1 equals the whole model. The diagram "
    "and the tables have the scores on this question: the drop of the logit difference when one "
    "edge carries its counterfactual value, as attribution estimates it."
)


@report.register
def question_page(asked: QuestionReport) -> Picture:
    """Page of one question."""
    sections: list[Section] = [
        ("Roles", _ROLES_INTRO, [Table(("role", "words"), [*map(list, asked.roles)], align="ll")]),
        ("Answer", _ANSWERS_INTRO, [_answer_table(answer) for answer in asked.answers]),
        ("Attention", _ATTENTION_INTRO, [_attention_matrix(asked)]),
    ]
    if asked.circuit is not None:
        sections.append(("Circuit", _CIRCUIT_INTRO, _circuit_blocks(asked.circuit)))
    tones: dict[int, Tone | None] = {n: _tone(a) for n, a in enumerate(asked.answers, 1)}
    notes = [Note(line, tones.get(n)) for n, line in enumerate(asked.summary())]
    return page(f"One question in {asked.model}", sections, notes, asked.text)


def _tone(answer: AnswerReading) -> Tone | None:
    """Green only for an answer that the model may give."""
    if not answer.is_correct:
        return "bad"
    return "good" if answer.probabilities[0] >= _UNLIKELY else None


def _answer_table(answer: AnswerReading) -> Table:
    rows = [
        [TableCell(text, "good" if n == 0 else None), probability]
        for n, (text, probability) in enumerate(
            zip(answer.outcomes, answer.probabilities, strict=True)
        )
    ]
    note = f"{answer.prediction} The logit difference is read there: {answer.logit_diff:.2f}."
    return Table((answer.name, "probability"), rows, notes=(note,))


def _attention_matrix(asked: QuestionReport) -> Matrix:
    shown = [n for n, role in enumerate(asked.attention_roles) if role not in ("bos", "rest")]
    ranked = sorted(asked.attention, key=lambda head: -max(head.shares[n] for n in shown))
    heads = sorted(ranked[:_MAX_HEADS], key=asked.attention.index)
    marked = "; • is in the circuit" if any(head.in_circuit for head in heads) else ""
    return Matrix(
        np.array([head.shares for head in heads]),
        [f"{head.head}{' •' * head.in_circuit}" for head in heads],
        asked.attention_roles,
        signed=False,
        caption=f"{len(heads)} of {len(asked.attention)} heads{marked}",
        vmax=1.0,
        corner=("head", "role"),
    )


def _circuit_blocks(use: CircuitUse) -> list[Block | Picture]:
    rows = [Interval.of("pattern, held-out prompts", use.pattern_faithfulness)]
    for each in use.contrasts:
        value, label = each.faithfulness, f"this question, {each.contrast} ({each.pairs})"
        marks = {"chance": (min(0.0, each.random), max(0.0, each.random)), "upper_reference": 1.0}
        if value.value == value.value:
            rows.append(Interval.of(label, value, **marks))
    plot = IntervalPlot(
        rows,
        "Faithfulness of the circuit on the pattern, and on this question by contrast (number of "
        "counterfactuals)",
        axis="f",
        chance_label="median of random paths",
        reference_label="whole model",
    )
    circuit = use.circuit
    inside = [
        [str(edge), before, score]
        for edge, before, score in zip(
            circuit.edges, use.pattern_scores, circuit.scores, strict=True
        )
    ]
    outside = [
        [str(edge), score]
        for edge, score in sorted(
            zip(use.outside.edges, use.outside.scores, strict=True), key=lambda e: -abs(e[1])
        )
    ]
    return [
        circuit_diagram(circuit),
        plot,
        Table(("edge", "score on the pattern", "score here"), inside, "Edges of the circuit"),
        Table(("edge", "score here"), outside, "Strongest edges outside of the circuit"),
    ]
