"""Scores of edges from gradients: writers' changes contracted with readers' gradients.

    score(u→v) = <a_u - a'_u, gradient of the logit difference at the input of v>, over positions

a_u, a'_u: outputs of u in the clean and the counterfactual run. All readers of a norm see the same
residual, so their gradients are taken at q, k and v and carried back in closed form through the
head's matrix and the norm. One matrix product per layer then scores all edges into it. A norm
behind attention multiplies a_u - a'_u of a head by its Jacobian at the sum of heads of the run in
which the gradient is taken: a score is the slope of the edge patched exactly (`patched_pass`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from probes.circuits.edges.gradients import (
    SUM_TOLERANCE,
    GradientRecorder,
    ReaderGradients,
    WriterOutputs,
)
from probes.circuits.graph import ComputationGraph
from probes.errors import ModelError
from probes.models.layers.norm import IDENTITY

# Floats of the writers' changes that are multiplied at once: they stay in the cache.
_MAX_BLOCK_FLOATS = 4_000_000


@dataclass(frozen=True, eq=False)
class GradientScorer:
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
        together = len(points) if self._sums_gradients else 1
        for first in range(0, len(points), together):
            runs = [
                known.pop(point, None)
                or recorder.gradients(task.clean, other.embed.lerp(clean.embed, point))
                for point in points[first : first + together]
            ]
            for rows in torch.arange(len(task)).split(chunk):
                changes = self._writer_changes(clean, other, rows, runs[0])
                scores = torch.cat([*self._score_edges(runs, changes, rows)], -1)
                grads = _sum_in_place(run.grads["embed"][0][rows] for run in runs)
                self._check_embedding_scores(scores, changes[:, 0], grads)
                total[rows] += scores / len(points)
            del runs, changes, scores  # frees memory before the next pass
        return total

    @property
    def _sums_gradients(self) -> bool:
        """Whether gradients of several runs are summed before they meet the writers' changes.

        Those changes are the same in all runs, unless a post-norm takes part in them. With roles a
        run keeps its whole autograd graph, so one is scored at a time.
        """
        layers = self.recorder.weights.layers
        return not self.graph.roles and all(layer.attn_post_norm is IDENTITY for layer in layers)

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
        self, runs: Sequence[ReaderGradients], changes: Tensor, rows: Tensor
    ) -> Iterator[Float[Tensor, "prompt edge"]]:
        """Scores of the edges into q, into k and v, and into the MLP of each layer, then logits."""
        weights, heads = self.recorder.weights, self.recorder.model.shape.heads
        for number in range(len(weights.layers)):
            upstream = 1 + number * (heads + 1)
            each = [self._attention_gradients(run, number, rows) for run in runs]
            q, *keys_values = map(_sum_in_place, zip(*each, strict=True))
            if self.graph.roles:
                yield self._contract(changes[:, :upstream], q, rows)
                yield self._contract_keys_values(changes[:, :upstream], keys_values, rows)
            else:
                yield self._contract(changes[:, :upstream], torch.cat([q, *keys_values], 1), rows)
            upstream += 0 if weights.parallel else heads
            norm = weights.layers[number].mlp_norm
            mlp = _sum_in_place(
                norm.backward(
                    run.grads["mlp"][number][rows][:, None], run.mid[number][rows][:, None]
                )
                for run in runs
            )
            yield self._contract(changes[:, :upstream], mlp, rows)
        last = _sum_in_place(run.grads["logits"][0][rows][:, None] for run in runs)
        yield self._contract(changes, last, rows, logits=True)

    def _attention_gradients(
        self, run: ReaderGradients, number: int, rows: Tensor
    ) -> list[Float[Tensor, "prompt reader position d_model"]]:
        """Gradients at the residuals that q reads, then k, then v, of a layer in one run."""
        layer, pre = self.recorder.weights.layers[number], run.pre[number][rows][:, None]
        grads = [("q", run.grads["q"][number][rows])]
        grads += self._key_value_gradients(run, number, rows)
        return [
            layer.attn_norm.backward(layer.input_gradient(port, grad, pre[:, 0]), pre)
            for port, grad in grads
        ]

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


def _sum_in_place(values: Iterable[Tensor]) -> Tensor:
    """Sum of tensors that nothing else holds, in the memory of the first."""
    first, *others = values
    for other in others:
        first.add_(other)
    return first
