"""One point of a rate–distortion curve: storage, behavior and mechanism of a relative."""

from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from probes.circuits.circuit import Circuit
from probes.circuits.edges.path_patching import run_circuits
from probes.circuits.faithfulness import edge_masks, faithfulness_estimate
from probes.circuits.runs.reference import run_references
from probes.comparison.rate_distortion.losses import UNKNOWN, NoiseComparison
from probes.comparison.rate_distortion.mechanism import (
    InterchangeOutcome,
    interchange_outcome,
    record_runs,
)
from probes.comparison.rate_distortion.order import (
    NoisyCopy,
    compare_with_noise,
    loss_order,
    shared_interchange_accuracy,
)
from probes.comparison.rate_distortion.parent import CurveParent, ParentReference, find_circuit
from probes.comparison.rate_distortion.result import CurvePoint, Mechanism
from probes.comparison.rate_distortion.weight_noise import match_noise
from probes.compression.storage import measure_rate
from probes.errors import CircuitError
from probes.models.model import Model
from probes.observe.divergence import (
    answer_as_relative,
    behavioral_distance,
    kl_divergence,
    readout_log_probs,
)
from probes.stats.intervals import Estimate, proportion


def measure_relative(
    model: Model, parent: CurveParent, verdict_counts: Mapping[str, int]
) -> CurvePoint:
    """Measure a relative: the unit of a curve, which runs in any process."""
    return measure_point(model, parent.reference, verdict_counts)


def measure_point(
    model: Model, reference: ParentReference, verdict_counts: Mapping[str, int] | None = None
) -> CurvePoint:
    """Measure a relative, or the parent itself."""
    seed = reference.settings.seed
    answers = answer_as_relative(reference.answers, model)
    criterion = reference.settings.gate or "accuracy"
    behavior = behavioral_distance(reference.answers, answers, seed=seed, criterion=criterion)
    is_same = same_graph(model, reference.model)
    mechanism, noise = None, None
    if not behavior.behavior_absent:
        mechanism, outcome = _measure_mechanism(model, reference)
        if is_same and is_compressed(model) and model is not reference.model:
            noise = _compare_with_copies(outcome, behavior.readout_kl, reference)
    return CurvePoint(
        name=model.name,
        kind=model.provenance.kind if model.provenance else _training_kind(model),
        rate=measure_rate(model),
        behavior=behavior,
        same_graph=is_same,
        mechanism=mechanism,
        noise=noise,
        verdicts=dict(verdict_counts or {}),
    )


def same_graph(a: Model, b: Model) -> bool:
    """Whether two models have the same computation graph and widths."""
    names = ("architecture", "layers", "heads", "kv_heads", "d_model", "d_head", "parallel")
    return all(getattr(a.shape, name) == getattr(b.shape, name) for name in names)


def is_compressed(model: Model) -> bool:
    """Whether the weights may be the parent's, changed but not trained anew."""
    made = model.provenance
    return made is None or made.is_unknown or made.kind in ("quantized", "pruned", "ticket")


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
    is_same = same_graph(model, reference.model)
    sites = reference.sites if is_same else own_sites
    outcome, at_own_sites = interchange_outcome(runs, sites), interchange_outcome(runs, own_sites)
    both = parent.solved & outcome.solved
    parent_states, circuit_kept = {}, UNKNOWN
    if is_same:
        parent_states = interchange_outcome(runs, sites, source=reference.runs.source).hits
        circuit_kept = _circuit_faithfulness(model, reference)
    circuit = reference.circuit if is_same else _own_circuit(model, reference)
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
    """Circuit of a relative with another graph; None where none is found."""
    with suppress(CircuitError):
        if reference.discovery_task is not None:
            return find_circuit(model, reference.discovery_task)
    return None


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
