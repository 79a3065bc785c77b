"""Trace: the smallest circuit of a pattern's behavior in one model, with its evidence.

gate → discovery and held-out pairs → edge scores → pruned circuit → evaluation and baselines
"""

from contextlib import suppress
from dataclasses import dataclass, replace

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_attribution import AttributionMethod, edge_attribution
from probes.circuits.edges.edge_scores import EdgeScores
from probes.circuits.faithfulness import (
    evaluate_circuit,
    faithfulness_curve,
    random_baseline,
    sample_random_circuits,
    specificity,
)
from probes.circuits.pruning import minimality, prune_circuit
from probes.circuits.reference_runs import Ablation, ReferenceRuns, run_references
from probes.circuits.result import Faithfulness, PublishedOverlap, Specificity, Trace
from probes.circuits.task import Task, TaskSettings, require_open_gate, sample_tasks
from probes.errors import CircuitError, GateError
from probes.models.model import Model, ModelSpec, load
from probes.observe.format.kept import pattern_in_format
from probes.observe.result import GateCriterion
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.catalog import published_circuit
from probes.prompts.pattern import Pattern

_RANDOM_CIRCUITS = 100


@dataclass(frozen=True, kw_only=True)
class TraceSettings(TaskSettings):
    """How `trace` draws pairs, scores edges and evaluates circuits.

    Attributes:
        method: How edges are scored; see `edge_attribution`.
        ablation: What an ablated edge carries; see `run_references`.
        other_pattern: Another pattern, whose circuit is ablated to test specificity; "" for none.
            It is skipped if its gate is closed.
        format: Prompt format, such as "few-shot-4", or "auto"; see `PromptFormat`.
        gate: What the gate asks; see `GateCriterion`. By default accuracy for patterns with free
            answers, choice for pairs.
    """

    method: AttributionMethod = "eap-ig"
    ablation: Ablation = "counterfactual"
    other_pattern: str | Pattern = "taken"
    format: str = "plain"
    gate: GateCriterion | None = None


def trace(
    model: ModelSpec,
    pattern: str | Pattern = "take-away",
    *,
    keep: float = 0.9,
    roles: bool = False,
    settings: TraceSettings | None = None,
) -> Trace:
    """Find the smallest circuit that keeps a fraction of a behavior, and evaluate it.

    Args:
        model: A family name, a folder, a hub id or a loaded model.
        pattern: A pattern, its name, or a .jsonl file.
        keep: Faithfulness to keep on the discovery prompts, above 0 and at most 1.
        roles: Whether edges are resolved by roles.
        settings: Pairs, scoring and evaluation; its seed also draws the random circuits.

    Raises:
        GateError: The model does not have the behavior.
        CircuitError: Even the whole model keeps less, or `keep` is out of range.
    """
    if not 0 < keep <= 1:
        raise CircuitError(f"Cannot keep {keep} of a behavior: request above 0, and at most 1")
    settings = settings or TraceSettings()
    own_pattern = find_pattern(pattern) if isinstance(pattern, str) else pattern
    other = settings.other_pattern
    other = find_pattern(other) if other and isinstance(other, str) else other
    model, seed = load(model), settings.seed
    own_pattern = pattern_in_format(own_pattern, settings.format, [model], seed=seed)
    if isinstance(other, Pattern) and not own_pattern.user_pairs:
        other = pattern_in_format(other, str(own_pattern.wrapper.format), [model])
    gate = require_open_gate(
        model, own_pattern, settings.answer, seed=seed, criterion=settings.gate
    )
    settings = replace(settings, answer=gate.answer, other_pattern=other)
    discovery, held_out = sample_tasks(model, own_pattern, settings)
    scores = edge_attribution(model, discovery, method=settings.method, roles=roles)
    circuit, discovery_value = _find_circuit(model, discovery, scores, keep, settings)
    runs = run_references(model, held_out, roles=roles, ablation=settings.ablation)
    size = len(circuit)
    held_out_value = evaluate_circuit(runs, circuit, seed=seed)
    return Trace(
        circuit=circuit,
        gate=gate,
        keep=keep,
        discovery=discovery_value,
        held_out=held_out_value,
        curve=faithfulness_curve(runs, scores, seed=seed),
        random_baselines=tuple(
            random_baseline(
                runs,
                sample_random_circuits(runs, size, kind, _RANDOM_CIRCUITS, seed=seed),
                held_out_value.value.value,
                kind,
            )
            for kind in ("paths", "edges")
        ),
        stability=scores.stability(size, seed=seed),
        edge_necessities=minimality(runs, circuit, seed=seed),
        specificities=_cross_specificity(own_pattern, circuit, runs, settings),
        format=str(own_pattern.wrapper.format),
        published=_published_overlap(model, own_pattern, circuit),
    )


def _find_circuit(
    model: Model, task: Task, scores: EdgeScores, keep: float, settings: TraceSettings
) -> tuple[Circuit, Faithfulness]:
    """Circuit and its value on the discovery prompts, whose runs are not kept."""
    roles = bool(scores.graph.roles)
    runs = run_references(model, task, roles=roles, ablation=settings.ablation)
    circuit = prune_circuit(runs, scores, keep)
    return circuit, evaluate_circuit(runs, circuit, seed=settings.seed)


def _published_overlap(model: Model, pattern: Pattern, circuit: Circuit) -> PublishedOverlap | None:
    """Overlap with the published circuit of a shipped pattern, in the model it was found in."""
    known = published_circuit(pattern.name)
    shape = (model.shape.layers, model.shape.heads)
    if not known or model.name not in known["models"]:
        return None
    if shape != (known["layers"], known["heads_per_layer"]):
        return None  # Another model of this name.
    return PublishedOverlap.of(circuit, known)


def _cross_specificity(
    own: Pattern, circuit: Circuit, runs: ReferenceRuns, settings: TraceSettings
) -> tuple[Specificity, ...]:
    """Ablate the circuits of two patterns, of as many edges, in the tasks of both."""
    other = settings.other_pattern
    if own.user_pairs or isinstance(other, str) or other.name == own.name:
        return ()
    model, roles = runs.model, bool(circuit.graph.roles)
    with suppress(GateError):
        answer = require_open_gate(model, other, seed=settings.seed).answer
        discovery, held_out = sample_tasks(
            model, other, replace(settings, answer=answer, contrasts=())
        )
        scores = edge_attribution(model, discovery, method=settings.method, roles=roles)
        other_runs = run_references(model, held_out, roles=roles, ablation=runs.ablation)
        return specificity(
            {own.name: runs, other.name: other_runs},
            {own.name: circuit, other.name: scores.top(len(circuit))},
            seed=settings.seed,
        )
    return ()
