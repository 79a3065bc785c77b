"""What became of heads and variables, as the blocks that pages about relatives share."""

from collections.abc import Sequence

from probes.comparison.heads.head_sets import EXPLAINS, STANDS_FOR
from probes.comparison.heads.matching import RELIABLE_FROM
from probes.comparison.heads.verdicts import MARGIN, STRENGTH
from probes.comparison.model_facts import Relative
from probes.comparison.result import Comparison
from probes.comparison.variables.verdicts import HELD
from probes.comparison.verdict import Fate, Kind, Word
from probes.stats.evidence import Evidence
from probes.viz.blocks import Block, Cell, Note, Table, Tone
from probes.viz.reports.transfer_tables import signed, tied, transfer_tables, turned_plot

TONES: dict[Word, Tone | None] = {
    "kept": "good",
    "merged": None,
    "split": None,
    "moved": None,
    "lost": "bad",
    "new": None,
    "idle": "muted",
    "behaviour absent": "muted",
    "cannot tell": "muted",
}
"""Whether a word is good news, bad news, no news, or neither."""

VARIABLE_LEAD = (
    "A variable is something that the question says and the answer hangs on: the operation (add or "
    "take away), a number such as x, the thing that is asked about. Here states of {full} are put "
    "into {other}, at the place where {other} itself holds the variable, through a linear map from "
    "the one model's states to the other's. Then the answer turns as it should, or it does not. No "
    "tested word was fitted on: the map has seen none of the verbs, things and numbers that are "
    "tried. Whatever stands in for {full} was given the same map and the same search, so what it "
    "reaches is chance; what {other}'s own states reach through such a map is the ceiling."
)
HEAD_LEAD = (
    "A head is one of the parts by which a layer looks back at earlier words; L1.H3 is head 3 of "
    "layer 1, both from 0. What a head does is what replacing its output moves, and how it "
    "attends. A head may become another head, a group of heads, or nothing; and a head that is "
    "lost does not say that what it computed is lost. Point at a word to see its tests."
)

_VARIABLE_WORDS: dict[Word, str] = {
    "kept": "It is held at the same role, and the full model's states, put in there, surely do at "
    "most 0.10 less than the relative's own, and more than any stand-in.",
    "merged": f"It is handed over in more than {HELD:.0%} of the crossings, but only along with "
    "others; or at one of the roles that the full model needs together.",
    "split": "The relative needs further roles besides the full model's.",
    "moved": "It is held at another role, and two seeds of the full model agree on theirs.",
    "behaviour absent": "The relative does not give the answer that the variable turns.",
    "cannot tell": "No place surely holds it, seeds differ in where it is, or the two codes do not "
    "surely map onto each other.",
}
_HEAD_WORDS: dict[Word, str] = {
    "kept": "One head there is surely more like it than chance and than nets trained for another "
    f"end offer, and surely does more than {STANDS_FOR:.0%} of its work.",
    "merged": "With other heads, and not alone, it does the work of one head there.",
    "split": "Two or three heads there do its work together, and none of them alone.",
    "moved": "A head there moves the same answers, but from another role; another seed of the full "
    "model keeps the role.",
    "lost": "Surely no head there is like it beyond chance, and no head or group does "
    f"{EXPLAINS:.0%} of its work, though the relative can do the task.",
    "new": "A head of the relative alone: the rule of “lost” turned round.",
    "idle": f"What it does repeats by less than {RELIABLE_FROM} between halves of the prompts, or "
    "moves next to nothing.",
    "behaviour absent": "One of the models cannot do the task: there is nothing to have a part in.",
    "cannot tell": "None of these: the interval of some test includes its bar.",
}
_WORDS: dict[Kind, dict[Word, str]] = {"variable": _VARIABLE_WORDS, "head": _HEAD_WORDS}

_PASSED: dict[bool | None, tuple[str, Tone]] = {
    True: ("yes", "good"),
    False: ("no", "bad"),
    None: ("undecided", "muted"),
}


def glossary(*kinds: Kind) -> Table:
    """Explain in a line each what the words mean, of variables, of heads, or of both."""
    words: list[Word] = [word for word in TONES if any(word in _WORDS[kind] for kind in kinds)]
    rows = [
        [Cell(tied(w), TONES[w]), *(_WORDS[k].get(w, "(never said)") for k in kinds)] for w in words
    ]
    columns = ("word", *(f"what it says of a {kind}" for kind in kinds))
    notes = []
    if "variable" in kinds:
        notes.append(
            "A variable is never lost while the task is done: the answer hangs on it. What may be "
            "lost are places and heads."
        )
    return Table(columns, rows, "What the words mean", "l" * len(columns), notes)


def word_cell(fate: Fate, *, where: bool = False, hover: str = "") -> Cell:
    """Show a word in its tone, with where it is, and what it rests on when pointed at."""
    at = f" ({fate.there})" if where and fate.there else ""
    return Cell(tied(fate.word) + at, TONES[fate.word], signed(hover or fate.reason))


def variable_blocks(found: Comparison, *, tests: bool = True) -> list[Block]:
    """Show what became of the variables, and what states turn in the other model.

    Args:
        found: The comparison.
        tests: Whether every test is listed as well; else it shows where a word is pointed at.
    """
    if found.untried:
        return [Note(f"No state was carried over. {found.untried}", "muted")]
    fates = [fate for fate in found.fates if fate.kind == "variable"]
    blocks: list[Block] = [_variable_table(found, fates)] if fates else [_unjudged(found)]
    if found.forth:
        blocks.append(
            turned_plot(
                found.forth,
                f"How often states of {found.full.name} turn the answer of {found.other.name}",
                [fate.subject for fate in fates if fate.word == "kept"],
            )
        )
    else:
        why = "it does not do the whole task, so it has no place of its own for a variable"
        blocks.append(Note(f"Nothing was put into {found.other.name}: {why}.", "muted"))
    if found.forth or found.back:
        blocks += transfer_tables((*found.forth, *found.back))
    if tests and any(fate.evidence for fate in fates):
        blocks.append(_tests(fates))
    rows = [
        [fate.subject, item.text, item.source]
        for fate in fates
        for item in (found.items.get(fate.subject, ()) if tests else ())
    ]
    if rows:
        columns = ("variable", "what is asked", "the question that left the state")
        caption = (
            f"Some crossings that states of {found.other.name} turn, mapped, and those of "
            f"{found.full.name} do not"
        )
        blocks.append(Table(columns, rows, caption, "lll"))
    return blocks


def head_blocks(found: Comparison) -> list[Block]:
    """Show what became of each head of the full model, and the relative's own heads."""
    fates = [fate for fate in found.fates if fate.kind == "head"]
    if not fates:
        return [Note("Nothing was said of any head.", "muted")]
    columns = ("head", "word", f"where in {found.other.name}", "equal within margins", "why")
    note = (
        f"Equal within margins: surely at most {MARGIN:.2f} less alike than the head is to itself "
        f"on other prompts, and its strength within {STRENGTH:.0%}. The word does not read it."
    )
    rows = [_head_row(fate) for fate in fates]
    return [Table(columns, rows, align="lllll", notes=(note,))]


def models_table(models: Sequence[Relative], notes: Sequence[str]) -> Table:
    """List what was compared, with notes on how it was measured."""
    rows = [
        [m.name, m.origin, f"{m.layers} × {m.heads}", str(m.d_model), f"{m.parameters:,}"]
        for m in models
    ]
    columns = ("model", "from", "layers × heads", "width", "parameters")
    return Table(columns, rows, align="llrrr", notes=notes)


def _unjudged(found: Comparison) -> Note:
    return Note(
        f"No word is given to any variable: {found.full.name} does not do the whole task, so it "
        "has no place for one.",
        "muted",
    )


def _variable_table(found: Comparison, fates: Sequence[Fate]) -> Table:
    rows = [
        [fate.subject, word_cell(fate, hover=_told(fate)), fate.there or "–", signed(fate.reason)]
        for fate in fates
    ]
    note = (
        "L1.resid@op is the state before layer 1, from 0, at the word in the role op; two roles "
        "joined by + are put in together."
    )
    notes = (note,) if any(fate.there for fate in fates) else ()
    columns = ("variable", "word", f"where in {found.other.name}", "why")
    return Table(columns, rows, align="llll", notes=notes)


def _head_row(fate: Fate) -> list[str | Cell]:
    equal = {True: Cell("yes", "good"), False: Cell("no", "bad"), None: Cell("–", "muted")}
    return [
        fate.subject or "(its own)",
        word_cell(fate, hover=_told(fate)),
        fate.there or "–",
        equal[fate.equivalent],
        signed(fate.reason),
    ]


def _told(fate: Fate) -> str:
    """Say in one line which tests were read."""
    return " · ".join(map(_line, fate.evidence)) or fate.reason


def _line(test: Evidence) -> str:
    value = "not measured" if test.value is None else str(test.value)
    word = "shown beside" if not test.decides else _PASSED[test.passed][0]
    return f"{test.name}: {value}, wanted {test.bar} ({word})"


def _tests(fates: Sequence[Fate]) -> Table:
    rows = [_test_row(fate, test) for fate in fates for test in fate.evidence]
    columns = ("variable", "test", "measured", "wanted", "passed?", "what it would mean if not")
    note = "Tests in brackets are shown beside: the word does not read them."
    return Table(columns, rows, "The tests behind the words", "llrlll", (note,))


def _test_row(fate: Fate, test: Evidence) -> list[str | Cell]:
    name = test.name if test.decides else f"({test.name})"
    value = "–" if test.value is None else tied(signed(str(test.value)))
    return [
        fate.subject, name, value, tied(signed(test.bar)), Cell(*_PASSED[test.passed]), test.says
    ]  # fmt: skip
