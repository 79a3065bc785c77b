"""What cue words change, as sections of a page: next tokens, where it is carried, accuracy."""

from collections.abc import Sequence
from math import ceil, isfinite, log10

import numpy as np

from probes.experiments.cue_words.divergence import CueLocalization
from probes.experiments.cue_words.results import (
    BudgetForcing,
    ForcingContrast,
    NextTokenDivergence,
    format_estimate,
)
from probes.stats.intervals import bootstrap_mean
from probes.viz.blocks import Block, Matrix, Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.interval_plot import Interval, IntervalPlot

CueResult = NextTokenDivergence | CueLocalization | BudgetForcing

_DIVERGENCE_INTRO = (
    "Jensen-Shannon divergence of the next tokens that the model expects right behind two cues: "
    "0 bits where they are the same, 1 where they share none. Beside it, the same between a cue "
    "and random words of as many tokens in its place, drawn anew for each item."
)
_LOCALIZATION_INTRO = (
    "The residual stream of the second cue's run, put into the first cue's run at one layer and "
    "place. 1: the run then expects what the second cue's does; 0: it changes nothing. The cue "
    "at layer 0, and what is read at the output, are 1 by construction."
)
_FORCING_INTRO = (
    "Behind its answer the model is given a cue n times, writes on each time up to a full stop, "
    "and its last statement is read. Each two ways are compared item by item: McNemar's exact "
    "test, Holm-corrected, with Newcombe's interval. From an answer that is said, none (n=0) is "
    "right or wrong by construction."
)


def cue_words_page(*results: CueResult) -> Picture:
    """Lay results about cues out as one page that needs no network."""
    notes = [Note(line, _tone(line)) for one in results for line in one.summary()[:4]]
    names = ", ".join(dict.fromkeys(one.model for one in results))
    return page("What cue words change", [cue_words_section(one) for one in results], notes, names)


def cue_words_section(result: CueResult) -> Section:
    """Turn one result into a section of a page: heading, paragraph and blocks."""
    if isinstance(result, NextTokenDivergence):
        return (
            f"Next tokens behind a {result.given_answer} answer",
            _DIVERGENCE_INTRO,
            _divergence_blocks(result),
        )
    if isinstance(result, CueLocalization):
        heading = f"Where {result.first} and {result.second} differ"
        return heading, _LOCALIZATION_INTRO, [_localization_block(result)]
    heading = f"Going on from {'its own' if result.given_answer == 'own' else f'a {result.given_answer}'} answer"
    return heading, _FORCING_INTRO, [_accuracy_block(result), _contrasts_block(result)]


def _divergence_blocks(result: NextTokenDivergence) -> Sequence[Block]:
    plotted, rows = [], []
    for k, (first, second) in enumerate(result.pairs):
        bits, random, excess = result.pair_divergence(k)
        name = f"{first} / {second}"
        plotted.append(Interval(name, bits.value, bits.low, bits.high))
        plotted.append(Interval(f"{name}: random", random.value, random.low, random.high))
        same = f"{result.same_argmax[k].mean():.1%}"
        rows.append(
            [name, format_estimate(bits), format_estimate(random), format_estimate(excess), same]
        )
    top = max(float(row.high or 0) for row in plotted) or 1.0
    digits = max(2, 2 - ceil(log10(top)))
    columns = ("cues", "bits", "random word", "first less second", "same next token")
    return [
        IntervalPlot(plotted, "", (0.0, top), "bits", digits),
        Table(columns, rows, notes=("Intervals: 95 %, bootstrap over items.",)),
    ]


def _localization_block(result: CueLocalization) -> Block:
    layers, places = range(len(result.remaining)), result.positions
    shares = [[result.recovered_fraction(n, p) for p in places] for n in layers]
    rows = [f"layer {n}" if n < len(result.remaining) - 1 else "output" for n in layers]
    error = np.array([[(e.high - e.low) / 3.92 for e in row] for row in shares])
    values = np.array([[e.value for e in row] for row in shares])
    caption = f"Share of {format_estimate(bootstrap_mean(result.total, seed=result.seed))} bits that a patch brings about"
    return Matrix(values, rows, places, error, caption=caption, corner=("input of", "place"))


def _accuracy_block(result: BudgetForcing) -> Block:
    rows = []
    for cue in result.cues:
        for times in result.times:
            right = result.accuracy(cue, times)
            rows.append(Interval(f"{cue}, n={times}", right.value, right.low, right.high))
    return IntervalPlot(rows, "Right last statements", axis="share of the items")


def _contrasts_block(result: BudgetForcing) -> Block:
    rows = [_contrast_row(change) for change in result.contrasts()]
    columns = ("what", "points", "interval", "gained", "lost", "p", "likely shown", "verdict")
    note = (
        "Likely shown: the smallest difference found four times in five with so many items and so "
        "many comparisons, if as many answers change as here."
    )
    return Table(columns, rows, notes=(note,))


def _contrast_row(contrast: ForcingContrast) -> list[str | TableCell]:
    d, verdict = contrast.comparison.difference, contrast.comparison.verdict(p_value=contrast.p)
    tones: dict[str, Tone] = {"more": "good", "less": "bad"}
    return [
        f"{contrast.second} less {contrast.first}",
        f"{100 * d.value:+.1f}",
        f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
        str(contrast.comparison.gained),
        str(contrast.comparison.lost),
        f"{contrast.p:.2g}",
        f"{100 * contrast.min_detectable_difference:.1f}"
        if isfinite(contrast.min_detectable_difference)
        else "none",
        TableCell(verdict, tones.get(verdict, "muted")),
    ]


def _tone(line: str) -> Tone | None:
    return "muted" if "cannot tell" in line else None
