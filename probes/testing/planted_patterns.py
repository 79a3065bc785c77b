"""Models set by hand that take away and add, and are known to hold the operation in one way.

All answer "I have 7 foxes . I lose 3 . ..." with number and noun, most of them always right, and
differ in what they know at the verb: that it takes away, whatever the verb and the noun
("template"); which verb it is ("lexical"); or that it takes away, in a code that each noun has to
itself ("rotated"). A last one knows as much as the first, but looks the answer up ("lookup").
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from probes.errors import ModelError
from probes.models.model import Model, wrap
from probes.prompts.catalog import held_out_table, list_patterns
from probes.prompts.held_out import family_split, valid_number_pairs
from probes.prompts.pattern import Pattern
from probes.prompts.template import Template, parse_template
from probes.testing.planted_circuits import ANSWER_LOGIT, LlamaBuilder

KINDS = ("template", "lexical", "lookup", "rotated")

STATE_SCALE = (
    4.0  # What stands for an operation: four times what stands for a word, so that it leads.
)
STEEPNESS = 80.0  # A fact is true above 3/4 and false below 1/4, but for 1e-8 of an amount.
LOGIT_GAP = 4.0  # By how much the logit of a number exceeds its neighbor's.
HEADS, CONTEXT = 8, 24

SIGNS = {"minus": -1.0, "plus": 1.0}
MINUS = ("lose", "sell", "drop", "give", "spend", "waste")
PLUS = ("find", "buy", "get", "take", "earn", "gather")
SEEN_NOUNS = ("foxes", "coins", "apples", "books", "cats", "dogs", "birds", "eggs")

# All slots stand at the same places in both, as heads look back a fixed number of tokens.
TEMPLATES = {
    "now": "I [have|have] {x} {thing} . I {op} {y} . [ask|How many] {thing_asked=thing} "
    "do I have now ? [answer|Answer:]",
    "own": "We [have|own] {x} {thing} ; we {op} {y} . [ask|Count all] {thing_asked=thing} "
    "that we own then : [answer|Answer:]",
}


@dataclass(frozen=True, eq=False)
class PlantedFox:
    """A model that is set by hand, what it is asked, and how it holds the operation.

    Attributes:
        kind: One of KINDS.
        model: Two layers, with a tokenizer that has one token for each word.
        pattern: The questions, the same for all kinds.
        note: What was planted.
        state: The dimensions of the residual stream that say at `op`, as layer 1 reads it, what
            to do: one for all; in "lexical" one for each verb, those that take away first; in
            "rotated" one for each noun, in the order of the lexicon.
    """

    kind: str
    model: Model
    pattern: Pattern
    note: str
    state: tuple[int, ...]


def planted_fox(kind: str, *, seed: int = 0) -> PlantedFox:
    """Plant one of KINDS; `seed` says which heads of a layer do what.

    "template": the first MLP turns each verb into one state, of one sign or the other.
    "lexical": nothing is shared by verbs; the second MLP has a rule for each.
    "lookup": as "template", with a rule for each cell (operation, x, y) of `family_split` that is
    not held out. To the others it answers "many".
    "rotated": the state has a dimension for each noun, and is read in that of the noun at `thing`.

    Raises:
        ModelError: There is no such kind.
    """
    if kind not in KINDS:
        raise ModelError(f"No planted model {kind!r}: use one of {', '.join(KINDS)}")
    pattern = fox_pattern()
    made = _PatternBuilder(pattern, seed, neurons=1024 if kind == "lookup" else 64)
    plant = {
        "template": _plant_template,
        "lexical": _plant_lexical,
        "lookup": _plant_lookup,
        "rotated": _plant_rotated,
    }
    note, state = plant[kind](made)
    return PlantedFox(kind, made.to_model(kind), pattern, note, tuple(state))


def fox_pattern() -> Pattern:
    """Return the questions: take-away as it is shipped, with verbs and nouns of one token each.

    Of the 16 nouns, the last 8 are those that the embedded family never sees taken away.
    """
    shipped = list_patterns()["take-away"]
    verbs = tuple(
        (("minus", (("base", less),)), ("plus", (("base", more),)))
        for less, more in zip(MINUS, PLUS, strict=True)
    )
    nouns = (*SEEN_NOUNS, *held_out_table()["nouns"])
    lexicon = replace(shipped.lexicon, verbs=verbs, choices=(("noun", nouns),))
    frames = tuple(parse_template(name, text) for name, text in TEMPLATES.items())
    return replace(shipped, templates=frames, lexicon=lexicon)


# What is planted: each says so, and in which dimensions the operation stands at the verb.


def _plant_template(builder: "_PatternBuilder") -> tuple[str, list[int]]:
    state, here = builder.add_shared_state()
    builder.add_sum_readout()
    for sign in SIGNS.values():
        builder.add_rule(1, {here: sign / STATE_SCALE}, builder.y, {builder.sum: sign})
    return "L0.MLP writes one state for all verbs, which L1.MLP adds or takes y by.", [state]


def _plant_lexical(builder: "_PatternBuilder") -> tuple[str, list[int]]:
    verbs = builder.word_dimensions((*MINUS, *PLUS))
    here = builder.allocate(len(verbs))
    builder.copy_between_roles(1, ("answer", "op"), verbs, here)
    builder.add_sum_readout()
    for number, verb in enumerate(here):
        sign = SIGNS["minus" if number < len(MINUS) else "plus"]
        builder.add_rule(1, {verb: 1.0}, builder.y, {builder.sum: sign})
    return "L1.MLP adds or takes y by a rule for each verb; no verb shares a state.", verbs


def _plant_lookup(builder: "_PatternBuilder") -> tuple[str, list[int]]:
    state, here = builder.add_shared_state()
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
                facts = {x[a]: 1.0, y[b]: 1.0, here: sign / STATE_SCALE}
                builder.add_rule(1, facts, builder.constant, {answers[a + int(sign) * b]: 1.0})
    builder.head[builder.numerals[0][:numbers], answers] = ANSWER_LOGIT
    builder.head[builder.ids["many"], builder.word_dimensions(["Answer:"])] = ANSWER_LOGIT / 2
    note = "L0.MLP writes one state for all verbs; L1.MLP has a rule for each cell that is seen."
    return note, [state]


def _plant_rotated(builder: "_PatternBuilder") -> tuple[str, list[int]]:
    nouns = len(builder.nouns)
    states, here, own = (builder.allocate(nouns) for _ in range(3))
    builder.copy_between_roles(0, ("answer", "thing"), builder.nouns, own)
    builder.copy_between_roles(1, ("answer", "op"), states, here)
    builder.add_sum_readout()
    for sign, verbs in ((SIGNS["minus"], MINUS), (SIGNS["plus"], PLUS)):
        does = dict.fromkeys(builder.word_dimensions(verbs), 1.0)
        for k in range(nouns):
            builder.add_rule(
                0,
                {builder.noun_at_op[k]: 1.0},
                builder.constant,
                {states[k]: sign * STATE_SCALE},
                does,
            )
            builder.add_rule(
                1, {own[k]: 1.0, here[k]: sign / STATE_SCALE}, builder.y, {builder.sum: sign}
            )
    note = "L0.MLP writes a state in the noun's own dimension; L1.MLP reads that of its own noun."
    return note, states


# Setting the weights.


class _PatternBuilder(LlamaBuilder):
    """A sketch that knows the words and places of the questions; it says the noun by itself."""

    def __init__(self, pattern: Pattern, seed: int, *, neurons: int) -> None:
        words = _vocabulary(pattern)
        super().__init__(len(words), HEADS, neurons=neurons, context=CONTEXT)
        self.pattern, self.ids = pattern, {word: number for number, word in enumerate(words)}
        self.embedding = self.hf_model.model.embed_tokens.weight.data
        self.head = self.hf_model.lm_head.weight.data
        draw = torch.Generator().manual_seed(seed)
        self.heads = [iter(torch.randperm(HEADS, generator=draw).tolist()) for _ in range(2)]
        self.role_positions = _role_positions(pattern.templates[0])
        self.rules: list[list[_Rule]] = [[], []]
        lexicon = pattern.lexicon
        digits = _digits(pattern)
        self.numerals = [[self.ids[w] for w in some] for some in (digits, lexicon.number_words)]
        self.nouns = self.word_dimensions(lexicon.words("noun"))
        (self.value, self.sum, self.y), said = self.allocate(3), self.allocate(len(self.nouns))
        # The noun stands at the verb in all kinds, so that whether it matters there is a question.
        self.noun_at_op = self.allocate(len(self.nouns))
        self.copy_between_roles(0, ("op", "thing"), self.nouns, self.noun_at_op)
        self.copy_between_roles(1, ("reply_number", "thing"), self.nouns, said)
        self.head[[self.ids[w] for w in lexicon.words("noun")], said] = ANSWER_LOGIT

    def word_dimensions(self, words: Sequence[str]) -> list[int]:
        """Return the dimensions that say which word stands here."""
        return [self.token[self.ids[word]] for word in words]

    def copy_between_roles(
        self, layer: int, roles: tuple[str, str], read: Sequence[int], write: Sequence[int]
    ) -> None:
        """Let the next free head copy dimensions to the first role from the second, before it."""
        head, (to, source) = next(self.heads[layer]), roles
        self.attend_back(layer, head, self.role_positions[to] - self.role_positions[source])
        self.copy_dimensions(layer, head, read, write)

    def add_shared_state(self) -> tuple[int, int]:
        """Turn every verb into one state, and return where it stands at `op` and at `answer`."""
        state, here = self.allocate(2)
        for sign, verbs in ((SIGNS["minus"], MINUS), (SIGNS["plus"], PLUS)):
            does = dict.fromkeys(self.word_dimensions(verbs), 1.0)
            self.add_rule(0, {}, self.constant, {state: sign * STATE_SCALE}, does)
        self.copy_between_roles(1, ("answer", "op"), [state], [here])
        return state, here

    def add_sum_readout(self) -> None:
        """Bring x and y to the answer, where x is the sum so far, and say the number next to it.

        The logit of n for a sum s is 2sn - n², which is s² - (s - n)²: linear, and highest at s.
        """
        for words in self.numerals:
            self.embedding[words, self.value] = torch.arange(len(words), dtype=torch.float32)
        self.copy_between_roles(1, ("answer", "x"), [self.value], [self.sum])
        self.copy_between_roles(1, ("answer", "y"), [self.value], [self.y])
        for number, token in enumerate(self.numerals[0]):
            self.head[token, self.sum] = 2 * number * LOGIT_GAP
            self.head[token, self.constant] = -(number**2) * LOGIT_GAP
            self.head[token, self.word_dimensions(["Answer:"])] = ANSWER_LOGIT

    def add_rule(
        self,
        layer: int,
        conditions: dict[int, float],
        amount: int,
        outputs: dict[int, float],
        one_of: dict[int, float] | None = None,
    ) -> None:
        """Write shares of an amount where all facts hold, and one of those in `one_of` if given."""
        needed = len(conditions) + (one_of is not None)
        self.rules[layer].append(_Rule(conditions | (one_of or {}), needed, amount, outputs))

    def to_model(self, kind: str) -> Model:
        """Fill in the MLPs, and wrap the model."""
        for layer, rules in enumerate(self.rules):
            gates, ups = [], []
            downs = torch.zeros(len(self.embedding.T), 2 * len(rules))
            for rule in rules:
                where, shares = list(rule.outputs), torch.tensor(list(rule.outputs.values()))
                # A ramp from 0 to 1, half as wide as a fact: two rectifiers, the second later.
                for late, slope in ((0.75, 2 / STEEPNESS), (0.25, -2 / STEEPNESS)):
                    downs[where, len(gates)] = slope * shares
                    facts = {fact: STEEPNESS * size for fact, size in rule.conditions.items()}
                    gates.append(facts | {self.constant: -STEEPNESS * (rule.needed - late)})
                    ups.append(rule.amount)
            self.set_neurons(layer, gates, ups, downs)
        name, tokenizer = f"planted {kind}", _tokenizer(self.ids)
        return wrap(self.hf_model, name=name, tokenizer=tokenizer, origin="set by hand")


@dataclass(frozen=True, slots=True)
class _Rule:
    """Two neurons: how much each fact weighs, and how many are needed to write the amount."""

    conditions: dict[int, float]
    needed: int
    amount: int
    outputs: dict[int, float]


def _vocabulary(pattern: Pattern) -> list[str]:
    lexicon = pattern.lexicon
    numbers = [*_digits(pattern), *lexicon.number_words]
    fixed = [w for f in pattern.templates for p in f.parts if not p.slot for w in p.text.split()]
    words = ["<bos>", "<unk>", *numbers, *MINUS, *PLUS, *lexicon.words("noun"), *fixed]
    return list(dict.fromkeys(words))


def _digits(pattern: Pattern) -> list[str]:
    """Write the numbers, up to the largest sum: as an outcome, it must be a token of its own."""
    return [str(number) for number in range(2 * pattern.lexicon.number_range[1] + 1)]


def _role_positions(template: Template) -> dict[str, int]:
    """Return the position of each role, the first of its tokens."""
    found, at = {}, 1  # Behind the <bos>.
    for part in template.parts:
        found[part.role] = at
        at += 1 if part.slot else len(part.text.split())
    return found | {"reply_number": at}


def _tokenizer(ids: dict[str, int]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words: Any = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", unk_token="<unk>")
