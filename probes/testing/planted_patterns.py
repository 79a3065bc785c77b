"""Hand-built models that add and subtract, with a known representation of the operation.

All answer "I have 7 foxes . I lose 3 . ..." with number and noun. They differ in the state at the
verb: one state for all verbs and nouns ("template"), one per verb ("lexical"), or one per noun
("rotated"). "lookup" has the state of "template", but a table of answers instead of a sum.
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
from probes.testing.llama_builder import ANSWER_LOGIT, LlamaBuilder

KINDS = ("template", "lexical", "lookup", "rotated")

STATE_SCALE = 4.0  # Size of the operation's state, where a word has 1.
STEEPNESS = 80.0  # A condition holds above 3/4 and fails below 1/4, up to a relative error of 1e-8.
LOGIT_GAP = 4.0  # Logit of a number minus that of the next one.
HEADS, CONTEXT = 8, 24

SIGNS = {"minus": -1.0, "plus": 1.0}
MINUS = ("lose", "sell", "drop", "give", "spend", "waste")
PLUS = ("find", "buy", "get", "take", "earn", "gather")
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
            per verb, `MINUS` first; in "rotated" one per noun, in the order of the lexicon.
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
    "lookup": as "template", with a rule for each (operation, x, y) that `family_split` does not
    hold out. It answers "many" to the others.
    "rotated": each noun has its own dimension for the state, read by the noun at `thing`.

    Raises:
        ModelError: The kind is unknown.
    """
    if kind not in KINDS:
        raise ModelError(f"There is no planted model {kind!r}: choose one of {', '.join(KINDS)}")
    pattern = fox_pattern()
    builder = _PatternBuilder(pattern, seed, neurons=1024 if kind == "lookup" else 64)
    plant = {
        "template": _plant_template,
        "lexical": _plant_lexical,
        "lookup": _plant_lookup,
        "rotated": _plant_rotated,
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


def _plant_template(builder: "_PatternBuilder") -> tuple[str, list[int]]:
    state, copy = builder.add_shared_state()
    builder.add_sum_readout()
    for sign in SIGNS.values():
        builder.add_rule(1, {copy: sign / STATE_SCALE}, builder.y, {builder.sum: sign})
    return "L0.MLP writes one state for all verbs; L1.MLP adds or subtracts y by it.", [state]


def _plant_lexical(builder: "_PatternBuilder") -> tuple[str, list[int]]:
    verbs = builder.word_dimensions((*MINUS, *PLUS))
    copies = builder.allocate(len(verbs))
    builder.copy_between_roles(1, ("answer", "op"), verbs, copies)
    builder.add_sum_readout()
    for number, verb in enumerate(copies):
        sign = SIGNS["minus" if number < len(MINUS) else "plus"]
        builder.add_rule(1, {verb: 1.0}, builder.y, {builder.sum: sign})
    return "L1.MLP adds or subtracts y by one rule per verb; verbs share no state.", verbs


def _plant_lookup(builder: "_PatternBuilder") -> tuple[str, list[int]]:
    state, copy = builder.add_shared_state()
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


def _plant_rotated(builder: "_PatternBuilder") -> tuple[str, list[int]]:
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


class _PatternBuilder(LlamaBuilder):
    """Builder that knows the words and positions of a pattern; the noun is answered already."""

    def __init__(self, pattern: Pattern, seed: int, *, neurons: int) -> None:
        words = _vocabulary(pattern)
        super().__init__(len(words), HEADS, neurons=neurons, context=CONTEXT)
        self.pattern, self.ids = pattern, {word: number for number, word in enumerate(words)}
        self.embedding = self.hf_model.model.embed_tokens.weight.data
        self.head = self.hf_model.lm_head.weight.data
        generator = torch.Generator().manual_seed(seed)
        self.heads = [iter(torch.randperm(HEADS, generator=generator).tolist()) for _ in range(2)]
        self.role_positions = _role_positions(pattern.templates[0])
        self.rules: list[list[_Rule]] = [[], []]
        lexicon = pattern.lexicon
        digits = _digits(pattern)
        self.numerals = [[self.ids[w] for w in words] for words in (digits, lexicon.number_words)]
        self.nouns = self.word_dimensions(lexicon.words("noun"))
        (self.value, self.sum, self.y), answer = self.allocate(3), self.allocate(len(self.nouns))
        # All kinds have the noun at the verb, so only interventions show whether it matters there.
        self.noun_at_op = self.allocate(len(self.nouns))
        self.copy_between_roles(0, ("op", "thing"), self.nouns, self.noun_at_op)
        self.copy_between_roles(1, ("reply_number", "thing"), self.nouns, answer)
        self.head[[self.ids[w] for w in lexicon.words("noun")], answer] = ANSWER_LOGIT

    def word_dimensions(self, words: Sequence[str]) -> list[int]:
        """Dimensions of words in the embedding."""
        return [self.token[self.ids[word]] for word in words]

    def copy_between_roles(
        self, layer: int, roles: tuple[str, str], read: Sequence[int], write: Sequence[int]
    ) -> None:
        """Let the next unused head copy dimensions to the first role from the second."""
        head, (target, source) = next(self.heads[layer]), roles
        self.attend_back(layer, head, self.role_positions[target] - self.role_positions[source])
        self.copy_dimensions(layer, head, read, write)

    def add_shared_state(self) -> tuple[int, int]:
        """Map every verb to one state; returns its dimensions at `op` and at `answer`."""
        state, copy = self.allocate(2)
        for sign, verbs in ((SIGNS["minus"], MINUS), (SIGNS["plus"], PLUS)):
            outputs, any_verb = {state: sign * STATE_SCALE}, self.word_dimensions(verbs)
            self.add_rule(0, {}, self.constant, outputs, any_of=any_verb)
        self.copy_between_roles(1, ("answer", "op"), [state], [copy])
        return state, copy

    def add_sum_readout(self) -> None:
        """Copy x and y to the answer, x as the sum so far, and let the unembedding read the sum.

        The logit of n for a sum s is 2sn - n² = s² - (s - n)²: linear in s, largest at n = s.
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
        *,
        any_of: Sequence[int] = (),
    ) -> None:
        """Write multiples of a dimension where all conditions hold, and one of `any_of` if given.

        Args:
            conditions: For each dimension the factor that makes it 1.
            amount: Dimension that is multiplied.
            outputs: For each dimension that is written, the factor.
        """
        needed = len(conditions) + bool(any_of)
        conditions = conditions | dict.fromkeys(any_of, 1.0)
        self.rules[layer].append(_Rule(conditions, needed, amount, outputs))

    def to_model(self, kind: str) -> Model:
        """Set the MLPs to the rules, and wrap the model."""
        for layer, rules in enumerate(self.rules):
            gates, ups = [], []
            downs = torch.zeros(len(self.embedding.T), 2 * len(rules))
            for rule in rules:
                write, factors = list(rule.outputs), torch.tensor(list(rule.outputs.values()))
                # Two rectifiers make a ramp from 0 to 1 between 1/4 and 3/4 of a condition.
                for offset, slope in ((0.75, 2 / STEEPNESS), (0.25, -2 / STEEPNESS)):
                    downs[write, len(gates)] = slope * factors
                    gate = {d: STEEPNESS * factor for d, factor in rule.conditions.items()}
                    gates.append(gate | {self.constant: -STEEPNESS * (rule.needed - offset)})
                    ups.append(rule.amount)
            self.set_neurons(layer, gates, ups, downs)
        name, tokenizer = f"planted {kind}", _tokenizer(self.ids)
        return wrap(self.hf_model, name=name, tokenizer=tokenizer, origin="set by hand")


@dataclass(frozen=True, slots=True)
class _Rule:
    """Two neurons that write once the weighted conditions sum to `needed`."""

    conditions: dict[int, float]
    needed: int
    amount: int
    outputs: dict[int, float]


def _vocabulary(pattern: Pattern) -> list[str]:
    lexicon = pattern.lexicon
    numbers = [*_digits(pattern), *lexicon.number_words]
    fixed = [w for t in pattern.templates for p in t.parts if not p.slot for w in p.text.split()]
    words = ["<bos>", "<unk>", *numbers, *MINUS, *PLUS, *lexicon.words("noun"), *fixed]
    return list(dict.fromkeys(words))


def _digits(pattern: Pattern) -> list[str]:
    """Numbers up to the largest sum; every outcome needs its own token."""
    return [str(number) for number in range(2 * pattern.lexicon.number_range[1] + 1)]


def _role_positions(template: Template) -> dict[str, int]:
    """Position of the first token of each role."""
    positions, position = {}, 1  # after <bos>
    for part in template.parts:
        positions[part.role] = position
        position += 1 if part.slot else len(part.text.split())
    return positions | {"reply_number": position}


def _tokenizer(ids: dict[str, int]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer: Any = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<unk>")
