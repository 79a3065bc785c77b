"""What a model takes to store, and how far its answers are from another model's."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.models.model import Model
from probes.observe.behaviour import Behaviour, behaviour
from probes.observe.gate import Gate, heuristics, judge
from probes.prompts.batch import Batch, encode
from probes.prompts.pair_batch import fits
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, mean, share

_CHUNK = 100


@dataclass(frozen=True, eq=False)
class Sitting:
    """Questions that a model and its relatives answer, and what the model says to them.

    Attributes:
        batch: The questions, with their answers written after them.
        found: What the parent answers.
        logs: The parent's log probabilities of every token where an answer is read (base 2).
    """

    parent: Model
    batch: Batch
    found: Behaviour
    logs: Float[Tensor, "prompt answer vocab"]


@dataclass(frozen=True, eq=False)
class Answered:
    """What a relative answers to the questions of a sitting.

    Attributes:
        found: Its answers.
        apart: KL(parent || relative) where an answer is read (bits).
        texts: The same of every token of the text with its answers, as a mean (bits).
    """

    found: Behaviour
    apart: Float[np.ndarray, "prompt answer"]
    texts: Float[np.ndarray, " prompt"]


@dataclass(frozen=True, slots=True)
class Behaved:
    """How far a relative's behaviour is from its parent's.

    Attributes:
        kl: KL(parent || relative) in bits per read-out; 0 is no difference, and there is no end.
        text_kl: The same in bits per token of the texts with their answers.
        accuracy: For each answer the share of questions that it is right on.
        right: The share of questions with all answers right.
        agreement: The share of questions at whose read-outs the likeliest tokens are the parent's.
        gates: Whether it has the behaviour at all, answer by answer.
    """

    kl: Estimate
    text_kl: Estimate
    accuracy: dict[str, Estimate]
    right: Estimate
    agreement: Estimate
    gates: tuple[Gate, ...]

    @property
    def absent(self) -> bool:
        """Whether some gate is closed."""
        return any(gate.state == "closed" for gate in self.gates)


def sit(parent: Model, pattern: Pattern, *, count: int, seed: int) -> Sitting:
    """Draw questions, and put them to the parent.

    Raises:
        PatternError: The pattern does not hold so many questions that the tokenizer can read.
    """
    questions = pattern.questions(count, seed=seed, keep=fits(parent.tokenizer))
    batch = encode(parent.tokenizer, questions, limit=parent.shape.context)
    return Sitting(parent, batch, behaviour(parent, batch), readouts(parent, batch))


@torch.no_grad()
def readouts(model: Model, batch: Batch) -> Float[Tensor, "prompt answer vocab"]:
    """Return the log probabilities of all tokens where answers are read (base 2)."""
    found = []
    for rows in torch.arange(len(batch)).split(_CHUNK):
        logs = _logs(model, batch, rows)
        at = batch.positions[rows].to(logs.device)
        found.append(logs.take_along_dim(at[..., None], dim=1).cpu())
    return torch.cat(found)


def kl(first: Float[Tensor, "*_ vocab"], second: Float[Tensor, "*_ vocab"]) -> Float[Tensor, "*_"]:
    """Return KL(first || second) of log probabilities to the base 2 (bits)."""
    return (first.exp2() * (first - second)).sum(-1).clamp(min=0)  # Rounding may go below.


def put(sitting: Sitting, model: Model) -> Answered:
    """Put the questions of a sitting to a relative."""
    apart = kl(sitting.logs, readouts(model, sitting.batch))
    return Answered(
        found=behaviour(model, sitting.batch),
        apart=apart.double().numpy(),
        texts=_over_texts(sitting, model),
    )


def behaved(sitting: Sitting, answered: Answered, *, seed: int) -> Behaved:
    """Judge a relative's answers beside its parent's."""
    right = answered.found.right.numpy()
    same = (answered.found.said == sitting.found.said).numpy()
    gates = judge(answered.found, sitting.batch.questions, seed=seed)
    return Behaved(
        kl=mean(answered.apart.mean(-1), seed=seed),
        text_kl=mean(answered.texts, seed=seed),
        accuracy={name: share(right[:, k]) for k, name in enumerate(answered.found.answers)},
        right=share(right.min(-1)),
        agreement=share(same.min(-1)),
        gates=gates,
    )


def guessed(sitting: Sitting) -> float:
    """Return what no simple heuristic exceeds in having all answers right, 0 to 1."""
    questions = sitting.batch.questions
    each = [heuristics(questions, answer) for answer in sitting.found.answers]
    return min(max(float(hits.mean()) for hits in found.values()) for found in each)


@torch.no_grad()
def _over_texts(sitting: Sitting, model: Model) -> Float[np.ndarray, " prompt"]:
    found, batch = [], sitting.batch
    # The parent runs again: all it says of all tokens would fill the memory of a real vocabulary.
    for rows in torch.arange(len(batch)).split(_CHUNK):
        apart = kl(_logs(sitting.parent, batch, rows).cpu(), _logs(model, batch, rows).cpu())
        followed = _followed(batch.mask[rows])
        found.append((apart * followed).sum(1) / followed.sum(1))
    return torch.cat(found).double().numpy()


def _followed(mask: Bool[Tensor, "row position"]) -> Bool[Tensor, "row position"]:
    """Mark the tokens that another follows; padding stands on the left."""
    return mask & (torch.arange(mask.shape[1]) < mask.shape[1] - 1)


def _logs(
    model: Model, batch: Batch, rows: Int[Tensor, " row"]
) -> Float[Tensor, "row position vocab"]:
    ids, mask = batch.ids[rows].to(model.device), batch.mask[rows].to(model.device)
    return model.logits(ids, mask).float().log_softmax(-1) / math.log(2)
