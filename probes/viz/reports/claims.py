"""Page of the claims H1–H5 about one or several models."""

from collections.abc import Callable, Sequence

from probes.claims.dose_response import dose_response_rows
from probes.claims.result import ClaimsReport, ClaimsReports
from probes.interventions.result import StateProjection
from probes.stats.evidence import ClaimVerdict
from probes.viz.blocks import Block, Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.hotspot_map import HotspotMapBlock
from probes.viz.plots.state_projection import projection_block
from probes.viz.registry import report
from probes.viz.reports.claim_tables import (
    BASE_MODEL_INTRO,
    DIRECTION_INTRO,
    DOSE_RESPONSE_INTRO,
    OBJECT_INTRO,
    STATE_INTRO,
    base_model_blocks,
    claim_tests_table,
    direction_blocks,
    dose_response_blocks,
    object_blocks,
    state_blocks,
    verdict_reason,
)
from probes.viz.reports.hotspot_tables import HOTSPOTS_INTRO, example_table, hotspot_blocks

_TONES: dict[str, Tone] = {"holds": "good", "fails": "bad"}
_VERDICT_INTRO = (
    "A claim holds if all its deciding tests passed, and fails if one of them failed. It is “cannot "
    "tell” if the 95 % interval of a deciding test includes its threshold, or if a test could not "
    "be run. The tests of each claim follow."
)
_PROJECTION_INTRO = (
    "Each point is the state at the operation's site in one prompt. First, axis 1 and 2 are the "
    "principal components. Then the horizontal axis is the operation's direction, fitted on other "
    "prompts, and the vertical one the direction of most variance orthogonal to it."
)


@report.register
def claims_report_page(claims: ClaimsReport) -> Picture:
    """Page of the claims about one model."""
    return claims_reports_page(ClaimsReports((claims,)))


@report.register
def claims_reports_page(claims: ClaimsReports) -> Picture:
    """Page of the claims about several models, with the projections that the reports hold."""
    projections = [one.projection for one in claims.reports if one.projection is not None]
    return claims_page(claims.reports, projections=projections)


def claims_page(
    reports: Sequence[ClaimsReport], *, projections: Sequence[StateProjection] = ()
) -> Picture:
    """Page of the claims, models side by side.

    Args:
        reports: One for each model.
        projections: States of the operation's site as points, to be drawn as well.
    """
    several = len(reports) > 1
    reasons = _reason_notes(reports)
    verdicts = [_verdicts_table(reports), *(reasons if several else ())]
    sections: list[Section] = [
        ("Verdicts", _VERDICT_INTRO, verdicts),
        ("Sites of the variables", HOTSPOTS_INTRO, _hotspots_section(reports)),
        ("H1: one state for all objects", STATE_INTRO, _by_model(reports, state_blocks)),
        ("H2: a separate path for the object", OBJECT_INTRO, _by_model(reports, object_blocks)),
        (
            "H3: one direction for all objects",
            DIRECTION_INTRO,
            _by_model(reports, direction_blocks),
        ),
        ("H4: reuse of the base model", BASE_MODEL_INTRO, _by_model(reports, base_model_blocks)),
        ("H5: training on many objects", DOSE_RESPONSE_INTRO, _series_blocks(reports)),
        ("Method", "", [_method_table(reports)]),
    ]
    if projections:
        # One drawing for each list of prompts: models that complete statements read other texts.
        groups: dict[object, list[StateProjection]] = {}
        for one in projections:
            groups.setdefault(one.prompts, []).append(one)
        blocks = [projection_block(group) for group in groups.values()]
        sections.insert(3, ("States as points", _PROJECTION_INTRO, blocks))
    patterns = ", ".join(dict.fromkeys(one.pattern for one in reports))
    notes = list(map(_summary_note, reports)) if several else reasons
    names = ", ".join(one.model for one in reports)
    return page(f"Claims H1–H5 about {names}", sections, notes, f"Pattern: {patterns}")


def _tone(verdict: ClaimVerdict) -> Tone:
    return _TONES.get(verdict.label, "muted")


def _summary_note(claims: ClaimsReport) -> Note:
    """All verdicts of one model in a line."""
    by_label: dict[str, list[str]] = {}
    for verdict in claims.verdicts:
        by_label.setdefault(verdict.label, []).append(verdict.claim)
    text = "; ".join(f"{', '.join(names)}: {label}" for label, names in by_label.items())
    tones = {_tone(verdict) for verdict in claims.verdicts}
    tone: Tone = "bad" if "bad" in tones else "muted" if "muted" in tones else "good"
    return Note(f"{claims.model} – {text}", tone)


def _reason_notes(reports: Sequence[ClaimsReport]) -> list[Note]:
    return [
        Note(
            f"{f'{one.model}, ' if len(reports) > 1 else ''}{verdict.claim}: {verdict.title}. "
            f"{verdict.label.capitalize()}: {verdict_reason(verdict)}.",
            _tone(verdict),
        )
        for one in reports
        for verdict in one.verdicts
    ]


def _verdicts_table(reports: Sequence[ClaimsReport]) -> Table:
    rows = [
        [
            f"{verdict.claim}: {verdict.title}",
            *(_verdict_cell(one.verdict(verdict.claim)) for one in reports),
        ]
        for verdict in reports[0].verdicts
    ]
    columns = ("claim", *(one.model for one in reports))
    return Table(columns, rows, align="l" * len(columns))


def _verdict_cell(verdict: ClaimVerdict) -> TableCell:
    return TableCell(verdict.label, _tone(verdict), verdict_reason(verdict))


def _by_model(
    reports: Sequence[ClaimsReport], make_blocks: Callable[[ClaimsReport], list[Block]]
) -> list[Block]:
    """Blocks of each model, below its name if there are several."""
    blocks: list[Block] = []
    for one in reports:
        blocks += [Note(one.model)] if len(reports) > 1 else []
        blocks += make_blocks(one)
    return blocks


def _hotspots_section(reports: Sequence[ClaimsReport]) -> list[Block]:
    by_pattern = {one.pattern: one.hotspots for one in reports}
    return [
        *map(example_table, by_pattern.values()),
        HotspotMapBlock([one.hotspots for one in reports]),
        *_by_model(reports, lambda one: hotspot_blocks(one.hotspots)),
    ]


def _series_blocks(reports: Sequence[ClaimsReport]) -> list[Block]:
    """H5 concerns a series, so equal verdicts of several models are shown once."""
    verdicts = dict.fromkeys(one.verdict("H5") for one in reports)
    return [*map(claim_tests_table, verdicts), *dose_response_blocks(dose_response_rows())]


def _method_table(reports: Sequence[ClaimsReport]) -> Table:
    settings = [dict(one.protocol) | _gate_rows(one) for one in reports]
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [[name, *(one.get(name, "–") for one in settings)] for name in names]
    intervals = "95 %, over prompts: bootstrap; Wilson for fractions of prompts"
    rows.append(["intervals", *[intervals] * len(reports)])
    columns = ("setting", *(one.model for one in reports))
    return Table(columns, rows, align="l" * len(columns))


def _gate_rows(claims: ClaimsReport) -> dict[str, str]:
    return {"pattern": claims.pattern} | {
        f"gate of {gate.answer}": (
            f"{gate.state}: accuracy {gate.accuracy} on {gate.n_questions} questions; best "
            f"heuristic ({gate.heuristic}): {gate.heuristic_accuracy:.2f}"
        )
        for gate in claims.gates
    }
