"""Page of a fitted prompt format: each format on the half that selects, the winner on the other."""

from collections.abc import Sequence

from probes.observe.format.result import FormatFit, FormatScore
from probes.observe.result import GateState
from probes.viz.blocks import Block, CellValue, Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.registry import report

_HELD_OUT_INTRO = (
    "The selected format on prompts that no format was selected with: the gate in the worst state."
)
_SELECTION_INTRO = (
    "Every format that was tried, with the weakest gate of pattern and opposite in each model. "
    "Selected is the best state, then more answers, wider numbers and fewer errors, in this order."
)
_TONES: dict[GateState, Tone] = {"open": "good", "partial": "muted", "closed": "bad"}
_COLUMNS = ("model", "format", "answer", "asked", "score", "prompts", "heuristic", "gate")


@report.register
def format_fit_page(fit: FormatFit) -> Picture:
    """Page of the fitted prompt format."""
    sections: list[Section] = [
        ("Held-out prompts", _HELD_OUT_INTRO, _blocks(fit.held_out)),
        ("Formats", _SELECTION_INTRO, _blocks(fit.selection)),
    ]
    notes = [Note(line) for line in fit.summary()]
    notes[0] = Note(fit.summary()[0], "good" if fit.found else "bad")
    return page(f"Prompt format for {fit.pattern}", sections, notes, " and ".join(fit.models))


def _blocks(scores: Sequence[FormatScore]) -> list[Block | Picture]:
    """Plot and table of the weakest gates; formats that were refused stand in the notes."""
    measured = [(score, gate) for score in scores if (gate := score.weakest) is not None]
    if not measured:
        return []
    rows = [
        Interval.of(
            f"{score.model}, {score.format}",
            gate.score,
            null=(gate.heuristic_accuracy,),
            tone=_TONES.get(gate.state),
        )
        for score, gate in measured
    ]
    cells: list[list[CellValue]] = [
        [
            score.model,
            score.format,
            f"{gate.answer} of {gate.pattern}",
            gate.score_name,
            gate.score,
            gate.n_questions,
            f"{gate.heuristic} {gate.heuristic_accuracy:.2f}",
            TableCell(gate.state, _TONES.get(gate.state)),
        ]
        for score, gate in measured
    ]
    caption = "Score of the weakest gate with its interval; the tick is the best heuristic"
    plot = IntervalPlot(rows, caption, null_label="best heuristic")
    return [plot, Table(_COLUMNS, cells, align="llllrrll")]
