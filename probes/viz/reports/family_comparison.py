"""A model beside several relatives as one page: the table of words, then what it rests on."""

import math
from collections.abc import Sequence

import numpy as np

from probes.comparison.family_result import Relatives
from probes.comparison.result import Comparison
from probes.comparison.verdict import Fate
from probes.viz.blocks import Block, Cell, Note, Table, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.reports.transfer_tables import kin_plot, written
from probes.viz.reports.verdict_tables import (
    VARIABLE_LEAD,
    glossary,
    models_table,
    variable_blocks,
    word_cell,
)

_WORDS_LEAD = (
    "What became of each variable and each head of {full}, relative by relative, and in brackets "
    "where it is there. Point at a word to see why. A variable is something that the question says "
    "and the answer hangs on: the operation (add or take away), a number such as x, the thing that "
    "is asked about. L1.H3 is head 3 of layer 1, and L1.resid@op the state before layer 1 at the "
    "word in the role op, counted from 0; joined by +, two places act together. That a head is "
    "lost does not say that what it computed is lost."
)
_NUMBERS_LEAD = (
    "The numbers beside the words. What chance reaches, and what nets reach that were trained on "
    "such texts for another end, stand in columns of their own."
)
_KIN_LEAD = (
    "Kinship: how often states of a relative, put into {full} through a linear map, turn its "
    "answers; the mean over the variables. It does not ask whether the relative can do the task. "
    "No tested word was fitted on. Untrained nets were given the same map and the same search, so "
    "what they reach is chance; nets that were trained on such texts for another end say what "
    "knowing the words alone is worth. What a relative's words hold before any layer counts as its "
    "own work. Then the same variable by variable: green is surely beyond all of these. That is "
    "not proof of descent: a net that learned the same task by itself may come to the same code."
)


def related_page(found: Relatives) -> Picture:
    """Lay a model and its relatives out as one page that needs no network."""
    first = found.comparisons[0]
    full = first.full.name
    sections: list[Section] = [
        (
            "What became of each variable and head",
            _WORDS_LEAD.format(full=full),
            [_words(found), glossary("variable", "head")],
        ),
        ("How alike they are", _NUMBERS_LEAD, [_numbers(found)]),
        ("Are they kin, beyond chance?", _KIN_LEAD.format(full=full), _kinship(found)),
        *(
            (
                f"{one.other.name}: what became of each variable",
                VARIABLE_LEAD.format(full=full, other=one.other.name) if one.forth else "",
                variable_blocks(one, tests=False),
            )
            for one in found.comparisons
        ),
        ("How this was measured", "", [_recipe(found)]),
    ]
    notes = [
        Note(line, "bad" if _fails(one) else None)
        for line, one in zip(found.summary(), found.comparisons, strict=True)
    ]
    subtitle = f"Pattern “{first.pattern}” ({first.title}).\nFor example: {first.example}"
    return page(f"{full} and its relatives {', '.join(found.names)}", sections, notes, subtitle)


def _fails(one: Comparison) -> bool:
    """Say whether the relative cannot do it; the gates of the full model stand first."""
    return any(gate.state == "closed" for gate in one.gates[len(one.answers) :])


def _words(found: Relatives) -> Table:
    """Lay out the words: a variable or head to a row, a relative to a column."""
    told = [{fate.subject: fate for fate in one.fates if fate.subject} for one in found.comparisons]
    subjects = dict.fromkeys(subject for fates in told for subject in fates)
    idle = [name for name in subjects if _idle([f[name] for f in told if name in f])]
    rows: list[list[str | Cell]] = [
        [subject, *(word_cell(f[subject], where=True) if subject in f else "" for f in told)]
        for subject in subjects
        if subject not in idle
    ]
    rows.append(["heads of its own", *map(_own, found.comparisons)])
    columns = ("variable or head", *found.names)
    full = found.comparisons[0].full.name
    notes = [f"Idle in {full}, and so left out: {', '.join(idle)}."] if idle else []
    return Table(columns, rows, align="l" * len(columns), notes=notes)


def _idle(fates: Sequence[Fate]) -> bool:
    """Say whether a head is idle in the full model: where the behaviour is absent none is."""
    words = {fate.word for fate in fates}
    return "idle" in words and words <= {"idle", "behaviour absent"}


def _own(one: Comparison) -> Cell:
    own = [fate for fate in one.fates if fate.word == "new"]
    why = " · ".join(f"{fate.there}: {fate.reason}" for fate in own)
    return Cell(", ".join(fate.there for fate in own) or "–", hover=why)


def _numbers(found: Relatives) -> Table:
    numbers, first = found.numbers(), found.comparisons[0]
    rows = [
        [str(name), *(written(float(value)) for value in row)]
        for name, row in zip(numbers.index, numbers.to_numpy(dtype=float), strict=True)
    ]
    notes = (
        "Right: share of whole answers. Heads alike: the mean score of all pairs of heads, 0 to 1; "
        "untrained: what 95 % of untrained nets stay below. Turned: how often states of this "
        f"model, put into {first.full.name}, turn its answer in this variable. "
        f"The {first.nulls} untrained nets have the shape of "
        f"{first.other.name}: the best one, number by number.",
    )
    return Table(("what", *map(str, numbers.columns)), rows, notes=notes)


def _kinship(found: Relatives) -> list[Block]:
    """Plot how much each relative's states turn, beside untrained nets and strangers."""
    kin = [one for one in found.comparisons if not math.isnan(one.kinship)]
    first = found.comparisons[0]
    if not kin:
        why = first.untried or f"{first.full.name} does not do the whole task"
        return [Note(f"No state was carried over. {why}", "muted")]
    rows = [_kin(one) for one in kin]
    strange = {name: [] for name in kin[0].back[0].strangers}
    for name in strange:
        values = [one.strangers[name] for one in kin[0].back]
        label = f"{name} (another end)"
        rows.append(Interval(label, float(np.mean(values)), tone="muted"))
    caption = f"Kinship to {first.full.name}: mean over {len(kin[0].back)} variables"
    blocks: list[Block] = [IntervalPlot(rows, caption, axis="share of crossings")]
    for at, one in enumerate(kin[0].back):
        same = [relative.back[at] for relative in kin]
        caption = f"{one.variable}: how often it turns the answer of {first.full.name}"
        blocks.append(kin_plot(same, caption))
    return blocks


def _kin(one: Comparison) -> Interval:
    nets = np.mean([carried.nulls for carried in one.back], axis=0)
    beyond = max(float(nets.max()), *np.mean([[*b.strangers.values()] for b in one.back], axis=0))
    tone: Tone | None = None if one.kinship > beyond else "muted"
    return Interval(one.other.name, one.kinship, null=[float(net) for net in nets], tone=tone)


def _recipe(found: Relatives) -> Table:
    first = found.comparisons[0]
    strangers: Sequence[str] = tuple(first.back[0].strangers) if first.back else ()
    return models_table(
        (first.full, *(one.other for one in found.comparisons)),
        (
            f"{first.prompts} pairs for each of the contrasts {', '.join(first.contrasts)}; "
            f"{first.nulls} untrained nets of each shape; seed {first.seed}; another seed of the "
            f"full model: {first.ceiling or 'none known'}; trained for another end: "
            f"{', '.join(strangers) or 'none known'}.",
            "Intervals: 95 %, over prompts; Wilson for shares of crossings. Kinship is drawn "
            "without one: its variables are tried on overlapping prompts.",
        ),
    )
