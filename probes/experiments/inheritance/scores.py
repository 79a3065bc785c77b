"""Scores of a student against a model: behavior, interchange, representations and weights."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from probes.comparison.representations.compare import (
    SimilaritySettings,
    representation_similarity,
)
from probes.comparison.representations.weights import weight_similarity
from probes.comparison.variables.donors import (
    AnyDonor,
    ModelDonor,
    Recipient,
    TokenizedTexts,
    find_recipient,
    tokenize_texts,
)
from probes.comparison.variables.held_out_folds import HeldOutFolds, sample_held_out_folds
from probes.comparison.variables.transfer import donor_hits
from probes.experiments.family.accuracy import all_axis_questions
from probes.files import TableRow
from probes.models.model import Model
from probes.observe.behavior import Behavior, evaluate_behavior
from probes.observe.divergence import kl_divergence, readout_log_probs
from probes.prompts.pattern import Pattern
from probes.prompts.tokens.batch import Batch, tokenize

_NUMBER = "number"
_FIELDS = {"thing": "object"}  # Patterns call the slot of the object "thing".


@dataclass(frozen=True, slots=True)
class InheritanceSettings:
    """Size of the measurements.

    Attributes:
        draws: Draws of prompts, held-out words, folds and sites; interchange accuracies are means.
        bases: Interchange pairs of a draw.
        prompts: Questions that the linear maps of a draw are fitted and tested on.
        per_cell: Questions of each number pair.
        states: Questions for the similarity of representations.
        seed: Seed of all samples.
    """

    draws: int = 3
    bases: int = 100
    prompts: int = 300
    per_cell: int = 1
    states: int = 64
    seed: int = 0


@dataclass(frozen=True, eq=False)
class SharedPrompts:
    """Prompts of all models, which have one tokenizer.

    Attributes:
        pattern: Pattern of the interchange and of the representations.
        settings: Size of the measurements.
        trained: Questions as in training.
        held_out: Questions about number pairs that training left out, half of them with new objects
            and verbs as well.
        folds: Prompts of the interchange, one for each draw.
        tokenized: Tokenized texts of the donors, one for each draw.
    """

    pattern: Pattern
    settings: InheritanceSettings
    trained: Batch
    held_out: Batch
    folds: tuple[HeldOutFolds, ...]
    tokenized: tuple[TokenizedTexts, ...]


@dataclass(frozen=True, eq=False)
class ModelRuns:
    """Runs of one model that are used against every reference.

    Attributes:
        model: Model.
        trained, held_out: Behavior on the shared prompts.
        log_probs: Log probabilities on the held-out questions (base 2).
        donors: Its states, one for each draw.
    """

    model: Model
    trained: Behavior
    held_out: Behavior
    log_probs: Float[torch.Tensor, "prompt answer vocab"]
    donors: tuple[AnyDonor, ...]


@dataclass(frozen=True, eq=False)
class InheritanceReference:
    """Model that others are held against.

    Attributes:
        runs: Its own runs.
        recipients: Its runs as the recipient of states, one for each draw.
    """

    runs: ModelRuns
    recipients: tuple[Recipient, ...]


def sample_shared_prompts(
    model: Model, pattern: Pattern, settings: InheritanceSettings
) -> SharedPrompts:
    """Sample the prompts for all models with the tokenizer of one."""
    axes = all_axis_questions(model.tokenizer, per_cell=settings.per_cell, seed=settings.seed)
    trained, held_out = (
        [question for part in axes if part.axis in names for question in part.batch.questions]
        for names in (("seen",), ("cells", "jointly"))
    )
    folds = tuple(
        sample_held_out_folds(
            pattern, tokenizers=(model.tokenizer,), bases=settings.bases, prompts=settings.prompts,
            seed=settings.seed + draw,
        )
        for draw in range(settings.draws)
    )  # fmt: skip
    return SharedPrompts(
        pattern=pattern,
        settings=settings,
        trained=tokenize(model.tokenizer, trained),
        held_out=tokenize(model.tokenizer, held_out),
        folds=folds,
        tokenized=tuple(tokenize_texts(model, one) for one in folds),
    )


def run_model(model: Model, prompts: SharedPrompts) -> ModelRuns:
    """Run a model on the shared prompts."""
    return ModelRuns(
        model,
        evaluate_behavior(model, prompts.trained),
        evaluate_behavior(model, prompts.held_out),
        readout_log_probs(model, prompts.held_out),
        tuple(
            ModelDonor(model, folds, tokenized=tokenized)
            for folds, tokenized in zip(prompts.folds, prompts.tokenized, strict=True)
        ),
    )


def run_reference(model: Model, prompts: SharedPrompts) -> InheritanceReference:
    """Run a model as a reference: its sites are found anew in each draw."""
    recipients = tuple(
        find_recipient(model, folds, seed=prompts.settings.seed + draw)
        for draw, folds in enumerate(prompts.folds)
    )
    return InheritanceReference(run_model(model, prompts), recipients)


def inheritance_scores(
    reference: InheritanceReference, student: ModelRuns, prompts: SharedPrompts
) -> TableRow:
    """All scores of a student against a reference; see `SCORES` in `result`."""
    return {
        **_behavior_scores(reference.runs, student),
        **_interchange_scores(reference, student),
        **_similarity_scores(reference.runs.model, student.model, prompts),
    }


def error_consistency(first: Bool[np.ndarray, " item"], second: Bool[np.ndarray, " item"]) -> float:
    """Cohen's kappa of the correct items of two models: agreement beyond their accuracies.

    1 if they err on the same items, 0 if their errors are independent (Geirhos et al. 2020, arXiv
    2006.16736); NaN if both are always right or always wrong.
    """
    p, q = first.mean(), second.mean()
    expected = p * q + (1 - p) * (1 - q)
    return (
        float("nan")
        if expected == 1
        else float(((first == second).mean() - expected) / (1 - expected))
    )


def _behavior_scores(reference: ModelRuns, student: ModelRuns) -> TableRow:
    answers = student.held_out.answers
    at = answers.index(_NUMBER)
    correct = [runs.held_out.correct[:, at].numpy() for runs in (reference, student)]
    margins = [runs.held_out.logit_diff[:, at].double().numpy() for runs in (reference, student)]
    trained = student.trained.correct.double().mean(0).tolist()
    kl = kl_divergence(reference.log_probs, student.log_probs).double().mean(0).tolist()
    return {
        **{f"accuracy_{name}": value for name, value in zip(answers, trained, strict=True)},
        "accuracy_held_out": float(correct[1].mean()),
        "error_consistency": error_consistency(*correct),
        "margin_correlation": float(np.corrcoef([rankdata(margin) for margin in margins])[0, 1]),
        **{f"kl_{name}": value for name, value in zip(answers, kl, strict=True)},
    }


def _interchange_scores(reference: InheritanceReference, student: ModelRuns) -> TableRow:
    draws = []
    for recipient, donor in zip(reference.recipients, student.donors, strict=True):
        (hits,) = donor_hits(recipient, [donor]).values()
        draws.append({_FIELDS.get(name, name): float(hit.mean()) for name, hit in hits.items()})
    means = {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}
    return {"interchange": float(np.mean([*means.values()])), **means}


def _similarity_scores(reference: Model, student: Model, prompts: SharedPrompts) -> TableRow:
    settings = SimilaritySettings(
        prompts=prompts.settings.states, permutations=1, seed=prompts.settings.seed
    )
    states = representation_similarity(reference, student, prompts.pattern, settings=settings)
    weights = weight_similarity(reference, student, permutations=1, seed=prompts.settings.seed)
    row: TableRow = {"cka_embedding": float(states["cka"].value[-1, 0, 0])}
    # Layer 0 is the embedding, which has a column of its own.
    for name in ("cka", "cka given token", "rsa"):
        row[name.replace(" ", "_")] = _best_match(states[name].value[-1, 1:, 1:])
    return row | {"weights_ov": _best_match(weights.ov), "weights_qk": _best_match(weights.qk)}


def _best_match(similarity: Float[np.ndarray, "of_reference of_student"]) -> float:
    """Mean over the student's layers or heads of the best match among the reference's."""
    return float(np.nanmax(similarity, axis=0).mean())
