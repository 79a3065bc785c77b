"""What comparing two circuits found: plain numbers, each beside its chance level."""

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from probes.circuits.circuit import Circuit
from probes.circuits.edge_scores import Graph
from probes.circuits.trace import shown
from probes.comparison.circuits.edge_tests import LEVEL, Change
from probes.comparison.circuits.overlap import Overlap
from probes.comparison.circuits.transfer import Guest
from probes.stats.intervals import Estimate

SCHEMA = 1

_FAINT = 0.5  # Of the other's lead: less than that is said.


@dataclass(frozen=True, slots=True)
class AtSize:
    """Two circuits of the same number of edges.

    Attributes:
        share: Of all edges.
        overlap: Of the edges.
        nodes, nodes_chance: Jaccard of the heads and MLPs that they touch, and the same for as
            many edges chosen by lot.
        in_a, in_b: Both circuits run in the one model, and in the other.
    """

    share: float
    overlap: Overlap
    nodes: float
    nodes_chance: float
    in_a: Guest
    in_b: Guest


@dataclass(frozen=True, eq=False, repr=False)
class CircuitComparison:
    """Two models' circuits side by side.

    Attributes:
        a, b: Names of the models.
        leads: Of the answer on the held-out prompts (logits), in each model.
        sizes: The comparison at each size, growing.
        weighted: Overlap of all scores by their size.
        changes: The edges that are not worth the same, the greatest difference first.
        fewest: How many edges must change together for any to be found, by the number of prompts.
        graphs: Scores of all edges in each model; `graphs[0].top(n)` is a circuit.
        protocol: How it was measured.
    """

    a: str
    b: str
    leads: tuple[Estimate, Estimate]
    sizes: tuple[AtSize, ...]
    weighted: Overlap
    changes: tuple[Change, ...]
    fewest: int
    graphs: tuple[Graph, Graph]
    protocol: tuple[tuple[str, str], ...]

    @property
    def middle(self) -> AtSize:
        """The size that the summary speaks of: the middle one, whatever was found there."""
        return self.sizes[len(self.sizes) // 2]

    def circuits(self, found: AtSize) -> tuple[Circuit, Circuit]:
        """Return both circuits of one size."""
        one, two = (graph.top(found.overlap.edges) for graph in self.graphs)
        return one, two

    def table(self) -> pd.DataFrame:
        """Return the overlaps and the shares of the lead, a size to a row; the last is weighted."""
        rows = [_row(at.overlap) | _crossings(at) for at in self.sizes]
        return pd.DataFrame([*rows, _row(self.weighted)])

    def changed(self) -> pd.DataFrame:
        """Return the edges that are not worth the same, one to a row."""
        rows = [
            (c.edge, c.a, c.b, c.difference.value, c.difference.low, c.difference.high, c.p, c.q)
            for c in self.changes
        ]
        names = ["edge", "a", "b", "difference", "low", "high", "p", "q"]
        return pd.DataFrame(rows, columns=names)

    def summary(self) -> tuple[str, ...]:
        """Say what was found, a plain sentence each."""
        at, a, b = self.middle, self.a, self.b
        found = at.overlap
        verdict = "further apart than" if found.excess.low > 0 else "not surely further apart than"
        return (
            *self._lead(),
            f"Of the {found.edges} strongest edges ({at.share:.1%}), {found.same:.2f} are shared "
            f"(Jaccard; chance {found.chance:.2f}); of the nodes they touch {at.nodes:.2f} (chance "
            f"{at.nodes_chance:.2f}); of all scores by weight {self.weighted.same:.2f} (chance "
            f"{self.weighted.chance:.2f}).",
            f"Found in different prompts, circuits of {a} share {found.within_a}, of {b} "
            f"{found.within_b}, of one and the other {found.between}: the models are {verdict} "
            f"other prompts alone would make them, by {found.excess}.",
            *(self._crossed(into) for into in (at.in_b, at.in_a)),
            *self._together(),
            self._edges(),
        )

    def _lead(self) -> tuple[str, ...]:
        one, two = self.leads
        lines = [
            f"{self.a} and {self.b} on {dict(self.protocol)['task']}: the answer leads by {one} "
            f"and {two} logits."
        ]
        less, more = sorted((one.value, two.value))
        if less < _FAINT * more:
            name = self.a if one.value < two.value else self.b
            lines.append(
                f"{name} has only {less / more:.0%} of the other's lead left; shares of the lead "
                "are of each model's own."
            )
        return tuple(lines)

    def _crossed(self, into: Guest) -> str:
        other = self.a if into.model == self.b else self.b
        words = {
            "works": "it works there as well",
            "falls short": "it falls short of it",
            "cannot tell": "whether it works as well cannot be told",
            "no circuit": "so few edges are no circuit of its own, and nothing follows",
        }
        return (
            f"In {into.model} the circuit of {other} keeps {into.given} of the lead, its own "
            f"{into.own}, random paths {shown(into.chance)} (highest {shown(into.chance_high)}): "
            f"{words[into.word]}."
        )

    def _together(self) -> tuple[str, ...]:
        """Say whether less overlap is a loss: other edges can do the same job."""
        at = self.middle
        if at.overlap.excess.low <= 0:
            return ()
        words = {at.in_a.word, at.in_b.word}
        if words == {"works"}:
            return (
                "The overlap is lower than within one model, and yet each circuit works in both: "
                "other edges do the same job, and nothing is lost.",
            )
        if "falls short" in words:
            return (
                "The overlap is lower than within one model, and a circuit falls short in the "
                "other: part of the job is done by other edges there.",
            )
        return ("The overlap is lower than within one model; whether that is a loss is open.",)

    def _edges(self) -> str:
        count, size = len(self.changes), len(self.graphs[0])
        how = f"(signs dealt by lot over prompts, {LEVEL:.0%} false discoveries)"
        coarse = ""
        if self.fewest > 1:
            coarse = f" The test is coarse: it finds none where fewer than {self.fewest} change."
        if not count:
            return f"No edge of {size} is surely worth more in one than in the other {how}.{coarse}"
        most = ", ".join(f"{c.edge} by {c.difference}" for c in self.changes[:3])
        return (
            f"{count} of {size} edges are not worth the same {how}, most of all "
            f"({self.a} less {self.b}, logits) {most}.{coarse}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the scores of all edges as plain JSON values."""
        one, two = self.circuits(self.middle)
        return {
            "schema": SCHEMA,
            "summary": list(self.summary()),
            "a": self.a,
            "b": self.b,
            "leads": [asdict(lead) for lead in self.leads],
            "sizes": [asdict(at) for at in self.sizes],
            "weighted": asdict(self.weighted),
            "changes": [asdict(change) for change in self.changes],
            "fewest": self.fewest,
            "circuits": [[str(edge) for edge in circuit.edges] for circuit in (one, two)],
            "protocol": dict(self.protocol),
        }

    def __repr__(self) -> str:
        found = self.middle.overlap
        return f"<CircuitComparison {self.a} | {self.b}: {found.edges} edges, {found.same:.2f}>"


def _row(found: Overlap) -> dict[str, Any]:
    """Lay an overlap out as a row; `edges` 0 stands for all, by weight."""
    return {
        "edges": found.edges or "all, by weight",
        "same": found.same,
        "chance": found.chance,
        "within a": found.within_a.value,
        "within b": found.within_b.value,
        "between": found.between.value,
        "excess": found.excess.value,
        "low": found.excess.low,
        "high": found.excess.high,
    }


def _crossings(at: AtSize) -> dict[str, Any]:
    row: dict[str, Any] = {"nodes": at.nodes, "nodes chance": at.nodes_chance}
    for side, into in (("a", at.in_a), ("b", at.in_b)):
        other = "b" if side == "a" else "a"
        row |= {
            f"{side} in {side}": into.own.value,
            f"{other} in {side}": into.given.value,
            f"gap in {side}": into.gap.value,
            f"gap low in {side}": into.gap.low,
            f"gap high in {side}": into.gap.high,
            f"chance in {side}": into.chance_high,
            f"word in {side}": into.word,
        }
    return row
