"""Traced circuits of two models with the same graph, edge by edge, without torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from probes.circuits.paths import CircuitPath, circuit_paths
from probes.circuits.result import Trace
from probes.comparison.circuits.edge_result import CircuitTransfer
from probes.result import Result

if TYPE_CHECKING:
    import pandas as pd

EdgeMark = Literal["both", "a only", "b only"]
"""An edge in both circuits, only in that of the first model, or only in that of the second."""


@dataclass(frozen=True, slots=True)
class TracedEdge:
    """An edge of the circuit of one of two models, or of both.

    Attributes:
        edge: Its name.
        mark: Whose circuit has it.
        a, b: Its score in each model (logits), on the same prompts.
        a_error, b_error: Their standard errors.
        differs: Whether the two scores differ (sign-flip test over all edges of the graph, false
            discovery rate 5 %).
    """

    edge: str
    mark: EdgeMark
    a: float
    b: float
    a_error: float
    b_error: float
    differs: bool


@dataclass(frozen=True, slots=True)
class TracedPath:
    """A path through the circuit of one of two models.

    Attributes:
        path: The path, with its strength in the model that has it: the first where both do.
        mark: "both" if all its edges are in both circuits, "a only" if the second model's circuit
            lacks one, "b only" if the path is in that of the second and the first's lacks one.
    """

    path: CircuitPath
    mark: EdgeMark


@dataclass(frozen=True, slots=True, repr=False)
class TraceComparison(Result):
    """Circuits of two models with the same graph, traced on the same prompts.

    Within a budget each model may be traced on the first of these only.

    Attributes:
        a, b: The traces.
        edges: Edges of either circuit, in the order of the graph.
        in_a, in_b: Both circuits, run in each model on held-out prompts.
        random_jaccards: Jaccard index of pairs of random circuits of these sizes (random paths).
        min_detectable_edges: Number of edges that must change together before any is significant.
    """

    a: Trace
    b: Trace
    edges: tuple[TracedEdge, ...]
    in_a: CircuitTransfer
    in_b: CircuitTransfer
    random_jaccards: tuple[float, ...]
    min_detectable_edges: int

    @property
    def names(self) -> tuple[str, str]:
        """Names of the two models."""
        return self.a.circuit.model, self.b.circuit.model

    def count(self, mark: EdgeMark) -> int:
        """Number of edges with a mark."""
        return sum(edge.mark == mark for edge in self.edges)

    @property
    def jaccard(self) -> float:
        """Jaccard index of the edges of the two circuits, 0 to 1."""
        return self.a.circuit.jaccard(self.b.circuit)

    def paths(self) -> tuple[TracedPath, ...]:
        """Paths of the first circuit, then those of the second that the first lacks.

        Each circuit is cut into paths by `circuit_paths`.
        """
        own, others = ({*trace.circuit.edges} for trace in (self.a, self.b))
        first = [
            TracedPath(path, "both" if others.issuperset(path.edges) else "a only")
            for path in circuit_paths(self.a.circuit)
        ]
        second = circuit_paths(self.b.circuit)
        return (*first, *(TracedPath(p, "b only") for p in second if not own.issuperset(p.edges)))

    def summary(self) -> tuple[str, ...]:
        """The findings, one sentence each."""
        first, second = self.names
        one_only = [edge for edge in self.edges if edge.mark != "both"]
        differing = sum(edge.differs for edge in one_only)
        chance = self.random_jaccards
        size_a, size_b = len(self.a.circuit), len(self.b.circuit)
        power = ""
        if self.min_detectable_edges > 1:
            power = f"; fewer than {self.min_detectable_edges} edges cannot be told"
        lines = [
            *(trace.gate.notice for trace in (self.a, self.b) if trace.gate.notice),
            f"{self.count('both')} of the {size_a} edges of the circuit of {first} are in that of "
            f"{second} as well, which has {size_b}: Jaccard index {self.jaccard:.2f} ("
            f"{len(chance)} pairs of circuits of random paths of these sizes: mean "
            f"{np.mean(chance):.2f}, highest {max(chance):.2f}).",
            self.in_b.sentence(first),
            self.in_a.sentence(second),
        ]
        if one_only:
            lines.append(
                f"{len(one_only)} edges are in one circuit only. Of these, {differing} have scores "
                f"that differ between the models (sign-flip test over all edges, false discovery "
                f"rate 5 %{power}); the others are not shown to differ."
            )
        paths = self.paths()
        kept = sum(path.mark == "both" for path in paths)
        whole = sum(path.mark != "b only" for path in paths)
        lines.append(f"{kept} of {whole} paths of {first} are whole in the circuit of {second}.")
        return tuple(lines)

    def table(self) -> "pd.DataFrame":
        """One row for each edge of either circuit."""
        import pandas as pd

        first, second = self.names
        rows = [(e.edge, e.mark, e.a, e.a_error, e.b, e.b_error, e.differs) for e in self.edges]
        return pd.DataFrame(
            rows,
            columns=[
                *("edge", "mark", first, f"{first} error", second, f"{second} error", "differs")
            ],
        )

    def __repr__(self) -> str:
        first, second = self.names
        return (
            f"<TraceComparison of {first} and {second}: {self.count('both')} edges in both, "
            f"{self.count('a only')} and {self.count('b only')} in one>"
        )
