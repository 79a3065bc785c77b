"""Page about cue words: next-token divergence, localization and budget forcing."""

from collections.abc import Sequence
from math import ceil, isfinite, log10

import numpy as np

from probes.experiments.cue_words.divergence_result import (
    CueLocalization,
    NextTokenDivergence,
    format_estimate,
)
from probes.experiments.cue_words.forcing_result import BudgetForcing, ForcingContrast
from probes.stats.intervals import bootstrap_mean
from probes.viz.blocks import Block, Matrix, Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.interval_plot import Interval, IntervalPlot

CueResult = NextTokenDivergence | CueLocalization | BudgetForcing

_DIVERGENCE_INTRO = (
    "Jensen-Shannon divergence of the next token after two cues: 0 bits for equal distributions, 1 "
    "for distributions without a common token. The control is the divergence of a cue and random "
    "words with as many tokens in its place, sampled for each item."
)
_LOCALIZATION_INTRO = (
    "The residual stream of the second cue's run is patched into the first cue's run at one layer "
    "and position. At 1 the patched run has the next token of the second cue's run; at 0 the patch "
    "has no effect. The cue at layer 0 and the readout at the output are 1 by construction."
)
_FORCING_INTRO = (
    "A cue is appended to the answer n times, the model continues each time up to a full stop, and "
    "its last answer is read. Two arms are compared item by item: McNemar's exact test, corrected "
    "after Holm, with Newcombe's interval. From a given answer, the accuracy at n=0 is 0 or 1 by "
    "construction."
)


def cue_words_page(*results: CueResult) -> Picture:
    """Page of results about cues, in one file."""
    notes = [Note(line, _tone(line)) for one in results for line in one.summary()[:4]]
    names = ", ".join(dict.fromkeys(one.model for one in results))
    return page("Effects of cue words", [cue_words_section(one) for one in results], notes, names)


def cue_words_section(result: CueResult) -> Section:
    """Section of a page: heading, introduction and blocks."""
    if isinstance(result, NextTokenDivergence):
        heading = f"Next token after a {result.given_answer} answer"
        return heading, _DIVERGENCE_INTRO, _divergence_blocks(result)
    if isinstance(result, CueLocalization):
        heading = f"Sites that distinguish {result.first} and {result.second}"
        return heading, _LOCALIZATION_INTRO, [_localization_block(result)]
    given = "its own" if result.given_answer == "own" else f"a {result.given_answer}"
    blocks = [_accuracy_block(result), _contrasts_block(result)]
    return f"Budget forcing from {given} answer", _FORCING_INTRO, blocks


def _divergence_blocks(result: NextTokenDivergence) -> Sequence[Block]:
    intervals, rows = [], []
    for k, (first, second) in enumerate(result.pairs):
        bits, random, excess = result.pair_divergence(k)
        name = f"{first} / {second}"
        intervals.append(Interval(name, bits.value, bits.low, bits.high))
        intervals.append(Interval(f"{name}: random", random.value, random.low, random.high))
        same = f"{result.same_argmax[k].mean():.1%}"
        rows.append([name, *map(format_estimate, (bits, random, excess)), same])
    top = max(float(row.high or 0) for row in intervals) or 1.0
    digits = max(2, 2 - ceil(log10(top)))
    columns = ("cues", "bits", "random word", "difference", "same next token")
    return [
        IntervalPlot(intervals, "", (0.0, top), "bits", digits),
        Table(columns, rows, notes=("Intervals: 95 %, bootstrap over items.",)),
    ]


def _localization_block(result: CueLocalization) -> Block:
    layers, positions = range(len(result.remaining)), result.positions
    fractions = [[result.recovered_fraction(n, p) for p in positions] for n in layers]
    rows = [*(f"layer {n}" for n in layers[:-1]), "output"]
    error = np.array([[(e.high - e.low) / 3.92 for e in row] for row in fractions])
    values = np.array([[e.value for e in row] for row in fractions])
    total = format_estimate(bootstrap_mean(result.total, seed=result.seed))
    caption = f"Fraction of {total} bits that a patch removes"
    return Matrix(values, rows, positions, error, caption=caption, corner=("input of", "position"))


def _accuracy_block(result: BudgetForcing) -> Block:
    rows = []
    for cue in result.cues:
        for times in result.times:
            accuracy = result.accuracy(cue, times)
            name = f"{cue}, n={times}"
            rows.append(Interval(name, accuracy.value, accuracy.low, accuracy.high))
    return IntervalPlot(rows, "Accuracy of the last answer", axis="fraction of items")


def _contrasts_block(result: BudgetForcing) -> Block:
    rows = [_contrast_row(contrast) for contrast in result.contrasts()]
    columns = ("contrast", "points", "interval", "gained", "lost", "p", "detectable", "verdict")
    note = (
        "Detectable: smallest difference that is found in four of five experiments with as many "
        "items, comparisons and changed answers."
    )
    return Table(columns, rows, notes=(note,))


def _contrast_row(contrast: ForcingContrast) -> list[str | TableCell]:
    d, verdict = contrast.comparison.difference, contrast.comparison.verdict(p_value=contrast.p)
    tones: dict[str, Tone] = {"more": "good", "less": "bad"}
    detectable = contrast.min_detectable_difference
    return [
        f"{contrast.second} minus {contrast.first}",
        f"{100 * d.value:+.1f}",
        f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
        str(contrast.comparison.gained),
        str(contrast.comparison.lost),
        f"{contrast.p:.2g}",
        f"{100 * detectable:.1f}" if isfinite(detectable) else "none",
        TableCell(verdict, tones.get(verdict, "muted")),
    ]


def _tone(line: str) -> Tone | None:
    return "muted" if "cannot tell" in line else None
