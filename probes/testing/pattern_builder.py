"""Builder of planted models that know the words and positions of a pattern."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from probes.models.model import Model, wrap
from probes.prompts.pattern import Pattern
from probes.prompts.template import Template
from probes.testing.llama_builder import ANSWER_LOGIT, LlamaBuilder

STATE_SCALE = 4.0  # Size of the operation's state, where a word has 1.
STEEPNESS = 80.0  # A condition holds above 3/4 and fails below 1/4, up to a relative error of 1e-8.
LOGIT_GAP = 4.0  # Logit of a number minus that of the next one.
HEADS, CONTEXT = 8, 24

SIGNS = {"minus": -1.0, "plus": 1.0}
MINUS = ("lose", "sell", "drop", "give", "spend", "waste")
PLUS = ("find", "buy", "get", "take", "earn", "gather")


class PatternBuilder(LlamaBuilder):
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

    def add_shared_sum(self, minus: Sequence[str], plus: Sequence[str]) -> int:
        """Add or subtract y by one state of the verbs; returns its dimension at `op`."""
        state, copy = self.add_shared_state(minus, plus)
        for sign in SIGNS.values():
            self.add_rule(1, {copy: sign / STATE_SCALE}, self.y, {self.sum: sign})
        return state

    def add_sum_per_verb(self, minus: Sequence[str], plus: Sequence[str]) -> list[int]:
        """Add or subtract y by one rule per verb; returns the dimensions of the verbs."""
        verbs = self.word_dimensions((*minus, *plus))
        copies = self.allocate(len(verbs))
        self.copy_between_roles(1, ("answer", "op"), verbs, copies)
        for number, verb in enumerate(copies):
            sign = SIGNS["minus" if number < len(minus) else "plus"]
            self.add_rule(1, {verb: 1.0}, self.y, {self.sum: sign})
        return verbs

    def add_shared_state(self, minus: Sequence[str], plus: Sequence[str]) -> tuple[int, int]:
        """Map verbs to one state; returns its dimensions at `op` and at `answer`."""
        state, copy = self.allocate(2)
        for sign, verbs in ((SIGNS["minus"], minus), (SIGNS["plus"], plus)):
            outputs, any_verb = {state: sign * STATE_SCALE}, self.word_dimensions(verbs)
            self.add_rule(0, {}, self.constant, outputs, any_of=any_verb)
        self.copy_between_roles(1, ("answer", "op"), [state], [copy])
        return state, copy

    def add_sum_readout(self, layer: int = 1) -> None:
        """Copy x and y to the answer, x as the sum so far, and let the unembedding read the sum.

        The logit of n for a sum s is 2sn - n² = s² - (s - n)²: linear in s, largest at n = s.
        """
        for words in self.numerals:
            self.embedding[words, self.value] = torch.arange(len(words), dtype=torch.float32)
        self.copy_between_roles(layer, ("answer", "x"), [self.value], [self.sum])
        self.copy_between_roles(layer, ("answer", "y"), [self.value], [self.y])
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
