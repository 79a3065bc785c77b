"""Prompt format: how a question is put to a model, and its name in text."""

import re
from dataclasses import dataclass

from probes.errors import PatternError

PLAIN_NAME, AUTO = "plain", "auto"

EXAMPLE_ROLE, CHAT_ROLE, TURN_ROLE = "shot", "chat", "turn"
"""Roles of what a format adds: examples, the start of a chat, and the change of turns."""

ANSWER_FORMS = ("full", "short", "bare", "bare-short")

_MAX_SHOTS = 32
_NAME = re.compile(
    r"(?P<kind>plain|chat-system|chat)?-?(?:few-shot-(?P<shots>\d{1,3}))?"
    r"(?::(?P<answer>[a-z-]+))?(?:@(?P<low>\d{1,6})-(?P<high>\d{1,6}))?(?P<digits>@digits)?(?:#(?P<seed>\d{1,9}))?"
)


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """Format of prompts; `str` gives its name, and `parse` reads it.

    A name is `plain`, `few-shot-4`, `chat`, `chat-system` or `chat-few-shot-4`. It may be followed
    by a form of the answer (`:short`), a range of numbers (`@0-9`), numbers in digits only
    (`@digits`) and a seed of the examples (`#1`).

    Attributes:
        shots: Number of few-shot examples before the question.
        chat: Whether the model's own chat template is used.
        system: Whether a line of the system asks for a short answer; else the template decides.
        answer: Form of the answer. "full" is the pattern's own ("Answer: 5 foxes"), "short" its
            first answer alone ("Answer: 5"), and "bare" and "bare-short" are the same without the
            words that lead to the answer ("5 foxes", "5").
        numbers: Smallest and largest number; None for the pattern's own range.
        digits: Whether no number is in words.
        seed: Seed of the examples.
    """

    shots: int = 0
    chat: bool = False
    system: bool = False
    answer: str = "full"
    numbers: tuple[int, int] | None = None
    digits: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.shots <= _MAX_SHOTS:
            raise PatternError(
                f"A format has {self.shots} examples: give 0 to {_MAX_SHOTS}, as in few-shot-4"
            )
        if self.answer not in ANSWER_FORMS:
            raise PatternError(
                f"The form of the answer {self.answer!r} is unknown: known are "
                f"{', '.join(ANSWER_FORMS)}"
            )
        if self.numbers is not None and not 0 <= self.numbers[0] < self.numbers[1]:
            raise PatternError(
                f"Numbers from {self.numbers[0]} to {self.numbers[1]} found: give whole ones, low "
                "to high, as in @0-9"
            )

    @classmethod
    def parse(cls, name: str) -> "PromptFormat":
        """Format of a name.

        Raises:
            PatternError: The name is unknown.
        """
        found = _NAME.fullmatch(name)
        kind, shots = (found["kind"] or "", found["shots"]) if found else ("", None)
        if found is None or not (kind or shots) or (kind == PLAIN_NAME and shots):
            raise PatternError(
                f"Format {name!r:.80} is unknown: known are plain, few-shot-4, chat, chat-system "
                "and chat-few-shot-4, with :short, :bare or :bare-short, and with @0-9 or @digits "
                "for the numbers"
            )
        numbers = (int(found["low"]), int(found["high"])) if found["low"] else None
        return cls(
            shots=int(shots or 0),
            chat=kind.startswith("chat"),
            system=kind == "chat-system",
            answer=found["answer"] or "full",
            numbers=numbers,
            digits=bool(found["digits"]),
            seed=int(found["seed"] or 0),
        )

    def __str__(self) -> str:
        kind = ["chat"] * self.chat + ["system"] * self.system
        kind += [f"few-shot-{self.shots}"] if self.shots else []
        return "".join(
            (
                "-".join(kind) or PLAIN_NAME,
                f":{self.answer}" if self.answer != "full" else "",
                f"@{self.numbers[0]}-{self.numbers[1]}" if self.numbers else "",
                "@digits" if self.digits else "",
                f"#{self.seed}" if self.seed else "",
            )
        )

    @property
    def is_short(self) -> bool:
        """Whether the first answer is the only one."""
        return self.answer.endswith("short")

    @property
    def is_bare(self) -> bool:
        """Whether the words that lead to the answer are left out."""
        return self.answer.startswith("bare")


PLAIN = PromptFormat()
"""The question's own text."""
