"""The comparison as a page: what was found in plain words, then what it rests on."""

import math
from collections.abc import Sequence

import numpy as np

from probes.comparison.heads.matching import RELIABLE_FROM, Match
from probes.comparison.result import Comparison, View
from probes.observe.gate import Gate
from probes.viz.blocks import Block, Cell, Matrix, Note, Table, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.attention.head_grid import head_grid
from probes.viz.plots.attention.maps import HeadMaps
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.reports.verdict_tables import (
    HEAD_LEAD,
    VARIABLE_LEAD,
    glossary,
    head_blocks,
    models_table,
    variable_blocks,
)

_SHOWN = 3
"""How many heads' effects are printed in full."""


def report(found: Comparison) -> Picture:
    """Lay a comparison out as one page that needs no network."""
    sections: list[Section] = [
        ("Can they do it?", _GATE_LEAD, _gate_blocks(found)),
        ("What attention does", _ATTENTION_LEAD, [attention_grid(found)]),
        ("Which heads do the same", _MATCH_LEAD.format(bar=RELIABLE_FROM), _match_blocks(found)),
        (
            "What became of each variable",
            VARIABLE_LEAD.format(full=found.full.name, other=found.other.name),
            [*variable_blocks(found), glossary("variable")],
        ),
        ("What became of each head", HEAD_LEAD, [*head_blocks(found), glossary("head")]),
        ("What each component carries", _EFFECT_LEAD, _effect_blocks(found)),
        ("How this was measured", "", [_recipe(found)]),
    ]
    verdicts = [Note(line, tone) for line, tone in _verdicts(found)]
    subtitle = f"Pattern “{found.pattern}” ({found.title}).\nFor example: {found.example}"
    return page(f"{found.full.name} | {found.other.name}", sections, verdicts, subtitle)


_GATE_LEAD = (
    "No circuit of a behaviour that a model does not have. The gate is open where accuracy is "
    "surely above 80 % and above the best simple heuristic on the same questions, partial where "
    "it only beats the heuristic, closed where it does not even do that."
)
_ATTENTION_LEAD = (
    "Attention pooled from role to role, averaged over the clean prompts. Attention suggests; it "
    "does not decide: two untrained nets look alike too. Click a head, or use the arrow keys. The "
    "difference is drawn between paired heads."
)
_MATCH_LEAD = (
    "Heads are paired one-to-one by what they do: how patching them at each role, for each "
    "contrast, moves the answers, and how they attend. Pairing always finds pairs, so it is rerun "
    "with untrained nets; a match must beat the 95th percentile of their best. A head whose "
    "effects do not repeat between halves of the prompts (reliability below {bar}) is idle."
)
_EFFECT_LEAD = (
    "The fall of the answer's lead, in logits, when a component's output at a role is replaced by "
    "what it is in the counterfactual run (± standard error over prompts). Positive: it carries "
    "what was changed. Shown are the components that carry most of each contrast."
)


def attention_grid(found: Comparison) -> Picture:
    """Draw all heads of both models by role, and the difference between paired heads."""
    maps = [
        HeadMaps(name, view.attention, found.roles, found.roles, view.attention_error)
        for name, view in found.views.items()
    ]
    pairs = [(_place(m.head), _place(m.partner)) for m in found.matches if m.partner]
    busiest = max(found.matches, key=lambda m: (m.word == "matched", m.reliability))
    return head_grid(maps[0], maps[-1], pairs, start=_place(busiest.head))


def _verdicts(found: Comparison) -> list[tuple[str, Tone | None]]:
    tones: dict[str, Tone | None] = {"open": "good", "partial": None, "closed": "bad"}
    states = [gate.state for gate in found.gates]
    lines = found.summary()
    return [(line, tones[states[k]] if k < len(states) else None) for k, line in enumerate(lines)]


def _gate_blocks(found: Comparison) -> list[Block]:
    rows = [_gate_interval(gate) for gate in found.gates]
    for answer, accuracy in zip(found.answers, found.untrained_accuracy, strict=True):
        rows.append(Interval(f"{found.nulls} untrained nets, {answer} (mean)", accuracy))
    columns = ("model", "answer", "items", "accuracy", "best heuristic", "margin", "lead", "gate")
    table = Table(columns, [_gate_row(gate) for gate in found.gates], align="llrrlrrl")
    solved = [
        [s.model, s.answer, str(s.items), str(s.lead) if s.lead else "too few items"]
        for s in found.solved
    ]
    both = Table(
        ("model", "answer", "items", "lead (logits)"),
        solved,
        "On the items that both models solve",
        align="llrr",
        notes=("Lead: the answer's logit less the mean of the other possible outcomes'.",),
    )
    plot = IntervalPlot(rows, "Share of whole answers that are right", (0.0, 1.0), "accuracy")
    return [plot, table, both]


def _gate_interval(gate: Gate) -> Interval:
    tone: Tone = "good" if gate.state == "open" else "bad"
    return Interval(
        f"{gate.model}, {gate.answer}",
        gate.accuracy.value,
        gate.accuracy.low,
        gate.accuracy.high,
        chance=(0.0, gate.heuristic_accuracy),
        tone=tone,
    )


def _gate_row(gate: Gate) -> list[str | Cell]:
    tones: dict[str, Tone | None] = {"open": "good", "partial": "muted", "closed": "bad"}
    return [
        gate.model,
        gate.answer,
        str(gate.items),
        str(gate.accuracy),
        f"{gate.heuristic}: {gate.heuristic_accuracy:.2f}",
        str(gate.margin),
        str(gate.lead),
        Cell(gate.state, tones[gate.state]),
    ]


def _match_blocks(found: Comparison) -> list[Block]:
    paired = [match for match in found.matches if match.partner]
    ranked = sorted(paired, key=lambda m: (m.word == "idle", -m.score.value))
    overall = found.overall
    rows = [
        Interval(
            "mean of all pairs",
            overall.score.value,
            overall.score.low,
            overall.score.high,
            chance=(min(overall.chance, overall.chance_high), overall.chance_high),
            ceiling=_number(overall.ceiling),
        ),
        *(_match_interval(match) for match in ranked),
    ]
    columns = ("head", "partner", "score", "chance", "bar", "other seed", "reliability", "word")
    cells = [_match_row(match, found.withheld) for match in found.matches]
    ceiling = found.ceiling or "none known"
    table = Table(
        columns,
        cells,
        align="llrrrrrl",
        notes=(
            "Chance: mean score of this head in untrained nets. Bar: 95th percentile of their best "
            f"match, one for all heads. Other seed: {ceiling}, n = 1.",
            f"Reliable heads of {found.other.name} without a match: "
            f"{', '.join(found.unmatched) or 'none'}.",
        ),
    )
    caption = "Score of each pair, beside chance and the other seed"
    return [IntervalPlot(rows, caption, axis="similarity of profiles"), table]


def _match_interval(match: Match) -> Interval:
    # A percentile interval need not hold its estimate: resampling adds noise, noise lowers cosines.
    return Interval(
        f"{match.head} – {match.partner}",
        match.score.value,
        match.score.low,
        match.score.high,
        # With few untrained nets a head may be left over in all of them: its chance is NaN.
        chance=(float(np.fmin(match.chance, match.chance_high)), match.chance_high),
        ceiling=_number(match.ceiling),
        tone="good" if match.word == "matched" else None,
    )


def _match_row(match: Match, withheld: bool) -> list[str | Cell]:
    tones: dict[str, Tone | None] = {"matched": "good", "unmatched": "bad", "idle": "muted"}
    word = Cell("behaviour absent", "muted") if withheld else Cell(match.word, tones[match.word])
    return [
        match.head,
        match.partner or "–",
        str(match.score) if match.partner else "–",
        _written(match.chance),
        _written(match.chance_high),
        _written(match.ceiling),
        _written(match.reliability),
        word,
    ]


def _effect_blocks(found: Comparison) -> list[Block]:
    blocks: list[Block] = []
    for contrast, exact in found.contrasts.items():
        how = "" if exact == 1 else f" ({exact:.0%} of pairs token by token, else last tokens)"
        for k, answer in enumerate(found.answers):
            for name, view in found.views.items():
                block = _effect_matrix(view, contrast, k, found.roles)
                if block is not None:
                    caption = f"{contrast} → {answer}, {name}{how}"
                    blocks.append(Matrix(*block[:3], error=block[3], caption=caption))
    if not blocks:
        blocks.append(Note("No component moves any answer by more than twice its standard error."))
    return blocks


def _effect_matrix(
    view: View, contrast: str, k: int, roles: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...], np.ndarray] | None:
    """Return the strongest components over the roles where any of them acts, if one does."""
    values, errors = view.effects[contrast][..., k], view.effect_errors[contrast][..., k]
    sure = np.abs(np.nan_to_num(values)) > np.maximum(2 * np.nan_to_num(errors), 0.1)
    if not sure.any():
        return None
    strength = np.where(sure, np.abs(np.nan_to_num(values)), 0).max(1)
    top = np.sort(np.argsort(-strength)[: 2 * _SHOWN])
    top = top[strength[top] > 0]
    live = np.flatnonzero(~np.isnan(values[top]).all(0))
    names = tuple(view.components[int(index)] for index in top)
    where = tuple(roles[int(index)] for index in live)
    return values[np.ix_(top, live)], names, where, errors[np.ix_(top, live)]


def _recipe(found: Comparison) -> Table:
    return models_table(
        (found.full, found.other),
        (
            f"{found.prompts} pairs for each of the contrasts {', '.join(found.contrasts)}; "
            f"{found.nulls} untrained nets of {found.other.name}'s shape; seed {found.seed}.",
            "Similarity of two heads: the mean of the cosine of their effects and the cosine of "
            "their attention, the attention of an even head taken off. Intervals: 95 %, over "
            "prompts. Chance comes from untrained nets, a lenient null: a match is not yet proof "
            "of the same circuit.",
        ),
    )


def _place(head: str) -> tuple[int, int]:
    layer, number = head.split(".")
    return int(layer[1:]), int(number[1:])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _written(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
