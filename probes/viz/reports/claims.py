"""Proofs as a page: the verdicts, where each variable sits, and every test that was read."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from probes.claims.result import ClaimsReport
from probes.claims.run import dose_response_rows
from probes.interventions.hotspots import Hotspots
from probes.interventions.interchange import NUMBER_READOUT
from probes.interventions.projection import StateProjection
from probes.prompts.question import Question
from probes.stats.evidence import ClaimVerdict
from probes.viz.blocks import Block, Note, Table, TableCell, Tone
from probes.viz.html_text import typographic_minus
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.hotspot_map import display_variable, hotspot_block, merged_roles
from probes.viz.plots.stacked_bars import OutcomeBlock
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

if TYPE_CHECKING:
    from pandas import DataFrame

_MAX_BARS = 8  # More bars than this are not read.
_TONES: dict[str, Tone] = {"holds": "good", "fails": "bad"}
_ROLE_DESCRIPTIONS = {"bos": "(mark that starts the text)", "rest": "(all other words)"}

_VERDICT_INTRO = (
    "A claim holds where every test that decides it passed, and fails where one speaks against it. "
    "It cannot be told where the 95 % interval of a test includes its bar, or a test could not be "
    "made: then nothing is said, neither for nor against. The tests follow claim by claim."
)
_HOTSPOTS_INTRO = (
    "A model reads the text token by token and keeps a list of numbers, a state, for each token, "
    "which each layer adds to. Here the state at one place is taken from its run on another text, "
    "the source, and put into its run on the base. All else stays. Base and source differ in "
    "everything, and each mix of the two has an answer of its own: so the number that the model "
    "then says tells what that state held. L1.resid@op is the state before layer 1 at the word in "
    "the role op; two roles joined by + are put in together. A cell is the share of prompts that "
    "took up this one variable and nothing else; the null is what the best place of untrained "
    "models reaches, or half a prompt if that is more. Column 0 is the bare words: to put them in "
    "is to change the text, so 1.00 there says nothing. Rings mark the places that were chosen, "
    "by other prompts than these."
)


_PROJECTION_INTRO = (
    "Each point is the state at the operation's place in one prompt. Axis 1 and 2 are the "
    "directions of most variance; then, across, the operation's direction, fitted on other "
    "prompts, and up, the widest direction beside it."
)


@report.register
def claims_report_page(claims: ClaimsReport) -> Picture:
    """Lay the claims of one model out as a page."""
    return claims_reports_page((claims,))


@report.register(tuple)
def claims_reports_page(reports: tuple[ClaimsReport, ...]) -> Picture:
    """Lay the claims of several models out as one page, with the states that were projected."""
    projections = [one.projection for one in reports if one.projection is not None]
    return claims_page(reports, projections=projections)


def claims_page(
    reports: Sequence[ClaimsReport], *, projections: Sequence[StateProjection] = ()
) -> Picture:
    """Lay proofs out as one page that needs no network, models side by side.

    Args:
        proofs: One for each model.
        spaces: States of the operation's site as points, to be shown as well.
    """
    several = len(reports) > 1
    sections: list[Section] = [
        (
            "The verdicts",
            _VERDICT_INTRO,
            [_verdicts_table(reports), *(_reasons(reports) if several else ())],
        ),
        ("Where each variable is", _HOTSPOTS_INTRO, _hotspot_blocks(reports)),
        ("One state whatever the object?", STATE_INTRO, _blocks_per_model(reports, state_blocks)),
    ]
    if projections:
        # One drawing for each list of prompts: models that complete statements read others.
        alike = {
            one.prompts: [o for o in projections if o.prompts == one.prompts] for one in projections
        }
        blocks = [projection_block(group) for group in alike.values()]
        sections.append(("The states as points", _PROJECTION_INTRO, blocks))
    sections += [
        (
            "A path of its own for the noun?",
            OBJECT_INTRO,
            _blocks_per_model(reports, object_blocks),
        ),
        ("The same direction?", DIRECTION_INTRO, _blocks_per_model(reports, direction_blocks)),
        ("Was it there before?", BASE_MODEL_INTRO, _blocks_per_model(reports, base_model_blocks)),
        ("Learned from many?", DOSE_RESPONSE_INTRO, _series_blocks(reports)),
        ("How this was measured", "", [_protocol_table(reports)]),
    ]
    names = ", ".join(proof.model for proof in reports)
    patterns = ", ".join(dict.fromkeys(proof.pattern for proof in reports))
    notes = [_summary_note(proof) for proof in reports] if several else _reasons(reports)
    return page(f"The fox claim in {names}", sections, notes, f"Asked: {patterns}")


def _tone(verdict: ClaimVerdict) -> Tone:
    return _TONES.get(verdict.label, "muted")


def _summary_note(report: ClaimsReport) -> Note:
    """Say the five words of one model in a line."""
    words = dict.fromkeys(found.label for found in report.verdicts)
    named = [
        f"{', '.join(v.claim for v in report.verdicts if v.label == word)}: {word}"
        for word in words
    ]
    tones = {_tone(found) for found in report.verdicts}
    tone: Tone = "bad" if "bad" in tones else "muted" if "muted" in tones else "good"
    return Note(f"{report.model} – {'; '.join(named)}", tone)


def _reasons(reports: Sequence[ClaimsReport]) -> list[Note]:
    several = len(reports) > 1
    return [
        Note(
            f"{f'{proof.model}, ' if several else ''}{found.claim}: {found.title}. "
            f"{found.label.capitalize()}: {verdict_reason(found)}.",
            _tone(found),
        )
        for proof in reports
        for found in proof.verdicts
    ]


def _verdicts_table(reports: Sequence[ClaimsReport]) -> Table:
    rows = [
        [
            f"{one.claim}: {one.title}",
            *(_verdict_cell(proof.verdict(one.claim)) for proof in reports),
        ]
        for one in reports[0].verdicts
    ]
    columns = ("claim", *(proof.model for proof in reports))
    return Table(columns, rows, align="l" * len(columns))


def _verdict_cell(verdict: ClaimVerdict) -> TableCell:
    return TableCell(verdict.label, _tone(verdict), verdict_reason(verdict))


def _blocks_per_model(
    reports: Sequence[ClaimsReport], blocks: Callable[[ClaimsReport], list[Block]]
) -> list[Block]:
    """Lay out each model's blocks, under its name where there are several."""
    found: list[Block] = []
    for proof in reports:
        found += [Note(proof.model)] if len(reports) > 1 else []
        found += blocks(proof)
    return found


def _hotspot_blocks(reports: Sequence[ClaimsReport]) -> list[Block]:
    asked = {proof.pattern: proof.hotspots for proof in reports}
    found: list[Block] = [_example_table(hot) for hot in asked.values()]
    found.append(hotspot_block([proof.hotspots for proof in reports]))
    return found + _blocks_per_model(
        reports, lambda proof: [_hotspots_table(proof.hotspots), _outcome_block(proof.hotspots)]
    )


def _example_table(hotspots: Hotspots) -> Table:
    """Show one base and one source, word by word, and what each mix would answer."""
    drawn = hotspots.runs.interchange_pairs
    pair = drawn.other[0]
    rows = [
        [role, _role_text(pair.clean, role), _role_text(pair.counterfactual, role)]
        for role in merged_roles([hotspots])
        if "+" not in role
    ]
    texts = dict(pair.clean.outcomes)["number"]
    named = zip(drawn.number_labels, texts, strict=True)
    mixes = "; ".join(f"{label} → {text}" for label, text in named if not label.startswith("copi"))
    notes = (
        f"Base: {pair.clean.text}",
        f"Source: {pair.counterfactual.text}",
        f"What the base answers if it takes this from the source (base: nothing): {mixes}. "
        "Copies: it says a number of the text as it stands.",
    )
    columns = ("role", "in this base", "in its source")
    return Table(
        columns, rows, f"One of {len(drawn)} prompts of {hotspots.pattern!r}", "lll", notes
    )


def _role_text(question: Question, role: str) -> str:
    words = [question.text[start:end] for name, start, end in question.roles if name == role]
    if not words and role.startswith("reply_"):
        return f"(the {role.removeprefix('reply_')} that is answered)"
    return " … ".join(words) or _ROLE_DESCRIPTIONS.get(role, "(not in this text)")


def _hotspots_table(hotspots: Hotspots) -> Table:
    rows = [
        [
            display_variable(spot.variable),
            str(spot.site),
            str(spot.other_object),
            str(spot.same_object),
            typographic_minus(str(spot.difference)),
            f"{hotspots.thresholds[spot.variable]:.2f}",
        ]
        for spot in hotspots.hotspots
    ]
    columns = (
        "variable", "chosen place", "from another object", "from the same object",
        "difference", "null",
    )  # fmt: skip
    caption = "The chosen places: how often each hands over its variable alone"
    note = (
        "The source is about another object than the base, or about the same. Of the object: how "
        "often the noun becomes the source's; with the same object, how often nothing changes."
    )
    return Table(columns, rows, caption, "llrrrr", (note,))


def _outcome_block(hotspots: Hotspots) -> OutcomeBlock:
    """Draw what the number becomes at the chosen places, and late where it is read."""
    sites = {str(s.site): f"{display_variable(s.variable)}: {s.site!s}" for s in hotspots.hotspots}
    role = _readout_role(hotspots)
    late = [str(cell) for cell in hotspots.sites if cell.role == role]
    room = max(0, _MAX_BARS - len(sites))
    sites |= {site: site for site in late[len(late) - min(room, 4) :] if site not in sites}
    names, tables = list(sites)[:_MAX_BARS], []
    for site in names:
        table: DataFrame = hotspots.other_object.table(site)
        tables.append(table[table["answer"] == "number"])
    shares = np.array([table["fraction"].to_numpy(dtype=float) for table in tables])
    kept = [at for at, column in enumerate(shares.T) if column.any()]
    outcomes = [str(tables[0]["outcome"].iloc[at]) for at in kept]
    caption = "What the number becomes: at the chosen places, then late where it is read"
    counts = [len(hotspots.runs)] * len(names)
    return OutcomeBlock([sites[n] for n in names], outcomes, shares[:, kept], counts, caption)


def _readout_role(hotspots: Hotspots) -> str:
    """Return the role of the token where the number is read."""
    place = int(hotspots.runs.clean.readout[0, NUMBER_READOUT])
    return next(
        (r for r in hotspots.roles if bool(hotspots.runs.role_masks[r][0, place])),
        hotspots.roles[-1],
    )


def _series_blocks(reports: Sequence[ClaimsReport]) -> list[Block]:
    """Show the last claim once where all models have the same: it is about a series."""
    verdicts = dict.fromkeys(proof.verdict("H5") for proof in reports)
    return [
        *(claim_tests_table(verdict) for verdict in verdicts),
        *dose_response_blocks(dose_response_rows()),
    ]


def _protocol_table(reports: Sequence[ClaimsReport]) -> Table:
    """Say how each model was measured, and how well it does the task at all."""
    told = [dict(proof.protocol) | _gate_rows(proof) for proof in reports]
    names = dict.fromkeys(name for one in told for name in one)
    rows = [[name, *(one.get(name, "–") for one in told)] for name in names]
    always = "95 %, over prompts: bootstrap, Wilson for shares of prompts"
    rows.append(["intervals", *[always] * len(reports)])
    columns = ("what", *(proof.model for proof in reports))
    return Table(columns, rows, align="l" * len(columns))


def _gate_rows(report: ClaimsReport) -> dict[str, str]:
    return {"pattern": report.pattern} | {
        f"can it do the task: {gate.answer}": (
            f"{gate.state}: {gate.accuracy} right of {gate.n_questions} questions; best simple rule "
            f"({gate.heuristic}): {gate.heuristic_accuracy:.2f}"
        )
        for gate in report.gates
    }
