"""Parent of a rate–distortion curve: settings, and what is measured in it for all relatives."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.pruning import prune_circuit
from probes.circuits.runs.reference import run_references
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
from probes.comparison.rate_distortion.weight_noise import NoisyModel, noisy_model
from probes.comparison.setup.references import ComparisonSettings
from probes.errors import CircuitError, PatternError
from probes.models.model import Model
from probes.observe.divergence import ReferenceAnswers, answer_as_reference
from probes.observe.gate import default_criterion
from probes.observe.result import GateCriterion
from probes.plan import PlannedSettings
from probes.prompts.pattern import Pattern

KEPT_FRACTION = 0.9
"""Smallest faithfulness of the parent's circuit."""


@dataclass(frozen=True)
class RateDistortionSettings(PlannedSettings):
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
        engine, workers: As in `ComparisonSettings`; without Ray one relative is measured at a time.
    """

    bases: int = 200
    prompts: int = 32
    noise_copies: int = 3
    nulls: int = 3
    verdicts: bool = False
    seed: int = 0
    format: str = "plain"
    gate: GateCriterion | None = None
    engine: Any = field(default="inprocess", compare=False, metadata={"saved": False})
    workers: int = field(default=1, compare=False, metadata={"saved": False})

    @property
    def comparison(self) -> ComparisonSettings:
        """Settings of the comparison that gives the verdicts."""
        return ComparisonSettings(
            prompts=self.prompts,
            draws=1,
            seed=self.seed,
            gate=self.gate,
            run=self.run,
            engine=self.engine,
            workers=self.workers,
        )


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


@dataclass(frozen=True, eq=False)
class CurveParent:
    """The parent as an argument of a unit: what it takes to measure it in any process.

    Attributes:
        model, pattern, settings: As in `ParentReference`.
    """

    model: Model
    pattern: Pattern
    settings: RateDistortionSettings

    @cached_property
    def reference(self) -> ParentReference:
        """Measurements of the parent, made at first use."""
        return prepare_reference(self.model, self.pattern, self.settings)


def prepare_reference(
    model: Model, pattern: Pattern, settings: RateDistortionSettings
) -> ParentReference:
    """Measure the parent."""
    settings = replace(settings, gate=settings.gate or default_criterion(pattern))
    bases, seed = settings.bases, settings.seed
    answers = answer_as_reference(model, pattern, count=bases, seed=seed)
    mechanism_test = sample_mechanism_test(model, pattern, bases=bases, seed=seed)
    sites = mechanism_test.find_sites(model)
    runs = record_runs(model, mechanism_test.evaluation)
    circuit, discovery_task, evaluation_task = None, None, None
    # Too few pairs, or pairs with different roles, give no circuit.
    with suppress(CircuitError, PatternError):
        discovery_task, evaluation_task = sample_circuit_tasks(
            model, pattern, prompts=settings.prompts, seed=seed
        )
        circuit = find_circuit(model, discovery_task)
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


def circuit_prompts(pattern: Pattern, prompts: int) -> int:
    """Pairs of each contrast that find the circuit: half of what a file of pairs has at most."""
    if pattern.user_pairs:
        fewest = min(Counter(pair.contrast for pair in pattern.user_pairs).values())
        prompts = min(prompts, fewest // 2)
    return max(prompts, 1)


def sample_circuit_tasks(
    model: Model, pattern: Pattern, *, prompts: int, seed: int
) -> tuple[Task, Task]:
    """Pairs that find the circuit, and pairs that evaluate it.

    Raises:
        CircuitError, PatternError: The pattern has too few pairs, or pairs with different roles.
    """
    settings = TaskSettings(prompts=circuit_prompts(pattern, prompts), seed=seed)
    return sample_tasks(model, pattern, settings)


def find_circuit(model: Model, discovery_task: Task) -> Circuit:
    """Smallest circuit found that keeps `KEPT_FRACTION` of the discovery pairs."""
    scores = edge_attribution(model, discovery_task)
    return prune_circuit(run_references(model, discovery_task), scores, KEPT_FRACTION)
