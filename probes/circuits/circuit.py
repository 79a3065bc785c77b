"""Circuit: some edges of a model's computation graph, each with its attribution score.

Plain numbers and names only: a saved circuit is read, joined and drawn without any model.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.circuits.circuit_json import parse_circuit, serialize_circuit
from probes.circuits.graph import LOGITS, ComputationGraph, Edge
from probes.circuits.selection import connected_edges, edges_above, greedy_edges, top_edges
from probes.errors import CircuitError, ResultError
from probes.files import write_atomic
from probes.result import Result, figure_of

if TYPE_CHECKING:
    import networkx
    import pandas as pd

_ARROW = re.compile(r"\s*(?:->|→)\s*")
_SHAPE_FIELDS = ("layers", "heads", "kv_heads", "parallel")


@dataclass(frozen=True, slots=True, repr=False)
class Circuit(Result):
    """Some of a model's edges. Given in any order, they are kept in the wiring's.

    Attributes:
        model: The model's name.
        wiring: All edges that the model has.
        edges: Those of the circuit.
        scores: For each, how much of the answer's lead it carries (logits). Positive: the edge
            keeps the lead up.
        errors: For each, the standard error of its score over prompts (logits); NaN if unknown.
        protocol: How it was found, as pairs of words: method, steps, ablation and so on.
        numbers: The edges' numbers in the wiring, ascending. Found, not given.
    """

    model: str
    graph: ComputationGraph
    edges: tuple[Edge, ...]
    scores: tuple[float, ...]
    errors: tuple[float, ...]
    protocol: tuple[tuple[str, str], ...] = ()
    edge_indices: np.ndarray = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not len(self.edges) == len(self.scores) == len(self.errors):
            raise CircuitError(
                f"{len(self.edges)} edges have {len(self.scores)} scores and {len(self.errors)} "
                "errors: give one of each for each edge, NaN where an error is unknown"
            )
        numbers = _edge_indices(self.graph, self.edges)
        for edge, score, error in zip(self.edges, self.scores, self.errors, strict=True):
            if not math.isfinite(score):
                raise CircuitError(f"The score of {edge} is {score}: leave such edges out")
            if error < 0 or math.isinf(error):
                raise CircuitError(
                    f"The error of {edge} is {error}: give a size of 0 or more, NaN if unknown"
                )
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        twice = np.flatnonzero(numbers[1:] == numbers[:-1])
        if len(twice):
            raise CircuitError(
                f"The edge {self.graph.edge(int(numbers[twice[0]]))} is in the circuit twice: "
                "name each edge once"
            )
        numbers.setflags(write=False)
        places = order.tolist()
        # One and the same NaN, so that circuits with equal numbers are equal.
        errors = tuple(math.nan if math.isnan(e) else float(e) for e in self.errors)
        found = {
            "edges": tuple(self.edges[place] for place in places),
            "scores": tuple(float(self.scores[place]) for place in places),
            "errors": tuple(errors[place] for place in places),
            "edge_indices": numbers,
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_scores(
        cls,
        model: str,
        graph: ComputationGraph,
        scores: np.ndarray,
        errors: np.ndarray | None = None,
        protocol: tuple[tuple[str, str], ...] = (),
    ) -> "Circuit":
        """Make a circuit of scores (logits) for all edges of a wiring; NaN is not in it."""
        if len(scores) != len(graph) or (errors is not None and len(errors) != len(graph)):
            raise CircuitError(f"The wiring has {len(graph)} edges: give one score for each")
        kept = np.flatnonzero(~np.isnan(scores))
        spread = np.full(len(graph), math.nan) if errors is None else errors
        edges = tuple(graph.edge(number) for number in kept.tolist())
        sizes = (tuple(scores[kept].tolist()), tuple(spread[kept].tolist()))
        return cls(model, graph, edges, *sizes, protocol)

    def __len__(self) -> int:
        return len(self.edges)

    def __contains__(self, edge: object) -> bool:
        """Whether an edge, or one named like "L0.H1->L2.H3.q", is in the circuit."""
        name = _ARROW.sub("->", str(edge).strip())
        return any(str(own) == name for own in self.edges)

    def top(self, count: int) -> "Circuit":
        """Keep the `count` edges of greatest absolute score."""
        return self._subset(self.edge_indices[top_edges(np.array(self.scores), count)])

    def above_threshold(self, threshold: float) -> "Circuit":
        """Keep the edges whose absolute score is `threshold` (logits) or more."""
        return self._subset(self.edge_indices[edges_above(np.array(self.scores), threshold)])

    def greedy(self, count: int) -> "Circuit":
        """Keep `count` edges found by a search from the logits; see `selection.greedy`."""
        scores = np.full(len(self.graph), math.nan)
        scores[self.edge_indices] = self.scores
        return self._subset(greedy_edges(self.graph, scores, count))

    def connected(self) -> "Circuit":
        """Keep the edges on some path from the embedding to the logits."""
        return self._subset(connected_edges(self.graph, self.edge_indices))

    def __and__(self, other: "Circuit") -> "Circuit":
        """Keep the edges that both have, with the scores of the left."""
        return self._combine(other, self.graph, set(self.edges) & set(other.edges), "in both")

    def __or__(self, other: "Circuit") -> "Circuit":
        """Take the edges of either; where both have one, its score is that of the left."""
        wiring = _merge_graphs(self.graph, other.graph)
        return self._combine(other, wiring, {*self.edges, *other.edges}, "in either")

    def __sub__(self, other: "Circuit") -> "Circuit":
        """Keep the edges that the other lacks."""
        return self._combine(other, self.graph, set(self.edges) - set(other.edges), "in the first")

    def jaccard(self, other: "Circuit") -> float:
        """Say how much of the edges of either are edges of both, by name: 0 to 1, 1 if none are.

        The models may differ in size: an edge that one cannot have is one that it lacks.
        """
        own, others = set(self.edges), set(other.edges)
        return len(own & others) / len(own | others) if own or others else 1.0

    @property
    def fraction(self) -> float:
        """The part of all edges of the model that is in the circuit: 0 to 1."""
        return len(self) / len(self.graph)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The writers with an edge in or out, in the residual stream's order; not the logits."""
        live = set()
        for number in self.edge_indices.tolist():
            source, target, here, there = self.graph.edge_table[:, number].tolist()
            live.add((source, here))
            live.update((owner, there) for owner in self.graph.writers_fed_by(target))
        return tuple(self._node_name(*place) for place in sorted(live))

    def table(self) -> "pd.DataFrame":
        """Return a table with a row for each edge."""
        import pandas as pd

        table = pd.DataFrame(
            [(e.source, e.target, e.source_role, e.target_role) for e in self.edges],
            columns=["source", "target", "source_role", "target_role"],
        )
        return table.assign(score=np.array(self.scores), error=np.array(self.errors))

    def to_networkx(self) -> "networkx.MultiDiGraph":
        """Return a graph from node to node, with an edge for each of a head's q, k and v.

        The keys and values of a group of heads run to each head of the group.
        """
        import networkx

        graph = networkx.MultiDiGraph(model=self.model)
        graph.add_nodes_from(self.nodes)
        for at, number in enumerate(self.edge_indices.tolist()):
            source, target, here, there = self.graph.edge_table[:, number].tolist()
            edge, port = self.edges[at], self.graph.port(target)
            ends = [self._node_name(owner, there) for owner in self.graph.writers_fed_by(target)]
            for end in ends or [LOGITS + (f"@{edge.target_role}" if edge.target_role else "")]:
                graph.add_edge(
                    self._node_name(source, here),
                    end,
                    key=port,
                    port=port,
                    score=self.scores[at],
                    error=self.errors[at],
                    source_role=edge.source_role,
                    target_role=edge.target_role,
                )
        return graph

    def to_json(self) -> str:
        """Return everything as JSON, an edge a line; an unknown error is null."""
        rows = list(zip(self.edges, self.scores, self.errors, strict=True))
        return serialize_circuit(self.model, self.graph, rows, self.protocol)

    @classmethod
    def from_json(cls, text: str) -> "Circuit":
        """Read what `to_json` wrote.

        Raises:
            CircuitError: It is no circuit, a newer one, or one that the wiring cannot have.
        """
        model, wiring, rows, protocol = parse_circuit(text)
        edges, scores, errors = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(model, wiring, edges, scores, errors, protocol)

    def summary(self) -> tuple[str, ...]:
        """Return the size of the circuit and its strongest edges."""
        strongest = self.top(min(len(self), 5))
        named = sorted(
            zip(strongest.scores, strongest.edges, strict=True), key=lambda pair: -abs(pair[0])
        )
        edges = ", ".join(f"{edge} {score:+.2f}" for score, edge in named)
        return (f"{self}.", *([f"Strongest edges (logits): {edges}."] if edges else []))

    def to_dict(self) -> dict[str, Any]:
        """Return what `to_json` writes, as plain values."""
        return json.loads(self.to_json())

    @classmethod
    def from_dict(cls, plain: object) -> "Circuit":
        """Return the circuit that `to_dict` wrote.

        Raises:
            ResultError: It is no circuit.
        """
        try:
            return cls.from_json(json.dumps(plain))
        except CircuitError as error:
            raise ResultError(str(error)) from error

    def save(self, path: str | Path) -> Path:
        """Write the circuit (.json, an edge a line), its table (.csv), page (.html) or drawing."""
        path = Path(path)
        if path.suffix.lower() == ".json":
            write_atomic(path, self.to_json().encode())
        else:
            Result.save(self, path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read a circuit that `save` wrote as JSON.

        Raises:
            CircuitError: The file cannot be read, or holds no circuit.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CircuitError(f"Cannot read a circuit from {str(path)!r}: {error}") from error
        try:
            return cls.from_json(text)
        except CircuitError as error:
            raise CircuitError(f"{str(path)!r}: {error}") from error

    def picture(self, *, title: str = "") -> Any:  # noqa: ANN401
        """Draw it: layers from the bottom up, lines as thick as their scores."""
        return figure_of(self, title=title)

    def __str__(self) -> str:
        found = f", {', '.join(value for _, value in self.protocol)}" if self.protocol else ""
        return (
            f"Circuit of {self.model}: {len(self):,} of {len(self.graph):,} edges "
            f"({self.fraction:.1%}){found}"
        )

    def __repr__(self) -> str:
        return f"<{self}>"

    def _node_name(self, writer: int, role: int) -> str:
        name = self.graph.writers[writer]
        return f"{name}@{self.graph.roles[role]}" if self.graph.roles else name

    def _subset(self, indices: np.ndarray) -> "Circuit":
        """Keep the edges of these numbers, all of which it has."""
        places = np.searchsorted(self.edge_indices, indices).tolist()
        return replace(
            self,
            edges=tuple(self.edges[place] for place in places),
            scores=tuple(self.scores[place] for place in places),
            errors=tuple(self.errors[place] for place in places),
        )

    def _combine(
        self, other: "Circuit", graph: ComputationGraph, keep: set[Edge], operation: str
    ) -> "Circuit":
        _merge_graphs(self.graph, other.graph)
        known: dict[Edge, tuple[float, float]] = {}
        for one in (other, self):
            known |= zip(one.edges, zip(one.scores, one.errors, strict=True), strict=True)
        shared = [pair for pair in self.protocol if pair in other.protocol and pair[0] != "kept"]
        return Circuit(
            self.model if self.model == other.model else f"{self.model}, {other.model}",
            graph,
            tuple(keep),
            tuple(known[edge][0] for edge in keep),
            tuple(known[edge][1] for edge in keep),
            (*shared, ("kept", operation)),
        )


def _edge_indices(graph: ComputationGraph, edges: Iterable[Edge]) -> np.ndarray:
    """Find many edges. Names are looked up once each, and an odd edge is left to the wiring."""
    writers = {name: number for number, name in enumerate(graph.writers)}
    readers = {name: number for number, name in enumerate(graph.readers)}
    roles = {name: number for number, name in enumerate(graph.roles)} or {"": 0}
    starts, seen = (
        graph.edge_offsets.tolist(),
        [graph.upstream_count(v) for v in range(len(readers))],
    )
    pairs: dict[int, dict[tuple[int, int], int]] = {}
    found = []
    for edge in edges:
        source, target = writers.get(edge.source), readers.get(edge.target)
        here, there = roles.get(edge.source_role), roles.get(edge.target_role)
        if source is None or target is None or here is None or there is None:
            found.append(graph.index_of(edge))
            continue
        if target not in pairs:
            pairs[target] = {pair: at for at, pair in enumerate(graph.role_index_pairs(target))}
        place = pairs[target].get((here, there))
        if place is None or source >= seen[target]:
            found.append(graph.index_of(edge))
            continue
        found.append(starts[target] + place * seen[target] + source)
    return np.array(found, dtype=np.int64)


def _merge_graphs(left: ComputationGraph, right: ComputationGraph) -> ComputationGraph:
    """Join the roles of two wirings that are the same otherwise."""
    if left == right:
        return left
    names = [name for name in _SHAPE_FIELDS if getattr(left, name) != getattr(right, name)]
    found = [f"{name} {getattr(left, name)} and {getattr(right, name)}" for name in names]
    if bool(left.roles) != bool(right.roles):
        found.append("only one is resolved by roles")
    if found:
        raise CircuitError(
            f"The circuits have different wirings ({', '.join(found)}): join circuits of models "
            "of one shape, or compare them by jaccard"
        )
    roles = list(left.roles)
    for at, role in enumerate(right.roles):
        if role not in roles:
            # Right after the role that it follows there: roles stand as they do in the text.
            before = right.roles[at - 1] if at else ""
            roles.insert(roles.index(before) + 1 if before else 0, role)
    place = {role: number for number, role in enumerate(roles)}
    passages = {*left.role_pairs, *right.role_pairs}
    return replace(
        left,
        roles=tuple(roles),
        role_pairs=tuple(sorted(passages, key=lambda pair: (place[pair[0]], place[pair[1]]))),
        readouts=tuple(sorted({*left.readouts, *right.readouts}, key=place.__getitem__)),
    )
