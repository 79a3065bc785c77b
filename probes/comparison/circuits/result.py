"""Result of a comparison of circuits: overlap, transfer and changed edges, with chance levels."""

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from probes.circuits.circuit import Circuit
from probes.circuits.edges.edge_scores import EdgeScores
from probes.comparison.circuits.edge_result import CircuitTransfer
from probes.comparison.circuits.edge_tests import FDR_LEVEL, EdgeChange
from probes.comparison.circuits.overlap import Overlap
from probes.stats.intervals import Estimate

SCHEMA = 1

_WEAK_FRACTION = 0.5  # A logit difference below this fraction of the other model's is noted.


@dataclass(frozen=True, slots=True)
class SizeComparison:
    """Two circuits of the same number of edges.

    Attributes:
        fraction: Of all edges.
        overlap: Overlap of the edges.
        node_overlap, node_overlap_chance: Jaccard index of the heads and MLPs that they touch, and
            that of random circuits.
        in_a, in_b: Both circuits, run in each model.
    """

    fraction: float
    overlap: Overlap
    node_overlap: float
    node_overlap_chance: float
    in_a: CircuitTransfer
    in_b: CircuitTransfer


@dataclass(frozen=True, eq=False, repr=False)
class CircuitComparison:
    """Circuits of two models.

    Attributes:
        a, b: Names of the models.
        logit_diffs: Mean logit difference of each model on the held-out prompts.
        sizes: The comparison at each size, ascending.
        weighted_overlap: Overlap of all edges, weighted by score.
        edge_changes: Edges whose scores differ, the greatest difference first.
        min_detectable_edges: Number of edges that must change together before any is significant.
        edge_scores: Scores of all edges in each model; `edge_scores[0].top(n)` is a circuit.
        protocol: How it was measured, as pairs of names and values.
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
        """The size that the summary describes, the middle one whatever the results."""
        return self.sizes[len(self.sizes) // 2]

    def circuits(self, at: SizeComparison) -> tuple[Circuit, Circuit]:
        """Both circuits of one size."""
        one, two = (scores.top(at.overlap.edges) for scores in self.edge_scores)
        return one, two

    def table(self) -> pd.DataFrame:
        """Overlaps and transferred faithfulness, one size a row; the last row is weighted."""
        rows = [_overlap_columns(at.overlap) | _transfer_columns(at) for at in self.sizes]
        return pd.DataFrame([*rows, _overlap_columns(self.weighted_overlap)])

    def edge_change_table(self) -> pd.DataFrame:
        """Edges whose scores differ, one a row."""
        rows = [
            (c.edge, c.a, c.b, c.difference.value, c.difference.low, c.difference.high, c.p, c.q)
            for c in self.edge_changes
        ]
        names = ["edge", "a", "b", "difference", "low", "high", "p", "q"]
        return pd.DataFrame(rows, columns=names)

    def summary(self) -> tuple[str, ...]:
        """The findings, one sentence each."""
        at, overlap, weighted = self.middle_size, self.middle_size.overlap, self.weighted_overlap
        excess, doubt = "exceeds" if overlap.excess.low > 0 else "is not shown to exceed", ""
        if overlap.excess.low > 0 and overlap.noisier:
            noisier = self.a if overlap.noisier == "a" else self.b
            doubt = f", in part perhaps because {noisier} varies more with the prompts"
        return (
            *self._logit_diff_lines(),
            f"The {overlap.edges} highest-scoring edges ({at.fraction:.1%}) have a Jaccard index "
            f"of {overlap.same_prompts:.2f} (chance {overlap.chance:.2f}), the nodes they touch "
            f"{at.node_overlap:.2f} (chance {at.node_overlap_chance:.2f}), and all edges weighted "
            f"by score {weighted.same_prompts:.2f} (chance {weighted.chance:.2f}).",
            f"Between halves of the prompts, the Jaccard index is {overlap.within_a} within "
            f"{self.a}, {overlap.within_b} within {self.b} and {overlap.between} between them: the "
            f"difference of the models {excess} that of the prompts (excess {overlap.excess})"
            f"{doubt}.",
            at.in_b.sentence(self.a),
            at.in_a.sentence(self.b),
            *self._overlap_lines(),
            self._edge_line(),
        )

    def _logit_diff_lines(self) -> tuple[str, ...]:
        one, two = self.logit_diffs
        line = (
            f"{self.a} and {self.b} on {dict(self.protocol)['task']}: the logit difference is "
            f"{one} and {two}."
        )
        less, more = sorted((one.value, two.value))
        if less >= _WEAK_FRACTION * more:
            return (line,)
        name = self.a if one.value < two.value else self.b
        return (
            line,
            f"{name} has only {less / more:.0%} of the other's logit difference; what circuits "
            "keep is relative to each model's own.",
        )

    def _overlap_lines(self) -> tuple[str, ...]:
        """Whether less overlap is a loss: other edges can do the same work."""
        at = self.middle_size
        if at.overlap.excess.low <= 0:
            return ()
        labels, lower = {at.in_a.label, at.in_b.label}, "The overlap is lower than within one model"
        if labels == {"works"}:
            return (
                f"{lower}, but each circuit works in both models: other edges do the same work, "
                "and nothing is lost.",
            )
        if "falls short" in labels:
            return (
                f"{lower}, and a circuit falls short in the other model: part of the work is done "
                "by other edges there.",
            )
        return (f"{lower}; whether anything is lost is open.",)

    def _edge_line(self) -> str:
        count, size = len(self.edge_changes), len(self.edge_scores[0])
        test = f"(sign-flip test over prompts, false discovery rate {FDR_LEVEL:.0%})"
        power = ""
        if self.min_detectable_edges > 1:
            power = f" The test finds no changes of fewer than {self.min_detectable_edges} edges."
        if not count:
            return f"None of {size} edges differs significantly {test}.{power}"
        most = ", ".join(f"{c.edge} by {c.difference}" for c in self.edge_changes[:3])
        return (
            f"{count} of {size} edges differ {test}, most of all ({self.a} minus {self.b}, logits) "
            f"{most}.{power}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the scores of all edges, as plain JSON values."""
        return {
            "schema": SCHEMA,
            "summary": list(self.summary()),
            "a": self.a,
            "b": self.b,
            "leads": [asdict(estimate) for estimate in self.logit_diffs],
            "sizes": [asdict(at) for at in self.sizes],
            "weighted": asdict(self.weighted_overlap),
            "changes": [asdict(change) for change in self.edge_changes],
            "fewest": self.min_detectable_edges,
            "circuits": [
                [str(edge) for edge in circuit.edges] for circuit in self.circuits(self.middle_size)
            ],
            "protocol": dict(self.protocol),
        }

    def __repr__(self) -> str:
        overlap = self.middle_size.overlap
        return (
            f"<CircuitComparison {self.a} | {self.b}: {overlap.edges} edges, "
            f"{overlap.same_prompts:.2f}>"
        )


def _overlap_columns(overlap: Overlap) -> dict[str, Any]:
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
    for model, other, transfer in (("a", "b", at.in_a), ("b", "a", at.in_b)):
        row |= {
            f"{model} in {model}": transfer.own.value,
            f"{other} in {model}": transfer.transferred.value,
            f"gap in {model}": transfer.gap.value,
            f"gap low in {model}": transfer.gap.low,
            f"gap high in {model}": transfer.gap.high,
            f"chance in {model}": transfer.chance_high,
            f"label in {model}": transfer.label,
        }
    return row
