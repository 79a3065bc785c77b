"""What states of one model turn in another: beside what stands in for them, and the ceiling."""

import math
import re
from collections.abc import Collection, Mapping, Sequence

from probes.comparison.variables.transfer import EMBEDDING_CONTROL, CrossModelTransfer
from probes.stats.intervals import Estimate
from probes.viz.blocks import Note, Table, TableCell
from probes.viz.html_text import MINUS
from probes.viz.plots.interval_plot import Interval, IntervalPlot

_CONTROL_NAMES = {
    EMBEDDING_CONTROL: "bare words",
    "label": "label",
    "shuffled": "shuffled",
    "random-init": "random-init",
}


def interchange_plot(
    transfers: Sequence[CrossModelTransfer], caption: str, kept: Collection[str] = ()
) -> IntervalPlot | Note:
    """Plot how often states turn the answer, beside what stands in for them and the ceiling.

    Args:
        carried: What was put over; the band is what the stand-ins reach that a word reads.
        caption: A line above the plot.
        kept: Variables that are drawn as good news.
    """
    rows = [
        _transfer_interval(one.variable, one, good=one.variable in kept)
        for one in transfers
        if not math.isnan(one.interchange_accuracy.value)
    ]
    return _plot(rows, caption)


def donor_plot(transfers: Sequence[CrossModelTransfer], caption: str) -> IntervalPlot | Note:
    """Plot how often states of several models turn a variable of one model, and strangers' states.

    A row is green where its whole interval is beyond the stand-ins and beyond the strangers.
    """
    strange = {name: value for one in transfers for name, value in one.negative_controls.items()}
    rows = [
        _transfer_interval(
            one.donor,
            one,
            good=one.interchange_accuracy.low > max([best_control(one), *strange.values()]),
        )
        for one in transfers
        if not math.isnan(one.interchange_accuracy.value)
    ]
    rows += [
        Interval(f"{name} (another end)", value, tone="muted")
        for name, value in strange.items()
        if not math.isnan(value)
    ]
    return _plot(rows, caption)


def _plot(rows: Sequence[Interval], caption: str) -> IntervalPlot | Note:
    if not rows:
        return Note("There were no crossings to judge by.", "muted")
    return IntervalPlot(rows, caption, axis="share of crossings")


def transfer_tables(transfers: Sequence[CrossModelTransfer]) -> list[Table]:
    """List what states turn, map by map, and what stands in for them turns."""
    first = ("from → into", "variable")
    ways = (*first, "put in at", "crossings", "own", "own, mapped", "identity", "orthogonal")
    here = (
        "Crossing: the state that another question left at this place is put in. Counted are those "
        "in which the answer turned in this variable alone. Point at a place to see where the "
        "giving model was read, and at a share to see its 95 % interval.",
        "Own: the receiving model's own states, as they are; mapped: through a ridge map, which is "
        "the ceiling. Maps from the giving model: identity changes nothing and needs equal widths, "
        "orthogonal turns the space as a whole, ridge is any linear map. Falls short: the ceiling "
        "less ridge, paired by crossing.",
    )
    beside = (
        "All went through a ridge map. Bare words: what the giving model's words hold before any "
        "layer, which is part of its own work. Label: the name of the word and nothing else. "
        "Shuffled: the giving model's states in wrong order. Untrained: the best net of "
        f"{max(len(one.nulls) for one in transfers)}. Another end: the best net that was trained on "
        "such texts to do something else. Beyond it: ridge less the best of the first four. The "
        "words above do not read bare words, nor nets trained for another end.",
    )
    columns = (
        *first,
        "ridge",
        *_CONTROL_NAMES.values(),
        "another end",
        "best of four",
        "beyond it",
    )
    return [
        Table(
            (*ways, "ridge", "falls short by"),
            [_maps_row(one) for one in transfers],
            "What the states turn, by the map that takes them over",
            "lllrrrrrrr",
            here,
        ),
        Table(
            columns,
            [_controls_row(one) for one in transfers],
            "What stands in for the giving model turns",
            "ll" + "r" * 6 + "lr",
            beside,
        ),
    ]


def best_control(transfer: CrossModelTransfer) -> float:
    """Return the share of the best stand-in that a word reads: all but the donor's bare words."""
    return max(
        value.value for name, value in transfer.controls.items() if name != EMBEDDING_CONTROL
    )


def format_fraction(value: float) -> str:
    """Write a share, or a dash where there is none."""
    return "–" if math.isnan(value) else with_minus_signs(f"{round(value, 2) + 0.0:.2f}")


def with_minus_signs(text: str) -> str:
    """Return a text whose numbers below 0 have a minus sign, and whose hyphens stay."""
    return re.sub(r"(?<!\w)-(?=\d)", MINUS, text)


def nonbreaking(text: str) -> str:
    """Return the text with spaces at which no line breaks."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _transfer_interval(name: str, transfer: CrossModelTransfer, *, good: bool) -> Interval:
    ceiling = (
        None if math.isnan(transfer.own_ridge_accuracy.value) else transfer.own_ridge_accuracy.value
    )
    return Interval(
        name,
        transfer.interchange_accuracy.value,
        transfer.interchange_accuracy.low,
        transfer.interchange_accuracy.high,
        chance=(0.0, best_control(transfer)),
        null=transfer.nulls,
        upper_reference=ceiling,
        tone="good" if good else None,
    )


def _maps_row(transfer: CrossModelTransfer) -> list[str | TableCell]:
    return [
        f"{transfer.donor} → {transfer.recipient}",
        transfer.variable,
        TableCell(transfer.site, hover=f"read at {' and '.join(transfer.donor_sites)}"),
        str(transfer.pairs),
        _fraction_cell(transfer.own_accuracy),
        _fraction_cell(transfer.own_ridge_accuracy),
        _fraction_cell(transfer.maps.get("identity")),
        _fraction_cell(transfer.maps.get("orthogonal")),
        nonbreaking(str(transfer.interchange_accuracy)),
        nonbreaking(with_minus_signs(str(transfer.shortfall))),
    ]


def _controls_row(transfer: CrossModelTransfer) -> list[str | TableCell]:
    strange = max(
        transfer.negative_controls, key=lambda name: transfer.negative_controls[name], default=""
    )
    return [
        f"{transfer.donor} → {transfer.recipient}",
        transfer.variable,
        format_fraction(transfer.interchange_accuracy.value),
        *(_fraction_cell(transfer.controls.get(name)) for name in _CONTROL_NAMES),
        TableCell(
            format_fraction(transfer.negative_controls[strange]),
            hover=_format_named(transfer.negative_controls),
        )
        if strange
        else "–",
        _CONTROL_NAMES.get(transfer.best_control, transfer.best_control),
        nonbreaking(with_minus_signs(str(transfer.excess))),
    ]


def _format_named(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {format_fraction(value)}" for name, value in values.items())


def _fraction_cell(estimate: Estimate | None) -> str | TableCell:
    return (
        "–"
        if estimate is None
        else TableCell(format_fraction(estimate.value), hover=with_minus_signs(str(estimate)))
    )
