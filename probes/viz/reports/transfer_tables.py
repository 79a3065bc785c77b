"""What states of one model turn in another: beside what stands in for them, and the ceiling."""

import math
import re
from collections.abc import Collection, Mapping, Sequence

from probes.comparison.variables.transfer import EMBEDDING, Transfer
from probes.stats.intervals import Estimate
from probes.viz.blocks import Cell, Note, Table
from probes.viz.html_text import MINUS
from probes.viz.plots.interval_plot import Interval, IntervalPlot

_STAND_INS = {
    EMBEDDING: "bare words",
    "label": "label",
    "shuffled": "shuffled",
    "untrained": "untrained",
}


def turned_plot(
    carried: Sequence[Transfer], caption: str, kept: Collection[str] = ()
) -> IntervalPlot | Note:
    """Plot how often states turn the answer, beside what stands in for them and the ceiling.

    Args:
        carried: What was put over; the band is what the stand-ins reach that a word reads.
        caption: A line above the plot.
        kept: Variables that are drawn as good news.
    """
    rows = [
        _turned(one.variable, one, good=one.variable in kept)
        for one in carried
        if not math.isnan(one.value.value)
    ]
    return _plot(rows, caption)


def kin_plot(carried: Sequence[Transfer], caption: str) -> IntervalPlot | Note:
    """Plot how often states of several models turn a variable of one model, and strangers' states.

    A row is green where its whole interval is beyond the stand-ins and beyond the strangers.
    """
    strange = {name: value for one in carried for name, value in one.strangers.items()}
    rows = [
        _turned(one.donor, one, good=one.value.low > max([stand_in(one), *strange.values()]))
        for one in carried
        if not math.isnan(one.value.value)
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


def transfer_tables(carried: Sequence[Transfer]) -> list[Table]:
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
        f"{max(len(one.nulls) for one in carried)}. Another end: the best net that was trained on "
        "such texts to do something else. Beyond it: ridge less the best of the first four. The "
        "words above do not read bare words, nor nets trained for another end.",
    )
    columns = (*first, "ridge", *_STAND_INS.values(), "another end", "best of four", "beyond it")
    return [
        Table(
            (*ways, "ridge", "falls short by"),
            [_way_row(one) for one in carried],
            "What the states turn, by the map that takes them over",
            "lllrrrrrrr",
            here,
        ),
        Table(
            columns,
            [_beside_row(one) for one in carried],
            "What stands in for the giving model turns",
            "ll" + "r" * 6 + "lr",
            beside,
        ),
    ]


def stand_in(one: Transfer) -> float:
    """Return the share of the best stand-in that a word reads: all but the donor's bare words."""
    return max(value.value for name, value in one.controls.items() if name != EMBEDDING)


def written(value: float) -> str:
    """Write a share, or a dash where there is none."""
    return "–" if math.isnan(value) else signed(f"{round(value, 2) + 0.0:.2f}")


def signed(text: str) -> str:
    """Return a text whose numbers below 0 have a minus sign, and whose hyphens stay."""
    return re.sub(r"(?<!\w)-(?=\d)", MINUS, text)


def tied(text: str) -> str:
    """Return the text with spaces at which no line breaks."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _turned(name: str, one: Transfer, *, good: bool) -> Interval:
    ceiling = None if math.isnan(one.ceiling.value) else one.ceiling.value
    return Interval(
        name,
        one.value.value,
        one.value.low,
        one.value.high,
        chance=(0.0, stand_in(one)),
        null=one.nulls,
        ceiling=ceiling,
        tone="good" if good else None,
    )


def _way_row(one: Transfer) -> list[str | Cell]:
    return [
        f"{one.donor} → {one.recipient}",
        one.variable,
        Cell(one.site, hover=f"read at {' and '.join(one.places)}"),
        str(one.items),
        _share(one.whole),
        _share(one.ceiling),
        _share(one.maps.get("identity")),
        _share(one.maps.get("orthogonal")),
        tied(str(one.value)),
        tied(signed(str(one.shortfall))),
    ]


def _beside_row(one: Transfer) -> list[str | Cell]:
    strange = max(one.strangers, key=lambda name: one.strangers[name], default="")
    return [
        f"{one.donor} → {one.recipient}",
        one.variable,
        written(one.value.value),
        *(_share(one.controls.get(name)) for name in _STAND_INS),
        Cell(written(one.strangers[strange]), hover=_all(one.strangers)) if strange else "–",
        _STAND_INS.get(one.best, one.best),
        tied(signed(str(one.excess))),
    ]


def _all(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {written(value)}" for name, value in values.items())


def _share(found: Estimate | None) -> str | Cell:
    return "–" if found is None else Cell(written(found.value), hover=signed(str(found)))
