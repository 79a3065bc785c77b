"""Path patching between roles: effects of role graphs, and the search for paths."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.errors import BatchError
from probes.interventions.role_paths.graph import (
    RoleGraph,
    RolePath,
    changed_roles,
    join_paths,
    path_roles,
    readout_role,
)
from probes.interventions.role_paths.runs import RoleRuns, record_role_runs, run_role_graphs
from probes.interventions.sweep import pair_logit_diffs
from probes.models.micro_batches import MicroBatches, run_micro_batches
from probes.models.model import Model
from probes.models.run_checks import require_unedited
from probes.prompts.tokens.pair_batch import PairBatch

_SHORT_PATHS_SUFFICE = 0.9
_MAX_FIRST_STEPS = 3
_MIN_SHARE = 0.25


@torch.no_grad()
def contrast_effects(model: Model, pairs: PairBatch) -> Float[Tensor, "prompt answer"]:
    """Decrease of each answer's logit difference from the clean to the counterfactual run."""
    measure = pair_logit_diffs(pairs, model.device)
    device, at = model.device, pairs.clean.positions

    def run(rows: Int[Tensor, " row"]) -> Tensor:
        clean, other = (
            measure(
                model.logits(*(each[rows].to(device) for each in (batch.ids, batch.mask, at))),
                rows.to(device),
            )
            for batch in (pairs.clean, pairs.counterfactual)
        )
        return (clean - other).cpu()

    batches = MicroBatches("reading answers", len(pairs), pairs.clean.ids.shape[1])
    return torch.cat([*run_micro_batches(model, torch.arange(len(pairs)), run, batches)])


@torch.no_grad()
def patch_role_graphs(
    model: Model, pairs: PairBatch, graphs: Sequence[RoleGraph]
) -> Float[Tensor, "graph prompt answer"]:
    """Decrease of each answer's logit difference when all edges of a graph are patched together.

    A graph without edges gives the clean run; all edges from all changed roles give the
    counterfactual run.

    Args:
        model: Model to patch.
        pairs: Pairs whose tokens are all aligned.
        graphs: Roles and edges to patch.

    Raises:
        BatchError: A pair has tokens without a counterpart.
        ModelError: The model is being edited.
    """
    return _graph_effects(_record_aligned(model, pairs), pairs, graphs)


def _record_aligned(model: Model, pairs: PairBatch) -> RoleRuns:
    require_unedited(model)
    if not bool(pairs.fully_aligned.all()):
        count = int((~pairs.fully_aligned).sum())
        raise BatchError(
            f"{count} of {len(pairs)} pairs have tokens without a counterpart: patch paths of "
            "pairs with equal numbers of tokens"
        )
    return record_role_runs(model, pairs, path_roles(pairs.clean))


def _graph_effects(
    runs: RoleRuns, pairs: PairBatch, graphs: Sequence[RoleGraph]
) -> Float[Tensor, "graph prompt answer"]:
    measure = pair_logit_diffs(pairs, runs.clean.ids.device)
    every = torch.arange(len(pairs), device=runs.clean.ids.device)
    clean = measure(runs.clean.logits, every)

    def run(numbers: Int[Tensor, " graph"]) -> list[Tensor]:
        chosen = [graphs[number] for number in numbers.tolist()]
        return [(clean - measure(one, every)).cpu() for one in run_role_graphs(runs, chosen)]

    # Fewer graphs share a pass where memory runs out.
    batches = MicroBatches("patching role paths", max(1, len(graphs)), runs.clean.ids.numel())
    parts = run_micro_batches(runs.clean.model, torch.arange(len(graphs)), run, batches)
    effects = [effect for part in parts for effect in part]
    return torch.stack(effects) if effects else torch.zeros(0, *clean.shape)


def candidate_paths(
    model: Model, pairs: PairBatch, answer: int
) -> dict[RolePath, Float[Tensor, " prompt"]]:
    """Effect of each path of one or two edges, and of three where these leave effects out.

    Args:
        model: Model to patch.
        pairs: Pairs whose tokens are all aligned.
        answer: Number of the answer whose logit difference is measured.
    """
    end, effects, runs = readout_role(pairs, answer), {}, _record_aligned(model, pairs)

    def measure(graphs: Sequence[RoleGraph]) -> Float[Tensor, "graph prompt"]:
        return _graph_effects(runs, pairs, graphs)[..., answer]

    def add(paths: Sequence[RolePath]) -> None:
        effects.update(zip(paths, measure([path.graph for path in paths]), strict=True))

    for start in changed_roles(pairs):
        between = _roles_between(pairs, start, end)
        short = [RolePath((start, end)), *(RolePath((start, role, end)) for role in between)]
        add(short)
        if not between:
            continue
        by_role = [_by_way_of(start, role, between, end) for role in between]
        whole = RoleGraph(frozenset({start}), frozenset().union(*(g.edges for g in by_role)))
        both = measure([join_paths(short), RoleGraph(whole.starts, whole.edges | {(start, end)})])
        if float(both[0].mean()) > _SHORT_PATHS_SUFFICE * float(both[1].mean()):
            continue
        extra = measure(by_role) - torch.stack([effects[path] for path in short[1:]])
        first = [between[int(k)] for k in extra.mean(1).abs().argsort(descending=True)]
        add(
            [
                RolePath((start, b, c, end))
                for b in first[:_MAX_FIRST_STEPS]
                for c in between
                if b != c
            ]
        )
    return effects


def _by_way_of(start: str, role: str, between: Sequence[str], end: str) -> RoleGraph:
    """All paths of up to three edges whose first step is to a role."""
    edges = {(start, role), (role, end)}
    for other in between:
        edges |= {(role, other), (other, end)} if other != role else set()
    return RoleGraph(frozenset({start}), frozenset(edges))


def _roles_between(pairs: PairBatch, start: str, end: str) -> list[str]:
    """Roles with tokens behind the start and before the end, in a quarter of the prompts."""
    masks = path_roles(pairs.clean)
    position = torch.arange(pairs.clean.ids.shape[1])
    first = torch.where(masks[start], position, len(position)).amin(1, keepdim=True)
    last = torch.where(masks[end], position, -1).amax(1, keepdim=True)
    inside = (position > first) & (position < last)
    share = {role: (mask & inside).any(1).float().mean() for role, mask in masks.items()}
    return [r for r, s in share.items() if s >= _MIN_SHARE and r not in (start, end)]
