"""Path patching between roles: which words carry a contrast to the answer, by way of which words.

Only attention moves information between tokens. An edge A → B is all attention of the tokens of
role B to those of role A, in all heads and layers. Patching an edge lets B read A's patched
residual stream instead of the clean one; everything else that B reads stays clean (path patching,
Goldowsky-Dill et al. 2023, arXiv:2304.05969, with roles as nodes). Models of any depth, width and
number of heads have the same edges, so that paths are compared without a map between models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from probes.prompts.question import Question
from probes.prompts.tokens.batch import Batch
from probes.prompts.tokens.pair_batch import PairBatch
from probes.prompts.tokens.tokenization import REST

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


def path_role_texts(question: Question) -> tuple[tuple[str, str], ...]:
    """Roles of `path_roles` with their words, in the order of the text; spaces have no role."""
    texts: list[tuple[str, str]] = []
    end, between = 0, REST
    for role, start, stop in (*question.roles, ("", len(question.text), len(question.text))):
        texts += [(between, question.text[end:start].strip()), (role, question.text[start:stop])]
        end, between = stop, f"after {role}"
    return tuple((role, words) for role, words in texts if words)


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
