"""What cue words change, as sections of a page: next tokens, where it is carried, accuracy."""

from collections.abc import Sequence
from math import ceil, isfinite, log10

import numpy as np

from probes.experiments.cue_words.divergence import CueSites
from probes.experiments.cue_words.results import Change, Divergence, Forced, shown
from probes.stats.intervals import mean
from probes.viz.blocks import Block, Cell, Matrix, Note, Table, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.interval_plot import Interval, IntervalPlot

Found = Divergence | CueSites | Forced

_APART_LEAD = (
    "Jensen-Shannon divergence of the next tokens that the model expects right behind two cues: "
    "0 bits where they are the same, 1 where they share none. Beside it, the same between a cue "
    "and random words of as many tokens in its place, drawn anew for each item."
)
_SITES_LEAD = (
    "The residual stream of the second cue's run, put into the first cue's run at one layer and "
    "place. 1: the run then expects what the second cue's does; 0: it changes nothing. The cue "
    "at layer 0, and what is read at the output, are 1 by construction."
)
_FORCED_LEAD = (
    "Behind its answer the model is given a cue n times, writes on each time up to a full stop, "
    "and its last statement is read. Each two ways are compared item by item: McNemar's exact "
    "test, Holm-corrected, with Newcombe's interval. From an answer that is said, none (n=0) is "
    "right or wrong by construction."
)


def cued_page(*found: Found) -> Picture:
    """Lay results about cues out as one page that needs no network."""
    notes = [Note(line, _tone(line)) for one in found for line in one.summary()[:4]]
    names = ", ".join(dict.fromkeys(one.model for one in found))
    return page("What cue words change", [cued_section(one) for one in found], notes, names)


def cued_section(found: Found) -> Section:
    """Turn one result into a section of a page: heading, paragraph and blocks."""
    if isinstance(found, Divergence):
        return f"Next tokens behind a {found.said} answer", _APART_LEAD, _apart(found)
    if isinstance(found, CueSites):
        heading = f"Where {found.first} and {found.second} differ"
        return heading, _SITES_LEAD, [_sites(found)]
    heading = f"Going on from {'its own' if found.said == 'own' else f'a {found.said}'} answer"
    return heading, _FORCED_LEAD, [_accuracy(found), _changes(found)]


def _apart(found: Divergence) -> Sequence[Block]:
    plotted, rows = [], []
    for k, (first, second) in enumerate(found.pairs):
        bits, random, excess = found.apart(k)
        name = f"{first} / {second}"
        plotted.append(Interval(name, bits.value, bits.low, bits.high))
        plotted.append(Interval(f"{name}: random", random.value, random.low, random.high))
        same = f"{found.same[k].mean():.1%}"
        rows.append([name, shown(bits), shown(random), shown(excess), same])
    top = max(float(row.high or 0) for row in plotted) or 1.0
    digits = max(2, 2 - ceil(log10(top)))
    columns = ("cues", "bits", "random word", "first less second", "same next token")
    return [
        IntervalPlot(plotted, "", (0.0, top), "bits", digits),
        Table(columns, rows, notes=("Intervals: 95 %, bootstrap over items.",)),
    ]


def _sites(found: CueSites) -> Block:
    layers, places = range(len(found.left)), found.places
    shares = [[found.carried(n, p) for p in places] for n in layers]
    rows = [f"layer {n}" if n < len(found.left) - 1 else "output" for n in layers]
    error = np.array([[(e.high - e.low) / 3.92 for e in row] for row in shares])
    values = np.array([[e.value for e in row] for row in shares])
    caption = f"Share of {shown(mean(found.total, seed=found.seed))} bits that a patch brings about"
    return Matrix(values, rows, places, error, caption=caption, corner=("input of", "place"))


def _accuracy(found: Forced) -> Block:
    rows = []
    for cue in found.cues:
        for times in found.times:
            right = found.accuracy(cue, times)
            rows.append(Interval(f"{cue}, n={times}", right.value, right.low, right.high))
    return IntervalPlot(rows, "Right last statements", axis="share of the items")


def _changes(found: Forced) -> Block:
    rows = [_change(change) for change in found.changes()]
    columns = ("what", "points", "interval", "gained", "lost", "p", "likely shown", "verdict")
    note = (
        "Likely shown: the smallest difference found four times in five with so many items and so "
        "many comparisons, if as many answers change as here."
    )
    return Table(columns, rows, notes=(note,))


def _change(change: Change) -> list[str | Cell]:
    d, verdict = change.found.difference, change.found.verdict(p=change.p)
    tones: dict[str, Tone] = {"more": "good", "less": "bad"}
    return [
        f"{change.second} less {change.first}",
        f"{100 * d.value:+.1f}",
        f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
        str(change.found.gained),
        str(change.found.lost),
        f"{change.p:.2g}",
        f"{100 * change.least:.1f}" if isfinite(change.least) else "none",
        Cell(verdict, tones.get(verdict, "muted")),
    ]


def _tone(line: str) -> Tone | None:
    return "muted" if "cannot tell" in line else None
