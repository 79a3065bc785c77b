"""Capability of two models as blocks of a page: what the gate asks of them, and what it found."""

from collections.abc import Callable

from probes.comparison.result import Comparison
from probes.observe.gate import OPEN_ACCURACY
from probes.observe.result import Gate, GateCriterion
from probes.stats.intervals import Estimate
from probes.viz.blocks import Block, CellValue, Table, TableCell, Tone
from probes.viz.plots.interval_plot import Interval, IntervalPlot

STATE_TONES: dict[str, Tone | None] = {
    "open": "good",
    "partial": None,
    "not established": "bad",
    "too few to tell": None,
    "closed": "bad",
}

_ONLY = "Circuits are compared only for behavior that a model has. "
_OPEN = f"{OPEN_ACCURACY * 100:.0f} %"
_INTROS: dict[GateCriterion, str] = {
    "accuracy": (
        f"{_ONLY}The gate is open if accuracy is above {_OPEN} and above the best simple heuristic "
        "on the same questions, partial if it is only above the heuristic, and closed otherwise "
        "(95 % intervals)."
    ),
    "choice": (
        f"{_ONLY}The gate asks how often the answer is above each of its foils, in place of "
        f"accuracy. It is open if that is above {_OPEN} and above the best simple heuristic on the "
        "same questions, a guess among the outcomes included, partial if it is only above the "
        "heuristic, and closed otherwise (95 % intervals)."
    ),
    "logit-diff": (
        f"{_ONLY}The gate asks for a positive logit difference, in place of accuracy. It is open "
        "if the answer's logit is above the mean logit of its foils, on average over the "
        "questions, and closed otherwise (95 % intervals). An open gate does not say that answers "
        "are right."
    ),
    "none": (
        "The gate asks nothing, so the behavior is not established: what is compared may be the "
        "mechanism of another behavior. Accuracy and the best simple heuristic on the same "
        "questions are shown without a verdict."
    ),
}
_LOGIT_DIFF_NOTE = "Logit difference: logit of the answer minus the mean logit of its foils."


def gate_intro(comparison: Comparison) -> str:
    """What the gate asked of both models."""
    return _INTROS[comparison.gates[0].criterion]


def counts_foils(gate: Gate) -> bool:
    """Whether an answer counts as right above its foils, as in `Behavior.counted`."""
    return gate.criterion in ("choice", "logit-diff") and gate.choice is not None


def counted_score(gate: Gate) -> Estimate:
    """Fraction of questions that count as right: the quantity of `random_init_accuracy`."""
    return gate.choice if counts_foils(gate) and gate.choice else gate.accuracy


def gate_blocks(comparison: Comparison) -> list[Block]:
    """Chart of what the gate asks, table of gates, and logit differences on solved questions."""
    criterion = comparison.gates[0].criterion
    plot = _logit_diff_plot if criterion == "logit-diff" else _score_plot
    both = "On the questions that both models solve"
    solved = [
        [one.model, one.answer, one.items, one.logit_diff or "too few questions"]
        for one in comparison.solved_logit_diffs
    ]
    columns = ("model", "answer", "questions", "logit difference")
    return [
        plot(comparison),
        _gate_table(comparison),
        Table(columns, solved, both, "llrr", (_LOGIT_DIFF_NOTE,)),
    ]


def _score_plot(comparison: Comparison) -> IntervalPlot:
    """Fraction of questions that the gate counts as right, with that of random-init models."""
    rows = [
        _interval(gate, gate.score, chance=(0.0, gate.heuristic_accuracy))
        for gate in comparison.gates
    ]
    # A permuted null has no accuracy.
    for answer, accuracy in zip(comparison.answers, comparison.random_init_accuracy, strict=False):
        rows.append(Interval(f"random-init mean, {answer}", accuracy))
    caption = "Accuracy of whole answers"
    if comparison.gates[0].criterion == "choice":
        caption = "Questions whose answer is above each of its foils"
    axis = comparison.gates[0].score_name
    return IntervalPlot(rows, caption, (0.0, 1.0), axis, chance_label="best heuristic")


def _logit_diff_plot(comparison: Comparison) -> IntervalPlot:
    """Logit difference of each answer; the gate is open where its interval is above 0."""
    rows = [_interval(gate, gate.logit_diff) for gate in comparison.gates]
    caption = "Logit difference, which the gate asks to be above 0"
    return IntervalPlot(rows, caption, axis="logit difference")


def _interval(gate: Gate, estimate: Estimate, **marks: object) -> Interval:
    tone = "good" if gate.state == "open" else "bad"
    return Interval.of(f"{gate.model}, {gate.answer}", estimate, tone=tone, **marks)


def _gate_table(comparison: Comparison) -> Table:
    first = comparison.gates[0]
    is_logit_diff = first.criterion == "logit-diff"
    cells: dict[str, Callable[[Gate], CellValue]] = {
        "model": lambda gate: gate.model,
        "answer": lambda gate: gate.answer,
        "questions": lambda gate: gate.n_questions,
        first.score_name: lambda gate: gate.score,
        **({"above foils": lambda gate: gate.choice} if is_logit_diff else {}),
        "best heuristic": lambda gate: f"{gate.heuristic}: {gate.heuristic_accuracy:.2f}",
        "margin": lambda gate: gate.margin,
        "logit difference": lambda gate: gate.logit_diff,
        "gate": lambda gate: TableCell(gate.state, STATE_TONES[gate.state] or "muted"),
    }
    rows = [[cell(gate) for cell in cells.values()] for gate in comparison.gates]
    notes = _random_init_notes(comparison) if is_logit_diff else ()
    return Table(tuple(cells), rows, align="llrr" + "r" * is_logit_diff + "lrrl", notes=notes)


def _random_init_notes(comparison: Comparison) -> tuple[str, ...]:
    """What a chart of logit differences cannot show: random-init models have another quantity."""
    values = zip(comparison.answers, comparison.random_init_accuracy, strict=False)
    text = ", ".join(f"{answer} {value:.2f}" for answer, value in values)
    return (f"Above foils, mean of random-init models: {text}.",) if text else ()
