"""Proofs as a page: the verdicts, where each variable sits, and every test that was read."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from probes.claims.result import Proof
from probes.claims.run import doses
from probes.interventions.hotspots import Hotspots
from probes.interventions.interchange import NUMBER
from probes.interventions.projection import Space
from probes.models.site import site_name
from probes.prompts.question import Question
from probes.stats.evidence import Verdict
from probes.viz.blocks import Block, Cell, Note, Table, Tone
from probes.viz.html_text import minus
from probes.viz.page import Section, page
from probes.viz.picture import Picture
from probes.viz.plots.hotspot_map import hotspot_block, roles_of, shown_variable
from probes.viz.plots.stacked_bars import OutcomeBlock
from probes.viz.plots.state_projection import space_block
from probes.viz.reports.claim_tables import (
    BEFORE_LEAD,
    MANY_LEAD,
    NOUN_LEAD,
    SAME_LEAD,
    STATE_LEAD,
    before_blocks,
    direction_blocks,
    dose_blocks,
    evidence_table,
    noun_blocks,
    state_blocks,
    why,
)

if TYPE_CHECKING:
    from pandas import DataFrame

_BARS = 8  # More bars than this are not read.
_TONES: dict[str, Tone] = {"holds": "good", "fails": "bad"}
_GLOSS = {"bos": "(mark that starts the text)", "rest": "(all other words)"}

_VERDICT_LEAD = (
    "A claim holds where every test that decides it passed, and fails where one speaks against it. "
    "It cannot be told where the 95 % interval of a test includes its bar, or a test could not be "
    "made: then nothing is said, neither for nor against. The tests follow claim by claim."
)
_WHERE_LEAD = (
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


_POINTS_LEAD = (
    "Each point is the state at the operation's place in one prompt. Axis 1 and 2 are the "
    "directions of most variance; then, across, the operation's direction, fitted on other "
    "prompts, and up, the widest direction beside it."
)


def proved_page(proofs: Sequence[Proof], *, spaces: Sequence[Space] = ()) -> Picture:
    """Lay proofs out as one page that needs no network, models side by side.

    Args:
        proofs: One for each model.
        spaces: States of the operation's site as points, to be shown as well.
    """
    several = len(proofs) > 1
    sections: list[Section] = [
        ("The verdicts", _VERDICT_LEAD, [_words(proofs), *(_reasons(proofs) if several else ())]),
        ("Where each variable is", _WHERE_LEAD, _where(proofs)),
        ("One state whatever the object?", STATE_LEAD, _each(proofs, state_blocks)),
    ]
    if spaces:
        # One drawing for each list of prompts: models that complete statements read others.
        alike = {one.prompts: [o for o in spaces if o.prompts == one.prompts] for one in spaces}
        blocks = [space_block(group) for group in alike.values()]
        sections.append(("The states as points", _POINTS_LEAD, blocks))
    sections += [
        ("A path of its own for the noun?", NOUN_LEAD, _each(proofs, noun_blocks)),
        ("The same direction?", SAME_LEAD, _each(proofs, direction_blocks)),
        ("Was it there before?", BEFORE_LEAD, _each(proofs, before_blocks)),
        ("Learned from many?", MANY_LEAD, _many(proofs)),
        ("How this was measured", "", [_protocol(proofs)]),
    ]
    names = ", ".join(proof.model for proof in proofs)
    patterns = ", ".join(dict.fromkeys(proof.pattern for proof in proofs))
    notes = [_short(proof) for proof in proofs] if several else _reasons(proofs)
    return page(f"The fox claim in {names}", sections, notes, f"Asked: {patterns}")


def _tone(verdict: Verdict) -> Tone:
    return _TONES.get(verdict.word, "muted")


def _short(proof: Proof) -> Note:
    """Say the five words of one model in a line."""
    words = dict.fromkeys(found.word for found in proof.verdicts)
    named = [
        f"{', '.join(v.claim for v in proof.verdicts if v.word == word)}: {word}" for word in words
    ]
    tones = {_tone(found) for found in proof.verdicts}
    tone: Tone = "bad" if "bad" in tones else "muted" if "muted" in tones else "good"
    return Note(f"{proof.model} – {'; '.join(named)}", tone)


def _reasons(proofs: Sequence[Proof]) -> list[Note]:
    several = len(proofs) > 1
    return [
        Note(
            f"{f'{proof.model}, ' if several else ''}{found.claim}: {found.title}. "
            f"{found.word.capitalize()}: {why(found)}.",
            _tone(found),
        )
        for proof in proofs
        for found in proof.verdicts
    ]


def _words(proofs: Sequence[Proof]) -> Table:
    rows = [
        [f"{one.claim}: {one.title}", *(_word(proof.verdict(one.claim)) for proof in proofs)]
        for one in proofs[0].verdicts
    ]
    columns = ("claim", *(proof.model for proof in proofs))
    return Table(columns, rows, align="l" * len(columns))


def _word(found: Verdict) -> Cell:
    return Cell(found.word, _tone(found), why(found))


def _each(proofs: Sequence[Proof], blocks: Callable[[Proof], list[Block]]) -> list[Block]:
    """Lay out each model's blocks, under its name where there are several."""
    found: list[Block] = []
    for proof in proofs:
        found += [Note(proof.model)] if len(proofs) > 1 else []
        found += blocks(proof)
    return found


def _where(proofs: Sequence[Proof]) -> list[Block]:
    asked = {proof.pattern: proof.hot for proof in proofs}
    found: list[Block] = [_example(hot) for hot in asked.values()]
    found.append(hotspot_block([proof.hot for proof in proofs]))
    return found + _each(proofs, lambda proof: [_spots(proof.hot), _bars(proof.hot)])


def _example(hot: Hotspots) -> Table:
    """Show one base and one source, word by word, and what each mix would answer."""
    drawn = hot.crossed.crossings
    pair = drawn.other[0]
    rows = [
        [role, _said(pair.clean, role), _said(pair.counterfactual, role)]
        for role in roles_of([hot])
        if "+" not in role
    ]
    texts = dict(pair.clean.outcomes)["number"]
    named = zip(drawn.number, texts, strict=True)
    mixes = "; ".join(f"{label} → {text}" for label, text in named if not label.startswith("copi"))
    notes = (
        f"Base: {pair.clean.text}",
        f"Source: {pair.counterfactual.text}",
        f"What the base answers if it takes this from the source (base: nothing): {mixes}. "
        "Copies: it says a number of the text as it stands.",
    )
    columns = ("role", "in this base", "in its source")
    return Table(columns, rows, f"One of {len(drawn)} prompts of {hot.pattern!r}", "lll", notes)


def _said(question: Question, role: str) -> str:
    words = [question.text[start:end] for name, start, end in question.roles if name == role]
    if not words and role.startswith("reply_"):
        return f"(the {role.removeprefix('reply_')} that is answered)"
    return " … ".join(words) or _GLOSS.get(role, "(not in this text)")


def _spots(hot: Hotspots) -> Table:
    rows = [
        [
            shown_variable(spot.variable),
            site_name(spot.cell),
            str(spot.other),
            str(spot.same),
            minus(str(spot.difference)),
            f"{hot.bars[spot.variable]:.2f}",
        ]
        for spot in hot.spots
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


def _bars(hot: Hotspots) -> OutcomeBlock:
    """Draw what the number becomes at the chosen places, and late where it is read."""
    sites = {
        site_name(s.cell): f"{shown_variable(s.variable)}: {site_name(s.cell)}" for s in hot.spots
    }
    role = _reader(hot)
    late = [site_name(cell) for cell in hot.cells if cell.role == role]
    room = max(0, _BARS - len(sites))
    sites |= {site: site for site in late[len(late) - min(room, 4) :] if site not in sites}
    names, tables = list(sites)[:_BARS], []
    for site in names:
        table: DataFrame = hot.other.table(site)
        tables.append(table[table["answer"] == "number"])
    shares = np.array([table["share"].to_numpy(dtype=float) for table in tables])
    kept = [at for at, column in enumerate(shares.T) if column.any()]
    outcomes = [str(tables[0]["outcome"].iloc[at]) for at in kept]
    caption = "What the number becomes: at the chosen places, then late where it is read"
    counts = [len(hot.crossed)] * len(names)
    return OutcomeBlock([sites[n] for n in names], outcomes, shares[:, kept], counts, caption)


def _reader(hot: Hotspots) -> str:
    """Return the role of the token where the number is read."""
    place = int(hot.crossed.clean.readout[0, NUMBER])
    return next((r for r in hot.roles if bool(hot.crossed.where[r][0, place])), hot.roles[-1])


def _many(proofs: Sequence[Proof]) -> list[Block]:
    """Show the last claim once where all models have the same: it is about a series."""
    verdicts = dict.fromkeys(proof.verdict("H5") for proof in proofs)
    return [*(evidence_table(verdict) for verdict in verdicts), *dose_blocks(doses())]


def _protocol(proofs: Sequence[Proof]) -> Table:
    """Say how each model was measured, and how well it does the task at all."""
    told = [dict(proof.protocol) | _gates(proof) for proof in proofs]
    names = dict.fromkeys(name for one in told for name in one)
    rows = [[name, *(one.get(name, "–") for one in told)] for name in names]
    always = "95 %, over prompts: bootstrap, Wilson for shares of prompts"
    rows.append(["intervals", *[always] * len(proofs)])
    columns = ("what", *(proof.model for proof in proofs))
    return Table(columns, rows, align="l" * len(columns))


def _gates(proof: Proof) -> dict[str, str]:
    return {"pattern": proof.pattern} | {
        f"can it do the task: {gate.answer}": (
            f"{gate.state}: {gate.accuracy} right of {gate.items} questions; best simple rule "
            f"({gate.heuristic}): {gate.heuristic_accuracy:.2f}"
        )
        for gate in proof.gates
    }
