"""What a run is scored by: whole answers, and how far an answer leads its rivals."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.models.model import Model
from probes.prompts.batch import Batch, Readout
from probes.prompts.pair_batch import PairBatch


@dataclass(frozen=True, eq=False)
class Behavior:
    """What a model answers, prompt by prompt.

    Attributes:
        model: Name of the model.
        answers: The read-outs, in the order of the last axis.
        right: Whether every token of the whole answer is the likeliest of the vocabulary.
        lead: The answer's logit less the mean of the other outcomes', at the read-out.
        said: The likeliest token at the read-out.
    """

    model: str
    answers: tuple[str, ...]
    correct: Bool[Tensor, "prompt answer"]
    logit_diff: Float[Tensor, "prompt answer"]
    predicted: Int[Tensor, "prompt answer"]


@torch.no_grad()
def evaluate_behavior(model: Model, batch: Batch, *, batch_size: int = 128) -> Behavior:
    """Let a model answer a batch, the second answer read behind the words of the first."""
    rights, leads, said = [], [], []
    for rows in torch.arange(len(batch)).split(batch_size):
        ids = batch.ids[rows].to(model.device)
        logits = model.logits(ids, batch.mask[rows].to(model.device)).cpu()
        likeliest = logits.argmax(-1)
        at = torch.arange(len(rows))
        rights.append(
            torch.stack(
                [_whole_answer_correct(likeliest, batch, r, rows) for r in batch.readouts], 1
            )
        )
        found = [
            logit_diff(logits[at, r.position[rows]], foil_tokens(r)[rows], r.answer[rows])
            for r in batch.readouts
        ]
        leads.append(torch.stack(found, 1))
        said.append(likeliest.gather(1, batch.positions[rows]))
    names = tuple(readout.name for readout in batch.readouts)
    return Behavior(model.name, names, torch.cat(rights), torch.cat(leads), torch.cat(said))


def _whole_answer_correct(
    likeliest: Int[Tensor, "row position"],
    batch: Batch,
    readout: Readout,
    rows: Int[Tensor, " row"],
) -> Bool[Tensor, " row"]:
    """Say whether each token from the read-out to the answer's end was foretold."""
    position = torch.arange(1, batch.ids.shape[1])
    start, end = readout.start[rows, None], readout.end[rows, None]
    inside = (position > start) & (position < end)
    return ((likeliest[:, :-1] == batch.ids[rows, 1:]) | ~inside).all(-1)


def foil_tokens(readout: Readout) -> Int[Tensor, "prompt outcome"]:
    """Return each prompt's other outcomes, padded with -1."""
    width = max((len(tokens) for tokens in readout.outcomes), default=1) - 1
    found = torch.full((len(readout.outcomes), max(width, 1)), -1)
    for index, tokens in enumerate(readout.outcomes):
        found[index, : len(tokens) - 1] = torch.tensor(tokens[1:])
    return found


def logit_diff(
    logits: Float[Tensor, "row vocab"],
    foils: Int[Tensor, "row outcome"],
    answer: Int[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """Return the answer's logit less the mean of its rivals'; less nothing where it has none."""
    there = foils >= 0
    found = logits.gather(1, foils.clamp(min=0)).where(there, 0.0)
    mean = found.sum(1) / there.sum(1).clamp(min=1)
    return logits.gather(1, answer[:, None])[:, 0] - mean


def pair_foils(pairs: PairBatch) -> tuple[Int[Tensor, "prompt outcome"], ...]:
    """Return what each answer is held against: the counterfactual's, or else all its rivals."""
    found = []
    for clean, other in zip(pairs.clean.readouts, pairs.counterfactual.readouts, strict=True):
        foils = foil_tokens(clean)
        moved = clean.answer != other.answer
        foils[moved] = -1
        foils[moved, 0] = other.answer[moved]
        found.append(foils)
    return tuple(found)
