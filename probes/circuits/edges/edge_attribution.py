"""Edge attribution: EAP, EAP-IG and exact scores of all edges."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.circuits.edges.edge_scores import EdgeScores, RunningMoments
from probes.circuits.edges.gradient_check import check_first_gradients
from probes.circuits.edges.gradient_scores import GradientScorer
from probes.circuits.edges.gradients import GradientRecorder
from probes.circuits.edges.path_patching import edge_patching
from probes.circuits.graph import ComputationGraph
from probes.circuits.task import Task, require_task
from probes.errors import CircuitError
from probes.interventions.activation_patching import restart_problem
from probes.models.layers.decoder import decompose
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.model import Model, ModelSpec, load
from probes.models.run_checks import require_eval, require_unedited

_MAX_GRADIENT_FLOATS = 60_000_000  # Activations that a pass with gradients keeps.


@dataclass(frozen=True, slots=True)
class EAP:
    """Edge attribution patching: one gradient (Syed et al. 2023, 2310.10348).

    Attributes:
        gradient_at: Where it is taken: 1 in the clean run, 0 in the counterfactual run, and at a
            point between their embeddings otherwise.
    """

    gradient_at: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.gradient_at <= 1:
            raise CircuitError(
                f"EAP cannot take its gradient at {self.gradient_at}: use a value from 0 to 1"
            )

    @property
    def points(self) -> tuple[float, ...]:
        """Where gradients are taken."""
        return (self.gradient_at,)

    def __str__(self) -> str:
        return f"eap, gradient at {self.gradient_at:g}"


@dataclass(frozen=True, slots=True)
class EAPIG:
    """EAP with integrated gradients (Hanna et al. 2024, 2403.17806).

    Attributes:
        steps: Number of equal steps between the embeddings of the two runs; gradients are taken at
            their midpoints and averaged.
    """

    steps: int = 5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise CircuitError(f"EAP-IG cannot integrate in {self.steps} steps: use at least 1")

    @property
    def points(self) -> tuple[float, ...]:
        """Where gradients are taken."""
        return tuple((step + 0.5) / self.steps for step in range(self.steps))

    def __str__(self) -> str:
        return f"eap-ig, {self.steps} midpoints"


AttributionMethod = Literal["eap-ig", "eap", "exact"] | EAP | EAPIG


def edge_attribution(
    model: ModelSpec,
    task: Task,
    *,
    method: AttributionMethod = "eap-ig",
    roles: bool = False,
    per_prompt: bool = True,
) -> EdgeScores:
    """Scores of every edge of a model for a task.

    Args:
        model: A decoder whose residual stream is the sum of embedding, attention and MLPs, or
            its name.
        task: Aligned pairs of prompts, as of `Task.from_pairs`.
        method: "eap-ig" (`EAPIG()`), "eap" (`EAP()`), or "exact": each edge in turn carries the
            counterfactual's value.
        roles: Whether edges are resolved by roles.
        per_prompt: Whether scores of single prompts are kept; otherwise memory does not grow with
            the number of prompts.

    Raises:
        ModelError: The model is in training mode, not finite, no plain sum, or has wrong gradients.
        CircuitError: The method is unknown, or the task is none.
    """
    named = {"eap-ig": EAPIG(), "eap": EAP(), "exact": "exact"}
    chosen = named.get(method) if isinstance(method, str) else method
    if chosen is None:
        raise CircuitError(f"The method {method!r} is unknown: use 'eap-ig', 'eap' or 'exact'")
    model, task = load(model), require_task(task)
    require_eval(model)
    require_unedited(model)
    task, graph = task.to(model), task.computation_graph(model, roles=roles)
    if isinstance(chosen, str):
        label, batches = "exact, one by one", iter([edge_patching(model, task, roles=roles).T])
    else:
        label, batches = str(chosen), _gradient_scores(model, task, graph, chosen.points)
    moments, start = RunningMoments(len(graph)), 0
    rows = torch.empty(len(task), len(graph)) if per_prompt else None
    for scores in batches:
        moments.add(scores)
        if rows is not None:
            rows[start : start + len(scores)] = scores.cpu()
            start += len(scores)
    protocol = (
        ("method", label),
        ("task", task.name),
        ("prompts", str(len(task))),
        ("granularity", "edges by role" if roles else "edges"),
        ("ablation", "counterfactual"),
        ("direction", "clean to counterfactual"),
    )
    return EdgeScores(model.name, graph, len(task), *moments.result(), rows, protocol)


def _gradient_scores(
    model: Model, task: Task, graph: ComputationGraph, points: tuple[float, ...]
) -> Iterator[Float[Tensor, "prompt edge"]]:
    weights, by_role = decompose(model), bool(graph.roles)
    width = task.clean.shape[1] - (task.first_difference if restart_problem(model) is None else 0)
    what = "edge attribution"
    batches = MicroBatches.of_gradients(
        what, model, width, _MAX_GRADIENT_FLOATS, points=len(points)
    )
    inconclusive: list[Model] = []

    def score(rows: Int[Tensor, " row"]) -> Tensor:
        recorder = GradientRecorder.begin(model, weights, task[rows], by_role=by_role)
        check_first_gradients(recorder, inconclusive)
        return GradientScorer(recorder, graph).scores(points)

    yield from run_micro_batches(model, torch.arange(len(task)), score, batches)
