"""Path patching between roles: which words carry a contrast to the answer, by way of which words.

Only attention moves information between tokens. An edge A → B is all attention of the tokens of
role B to those of role A, in all heads and layers. Patching an edge lets B read A's patched
residual stream instead of the clean one; everything else that B reads stays clean (path patching,
Goldowsky-Dill et al. 2023, arXiv:2304.05969, with roles as nodes). Models of any depth, width and
number of heads have the same edges, so that paths are compared without a map between models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import BatchError
from probes.interventions.sweep import pair_logit_diffs
from probes.models.model import Model
from probes.models.run_checks import require_unedited
from probes.models.site import RESID
from probes.prompts.tokens.batch import Batch
from probes.prompts.tokens.pair_batch import PairBatch
from probes.prompts.tokens.tokenization import REST

_TOKENS_PER_PASS = 8192
_SHORT_PATHS_SUFFICE = 0.9
_MAX_FIRST_STEPS = 3
_MIN_SHARE = 0.25

RoleEdge = tuple[str, str]
"""A role and another role that reads it."""


@dataclass(frozen=True, slots=True)
class RoleGraph:
    """Roles whose tokens are those of the counterfactual, and the edges by which they are read."""

    starts: frozenset[str]
    edges: frozenset[RoleEdge]

    def before(self, role: str) -> "RoleGraph":
        """Part of the graph that the state of a role depends on."""
        reached, edges = {role}, set()
        while new := {edge for edge in self.edges - edges if edge[1] in reached}:
            edges |= new
            reached |= {a for a, _ in new}
        return RoleGraph(self.starts & reached, frozenset(edges))


@dataclass(frozen=True, slots=True)
class RolePath:
    """Path from the words that a contrast changes to the words at which an answer is read.

    Attributes:
        roles: Roles along the path, from the changed one to the one of the read-out.
    """

    roles: tuple[str, ...]

    @property
    def graph(self) -> RoleGraph:
        """The path as a graph."""
        edges = zip(self.roles, self.roles[1:], strict=False)
        return RoleGraph(frozenset(self.roles[:1]), frozenset(edges))

    def __str__(self) -> str:
        return " → ".join(self.roles)


def join_paths(paths: Sequence[RolePath]) -> RoleGraph:
    """Graph of all edges of some paths."""
    graphs = [path.graph for path in paths]
    return RoleGraph(
        frozenset().union(*(graph.starts for graph in graphs)),
        frozenset().union(*(graph.edges for graph in graphs)),
    )


def path_roles(batch: Batch) -> dict[str, Bool[Tensor, "prompt position"]]:
    """Mask of the tokens of each role; the rest is told apart by the role that it follows.

    "after y" are the tokens without a role of their own between `y` and the next role, "rest" those
    before the first role. Each token is in one mask.
    """
    last = torch.full((len(batch),), -1)
    following = torch.full_like(batch.role_of, -1)
    rest = batch.roles.index(REST) if REST in batch.roles else -2
    for position in range(batch.ids.shape[1]):
        now = batch.role_of[:, position]
        last = torch.where((now >= 0) & (now != rest), now, last)
        following[:, position] = torch.where(now == rest, last, -1)
    masks = {role: batch.role_mask(role) for role in batch.roles if role != REST}
    first = (batch.role_of == rest) & (following < 0)
    masks |= {REST: first} if bool(first.any()) else {}
    for number, role in enumerate(batch.roles):
        if bool((following == number).any()):
            masks[f"after {role}"] = following == number
    return masks


def changed_roles(pairs: PairBatch) -> tuple[str, ...]:
    """Roles whose tokens differ between the clean prompts and the counterfactuals."""
    differs = (pairs.clean.ids != pairs.counterfactual.ids) & pairs.clean.mask
    masks = path_roles(pairs.clean)
    return tuple(role for role, mask in masks.items() if bool((differs & mask).any()))


def readout_role(pairs: PairBatch, answer: int) -> str:
    """Role of the tokens at which an answer is read, in most of the prompts."""
    position = pairs.clean.positions[:, answer : answer + 1]
    masks = path_roles(pairs.clean)
    return max(masks, key=lambda role: int(masks[role].gather(1, position).sum()))


@torch.no_grad()
def contrast_effects(model: Model, pairs: PairBatch) -> Float[Tensor, "prompt answer"]:
    """Decrease of each answer's logit difference from the clean to the counterfactual run."""
    measure = pair_logit_diffs(pairs, model.device)
    every = torch.arange(len(pairs), device=model.device)
    at = pairs.clean.positions.to(model.device)
    clean, other = (
        measure(model.logits(b.ids.to(model.device), b.mask.to(model.device), at), every)
        for b in (pairs.clean, pairs.counterfactual)
    )
    return (clean - other).cpu()


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
    require_unedited(model)
    if not bool(pairs.fully_aligned.all()):
        count = int((~pairs.fully_aligned).sum())
        raise BatchError(
            f"{count} of {len(pairs)} pairs have tokens without a counterpart: patch paths of "
            "pairs with equal numbers of tokens"
        )
    measure = pair_logit_diffs(pairs, model.device)
    every = torch.arange(len(pairs), device=model.device)
    effects, left = [torch.zeros(0, *pairs.clean.positions.shape)], list(graphs)
    while left:
        one = _Pass(pairs, path_roles(pairs.clean))
        while left and one.add(left[0]):
            del left[0]
        logits = one.run(model)
        clean = measure(one.read(logits, {}), every)
        effects += [(clean - measure(one.read(logits, s), every)).cpu()[None] for s in one.planned]
    return torch.cat(effects)


class _Pass:
    """One forward pass that computes the clean run and a copy of it for each role of each graph.

    In the copy of role B only B's own tokens are computed; at the input of every block all other
    tokens are taken from the copy of their role where the graph has the edge, else from the clean
    run. Graphs share the copies of roles that depend on the same edges.
    """

    def __init__(self, pairs: PairBatch, masks: Mapping[str, Bool[Tensor, "_ _"]]) -> None:
        self.pairs, self.masks = pairs, masks
        self.slots: dict[tuple[str, RoleGraph], int] = {}
        self.planned: list[dict[str, int]] = []  # Slot of each role, for each graph.
        self.ids: list[Int[Tensor, "prompt position"]] = [pairs.clean.ids]
        self.sources = [torch.arange(len(pairs))[:, None].expand_as(pairs.clean.ids)]

    def add(self, graph: RoleGraph) -> bool:
        """Plan a graph, unless the pass is full."""
        if self.planned and len(self.ids) * self.pairs.clean.ids.numel() > _TOKENS_PER_PASS:
            return False
        roles = [role for role in self.masks if any(role in edge for edge in graph.edges)]
        keys = {role: (role, graph.before(role)) for role in roles}
        new = [role for role in roles if keys[role] not in self.slots]
        slots = {role: self.slots.setdefault(keys[role], len(self.slots) + 1) for role in roles}
        for role in new:
            is_start = role in graph.starts
            self.ids.append(self.pairs.counterfactual.ids if is_start else self.pairs.clean.ids)
            source = self.sources[0].clone()
            for other in roles:
                if other == role or (other, role) in graph.edges:
                    source[self.masks[other]] += len(self.pairs) * slots[other]
            self.sources.append(source)
        self.planned.append(slots)
        return True

    def run(self, model: Model) -> Float[Tensor, "slot prompt answer vocab"]:
        """Logits of the clean run and of each copy, where each answer is read."""
        rows = torch.cat(self.sources).to(model.device)
        position = torch.arange(rows.shape[1], device=model.device)
        names = [f"blocks.{layer}.{RESID}" for layer in range(model.shape.layers)]
        mask, at = (
            each.repeat(len(self.ids), 1).to(model.device)
            for each in (self.pairs.clean.mask, self.pairs.clean.positions)
        )
        with model.editing({name: lambda resid: resid[rows, position] for name in names}):
            logits = model.logits(torch.cat(self.ids).to(model.device), mask, at)
        return logits.unflatten(0, (-1, len(self.pairs)))

    def read(
        self, logits: Float[Tensor, "slot prompt answer vocab"], slots: Mapping[str, int]
    ) -> Float[Tensor, "prompt answer vocab"]:
        """Logits of each answer in the copy of the role of the token where it is read."""
        at = self.pairs.clean.positions
        slot = torch.zeros_like(at)
        for role, own in slots.items():
            slot[self.masks[role].gather(1, at)] = own
        prompt, answer = (torch.arange(size, device=logits.device) for size in at.shape)
        return logits[slot.to(logits.device), prompt[:, None], answer]


def candidate_paths(
    model: Model, pairs: PairBatch, answer: int
) -> dict[RolePath, Float[Tensor, " prompt"]]:
    """Effect of each path of one or two edges, and of three where these leave effects out.

    Args:
        model: Model to patch.
        pairs: Pairs whose tokens are all aligned.
        answer: Number of the answer whose logit difference is measured.
    """
    end, effects = readout_role(pairs, answer), {}

    def measure(graphs: Sequence[RoleGraph]) -> Float[Tensor, "graph prompt"]:
        return patch_role_graphs(model, pairs, graphs)[..., answer]

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
