"""What a pattern yields: a question with its slots, roles and answers, and pairs of them.

A question's text is the prompt; its answers follow it in their order, a space before each
("… Answer:" + " 4" + " foxes"). Roles are character spans of the prompt.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from probes.errors import PatternError

CONTRASTS = ("operation", "x", "y", "thing", "name", "paraphrase", "order", "filler")

Span = tuple[str, int, int]
"""A role with the start and end of its characters, end exclusive."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, what fills its slots, which text plays which role, and what answers it.

    Attributes:
        text: The prompt, up to where the first answer starts.
        pattern: Name of the pattern it was made from.
        frame: Name of the frame within the pattern.
        slots: What each slot holds: an int for numbers, the written words for all else.
        numerals: "digits" or "words": how the question writes its numbers.
        answers: Each read-out's name with the text expected there.
        outcomes: Each read-out's name with every text that a reader might give there, the
            answer first: the other operation, the copied numbers, the other nouns.
        roles: Character spans, in the order of the text, without overlap.
    """

    text: str
    pattern: str
    template: str
    slots: tuple[tuple[str, int | str], ...]
    numerals: str
    answers: tuple[tuple[str, str], ...]
    outcomes: tuple[tuple[str, tuple[str, ...]], ...]
    roles: tuple[Span, ...]

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
        """Return the text expected at one read-out."""
        return dict(self.answers)[name]

    def role_text(self, role: str) -> str:
        """Return the words that play a role."""
        for name, start, end in self.roles:
            if name == role:
                return self.text[start:end]
        raise PatternError(f"Role {role!r} is not in {self.text!r}")

    @property
    def full_text(self) -> str:
        """The prompt with all its answers written after it."""
        return self.text + "".join(f" {text}" for _, text in self.answers)


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and the counterfactual that differs from it in one contrast alone."""

    contrast: str
    clean: Question
    counterfactual: Question

    def changes_answer(self, answer: str) -> bool:
        """Say whether the contrast is expected to change the text at a read-out."""
        return self.clean.answer(answer) != self.counterfactual.answer(answer)


_OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
}


def evaluate_expression(expression: str, slots: Mapping[str, int | str]) -> int | str:
    """Work out an answer: sums, differences and products of slots and whole numbers.

    Raises:
        PatternError: The expression holds anything else, or names a slot that is not there.
    """
    try:
        tree = _parse_expression(expression)
    except SyntaxError as error:
        raise PatternError(f"Answer {expression!r} is not an expression: {error.msg}") from None
    return _evaluate_node(tree.body, expression, slots)


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
                f"Answer {expression!r} names slot {name!r}: the frame has {sorted(slots)}"
            )
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _evaluate_node(left, expression, slots), _evaluate_node(right, expression, slots)
            if isinstance(a, int) and isinstance(b, int):
                return _OPERATORS[type(op)](a, b)
            raise PatternError(f"Answer {expression!r} adds words: only numbers add")
        case _:
            raise PatternError(
                f"Answer {expression!r} may hold slots, whole numbers, +, - and * only"
            )
