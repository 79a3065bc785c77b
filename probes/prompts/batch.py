"""What a model sees: token ids, and for every token the one role that it plays."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probes.errors import BatchError, SiteError
from probes.prompts.question import Question
from probes.prompts.tokenization import BOS, REST, TokenizedPrompt, tokenize_questions

_PADDING = -1


@dataclass(frozen=True, eq=False)
class Readout:
    """Where one answer is read, and by which tokens its outcomes are told apart.

    Attributes:
        name: The answer it reads, such as "number" or "noun".
        position: The token whose logits are read: the one before the outcomes first differ.
        answer: The answer's token there.
        outcomes: The tokens of all outcomes there, the answer's first, one tuple a prompt.
        end: The position after the answer's last token; the whole answer is right when every
            token from `position` + 1 up to here is the likeliest.
    """

    name: str
    position: Int[Tensor, " prompt"]
    answer: Int[Tensor, " prompt"]
    outcomes: tuple[tuple[int, ...], ...]
    end: Int[Tensor, " prompt"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts with their answers, padded on the left, and the role of every token.

    Attributes:
        questions: What was encoded.
        ids: Token ids; padding is masked, so its id means nothing.
        mask: True where there is a token.
        roles: The roles that occur, "bos" and "rest" first, then in the order of the texts.
        role_of: Index into `roles` of every token, -1 for padding.
        tokens: The text of every token, without padding.
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

    def role_mask(self, role: str) -> Bool[Tensor, "prompt position"]:
        """Mark the tokens that play a role.

        Raises:
            SiteError: No prompt of the batch has the role.
        """
        if role not in self.roles:
            raise SiteError(f"Role {role!r} is not in this batch: it has {', '.join(self.roles)}")
        return self.role_of == self.roles.index(role)

    def readout(self, name: str) -> Readout:
        """Return the read-out of one answer."""
        for readout in self.readouts:
            if readout.name == name:
                return readout
        known = [readout.name for readout in self.readouts]
        raise SiteError(f"Answer {name!r} is not read in this batch: it has {known}")

    @property
    def positions(self) -> Int[Tensor, "prompt answer"]:
        """Where each answer is read."""
        return torch.stack([readout.position for readout in self.readouts], dim=1)


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    answers_from: Sequence[Question] | None = None,
    max_length: int | None = None,
) -> Batch:
    """Turn questions into a batch, each with its answers written after it.

    Args:
        tokenizer: Any fast tokenizer; its <bos> is put before each text if it has one.
        questions: What to ask.
        forced: Questions whose answers are written in place of the own ones, so that a
            counterfactual is read behind the words of its clean twin.
        limit: The most tokens that the model can take.

    Raises:
        BatchError: There is no question, or a text is longer than `limit`.
        TokenizerError: The tokenizer keeps no offsets.
        OutcomeError: Two outcomes of one answer cannot be told apart.
    """
    rows = tokenize_questions(tokenizer, questions, answers_from=answers_from)
    return pad_prompts(
        tuple(questions), rows, longest_length(rows, max_length), pad_token_id(tokenizer)
    )


def longest_length(prompts: Sequence[TokenizedPrompt], max_length: int | None) -> int:
    """Return the length of the longest row, which must not exceed the model's limit."""
    longest = max(prompts, key=lambda row: len(row.ids))
    if max_length is not None and len(longest.ids) > max_length:
        raise BatchError(
            f"The prompt {''.join(longest.tokens)[:80]!r} has {len(longest.ids)} tokens with its "
            f"answers, and the model takes {max_length}: shorten it"
        )
    return len(longest.ids)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return a token to pad with; it is masked, so any will do where there is none."""
    choices = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
    return next(token for token in choices if isinstance(token, int))


def pad_prompts(
    questions: tuple[Question, ...], prompts: Sequence[TokenizedPrompt], width: int, pad_id: int
) -> Batch:
    """Pad encoded rows on the left to one width."""
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
                position=torch.tensor([row.outcome_starts[k] - 1 for row in prompts]) + shift,
                answer=torch.tensor([row.outcomes[k][0] for row in prompts]),
                outcomes=tuple(row.outcomes[k] for row in prompts),
                end=torch.tensor([row.answer_ends[k] for row in prompts]) + shift,
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
