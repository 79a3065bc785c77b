"""Hand-built models that add and subtract, with a known representation of the operation.

All answer "I have 7 foxes . I lose 3 . ..." with number and noun. They differ in the state at the
verb: one state for all verbs and nouns ("template"), one per verb ("lexical"), one for all but one
pair of verbs ("mixed"), or one per noun ("rotated"). "lookup" has the state of "template", but a
table of answers instead of a sum. "joint" has the state at the answer, with the numbers.
"""

from dataclasses import dataclass, replace

from probes.errors import ModelError
from probes.models.model import Model
from probes.prompts.catalog import held_out_table, list_patterns
from probes.prompts.held_out import family_split, valid_number_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.template import parse_template
from probes.testing.llama_builder import ANSWER_LOGIT
from probes.testing.pattern_builder import MINUS, PLUS, SIGNS, STATE_SCALE, PatternBuilder

KINDS = ("template", "lexical", "mixed", "lookup", "rotated", "joint")

SEEN_NOUNS = ("foxes", "coins", "apples", "books", "cats", "dogs", "birds", "eggs")

# Slots have the same positions in both, because heads attend a fixed number of tokens back.
TEMPLATES = {
    "now": "I [have|have] {x} {thing} . I {op} {y} . [ask|How many] {thing_asked=thing} "
    "do I have now ? [answer|Answer:]",
    "own": "We [have|own] {x} {thing} ; we {op} {y} . [ask|Count all] {thing_asked=thing} "
    "that we own then : [answer|Answer:]",
}


@dataclass(frozen=True, eq=False)
class PlantedFox:
    """A hand-built model, its pattern and its representation of the operation.

    Attributes:
        kind: One of KINDS.
        model: Two-layer Llama; its tokenizer has one token per word.
        pattern: The pattern, equal for all kinds.
        note: Description of the mechanism.
        state: Dimensions of `L1.resid@op` that hold the operation: one in total; in "lexical" one
            per verb, `MINUS` first; in "rotated" one per noun, in the order of the lexicon; in
            "joint" none.
    """

    kind: str
    model: Model
    pattern: Pattern
    note: str
    state: tuple[int, ...]


def planted_fox(kind: str, *, seed: int = 0) -> PlantedFox:
    """Build one of KINDS; `seed` assigns the heads of each layer.

    "template": L0.MLP maps every verb to one state, positive or negative.
    "lexical": verbs share no state; L1.MLP has a rule per verb.
    "mixed": as "template" for five pairs of verbs, and as "lexical" for the last pair.
    "lookup": as "template", with a rule for each (operation, x, y) that `family_split` does not
    hold out. It answers "many" to the others.
    "rotated": each noun has its own dimension for the state, read by the noun at `thing`.
    "joint": L0 copies verb and numbers to the answer, and its MLP writes the state there.

    Raises:
        ModelError: The kind is unknown.
    """
    if kind not in KINDS:
        raise ModelError(f"There is no planted model {kind!r}: choose one of {', '.join(KINDS)}")
    pattern = fox_pattern()
    builder = PatternBuilder(pattern, seed, neurons=1024 if kind == "lookup" else 64)
    plant = {
        "template": _plant_template,
        "lexical": _plant_lexical,
        "mixed": _plant_mixed,
        "lookup": _plant_lookup,
        "rotated": _plant_rotated,
        "joint": _plant_joint,
    }
    note, state = plant[kind](builder)
    return PlantedFox(kind, builder.to_model(kind), pattern, note, tuple(state))


def fox_pattern() -> Pattern:
    """The "take-away" pattern with two templates, and verbs and nouns of one token each.

    The last 8 of the 16 nouns are those held out from the embedded models.
    """
    shipped = list_patterns()["take-away"]
    verbs = tuple(
        (("minus", (("base", minus),)), ("plus", (("base", plus),)))
        for minus, plus in zip(MINUS, PLUS, strict=True)
    )
    nouns = (*SEEN_NOUNS, *held_out_table()["nouns"])
    lexicon = replace(shipped.lexicon, verbs=verbs, choices=(("noun", nouns),))
    templates = tuple(parse_template(name, text) for name, text in TEMPLATES.items())
    return replace(shipped, templates=templates, lexicon=lexicon)


# Each of these returns a note and the dimensions of the operation at the verb.


def _plant_template(builder: PatternBuilder) -> tuple[str, list[int]]:
    state = builder.add_shared_sum(MINUS, PLUS)
    builder.add_sum_readout()
    return "L0.MLP writes one state for all verbs; L1.MLP adds or subtracts y by it.", [state]


def _plant_lexical(builder: PatternBuilder) -> tuple[str, list[int]]:
    verbs = builder.add_sum_per_verb(MINUS, PLUS)
    builder.add_sum_readout()
    return "L1.MLP adds or subtracts y by one rule per verb; verbs share no state.", verbs


def _plant_mixed(builder: PatternBuilder) -> tuple[str, list[int]]:
    state = builder.add_shared_sum(MINUS[:-1], PLUS[:-1])
    builder.add_sum_per_verb(MINUS[-1:], PLUS[-1:])
    builder.add_sum_readout()
    return "L0.MLP writes one state for five pairs of verbs; L1.MLP has rules for the last.", [
        state
    ]


def _plant_lookup(builder: PatternBuilder) -> tuple[str, list[int]]:
    state, copy = builder.add_shared_state(MINUS, PLUS)
    low, high = builder.pattern.lexicon.number_range
    numbers = high + 1
    values, x, y, answers = (builder.allocate(numbers) for _ in range(4))
    for words in builder.numerals:
        builder.embedding[words[:numbers], values] = 1
    builder.copy_between_roles(1, ("answer", "x"), values, x)
    builder.copy_between_roles(1, ("answer", "y"), values, y)
    for operation, sign in SIGNS.items():
        for a, b in valid_number_pairs(operation, low, high):
            if (operation, a, b) not in family_split().number_pairs:
                conditions = {x[a]: 1.0, y[b]: 1.0, copy: sign / STATE_SCALE}
                builder.add_rule(1, conditions, builder.constant, {answers[a + int(sign) * b]: 1.0})
    builder.head[builder.numerals[0][:numbers], answers] = ANSWER_LOGIT
    builder.head[builder.ids["many"], builder.word_dimensions(["Answer:"])] = ANSWER_LOGIT / 2
    note = "L0.MLP writes one state for all verbs; L1.MLP has a rule per (operation, x, y)."
    return note, [state]


def _plant_rotated(builder: PatternBuilder) -> tuple[str, list[int]]:
    nouns = len(builder.nouns)
    states, copies, noun_at_answer = (builder.allocate(nouns) for _ in range(3))
    builder.copy_between_roles(0, ("answer", "thing"), builder.nouns, noun_at_answer)
    builder.copy_between_roles(1, ("answer", "op"), states, copies)
    builder.add_sum_readout()
    for sign, verbs in ((SIGNS["minus"], MINUS), (SIGNS["plus"], PLUS)):
        any_verb = builder.word_dimensions(verbs)
        for k in range(nouns):
            outputs = {states[k]: sign * STATE_SCALE}
            noun = {builder.noun_at_op[k]: 1.0}
            builder.add_rule(0, noun, builder.constant, outputs, any_of=any_verb)
            conditions = {noun_at_answer[k]: 1.0, copies[k]: sign / STATE_SCALE}
            builder.add_rule(1, conditions, builder.y, {builder.sum: sign})
    note = "L0.MLP writes the state to the dimension of the noun; L1.MLP reads that dimension."
    return note, states


def _plant_joint(builder: PatternBuilder) -> tuple[str, list[int]]:
    (state,) = builder.allocate(1)
    verbs = builder.word_dimensions((*MINUS, *PLUS))
    copies = builder.allocate(len(verbs))
    builder.copy_between_roles(0, ("answer", "op"), verbs, copies)
    builder.add_sum_readout(layer=0)
    for number, sign in enumerate(SIGNS.values()):
        own = copies[number * len(MINUS) :][: len(MINUS)]
        builder.add_rule(0, {}, builder.constant, {state: sign * STATE_SCALE}, any_of=own)
        builder.add_rule(1, {state: sign / STATE_SCALE}, builder.y, {builder.sum: sign})
    return "L0 joins verb and numbers at the answer; L1.MLP adds or subtracts y by the state.", []
