"""Edge attribution: EAP, EAP-IG and exact scores of all edges.

    score(u→v) = <a_u - a'_u, gradient of the logit difference at the input of v>, over positions

a_u, a'_u: outputs of u in the clean and the counterfactual run. All readers of a norm see the same
residual, so their gradients are taken at q, k and v and carried back in closed form through the
head's matrix and the norm. One matrix product per layer then scores all edges into it. A norm
behind attention multiplies a_u - a'_u of a head by its Jacobian at the sum of heads of the run in
which the gradient is taken: a score is the slope of the edge patched exactly (`patched_pass`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from probes.circuits.edges.edge_scores import EdgeScores, RunningMoments
from probes.circuits.edges.gradient_check import check_gradients
from probes.circuits.edges.gradients import (
    SUM_TOLERANCE,
    GradientRecorder,
    ReaderGradients,
    WriterOutputs,
)
from probes.circuits.edges.path_patching import edge_patching
from probes.circuits.graph import ComputationGraph
from probes.circuits.task import Task
from probes.errors import CircuitError, ModelError
from probes.interventions.activation_patching import restart_problem
from probes.models.layers.decoder import decompose
from probes.models.model import Model
from probes.models.run_checks import require_eval, require_unedited

# Floats that a pass with gradients keeps per token, layer and unit of width.
_FLOATS_PER_UNIT, _MAX_GRADIENT_FLOATS = 20, 20_000_000
# Floats of the writers' changes that are multiplied at once: they stay in the cache.
_MAX_BLOCK_FLOATS = 4_000_000
_CHECKED_BATCHES = 3  # An inconclusive check of gradients costs many passes: it is retried twice.


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
    model: Model,
    task: Task,
    *,
    method: AttributionMethod = "eap-ig",
    roles: bool = False,
    per_prompt: bool = True,
) -> EdgeScores:
    """Scores of every edge of a model for a task.

    Args:
        model: A decoder whose residual stream is the sum of embedding, attention and MLPs.
        task: Aligned pairs of prompts.
        method: "eap-ig" (`EAPIG()`), "eap" (`EAP()`), or "exact": each edge in turn carries the
            counterfactual's value.
        roles: Whether edges are resolved by roles.
        per_prompt: Whether scores of single prompts are kept; otherwise memory does not grow with
            the number of prompts.

    Raises:
        ModelError: The model is in training mode, not finite, no plain sum, or has wrong gradients.
        CircuitError: The method is unknown.
    """
    named = {"eap-ig": EAPIG(), "eap": EAP(), "exact": "exact"}
    chosen = named.get(method) if isinstance(method, str) else method
    if chosen is None:
        raise CircuitError(f"The method {method!r} is unknown: use 'eap-ig', 'eap' or 'exact'")
    require_eval(model)
    require_unedited(model)
    task, graph = task.to(model), task.computation_graph(model, roles=roles)
    if isinstance(chosen, str):
        label, batches = "exact, one by one", iter([edge_patching(model, task, roles=roles).T])
    else:
        label, batches = str(chosen), _gradient_scores(model, task, graph, chosen.points)
    moments, kept = RunningMoments(len(graph)), []
    for scores in batches:
        moments.add(scores)
        if per_prompt:
            kept.append(scores.cpu())
    protocol = (
        ("method", label),
        ("task", task.name),
        ("prompts", str(len(task))),
        ("granularity", "edges by role" if roles else "edges"),
        ("ablation", "counterfactual"),
        ("direction", "clean to counterfactual"),
    )
    rows = torch.cat(kept) if per_prompt else None
    return EdgeScores(model.name, graph, len(task), *moments.result(), rows, protocol)


def _gradient_scores(
    model: Model, task: Task, graph: ComputationGraph, points: tuple[float, ...]
) -> Iterator[Float[Tensor, "prompt edge"]]:
    shape, weights, by_role = model.shape, decompose(model), bool(graph.roles)
    width = task.clean.shape[1] - (task.first_difference if restart_problem(model) is None else 0)
    step = max(1, _MAX_GRADIENT_FLOATS // (_FLOATS_PER_UNIT * width * shape.layers * shape.d_model))
    for number, start in enumerate(range(0, len(task), step)):
        part = task[start : start + step]
        recorder = GradientRecorder.begin(model, weights, part, by_role=by_role)
        is_due = number < _CHECKED_BATCHES and "gradients" not in model.passed_checks
        if is_due and check_gradients(recorder):
            model.passed_checks.add("gradients")
        yield _GradientScorer(recorder, graph).scores(points)


@dataclass(frozen=True, eq=False)
class _GradientScorer:
    """Scores of a batch of prompts: writers' changes contracted with readers' gradients."""

    recorder: GradientRecorder
    graph: ComputationGraph

    def scores(self, points: tuple[float, ...]) -> Float[Tensor, "prompt edge"]:
        """Mean of the scores over points between the embeddings of the two runs."""
        recorder, task = self.recorder, self.recorder.task
        ends = {1.0: task.clean, 0.0: task.counterfactual}
        known = {point: recorder.gradients(ends[point]) for point in points if point in ends}
        clean, other = (
            (known[point].outputs if point in known else None) or recorder.outputs(ids)
            for point, ids in ends.items()
        )
        total = torch.zeros(len(task), len(self.graph), device=recorder.model.device)
        size = len(self.graph.writers) * clean.embed[0].numel()
        chunk = max(1, _MAX_BLOCK_FLOATS // size)
        for point in points:
            run = known.pop(point, None)
            run = run or recorder.gradients(task.clean, other.embed.lerp(clean.embed, point))
            for rows in torch.arange(len(task)).split(chunk):
                changes = self._writer_changes(clean, other, rows, run)
                scores = torch.cat([*self._score_edges(run, changes, rows)], -1)
                self._check_embedding_scores(scores, changes[:, 0], run.grads["embed"][0][rows])
                total[rows] += scores / len(points)
            del run, changes, scores  # frees memory before the next pass
        return total

    def _writer_changes(
        self, clean: WriterOutputs, other: WriterOutputs, rows: Tensor, run: ReaderGradients
    ) -> Float[Tensor, "prompt writer position d_model"]:
        """Clean minus counterfactual output of every writer, as readers of the run receive it."""
        heads = self.recorder.model.shape.heads
        embed = (clean.embed[rows] - other.embed[rows])[:, None]
        changes = embed.new_empty((len(rows), len(self.graph.writers), *embed.shape[2:]))
        changes[:, :1] = embed
        for number, layer in enumerate(self.recorder.weights.layers):
            start = 1 + number * (heads + 1)
            z = clean.z[number][rows] - other.z[number][rows]
            change = rearrange(z, "b t h e -> b h t e") @ layer.o
            if (heads_sum := run.heads_sum[number]) is not None:
                change = layer.attn_post_norm.forward_change(change, heads_sum[rows][:, None])
            changes[:, start : start + heads] = change
            changes[:, start + heads] = clean.mlp_out[number][rows] - other.mlp_out[number][rows]
        return changes

    def _score_edges(
        self, run: ReaderGradients, changes: Tensor, rows: Tensor
    ) -> Iterator[Float[Tensor, "prompt edge"]]:
        """Scores of the edges into q, into k and v, and into the MLP of each layer, then logits."""
        weights, heads = self.recorder.weights, self.recorder.model.shape.heads
        for number, layer in enumerate(weights.layers):
            upstream = 1 + number * (heads + 1)
            pre, mid = run.pre[number][rows][:, None], run.mid[number][rows][:, None]
            resid = pre[:, 0]
            q = layer.input_gradient("q", run.grads["q"][number][rows], resid)
            q = layer.attn_norm.backward(q, pre)
            yield self._contract(changes[:, :upstream], q, rows)
            keys_values = [
                layer.attn_norm.backward(layer.input_gradient(port, grad, resid), pre)
                for port, grad in self._key_value_gradients(run, number, rows)
            ]
            yield self._contract_keys_values(changes[:, :upstream], keys_values, rows)
            mlp = run.grads["mlp"][number][rows][:, None]
            upstream += 0 if weights.parallel else heads
            mlp = layer.mlp_norm.backward(mlp, mid)
            yield self._contract(changes[:, :upstream], mlp, rows)
        last = run.grads["logits"][0][rows][:, None]
        yield self._contract(changes, last, rows, logits=True)

    def _key_value_gradients(
        self, run: ReaderGradients, number: int, rows: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        """Gradients at k, then at v, with the port; with roles, one for each querying role."""
        if not self.graph.roles:
            yield "k", run.grads["k"][number][rows]
            yield "v", run.grads["v"][number][rows]
            return
        by_role = []
        for role in range(len(self.graph.roles)):
            role_of = self.recorder.task.role_of[:, self.recorder.span]
            has_role = (role_of == role)[..., None, None]
            z_grad = run.grads["z"][number] * has_role
            by_role.append([grad[rows] for grad in run.keys_and_values(number, z_grad)])
        for index, port in enumerate("kv"):
            for grads in by_role:
                yield port, grads[index]

    def _contract(
        self, changes: Tensor, grads: Tensor, rows: Tensor, *, logits: bool = False
    ) -> Float[Tensor, "prompt edge"]:
        """Scores of edges that stay at their role, by reader, role and writer."""
        if not self.graph.roles:
            return torch.bmm(grads.flatten(2), changes.flatten(2).transpose(1, 2)).flatten(1)
        scores = self._contract_by_role(changes, grads, rows)
        if logits:
            scores = scores[:, :, [self.graph.roles.index(role) for role in self.graph.readouts]]
        return scores.flatten(1)

    def _contract_keys_values(
        self, changes: Tensor, grads: list[Tensor], rows: Tensor
    ) -> Float[Tensor, "prompt edge"]:
        """Scores of edges into keys and values, which are read at one role for another."""
        if not self.graph.roles:
            return self._contract(changes, torch.cat(grads, 1), rows)
        count, scores = len(self.graph.roles), []
        pairs = torch.tensor(self.graph.role_index_pairs(self.recorder.model.shape.heads))
        source, target = pairs.to(changes.device).unbind(1)
        for port in (grads[:count], grads[count:]):
            # prompt reader source_role target_role writer
            each = torch.stack([self._contract_by_role(changes, g, rows) for g in port], 3)
            scores.append(each[:, :, source, target].flatten(1))
        return torch.cat(scores, 1)

    def _contract_by_role(
        self, changes: Tensor, grads: Tensor, rows: Tensor
    ) -> Float[Tensor, "prompt reader role writer"]:
        by_position = einsum(grads, changes, "b v t d, b u t d -> b v t u")
        role = self.recorder.task.role_of[rows, self.recorder.span]
        one_hot = torch.nn.functional.one_hot(role.clamp(min=0), len(self.graph.roles))
        one_hot = one_hot.to(by_position.dtype) * (role >= 0)[..., None]
        return einsum(by_position, one_hot, "b v t u, b t r -> b v r u")

    def _check_embedding_scores(self, scores: Tensor, change: Tensor, grad: Tensor) -> None:
        """Compare the embedding's edges with the gradient that autograd carried to it."""
        from_embed = torch.from_numpy(self.graph.edge_table[0] == 0).to(scores.device)
        total, whole = scores[:, from_embed].sum(1), (change * grad).flatten(1).sum(1)
        size = scores[:, from_embed].abs().sum(1) + whole.abs()
        gap = float(((total - whole).abs() / size.clamp(min=1e-6)).max())
        if not gap <= SUM_TOLERANCE[self.recorder.model.dtype]:
            raise ModelError(
                f"The gradients of {self.recorder.model.name} do not add up: the edges of the "
                f"embedding differ by {gap:.1e} of their size from its own gradient. Its layers "
                "are not supported, or its modules have wrong gradients: dequantize it."
            )
