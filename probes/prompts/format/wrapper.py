"""Wrapper: puts a question into a prompt format, and keeps it apart from the examples."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from probes.errors import PatternError
from probes.prompts.format.chat import CONTINUE, lead_in_start, split_lead_in
from probes.prompts.format.prompt_format import (
    CHAT_ROLE,
    EXAMPLE_ROLE,
    PLAIN,
    TURN_ROLE,
    PromptFormat,
)
from probes.prompts.question import Conversation, Question

SYSTEM_LINE = "Answer as briefly as possible."

_ADDED_ROLES = (EXAMPLE_ROLE, CHAT_ROLE, TURN_ROLE)


@dataclass(frozen=True, slots=True)
class Wrapper:
    """Format of a pattern's questions, with its few-shot examples.

    Attributes:
        format: The prompt format.
        examples: Questions before each question, the same for all of them.
        operands: Number slots that answers are computed from.
    """

    format: PromptFormat = PLAIN
    examples: tuple[Question, ...] = ()
    operands: tuple[str, ...] = ()

    def reserves(self, slots: Mapping[str, int | str]) -> bool:
        """Whether an example has the numbers of these slots."""
        return any(
            all(dict(example.slots).get(name) == slots.get(name) for name in self.operands)
            for example in self.examples
            if self.operands
        )

    def numerals(self, given: str) -> str:
        """Form of the numbers: "digits" where the format has no words, else the given one."""
        return "digits" if self.format.digits else given

    def wrap(self, question: Question) -> Question:
        """Question in the format. Its own roles remain; what is added has roles of its own.

        Raises:
            PatternError: A role has the name of an added one.
        """
        if self.format.is_bare:
            question = _drop_lead_in(question)
        if not self.format.chat and not self.examples:
            return question
        for role, _, _ in question.roles:
            if role in _ADDED_ROLES:
                raise PatternError(
                    f"The role {role!r} is one that the format {self.format} adds: give it "
                    "another name"
                )
        if self.format.chat:
            system = SYSTEM_LINE if self.format.system else ""
            turns = tuple(_example_turns(self._prepared(example)) for example in self.examples)
            return replace(question, conversation=Conversation(system, turns))
        before = "".join(_example_text(self._prepared(example)) for example in self.examples)
        shift = len(before)
        roles = ((name, start + shift, end + shift) for name, start, end in question.roles)
        return replace(
            question,
            text=before + question.text,
            roles=((EXAMPLE_ROLE, 0, shift), *roles),
        )

    def _prepared(self, example: Question) -> Question:
        return _drop_lead_in(example) if self.format.is_bare else example


UNWRAPPED = Wrapper()
"""Plain text."""


def _drop_lead_in(question: Question) -> Question:
    """Question without the words that lead to its answer, and without their roles."""
    end = lead_in_start(question.text)
    if not end:
        raise PatternError(
            f"{question.text[:80]!r} has no sentence that ends before the answer: use the form "
            "full or short"
        )
    roles = tuple(span for span in question.roles if span[2] <= end)
    return replace(question, text=question.text[:end], roles=roles)


def _example_text(example: Question) -> str:
    """Line of an example; its last sentence ends with a stop."""
    stop = "" if example.text.rstrip()[-1:] in ":\uff1a" else "."
    return f"{example.full_text.rstrip('.')}{stop}\n"


def _example_turns(example: Question) -> tuple[str, str]:
    user, _ = split_lead_in(example.text)
    return user or CONTINUE, example.full_text[len(user) :].lstrip()
