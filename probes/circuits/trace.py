"""Trace: the smallest circuit of a pattern's behavior in one model, with its evidence.

gate → discovery and held-out pairs → edge scores → pruned circuit → evaluation and baselines
"""

from dataclasses import dataclass, replace
from functools import cached_property

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.edges.edge_scores import EdgeScores
from probes.circuits.edges.head_effects import label_heads
from probes.circuits.faithfulness import (
    evaluate_circuit,
    faithfulness_curve,
    random_baseline,
    sample_random_circuits,
    specificity,
)
from probes.circuits.pruning import minimality, prune_circuit
from probes.circuits.result import (
    EdgeNecessity,
    Faithfulness,
    PublishedOverlap,
    RandomBaseline,
    Trace,
)
from probes.circuits.runs.held import Ablation, ReferenceRuns
from probes.circuits.runs.reference import run_references
from probes.circuits.specificity import Specificity
from probes.circuits.task import Task, require_open_gate, sample_tasks
from probes.circuits.trace_plan import TraceSettings as TraceSettings
from probes.circuits.trace_plan import plan_trace
from probes.errors import CircuitError, ProbeError
from probes.models.model import Model, ModelSpec, load
from probes.observe.format.kept import pattern_in_format
from probes.observe.gate import gate as measure_gate
from probes.observe.result import Gate
from probes.progress import Progress
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.catalog import published_circuit
from probes.prompts.pattern import Pattern
from probes.scale.commands import remember_in
from probes.scale.engine import open_engine, starting


@dataclass(frozen=True, eq=False)
class HeldOutRuns:
    """Runs of a model on held-out pairs, as an argument of units: each process makes its own.

    Attributes:
        model: Model.
        task: Held-out pairs.
        roles: Whether edges are resolved by roles.
        ablation: What an ablated edge carries.
    """

    model: Model
    task: Task
    roles: bool
    ablation: Ablation

    @cached_property
    def runs(self) -> ReferenceRuns:
        """The clean and the counterfactual run, made at first use."""
        return run_references(self.model, self.task, roles=self.roles, ablation=self.ablation)


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
    model, seed = load(model, device=settings.device), settings.seed
    own_pattern = pattern_in_format(own_pattern, settings.format, [model], seed=seed)
    settings = replace(settings, other_pattern=other)
    wanted = (keep, roles)
    return remember_in(settings, "trace", _plan_and_trace, model, own_pattern, settings, wanted)


def _plan_and_trace(
    model: Model, pattern: Pattern, settings: TraceSettings, wanted: tuple[float, bool]
) -> Trace:
    """Trace a loaded model; `wanted` are `keep` and `roles`."""
    plan, seed, asked = None, settings.seed, settings.other_pattern
    if settings.plan_only and settings.on_plan:
        settings.on_plan(plan_trace(model, pattern, settings, roles=wanted[1])[0])
    # A closed gate is told before a plan is printed.
    gate = require_open_gate(model, pattern, settings.answer, seed=seed, criterion=settings.gate)
    settings = replace(settings, answer=gate.answer)
    if settings.is_planned:
        plan, settings = plan_trace(model, pattern, settings, roles=wanted[1])
        if settings.on_plan:
            settings.on_plan(plan)
    with (
        Progress(plan if settings.progress else None) as progress,
        open_engine(settings.engine, workers=settings.workers, device=settings.device) as engine,
    ):
        progress.begin("gate")
        settings = replace(settings, engine=engine)
        found = _trace(model, (pattern, gate), settings, wanted, progress)
    if asked and not settings.other_pattern:
        found = replace(found, specificity_skipped="it does not fit the budget")
    return replace(found, left_out=plan.left_out) if plan else found


def _trace(
    model: Model,
    behavior: tuple[Pattern, Gate],
    settings: TraceSettings,
    wanted: tuple[float, bool],
    progress: Progress,
) -> Trace:
    """Trace a behavior, a pattern with its open gate, with settings that are planned."""
    (pattern, gate), (keep, roles), seed = behavior, wanted, settings.seed
    discovery, held_out = sample_tasks(model, pattern, settings)
    progress.begin("edge scores")
    scores = edge_attribution(model, discovery, method=settings.scoring, roles=roles)
    progress.begin("pruning")
    circuit, discovery_value = _find_circuit(model, discovery, scores, keep, settings)
    size, heads = len(circuit), (node.split("@")[0] for node in circuit.nodes if ".H" in node)
    circuit = replace(circuit, head_roles=label_heads(model, discovery, heads))
    progress.begin("held-out pairs")
    shared = HeldOutRuns(model, held_out, roles, settings.ablation)
    with starting(settings.engine) as start:
        other_unit = start(_cross_specificity, pattern, circuit, shared, settings)
        held_out_value = evaluate_circuit(shared.runs, circuit, seed=seed)
        value = held_out_value.value.value
        baseline_units = [
            start(_random_baseline, shared, size, value, kind, settings)
            for kind in ("paths", "edges")
        ]
        necessity_unit = start(_necessities, shared, circuit, settings)
        progress.begin("curve")
        curve = faithfulness_curve(shared.runs, scores, seed=seed)
        progress.begin("random circuits")
        baselines = [unit.result() for unit in baseline_units]
        progress.begin("necessity of edges")
        necessities = necessity_unit.result()
        progress.begin("another pattern")
        specificities, skipped = other_unit.result()
    return Trace(
        circuit=circuit,
        gate=gate,
        keep=keep,
        discovery=discovery_value,
        held_out=held_out_value,
        curve=curve,
        random_baselines=tuple(baselines),
        stability=scores.stability(size, seed=seed),
        edge_necessities=necessities,
        specificities=specificities,
        specificity_skipped=skipped,
        format=str(pattern.wrapper.format),
        published=_published_overlap(model, pattern, circuit),
    )


def _find_circuit(
    model: Model, task: Task, scores: EdgeScores, keep: float, settings: TraceSettings
) -> tuple[Circuit, Faithfulness]:
    """Circuit and its value on the discovery prompts, whose runs are not kept."""
    roles = bool(scores.graph.roles)
    runs = run_references(model, task, roles=roles, ablation=settings.ablation)
    circuit = prune_circuit(runs, scores, keep, settings.pruning)
    return circuit, evaluate_circuit(runs, circuit, seed=settings.seed)


def _random_baseline(
    shared: HeldOutRuns, size: int, value: float, kind: str, settings: TraceSettings
) -> RandomBaseline:
    """Compare the circuit's f, `value`, with random circuits of as many edges."""
    runs, count = shared.runs, settings.random_circuits
    masks = sample_random_circuits(runs, size, kind, count, seed=settings.seed)
    return random_baseline(runs, masks, value, kind)


def _necessities(
    shared: HeldOutRuns, circuit: Circuit, settings: TraceSettings
) -> tuple[EdgeNecessity, ...]:
    return minimality(shared.runs, circuit, added=settings.added_edges, seed=settings.seed)


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
    own: Pattern, circuit: Circuit, shared: HeldOutRuns, settings: TraceSettings
) -> tuple[tuple[Specificity, ...], str]:
    """Ablate the circuits of two patterns in the tasks of both, or say why this cannot be done."""
    other = settings.other_pattern
    if isinstance(other, str):
        return (), "no other pattern was named"
    if own.user_pairs:
        return (), "a file of pairs is not held against a pattern"
    if other.name == own.name:
        return (), f"the other pattern is {own.name!r} itself"
    try:
        return _specificity_against(other, own, circuit, shared, settings)
    except ProbeError as error:
        # Nobody asked about the other pattern: what is wrong with it must not cost the trace.
        return (), f"{other.name!r} cannot be traced, as {' '.join(str(error).split())}"


def _specificity_against(
    other: Pattern, own: Pattern, circuit: Circuit, shared: HeldOutRuns, settings: TraceSettings
) -> tuple[tuple[Specificity, ...], str]:
    """See `_cross_specificity`; the other pattern's circuit is as large as this one."""
    model, seed = shared.model, settings.seed
    other = pattern_in_format(other, str(own.wrapper.format), [model])
    gate = measure_gate(model, other, seed=seed)[0]
    if gate.state in ("closed", "too few to tell"):
        return (), gate.closed_reason if gate.state == "closed" else gate.too_few_reason
    settings = replace(settings, answer=gate.answer, contrasts=())
    discovery, held_out = sample_tasks(model, other, settings)
    scores = edge_attribution(model, discovery, method=settings.scoring, roles=shared.roles)
    runs = run_references(model, held_out, roles=shared.roles, ablation=shared.ablation)
    return specificity(
        {own.name: shared.runs, other.name: runs},
        {own.name: circuit, other.name: scores.top(len(circuit))},
        seed=seed,
    ), ""
