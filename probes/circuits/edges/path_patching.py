"""Edge patching: the logit difference when chosen edges are kept or ablated, exactly."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.circuits.graph import LOGITS, Edge
from probes.circuits.runs.held import HeldRuns, ReferenceRuns, ablation_change
from probes.circuits.runs.patched_pass import PatchedPass
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task
from probes.errors import CircuitError
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.model import ModelSpec, load

# Floats of the writers' changes in one pass: enough for the matrix products, few enough for RAM.
_MAX_FLOATS = 1 << 25
# Floats of one writer's changes up to which circuits share a pass; beyond, sharing saves nothing.
_MAX_SHARED_FLOATS = 1 << 18
# Circuits that share a pass at the least: a pass of one takes what earlier ones have computed.
_FEWEST_SHARED = 4
# Edges cut in one call: the masks are small, and neighbors share their unchanged layers.
_EDGES_PER_PASS = 64


@torch.no_grad()
def edge_patching(
    model: ModelSpec, task: Task, *, roles: bool = False, edges: Sequence[Edge] | None = None
) -> Float[Tensor, "edge prompt"]:
    """Exact drop of the logit difference (logits) when single edges are ablated, edge by edge.

    Each edge in turn carries the counterfactual's value, and everything after it follows. Edges
    into one layer share a pass, which starts at that layer.

    Args:
        model: A decoder whose blocks are sums of heads and MLP, with or without post-norms, or
            its name.
        task: Aligned pairs of prompts, as of `Task.from_pairs`.
        roles: Whether edges are resolved by roles.
        edges: Edges to patch; all of the graph by default.

    Returns:
        A drop for each edge, in the order of `edges` or of the graph, and prompt.

    Raises:
        CircuitError: An edge does not exist.
    """
    model = load(model)
    runs = run_references(model, task, roles=roles)
    graph = runs.graph
    indices = np.arange(len(graph)) if edges is None else graph.indices_of(edges)
    source, _, role, _ = torch.from_numpy(graph.edge_table[:, indices])
    changed = torch.stack([*runs.each_part(_changed_writers)]).any(0)
    result = torch.zeros(len(indices), len(task), device=model.device)
    for rows in changed[source, role].nonzero()[:, 0].split(_EDGES_PER_PASS):
        masks = torch.ones(len(rows), len(graph), dtype=torch.bool)
        masks[torch.arange(len(rows)), indices[rows.numpy()]] = False
        result[rows] = runs.clean_logit_diffs - run_circuits(runs, masks, start_from="clean")
    return result.cpu()


def _changed_writers(runs: HeldRuns) -> Bool[Tensor, "writer role"]:
    """Whether ablation changes each writer at each role, or anywhere without roles."""
    task = runs.task
    of_role = [torch.ones_like(task.role_of, dtype=torch.bool)]
    if runs.graph.roles:
        of_role = [task.role_of == n for n in range(len(runs.graph.roles))]
    at = torch.stack(of_role)[..., runs.first_position :]
    changed = [
        (at & (ablation_change(runs, writer) != 0).any(-1)).any(2).any(1)
        for writer in range(len(runs.graph.writers))
    ]
    return torch.stack(changed).cpu()


@torch.no_grad()
def path_patching(model: ModelSpec, task: Task, path: Sequence[str]) -> Float[Tensor, " prompt"]:
    """Drop of the logit difference (logits) when one path alone carries the counterfactual.

    Args:
        model: A decoder whose blocks are sums of heads and MLP, with or without post-norms, or
            its name.
        task: Aligned pairs of prompts, as of `Task.from_pairs`.
        path: A writer, then readers, such as ("L0.H1", "L1.H2.v", "logits"). Each component on the
            path runs on its clean input, changed only by the component before it; after the last
            reader everything follows (Wang et al. 2022, 2211.00593; Goldowsky-Dill et al. 2023,
            2304.05969).

    Returns:
        The drop of each prompt; above 0, the path supports the answer.

    Raises:
        CircuitError: Two components of the path are not connected by an edge.
    """
    runs = run_references(load(model), task)
    graph = runs.graph
    first, readers = next(iter(path), ""), path[1:]
    if not readers or LOGITS in readers[:-1]:
        raise CircuitError(
            f"The path {tuple(path)} does not run from a writer to readers: start with a writer "
            "such as 'embed' or 'L0.H1', and end with 'logits' at the latest"
        )
    cut = torch.zeros(1, len(graph), dtype=torch.bool)
    kept, sources = torch.zeros_like(cut), [first]
    fed: tuple[int, ...] = ()
    for step, reader in enumerate(readers):
        indices = graph.indices_of(Edge(source, reader) for source in sources)
        (kept if step else cut)[0, indices] = True
        fed = graph.writers_fed_by(graph.readers.index(reader))
        sources = [graph.writers[writer] for writer in fed]
    if fed:
        kept[0, graph.edge_table[0] >= min(fed)] = True
    logit_diffs = run_circuits(runs, kept, cut_masks=cut, start_from="clean")[0]
    return (runs.clean_logit_diffs - logit_diffs).cpu()


@torch.no_grad()
def run_circuits(
    runs: ReferenceRuns,
    masks: Bool[Tensor, "circuit edge"],
    *,
    cut_masks: Bool[Tensor, "circuit edge"] | None = None,
    start_from: Literal["auto", "clean", "replaced"] = "auto",
) -> Float[Tensor, "circuit prompt"]:
    """Logit difference (logits) of every prompt when only the masked edges carry clean values.

    All other edges are cut: they carry the ablated value. With `start_from="clean"`, `cut_masks`
    may cut fewer: an edge that is neither kept nor cut carries its value of the clean run.

    Raises:
        CircuitError: The masks do not match the graph, or the arguments do not fit together.
    """
    for mask in (masks, masks if cut_masks is None else cut_masks):
        if mask.shape != (len(masks), len(runs.graph)):
            raise CircuitError(
                f"The masks are {tuple(mask.shape)}, and {len(masks)} circuits of "
                f"{len(runs.graph)} edges were expected: use masks of this graph"
            )
    if start_from not in ("auto", "clean", "replaced") or (
        cut_masks is not None and start_from != "clean"
    ):
        raise CircuitError(
            f"A pass cannot start from {start_from!r}: use 'auto', 'clean' or 'replaced', and "
            "'clean' with cut_masks"
        )
    masks = masks.to(runs.model.device)
    cut_masks = ~masks if cut_masks is None else cut_masks.to(runs.model.device)
    from_ablated = 2 * masks.sum(1) <= masks.shape[1]
    if start_from != "auto" or not runs.is_consistent:
        # Means and zeros leave residuals so small that subtracting from them loses precision.
        from_ablated = torch.full_like(from_ablated, start_from != "clean")
    parts = runs.each_part(lambda part: _run_part(part, masks, cut_masks, from_ablated))
    return torch.cat([*parts], 1)


def _run_part(
    runs: HeldRuns,
    masks: Bool[Tensor, "circuit edge"],
    cut_masks: Bool[Tensor, "circuit edge"],
    from_ablated: Bool[Tensor, " circuit"],
) -> Float[Tensor, "circuit prompt"]:
    """Logit differences of runs in memory; passes start from the ablated run or the clean one."""
    width = runs.entry.embed.shape[1] - runs.first_position
    size = width * runs.model.shape.d_model
    shared = max(1, _MAX_SHARED_FLOATS // (size * len(runs.task)))
    result = torch.empty(len(masks), len(runs.task), device=runs.model.device)
    every = torch.arange(len(runs.task))
    for ablated in (True, False):
        indices = (from_ablated == ablated).nonzero()[:, 0]
        together = 1 if ablated and shared < _FEWEST_SHARED else shared
        for rows in indices.split(together) if len(indices) else ():

            def run(
                part: Int[Tensor, " row"], rows: Tensor = rows, cuts: bool = not ablated
            ) -> None:
                prompts = slice(int(part[0]), int(part[-1]) + 1)
                batch = PatchedPass(runs, prompts, masks[rows], cut_masks[rows] if cuts else None)
                result[rows, prompts] = batch.logit_diffs().float()

            step = max(1, _MAX_FLOATS // (len(rows) * len(runs.graph.writers) * size))
            batches = MicroBatches("edge patching", step, len(rows) * width)
            for _ in run_micro_batches(runs.model, every, run, batches):
                pass
    return result
