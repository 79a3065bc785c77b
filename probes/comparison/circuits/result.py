"""What comparing two circuits found: plain numbers, each beside its chance level."""

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from probes.circuits.circuit import Circuit
from probes.circuits.edge_scores import EdgeScores
from probes.circuits.result import format_fraction
from probes.comparison.circuits.edge_tests import FDR_LEVEL, EdgeChange
from probes.comparison.circuits.overlap import Overlap
from probes.comparison.circuits.transfer import CircuitTransfer
from probes.stats.intervals import Estimate

SCHEMA = 1

_WEAK_FRACTION = 0.5  # Of the other's lead: less than that is said.


@dataclass(frozen=True, slots=True)
class SizeComparison:
    """Two circuits of the same number of edges.

    Attributes:
        share: Of all edges.
        overlap: Of the edges.
        nodes, nodes_chance: Jaccard of the heads and MLPs that they touch, and the same for as
            many edges chosen by lot.
        in_a, in_b: Both circuits run in the one model, and in the other.
    """

    fraction: float
    overlap: Overlap
    node_overlap: float
    node_overlap_chance: float
    in_a: CircuitTransfer
    in_b: CircuitTransfer


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
    logit_diffs: tuple[Estimate, Estimate]
    sizes: tuple[SizeComparison, ...]
    weighted_overlap: Overlap
    edge_changes: tuple[EdgeChange, ...]
    min_detectable_edges: int
    edge_scores: tuple[EdgeScores, EdgeScores]
    protocol: tuple[tuple[str, str], ...]

    @property
    def middle_size(self) -> SizeComparison:
        """The size that the summary speaks of: the middle one, whatever was found there."""
        return self.sizes[len(self.sizes) // 2]

    def circuits(self, at: SizeComparison) -> tuple[Circuit, Circuit]:
        """Return both circuits of one size."""
        one, two = (graph.top(at.overlap.edges) for graph in self.edge_scores)
        return one, two

    def table(self) -> pd.DataFrame:
        """Return the overlaps and the shares of the lead, a size to a row; the last is weighted."""
        rows = [_overlap_columns(at.overlap) | _transfer_columns(at) for at in self.sizes]
        return pd.DataFrame([*rows, _overlap_columns(self.weighted_overlap)])

    def edge_change_table(self) -> pd.DataFrame:
        """Return the edges that are not worth the same, one to a row."""
        rows = [
            (c.edge, c.a, c.b, c.difference.value, c.difference.low, c.difference.high, c.p, c.q)
            for c in self.edge_changes
        ]
        names = ["edge", "a", "b", "difference", "low", "high", "p", "q"]
        return pd.DataFrame(rows, columns=names)

    def summary(self) -> tuple[str, ...]:
        """Say what was found, a plain sentence each."""
        at, a, b = self.middle_size, self.a, self.b
        found = at.overlap
        verdict = "further apart than" if found.excess.low > 0 else "not surely further apart than"
        return (
            *self._logit_diff_lines(),
            f"Of the {found.edges} strongest edges ({at.fraction:.1%}), {found.same_prompts:.2f} are shared "
            f"(Jaccard; chance {found.chance:.2f}); of the nodes they touch {at.node_overlap:.2f} (chance "
            f"{at.node_overlap_chance:.2f}); of all scores by weight {self.weighted_overlap.same_prompts:.2f} (chance "
            f"{self.weighted_overlap.chance:.2f}).",
            f"Found in different prompts, circuits of {a} share {found.within_a}, of {b} "
            f"{found.within_b}, of one and the other {found.between}: the models are {verdict} "
            f"other prompts alone would make them, by {found.excess}.",
            *(self._transfer_line(into) for into in (at.in_b, at.in_a)),
            *self._overlap_lines(),
            self._edge_line(),
        )

    def _logit_diff_lines(self) -> tuple[str, ...]:
        one, two = self.logit_diffs
        lines = [
            f"{self.a} and {self.b} on {dict(self.protocol)['task']}: the answer leads by {one} "
            f"and {two} logits."
        ]
        less, more = sorted((one.value, two.value))
        if less < _WEAK_FRACTION * more:
            name = self.a if one.value < two.value else self.b
            lines.append(
                f"{name} has only {less / more:.0%} of the other's lead left; shares of the lead "
                "are of each model's own."
            )
        return tuple(lines)

    def _transfer_line(self, transfer: CircuitTransfer) -> str:
        other = self.a if transfer.model == self.b else self.b
        words = {
            "works": "it works there as well",
            "falls short": "it falls short of it",
            "cannot tell": "whether it works as well cannot be told",
            "no circuit": "so few edges are no circuit of its own, and nothing follows",
        }
        return (
            f"In {transfer.model} the circuit of {other} keeps {transfer.transferred} of the lead, its own "
            f"{transfer.own}, random paths {format_fraction(transfer.chance)} (highest {format_fraction(transfer.chance_high)}): "
            f"{words[transfer.label]}."
        )

    def _overlap_lines(self) -> tuple[str, ...]:
        """Say whether less overlap is a loss: other edges can do the same job."""
        at = self.middle_size
        if at.overlap.excess.low <= 0:
            return ()
        words = {at.in_a.label, at.in_b.label}
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

    def _edge_line(self) -> str:
        count, size = len(self.edge_changes), len(self.edge_scores[0])
        how = f"(signs dealt by lot over prompts, {FDR_LEVEL:.0%} false discoveries)"
        coarse = ""
        if self.min_detectable_edges > 1:
            coarse = f" The test is coarse: it finds none where fewer than {self.min_detectable_edges} change."
        if not count:
            return f"No edge of {size} is surely worth more in one than in the other {how}.{coarse}"
        most = ", ".join(f"{c.edge} by {c.difference}" for c in self.edge_changes[:3])
        return (
            f"{count} of {size} edges are not worth the same {how}, most of all "
            f"({self.a} less {self.b}, logits) {most}.{coarse}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the scores of all edges as plain JSON values."""
        one, two = self.circuits(self.middle_size)
        return {
            "schema": SCHEMA,
            "summary": list(self.summary()),
            "a": self.a,
            "b": self.b,
            "leads": [asdict(lead) for lead in self.logit_diffs],
            "sizes": [asdict(at) for at in self.sizes],
            "weighted": asdict(self.weighted_overlap),
            "changes": [asdict(change) for change in self.edge_changes],
            "fewest": self.min_detectable_edges,
            "circuits": [[str(edge) for edge in circuit.edges] for circuit in (one, two)],
            "protocol": dict(self.protocol),
        }

    def __repr__(self) -> str:
        found = self.middle_size.overlap
        return f"<CircuitComparison {self.a} | {self.b}: {found.edges} edges, {found.same_prompts:.2f}>"


def _overlap_columns(overlap: Overlap) -> dict[str, Any]:
    """Lay an overlap out as a row; `edges` 0 stands for all, by weight."""
    return {
        "edges": overlap.edges or "all, by weight",
        "same": overlap.same_prompts,
        "chance": overlap.chance,
        "within a": overlap.within_a.value,
        "within b": overlap.within_b.value,
        "between": overlap.between.value,
        "excess": overlap.excess.value,
        "low": overlap.excess.low,
        "high": overlap.excess.high,
    }


def _transfer_columns(at: SizeComparison) -> dict[str, Any]:
    row: dict[str, Any] = {"nodes": at.node_overlap, "nodes chance": at.node_overlap_chance}
    for side, into in (("a", at.in_a), ("b", at.in_b)):
        other = "b" if side == "a" else "a"
        row |= {
            f"{side} in {side}": into.own.value,
            f"{other} in {side}": into.transferred.value,
            f"gap in {side}": into.gap.value,
            f"gap low in {side}": into.gap.low,
            f"gap high in {side}": into.gap.high,
            f"chance in {side}": into.chance_high,
            f"word in {side}": into.label,
        }
    return row
