"""Page of a comparison of two models: capability, attention, heads, variables and effects."""

from collections.abc import Sequence

import numpy as np

from probes.comparison.heads.result import MIN_RELIABILITY, HeadMatch
from probes.comparison.result import Comparison, PlotData
from probes.comparison.verdict import Verdict
from probes.models.site import parse_head
from probes.viz.blocks import Block, CellValue, Matrix, Note, Table, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.attention.head_grid import head_grid
from probes.viz.plots.attention.maps import AttentionMaps
from probes.viz.plots.interval_plot import Interval, IntervalPlot
from probes.viz.registry import report
from probes.viz.reports.path_panels import path_picture, short_answer
from probes.viz.reports.tables.capability import STATE_TONES, gate_blocks, gate_intro
from probes.viz.reports.tables.paths import PATH_INTRO, path_blocks
from probes.viz.reports.tables.verdicts import (
    HEAD_INTRO,
    VARIABLE_INTRO,
    glossary,
    head_blocks,
    models_table,
    repeat_blocks,
    variable_blocks,
    verdict_cell,
)

_MAX_COMPONENTS = 6
_MIN_EFFECT = 0.1  # logits
_FOLDED = ("Head pairing", "Patching effects", "Method")

_ATTENTION_INTRO = (
    "Attention pooled from role to role, averaged over the clean prompts. Attention alone is weak "
    "evidence: random-init models look alike too. Click a head, or use the arrow keys. The "
    "difference is shown between paired heads."
)
_MATCH_INTRO = (
    "Heads are paired one-to-one by their patching effects, for each contrast and role, and their "
    "attention. Pairing always returns pairs, so it is repeated with {null}: the threshold is "
    "exceeded by 5 % or less of further ones. Heads whose effects have a split-half reliability "
    "below {reliability} count as unreliable."
)
_EFFECT_INTRO = (
    "Drop of the logit difference, in logits, when the output of a component at a role is replaced "
    "by its counterfactual value; ± is the standard error over prompts. A positive effect means "
    "that the component carries what was changed. The components with the largest effects are "
    "shown for each contrast."
)
_METHOD_NOTE = (
    "Head similarity: mean of the cosine of patching effects and the cosine of attention, after "
    "subtracting uniform attention. Intervals: 95 %, over prompts. {null} are a weak null: a high "
    "score alone does not show the same circuit."
)


@report.register
def comparison_page(comparison: Comparison) -> Picture:
    """Page of one comparison."""
    full, other = comparison.full.name, comparison.other.name
    variable_intro = VARIABLE_INTRO.format(full=full, other=other)
    variables = [*variable_blocks(comparison), glossary("variable")]
    null = comparison.method.null_name
    match_intro = _MATCH_INTRO.format(null=null, reliability=MIN_RELIABILITY)
    sections: list[Section] = [
        ("Capability", gate_intro(comparison), gate_blocks(comparison)),
        ("Role paths", PATH_INTRO, [*path_blocks(comparison), glossary("path")]),
        ("Attention", _ATTENTION_INTRO, [attention_grid(comparison)]),
        ("Head pairing", match_intro, _match_blocks(comparison)),
        ("Verdicts on variables", variable_intro, variables),
        ("Verdicts on heads", HEAD_INTRO, [*head_blocks(comparison), glossary("head")]),
        ("Patching effects", _EFFECT_INTRO, _effect_blocks(comparison)),
        ("Method", "", [*repeat_blocks(comparison), _method_table(comparison)]),
    ]
    subtitle = (
        f"Pattern “{comparison.pattern}” ({comparison.title}).\nExample: {comparison.example}"
    )
    return page(f"{full} | {other}", sections, _lead(comparison), subtitle, _FOLDED)


def _lead(comparison: Comparison) -> list[Block]:
    """What survives in a sentence, the role paths in both models, then the findings behind it."""
    tones: dict[int, Tone | None] = {
        k: STATE_TONES[gate.state] for k, gate in enumerate(comparison.gates)
    }
    notes = [Note(line, tones.get(k)) for k, line in enumerate(comparison.summary())]
    tone = "bad" if comparison.behavior_absent else None
    return [Note(short_answer(comparison), tone), *path_picture([comparison]), *notes]


def attention_grid(comparison: Comparison) -> Picture:
    """All heads of both models by role, and the difference of paired heads."""
    roles = comparison.roles
    maps = [
        AttentionMaps(name, data.attention, roles, roles, data.attention_error)
        for name, data in comparison.plot_data.items()
    ]
    pairs = [(parse_head(m.head), parse_head(m.partner)) for m in comparison.matches if m.partner]
    start = max(comparison.matches, key=lambda m: (m.above_threshold, m.reliability))
    return head_grid(maps[0], maps[-1], pairs, start=parse_head(start.head))


def _match_blocks(comparison: Comparison) -> list[Block]:
    mean = comparison.mean_pair_score
    chance = (min(mean.chance, mean.chance_high), mean.chance_high)
    marks = {"chance": chance, "upper_reference": mean.other_seed}
    paired = [match for match in comparison.matches if match.partner]
    ranked = sorted(paired, key=lambda m: (not m.reliable, -m.score.value))
    rows = [Interval.of("mean of all pairs", mean.score, **marks), *map(_match_interval, ranked)]
    columns = ("head", "partner", "score", "null mean", "threshold", "other seed", "reliability",
               "verdict")  # fmt: skip
    verdicts = {v.subject: v for v in comparison.verdicts if v.kind == "head"}
    cells = [_match_row(match, verdicts.get(match.head)) for match in comparison.matches]
    null = comparison.method.null_name
    notes = (
        f"Null mean: mean score of this head in {null}. Threshold of their best scores, one for "
        f"all heads. Other seed: {comparison.other_seed or 'none known'}, n = 1.",
    )
    plot = IntervalPlot(
        rows, "Score of each pair, with the null and the other-seed model", axis="head similarity",
        chance_label=f"{null}: mean to threshold", reference_label="other-seed model",
    )  # fmt: skip
    return [plot, Table(columns, cells, align="llrrrrrl", notes=notes)]


def _match_interval(match: HeadMatch) -> Interval:
    return Interval.of(
        f"{match.head} – {match.partner}",
        match.score,
        # A head that no draw of the null pairs has a chance of NaN.
        chance=(float(np.fmin(match.chance, match.threshold)), match.threshold),
        upper_reference=match.other_seed_score,
        tone="good" if match.above_threshold else None,
    )


def _match_row(match: HeadMatch, verdict: Verdict | None) -> list[CellValue]:
    return [
        match.head, match.partner or None, match.score if match.partner else None, match.chance,
        match.threshold, match.other_seed_score, match.reliability,
        verdict_cell(verdict) if verdict else None,
    ]  # fmt: skip


def _effect_blocks(comparison: Comparison) -> list[Block]:
    blocks: list[Block] = []
    for contrast, exact in comparison.contrasts.items():
        how = f" ({exact:.0%} of pairs patched token by token, the others at last tokens)"
        for k, answer in enumerate(comparison.answers):
            for name, data in comparison.plot_data.items():
                caption = f"{contrast} → {answer}, {name}{how * (exact != 1)}"
                matrix = _effect_matrix(data, contrast, k, comparison.roles, caption)
                blocks += [matrix] if matrix else []
    none = Note("No component changes any answer by more than twice its standard error.")
    return blocks or [none]


def _effect_matrix(
    data: PlotData, contrast: str, answer: int, roles: Sequence[str], caption: str
) -> Matrix | None:
    """Strongest components at the roles where they have effects; None without clear effects."""
    values, errors = data.effects[contrast][..., answer], data.effect_errors[contrast][..., answer]
    absolute = np.abs(np.nan_to_num(values))
    is_clear = absolute > np.maximum(2 * np.nan_to_num(errors), _MIN_EFFECT)
    if not is_clear.any():
        return None
    strength = np.where(is_clear, absolute, 0).max(1)
    strongest = np.argsort(-strength)[:_MAX_COMPONENTS].tolist()
    top = sorted(at for at in strongest if strength[at] > 0)
    present = np.flatnonzero(~np.isnan(values[top]).all(0)).tolist()
    cells = np.ix_(top, present)
    rows = [data.components[at] for at in top]
    columns = [roles[at] for at in present]
    return Matrix(values[cells], rows, columns, error=errors[cells], caption=caption)


def _how_to_repeat(comparison: Comparison) -> list[str]:
    method = comparison.method
    version = f" (version {method.version})" if method.version else ""
    return [f"To repeat it{version}: {method.command}"] if method.command else []


def _method_table(comparison: Comparison) -> Table:
    shape, null = (
        "'s shape" * (comparison.method.null == "random-init"),
        comparison.method.null_name,
    )
    sizes = (
        f"{comparison.prompts} pairs for each of the contrasts {', '.join(comparison.contrasts)}; "
        f"{comparison.nulls} {null} of {comparison.other.name}{shape}; seed "
        f"{comparison.seed}; format {comparison.format}."
    )
    return models_table(
        (comparison.full, comparison.other),
        (
            *(sizes, _METHOD_NOTE.format(null=null[0].upper() + null[1:])),
            *(*comparison.method.lines(), *comparison.method.null_lines()),
            *_how_to_repeat(comparison),
        ),
    )
