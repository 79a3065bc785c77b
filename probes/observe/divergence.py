"""What a model takes to store, and how far its answers are from another model's."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.models.model import Model
from probes.observe.behavior import Behavior, evaluate_behavior
from probes.observe.gate import Gate, gate_behavior, heuristic_hits
from probes.prompts.batch import Batch, tokenize
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, bootstrap_mean, proportion

_CHUNK = 100


@dataclass(frozen=True, eq=False)
class ReferenceAnswers:
    """Questions that a model and its relatives answer, and what the model says to them.

    Attributes:
        batch: The questions, with their answers written after them.
        found: What the parent answers.
        logs: The parent's log probabilities of every token where an answer is read (base 2).
    """

    parent: Model
    batch: Batch
    behavior: Behavior
    log_probs: Float[Tensor, "prompt answer vocab"]


@dataclass(frozen=True, eq=False)
class RelativeAnswers:
    """What a relative answers to the questions of a sitting.

    Attributes:
        found: Its answers.
        apart: KL(parent || relative) where an answer is read (bits).
        texts: The same of every token of the text with its answers, as a mean (bits).
    """

    behavior: Behavior
    readout_kl: Float[np.ndarray, "prompt answer"]
    text_kl: Float[np.ndarray, " prompt"]


@dataclass(frozen=True, slots=True)
class BehavioralDistance:
    """How far a relative's behavior is from its parent's.

    Attributes:
        kl: KL(parent || relative) in bits per read-out; 0 is no difference, and there is no end.
        text_kl: The same in bits per token of the texts with their answers.
        accuracy: For each answer the share of questions that it is right on.
        right: The share of questions with all answers right.
        agreement: The share of questions at whose read-outs the likeliest tokens are the parent's.
        gates: Whether it has the behavior at all, answer by answer.
    """

    readout_kl: Estimate
    text_kl: Estimate
    accuracy: dict[str, Estimate]
    all_correct: Estimate
    agreement: Estimate
    gates: tuple[Gate, ...]

    @property
    def behavior_absent(self) -> bool:
        """Whether some gate is closed."""
        return any(gate.state == "closed" for gate in self.gates)


def answer_as_reference(
    parent: Model, pattern: Pattern, *, count: int, seed: int
) -> ReferenceAnswers:
    """Draw questions, and put them to the parent.

    Raises:
        PatternError: The pattern does not hold so many questions that the tokenizer can read.
    """
    questions = pattern.sample_questions(count, seed=seed, keep=tokenizable_by(parent.tokenizer))
    batch = tokenize(parent.tokenizer, questions, max_length=parent.shape.context)
    return ReferenceAnswers(
        parent, batch, evaluate_behavior(parent, batch), readout_log_probs(parent, batch)
    )


@torch.no_grad()
def readout_log_probs(model: Model, batch: Batch) -> Float[Tensor, "prompt answer vocab"]:
    """Return the log probabilities of all tokens where answers are read (base 2)."""
    found = []
    for rows in torch.arange(len(batch)).split(_CHUNK):
        logs = _log_probs(model, batch, rows)
        at = batch.positions[rows].to(logs.device)
        found.append(logs.take_along_dim(at[..., None], dim=1).cpu())
    return torch.cat(found)


def kl_divergence(
    first: Float[Tensor, "*_ vocab"], second: Float[Tensor, "*_ vocab"]
) -> Float[Tensor, "*_"]:
    """Return KL(first || second) of log probabilities to the base 2 (bits)."""
    return (first.exp2() * (first - second)).sum(-1).clamp(min=0)  # Rounding may go below.


def answer_as_relative(reference: ReferenceAnswers, model: Model) -> RelativeAnswers:
    """Put the questions of a sitting to a relative."""
    apart = kl_divergence(reference.log_probs, readout_log_probs(model, reference.batch))
    return RelativeAnswers(
        behavior=evaluate_behavior(model, reference.batch),
        readout_kl=apart.double().numpy(),
        text_kl=_text_kl(reference, model),
    )


def behavioral_distance(
    reference: ReferenceAnswers, answers: RelativeAnswers, *, seed: int
) -> BehavioralDistance:
    """Judge a relative's answers beside its parent's."""
    right = answers.behavior.correct.numpy()
    same = (answers.behavior.predicted == reference.behavior.predicted).numpy()
    gates = gate_behavior(answers.behavior, reference.batch.questions, seed=seed)
    return BehavioralDistance(
        readout_kl=bootstrap_mean(answers.readout_kl.mean(-1), seed=seed),
        text_kl=bootstrap_mean(answers.text_kl, seed=seed),
        accuracy={name: proportion(right[:, k]) for k, name in enumerate(answers.behavior.answers)},
        all_correct=proportion(right.min(-1)),
        agreement=proportion(same.min(-1)),
        gates=gates,
    )


def best_heuristic_accuracy(reference: ReferenceAnswers) -> float:
    """Return what no simple heuristic exceeds in having all answers right, 0 to 1."""
    questions = reference.batch.questions
    each = [heuristic_hits(questions, answer) for answer in reference.behavior.answers]
    return min(max(float(hits.mean()) for hits in found.values()) for found in each)


@torch.no_grad()
def _text_kl(reference: ReferenceAnswers, model: Model) -> Float[np.ndarray, " prompt"]:
    found, batch = [], reference.batch
    # The parent runs again: all it says of all tokens would fill the memory of a real vocabulary.
    for rows in torch.arange(len(batch)).split(_CHUNK):
        apart = kl_divergence(
            _log_probs(reference.parent, batch, rows).cpu(), _log_probs(model, batch, rows).cpu()
        )
        followed = _has_next_token(batch.mask[rows])
        found.append((apart * followed).sum(1) / followed.sum(1))
    return torch.cat(found).double().numpy()


def _has_next_token(mask: Bool[Tensor, "row position"]) -> Bool[Tensor, "row position"]:
    """Mark the tokens that another follows; padding stands on the left."""
    return mask & (torch.arange(mask.shape[1]) < mask.shape[1] - 1)


def _log_probs(
    model: Model, batch: Batch, rows: Int[Tensor, " row"]
) -> Float[Tensor, "row position vocab"]:
    ids, mask = batch.ids[rows].to(model.device), batch.mask[rows].to(model.device)
    return model.logits(ids, mask).float().log_softmax(-1) / math.log(2)
