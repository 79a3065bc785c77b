"""Exact activation patching by role: what each component carries of each contrast."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.batch import Batch
from probes.counterfactuals import PairBatch
from probes.errors import CircuitError, SiteError
from probes.metrics import lead, pair_foils
from probes.model import Model
from probes.restart import Cell, Recording, patch, record
from probes.splice import run
from probes.staging import carried, stage
from probes.tasks import Task
from probes.wiring import LOGITS, Edge

KINDS = ("heads", "mlps", "resid")

# Edges cut in one call: the masks are small, and neighbours share their unchanged layers.
_TOGETHER = 64


@dataclass(frozen=True, eq=False)
class Effects:
    """How far patching each component at each role moves each answer.

    Attributes:
        model: Name of the model.
        contrast: What the counterfactual changes.
        components: "L0.H3" for heads, "L0.MLP", "L0.resid" for the input of a block.
        roles, answers: The other axes.
        each: The fall of the answer's lead (logits) when the component's output at the role is
            replaced by the counterfactual run's. Positive: the component carries what was
            changed. Zero: it carries nothing of it there. NaN where a prompt lacks the role.
        total: The fall of the lead when everything is replaced: the counterfactual run itself.
        exact: Share of prompts whose tokens all have a counterpart in the counterfactual.
    """

    model: str
    contrast: str
    components: tuple[str, ...]
    roles: tuple[str, ...]
    answers: tuple[str, ...]
    each: Float[Tensor, "prompt component role answer"]
    total: Float[Tensor, "prompt answer"]
    exact: float

    @property
    def mean(self) -> Float[Tensor, "component role answer"]:
        """Mean over the prompts that have the role."""
        return self.each.nanmean(0)

    @property
    def error(self) -> Float[Tensor, "component role answer"]:
        """Standard error of the mean over prompts."""
        count = (~self.each.isnan()).sum(0)
        spread = (self.each - self.mean).square().nansum(0)
        return torch.where(
            count > 1, (spread / (count * (count - 1)).clamp(min=1)).sqrt(), torch.nan
        )


def component_cells(model: Model, kinds: Sequence[str], role: str) -> list[tuple[str, Cell]]:
    """Name the cells of a model for one role.

    Raises:
        SiteError: A kind is unknown.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise SiteError(f"Components {unknown} are unknown: choose from {', '.join(KINDS)}")
    found = []
    for layer in range(model.shape.layers):
        if "resid" in kinds:
            found.append((f"L{layer}.resid", Cell(layer, "resid", role)))
        if "heads" in kinds:
            heads = range(model.shape.heads)
            found += [(f"L{layer}.H{head}", Cell(layer, head, role)) for head in heads]
        if "mlps" in kinds:
            found.append((f"L{layer}.MLP", Cell(layer, "mlp", role)))
    return found


@torch.no_grad()
def sweep(
    model: Model,
    pairs: PairBatch,
    *,
    kinds: Sequence[str] = ("heads", "mlps"),
    roles: Sequence[str] | None = None,
) -> Effects:
    """Patch every component at every role from the counterfactual run into the clean one."""
    roles = tuple(roles) if roles is not None else pairs.clean.roles
    clean = _record(model, pairs.clean)
    source = _record(model, pairs.counterfactual)
    answer = torch.stack([readout.answer for readout in pairs.clean.readouts], 1).to(model.device)
    foils = [found.to(model.device) for found in pair_foils(pairs)]

    def leads(
        logits: Float[Tensor, "row answer vocab"], prompt: Int[Tensor, " row"]
    ) -> Float[Tensor, "row answer"]:
        found = [lead(logits[:, k], foils[k][prompt], answer[prompt, k]) for k in range(len(foils))]
        return torch.stack(found, 1)

    named = [component_cells(model, kinds, role) for role in roles]
    cells = [cell for group in named for _, cell in group]
    where = {role: pairs.where(role).to(model.device) for role in roles}
    every = torch.arange(len(pairs), device=model.device)
    before, after = leads(clean.logits, every), leads(source.logits, every)
    patched = patch(clean, source.aligned(pairs.source.to(model.device)), cells, where, leads)
    fall = (before - patched).reshape(len(roles), -1, len(pairs), len(foils))
    each = fall.permute(2, 1, 0, 3).cpu()
    lacks = torch.stack([~pairs.clean.where(role).any(-1) for role in roles], 1)
    return Effects(
        model=model.name,
        contrast=pairs.contrast,
        components=tuple(name for name, _ in named[0]),
        roles=roles,
        answers=tuple(readout.name for readout in pairs.clean.readouts),
        each=each.masked_fill(lacks[:, None, :, None], torch.nan),
        total=(before - after).cpu(),
        exact=float(pairs.exact.float().mean()),
    )


def _record(model: Model, batch: Batch) -> Recording:
    ids, mask = batch.ids.to(model.device), batch.mask.to(model.device)
    return record(model, ids, mask, batch.positions.to(model.device))


@torch.no_grad()
def cut_edges(
    model: Model, task: Task, *, roles: bool = False, edges: Sequence[Edge] | None = None
) -> Float[Tensor, "edge prompt"]:
    """Cut single edges for good: the exact fall of the lead (logits), edge by edge.

    Each edge in turn carries the counterfactual's value, all else follows from it. Edges into one
    layer go through a pass together, and what stands before them is not computed again.

    Raises:
        CircuitError: An edge does not exist.
    """
    found = stage(model, task, roles=roles)
    wiring = found.wiring
    numbers = np.arange(len(wiring)) if edges is None else wiring.numbers(edges)
    source, _, role, _ = torch.from_numpy(wiring.table[:, numbers])
    moved = torch.stack([carried(found, writer) for writer in range(len(wiring.writers))])
    moved = (moved != 0).any(-1)  # writer prompt position
    if roles:
        here = torch.stack([found.task.role_of == n for n in range(len(wiring.roles))])
        moved = torch.stack([(moved & mine).any(2).any(1) for mine in here], 1)
    else:
        moved = moved.any(2).any(1)[:, None]
    alive = moved.cpu()[source, role].nonzero()[:, 0]
    result = torch.zeros(len(numbers), len(task), device=model.device)
    for rows in alive.split(_TOGETHER):
        kept = torch.ones(len(rows), len(wiring), dtype=torch.bool)
        kept[torch.arange(len(rows)), numbers[rows.numpy()]] = False
        result[rows] = found.leads - run(found, kept, begin="clean")
    return result.cpu()


@torch.no_grad()
def patch_path(model: Model, task: Task, path: Sequence[str]) -> Float[Tensor, " prompt"]:
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
    found = stage(model, task)
    wiring = found.wiring
    first, readers = next(iter(path), ""), path[1:]
    if not readers or LOGITS in readers[:-1]:
        raise CircuitError(
            f"The path {tuple(path)} does not run from a writer to readers: begin it with one such "
            "as 'embed' or 'L0.H1', and let nothing follow the logits"
        )
    cut = torch.zeros(1, len(wiring), dtype=torch.bool)
    kept, sources = torch.zeros_like(cut), [first]
    for place, reader in enumerate(readers):
        numbers = wiring.numbers(Edge(source, reader) for source in sources)
        (kept if place else cut)[0, numbers] = True
        owners = wiring.owners(wiring.readers.index(reader))
        sources = [wiring.writers[owner] for owner in owners]
    if sources:
        kept[0, wiring.table[0] >= min(owners)] = True
    return (found.leads - run(found, kept, cut=cut, begin="clean")[0]).cpu()
