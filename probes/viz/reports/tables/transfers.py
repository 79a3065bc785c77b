"""Plots and tables of cross-model interchange, with its controls and its upper reference."""

import math
from collections.abc import Collection, Sequence

from probes.comparison.variables.result import EMBEDDING_CONTROL, CrossModelTransfer
from probes.stats.intervals import Estimate
from probes.viz.blocks import CellValue, Note, Table, TableCell
from probes.viz.html_text import format_number
from probes.viz.plots.hotspot_map import display_variable
from probes.viz.plots.interval_plot import Interval, IntervalPlot

_CONTROLS = (EMBEDDING_CONTROL, "label", "shuffled", "random-init")
_MAPS_NOTES = (
    "Pairs: interchange pairs of a base and a source question; the state at the site comes from "
    "the source. The numbers are interchange accuracies: the fraction of pairs in which the answer "
    "changes in this variable alone. Hover over a site to see where the donor was read, and over a "
    "number to see its 95 % interval.",
    "Own: the recipient's own states, without a map. Own, ridge: the same through a ridge map, "
    "which is the upper reference. Maps of the donor's states: identity, which needs equal widths; "
    "orthogonal; and ridge, which is any linear map. Shortfall: own, ridge minus ridge, paired.",
)
_MODELS_NOTE = "Random-init: the best of {n} random-init models."
_NO_MODELS_NOTE = "Random-init: none, as the null is permuted."
_CONTROLS_NOTE = (
    "All states pass through a ridge map. Token embedding: the donor's states before any layer, "
    "which are part of the donor. Label: only the identity of the word. Shuffled: the donor's "
    "states in permuted order. {models} Negative control: the best model trained on the same texts "
    "for another task. Excess: ridge minus the best of the first four controls. Verdicts do not "
    "depend on token embeddings or negative controls."
)


def interchange_plot(
    transfers: Sequence[CrossModelTransfer], caption: str, kept: Collection[str] = ()
) -> IntervalPlot | Note:
    """Interchange accuracy of each variable, with its controls and upper reference.

    Args:
        transfers: Transfers of one donor into one recipient, one for each variable.
        caption: Line above the plot.
        kept: Variables with the verdict "kept", which are green.
    """
    rows = [
        _transfer_interval(display_variable(one.variable), one, is_good=one.variable in kept)
        for one in _measured(transfers)
    ]
    return _plot(rows, caption)


def donor_plot(transfers: Sequence[CrossModelTransfer], caption: str) -> IntervalPlot | Note:
    """Interchange accuracy of one variable from each donor, and of the negative controls.

    A donor is green if its interval lies above all controls and negative controls.
    """
    negative = {name: value for one in transfers for name, value in one.negative_controls.items()}
    rows = []
    for one in _measured(transfers):
        highest = max([best_control(one), *negative.values()])
        is_good = one.interchange_accuracy.low > highest
        rows.append(_transfer_interval(one.donor, one, is_good=is_good))
    rows += negative_control_rows(negative)
    return _plot(rows, caption)


def negative_control_rows(values: dict[str, float]) -> list[Interval]:
    """Muted rows of negative controls; NaN is left out."""
    return [
        Interval(f"{name} (negative control)", value, tone="muted")
        for name, value in values.items()
        if not math.isnan(value)
    ]


def transfer_tables(transfers: Sequence[CrossModelTransfer]) -> list[Table]:
    """Interchange accuracies by kind of map, and those of the controls."""
    first = ("donor → recipient", "variable")
    maps = (*first, "site", "pairs", "own", "own, ridge", "identity", "orthogonal", "ridge",
            "shortfall")  # fmt: skip
    controls = (*first, "ridge", *_CONTROLS, "negative control", "best control", "excess")
    n = max(len(one.nulls) for one in transfers)
    note = _CONTROLS_NOTE.format(models=_MODELS_NOTE.format(n=n) if n else _NO_MODELS_NOTE)
    rows, control_rows = list(map(_maps_row, transfers)), list(map(_controls_row, transfers))
    captions = [f"Interchange accuracy {what}" for what in ("by kind of map", "of the controls")]
    return [
        Table(maps, rows, captions[0], "lll" + "r" * 7, _MAPS_NOTES),
        Table(controls, control_rows, captions[1], "ll" + "r" * 6 + "lr", (note,)),
    ]


def best_control(transfer: CrossModelTransfer) -> float:
    """Highest accuracy of the controls that a verdict depends on."""
    controls = transfer.controls.items()
    return max(value.value for name, value in controls if name != EMBEDDING_CONTROL)


def _measured(transfers: Sequence[CrossModelTransfer]) -> list[CrossModelTransfer]:
    return [one for one in transfers if not math.isnan(one.interchange_accuracy.value)]


def _plot(rows: Sequence[Interval], caption: str) -> IntervalPlot | Note:
    if not rows:
        return Note("There are no interchange pairs to evaluate.", "muted")
    return IntervalPlot(
        rows, caption, axis="interchange accuracy", chance_label="best control",
        reference_label="own states through a ridge map",
    )  # fmt: skip


def _transfer_interval(name: str, transfer: CrossModelTransfer, *, is_good: bool) -> Interval:
    return Interval.of(
        name, transfer.interchange_accuracy, chance=(0.0, best_control(transfer)),
        null=transfer.nulls, upper_reference=transfer.own_ridge_accuracy.value,
        tone="good" if is_good else None,
    )  # fmt: skip


def _maps_row(transfer: CrossModelTransfer) -> list[CellValue]:
    estimates = (transfer.own_accuracy, transfer.own_ridge_accuracy,
                 transfer.maps.get("identity"), transfer.maps.get("orthogonal"))  # fmt: skip
    return [
        f"{transfer.donor} → {transfer.recipient}", display_variable(transfer.variable),
        TableCell(transfer.site, hover=f"donor read at {' and '.join(transfer.donor_sites)}"),
        transfer.pairs, *map(_value_cell, estimates), transfer.interchange_accuracy,
        transfer.shortfall,
    ]  # fmt: skip


def _controls_row(transfer: CrossModelTransfer) -> list[CellValue]:
    negative = {name: format_number(value) for name, value in transfer.negative_controls.items()}
    best = max(transfer.negative_controls, key=transfer.negative_controls.__getitem__, default="")
    hover = ", ".join(f"{name} {value}" for name, value in negative.items())
    return [
        f"{transfer.donor} → {transfer.recipient}", display_variable(transfer.variable),
        transfer.interchange_accuracy.value,
        *(_value_cell(transfer.controls.get(name)) for name in _CONTROLS),
        TableCell(negative[best], hover=hover) if best else None, transfer.best_control,
        transfer.excess,
    ]  # fmt: skip


def _value_cell(estimate: Estimate | None) -> TableCell | None:
    return estimate and TableCell(format_number(estimate.value), hover=str(estimate))
