"""Behavioral distance: KL divergence, agreement and accuracy against a reference model."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.models.micro_batches import MicroBatches, fitting_prompts, run_micro_batches
from probes.models.model import Model
from probes.observe.behavior import Behavior, evaluate_behavior
from probes.observe.gate import gate_behavior, heuristic_hits
from probes.observe.result import BehavioralDistance, GateCriterion
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.batch import Batch, tokenize
from probes.prompts.tokens.pair_batch import sample_readable_questions
from probes.stats.intervals import bootstrap_mean, proportion

_PROMPTS_PER_RUN = 100


@dataclass(frozen=True, eq=False)
class ReferenceAnswers:
    """Questions with the answers of the reference model (the parent).

    Attributes:
        parent: The reference model.
        batch: The questions, followed by their answers.
        behavior: Behavior of the parent.
        log_probs: Its log probabilities at the readouts (base 2).
    """

    parent: Model
    batch: Batch
    behavior: Behavior
    log_probs: Float[Tensor, "prompt answer vocab"]


@dataclass(frozen=True, eq=False)
class RelativeAnswers:
    """Answers of a relative to the questions of a reference.

    Attributes:
        behavior: Behavior of the relative.
        readout_kl: KL(parent || relative) at the readouts (bits).
        text_kl: The same at every token of a text with its answers, as a mean (bits).
    """

    behavior: Behavior
    readout_kl: Float[np.ndarray, "prompt answer"]
    text_kl: Float[np.ndarray, " prompt"]


def answer_as_reference(
    parent: Model, pattern: Pattern, *, count: int, seed: int
) -> ReferenceAnswers:
    """Sample questions and evaluate the parent on them.

    Raises:
        PatternError: The pattern has fewer questions that the tokenizer supports.
    """
    questions = sample_readable_questions(pattern, count, tokenizers=(parent.tokenizer,), seed=seed)
    batch = tokenize(parent.tokenizer, questions, max_length=parent.shape.context)
    return ReferenceAnswers(
        parent, batch, evaluate_behavior(parent, batch), readout_log_probs(parent, batch)
    )


@torch.no_grad()
def readout_log_probs(model: Model, batch: Batch) -> Float[Tensor, "prompt answer vocab"]:
    """Log probabilities of all tokens at the readouts (base 2)."""

    def read(rows: Int[Tensor, " row"]) -> Tensor:
        log_probs = _log_probs(model, batch, rows)
        positions = batch.positions[rows].to(log_probs.device)
        return log_probs.take_along_dim(positions[..., None], dim=1).cpu()

    return torch.cat(_in_batches(model, batch, read))


def kl_divergence(
    first: Float[Tensor, "*_ vocab"], second: Float[Tensor, "*_ vocab"]
) -> Float[Tensor, "*_"]:
    """KL(first || second) in bits, from log probabilities to base 2."""
    return (first.exp2() * (first - second)).sum(-1).clamp(min=0)  # Rounding can give less than 0.


def answer_as_relative(reference: ReferenceAnswers, model: Model) -> RelativeAnswers:
    """Evaluate a relative on the questions of a reference."""
    kl = kl_divergence(reference.log_probs, readout_log_probs(model, reference.batch))
    return RelativeAnswers(
        behavior=evaluate_behavior(model, reference.batch),
        readout_kl=kl.double().numpy(),
        text_kl=_text_kl(reference, model),
    )


def behavioral_distance(
    reference: ReferenceAnswers,
    answers: RelativeAnswers,
    *,
    seed: int,
    criterion: GateCriterion = "accuracy",
) -> BehavioralDistance:
    """Distance of a relative's answers from the reference's, with 95 % intervals."""
    correct = answers.behavior.correct.numpy()
    agrees = (answers.behavior.predicted == reference.behavior.predicted).numpy()
    names = answers.behavior.answers
    return BehavioralDistance(
        readout_kl=bootstrap_mean(answers.readout_kl.mean(-1), seed=seed, bounds=(0, np.inf)),
        text_kl=bootstrap_mean(answers.text_kl, seed=seed, bounds=(0, np.inf)),
        accuracy={name: proportion(correct[:, k]) for k, name in enumerate(names)},
        all_correct=proportion(correct.min(-1)),
        agreement=proportion(agrees.min(-1)),
        gates=gate_behavior(
            answers.behavior, reference.batch.questions, seed=seed, criterion=criterion
        ),
    )


def best_heuristic_accuracy(reference: ReferenceAnswers) -> float:
    """Upper bound of a simple heuristic's accuracy on all answers together, 0 to 1."""
    questions = reference.batch.questions
    hits = [heuristic_hits(questions, answer) for answer in reference.behavior.answers]
    return min(max(float(each.mean()) for each in by_name.values()) for by_name in hits)


@torch.no_grad()
def _text_kl(reference: ReferenceAnswers, model: Model) -> Float[np.ndarray, " prompt"]:
    batch = reference.batch

    # The parent runs again: its log probabilities at all tokens would not fit in memory.
    def compare(rows: Int[Tensor, " row"]) -> Tensor:
        kl = kl_divergence(
            _log_probs(reference.parent, batch, rows).cpu(), _log_probs(model, batch, rows).cpu()
        )
        has_next = _has_next_token(batch.mask[rows])
        return (kl * has_next).sum(1) / has_next.sum(1)

    return torch.cat(_in_batches(model, batch, compare)).double().numpy()


def _in_batches(
    model: Model, batch: Batch, run: Callable[[Int[Tensor, " row"]], Tensor]
) -> list[Tensor]:
    """Results of a function that needs the logits at all tokens, in batches that fit in memory."""
    width, every = batch.ids.shape[1], torch.arange(len(batch))
    size = fitting_prompts(model, _PROMPTS_PER_RUN, width=width, read=2 * width)
    return [*run_micro_batches(model, every, run, MicroBatches("reading texts", size, width))]


def _has_next_token(mask: Bool[Tensor, "row position"]) -> Bool[Tensor, "row position"]:
    """Tokens that another follows; padding is on the left."""
    return mask & (torch.arange(mask.shape[1]) < mask.shape[1] - 1)


def _log_probs(
    model: Model, batch: Batch, rows: Int[Tensor, " row"]
) -> Float[Tensor, "row position vocab"]:
    ids, mask = batch.ids[rows].to(model.device), batch.mask[rows].to(model.device)
    return model.logits(ids, mask).float().log_softmax(-1) / math.log(2)
