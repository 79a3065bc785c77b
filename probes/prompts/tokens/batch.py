"""Batch of tokenized prompts, padded on the left, with one role for every token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probes.errors import BatchError, SiteError, TokenizerError
from probes.prompts.question import Question
from probes.prompts.tokens.tokenization import BOS, REST, TokenizedPrompt, tokenize_questions

_PADDING = -1


@dataclass(frozen=True, eq=False)
class Readout:
    """Position at which one answer is read, and the tokens of its outcomes.

    Attributes:
        name: Answer, such as "number" or "noun".
        start: Position before the answer's first token.
        position: Position before the token at which the answer first differs from its foils; in
            pairs, from the other prompt's answer.
        answer: Token of the answer there.
        outcomes: Tokens of the outcomes there, the answer's first, one tuple a prompt. Where a
            tokenizer splits numbers, foils that differ from the answer elsewhere are left out.
        end: Position after the answer's last token. The answer is correct as a whole when every
            token after `start` and before `end` is the most likely one, also those that the
            outcomes share.
        choices: For each prompt and foil where the foil first differs from the answer: the position
            before, the answer's token and the foil's.
    """

    name: str
    start: Int[Tensor, " prompt"]
    position: Int[Tensor, " prompt"]
    answer: Int[Tensor, " prompt"]
    outcomes: tuple[tuple[int, ...], ...]
    end: Int[Tensor, " prompt"]
    choices: tuple[tuple[tuple[int, int, int], ...], ...] = ()

    def first(self, count: int) -> "Readout":
        """Readout of the first prompts."""
        return Readout(
            self.name,
            self.start[:count],
            self.position[:count],
            self.answer[:count],
            self.outcomes[:count],
            self.end[:count],
            self.choices[:count],
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts followed by their answers, padded on the left.

    Attributes:
        questions: The tokenized questions.
        ids: Token ids; those of padding are arbitrary.
        mask: True for tokens, False for padding.
        roles: Roles that occur, "bos" and "rest" first, then in the order of the texts.
        role_of: Index into `roles` of every token, -1 for padding.
        tokens: Text of every token, without padding.
        readouts: One for each answer, in the order of the answers.
    """

    questions: tuple[Question, ...]
    ids: Int[Tensor, "prompt position"]
    mask: Bool[Tensor, "prompt position"]
    roles: tuple[str, ...]
    role_of: Int[Tensor, "prompt position"]
    tokens: tuple[tuple[str, ...], ...]
    readouts: tuple[Readout, ...]

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        answers = ", ".join(readout.name for readout in self.readouts) or "none"
        return (
            f"Batch({len(self)} prompts of {self.ids.shape[1]} positions, first "
            f"{self.questions[0].text[:80]!r}; roles {', '.join(self.roles)[:400]}; "
            f"answers {answers})"
        )

    def first(self, count: int) -> "Batch":
        """Batch of the first prompts, as wide and with the same roles."""
        return Batch(
            self.questions[:count],
            self.ids[:count],
            self.mask[:count],
            self.roles,
            self.role_of[:count],
            self.tokens[:count],
            tuple(readout.first(count) for readout in self.readouts),
        )

    def role_mask(self, role: str) -> Bool[Tensor, "prompt position"]:
        """Mask of the tokens of a role.

        Raises:
            SiteError: No prompt of the batch has the role.
        """
        if role not in self.roles:
            raise SiteError(f"Role {role!r} is not in this batch: it has {', '.join(self.roles)}")
        return self.role_of == self.roles.index(role)

    def readout(self, name: str) -> Readout:
        """Readout of one answer."""
        for readout in self.readouts:
            if readout.name == name:
                return readout
        known = [readout.name for readout in self.readouts]
        raise SiteError(f"Answer {name!r} is not read in this batch: it has {known}")

    @property
    def positions(self) -> Int[Tensor, "prompt answer"]:
        """Positions at which answers are read."""
        if not self.readouts:
            return torch.empty((len(self), 0), dtype=torch.int64)
        return torch.stack([readout.position for readout in self.readouts], dim=1)


@runtime_checkable
class TextModel(Protocol):
    """Model with a tokenizer and a context length."""

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """Its tokenizer."""

    @property
    def shape(self) -> Any:  # noqa: ANN401
        """Its sizes, `context` among them."""


def tokenize(
    source: PreTrainedTokenizerBase | TextModel,
    questions: str | Question | Sequence[str | Question],
    *,
    answers_from: Sequence[Question] | None = None,
    max_length: int | None = None,
    add_bos: bool | None = None,
) -> Batch:
    """Tokenize questions, each followed by its answers, into one batch.

    Args:
        source: A model, or any fast tokenizer.
        questions: Questions, or plain texts without roles and answers.
        answers_from: Questions whose answers follow in place of the prompts' own, so that a
            counterfactual is read after the answer of its clean prompt.
        max_length: Most tokens of a prompt; a model's context length by default.
        add_bos: Start each text with the BOS token, or not; by default with the special tokens
            that the tokenizer itself writes. A text that begins with them gets none.

    Raises:
        BatchError: There is no question, or a text is longer than `max_length`.
        TokenizerError: The tokenizer has no character offsets, or the model has no tokenizer.
        OutcomeError: An answer and a foil have the same tokens as far as the text goes.
    """
    tokenizer, max_length = tokenizer_of(source, max_length)
    if isinstance(questions, str | Question):
        questions = (questions,)
    if not _are_questions(questions):
        raise BatchError(
            f"{type(questions).__name__!r} found: give texts or questions, or a batch of them; of "
            "pairs, `.clean` or `.counterfactual`"
        )
    as_questions = tuple(Question.from_text(q) if isinstance(q, str) else q for q in questions)
    prompts = tokenize_questions(
        tokenizer, as_questions, answers_from=answers_from, add_bos=add_bos
    )
    return pad_prompts(
        as_questions, prompts, longest_length(prompts, max_length), pad_token_id(tokenizer)
    )


def tokenizer_of(source: object, max_length: int | None) -> tuple[Any, int | None]:
    """Tokenizer of a model, or itself, and the most tokens of a prompt.

    Raises:
        TokenizerError: It is neither.
    """
    if isinstance(source, PreTrainedTokenizerBase):
        return source, max_length
    if not isinstance(source, TextModel):
        raise TokenizerError(
            f"{source!r:.80} of type {type(source).__name__} has no tokenizer: give a model, such "
            "as load(name), or its tokenizer"
        )
    return source.tokenizer, max_length or source.shape.context


def require_one_text(text: object, *, question: bool = False) -> None:
    """Refuse what is no single text, nor, where one is allowed, a question.

    Raises:
        BatchError: It is another value, such as a list of texts.
    """
    if not isinstance(text, str | Question if question else str):
        raise BatchError(
            f"{type(text).__name__!r} found: give a single text{' or question' * question}, and "
            "call once for each of several"
        )


def _are_questions(value: object) -> bool:
    """Whether it is a sequence of texts and questions."""
    return isinstance(value, Sequence) and all(isinstance(one, str | Question) for one in value)


def longest_length(prompts: Sequence[TokenizedPrompt], max_length: int | None) -> int:
    """Length of the longest prompt, at most `max_length`."""
    longest = max(prompts, key=lambda row: len(row.ids))
    if max_length is not None and len(longest.ids) > max_length:
        raise BatchError(
            f"The prompt {''.join(longest.tokens)[:80]!r} has {len(longest.ids)} tokens with its "
            f"answers, and the model takes {max_length}: shorten it"
        )
    return len(longest.ids)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token to pad with; any token where the tokenizer has none, since padding is masked."""
    choices = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
    return next(token for token in choices if isinstance(token, int))


def left_pad(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "prompt position"], Bool[Tensor, "prompt position"]]:
    """Token ids padded on the left to one width, and their mask."""
    width, pad = max(len(row) for row in rows), pad_token_id(tokenizer)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths[:, None]


def pad_prompts(
    questions: tuple[Question, ...], prompts: Sequence[TokenizedPrompt], width: int, pad_id: int
) -> Batch:
    """Pad tokenized prompts on the left to one width."""
    order = dict.fromkeys((BOS, REST))
    for row in prompts:
        order |= dict.fromkeys(row.roles)
    present = {role for row in prompts for role in row.roles}
    roles = tuple(role for role in order if role in present)
    ids = torch.full((len(prompts), width), pad_id)
    role_of = torch.full((len(prompts), width), _PADDING)
    for index, row in enumerate(prompts):
        start = width - len(row.ids)
        ids[index, start:] = torch.tensor(row.ids)
        role_of[index, start:] = torch.tensor([roles.index(role) for role in row.roles])
    shift = torch.tensor([width - len(row.ids) for row in prompts])
    readouts = []
    for k, (name, _) in enumerate(questions[0].answers):
        readouts.append(
            Readout(
                name=name,
                start=torch.tensor([row.answer_starts[k] - 1 for row in prompts]) + shift,
                position=torch.tensor([row.outcome_starts[k] - 1 for row in prompts]) + shift,
                answer=torch.tensor([row.outcomes[k][0] for row in prompts]),
                outcomes=tuple(row.outcomes[k] for row in prompts),
                end=torch.tensor([row.answer_ends[k] for row in prompts]) + shift,
                choices=tuple(
                    tuple((at - 1 + width - len(row.ids), a, b) for at, a, b in row.choices[k])
                    for row in prompts
                ),
            )
        )
    return Batch(
        questions=questions,
        ids=ids,
        mask=role_of != _PADDING,
        roles=roles,
        role_of=role_of,
        tokens=tuple(row.tokens for row in prompts),
        readouts=tuple(readouts),
    )
