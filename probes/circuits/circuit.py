"""Circuit: some edges of a model's computation graph, each with its attribution score.

Plain numbers and names only: a saved circuit is read, combined and drawn without any model.
"""

import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.circuits.circuit_json import parse_circuit, serialize_circuit
from probes.circuits.graph import LOGITS, ComputationGraph, Edge
from probes.circuits.head_roles import HeadRole, with_heads
from probes.circuits.selection import connected_edges, edges_above, greedy_edges, top_edges
from probes.errors import CircuitError, ResultError
from probes.files import write_atomic
from probes.result import Result, figure_of

if TYPE_CHECKING:
    import networkx
    import pandas as pd

_ARROW = re.compile(r"\s*(?:->|→)\s*")


@dataclass(frozen=True, slots=True, repr=False)
class Circuit(Result):
    """Some edges of a model, kept in the order of the graph.

    Attributes:
        model: The model's name.
        graph: All edges of the model.
        edges: Those of the circuit, given in any order.
        scores: The part of the logit difference that each edge carries (logits). Positive edges
            support the answer.
        errors: Standard error of each score over prompts (logits); NaN if unknown.
        protocol: How the circuit was found, as pairs of names and values.
        head_roles: Roles of its heads; empty if they were not measured.
        edge_indices: Numbers of the edges in the graph, ascending; computed.
    """

    model: str
    graph: ComputationGraph
    edges: tuple[Edge, ...]
    scores: tuple[float, ...]
    errors: tuple[float, ...]
    protocol: tuple[tuple[str, str], ...] = ()
    head_roles: tuple[HeadRole, ...] = ()
    edge_indices: np.ndarray = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not len(self.edges) == len(self.scores) == len(self.errors):
            raise CircuitError(
                f"{len(self.edges)} edges have {len(self.scores)} scores and {len(self.errors)} "
                "errors: give one of each for each edge, NaN where an error is unknown"
            )
        indices = self.graph.indices_of(self.edges)
        for edge, score, error in zip(self.edges, self.scores, self.errors, strict=True):
            if not math.isfinite(score):
                raise CircuitError(f"The score of {edge} is {score}: leave such edges out")
            if error < 0 or math.isinf(error):
                raise CircuitError(
                    f"The error of {edge} is {error}: give 0 or more, NaN if unknown"
                )
        order = np.argsort(indices, kind="stable")
        indices = indices[order]
        repeated = np.flatnonzero(indices[1:] == indices[:-1])
        if len(repeated):
            raise CircuitError(
                f"The edge {self.graph.edge(int(indices[repeated[0]]))} is in the circuit twice: "
                "name each edge once"
            )
        indices.setflags(write=False)
        # One NaN object, so that circuits with equal numbers are equal.
        errors = [math.nan if math.isnan(error) else float(error) for error in self.errors]
        columns = {"edges": self.edges, "scores": [*map(float, self.scores)], "errors": errors}
        for name, column in columns.items():
            object.__setattr__(self, name, tuple(column[n] for n in order.tolist()))
        object.__setattr__(self, "edge_indices", indices)
        own_roles = with_heads(self.head_roles, self.nodes) if self.head_roles else ()
        object.__setattr__(self, "head_roles", own_roles)

    @classmethod
    def from_scores(
        cls,
        model: str,
        graph: ComputationGraph,
        scores: np.ndarray,
        errors: np.ndarray | None = None,
        protocol: tuple[tuple[str, str], ...] = (),
    ) -> "Circuit":
        """Circuit from scores (logits) of all edges of a graph; edges with NaN are left out."""
        errors = np.full(len(graph), math.nan) if errors is None else errors
        if len(scores) != len(graph) or len(errors) != len(graph):
            raise CircuitError(f"The graph has {len(graph)} edges: give one score for each")
        kept = np.flatnonzero(~np.isnan(scores))
        edges = tuple(graph.edge(index) for index in kept.tolist())
        numbers = (tuple(scores[kept].tolist()), tuple(errors[kept].tolist()))
        return cls(model, graph, edges, *numbers, protocol)

    def __len__(self) -> int:
        return len(self.edges)

    def __contains__(self, edge: object) -> bool:
        """Whether an edge, or an edge's name such as "L0.H1->L2.H3.q", is in the circuit."""
        name = _ARROW.sub("->", str(edge).strip())
        return any(str(own) == name for own in self.edges)

    def top(self, count: int) -> "Circuit":
        """The `count` edges with the greatest absolute scores."""
        return self._subset(self.edge_indices[top_edges(np.array(self.scores), count)])

    def above_threshold(self, threshold: float) -> "Circuit":
        """The edges with absolute scores >= `threshold` (logits)."""
        return self._subset(self.edge_indices[edges_above(np.array(self.scores), threshold)])

    def greedy(self, count: int) -> "Circuit":
        """Up to `count` edges of a greedy search from the logits; see `selection.greedy_edges`."""
        scores = np.full(len(self.graph), math.nan)
        scores[self.edge_indices] = self.scores
        return self._subset(greedy_edges(self.graph, scores, count))

    def connected(self) -> "Circuit":
        """The edges on some path from the embedding to the logits."""
        return self._subset(connected_edges(self.graph, self.edge_indices))

    def __and__(self, other: "Circuit") -> "Circuit":
        """The edges of both, with the scores of the left."""
        return self._combine(other, self.graph, set(self.edges) & set(other.edges), "in both")

    def __or__(self, other: "Circuit") -> "Circuit":
        """The edges of either; shared edges have the scores of the left."""
        graph = self.graph.union(other.graph)
        return self._combine(other, graph, {*self.edges, *other.edges}, "in either")

    def __sub__(self, other: "Circuit") -> "Circuit":
        """The edges that the other lacks."""
        return self._combine(other, self.graph, set(self.edges) - set(other.edges), "in the first")

    def jaccard(self, other: "Circuit") -> float:
        """Jaccard index of the edges by name, 0 to 1; 1 for two empty circuits.

        The models may differ in size.
        """
        own, others = set(self.edges), set(other.edges)
        return len(own & others) / len(own | others) if own or others else 1.0

    @property
    def fraction(self) -> float:
        """Fraction of the model's edges that are in the circuit."""
        return len(self) / len(self.graph)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Writers with an edge in or out, in the order of the residual stream; not the logits."""
        nodes = set()
        for source, target, source_role, target_role in self._columns():
            nodes.add((source, source_role))
            nodes.update((writer, target_role) for writer in self.graph.writers_fed_by(target))
        return tuple(self._node_name(*node) for node in sorted(nodes))

    def table(self) -> "pd.DataFrame":
        """One row for each edge: source, target, their roles, score and error."""
        import pandas as pd

        table = pd.DataFrame(
            [(e.source, e.target, e.source_role, e.target_role) for e in self.edges],
            columns=["source", "target", "source_role", "target_role"],
        )
        return table.assign(score=np.array(self.scores), error=np.array(self.errors))

    def to_networkx(self) -> "networkx.MultiDiGraph":
        """Graph of nodes, with an edge for each of a head's q, k and v.

        Keys and values of a group of heads lead to each head of the group.
        """
        import networkx

        result = networkx.MultiDiGraph(model=self.model)
        result.add_nodes_from(self.nodes)
        for edge, score, error, (source, target, source_role, target_role) in zip(
            self.edges, self.scores, self.errors, self._columns(), strict=True
        ):
            port = self.graph.port(target)
            fed = self.graph.writers_fed_by(target)
            ends = [self._node_name(writer, target_role) for writer in fed]
            roles = {"source_role": edge.source_role, "target_role": edge.target_role}
            for end in ends or [LOGITS + (f"@{edge.target_role}" if edge.target_role else "")]:
                begin = self._node_name(source, source_role)
                result.add_edge(begin, end, key=port, port=port, score=score, error=error, **roles)
        return result

    def to_json(self) -> str:
        """JSON with one edge a line; an unknown error is null."""
        rows = list(zip(self.edges, self.scores, self.errors, strict=True))
        return serialize_circuit(self.model, self.graph, rows, self.protocol, self.head_roles)

    @classmethod
    def from_json(cls, text: str) -> "Circuit":
        """Circuit that `to_json` wrote.

        Raises:
            CircuitError: The text is no circuit, has another schema, or names impossible edges.
        """
        model, graph, rows, protocol, head_roles = parse_circuit(text)
        edges, scores, errors = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(model, graph, edges, scores, errors, protocol, head_roles)

    def summary(self) -> tuple[str, ...]:
        """Size and strongest edges."""
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
        if Path(path).suffix.lower() != ".json":
            return Result.save(self, path)
        write_atomic(Path(path), self.to_json().encode())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read a circuit that `save` wrote as JSON.

        Raises:
            CircuitError: The file cannot be read, or holds no circuit.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, CircuitError) as error:
            raise CircuitError(f"Cannot read a circuit from {str(path)!r}: {error}") from error

    def picture(self, *, title: str = "") -> Any:  # noqa: ANN401
        """Diagram: layers from the bottom up, lines as thick as their scores."""
        return figure_of(self, title=title)

    def __str__(self) -> str:
        size = f"{len(self):,} of {len(self.graph):,} edges ({self.fraction:.1%})"
        return ", ".join((f"Circuit of {self.model}: {size}", *(v for _, v in self.protocol)))

    def __repr__(self) -> str:
        return f"<{self}>"

    def _node_name(self, writer: int, role: int) -> str:
        name = self.graph.writers[writer]
        return f"{name}@{self.graph.roles[role]}" if self.graph.roles else name

    def _columns(self) -> list[list[int]]:
        """Source, target, source role and target role of each edge, as indices."""
        return self.graph.edge_table[:, self.edge_indices].T.tolist()

    def _subset(self, indices: np.ndarray) -> "Circuit":
        """Circuit of some of its own edges, by their numbers."""
        rows = np.searchsorted(self.edge_indices, indices).tolist()
        columns = {"edges": self.edges, "scores": self.scores, "errors": self.errors}
        return replace(self, **{n: tuple(each[row] for row in rows) for n, each in columns.items()})

    def _combine(
        self, other: "Circuit", graph: ComputationGraph, keep: set[Edge], operation: str
    ) -> "Circuit":
        self.graph.union(other.graph)  # raises if the shapes differ
        values: dict[Edge, tuple[float, float]] = {}
        for one in (other, self):
            values |= zip(one.edges, zip(one.scores, one.errors, strict=True), strict=True)
        shared = [pair for pair in self.protocol if pair in other.protocol and pair[0] != "kept"]
        return Circuit(
            self.model if self.model == other.model else f"{self.model}, {other.model}",
            graph,
            tuple(keep),
            tuple(values[edge][0] for edge in keep),
            tuple(values[edge][1] for edge in keep),
            (*shared, ("kept", operation)),
            (*other.head_roles, *self.head_roles),
        )
