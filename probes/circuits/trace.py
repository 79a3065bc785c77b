"""Trace: the smallest circuit of a pattern's behavior in one model, with its evidence.

gate → discovery and held-out pairs → edge scores → pruned circuit → evaluation and baselines
"""

import json
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from probes.circuits.attribution import AttributionMethod, edge_attribution
from probes.circuits.circuit import Circuit
from probes.circuits.faithfulness import (
    Faithfulness,
    FaithfulnessCurve,
    RandomBaseline,
    Specificity,
    evaluate_circuit,
    faithfulness_curve,
    random_baseline,
    sample_random_circuits,
    specificity,
)
from probes.circuits.pruning import EdgeNecessity, minimality, prune_circuit
from probes.circuits.reference_runs import Ablation, ReferenceRuns, run_references
from probes.circuits.task import TaskSettings, require_open_gate, sample_tasks
from probes.errors import CircuitError, GateError
from probes.files import to_jsonable
from probes.models.model import Model, load
from probes.observe.gate import Gate
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern
from probes.result import Result

SCHEMA = 1
STABILITY_THRESHOLD = 0.8
"""Mean Jaccard index over resampled prompts that reports ask for (Méloux et al. 2025)."""

_RANDOM_CIRCUITS = 100


@dataclass(frozen=True, kw_only=True)
class TraceSettings(TaskSettings):
    """How `trace` draws pairs, scores edges and evaluates circuits.

    Attributes:
        method: How edges are scored; see `edge_attribution`.
        ablation: What an ablated edge carries; see `run_references`.
        other_pattern: Another pattern, whose circuit is ablated to test specificity; "" for none.
            It is skipped if its gate is closed.
    """

    method: AttributionMethod = "eap-ig"
    ablation: Ablation = "counterfactual"
    other_pattern: str | Pattern = "taken"


@dataclass(frozen=True, slots=True, repr=False)
class Trace(Result):
    """A circuit and its evidence.

    Attributes:
        circuit: The pruned circuit.
        gate: The capability check.
        keep: The requested faithfulness.
        discovery: Faithfulness on the prompts that the circuit was found with.
        held_out: Faithfulness on the held-out prompts.
        curve: Faithfulness of the highest-scoring edges at growing sizes, on held-out prompts.
        random_baselines: Random circuits with as many edges, on held-out prompts.
        stability: Mean Jaccard index of as many highest-scoring edges over resampled prompts.
        edge_necessities: Necessity of each edge, on held-out prompts.
        specificities: Effect of ablating this circuit, and that of another pattern, on both; empty
            without another pattern.
    """

    circuit: Circuit
    gate: Gate
    keep: float
    discovery: Faithfulness
    held_out: Faithfulness
    curve: FaithfulnessCurve
    random_baselines: tuple[RandomBaseline, ...]
    stability: float
    edge_necessities: tuple[EdgeNecessity, ...]
    specificities: tuple[Specificity, ...]

    def summary(self) -> tuple[str, ...]:
        """The findings, one sentence each."""
        circuit, held = self.circuit, self.held_out
        task = dict(circuit.protocol).get("task", "the task")
        lines = [
            f"{circuit.model} on {task}: accuracy {self.gate.accuracy.value:.0%}; the gate is "
            f"{self.gate.state}.",
            f"{held.edges} of {len(circuit.graph)} edges ({held.fraction:.2%}) keep {held.value} of "
            f"the logit difference on held-out prompts ({self.discovery.value} on the discovery "
            f"prompts; requested {self.keep}). It stays positive in "
            f"{held.positive_fraction.value:.0%} of the prompts.",
            f"All other edges keep {held.complement}.",
        ]
        for null in self.random_baselines:
            middle, highest = np.median(null.values), max(null.values)
            lines.append(
                f"{len(null.values)} circuits of as many random {null.kind}: median "
                f"{format_fraction(middle)}, highest {format_fraction(highest)}; the circuit "
                f"exceeds {null.percentile:.0%} of them."
            )
        word = "stable" if self.stability >= STABILITY_THRESHOLD else "not stable"
        necessary = sum(edge.p_value < 0.05 for edge in self.edge_necessities)
        return (
            *lines,
            f"As many highest-scoring edges of resampled prompts have a mean Jaccard index of "
            f"{self.stability:.2f} (threshold {STABILITY_THRESHOLD}): {word}.",
            f"{necessary} of {len(self.edge_necessities)} edges are necessary (t-test against "
            "randomly added edges, Holm-corrected).",
            *self._specificity_summary(),
        )

    def _specificity_summary(self) -> tuple[str, ...]:
        remaining = {(s.cut_circuit, s.task): s.remaining for s in self.specificities}
        if not remaining:
            return ()
        own, other = dict.fromkeys(s.task for s in self.specificities)
        by_circuit, by_random = remaining[own, other], remaining["random paths", other]
        word = "more" if by_circuit < by_random else "no more"
        return (
            f"Ablating the circuit leaves {format_fraction(remaining[own, own])} of {own!r} and "
            f"{format_fraction(by_circuit)} of {other!r}; ablating as many edges of random paths "
            f"leaves {format_fraction(by_random)} of {other!r}. The circuit does {word} damage to "
            f"{other!r} than random paths do. Ablating as many edges of {other!r} leaves "
            f"{format_fraction(remaining[other, own])} of {own!r}.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values; what is not finite becomes null."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        own["circuit"] = json.loads(self.circuit.to_json())
        return {"schema": SCHEMA, "summary": list(self.summary())} | to_jsonable(own)

    def __repr__(self) -> str:
        held = self.held_out
        return f"<Trace of {self.circuit.model}: {held.edges} edges keep {held.value}>"


def trace(
    model: str | Path | Model,
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
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    other = settings.other_pattern
    other = find_pattern(other) if other and isinstance(other, str) else other
    model, seed = load(model), settings.seed
    gate = require_open_gate(model, asked, settings.answer, seed=seed)
    settings = replace(settings, answer=gate.answer, other_pattern=other)
    discovery, held_out = sample_tasks(model, asked, settings)
    scores = edge_attribution(model, discovery, method=settings.method, roles=roles)
    discovery_runs, runs = (
        run_references(model, task, roles=roles, ablation=settings.ablation)
        for task in (discovery, held_out)
    )
    circuit = prune_circuit(discovery_runs, scores, keep)
    size = len(circuit)
    held_out_value = evaluate_circuit(runs, circuit, seed=seed)
    return Trace(
        circuit=circuit,
        gate=gate,
        keep=keep,
        discovery=evaluate_circuit(discovery_runs, circuit, seed=seed),
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
        specificities=_cross_specificity(asked, circuit, runs, settings),
    )


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


def format_fraction(value: float) -> str:
    """A fraction with two decimals, and no minus sign before 0.00."""
    return f"{round(float(value), 2) + 0.0:.2f}"
