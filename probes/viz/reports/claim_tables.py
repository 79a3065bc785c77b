"""What was measured for each claim, as tables and plots: its tests, then what is beside them."""

import math
from collections.abc import Mapping, Sequence

from probes.claims.result import Proof
from probes.interventions.dissociation import Branch, Dissociation
from probes.interventions.interchange import NOUN, NUMBER
from probes.models.site import site_name
from probes.prompts.interchange_pairs import OBJECT
from probes.stats.evidence import Evidence, Verdict
from probes.stats.intervals import Estimate
from probes.viz.blocks import Block, Cell, Table, Tone
from probes.viz.html_text import minus
from probes.viz.plots.interval_plot import Interval, IntervalPlot

_SHORT = 20  # Longer bars may be broken in two lines.
_HEADS = 8  # More heads than this are not read; the rest carry less.
_PASSED: dict[bool | None, tuple[str, Tone]] = {
    True: ("yes", "good"),
    False: ("no", "bad"),
    None: ("undecided", "muted"),
}

STATE_LEAD = (
    "Is there one state that says whether to add or to take away, and is it the same whatever "
    "things are counted? It must turn the operation for new things, new numbers and new verbs, and "
    "do more than the words alone. A search for the few directions that carry it is held against "
    "searches that should find nothing."
)
NOUN_LEAD = (
    "If the noun has a path of its own, the object's place moves the noun and not the number, the "
    "operation's place does the opposite, and either can be broken alone. Crossover: how much more "
    "each place pulls its own answer than the other's, in shares of the right answer's lead; 0 is "
    "no difference. Log-odds: how sure the model is of the right answer, as a logarithm; 1 less is "
    "2.7 times less sure. A head is one of the parts by which a layer looks back at earlier words."
)
SAME_LEAD = (
    "For each of two objects the direction from adding to taking away is fitted anew. If one code "
    "serves all objects, another object's direction turns the operation as well as the own one. If "
    "it does only after a rotation, each object has a code of its own, of the same shape."
)
BEFORE_LEAD = (
    "A model that was trained to answer is held against the one it was tuned from. If tuning took "
    "over what was there, the former direction and the former state still work, and what is new "
    "is who reads them."
)
MANY_LEAD = (
    "Models trained alike, but on sentences about few or many objects, are tried on objects that "
    "none of them was trained on. If the operation is general because it was learned from many "
    "objects, it is taken up more often there. This is about the series, not about one model."
)


def evidence_table(verdict: Verdict) -> Table:
    """List the tests of a claim: what was measured, what it had to be, and what came of it."""
    rows = [_test(test) for test in verdict.evidence]
    columns = ("test", "measured", _tied("had to be"), "passed?", "what it would mean if not")
    notes = []
    if any(not test.decides for test in verdict.evidence):
        notes.append("Tests in brackets are shown beside: the verdict does not read them.")
    if not verdict.evidence:
        notes.append(f"Nothing was tested: {verdict.reason}.")
    caption = f"{verdict.claim}, {verdict.title}: {verdict.word}"
    return Table(columns, rows, caption, "lrlll", notes)


def _test(test: Evidence) -> list[str | Cell]:
    word, tone = _PASSED[test.passed]
    name = test.name if test.decides else f"({test.name})"
    if test.value is None:
        return [name, "–", "–", Cell("untested", "muted"), f"not tested: {minus(test.says)}"]
    bar = _tied(minus(test.bar)) if len(test.bar) < _SHORT else minus(test.bar)
    return [name, _tied(_shown(test.value)), bar, Cell(word, tone), minus(test.says)]


def why(verdict: Verdict) -> str:
    """Say why a claim has its verdict, with the numbers that it rests on."""
    if verdict.word == "fails":
        against = [test for test in verdict.evidence if test.decides and test.passed is False]
        return "; ".join(f"{_measured(test)}: {minus(test.says)}" for test in against)
    if verdict.word == "cannot tell":
        unsure = [test for test in verdict.evidence if test.decides and test.passed is None]
        return "; ".join(map(_measured, unsure)) or minus(verdict.reason)
    return minus(verdict.reason)


def _measured(test: Evidence) -> str:
    if test.value is None:
        return f"{test.name} is not tested, as {minus(test.says)}"
    return f"“{test.name}” is {_shown(test.value)} and had to be {minus(test.bar)}"


def _tied(text: str) -> str:
    """Keep a line whole."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def state_blocks(proof: Proof) -> list[Block]:
    """Show the tests of H1, the search, what the states vary with, and how many dimensions."""
    found, there = proof.searched, proof.object_there
    place = site_name(proof.hot.spot("operation").cell)
    sizes = [
        (f"{size} direction{'s' * (size > 1)} searched", share)
        for size, share in zip(found.sizes, found.shares, strict=True)
    ]
    rows = [
        ("the whole state", found.whole),
        ("difference of means, no search", found.means),
        *sizes,
        ("… with mixed-up answers", found.permuted),
        ("… where least is told", found.elsewhere),
        ("… in an untrained model", found.untrained),
    ]
    varies = [
        Interval("object" if name == OBJECT else name, value)
        for name, value in proof.variance.items()
        if math.isfinite(value)
    ]
    enough = "none tried" if found.smallest is None else str(found.smallest)
    size = found.dimensions
    facts = [
        ["directions that do 0.9 of what the whole state does", enough],
        ["distance of states so made from natural ones (natural: 1)", f"{found.distance:.2f}"],
        ["dimensions that the states fill, linear", f"{size.participation:.1f}"],
        ["dimensions that they fill if the sheet is curved", f"{size.two_nn:.1f}"],
        [
            f"the object can be read there (one of {there.classes})",
            f"{there.accuracy:.2f}, by chance up to {there.chance:.2f}",
        ],
    ]
    return [
        evidence_table(proof.verdict("H1")),
        *_plot(rows, f"How often the operation is taken up from {place}", "share of prompts"),
        IntervalPlot(
            varies,
            f"What the states at {place} vary with (factors overlap, so they need not add to 1)",
            axis="share of variance (omega squared)",
        ),
        Table(("at the operation's place", "found"), facts),
    ]


def noun_blocks(proof: Proof) -> list[Block]:
    """Show the tests of H2, the swaps, the heads, and what binds things to numbers."""
    swaps = _swaps("one thing", proof.parted)
    if proof.two is not None:
        swaps += _swaps("two things", proof.two)
    needed = proof.needed
    note = (
        f"Resampling the operation's directions lowers the log-odds of the right number by "
        f"{_shown(needed.number)}, of the noun by {_shown(needed.noun)}. The gap is wider than "
        f"for {needed.percentile:.0%} of random directions of as much variance."
    )
    columns = ("text speaks of", "put in", "number changes", "noun changes")
    blocks: list[Block] = [
        evidence_table(proof.verdict("H2")),
        Table(columns, swaps, "What moves with each place", "llrr", (note,)),
        _heads(proof.heads),
        _without(proof.heads),
    ]
    if proof.bound:
        rows = [
            [str(one.layer), *map(str, (one.swapped, one.stayed, one.chance))]
            for one in proof.bound
        ]
        columns = (
            "before layer",
            "number is the other thing's",
            "nothing changes",
            "random vector",
        )
        caption = "Two things in the text: exchanging what binds each to its number"
        blocks.append(Table(columns, rows, caption))
    return blocks


def _swaps(spoken: str, found: Dissociation) -> list[list[str]]:
    named = (("operation", found.operation), ("object", found.thing))
    return [[spoken, f"the {name}'s place", str(s.number), str(s.noun)] for name, s in named]


def _heads(found: Branch) -> Table:
    """List the heads that bring most of either answer."""
    most = sorted(found.share, key=lambda name: -max(found.share[name]))[:_HEADS]
    rows = [
        [
            name,
            _part(found.share[name][NUMBER], name in found.number_heads),
            _part(found.share[name][NOUN], name in found.noun_heads),
        ]
        for name in sorted(most)
        if max(found.share[name]) > 0.005
    ]
    note = "L1.H3 is head 3 of layer 1, from 0. ✓: it counts as one of the answer's heads."
    columns = ("head", "of the way to the number", "of the way to the noun")
    return Table(
        columns, rows, "Heads that bring the answers to where they are read", notes=(note,)
    )


def _part(share: float, carries: bool) -> Cell:
    return Cell(minus(f"{round(share, 2) + 0.0:.2f}"), "good" if carries else None)


def _without(found: Branch) -> Table:
    number, noun = (", ".join(heads) or "none" for heads in (found.number_heads, found.noun_heads))
    rows = [
        [f"the number's heads ({number})", *map(str, found.without_number)],
        [f"the noun's heads ({noun})", *map(str, found.without_noun)],
        ["the noun's heads, at every word", *map(str, found.everywhere)],
    ]
    columns = ("knocked out", "number still right", "noun still right")
    return Table(columns, rows, "What breaks without them")


def direction_blocks(proof: Proof) -> list[Block]:
    """Show the tests of H3, how directions serve, and the angles between them."""
    found = proof.aligned
    rows = [
        ("the object's own direction", found.own),
        ("another object's direction", found.raw),
        ("another object's, rotated", found.rotated),
    ]
    angles = [
        [f"{a} / {b}", f"{angle:.0f}°"]
        for (a, b), angle in zip(found.objects, found.angles, strict=True)
    ]
    note = "0°: the same direction; 90°: they have nothing in common."
    return [
        evidence_table(proof.verdict("H3")),
        *_plot(rows, "How often a direction turns the operation", "share of prompts"),
        Table(("objects", "angle"), angles, "Between the directions of two objects", notes=(note,)),
    ]


def before_blocks(proof: Proof) -> list[Block]:
    """Show the tests of H4, and what the model before still does in this one."""
    found, verdict = proof.line, proof.verdict("H4")
    if found is None:
        return [evidence_table(verdict)]
    rows = [
        ("its own direction", found.own),
        (f"the direction of {found.before}", found.theirs),
        (f"the whole state of {found.before}", found.state),
        ("an untrained model's direction", found.stranger),
    ]
    heads = [
        [found.before, ", ".join(found.heads_before) or "none"],
        [found.after, ", ".join(found.heads_after) or "none"],
    ]
    caption = f"How often it turns the operation in {found.after}"
    return [
        evidence_table(verdict),
        *_plot(rows, caption, "share of prompts"),
        Table(("model", "heads"), heads, "Heads that bring the number to where it is read", "ll"),
    ]


def dose_blocks(rows: Sequence[Mapping[str, float | str]]) -> list[Block]:
    """Show how often the operation is taken up, by how many objects the model was trained on."""
    named = [
        (
            f"{float(row['nouns']):.0f} objects",
            Estimate(*(float(row[f"strange{end}"]) for end in ("", "_low", "_high"))),
        )
        for row in sorted(rows, key=lambda row: float(row["nouns"]))
    ]
    return _plot(named, "Taken up with objects never trained on", "share of prompts")


def _plot(named: Sequence[tuple[str, Estimate | None]], caption: str, axis: str) -> list[Block]:
    """Plot estimates; those that are missing or not numbers are left out."""
    rows = [
        Interval(name, e.value, e.low, e.high)
        for name, e in named
        if e is not None and all(map(math.isfinite, (e.value, e.low, e.high)))
    ]
    return [IntervalPlot(rows, caption, axis=axis)] if rows else []


def _shown(found: Estimate) -> str:
    return minus(str(found))
