"""One point of a rate–distortion curve: storage, behavior and mechanism of a relative."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.edges.path_patching import run_circuits
from probes.circuits.faithfulness import edge_masks, faithfulness_estimate
from probes.circuits.pruning import prune_circuit
from probes.circuits.reference_runs import run_references
from probes.circuits.task import Task, TaskSettings, sample_tasks
from probes.comparison.rate_distortion.mechanism import (
    InterchangeOutcome,
    MechanismTest,
    RecordedRuns,
    VariableSites,
    interchange_outcome,
    record_runs,
    sample_mechanism_test,
)
from probes.comparison.rate_distortion.order import (
    NoisyCopy,
    compare_with_noise,
    loss_order,
    shared_interchange_accuracy,
)
from probes.comparison.rate_distortion.result import UNKNOWN, CurvePoint, Mechanism, NoiseComparison
from probes.comparison.rate_distortion.weight_noise import NoisyModel, match_noise, noisy_model
from probes.compression.storage import measure_rate
from probes.errors import CircuitError, PatternError
from probes.models.model import Model
from probes.observe.divergence import (
    ReferenceAnswers,
    answer_as_reference,
    answer_as_relative,
    behavioral_distance,
    kl_divergence,
    readout_log_probs,
)
from probes.observe.gate import default_criterion
from probes.observe.result import GateCriterion
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, proportion

KEPT_FRACTION = 0.9
"""Smallest faithfulness of the parent's circuit."""


@dataclass(frozen=True)
class RateDistortionSettings:
    """Settings of `rate_distortion`.

    Attributes:
        bases: Number of questions for the behavior, and of interchange pairs (or pairs of each
            contrast) for the mechanism; half as many find the sites.
        prompts: Number of pairs of each contrast that find the circuit, and that evaluate it.
        noise_copies: Number of copies of the parent with weight noise for each relative with its
            graph that is quantized, pruned, a lottery ticket or of unknown origin; 0 for none.
        nulls: Number of random-init models of the parent's shape; 0 for none.
        verdicts: Whether to count the verdicts of `compare_family`, which takes minutes.
        seed: Seed of questions, noise, random-init models and bootstrap.
        format: Prompt format, such as "few-shot-4", or "auto" for that of the parent.
        gate: What the gate asks; see `GateCriterion`. By default accuracy for patterns with free
            answers, choice for pairs.
        run: Folder of the store of finished work, or a store; see `PlannedSettings`.
        progress: Whether a progress bar is shown.
        engine, workers: As in `PlannedSettings`; without Ray one relative is measured at a time.
    """

    bases: int = 200
    prompts: int = 32
    noise_copies: int = 3
    nulls: int = 3
    verdicts: bool = False
    seed: int = 0
    format: str = "plain"
    gate: GateCriterion | None = None
    run: Any = field(default=None, compare=False, metadata={"saved": False})
    progress: bool = field(default=False, compare=False, metadata={"saved": False})
    engine: Any = field(default="inprocess", compare=False, metadata={"saved": False})
    workers: int = field(default=1, compare=False, metadata={"saved": False})


@dataclass(frozen=True, eq=False)
class ParentReference:
    """Measurements of the parent, made once for all relatives.

    Attributes:
        model: The parent.
        pattern: The pattern.
        settings: The settings.
        answers: Its answers to the questions.
        mechanism_test: The interchange task.
        sites: Its site of each variable.
        runs, outcome: Its runs and answers on the task.
        noisy: Its copy for weight noise; None without noise copies.
        circuit, discovery_task, evaluation_task: None if the pattern gives no circuit.
    """

    model: Model
    pattern: Pattern
    settings: RateDistortionSettings
    answers: ReferenceAnswers
    mechanism_test: MechanismTest
    sites: VariableSites
    runs: RecordedRuns
    outcome: InterchangeOutcome
    noisy: NoisyModel | None
    circuit: Circuit | None = None
    discovery_task: Task | None = None
    evaluation_task: Task | None = None

    def identity(self) -> object:
        """All that shapes the measurements."""
        return self.model, self.pattern, self.settings


def prepare_reference(
    model: Model, pattern: Pattern, settings: RateDistortionSettings
) -> ParentReference:
    """Measure the parent."""
    settings = replace(settings, gate=settings.gate or default_criterion(pattern))
    bases, prompts, seed = settings.bases, settings.prompts, settings.seed
    answers = answer_as_reference(model, pattern, count=bases, seed=seed)
    mechanism_test = sample_mechanism_test(model, pattern, bases=bases, seed=seed)
    sites = mechanism_test.find_sites(model)
    runs = record_runs(model, mechanism_test.evaluation)
    circuit, discovery_task, evaluation_task = None, None, None
    # Too few pairs, or pairs with different roles, give no circuit.
    with suppress(CircuitError, PatternError):
        if pattern.user_pairs:
            prompts = min(prompts, *Counter(p.contrast for p in pattern.user_pairs).values()) // 2
        discovery_task, evaluation_task = sample_tasks(
            model, pattern, TaskSettings(prompts=max(prompts, 1), seed=seed)
        )
        circuit = _find_circuit(model, discovery_task)
    return ParentReference(
        model=model,
        pattern=pattern,
        settings=settings,
        answers=answers,
        mechanism_test=mechanism_test,
        sites=sites,
        runs=runs,
        outcome=interchange_outcome(runs, sites),
        noisy=noisy_model(model) if settings.noise_copies else None,
        circuit=circuit,
        discovery_task=discovery_task,
        evaluation_task=evaluation_task,
    )


def measure_point(
    model: Model, reference: ParentReference, verdict_counts: Mapping[str, int] | None = None
) -> CurvePoint:
    """Measure a relative, or the parent itself."""
    seed = reference.settings.seed
    answers = answer_as_relative(reference.answers, model)
    criterion = reference.settings.gate or "accuracy"
    behavior = behavioral_distance(reference.answers, answers, seed=seed, criterion=criterion)
    same_graph = _same_graph(model, reference.model)
    mechanism, noise = None, None
    if not behavior.behavior_absent:
        mechanism, outcome = _measure_mechanism(model, reference)
        if same_graph and _is_compressed(model) and model is not reference.model:
            noise = _compare_with_copies(outcome, behavior.readout_kl, reference)
    return CurvePoint(
        name=model.name,
        kind=model.provenance.kind if model.provenance else _training_kind(model),
        rate=measure_rate(model),
        behavior=behavior,
        same_graph=same_graph,
        mechanism=mechanism,
        noise=noise,
        verdicts=dict(verdict_counts or {}),
    )


def _find_circuit(model: Model, discovery_task: Task) -> Circuit:
    scores = edge_attribution(model, discovery_task)
    return prune_circuit(run_references(model, discovery_task), scores, KEPT_FRACTION)


def _same_graph(a: Model, b: Model) -> bool:
    """Whether two models have the same computation graph and widths."""
    names = ("architecture", "layers", "heads", "kv_heads", "d_model", "d_head", "parallel")
    return all(getattr(a.shape, name) == getattr(b.shape, name) for name in names)


def _is_compressed(model: Model) -> bool:
    """Whether the weights may be the parent's, changed but not trained anew."""
    return model.provenance is None or model.provenance.kind in ("quantized", "pruned", "ticket")


def _training_kind(model: Model) -> str:
    return "random-init" if model.origin.startswith("random-init") else "trained"


def _measure_mechanism(
    model: Model, reference: ParentReference
) -> tuple[Mechanism, InterchangeOutcome]:
    seed, parent = reference.settings.seed, reference.outcome
    if model is reference.model:
        runs, own_sites = reference.runs, reference.sites
    else:
        runs = record_runs(model, reference.mechanism_test.evaluation)
        own_sites = reference.mechanism_test.find_sites(model)
    same_graph = _same_graph(model, reference.model)
    sites = reference.sites if same_graph else own_sites
    outcome, at_own_sites = interchange_outcome(runs, sites), interchange_outcome(runs, own_sites)
    both = parent.solved & outcome.solved
    parent_states, circuit_kept = {}, UNKNOWN
    if same_graph:
        parent_states = interchange_outcome(runs, sites, source=reference.runs.source).hits
        circuit_kept = _circuit_faithfulness(model, reference)
    circuit = reference.circuit if same_graph else _own_circuit(model, reference)
    mechanism = Mechanism(
        sites={name: str(site) for name, site in sites.items()},
        own_sites={name: str(site) for name, site in own_sites.items()},
        all_pairs={name: _hit_fraction(hits) for name, hits in outcome.hits.items()},
        solved_pairs={name: _hit_fraction(hits[both]) for name, hits in outcome.hits.items()},
        interchange_accuracy=shared_interchange_accuracy(parent, outcome, seed=seed),
        accuracy_at_own_sites=shared_interchange_accuracy(parent, at_own_sites, seed=seed),
        parent_states={name: _hit_fraction(hits[both]) for name, hits in parent_states.items()},
        circuit_kept=circuit_kept,
        circuit_edges=len(circuit) if circuit else 0,
        circuit_fraction=len(circuit) / len(circuit.graph) if circuit else float("nan"),
        loss_order=loss_order(parent, outcome, seed=seed),
    )
    return mechanism, outcome


def _hit_fraction(hits: np.ndarray) -> Estimate:
    """Fraction of hits among the pairs that test the variable."""
    return proportion(hits[~np.isnan(hits)] > 0)


def _circuit_faithfulness(model: Model, reference: ParentReference) -> Estimate:
    """Faithfulness of the parent's circuit in a relative."""
    if reference.circuit is None or reference.evaluation_task is None:
        return UNKNOWN
    runs = run_references(model, reference.evaluation_task)
    values = run_circuits(runs, edge_masks(runs, [reference.circuit]))[0]
    return faithfulness_estimate(runs, values, seed=reference.settings.seed)


def _own_circuit(model: Model, reference: ParentReference) -> Circuit | None:
    """Circuit of a relative with another graph; the parent's if the relative's is not found."""
    if reference.discovery_task is not None:
        with suppress(CircuitError):
            return _find_circuit(model, reference.discovery_task)
    return reference.circuit


def _compare_with_copies(
    outcome: InterchangeOutcome, kl: Estimate, reference: ParentReference
) -> NoiseComparison | None:
    noisy, seed = reference.noisy, reference.settings.seed
    if noisy is None:
        return None

    def measure_kl(model: Model) -> float:
        log_probs = readout_log_probs(model, reference.answers.batch)
        return float(kl_divergence(reference.answers.log_probs, log_probs).double().mean())

    copies = []
    for number in range(reference.settings.noise_copies):
        matched = match_noise(noisy, kl.value, seed + number, measure_kl)
        if matched is not None:
            copy = noisy.add_noise(matched.scale, seed + number)
            runs = record_runs(copy, reference.mechanism_test.evaluation)
            copy_outcome = interchange_outcome(runs, reference.sites)
            circuit = _circuit_faithfulness(copy, reference).value
            copies.append(NoisyCopy(matched.scale, matched.value, copy_outcome, circuit))
    return compare_with_noise(reference.outcome, outcome, copies, seed=seed)
