"""Comparison of the traced circuits of two models with the same graph.

trace of each model on the same prompts → marks of edges; each circuit in the other model;
scores of all edges in both models → which edges differ
"""

from dataclasses import replace

import numpy as np

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.faithfulness import SPECIFICITY_CIRCUITS, edge_masks
from probes.circuits.result import Trace
from probes.circuits.runs.reference import run_references
from probes.circuits.selection import random_paths
from probes.circuits.task import sample_tasks
from probes.circuits.trace import trace
from probes.circuits.trace_plan import TraceSettings
from probes.comparison.circuits.compare import changed_edges, require_same_graph
from probes.comparison.circuits.edge_tests import min_detectable_edges
from probes.comparison.circuits.trace_result import EdgeMark, TraceComparison, TracedEdge
from probes.comparison.circuits.transfer import evaluate_transfer
from probes.models.model import Model, ModelSpec, load
from probes.observe.format.kept import pattern_in_format
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern
from probes.scale.commands import remember_in
from probes.scale.engine import open_engine


def compare_traces(  # noqa: PLR0913 (those of `trace`, and a second model)
    a: ModelSpec,
    b: ModelSpec,
    pattern: str | Pattern = "take-away",
    *,
    keep: float = 0.9,
    roles: bool = False,
    settings: TraceSettings | None = None,
) -> TraceComparison:
    """Trace the circuit of a behavior in two models, and compare the circuits edge by edge.

    Args:
        a, b: Models with the same graph and vocabulary, or names that `load` takes.
        pattern, keep, roles: As in `trace`.
        settings: As in `trace`; a budget is that of each trace.

    Raises:
        CircuitError: The models differ in their graphs or tokens.
        GateError: A model does not have the behavior.
    """
    settings = settings or TraceSettings()
    chosen = find_pattern(pattern) if isinstance(pattern, str) else pattern
    one, two = (load(each, device=settings.device) for each in (a, b))
    if one.name == two.name:
        two = replace(two, name=f"{two.name} (2)")
    require_same_graph(one, two)
    chosen = pattern_in_format(chosen, settings.format, [one, two], seed=settings.seed)
    settings = replace(settings, format="plain")  # The pattern is in its format now.
    with open_engine(settings.engine, workers=settings.workers, device=settings.device) as engine:
        on_engine = replace(settings, engine=engine)
        first, second = (
            trace(model, chosen, keep=keep, roles=roles, settings=on_engine) for model in (one, two)
        )
    return remember_in(
        settings, "comparison of traces", _compare, (one, two), chosen, settings, (first, second)
    )


def _compare(
    models: tuple[Model, Model],
    pattern: Pattern,
    settings: TraceSettings,
    traces: tuple[Trace, Trace],
) -> TraceComparison:
    seed, circuits = settings.seed, tuple(each.circuit for each in traces)
    roles = bool(circuits[0].graph.roles)
    settings = replace(settings, answer=traces[0].gate.answer)
    discovery, held_out = sample_tasks(models[0], pattern, settings)
    scores = [
        edge_attribution(model, discovery, method=settings.scoring, roles=roles) for model in models
    ]
    transfers, drops = [], []
    for at, model in enumerate(models):
        runs = run_references(model, held_out, roles=roles, ablation=settings.ablation)
        masks = edge_masks(runs, [circuits[at], circuits[1 - at]])
        transfers.append(
            evaluate_transfer(runs, *masks, random_circuits=SPECIFICITY_CIRCUITS, seed=seed)
        )
        drops.append(float((runs.clean_logit_diffs - runs.ablated_logit_diffs).mean()))
    changes, groups = changed_edges(discovery, scores, max(drops), seed=seed)
    changed, own, others = {c.edge for c in changes}, *({*each.edges} for each in circuits)
    graph = scores[0].graph
    edges = sorted(own | others, key=graph.index_of)
    values = [(s.mean.tolist(), s.error.tolist()) for s in scores]
    found = []
    for edge in edges:
        mark: EdgeMark = "both" if edge in own & others else "a only" if edge in own else "b only"
        at = graph.index_of(edge)
        (a, a_error), (b, b_error) = ((mean[at], error[at]) for mean, error in values)
        found.append(TracedEdge(str(edge), mark, a, b, a_error, b_error, str(edge) in changed))
    return TraceComparison(
        *traces,
        edges=tuple(found),
        in_a=transfers[0],
        in_b=transfers[1],
        random_jaccards=_random_jaccards(circuits, seed),
        min_detectable_edges=min_detectable_edges(groups, len(graph)),
    )


def _random_jaccards(circuits: tuple[Circuit, ...], seed: int) -> tuple[float, ...]:
    """Jaccard index of circuits of random paths, as large as the two circuits."""
    rng, graph, values = np.random.default_rng(seed), circuits[0].graph, []
    for _ in range(SPECIFICITY_CIRCUITS):
        one, two = ({*random_paths(graph, len(each), rng).tolist()} for each in circuits)
        values.append(len(one & two) / len(one | two))
    return tuple(values)
