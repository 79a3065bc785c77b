"""Questions with slots, roles and answers, and pairs of them.

The text of a question is the prompt. Its answers follow in order, each after a delimiter
("… Answer:" + " 4" + " foxes"). Prompt and answers are used exactly as given. Roles are character
spans of the prompt.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from probes.errors import PatternError

CONTRASTS = ("operation", "x", "y", "thing", "name", "paraphrase", "order", "filler")

Span = tuple[str, int, int]
"""A role with the start and end of its characters, end exclusive."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What precedes a question in a chat: a system line, or "", and turns of user and assistant."""

    system: str = ""
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt with its slots, roles and answers.

    Attributes:
        text: Prompt, up to the start of the first answer.
        pattern: Name of its pattern.
        template: Name of its template within the pattern.
        slots: Value of each slot: an int for numbers, text for all else.
        numerals: "digits" or "words", the form of its numbers.
        answers: Name and correct text of each answer.
        outcomes: Name of each answer with its possible texts, the correct one first: the other
            operation, copied numbers, other objects.
        roles: Character spans, in the order of the text, without overlap.
        delimiter: Text between prompt and answer where neither has white space there: a space, or
            "" for languages without spaces.
        conversation: What precedes it in the model's chat template, which the tokenizer writes
            around the text; None outside of a chat.
        starts_turn: Whether the first answer begins a turn, so that no delimiter precedes it.
    """

    text: str
    pattern: str
    template: str
    slots: tuple[tuple[str, int | str], ...]
    numerals: str
    answers: tuple[tuple[str, str], ...]
    outcomes: tuple[tuple[str, tuple[str, ...]], ...]
    roles: tuple[Span, ...]
    delimiter: str = " "
    conversation: Conversation | None = None
    starts_turn: bool = False

    @classmethod
    def from_text(cls, text: str) -> "Question":
        """Plain text without slots, roles and answers."""
        return cls(text, "", "", (), "digits", (), (), ())

    def __getitem__(self, slot: str) -> int | str:
        for name, value in self.slots:
            if name == slot:
                return value
        raise PatternError(
            f"Slot {slot!r} is not in {self.text!r}: it has {[name for name, _ in self.slots]}"
        )

    def answer(self, name: str) -> str:
        """Correct text of one answer."""
        return dict(self.answers)[name]

    def role_text(self, role: str) -> str:
        """Words of a role."""
        for name, start, end in self.roles:
            if name == role:
                return self.text[start:end]
        raise PatternError(f"Role {role!r} is not in {self.text!r}")

    @property
    def full_text(self) -> str:
        """Prompt followed by all its answers."""
        return self.answer_contexts([text for _, text in self.answers])[-1]

    def append(self, before: str, answer: str) -> str:
        """Text followed by an answer; white space on either side replaces the delimiter."""
        delimiter = "" if self.starts_turn and before == self.text else self.delimiter
        return append_answer(before, answer, delimiter)

    def answer_contexts(self, answers: Sequence[str]) -> list[str]:
        """Prompt, then the prompt with the first answer, with the first two answers, and so on."""
        contexts = [self.text]
        for answer in answers:
            contexts.append(self.append(contexts[-1], answer))
        return contexts


def append_answer(before: str, answer: str, delimiter: str) -> str:
    """Text followed by an answer; white space on either side replaces the delimiter."""
    has_space = before[-1:].isspace() or answer[:1].isspace()
    return before + ("" if has_space else delimiter) + answer


@dataclass(frozen=True, slots=True)
class Pair:
    """Question and counterfactual that differ in one contrast."""

    contrast: str
    clean: Question
    counterfactual: Question

    def changes_answer(self, answer: str) -> bool:
        """Whether the two have different correct texts."""
        return self.clean.answer(answer) != self.counterfactual.answer(answer)


_OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
}


def evaluate_expression(expression: str, slots: Mapping[str, int | str]) -> int | str:
    """Value of an expression: sums, differences and products of slots and integers.

    Raises:
        PatternError: The expression has another operation, or an unknown slot.
    """
    try:
        tree = _parse_expression(expression)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise PatternError(
            f"Answer {expression!r:.80} is not an expression ({error!s:.80}): write slots, whole "
            "numbers, +, - and *"
        ) from None
    return _evaluate_node(tree.body, expression, slots)


def expression_slots(expression: str) -> tuple[str, ...]:
    """Slots of a valid expression, in its order."""
    nodes = ast.walk(_parse_expression(expression))
    return tuple(dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name)))


@cache
def _parse_expression(expression: str) -> ast.Expression:
    return ast.parse(expression, mode="eval")


def _evaluate_node(node: ast.expr, expression: str, slots: Mapping[str, int | str]) -> int | str:
    match node:
        case ast.Constant(value=int(value)) if type(value) is int:  # True is an int, too
            return value
        case ast.Name(id=name) if name in slots:
            return slots[name]
        case ast.Name(id=name):
            raise PatternError(
                f"Answer {expression!r} names slot {name!r}: use one of {', '.join(sorted(slots))}"
            )
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _evaluate_node(left, expression, slots), _evaluate_node(right, expression, slots)
            if isinstance(a, int) and isinstance(b, int):
                return _OPERATORS[type(op)](a, b)
            raise PatternError(f"Answer {expression!r} adds words: add numbers only")
        case _:
            raise PatternError(
                f"Answer {expression!r} may hold slots, whole numbers, +, - and * only"
            )
