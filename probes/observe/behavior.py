"""Behavior: whole-answer accuracy and logit differences."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import BatchError
from probes.models.micro_batches import MicroBatches, fitting_prompts, run_micro_batches
from probes.models.model import Model, ModelSpec, load
from probes.observe.result import GateCriterion
from probes.prompts.question import Question
from probes.prompts.tokens.batch import Batch, Readout, tokenize
from probes.prompts.tokens.pair_batch import PairBatch

_READ_PER_ANSWER = 8  # Positions at which an answer is read, at the most in all but odd patterns.


@dataclass(frozen=True, eq=False)
class Behavior:
    """Answers of a model to each prompt.

    Attributes:
        model: Name of the model.
        answers: Names of the answers, in the order of the last axis.
        correct: Whether every token of the whole answer is the most likely of the vocabulary. A
            number that the next token would continue is another number, and wrong.
        logit_diff: The answer's logit minus the mean logit of its foils, at the readout.
        predicted: Most likely token at the readout.
        preferred: Whether the answer's logit is above that of each foil, where the two first
            differ. The tokens that they share are given.
    """

    model: str
    answers: tuple[str, ...]
    correct: Bool[Tensor, "prompt answer"]
    logit_diff: Float[Tensor, "prompt answer"]
    predicted: Int[Tensor, "prompt answer"]
    preferred: Bool[Tensor, "prompt answer"]

    def counted(self, criterion: GateCriterion) -> Bool[Tensor, "prompt answer"]:
        """Which answers are right as a gate counts them; "logit-diff" compares foils as well."""
        return self.preferred if criterion in ("choice", "logit-diff") else self.correct


@torch.no_grad()
def evaluate_behavior(
    model: ModelSpec, batch: Batch | Question | Sequence[Question], *, batch_size: int = 128
) -> Behavior:
    """Score the answers of a batch; a second answer is read after the words of the first.

    Args:
        model: A family name, a folder, a hub id or a loaded model, with a tokenizer.
        batch: Tokenized questions with their answers, or questions to tokenize.
        batch_size: Prompts of one pass, fewer where memory runs out; the result does not depend on
            it.

    Returns:
        Right or wrong, logit difference (logits) and prediction, "prompt answer" each.

    Raises:
        ModelError: A prompt is too long for the model, or a logit is not finite.
        BatchError: The prompts have no answers.
    """
    model = load(model)
    batch = batch if isinstance(batch, Batch) else tokenize(model, batch)
    require_answers(batch, "the behavior is measured on")

    def score(rows: Int[Tensor, " row"]) -> tuple[Tensor, ...]:
        ids, mask = (part[rows].to(model.device) for part in (batch.ids, batch.mask))
        at = _answer_positions(batch, rows)
        logits = model.logits(ids, mask, at.to(model.device)).cpu()
        most_likely = torch.full_like(batch.ids[rows], -1).scatter(1, at, logits.argmax(-1))
        whole = [_whole_answer_correct(most_likely, batch, r, rows) for r in batch.readouts]
        number = [_number_ends(model, most_likely, batch, r, rows) for r in batch.readouts]
        correct = torch.stack(whole, 1) & torch.stack(number, 1)
        preferred = torch.stack([_preferred(logits, at, r, rows) for r in batch.readouts], 1)
        differences = []
        for r in batch.readouts:
            column = (at == r.position[rows, None]).int().argmax(1)
            own = logits[torch.arange(len(rows)), column]
            differences.append(logit_diff(own, foil_tokens(r)[rows], r.answer[rows]))
        predicted = most_likely.gather(1, batch.positions[rows])
        return correct, torch.stack(differences, 1), predicted, preferred

    names, width = tuple(readout.name for readout in batch.readouts), batch.ids.shape[1]
    read = _READ_PER_ANSWER * len(names)
    size = fitting_prompts(model, batch_size, width=width, read=read)
    every = torch.arange(len(batch))
    batches = MicroBatches("reading answers", size, width)
    parts = run_micro_batches(model, every, score, batches)
    return Behavior(model.name, names, *(torch.cat(each) for each in zip(*parts, strict=True)))


def require_answers(batch: Batch, use: str) -> None:
    """Refuse a batch without answers, and say what they are for.

    Raises:
        BatchError: The prompts have no answers.
    """
    if not batch.readouts:
        raise BatchError(
            f"0 answers found, which {use}: give questions of a pattern, such as "
            "`pattern.match(text)`"
        )


def _whole_answer_correct(
    most_likely: Int[Tensor, "row position"],
    batch: Batch,
    readout: Readout,
    rows: Int[Tensor, " row"],
) -> Bool[Tensor, " row"]:
    """Whether each token of the answer, those that all outcomes share included, is predicted."""
    is_right = most_likely[:, :-1] == batch.ids[rows, 1:]
    return (is_right | ~_before_answer(batch, readout, rows)[:, :-1]).all(-1)


def _before_answer(
    batch: Batch, readout: Readout, rows: Int[Tensor, " row"]
) -> Bool[Tensor, "row position"]:
    """Positions whose next token is one of the answer."""
    position = torch.arange(1, batch.ids.shape[1] + 1)
    return (position > readout.start[rows, None]) & (position < readout.end[rows, None])


def _answer_positions(batch: Batch, rows: Int[Tensor, " row"]) -> Int[Tensor, "row answer"]:
    """Positions at which answers are read, each once; others fill up shorter rows."""
    is_read = torch.stack([_before_answer(batch, r, rows) for r in batch.readouts]).any(0)
    is_read = is_read.scatter(1, batch.positions[rows], True)
    for readout in batch.readouts:
        is_read = is_read.scatter(1, readout.end[rows, None] - 1, True)  # What ends the answer.
        for index, row in enumerate(rows.tolist()):
            is_read[index, [position for position, _, _ in readout.choices[row]]] = True
    order = is_read.int().argsort(dim=1, descending=True, stable=True)
    return order[:, : int(is_read.sum(1).max())]


def _number_ends(
    model: Model,
    most_likely: Int[Tensor, "row position"],
    batch: Batch,
    readout: Readout,
    rows: Int[Tensor, " row"],
) -> Bool[Tensor, " row"]:
    """Whether no digit is predicted behind a number; True for answers that are no numbers.

    A tokenizer that splits numbers writes "1" as the start of "12".
    """
    last = most_likely.gather(1, readout.end[rows, None] - 1)[:, 0].tolist()
    following = model.tokenizer.convert_ids_to_tokens(last) if model.tokenizer else [""] * len(last)
    answers = [batch.questions[row].answer(readout.name) for row in rows.tolist()]
    return torch.tensor(
        [
            not (answer[-1:].isdigit() and str(token)[:1].isdigit())
            for answer, token in zip(answers, following, strict=True)
        ]
    )


def _preferred(
    logits: Float[Tensor, "row answer vocab"],
    at: Int[Tensor, "row answer"],
    readout: Readout,
    rows: Int[Tensor, " row"],
) -> Bool[Tensor, " row"]:
    """Whether the answer beats each of its foils where they first differ."""
    preferred = torch.ones(len(rows), dtype=torch.bool)
    for index, row in enumerate(rows.tolist()):
        for position, answer, foil in readout.choices[row]:
            here = logits[index, int((at[index] == position).int().argmax())]
            preferred[index] &= bool(here[answer] > here[foil])
    return preferred


def foil_tokens(readout: Readout) -> Int[Tensor, "prompt outcome"]:
    """Tokens of the other outcomes of each prompt, padded with -1."""
    width = max((len(tokens) for tokens in readout.outcomes), default=1) - 1
    foils = torch.full((len(readout.outcomes), max(width, 1)), -1)
    for index, tokens in enumerate(readout.outcomes):
        foils[index, : len(tokens) - 1] = torch.tensor(tokens[1:])
    return foils


def logit_diff(
    logits: Float[Tensor, "row vocab"],
    foils: Int[Tensor, "row outcome"],
    answer: Int[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """The answer's logit minus the mean logit of its foils; the logit itself without foils.

    In single precision, whatever the format of the weights.
    """
    present = foils >= 0
    foil_logits = logits.gather(1, foils.clamp(min=0)).float().where(present, 0.0)
    mean = foil_logits.sum(1) / present.sum(1).clamp(min=1)
    return logits.gather(1, answer[:, None])[:, 0].float() - mean


def pair_foils(pairs: PairBatch) -> tuple[Int[Tensor, "prompt outcome"], ...]:
    """Foils of each answer: the counterfactual's answer where it differs, else all outcomes."""
    result = []
    for clean, other in zip(pairs.clean.readouts, pairs.counterfactual.readouts, strict=True):
        foils = foil_tokens(clean)
        differs = clean.answer != other.answer
        foils[differs] = -1
        foils[differs, 0] = other.answer[differs]
        result.append(foils)
    return tuple(result)
