"""One relative on the curve: what it stores, how it behaves, and what is left of the mechanism."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from probes.circuits.attribution import edge_attribution
from probes.circuits.circuit import Circuit
from probes.circuits.edge_patching import run_circuits
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
from probes.comparison.rate_distortion.weight_noise import NoisyModel, match_noise
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
from probes.observe.result import BehavioralDistance
from probes.prompts.pattern import Pattern
from probes.stats.intervals import Estimate, proportion

KEPT_FRACTION = 0.9
"""The share of the parent's lead that its circuit keeps."""


@dataclass(frozen=True, eq=False)
class ParentReference:
    """What is measured of the parent once, for all relatives.

    Attributes:
        turned: What became of the exam in it.
        circuit, finding, judging: None where the pattern gives no circuit.
    """

    model: Model
    sitting: ReferenceAnswers
    mechanism_test: MechanismTest
    sites: VariableSites
    runs: RecordedRuns
    outcome: InterchangeOutcome
    circuit: Circuit | None
    discovery_task: Task | None
    evaluation_task: Task | None


def prepare_reference(
    model: Model, pattern: Pattern, settings: tuple[int, int, int]
) -> ParentReference:
    """Measure the parent; the dials are bases, prompts and the seed."""
    bases, prompts, seed = settings
    sitting = answer_as_reference(model, pattern, count=bases, seed=seed)
    mechanism_test = sample_mechanism_test(model, pattern, bases=bases, seed=seed)
    cells = mechanism_test.find_sites(model)
    runs = record_runs(model, mechanism_test.evaluation)
    circuit, finding, judging = None, None, None
    # Pairs may be too few to part, or their roles too unequal: then there is no circuit.
    with suppress(CircuitError, PatternError):
        if pattern.user_pairs:
            prompts = min(prompts, *(Counter(p.contrast for p in pattern.user_pairs).values())) // 2
        finding, judging = sample_tasks(
            model, pattern, TaskSettings(prompts=max(prompts, 1), seed=seed)
        )
        circuit = _find_circuit(model, finding)
    return ParentReference(
        model, sitting, mechanism_test, cells, runs, interchange_outcome(runs, cells), circuit, finding, judging
    )  # fmt: skip


def _find_circuit(model: Model, discovery_task: Task) -> Circuit:
    return prune_circuit(
        run_references(model, discovery_task),
        edge_attribution(model, discovery_task),
        KEPT_FRACTION,
    )


def _same_graph(a: Model, b: Model) -> bool:
    """Say whether two models have one graph, with all its widths."""
    names = ("architecture", "layers", "heads", "kv_heads", "d_model", "d_head", "parallel")
    return all(getattr(a.shape, name) == getattr(b.shape, name) for name in names)


def measure_point(
    model: Model, reference: ParentReference, noisy: NoisyModel | None, settings: tuple[int, int],
    verdict_counts: Mapping[str, int],
) -> CurvePoint:  # fmt: skip
    """Measure one model beside its parent; the dials are the number of copies and the seed."""
    count, seed = settings
    found = behavioral_distance(
        reference.sitting, answer_as_relative(reference.sitting, model), seed=seed
    )
    mechanism, noise = None, None
    if not found.behavior_absent:
        mechanism, here = _measure_mechanism(model, reference, seed)
        if noisy is not None and _same_graph(model, reference.model) and _is_compressed(model):
            noise = _compare_with_copies(here, found, reference, noisy, (count, seed))
    return CurvePoint(
        name=model.name,
        kind=model.provenance.kind if model.provenance else _training_kind(model),
        rate=measure_rate(model),
        behavior=found,
        same_graph=_same_graph(model, reference.model),
        mechanism=mechanism,
        noise=noise,
        verdicts=dict(verdict_counts),
    )


def _is_compressed(model: Model) -> bool:
    """Say whether it may be what became of its parent's weights: what was trained anew is not."""
    return model.provenance is None or model.provenance.kind in ("quantized", "pruned", "ticket")


def _training_kind(model: Model) -> str:
    return "random-init" if model.origin.startswith("random-init") else "trained"


def _measure_mechanism(
    model: Model, reference: ParentReference, seed: int
) -> tuple[Mechanism, InterchangeOutcome]:
    same, itself = _same_graph(model, reference.model), model is reference.model
    runs = reference.runs if itself else record_runs(model, reference.mechanism_test.evaluation)
    own = reference.sites if itself else reference.mechanism_test.find_sites(model)
    cells = reference.sites if same else own
    here, carried = interchange_outcome(runs, cells), {}
    both = reference.outcome.solved & here.solved
    if same:
        carried = interchange_outcome(runs, cells, source=reference.runs.source).hits
    found = Mechanism(
        sites={name: str(cell) for name, cell in cells.items()},
        own_sites={name: str(cell) for name, cell in own.items()},
        all_pairs={name: _hit_fraction(hits) for name, hits in here.hits.items()},
        solved_pairs={name: _hit_fraction(hits[both]) for name, hits in here.hits.items()},
        interchange_accuracy=shared_interchange_accuracy(reference.outcome, here, seed=seed),
        accuracy_at_own_sites=shared_interchange_accuracy(
            reference.outcome, interchange_outcome(runs, own), seed=seed
        ),
        parent_states={name: _hit_fraction(hits[both]) for name, hits in carried.items()},
        circuit_kept=_circuit_fraction(model, reference, seed) if same else UNKNOWN,
        loss_order=loss_order(reference.outcome, here, seed=seed),
        **_circuit_size(model, reference, same=same),
    )
    return found, here


def _hit_fraction(hits: np.ndarray) -> Estimate:
    """Return the share of hits among the items that were tried."""
    return proportion(hits[~np.isnan(hits)] > 0)


def _circuit_fraction(model: Model, reference: ParentReference, seed: int) -> Estimate:
    """Run the parent's circuit alone in a relative."""
    if reference.circuit is None or reference.evaluation_task is None:
        return UNKNOWN
    there = run_references(model, reference.evaluation_task)
    return faithfulness_estimate(
        there, run_circuits(there, edge_masks(there, [reference.circuit]))[0], seed=seed
    )


def _circuit_size(model: Model, reference: ParentReference, *, same: bool) -> dict:
    circuit = reference.circuit
    if not same and reference.discovery_task is not None:
        with suppress(CircuitError):
            circuit = _find_circuit(model, reference.discovery_task)
    if circuit is None:
        return {"circuit_edges": 0, "circuit_fraction": float("nan")}
    return {"circuit_edges": len(circuit), "circuit_fraction": len(circuit) / len(circuit.graph)}


def _compare_with_copies(
    outcome: InterchangeOutcome,
    behavior: BehavioralDistance,
    reference: ParentReference,
    noisy: NoisyModel,
    settings: tuple[int, int],
) -> NoiseComparison | None:
    count, seed = settings

    def far(model: Model) -> float:
        return float(
            kl_divergence(
                reference.sitting.log_probs, readout_log_probs(model, reference.sitting.batch)
            )
            .double()
            .mean()
        )

    copies = []
    for number in range(count):
        done = match_noise(noisy, behavior.readout_kl.value, seed + number, far)
        if done is not None:
            model = noisy.add_noise(done.scale, seed + number)
            there = interchange_outcome(
                record_runs(model, reference.mechanism_test.evaluation), reference.sites
            )
            circuit = _circuit_fraction(model, reference, seed).value
            copies.append(NoisyCopy(done.scale, done.value, there, circuit))
    return compare_with_noise(reference.outcome, outcome, copies, seed=seed)
