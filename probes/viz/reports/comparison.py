"""The comparison as a page: what was found in plain words, then what it rests on."""

import math
from collections.abc import Sequence

import numpy as np

from probes.comparison.heads.matching import MIN_RELIABILITY, HeadMatch
from probes.comparison.result import Comparison, PlotData
from probes.observe.gate import Gate
from probes.viz.blocks import Block, Matrix, Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.attention.head_grid import head_grid
from probes.viz.plots.attention.maps import AttentionMaps
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.registry import report
from probes.viz.reports.verdict_tables import (
    HEAD_INTRO,
    VARIABLE_INTRO,
    glossary,
    head_blocks,
    models_table,
    variable_blocks,
)

_MAX_COMPONENTS = 3
"""How many heads' effects are printed in full."""


@report.register
def comparison_page(comparison: Comparison) -> Picture:
    """Lay a comparison out as one page that needs no network."""
    sections: list[Section] = [
        ("Can they do it?", _GATE_INTRO, _gate_blocks(comparison)),
        ("What attention does", _ATTENTION_INTRO, [attention_grid(comparison)]),
        (
            "Which heads do the same",
            _MATCH_INTRO.format(bar=MIN_RELIABILITY),
            _match_blocks(comparison),
        ),
        (
            "What became of each variable",
            VARIABLE_INTRO.format(full=comparison.full.name, other=comparison.other.name),
            [*variable_blocks(comparison), glossary("variable")],
        ),
        ("What became of each head", HEAD_INTRO, [*head_blocks(comparison), glossary("head")]),
        ("What each component carries", _EFFECT_INTRO, _effect_blocks(comparison)),
        ("How this was measured", "", [_protocol_table(comparison)]),
    ]
    verdicts = [Note(line, tone) for line, tone in _verdicts(comparison)]
    subtitle = (
        f"Pattern “{comparison.pattern}” ({comparison.title}).\nFor example: {comparison.example}"
    )
    return page(f"{comparison.full.name} | {comparison.other.name}", sections, verdicts, subtitle)


_GATE_INTRO = (
    "No circuit of a behavior that a model does not have. The gate is open where accuracy is "
    "surely above 80 % and above the best simple heuristic on the same questions, partial where "
    "it only beats the heuristic, closed where it does not even do that."
)
_ATTENTION_INTRO = (
    "Attention pooled from role to role, averaged over the clean prompts. Attention suggests; it "
    "does not decide: two untrained nets look alike too. Click a head, or use the arrow keys. The "
    "difference is drawn between paired heads."
)
_MATCH_INTRO = (
    "Heads are paired one-to-one by what they do: how patching them at each role, for each "
    "contrast, moves the answers, and how they attend. Pairing always finds pairs, so it is rerun "
    "with untrained nets; a match must beat the 95th percentile of their best. A head whose "
    "effects do not repeat between halves of the prompts (reliability below {bar}) is idle."
)
_EFFECT_INTRO = (
    "The fall of the answer's lead, in logits, when a component's output at a role is replaced by "
    "what it is in the counterfactual run (± standard error over prompts). Positive: it carries "
    "what was changed. Shown are the components that carry most of each contrast."
)


def attention_grid(comparison: Comparison) -> Picture:
    """Draw all heads of both models by role, and the difference between paired heads."""
    maps = [
        AttentionMaps(
            name, view.attention, comparison.roles, comparison.roles, view.attention_error
        )
        for name, view in comparison.plot_data.items()
    ]
    pairs = [(_parse_head(m.head), _parse_head(m.partner)) for m in comparison.matches if m.partner]
    busiest = max(comparison.matches, key=lambda m: (m.label == "matched", m.reliability))
    return head_grid(maps[0], maps[-1], pairs, start=_parse_head(busiest.head))


def _verdicts(comparison: Comparison) -> list[tuple[str, Tone | None]]:
    tones: dict[str, Tone | None] = {"open": "good", "partial": None, "closed": "bad"}
    states = [gate.state for gate in comparison.gates]
    lines = comparison.summary()
    return [(line, tones[states[k]] if k < len(states) else None) for k, line in enumerate(lines)]


def _gate_blocks(comparison: Comparison) -> list[Block]:
    rows = [_gate_interval(gate) for gate in comparison.gates]
    for answer, accuracy in zip(comparison.answers, comparison.random_init_accuracy, strict=True):
        rows.append(Interval(f"{comparison.nulls} untrained nets, {answer} (mean)", accuracy))
    columns = ("model", "answer", "items", "accuracy", "best heuristic", "margin", "lead", "gate")
    table = Table(columns, [_gate_row(gate) for gate in comparison.gates], align="llrrlrrl")
    solved = [
        [s.model, s.answer, str(s.items), str(s.logit_diff) if s.logit_diff else "too few items"]
        for s in comparison.solved_logit_diffs
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


def _gate_row(gate: Gate) -> list[str | TableCell]:
    tones: dict[str, Tone | None] = {"open": "good", "partial": "muted", "closed": "bad"}
    return [
        gate.model,
        gate.answer,
        str(gate.n_questions),
        str(gate.accuracy),
        f"{gate.heuristic}: {gate.heuristic_accuracy:.2f}",
        str(gate.margin),
        str(gate.logit_diff),
        TableCell(gate.state, tones[gate.state]),
    ]


def _match_blocks(comparison: Comparison) -> list[Block]:
    paired = [match for match in comparison.matches if match.partner]
    ranked = sorted(paired, key=lambda m: (m.label == "no reliable effect", -m.score.value))
    mean_pair_score = comparison.mean_pair_score
    rows = [
        Interval(
            "mean of all pairs",
            mean_pair_score.score.value,
            mean_pair_score.score.low,
            mean_pair_score.score.high,
            chance=(
                min(mean_pair_score.chance, mean_pair_score.chance_high),
                mean_pair_score.chance_high,
            ),
            upper_reference=_finite_or_none(mean_pair_score.other_seed),
        ),
        *(_match_interval(match) for match in ranked),
    ]
    columns = ("head", "partner", "score", "chance", "bar", "other seed", "reliability", "word")
    cells = [_match_row(match, comparison.behavior_absent) for match in comparison.matches]
    ceiling = comparison.other_seed or "none known"
    table = Table(
        columns,
        cells,
        align="llrrrrrl",
        notes=(
            "Chance: mean score of this head in untrained nets. Bar: 95th percentile of their best "
            f"match, one for all heads. Other seed: {ceiling}, n = 1.",
            f"Reliable heads of {comparison.other.name} without a match: "
            f"{', '.join(comparison.unmatched) or 'none'}.",
        ),
    )
    caption = "Score of each pair, beside chance and the other seed"
    return [IntervalPlot(rows, caption, axis="similarity of profiles"), table]


def _match_interval(match: HeadMatch) -> Interval:
    # A percentile interval need not hold its estimate: resampling adds noise, noise lowers cosines.
    return Interval(
        f"{match.head} – {match.partner}",
        match.score.value,
        match.score.low,
        match.score.high,
        # With few untrained nets a head may be left over in all of them: its chance is NaN.
        chance=(float(np.fmin(match.chance, match.threshold)), match.threshold),
        upper_reference=_finite_or_none(match.other_seed_score),
        tone="good" if match.label == "matched" else None,
    )


def _match_row(match: HeadMatch, behavior_absent: bool) -> list[str | TableCell]:
    tones: dict[str, Tone | None] = {
        "matched": "good",
        "unmatched": "bad",
        "no reliable effect": "muted",
    }
    word = (
        TableCell("behavior absent", "muted")
        if behavior_absent
        else TableCell(match.label, tones[match.label])
    )
    return [
        match.head,
        match.partner or "–",
        str(match.score) if match.partner else "–",
        _format_score(match.chance),
        _format_score(match.threshold),
        _format_score(match.other_seed_score),
        _format_score(match.reliability),
        word,
    ]


def _effect_blocks(comparison: Comparison) -> list[Block]:
    blocks: list[Block] = []
    for contrast, exact in comparison.contrasts.items():
        how = "" if exact == 1 else f" ({exact:.0%} of pairs token by token, else last tokens)"
        for k, answer in enumerate(comparison.answers):
            for name, view in comparison.plot_data.items():
                block = _effect_matrix(view, contrast, k, comparison.roles)
                if block is not None:
                    caption = f"{contrast} → {answer}, {name}{how}"
                    blocks.append(Matrix(*block[:3], error=block[3], caption=caption))
    if not blocks:
        blocks.append(Note("No component moves any answer by more than twice its standard error."))
    return blocks


def _effect_matrix(
    plot_data: PlotData, contrast: str, k: int, roles: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...], np.ndarray] | None:
    """Return the strongest components over the roles where any of them acts, if one does."""
    values, errors = plot_data.effects[contrast][..., k], plot_data.effect_errors[contrast][..., k]
    sure = np.abs(np.nan_to_num(values)) > np.maximum(2 * np.nan_to_num(errors), 0.1)
    if not sure.any():
        return None
    strength = np.where(sure, np.abs(np.nan_to_num(values)), 0).max(1)
    top = np.sort(np.argsort(-strength)[: 2 * _MAX_COMPONENTS])
    top = top[strength[top] > 0]
    live = np.flatnonzero(~np.isnan(values[top]).all(0))
    names = tuple(plot_data.components[int(index)] for index in top)
    where = tuple(roles[int(index)] for index in live)
    return values[np.ix_(top, live)], names, where, errors[np.ix_(top, live)]


def _protocol_table(comparison: Comparison) -> Table:
    return models_table(
        (comparison.full, comparison.other),
        (
            f"{comparison.prompts} pairs for each of the contrasts {', '.join(comparison.contrasts)}; "
            f"{comparison.nulls} untrained nets of {comparison.other.name}'s shape; seed {comparison.seed}.",
            "Similarity of two heads: the mean of the cosine of their effects and the cosine of "
            "their attention, the attention of an even head taken off. Intervals: 95 %, over "
            "prompts. Chance comes from untrained nets, a lenient null: a match is not yet proof "
            "of the same circuit.",
        ),
    )


def _parse_head(head: str) -> tuple[int, int]:
    layer, number = head.split(".")
    return int(layer[1:]), int(number[1:])


def _finite_or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _format_score(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
