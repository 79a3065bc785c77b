"""Where relatives stand: what each can do, how far it is from its parent, and what came down.

One row a model, cheap enough for the twenty students of a study: accuracy on each held-out axis,
divergence from the parent, kinship by interchange, where it holds the operation, and how far
the parent's own circuit serves it.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import log, nan
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from probes.circuits.attribution import edge_attribution
from probes.circuits.circuit import Circuit
from probes.circuits.faithfulness import faithfulness
from probes.circuits.pruning import prune_circuit
from probes.circuits.reference_runs import run_references
from probes.circuits.task import Task, TaskSettings, sample_tasks
from probes.comparison.variables.held_out_folds import (
    HeldOutFolds,
    distinct_tokenizers,
    sample_held_out_folds,
)
from probes.comparison.variables.stitching import (
    Recipient,
    find_variable_sites,
    run_donor,
    run_recipient,
)
from probes.comparison.variables.transfer import donor_hits
from probes.errors import ModelError
from probes.experiments.family.accuracy import (
    BOTH_PATTERNS,
    AxisQuestions,
    all_axis_questions,
    evaluate_axes,
)
from probes.interventions.interchange import interchange_intervention, run_interchange_pairs
from probes.interventions.site_search import takes_only
from probes.models.model import Model, load
from probes.models.site import joined_roles
from probes.prompts.batch import tokenize
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.interchange_pairs import OPERATION
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.pattern import Pattern
from probes.prompts.question import Question
from probes.stats.intervals import (
    BOOTSTRAP_DRAWS,
    Estimate,
    bootstrap_mean,
    bootstrap_weights,
    percentile_interval,
    proportion,
)

# The slot of the object is called "thing" in patterns.
_FIELDS = {"thing": "object"}
TableRow = dict[str, float | str]


@dataclass(frozen=True, eq=False)
class ScorecardReference:
    """A parent and everything that relatives are held against, made once.

    Attributes:
        parent: The model.
        trials: What states are carried over by.
        host: The parent as a recipient.
        questions: What divergence is measured on.
        asked: What accuracy is measured on, for every axis that can be held out.
        circuit: The parent's circuit, for relatives of its shape.
        judging: The prompts that the circuit is judged on; it was found by others.
        seed: Of everything drawn.
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
        """What the parent says at every place of the questions, as log-probabilities."""
        return _log_probs(self.parent, self.questions)


def prepare_scorecard_reference(  # noqa: PLR0913 (how much of each thing is drawn)
    parent: str | Path | Model,
    pattern: str | Pattern = "take-away",
    *,
    bases: int = 200,
    prompts: int = 400,
    per_cell: int = 2,
    seed: int = 0,
) -> ScorecardReference:
    """Run a parent once on everything that its relatives will be held against.

    Args:
        parent: The model.
        pattern: What states are carried over on, and what the circuit answers.
        bases: Questions whose states are carried over, each way.
        prompts: Questions that the maps between the models are fitted on and tested with.
        per_cell: Questions that accuracy is measured on, for each pair of numbers.
        seed: Of everything drawn.
    """
    model = load(parent)
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    trials = sample_held_out_folds(
        asked,
        tokenizers=distinct_tokenizers([model.tokenizer]),
        bases=bases,
        prompts=prompts,
        seed=seed,
    )
    finding, judging = sample_tasks(model, asked, TaskSettings(answer="number", seed=seed))
    graph = edge_attribution(model, finding, method="eap-ig")
    circuit = prune_circuit(run_references(model, finding), graph, 0.9)
    questions = tuple(
        asked.sample_questions(128, seed=seed + 3, keep=tokenizable_by(model.tokenizer))
    )
    cells = tuple(all_axis_questions(model.tokenizer, per_cell=per_cell, seed=seed))
    recipient = run_recipient(model, trials, seed=seed)
    return ScorecardReference(model, trials, recipient, questions, cells, circuit, judging, seed)


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Where one model stands beside a parent.

    Attributes:
        model: Its name.
        seen, cells, nouns, combinations, jointly: Share of numbers right on questions as in
            training, and on each axis held out of it, both operations together.
        divergence: KL(parent || model), in bits, the mean over the tokens of questions with
            their answers.
        operation, x, y, thing: Share of the parent's answers that turn as foretold when the
            model's states are put into it, through a map that saw none of the words.
        kinship: Their mean.
        site: Where the model itself holds the operation.
        held: Share of its answers that turn there, by a state from other words.
        circuit: Faithfulness of the parent's circuit run alone in it; NaN for another shape.
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
        """Return it as plain numbers, each with the ends of its interval."""
        found: TableRow = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Estimate):
                found |= {
                    part.name: value.value,
                    f"{part.name}_low": value.low,
                    f"{part.name}_high": value.high,
                }
            else:
                found[part.name] = value
        return found


def scorecard(reference: ScorecardReference, relative: str | Path | Model) -> Scorecard:
    """Measure one relative.

    Args:
        yard: The parent, as `yardstick` made it.
        relative: A model that reads with the parent's tokenizer.

    Raises:
        ModelError: It reads with another tokenizer.
    """
    model = load(relative)
    if len(distinct_tokenizers([reference.parent.tokenizer, model.tokenizer])) > 1:
        raise ModelError(
            f"{model.name} and {reference.parent.name} read with different tokenizers: their tokens "
            "cannot be held against each other. Compare them with `compare`."
        )
    accuracy = _accuracy(reference, model)
    kin = _interchange_hits(reference, model)
    site, held = _own_interchange(reference, model)
    return Scorecard(
        model=model.name,
        divergence=_divergence(reference, model),
        **accuracy,
        **{_FIELDS.get(name, name): proportion(hits) for name, hits in kin.items()},
        mean_interchange_accuracy=_mean_interchange_accuracy(kin, seed=reference.seed),
        site=site,
        own_interchange_accuracy=held,
        circuit_faithfulness=_circuit_faithfulness(reference, model),
    )


def _accuracy(reference: ScorecardReference, model: Model) -> dict[str, Estimate]:
    found = {}
    for score in evaluate_axes(model, reference.axis_questions, seed=reference.seed):
        # Nouns are held out of sentences that take away, and of no others.
        both = score.pattern == BOTH_PATTERNS or score.axis == "nouns"
        if score.answer == "number" and both:
            found[score.axis] = score.accuracy
    return found


def _log_probs(
    model: Model, questions: Sequence[Question]
) -> Float[torch.Tensor, "prompt position vocab"]:
    batch = tokenize(model.tokenizer, list(questions), max_length=model.shape.context)
    logits = model.logits(batch.ids.to(model.device), batch.mask.to(model.device))
    return logits.float().log_softmax(-1).cpu()


def _divergence(reference: ScorecardReference, model: Model) -> Estimate:
    mask = tokenize(model.tokenizer, list(reference.questions), max_length=model.shape.context).mask
    ours, theirs = reference.log_probs, _log_probs(model, reference.questions)
    each = (ours.exp() * (ours - theirs)).sum(-1) / log(2)
    by_text = (each * mask).sum(-1) / mask.sum(-1)
    return bootstrap_mean(by_text.double().numpy(), seed=reference.seed)


def _interchange_hits(reference: ScorecardReference, model: Model) -> Mapping[str, np.ndarray]:
    donor = run_donor(model, reference.folds)
    (hits,) = donor_hits(reference.recipient, [donor]).values()
    return hits


def _mean_interchange_accuracy(hits: Mapping[str, np.ndarray], *, seed: int) -> Estimate:
    drawn = [
        bootstrap_weights(len(one), BOOTSTRAP_DRAWS, seed=seed + k) @ one.astype(float) / len(one)
        for k, one in enumerate(hits.values())
    ]
    value = float(np.mean([one.mean() for one in hits.values()]))
    return percentile_interval(value, np.mean(drawn, axis=0))


def _own_interchange(reference: ScorecardReference, model: Model) -> tuple[str, Estimate]:
    cell = find_variable_sites(model, reference.folds, seed=reference.seed)[OPERATION]
    crossed = run_interchange_pairs(
        model, reference.folds.interchange_pairs, joined_roles=joined_roles(cell)
    )
    found = takes_only(interchange_intervention(crossed, [cell]), OPERATION)[0]
    return str(cell), proportion(found)


def _circuit_faithfulness(reference: ScorecardReference, model: Model) -> Estimate:
    ours, theirs = reference.parent.shape, model.shape
    if (ours.layers, ours.heads) != (theirs.layers, theirs.heads):
        return Estimate(nan, nan, nan)
    return faithfulness(model, reference.held_out_task, [reference.circuit], seed=reference.seed)[
        0
    ].value


def write_rows(rows: Sequence[Mapping[str, float | str]], path: Path) -> None:
    """Write rows as a table with all of their columns: counts whole, all else in four digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({name: _format_value(value) for name, value in row.items()})


def _format_value(value: float | str) -> float | str:
    if not isinstance(value, float):
        return value
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
