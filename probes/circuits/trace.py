"""Trace: the smallest circuit that a pattern drives in one model, and how sure that is.

gate → pairs, half to find by, half to judge by → scores → cut → judge beside chance
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes.circuits.attribution import AttributionMethod, edge_attribution
from probes.circuits.circuit import Circuit
from probes.circuits.edge_scores import EdgeScores
from probes.circuits.faithfulness import (
    EdgeNecessity,
    Faithfulness,
    FaithfulnessCurve,
    RandomBaseline,
    Specificity,
    edge_masks,
    evaluate_masks,
    faithfulness_curve,
    faithfulness_values,
    minimality,
    random_baseline,
    sample_random_circuits,
    specificity,
)
from probes.circuits.reference_runs import Ablation, ReferenceRuns, run_references
from probes.circuits.task import Task, TaskSettings, require_open_gate, sample_tasks
from probes.errors import CircuitError, GateError
from probes.files import to_jsonable
from probes.models.model import Model, load
from probes.observe.gate import Gate
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.pattern import Pattern
from probes.result import Result

SCHEMA = 1
STABILITY_THRESHOLD = 0.8
"""The field's bar for the mean Jaccard of circuits found in resampled prompts."""

_RANDOM_CIRCUITS = 100


@dataclass(frozen=True, slots=True, repr=False)
class Trace(Result):
    """A circuit, and what speaks for and against it.

    Attributes:
        circuit: What was found.
        gate: Whether the model does the task at all.
        keep: The faithfulness that was asked for.
        found: Faithfulness on the prompts that it was found by.
        held_out: The same on prompts that it was not found by.
        curve: Faithfulness of the best edges at growing sizes, on the held-out prompts.
        chances: Circuits of as many edges drawn by lot, on the held-out prompts.
        stability: Mean Jaccard of the best edges, as many, over resampled prompts.
        needs: Whether each edge is needed, on the held-out prompts.
        damages: What cutting out this circuit, or another pattern's, leaves of both; empty where
            the model cannot do the other.
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
        """Say what was found, a plain sentence each."""
        circuit, held = self.circuit, self.held_out
        task = dict(circuit.protocol).get("task", "the task")
        lines = [
            f"{circuit.model} on {task}: right in {self.gate.accuracy.value:.0%}; the gate is "
            f"{self.gate.state}.",
            f"{held.edges} of {len(circuit.graph)} edges ({held.fraction:.2%}) hold "
            f"{held.value} of the lead on held-out prompts ({self.discovery.value} where they were "
            f"found; asked for {self.keep}); the answer still leads in {held.positive_fraction.value:.0%}.",
            f"Without them {held.complement} of the lead is left.",
        ]
        for null in self.random_baselines:
            middle, highest = np.median(null.values), max(null.values)
            lines.append(
                f"{len(null.values)} circuits of as many random {null.kind}: median "
                f"{format_fraction(middle)}, highest {format_fraction(highest)}; the circuit exceeds "
                f"{null.percentile:.0%} of them."
            )
        word = "stable" if self.stability >= STABILITY_THRESHOLD else "not stable"
        lines.append(
            f"As many best edges over resampled prompts share {self.stability:.2f} (mean Jaccard; "
            f"the bar is {STABILITY_THRESHOLD}): {word}."
        )
        needed = sum(need.p_value < 0.05 for need in self.edge_necessities)
        lines.append(
            f"{needed} of {len(self.edge_necessities)} edges are needed by themselves (t-test against edges "
            "added by lot, Holm)."
        )
        return (*lines, *self._specificity_summary())

    def _specificity_summary(self) -> tuple[str, ...]:
        """Say whether the circuit is this task's alone."""
        left = {(d.cut_circuit, d.task): d.remaining for d in self.specificities}
        if not left:
            return ()
        own, other = dict.fromkeys(d.task for d in self.specificities)
        stranger, lot = left[own, other], left["random paths", other]
        word = "does more" if stranger < lot else "does no more"
        return (
            f"Cutting it out leaves {format_fraction(left[own, own])} of {own!r} and {format_fraction(stranger)} of "
            f"{other!r}, where as many edges of random paths leave {format_fraction(lot)}: it {word} damage "
            f"to {other!r} than chance does. As many edges of {other!r} leave "
            f"{format_fraction(left[other, own])} of {own!r}.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values; what is not finite becomes null."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        own["circuit"] = json.loads(self.circuit.to_json())
        return {"schema": SCHEMA, "summary": list(self.summary())} | to_jsonable(own)

    def __repr__(self) -> str:
        held = self.held_out
        return f"<Trace of {self.circuit.model}: {held.edges} edges hold {held.value}>"


def trace(  # noqa: PLR0913 (the job has its settings)
    model: str | Path | Model,
    pattern: str | Pattern = "take-away",
    *,
    keep: float = 0.9,
    method: AttributionMethod = "eap-ig",
    ablation: Ablation = "counterfactual",
    answer: str = "",
    contrasts: Sequence[str] = (),
    other_pattern: str | Pattern = "taken",
    roles: bool = False,
    prompts: int = 32,
    seed: int = 0,
) -> Trace:
    """Cut out the smallest circuit that keeps a stated share of a behavior, and judge it.

    Args:
        model: A family name, a folder, a hub id or a loaded model.
        pattern: What is asked; a pattern, its name, or a .jsonl file.
        keep: The faithfulness to keep on the prompts that the circuit is found by, above 0.
        method: How edges are scored; see `attribute`.
        ablation: What a cut edge carries where circuits are judged.
        answer: Which answer is traced; the pattern's first by default.
        contrasts: What the counterfactuals change; by default all that change the answer.
        against: Another pattern, whose circuit of as many edges is cut out for comparison; "" for
            none, and none is where the model cannot do it.
        roles: Whether edges are resolved by roles.
        prompts: Pairs for each contrast, to find by; as many again are held out to judge by.
        seed: Of prompts, bootstrap and random circuits.

    Raises:
        GateError: The model does not have the behavior.
        CircuitError: Even the whole model does not keep so much, or `keep` is not above 0.
    """
    if not 0 < keep <= 1:
        raise CircuitError(f"Cannot keep {keep} of a behavior: ask for a share above 0, up to 1")
    asked = find_pattern(pattern) if isinstance(pattern, str) else pattern
    rival = (
        find_pattern(other_pattern)
        if other_pattern and isinstance(other_pattern, str)
        else other_pattern
    )
    model = load(model)
    opened = require_open_gate(model, asked, answer, seed=seed)
    settings = TaskSettings(
        answer=opened.answer, contrasts=tuple(contrasts), prompts=prompts, seed=seed
    )
    finding, judging = sample_tasks(model, asked, settings)
    graph = edge_attribution(model, finding, method=method, roles=roles)
    here, there = (
        run_references(model, t, roles=roles, ablation=ablation) for t in (finding, judging)
    )
    circuit = prune_circuit(here, graph, keep)
    size = len(circuit)
    judged = evaluate_masks(there, edge_masks(there, [circuit]), seed=seed)[0]
    damages = ()
    if isinstance(rival, Pattern) and rival.name != asked.name and not asked.user_pairs:
        with suppress(GateError):
            rival_answer = require_open_gate(model, rival, seed=seed).answer
            other = TaskSettings(answer=rival_answer, prompts=prompts, seed=seed)
            damages = _cross_specificity(
                (asked, circuit, there), rival.name, sample_tasks(model, rival, other), method, seed
            )
    return Trace(
        circuit=circuit,
        gate=opened,
        keep=keep,
        discovery=evaluate_masks(here, edge_masks(here, [circuit]), seed=seed)[0],
        held_out=judged,
        curve=faithfulness_curve(there, graph, seed=seed),
        random_baselines=tuple(
            random_baseline(
                there,
                sample_random_circuits(there, size, kind, _RANDOM_CIRCUITS, seed=seed),
                judged.value.value,
                kind,
            )
            for kind in ("paths", "edges")
        ),
        stability=graph.stability(size, seed=seed),
        edge_necessities=minimality(there, circuit, seed=seed),
        specificities=damages,
    )


def prune_circuit(runs: ReferenceRuns, edge_scores: EdgeScores, keep: float) -> Circuit:
    """Return the smallest circuit found that keeps a share of the lead on the stage's prompts.

    Edges are ranked by the size of their scores; the smallest head of that list that keeps enough
    is found by bisection, then what does not matter is taken out of it: blocks first, then edge
    by edge, each time by running the circuit without it (ACDC; Conmy et al. 2023, 2304.14997, on
    the survivors only).

    Raises:
        CircuitError: Even all edges do not keep so much.
    """
    gap = float((runs.clean_logit_diffs - runs.ablated_logit_diffs).mean())
    if not abs(gap) > 1e-6:
        raise CircuitError(
            f"The lead falls by {gap:.1e} from the clean run to the replaced one: there is nothing "
            "for a circuit to keep. Choose contrasts that change the answer."
        )
    order = edge_scores.mean.abs().argsort(descending=True, stable=True)

    def enough(numbers: torch.Tensor) -> bool:
        kept = torch.zeros(1, len(edge_scores), dtype=torch.bool)
        kept[0, numbers] = True
        return float(faithfulness_values(runs, kept)[0]) >= keep - 1e-5  # rounding

    if not enough(order):
        whole = float(
            faithfulness_values(runs, torch.ones(1, len(edge_scores), dtype=torch.bool))[0]
        )
        raise CircuitError(
            f"All {len(order)} edges keep {whole:.3f} of the lead, less than {keep:g}: ask for less"
        )
    kept = _prune_edges(order[: _shortest_prefix(order, enough)], enough)
    how = f"bisection and pruning to {keep:.4g}"
    ablation = (("judged by ablation", runs.ablation), ("faithfulness", "ratio of means"))
    found = edge_scores.to_circuit(kept.numpy(), how)
    if runs.ablated.is_consistent:  # or else an edge that nothing feeds still carries a change
        found = found.connected()
    return replace(found, protocol=(*found.protocol, *ablation))


def _shortest_prefix(order: torch.Tensor, is_faithful: Callable[[torch.Tensor], bool]) -> int:
    """Return how long a head of a list must be to be enough, where the whole list is."""
    low, high = 0, 1
    while not is_faithful(order[:high]):
        low, high = high, min(2 * high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_faithful(order[:middle]) else (middle, high)
    return high


def _prune_edges(kept: torch.Tensor, is_faithful: Callable[[torch.Tensor], bool]) -> torch.Tensor:
    """Take out what is not missed: blocks from the weak end first, then smaller ones."""
    block = max(1, len(kept) // 2)
    while True:
        for start in reversed(range(0, len(kept), block)):
            fewer = torch.cat([kept[:start], kept[start + block :]])
            if len(fewer) and is_faithful(fewer):
                kept = fewer
        if block == 1:
            return kept
        block = max(1, block // 2)


def _cross_specificity(
    own_circuit: tuple[Pattern, Circuit, ReferenceRuns],
    name: str,
    tasks: tuple[Task, Task],
    method: AttributionMethod,
    seed: int,
) -> tuple[Specificity, ...]:
    """Cut circuits of as many edges out of two patterns, each out of both."""
    asked, circuit, there = own_circuit
    finding, judging = tasks
    roles = bool(circuit.graph.roles)
    theirs = edge_attribution(there.model, finding, method=method, roles=roles).top(len(circuit))
    where = run_references(there.model, judging, roles=roles, ablation=there.ablation)
    stages = {asked.name: there, name: where}
    return specificity(stages, {asked.name: circuit, name: theirs}, seed=seed)


def format_fraction(value: float) -> str:
    """Write a share with two places, and no minus before nothing."""
    return f"{round(float(value), 2) + 0.0:.2f}"
