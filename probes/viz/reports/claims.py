"""Page of the claims H1a–H5 about one or several models."""

from collections.abc import Callable, Sequence

from probes.claims.dose_response import read_dose_rows
from probes.claims.result import ClaimsReport, ClaimsReports
from probes.interventions.result import StateProjection
from probes.viz.blocks import Block, CellValue, Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.hotspot_map import HotspotMapBlock
from probes.viz.plots.state_projection import projection_block
from probes.viz.registry import report
from probes.viz.reports.tables.claim_pictures import ClaimPictures, verdict_tone
from probes.viz.reports.tables.claims import (
    BASE_MODEL_INTRO,
    DIRECTION_INTRO,
    DOSE_RESPONSE_INTRO,
    JOINT_INTRO,
    OBJECT_INTRO,
    STATE_INTRO,
    base_model_blocks,
    claim_tests_table,
    direction_blocks,
    dose_response_blocks,
    joint_blocks,
    object_blocks,
    state_blocks,
    verdict_reason,
)
from probes.viz.reports.tables.hotspots import HOTSPOTS_INTRO, example_table, hotspot_blocks

_VERDICT_INTRO = (
    "A claim holds if all its deciding tests passed, and fails if one of them failed. It is "
    "“cannot tell” if the 95 % interval of a deciding test includes its threshold, or if a test "
    "could not be run. The tests of each claim follow."
)
_PROJECTION_INTRO = (
    "Each point is the state at the operation's site in one prompt. First, axis 1 and 2 are the "
    "principal components. Then the horizontal axis is the operation's direction, fitted on other "
    "prompts, and the vertical one the direction of most variance orthogonal to it."
)


@report.register
def claims_page(claims: ClaimsReports) -> Picture:
    """Page of the claims about several models, side by side."""
    reports = claims.reports
    projections = [one.projection for one in reports if one.projection is not None]
    is_single = len(reports) == 1
    verdicts = [_verdicts_table(reports), *(() if is_single else _reason_notes(reports))]
    sections: list[Section] = [
        ("Verdicts", _VERDICT_INTRO, verdicts),
        ("Sites of the variables", HOTSPOTS_INTRO, _hotspots_section(reports)),
        ("H1a: one state for all objects", STATE_INTRO, _by_model(reports, state_blocks)),
        (
            "H1b: one state for operation and operands",
            JOINT_INTRO,
            _by_model(reports, joint_blocks),
        ),
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
    notes = [Note(gate.notice, "bad") for one in reports for gate in one.gates if gate.notice]
    notes += [] if is_single else list(map(_summary_note, reports))
    names = ", ".join(one.model for one in reports)
    lead = [*notes, ClaimPictures(reports)]
    folded = [heading for heading, _, _ in sections if heading != "Verdicts"]
    title = f"Claims H1a–H5 about {names}"
    return page(title, sections, lead, f"Pattern: {patterns}", folded)


@report.register
def _single_claims_page(claims: ClaimsReport) -> Picture:
    return claims_page(ClaimsReports((claims,)))


def _summary_note(claims: ClaimsReport) -> Note:
    """All verdicts of one model in a line."""
    by_label: dict[str, list[str]] = {}
    for verdict in claims.verdicts:
        by_label.setdefault(verdict.label, []).append(verdict.claim)
    text = "; ".join(f"{', '.join(names)}: {label}" for label, names in by_label.items())
    tones = {verdict_tone(verdict) for verdict in claims.verdicts}
    tone: Tone = "bad" if "bad" in tones else "muted" if "muted" in tones else "good"
    return Note(f"{claims.model} – {text}", tone)


def _reason_notes(reports: Sequence[ClaimsReport]) -> list[Note]:
    notes = []
    for one in reports:
        for verdict in one.verdicts:
            reason = f"{verdict.label.capitalize()}: {verdict_reason(verdict)}."
            text = f"{one.model}, {verdict.claim}: {verdict.title}. {reason}"
            notes.append(Note(text, verdict_tone(verdict)))
    return notes


def _verdicts_table(reports: Sequence[ClaimsReport]) -> Table:
    rows: list[list[CellValue]] = []
    for first in reports[0].verdicts:
        verdicts = [one.verdict(first.claim) for one in reports]
        cells = [TableCell(v.label, verdict_tone(v), verdict_reason(v)) for v in verdicts]
        rows.append([f"{first.claim}: {first.title}", *cells])
    return _model_columns("claim", rows, reports)


def _model_columns(
    name: str, rows: Sequence[Sequence[CellValue]], reports: Sequence[ClaimsReport]
) -> Table:
    columns = (name, *(one.model for one in reports))
    return Table(columns, rows, align="l" * len(columns))


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
        *_screen_notes(reports),
        HotspotMapBlock([one.hotspots for one in reports]),
        *_by_model(reports, lambda one: hotspot_blocks(one.hotspots)),
    ]


def _screen_notes(reports: Sequence[ClaimsReport]) -> list[Block]:
    """What a screen left out of the maps, and its error."""
    return [
        Note(
            f"{one.model}: a screen by gradients chose {len(one.hotspots.sites)} sites, which were "
            "interchanged; a dash is a site that was not. "
            f"Error of the screen: {'; '.join(map(str, one.hotspots.screens))}."
        )
        for one in reports
        if one.hotspots.screens
    ]


def _series_blocks(reports: Sequence[ClaimsReport]) -> list[Block]:
    """H5 concerns a series, so equal verdicts of several models are shown once."""
    verdicts = dict.fromkeys(one.verdict("H5") for one in reports)
    has_series = any(test.id == "seeds" for verdict in verdicts for test in verdict.tests)
    series = dose_response_blocks(read_dose_rows()) if has_series else []
    return [*map(claim_tests_table, verdicts), *series]


def _method_table(reports: Sequence[ClaimsReport]) -> Table:
    settings = [dict(one.protocol) | _gate_rows(one) for one in reports]
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [[name, *(one.get(name, "–") for one in settings)] for name in names]
    intervals = "95 %, over prompts: bootstrap; Wilson for fractions of prompts"
    rows.append(["intervals", *[intervals] * len(reports)])
    return _model_columns("setting", rows, reports)


def _gate_rows(claims: ClaimsReport) -> dict[str, str]:
    return {"pattern": claims.pattern} | {
        f"gate of {gate.answer}": (
            f"{gate.state}: {gate.score_name} {gate.score} on {gate.n_questions} questions; best "
            f"heuristic ({gate.heuristic}): {gate.heuristic_accuracy:.2f}"
        )
        for gate in claims.gates
    }
