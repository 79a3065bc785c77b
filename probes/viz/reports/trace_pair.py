"""Page of two traced circuits: one diagram, each circuit in each model, and the edges."""

from probes.circuits.result import Trace
from probes.comparison.circuits.trace_result import TraceComparison, TracedEdge
from probes.viz.blocks import Block, CellValue, Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.circuit.pair import mark_text, trace_pair_diagram
from probes.viz.plots.heat_table import format_exact
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.registry import report
from probes.viz.reports.trace import FAITHFULNESS_INTRO, method_rows

_EDGES_INTRO = (
    "Edges of either circuit, with the score of each in both models, on the same prompts. The "
    "score is the drop of the logit difference when this edge alone carries its counterfactual "
    "value, as the attribution method estimates it. Two circuits differ in edges that are near the "
    "size at which pruning cuts, although their scores agree; “differ” is a test of the scores "
    "(sign-flip test over prompts, all edges of the graph, false discovery rate 5 %)."
)
_TRANSFER_INTRO = (
    FAITHFULNESS_INTRO + " Each circuit is run in each model. Other edges can do the same work: an "
    "edge of one circuit only is no lost ability while that circuit works in the other model."
)
_TONES: dict[str, Tone] = {"works": "good", "falls short": "bad"}
_MARK_TONES: dict[str, Tone | None] = {"both": None, "a only": "muted", "b only": "muted"}


@report.register
def trace_pair_page(comparison: TraceComparison) -> Picture:
    """Page of the circuits of two models."""
    first, second = comparison.names
    lines = comparison.summary()
    start = next(at for at, line in enumerate(lines) if "Jaccard" in line)
    notes = [Note(line, "bad") for line in lines[:start]]
    labels = (None, comparison.in_b.label, comparison.in_a.label)
    for at, line in enumerate(lines[start:]):
        notes.append(Note(line, _TONES.get(labels[at] or "") if at < len(labels) else None))
    lead = [*notes[: start + 1], trace_pair_diagram(comparison), *notes[start + 1 :]]
    sections: list[Section] = [
        ("Each circuit in each model", _TRANSFER_INTRO, [_transfer_plot(comparison)]),
        ("Edges", _EDGES_INTRO, [_edges_table(comparison)]),
        ("Each model by itself", "", _own_blocks((comparison.a, comparison.b))),
        ("Method", "", [_method_table(comparison)]),
    ]
    task = dict(comparison.a.circuit.protocol).get("task", "a task")
    return page(f"Circuits of {first} and {second}", sections, lead, task)


def _transfer_plot(comparison: TraceComparison) -> Block:
    rows = []
    for transfer in (comparison.in_a, comparison.in_b):
        marks = {"chance": (transfer.chance, transfer.chance_high), "upper_reference": 1.0}
        names = comparison.names if transfer is comparison.in_a else comparison.names[::-1]
        rows += [
            Interval.of(f"in {names[0]}: its own circuit", transfer.own, **marks),
            Interval.of(f"in {names[0]}: that of {names[1]}", transfer.transferred, **marks),
        ]
    return IntervalPlot(
        rows, "Faithfulness on held-out prompts", axis="f",
        chance_label="random paths: median to highest", reference_label="whole model",
    )  # fmt: skip


def _edges_table(comparison: TraceComparison) -> Table:
    order = {"a only": 0, "b only": 1, "both": 2}
    rows = [
        _edge_row(edge, comparison)
        for edge in sorted(comparison.edges, key=lambda e: order[e.mark])
    ]
    first, second = comparison.names
    columns = ("edge", "circuit", f"score in {first}", f"score in {second}", "scores differ?")
    return Table(columns, rows, "Edges of only one circuit first", "llrrl")


def _edge_row(edge: TracedEdge, comparison: TraceComparison) -> list[CellValue]:
    return [
        edge.edge,
        TableCell(mark_text(edge.mark, comparison), _MARK_TONES[edge.mark]),
        format_exact(edge.a, edge.a_error, True),
        format_exact(edge.b, edge.b_error, True),
        TableCell("differ", "bad") if edge.differs else TableCell("not shown", "muted"),
    ]


def _own_blocks(traces: tuple[Trace, ...]) -> list[Block]:
    blocks: list[Block] = []
    for trace in traces:
        rows = [[line] for line in trace.summary()]
        blocks.append(Table((trace.circuit.model,), rows, align="l"))
    return blocks


def _method_table(comparison: TraceComparison) -> Table:
    settings = [dict(method_rows(trace)) for trace in (comparison.a, comparison.b)]
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [[name, *(one.get(name, "–") for one in settings)] for name in names]
    return Table(("setting", *comparison.names), rows, align="lll")
