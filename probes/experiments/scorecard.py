"""Scorecards: one row of numbers for a model, relative to a parent.

A row is cheap enough for the twenty students of a study: accuracy on each held-out axis,
divergence from the parent, interchange accuracy of its states in the parent, the site of the
operation, and the faithfulness of the parent's circuit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import log, nan

import numpy as np
import torch
from jaxtyping import Float

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.faithfulness import faithfulness
from probes.circuits.pruning import prune_circuit
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task, TaskSettings, sample_tasks
from probes.comparison.variables.donors import (
    ModelDonor,
    Recipient,
    find_recipient,
    find_variable_sites,
)
from probes.comparison.variables.held_out_folds import (
    HeldOutFolds,
    distinct_tokenizers,
    sample_held_out_folds,
)
from probes.comparison.variables.transfer import donor_hits
from probes.errors import ModelError
from probes.experiments.family.accuracy import (
    BOTH_PATTERNS,
    AxisQuestions,
    all_axis_questions,
    evaluate_axes,
)
from probes.files import TableRow
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.site_search import takes_only
from probes.models.model import Model, ModelSpec, load
from probes.models.site import joined_roles
from probes.prompts.catalog import pattern as load_pattern
from probes.prompts.interchange_pairs import OPERATION
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import tokenizable_by
from probes.stats.intervals import (
    BOOTSTRAP_DRAWS,
    Estimate,
    bootstrap_mean,
    bootstrap_weights,
    percentile_interval,
    proportion,
)

# Patterns call the slot of the object "thing".
_FIELDS = {"thing": "object"}
_KL_QUESTIONS = 128


@dataclass(frozen=True, slots=True)
class ScorecardSettings:
    """Size of a scorecard.

    Attributes:
        bases: Interchange pairs, each way.
        prompts: Questions that the linear maps are fitted and tested on.
        per_cell: Questions of each number pair, for accuracy.
        seed: Seed of all samples.
    """

    bases: int = 200
    prompts: int = 400
    per_cell: int = 2
    seed: int = 0


@dataclass(frozen=True, eq=False)
class ScorecardReference:
    """Parent with all prompts and runs that its relatives are measured on.

    Attributes:
        parent: Model.
        folds: Prompts of the interchange, in folds without a shared word.
        recipient: Runs of the parent as the recipient of states.
        questions: Questions for the divergence.
        axis_questions: Questions of every held-out axis.
        circuit: The parent's circuit, for relatives of its shape.
        held_out_task: Prompts that the circuit is tested on.
        seed: Seed of all samples.
    """

    parent: Model
    folds: HeldOutFolds
    recipient: Recipient
    questions: tuple[Question, ...]
    axis_questions: tuple[AxisQuestions, ...]
    circuit: Circuit
    held_out_task: Task
    seed: int

    @cached_property
    def log_probs(self) -> Float[torch.Tensor, "prompt position vocab"]:
        """Log-probabilities of the parent at every position of the questions."""
        return _log_probs(self.parent, self.questions)


def prepare_scorecard_reference(
    parent: ModelSpec,
    pattern: str | Pattern = "take-away",
    settings: ScorecardSettings | None = None,
) -> ScorecardReference:
    """Run a parent once on all prompts that its relatives are measured on.

    Args:
        parent: Model.
        pattern: Pattern of the interchange and of the circuit.
        settings: Size of a scorecard.
    """
    settings = settings or ScorecardSettings()
    model, pattern, seed = load(parent), load_pattern(pattern), settings.seed
    folds = sample_held_out_folds(
        pattern,
        tokenizers=distinct_tokenizers([model.tokenizer]),
        bases=settings.bases,
        prompts=settings.prompts,
        seed=seed,
    )
    task, held_out_task = sample_tasks(model, pattern, TaskSettings(answer="number", seed=seed))
    scores = edge_attribution(model, task, method="eap-ig")
    tokenizable = tokenizable_by(model.tokenizer)
    return ScorecardReference(
        parent=model,
        folds=folds,
        recipient=find_recipient(model, folds, seed=seed),
        questions=tuple(pattern.sample_questions(_KL_QUESTIONS, seed=seed + 3, keep=tokenizable)),
        axis_questions=tuple(
            all_axis_questions(model.tokenizer, per_cell=settings.per_cell, seed=seed)
        ),
        circuit=prune_circuit(run_references(model, task), scores, 0.9),
        held_out_task=held_out_task,
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class Scorecard:
    """One model relative to a parent.

    Attributes:
        model: Name.
        seen, cells, nouns, combinations, jointly: Accuracy of the number on questions as in
            training, and on each axis held out of it; both operations together.
        divergence: KL(parent || model) in bits, mean over the tokens of questions with answers.
        operation, x, y, object: Interchange accuracy in the parent: fraction of its outputs that
            take the value of the model's state, mapped linearly; the map saw none of the words.
        mean_interchange_accuracy: Mean of these four.
        site: Site of the operation in the model itself.
        own_interchange_accuracy: Interchange accuracy there, with words that the search never saw.
        circuit_faithfulness: Faithfulness of the parent's circuit in the model; NaN for another
            shape.
    """

    model: str
    seen: Estimate
    cells: Estimate
    nouns: Estimate
    combinations: Estimate
    jointly: Estimate
    divergence: Estimate
    operation: Estimate
    x: Estimate
    y: Estimate
    object: Estimate
    mean_interchange_accuracy: Estimate
    site: str
    own_interchange_accuracy: Estimate
    circuit_faithfulness: Estimate

    def row(self) -> TableRow:
        """Plain numbers; each estimate has three columns."""
        row: TableRow = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Estimate):
                row |= {
                    item.name: value.value,
                    f"{item.name}_low": value.low,
                    f"{item.name}_high": value.high,
                }
            else:
                row[item.name] = value
        return row


def scorecard(reference: ScorecardReference, relative: ModelSpec) -> Scorecard:
    """Scorecard of one relative.

    Args:
        reference: The parent, from `prepare_scorecard_reference`.
        relative: Model with the parent's tokenizer.

    Raises:
        ModelError: The tokenizers differ.
    """
    model = load(relative)
    if len(distinct_tokenizers([reference.parent.tokenizer, model.tokenizer])) > 1:
        raise ModelError(
            f"{model.name} and {reference.parent.name} have different tokenizers, so their tokens "
            "cannot be compared: use `compare`"
        )
    (hits,) = donor_hits(reference.recipient, [ModelDonor(model, reference.folds)]).values()
    site, own = _own_interchange(reference, model)
    return Scorecard(
        model=model.name,
        divergence=_divergence(reference, model),
        **_accuracy(reference, model),
        **{_FIELDS.get(name, name): proportion(values) for name, values in hits.items()},
        mean_interchange_accuracy=_mean_interchange_accuracy(hits, seed=reference.seed),
        site=site,
        own_interchange_accuracy=own,
        circuit_faithfulness=_circuit_faithfulness(reference, model),
    )


def _accuracy(reference: ScorecardReference, model: Model) -> dict[str, Estimate]:
    accuracy = {}
    for score in evaluate_axes(model, reference.axis_questions, seed=reference.seed):
        # Nouns are held out of one pattern only.
        both = score.pattern == BOTH_PATTERNS or score.axis == "nouns"
        if score.answer == "number" and both:
            accuracy[score.axis] = score.accuracy
    return accuracy


def _log_probs(
    model: Model, questions: Sequence[Question]
) -> Float[torch.Tensor, "prompt position vocab"]:
    batch = tokenize(model.tokenizer, list(questions), max_length=model.shape.context)
    logits = model.logits(batch.ids.to(model.device), batch.mask.to(model.device))
    return logits.float().log_softmax(-1).cpu()


def _divergence(reference: ScorecardReference, model: Model) -> Estimate:
    mask = tokenize(model.tokenizer, list(reference.questions), max_length=model.shape.context).mask
    parent, own = reference.log_probs, _log_probs(model, reference.questions)
    per_token = (parent.exp() * (parent - own)).sum(-1) / log(2)
    per_prompt = (per_token * mask).sum(-1) / mask.sum(-1)
    values = per_prompt.double().numpy()
    return bootstrap_mean(values, seed=reference.seed, bounds=(0, np.inf))


def _mean_interchange_accuracy(hits: Mapping[str, np.ndarray], *, seed: int) -> Estimate:
    drawn = [
        bootstrap_weights(len(one), BOOTSTRAP_DRAWS, seed=seed + k) @ one.astype(float) / len(one)
        for k, one in enumerate(hits.values())
    ]
    value = float(np.mean([one.mean() for one in hits.values()]))
    return percentile_interval(value, np.mean(drawn, axis=0))


def _own_interchange(reference: ScorecardReference, model: Model) -> tuple[str, Estimate]:
    site = find_variable_sites(model, reference.folds, seed=reference.seed)[OPERATION]
    pairs = reference.folds.interchange_pairs
    runs = run_interchange_pairs(model, pairs, joined_roles=joined_roles(site))
    hits = takes_only(interchange_intervention(runs, [site]), OPERATION)[0]
    return str(site), proportion(hits)


def _circuit_faithfulness(reference: ScorecardReference, model: Model) -> Estimate:
    parent, own = reference.parent.shape, model.shape
    if (parent.layers, parent.heads) != (own.layers, own.heads):
        return Estimate(nan, nan, nan)
    circuits = [reference.circuit]
    return faithfulness(model, reference.held_out_task, circuits, seed=reference.seed)[0].value
