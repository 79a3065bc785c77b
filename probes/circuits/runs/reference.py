"""Reference runs: the clean run of a task, and the run with every edge ablated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from einops import einsum
from jaxtyping import Int
from torch import Tensor

from probes.circuits.runs.ablated_values import (
    RoleMeans,
    WriterValues,
    require_roles,
    role_means,
    role_sums,
)
from probes.circuits.runs.held import (
    Ablation,
    HeldRuns,
    ReferenceRuns,
    Run,
    RunSetup,
    readout_logit_diffs,
)
from probes.circuits.task import Task, require_task
from probes.errors import CircuitError
from probes.models.layers.decoder import (
    DecoderActivations,
    DecoderInputs,
    DecoderWeights,
    apply_rotary,
    capture_decoder,
    decompose,
)
from probes.models.layers.norm import IDENTITY
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.model import Model
from probes.models.run_checks import require_eval, require_unedited

T = TypeVar("T")

# Floats of the activations of both runs that are kept: 2 GB.
_MAX_RUN_FLOATS = 1 << 29


@dataclass(frozen=True, eq=False)
class StreamedRuns(ReferenceRuns):
    """Reference runs of many pairs, which are made anew for some of these at a time."""

    maker: "_RunMaker" = field(repr=False)

    def each_part(self, run: Callable[[HeldRuns], T]) -> Iterator[T]:
        """The results of parts of the prompts."""
        yield from self.maker.each_part(run)


@dataclass(frozen=True, eq=False)
class _RunMaker(RunSetup):
    """Makes the runs of parts of a task."""

    means: RoleMeans | None

    def each_part(self, run: Callable[[HeldRuns], T]) -> Iterator[T]:
        rows = torch.arange(len(self.task), device=self.model.device)
        return run_micro_batches(
            self.model,
            rows,
            lambda part: run(self.hold(part)),
            _batches(self.model, self.task),
        )

    def hold(self, rows: Int[Tensor, " row"]) -> HeldRuns:
        """Runs of some pairs."""
        task = self.task if len(rows) == len(self.task) else self.task[rows]
        first, weights = self.first_position, self.weights
        entry, clean = _capture_run(self.model, weights, task, task.clean, first)
        if self.ablation == "counterfactual":
            _, ablated = _capture_run(self.model, weights, task, task.counterfactual, first)
        else:
            values = _zeros(clean)
            if self.means is not None:
                values = self.means.at(task, self.model.shape.heads)
            ablated = _run_with_constants(clean, weights, entry, values)
        at = (torch.arange(len(task), device=self.model.device), task.readout - first)
        shared = (self.model, task, self.graph, self.ablation, weights, first)
        logit_diffs = (
            readout_logit_diffs(weights, task, run.activations.resid_final[at][None])[0]
            for run in (clean, ablated)
        )
        return HeldRuns(*shared, *logit_diffs, entry=entry, clean=clean, ablated=ablated)


@torch.no_grad()
def run_references(
    model: Model,
    task: Task,
    *,
    roles: bool = False,
    ablation: Ablation = "counterfactual",
    mean_task: Task | None = None,
) -> ReferenceRuns:
    """Run a task's clean and counterfactual prompts once, for all circuits.

    The activations are kept where they take at most 2 GB. Those of more pairs are computed anew
    for each call that runs circuits, so that memory does not grow with the number of pairs.

    Args:
        model: A decoder whose blocks are sums of heads and MLP, with or without post-norms.
        task: The pairs of prompts.
        roles: Whether edges are resolved by roles.
        ablation: What an ablated edge carries: its counterfactual value, its mean over tokens of
            the same role in the counterfactuals of `mean_task`, or zero.
        mean_task: The prompts of means; by default the task itself.

    Raises:
        ModelError: The blocks are no plain sums, the model is in training mode or edited, or a
            run fails.
        BatchError: `mean_task` lacks a role of the task.
        CircuitError: The ablation is unknown, or the task is none.
    """
    if ablation not in ("counterfactual", "mean", "zero"):
        raise CircuitError(
            f"The ablation {ablation!r} is unknown: use 'counterfactual', 'mean' or 'zero'"
        )
    require_eval(model)
    require_unedited(model)
    weights, task = decompose(model), require_task(task).to(model)
    first = task.first_difference if ablation == "counterfactual" else 0
    first = min(first, int(task.readout.min()))
    means = None
    if ablation == "mean":
        means = _role_means(model, weights, task, task if mean_task is None else mean_task)
    graph = task.computation_graph(model, roles=roles)
    maker = _RunMaker(model, task, graph, ablation, weights, first, means)
    kept: list[HeldRuns] = []

    def measure(runs: HeldRuns) -> tuple[Tensor, Tensor]:
        if len(runs.task) == len(task):
            kept.append(runs)
        return runs.clean_logit_diffs, runs.ablated_logit_diffs

    clean, ablated = (torch.cat(each) for each in zip(*maker.each_part(measure), strict=True))
    if kept:
        return kept[0]
    return StreamedRuns(model, task, graph, ablation, weights, first, clean, ablated, maker)


def _batches(model: Model, task: Task) -> MicroBatches:
    """Most pairs whose runs are in memory."""
    shape, width = model.shape, task.clean.shape[1]
    heads, kv_heads = shape.heads * shape.d_head, shape.kv_heads * shape.d_head
    # While a run is recorded, it has all positions.
    floats = width * (3 * shape.d_model + 2 * heads + 2 * kv_heads)
    pairs = _MAX_RUN_FLOATS // (2 * shape.layers * floats)
    return MicroBatches("recording runs", max(1, pairs), width)


def _role_means(model: Model, weights: DecoderWeights, task: Task, other: Task) -> RoleMeans:
    """Means over the tokens of the counterfactuals of another task."""
    require_roles(task, other)
    other = other.to(model)

    def run(rows: Int[Tensor, " row"]) -> list[Tensor]:
        part = other[rows]
        _, activations = capture_decoder(
            model, weights, part.counterfactual, part.mask, part.readout
        )
        return role_sums(part, activations)

    rows = torch.arange(len(other), device=model.device)
    return role_means(other.roles, run_micro_batches(model, rows, run, _batches(model, other)))


def _zeros(run: Run) -> WriterValues:
    z, mlp_out = (tuple(map(torch.zeros_like, values)) for values in (run.z, run.mlp_out))
    return torch.zeros_like(run.embed), z, mlp_out


def _capture_run(
    model: Model, weights: DecoderWeights, task: Task, ids: Tensor, first: int
) -> tuple[DecoderInputs, Run]:
    """Run of token ids; what is before the first position is freed before the next run."""
    entry, activations = capture_decoder(model, weights, ids, task.mask, task.readout)
    return entry, Run.begin(activations, first)


def _run_with_constants(
    clean: Run, weights: DecoderWeights, entry: DecoderInputs, values: WriterValues
) -> Run:
    """Run in which every edge carries a constant, and readers read the sums of these."""
    embed, z, mlp_out = values
    run = clean.activations
    parts = {name: [] for name in ("resid_pre", "resid_mid", "q", "k", "v", "z", "mlp_out")}
    post_norm = None
    shift, resid = embed - run.embed, entry.position_embed + embed
    for number, (layer, rotary) in enumerate(zip(weights.layers, entry.rotary, strict=True)):
        post_norm = None if layer.attn_post_norm is IDENTITY else layer.attn_post_norm
        pre = run.resid_pre[number] + shift if post_norm is None else resid
        y = layer.attn_norm(pre)
        q, k = (apply_rotary(layer.project(port, y), rotary) for port in "qk")
        v = layer.project("v", y)
        new_z = layer.attend(q, k, v, layer.visible_keys(entry.attention_mask))
        if post_norm is None:
            heads = einsum(z[number] - run.z[number], layer.o, "b t h e, h e d -> b t d")
            mid = run.resid_mid[number] + shift + (0 if weights.parallel else heads)
            shift = shift + heads + mlp_out[number] - run.mlp_out[number]
        else:  # Summed anew: a post-norm would amplify the rounding errors of differences.
            mid = resid + post_norm(layer.sum_heads(z[number]))
            resid = mid + mlp_out[number]
        out = layer.mlp(layer.mlp_norm(mid))
        for name, value in zip(parts, (pre, mid, q, k, v, new_z, out), strict=True):
            parts[name].append(value)
    activations = DecoderActivations(
        embed=run.embed,
        resid_final=run.resid_final + shift if post_norm is None else resid,
        **{name: tuple(layers) for name, layers in parts.items()},
    )
    return Run(activations, embed, z, mlp_out)
