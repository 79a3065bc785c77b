"""circuits.path_patching."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.circuits.edge_patching import run_circuits
from probes.circuits.graph import LOGITS, Edge
from probes.circuits.reference_runs import ablation_change, run_references
from probes.circuits.task import Task
from probes.errors import CircuitError
from probes.models.model import Model

# Edges cut in one call: the masks are small, and neighbors share their unchanged layers.
_EDGES_PER_PASS = 64


@torch.no_grad()
def edge_patching(
    model: Model, task: Task, *, roles: bool = False, edges: Sequence[Edge] | None = None
) -> Float[Tensor, "edge prompt"]:
    """Cut single edges for good: the exact fall of the lead (logits), edge by edge.

    Each edge in turn carries the counterfactual's value, all else follows from it. Edges into one
    layer go through a pass together, and what stands before them is not computed again.

    Raises:
        CircuitError: An edge does not exist.
    """
    found = run_references(model, task, roles=roles)
    wiring = found.graph
    numbers = np.arange(len(wiring)) if edges is None else wiring.indices_of(edges)
    source, _, role, _ = torch.from_numpy(wiring.edge_table[:, numbers])
    moved = torch.stack([ablation_change(found, writer) for writer in range(len(wiring.writers))])
    moved = (moved != 0).any(-1)  # writer prompt position
    if roles:
        here = torch.stack([found.task.role_of == n for n in range(len(wiring.roles))])
        moved = torch.stack([(moved & mine).any(2).any(1) for mine in here], 1)
    else:
        moved = moved.any(2).any(1)[:, None]
    alive = moved.cpu()[source, role].nonzero()[:, 0]
    result = torch.zeros(len(numbers), len(task), device=model.device)
    for rows in alive.split(_EDGES_PER_PASS):
        kept = torch.ones(len(rows), len(wiring), dtype=torch.bool)
        kept[torch.arange(len(rows)), numbers[rows.numpy()]] = False
        result[rows] = found.clean_logit_diffs - run_circuits(found, kept, start_from="clean")
    return result.cpu()


@torch.no_grad()
def path_patching(model: Model, task: Task, path: Sequence[str]) -> Float[Tensor, " prompt"]:
    """Send the counterfactual along one path and no other: the fall of the lead (logits).

    Args:
        model: A decoder whose blocks are plain sums.
        task: Pairs of prompts.
        path: A writer, then readers, such as ("L0.H1", "L1.H2.v", "logits"): each part is run on
            its clean input, changed by nothing but the part before it. After the last reader all
            follows as usual (path patching; Wang et al. 2022, 2211.00593; Goldowsky-Dill et al.
            2023, 2304.05969).

    Raises:
        CircuitError: Two parts of the path are not joined by an edge.
    """
    found = run_references(model, task)
    wiring = found.graph
    first, readers = next(iter(path), ""), path[1:]
    if not readers or LOGITS in readers[:-1]:
        raise CircuitError(
            f"The path {tuple(path)} does not run from a writer to readers: begin it with one such "
            "as 'embed' or 'L0.H1', and let nothing follow the logits"
        )
    cut = torch.zeros(1, len(wiring), dtype=torch.bool)
    kept, sources = torch.zeros_like(cut), [first]
    for place, reader in enumerate(readers):
        numbers = wiring.indices_of(Edge(source, reader) for source in sources)
        (kept if place else cut)[0, numbers] = True
        owners = wiring.writers_fed_by(wiring.readers.index(reader))
        sources = [wiring.writers[owner] for owner in owners]
    if sources:
        kept[0, wiring.edge_table[0] >= min(owners)] = True
    return (
        found.clean_logit_diffs - run_circuits(found, kept, cut_masks=cut, start_from="clean")[0]
    ).cpu()
